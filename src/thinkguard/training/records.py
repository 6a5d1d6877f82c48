"""What a model in training is asked, and the examples it is read on: from records, or from the training data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from thinkguard.core.program import ThinkProgram, as_token_ids
from thinkguard.errors import InputError
from thinkguard.training.places import IGNORED, Example, Turns, encode, render, stretches

_FIELDS: Final = ("reasoning_content", "reasoning", "thinking")
Prompt = tuple[int, ...]


def of_records(
    program: ThinkProgram, turns: Turns, tokenizer: Any, records: Iterable[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Prompt], list[Example]]:
    """Spell records; returns the prompt of each, and an example, prompt and answer, of each that has an answer.

    The answer is spelled behind the generation prompt, as the model would have to write it, whatever the chat template
    makes of it in a training render. InputError for a record of no known shape.
    """
    prompts: list[Prompt] = []
    examples: list[Example] = []
    for number, record in enumerate(records):
        question, answer = _parts(number, record)
        prompt = _prompt(program, tokenizer, question, kwargs, number)
        prompts.append(prompt)
        if answer is not None:
            examples.append(_answered(program, turns, prompt, _text_of(program, answer)))
    return prompts, examples


def _parts(number: int, record: Any) -> tuple[Any, Mapping[str, Any] | str | None]:
    """Return (the question as a text or messages, the answer as a message or a text; None if there is none)."""
    question, answer = record, None
    if isinstance(record, Mapping) and "messages" in record:
        question = record["messages"]
    elif isinstance(record, Mapping) and "prompt" in record:
        question, answer = record["prompt"], record.get("completion")
        answer = answer[-1] if isinstance(answer, list) and answer else answer
    if isinstance(question, Sequence) and not isinstance(question, str) and question and isinstance(question[-1], Mapping):
        if question[-1].get("role") == "assistant" and answer is None:
            question, answer = question[:-1], question[-1]
    messages = isinstance(question, Sequence) and all(isinstance(message, Mapping) for message in question)
    if not question or not (isinstance(question, str) or messages):
        raise InputError(
            f"records[{number}]={str(record)[:80]}: wanted a text, a list of messages, or a mapping with 'messages' or "
            "with 'prompt' and 'completion'"
        )
    return question, answer


def _prompt(program: ThinkProgram, tokenizer: Any, question: Any, kwargs: Mapping[str, Any], number: int) -> Prompt:
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
    text = render(tokenizer, messages, True, kwargs)
    if text is None and not isinstance(question, str):
        raise InputError(f"records[{number}]: the tokenizer's chat template cannot render these messages")
    text = question if text is None else text
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


def _answered(program: ThinkProgram, turns: Turns, prompt: Prompt, text: str) -> Example:
    if turns.opens:  # the prompt has the start already
        for start in program.format.starts:
            text = text.removeprefix(start)
        text = text.lstrip("\n")
    ids = program.vocabulary.encode(text)
    ids += [] if turns.turn_end is None else [turns.turn_end]
    return Example(prompt + tuple(ids), (IGNORED,) * len(prompt) + tuple(ids))


def prompt_of(program: ThinkProgram, turns: Turns, example: Example) -> Prompt | None:
    """Return the prompt of the last turn that is learnt, as a server would write it; None if there is none."""
    turn_spans = stretches(program, turns, example)
    learnt = [begin for begin, end in turn_spans if any(label != IGNORED for label in example.labels[begin:end])]
    if learnt and turns.header:
        return example.ids[: learnt[-1]] + turns.tail
    first = next((i for i, label in enumerate(example.labels) if label != IGNORED), 0)
    return example.ids[:first] or None


def opening_example(program: ThinkProgram, prompt: Prompt) -> Example | None:
    """Return a prompt and the start marker behind it, to read the marker's probability where no example shows it.

    None if the prompt opens or closes the thinking itself.
    """
    state = program.start(as_token_ids("prompt", list(prompt)))
    if state.phase != 0:
        return None
    start = tuple(program.vocabulary.encode(program.format.starts[0]))
    return Example(prompt + start, (IGNORED,) * len(prompt) + start)
