"""What lies around a saved output's text: the message it came in, its token ids, the answer that was extracted from it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from thinkguard.doctor.judges.structure import exact_events, show
from thinkguard.doctor.judges.tags import Markers
from thinkguard.doctor.records.record import Hit, Record, Turn
from thinkguard.vocabulary import Vocabulary

_REASONING: Final = ("reasoning_content", "reasoning", "thinking")
_API: Final = ("reasoning", "reasoning_content")
_IDS: Final = ("token_ids", "output_token_ids", "output_ids", "completion_token_ids", "generated_token_ids")
_EXTRACTED: Final = (
    *("extracted_answer", "extracted", "extraction", "pred", "prediction", "predicted_answer", "parsed_answer", "parsed"),
    *("final_answer", "filtered_resps", "model_answer", "answer"),
)
_LEAST: Final = 40  # characters of reasoning that are no coincidence in an answer


@dataclass(slots=True)
class Fields:
    """Where in a record an output was found."""

    parsed: bool = False  # a chat API's message, whose reasoning has a field of its own
    message: Mapping[str, Any] = field(default_factory=dict)
    choice: Mapping[str, Any] = field(default_factory=dict)
    answer: Mapping[str, Any] = field(default_factory=dict)  # what holds the choices, and the usage


def fields_of(record: Record, turn: Turn) -> Fields:
    """Find the message of a saved answer, and whether a chat API wrote it."""
    raw = record.raw
    for answer in _answers(raw):
        for name in ("choices", "outputs"):
            choices = answer.get(name)
            if isinstance(choices, (list, tuple)) and choices and isinstance(choices[0], Mapping):
                choice = _choice(choices, turn)
                message = choice.get("message")
                parsed = isinstance(message, Mapping) or turn.reasoning is not None
                return Fields(parsed, message if isinstance(message, Mapping) else {}, choice, answer)
        if isinstance(message := answer.get("message"), Mapping):  # Ollama
            return Fields(True, message, answer, answer)
    messages = raw.get("messages")
    last = messages[-1] if isinstance(messages, (list, tuple)) and messages else None
    message = last if isinstance(last, Mapping) else raw
    parsed = turn.reasoning is not None or turn.shape == "parts" or any(name in message for name in _REASONING)
    return Fields(parsed, message, raw, raw)


def _choice(choices: Sequence[Any], turn: Turn) -> Mapping[str, Any]:
    """Return the one of several answers that a turn was read from; the first, if that is not known."""
    for choice in choices:
        if isinstance(choice, Mapping):
            message = choice.get("message")
            holder = message if isinstance(message, Mapping) else choice
            if turn.content and turn.content in (holder.get("content"), holder.get("text")):
                return choice
    found: Mapping[str, Any] = choices[0]
    return found


def _answers(raw: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield what may hold the answer: the record itself, or what a batch or a log has wrapped in it."""
    yield raw
    for name in ("response", "body", "output", "result"):
        inner = raw.get(name)
        if isinstance(inner, Mapping):
            yield inner
            if isinstance(inner.get("body"), Mapping):
                yield inner["body"]


def text_of_tokens(fields: Fields, vocabulary: Vocabulary | None) -> str:
    """Spell the tokens that were saved beside the text, markers included; empty if there are none."""
    for holder in (fields.choice, fields.message, fields.answer):
        for name in _IDS:
            ids = holder.get(name)
            if vocabulary is not None and isinstance(ids, Sequence) and not isinstance(ids, str) and ids:
                known = [i for i in ids if isinstance(i, int) and 0 <= i < vocabulary.num_tokens]
                return b"".join(map(vocabulary.token_bytes, known)).decode("utf-8", "replace")
    logprobs = fields.choice.get("logprobs")
    entries = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    if isinstance(entries, Sequence) and not isinstance(entries, str):
        return "".join(str(entry.get("token", "")) for entry in entries if isinstance(entry, Mapping))
    return ""


def field_hit(record: Record, turn: Turn, fields: Fields) -> Hit | None:
    """Find reasoning that the server counted but the log lacks, or that two fields hold differently."""
    texts = {name: value for name in _API if isinstance(value := fields.message.get(name), str) and value.strip()}
    if len(texts) == 2 and len({text.strip() for text in texts.values()}) == 2:
        excerpt = "; ".join(f"{name}: {show(text, 0, 30)}" for name, text in texts.items())
        return Hit("output-field", "reasoning and reasoning_content differ", excerpt[:160])
    usage = fields.answer.get("usage") or record.raw.get("usage")
    details = usage.get("completion_tokens_details") if isinstance(usage, Mapping) else None
    num = details.get("reasoning_tokens") if isinstance(details, Mapping) else None
    if isinstance(num, int) and num > 0 and not turn.reasoning:
        names = ", ".join(map(str, fields.message)) or "none"
        excerpt = f"reasoning_tokens: ⟦{num}⟧, fields of the message: {names}"
        return Hit("output-field", "counted but not saved", excerpt[:160])
    return None


def extracted_hit(record: Record, thinking: str, markers: Markers) -> list[Hit]:
    """Find an answer that was extracted from the output and holds markers or reasoning."""
    start = " ".join(thinking[: 4 * _LEAST].split())[:_LEAST]
    for name, text in _extracted(record.raw):
        for event in exact_events(text, markers):
            return [Hit("output-answer", "markers in the answer", f"{name}: {show(text, event.start, event.end)}"[:160])]
        if len(start) == _LEAST and start in " ".join(text.split()):
            return [Hit("output-answer", "reasoning in the answer", f"{name}: {show(text, 0, _LEAST)}"[:160])]
    return []


def _extracted(raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in _EXTRACTED:
        value = raw.get(name)
        values = value if isinstance(value, (list, tuple)) else (value,)
        for text in itertools.islice(values, 8):
            if isinstance(text, str):
                yield name, text
