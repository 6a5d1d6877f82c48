"""Failure modes of the loss mask: in rows as trainers keep them on disk, and in what a trainer would make of records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from modes import CLEAN_TEMPLATE, HEALTHY, Case, Inputs, chat, checkpoint, jsonl

from thinkguard.vocabulary import Vocabulary

Parts = list[tuple[str, bool]]  # text, and whether it is in the loss
SYSTEM = ("<|im_start|>system\nBe short.<|im_end|>\n", False)
USER = ("<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n", False)
TURN: Parts = [
    ("<think>", True),
    ("\nOne and one is two.\n", True),
    ("</think>", True),
    ("\n\n2.<|im_end|>", True),
    ("\n", False),
]
START_OUTSIDE = CLEAN_TEMPLATE.replace(
    "{%- generation %}", "{%- if message.reasoning_content %}{{- '<think>\\n' }}{%- endif %}{%- generation %}"
).replace("{{- '<think>\\n' + reasoning", "{{- ('' if message.reasoning_content else '<think>\\n') + reasoning")
GOOD: Parts = [SYSTEM, USER, *TURN]


def row(parts: Parts, **columns: Any) -> dict[str, Any]:
    """Tokenise a row, part by part."""
    vocabulary = Vocabulary.from_tokenizer(HEALTHY)
    ids, labels = [], []
    for text, learned in parts:
        new = vocabulary.encode(text)
        ids += new
        labels += new if learned else [-100] * len(new)
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels, **columns}


def masked(*texts: str) -> Parts:
    """The good row with some of its parts out of the loss."""
    return [(text, learned and text not in texts) for text, learned in GOOD]


def tokenized(make: Callable[[], dict[str, Any]], clean: Callable[[], dict[str, Any]] | None = None) -> Any:
    """A model, and rows of which the last one may be broken."""

    def case(folder: Path, broken: bool) -> Inputs:
        good = row(GOOD)
        last = make() if broken else clean() if clean else good
        return Inputs(checkpoint(folder), data=(jsonl(folder / "rows.jsonl", [good, good, last]),))

    return case


def foreign() -> dict[str, Any]:
    """A row of a tokenizer with more tokens."""
    made = row(GOOD)
    return {**made, "input_ids": [*made["input_ids"][:-1], 151668]}


def empty(learned: bool) -> dict[str, Any]:
    return row([SYSTEM, USER, ("<think>\n\n</think>\n\n", learned), ("2.<|im_end|>", True)])


def packed(restart: bool) -> dict[str, Any]:
    num = len(row(GOOD)["input_ids"])
    positions = list(range(num)) * 2 if restart else list(range(2 * num))
    return row(GOOD + GOOD, position_ids=positions)


def start_outside(folder: Path, broken: bool) -> Inputs:
    """A generation block that begins behind the start marker, and training on what is in such blocks alone."""
    path = checkpoint(folder, START_OUTSIDE if broken else CLEAN_TEMPLATE)
    records = [chat(f"What is {n} + 1?", f"{n + 1}.", reasoning_content=f"{n} and one is {n + 1}.") for n in range(8)]
    return Inputs(path, data=(jsonl(folder / "data.jsonl", records),), trainer="trl")


CASES = [
    Case("", "row-ids", tokenized(foreign)),
    Case("F23", "mask-start", start_outside),
    Case("F30", "mask-end", tokenized(lambda: row(masked("</think>")))),
    Case("F32", "mask-body", tokenized(lambda: row(masked(TURN[1][0])))),
    Case("F21", "mask-empty-block", tokenized(lambda: empty(True), lambda: empty(False))),
    Case("F31", "packed-rows", tokenized(lambda: packed(False), lambda: packed(True))),
]
