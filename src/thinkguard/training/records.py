"""What is asked of a model in training, and which rows it is read on: from records, or from the training rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from thinkguard.core.program import ThinkProgram, as_token_ids
from thinkguard.errors import InputError
from thinkguard.training.places import IGNORED, Row, Turns, encode, render, stretches

_FIELDS: Final = ("reasoning_content", "reasoning", "thinking")
Prompt = tuple[int, ...]


def of_records(
    program: ThinkProgram, turns: Turns, tokenizer: Any, records: Iterable[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Prompt], list[Row]]:
    """Spell records: every one's prompt, and prompt and answer of those that have an answer.

    The answer is spelled behind the generation prompt, as the model would have to write it: what the chat template makes
    of it in a training render does not matter here. InputError for a record of no known shape.
    """
    prompts: list[Prompt] = []
    rows: list[Row] = []
    for number, record in enumerate(records):
        asked, answer = _parts(number, record)
        prompt = _prompt(program, tokenizer, asked, kwargs, number)
        prompts.append(prompt)
        if answer is not None:
            rows.append(_answered(program, turns, prompt, _text_of(program, answer)))
    return prompts, rows


def _parts(number: int, record: Any) -> tuple[Any, Mapping[str, Any] | str | None]:
    """(a text or messages, the answer as a message or a text, None if there is none)"""
    asked, answer = record, None
    if isinstance(record, Mapping) and "messages" in record:
        asked = record["messages"]
    elif isinstance(record, Mapping) and "prompt" in record:
        asked, answer = record["prompt"], record.get("completion")
        answer = answer[-1] if isinstance(answer, list) and answer else answer
    if isinstance(asked, Sequence) and not isinstance(asked, str) and asked and isinstance(asked[-1], Mapping):
        if asked[-1].get("role") == "assistant" and answer is None:
            asked, answer = asked[:-1], asked[-1]
    messages = isinstance(asked, Sequence) and all(isinstance(message, Mapping) for message in asked)
    if not asked or not (isinstance(asked, str) or messages):
        raise InputError(
            f"records[{number}]={str(record)[:80]}: wanted a text, a list of messages, or a mapping with 'messages' or "
            "with 'prompt' and 'completion'"
        )
    return asked, answer


def _prompt(program: ThinkProgram, tokenizer: Any, asked: Any, kwargs: Mapping[str, Any], number: int) -> Prompt:
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
    text = render(tokenizer, messages, True, kwargs)
    if text is None and not isinstance(asked, str):
        raise InputError(f"records[{number}]: the tokenizer's chat template cannot render these messages")
    text = asked if text is None else text
    return tuple(encode(tokenizer, program.vocabulary, text))


def _text_of(program: ThinkProgram, answer: Mapping[str, Any] | str) -> str:
    if isinstance(answer, str):
        return answer
    content = answer.get("content") or ""
    content = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    reasoning = next((answer[field] for field in _FIELDS if answer.get(field)), None)
    if reasoning is None:
        return content
    format = program.format
    return f"{format.open_text}{reasoning.strip()}{format.close_text}{content}"


def _answered(program: ThinkProgram, turns: Turns, prompt: Prompt, text: str) -> Row:
    if turns.opens:  # the prompt has the start already
        for start in program.format.starts:
            text = text.removeprefix(start)
        text = text.lstrip("\n")
    ids = program.vocabulary.encode(text)
    ids += [] if turns.turn_end is None else [turns.turn_end]
    return Row(prompt + tuple(ids), (IGNORED,) * len(prompt) + tuple(ids))


def prompt_of(program: ThinkProgram, turns: Turns, row: Row) -> Prompt | None:
    """The prompt in front of a row's last turn that is learnt, as a server would write it; None if there is none."""
    learnt = [
        begin for begin, end in stretches(program, turns, row) if any(label != IGNORED for label in row.labels[begin:end])
    ]
    if learnt and turns.header:
        return row.ids[: learnt[-1]] + turns.tail
    first = next((i for i, label in enumerate(row.labels) if label != IGNORED), 0)
    return row.ids[:first] or None


def opening_row(program: ThinkProgram, prompt: Prompt) -> Row | None:
    """A prompt and the start marker behind it, to read the marker's probability where no row shows it.

    None where the prompt opens or closes the thinking itself.
    """
    row = program.start(as_token_ids("prompt", list(prompt)))
    if row.phase != 0:
        return None
    start = tuple(program.vocabulary.encode(program.format.starts[0]))
    return Row(prompt + start, (IGNORED,) * len(prompt) + start)
