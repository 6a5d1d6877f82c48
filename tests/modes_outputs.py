"""Failure modes that saved outputs show: of a chat API's answers, and of an engine's own text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from modes import HEALTHY, Case, Inputs, checkpoint, jsonl

from thinkguard.vocabulary import Vocabulary

PROMPT = "<|im_start|>user\nWhat is 12 + 34?<|im_end|>\n<|im_start|>assistant\n"
THOUGHT = "Ones: 2 + 4 is 6. Tens: 1 + 3 is 4. So it is 46."
TEXT = f"<think>\n{THOUGHT}\n</think>\n\n46."


def answered(content: str | None, reasoning: str | None = THOUGHT, finish: str = "stop", **fields: Any) -> dict[str, Any]:
    """A chat API's answer, with the reasoning in a field of its own."""
    message = {"role": "assistant", "content": content, "reasoning": reasoning}
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish}], **fields}


def completed(text: str, finish: str = "stop", **fields: Any) -> dict[str, Any]:
    """A completions API's answer, with its prompt."""
    return {"prompt": PROMPT, "choices": [{"index": 0, "text": text, "finish_reason": finish, **fields}]}


def logged(*make: Callable[[bool], dict[str, Any]]) -> Callable[[Path, bool], Inputs]:
    """A model, and a log of outputs of which the last ones may be broken."""

    def case(folder: Path, broken: bool) -> Inputs:
        records = [answered("46."), completed(TEXT), *(one(broken) for one in make)]
        return Inputs(checkpoint(folder), data=(jsonl(folder / "outputs.jsonl", records),))

    return case


def two_blocks(broken: bool) -> dict[str, Any]:
    return completed(TEXT + ("\n<think>\nReally?\n</think>\n\n46." if broken else ""))


def stopped(broken: bool) -> dict[str, Any]:
    """A stop string that the thinking holds as well."""
    return answered(None if broken else "46.", THOUGHT[:20] if broken else THOUGHT)


def cut(broken: bool) -> dict[str, Any]:
    return answered("", THOUGHT[:20], "length") if broken else answered("46.")


def not_separated(broken: bool) -> dict[str, Any]:
    return answered(TEXT, None) if broken else answered("46.")


def dropped(broken: bool) -> dict[str, Any]:
    """Decoded with skip_special_tokens=True; the ids still tell."""
    ids = Vocabulary.from_tokenizer(HEALTHY).encode(TEXT)
    return completed(f"\n{THOUGHT}\n\n\n46." if broken else TEXT, token_ids=ids)


def not_printed(broken: bool) -> dict[str, Any]:
    """A runtime that prints the end and not the start."""
    return completed(TEXT.removeprefix("<think>") if broken else TEXT)


def called(broken: bool) -> dict[str, Any]:
    call = '\n<tool_call>\n{"name": "add", "arguments": {"a": 12, "b": 34}}\n</tool_call>'
    return answered("46.", THOUGHT + (call if broken else ""))


def old_field(broken: bool) -> dict[str, Any]:
    """A client that reads reasoning_content, which this server calls reasoning."""
    answer = answered("46.", usage={"completion_tokens": 30, "completion_tokens_details": {"reasoning_tokens": 24}})
    if broken:
        answer["choices"][0]["message"] = {"role": "assistant", "content": "46.", "reasoning_content": None}
    return answer


def no_field(broken: bool) -> dict[str, Any]:
    """A client library that keeps the fields it knows."""
    answer = old_field(False)
    if broken:
        del answer["choices"][0]["message"]["reasoning"]
    return answer


def extracted(broken: bool) -> dict[str, Any]:
    return {**answered("46."), "extracted_answer": f"{THOUGHT} 46." if broken else "46"}


CASES = [
    Case("", "output-structure", logged(two_blocks)),
    Case("F43", "output-stopped", logged(stopped)),
    Case("F44", "output-cut", logged(cut)),
    Case("F36", "output-parsed", logged(not_separated)),
    Case("F37", "output-marker-dropped", logged(dropped)),
    Case("F46", "output-marker-dropped", logged(not_printed)),
    Case("F41", "output-tool-call", logged(called)),
    Case("F47", "output-field", logged(old_field)),
    Case("F48", "output-field", logged(no_field)),
    Case("F50", "output-answer", logged(extracted)),
]
