"""The failure modes of training data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from modes import Case, Inputs, chat, checkpoint, good_records, jsonl

BLOCK = "<think>\nR one, R two.\n</think>\n\nA."
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}


def _one_of(bad: Any, good: Any, **options: Any) -> Callable[[Path, bool], Inputs]:
    """Eight regular records and one more: `bad` where broken, else `good`."""

    def make(folder: Path, broken: bool) -> Inputs:
        file = jsonl(folder / "data.jsonl", [*good_records(), bad if broken else good])
        return Inputs(path=checkpoint(folder), data=(file,), **options)

    return make


def _every(bad: Callable[[dict[str, Any]], None], **options: Any) -> Callable[[Path, bool], Inputs]:
    """Eight regular records, each of them changed by `bad` where broken."""

    def make(folder: Path, broken: bool) -> Inputs:
        records = good_records()
        for record in records if broken else ():
            bad(record["messages"][1])
        return Inputs(path=checkpoint(folder), data=(jsonl(folder / "data.jsonl", records),), **options)

    return make


def _file(folder: Path, broken: bool) -> Inputs:
    file = jsonl(folder / "data.jsonl", good_records())
    if broken:
        file.write_text(file.read_text(encoding="utf-8") + '{"messages": [\n', encoding="utf-8")
    return Inputs(path=checkpoint(folder), data=(file,))


def _without_block(message: dict[str, Any]) -> None:
    message["content"] = message["content"].rpartition("</think>\n\n")[2]


def _into_field(message: dict[str, Any]) -> None:
    message["reasoning_content"] = message["content"].split("<think>\n")[1].split("\n</think>")[0]
    _without_block(message)


def _tight(message: dict[str, Any]) -> None:
    message["content"] = message["content"].replace("<think>\n", "<think>").replace("\n</think>\n\n", "</think>")


def _tool_turn(inline: bool) -> dict[str, Any]:
    before = "<think>\nR.\n</think>\n\n" if inline else ""
    asked = chat("What is 1 + 2?", before, tool_calls=[CALL])
    answer = {"role": "assistant", "content": BLOCK}
    return {"messages": [*asked["messages"], {"role": "tool", "content": "3", "tool_call_id": "c1"}, answer]}


CASES = [
    Case("", "file", _file),
    Case("F1", "field-unread", _every(_into_field, trainer="ms-swift")),
    Case("F2", "half-open", _one_of(chat("Q?", "<think>\nR one, R two."), chat("Q?", BLOCK))),
    Case("F2", "orphan-end", _one_of(chat("Q?", BLOCK.removeprefix("<think>\n")), chat("Q?", BLOCK))),
    Case("F2", "doubled", _one_of(chat("Q?", BLOCK + BLOCK), chat("Q?", BLOCK))),
    Case("F2", "nested", _one_of(chat("Q?", BLOCK.replace("R two", "<think>R two")), chat("Q?", BLOCK))),
    Case("F2", "reversed", _one_of(chat("Q?", "</think>\nR one, R two.\n<think>\n\nA."), chat("Q?", BLOCK))),
    Case("F3", "look-alike", _one_of(chat("Q?", BLOCK.replace("think", "Think")), chat("Q?", BLOCK))),
    Case("F40", "html-escaped", _one_of(chat("Q?", BLOCK.replace("<", "&lt;").replace(">", "&gt;")), chat("Q?", BLOCK))),
    Case("F4", "white-space", _every(_tight)),
    Case("F5", "no-reasoning", _every(_without_block)),
    Case("F5", "empty-reasoning", _one_of(chat("Q?", "<think>\n\n</think>\n\nA."), chat("Q?", BLOCK))),
    Case("", "no-answer", _one_of(chat("Q?", BLOCK.removesuffix("A.")), chat("Q?", BLOCK))),
    Case("", "leading-text", _one_of(chat("Q?", "Sure! " + BLOCK), chat("Q?", BLOCK))),
    Case("F6", "content-type", _one_of(chat("Q?", None), chat("Q?", BLOCK))),
    Case("F7", "tool-turn-data", _one_of(_tool_turn(True), _tool_turn(False), trainer="llamafactory")),
    Case("F8", "literal-in-data", _one_of(chat("Q?", BLOCK + " It ends at `</think>`."), chat("Q?", BLOCK))),
    Case("F9", "mode-contradicts", _one_of(chat("Q? /no_think", BLOCK), chat("Q? /think", BLOCK))),
    Case("F20", "reasoning-twice", _one_of(chat("Q?", BLOCK, reasoning_content="R."), chat("Q?", BLOCK))),
    Case(
        "F29",
        "cut-off",
        _one_of(chat("Q?", BLOCK.replace("R two", "R two, " * 99)), chat("Q?", BLOCK), trainer="trl", cutoff_len=256),
    ),
]
