"""The labels that a trainer makes of a record: which tokens of which text are in the loss.

Each scheme says what to render, and how to read the labels from that. If a trainer cannot be followed exactly, the result
is the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from thinkguard.doctor.records.record import Record, Turn
from thinkguard.doctor.template.sandbox import Job, Rendered

if TYPE_CHECKING:
    from thinkguard.doctor.tokenizer.checkpoint import Checkpoint

_DUMMY: Final = "[[dummy_message]]"  # axolotl's own: what differs from it is a turn's content
_NEAR: Final = 3  # tokens behind a turn within which axolotl looks for EOS
_FIELDS: Final = frozenset({"reasoning_content", "reasoning", "thinking"})


@dataclass(frozen=True, slots=True)
class Labelled:
    """One record as it is learned."""

    ids: list[int]
    loss: list[bool]


Scheme = Callable[["Labeller", list[dict[str, Any]], list[Rendered]], "Labelled | str"]


@dataclass(frozen=True, slots=True)
class Labeller:
    """A trainer's way with records. `how` says, for people, which settings of the trainer that is."""

    checkpoint: Checkpoint
    how: str
    jobs: Callable[[list[dict[str, Any]]], list[tuple[list[dict[str, Any]], bool]]]
    scheme: Scheme
    kwargs: Mapping[str, Any]

    def jobs_of(self, record: Record) -> list[Job] | str:
        """Return what has to be rendered for a record; a str says why the trainer cannot be followed."""
        messages = messages_of(record)
        if isinstance(messages, str):
            return messages
        record_kwargs = record.raw.get("chat_template_kwargs")
        kwargs = {**self.kwargs, **(record_kwargs if isinstance(record_kwargs, Mapping) else {})}
        if isinstance(record.raw.get("tools"), list) and record.raw["tools"]:
            kwargs["tools"] = record.raw["tools"]
        return [Job(part, prompt, kwargs) for part, prompt in self.jobs(messages)]

    def labelled(self, record: Record, renders: list[Rendered]) -> Labelled | str:
        """Read the labels from what was rendered; a str says why that cannot be done."""
        failed = next((rendered.error for rendered in renders if rendered.text is None), "")
        if failed:
            return f"the chat template fails: {failed}"
        messages = messages_of(record)
        return messages if isinstance(messages, str) else self.scheme(self, messages, renders)

    def encode(self, text: str) -> list[int]:
        """Encode a rendered text."""
        return list(self.checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"])  # type: ignore[misc]

    def within(self, text: str, spans: Sequence[tuple[int, int]]) -> Labelled:
        """Encode a text whose loss is on spans of characters; a token that overlaps a span is in the loss."""
        encoding = self.checkpoint.tokenizer(  # type: ignore[misc]
            text, add_special_tokens=False, return_offsets_mapping=True
        )
        loss = [any(a < end and b > begin for begin, end in spans) for a, b in encoding["offset_mapping"]]
        return Labelled(list(encoding["input_ids"]), loss)


def labeller_of(checkpoint: Checkpoint, record: Record, trainer: str | None, needs_tools: bool = False) -> Labeller | str:
    """Choose how a record is learned; a str says why that is not known."""
    kwargs: dict[str, Any] = {"bos_token": checkpoint.bos, "eos_token": checkpoint.eos}
    if needs_tools:
        from thinkguard.doctor.template.probes import TOOLS

        kwargs["tools"] = TOOLS
    how: str
    if trainer == "axolotl":
        how, jobs, scheme = "axolotl's chat_template on assistant turns, train_on_eos: turn", _dummies, _by_dummy
    elif trainer == "llamafactory":
        how, jobs, scheme = "LLaMA-Factory, whose template puts the response and its end into the loss", _last, _by_slot
    elif trainer in ("ms-swift", "openai"):
        how, jobs, scheme = "the loss on every assistant turn, behind its generation prompt", _prompts, _by_prompt
    elif "completion" in record.raw and "prompt" in record.raw:
        if not isinstance(record.raw["prompt"], list):
            return "prompt and completion are plain text, so no chat template takes part"
        how, jobs, scheme = "TRL's loss on the completion", _last, _by_prefix
    elif "{% generation" in _spaced(checkpoint.template or ""):
        how, jobs, scheme = "TRL with assistant_only_loss=True, by the template's {% generation %}", _whole, _by_generation
    else:
        how, jobs, scheme = "TRL's loss on the whole text", _whole, _by_generation
    return Labeller(checkpoint, how, jobs, scheme, kwargs)


def _spaced(source: str) -> str:
    return source.replace("{%-", "{%").replace("{%+", "{%").replace("{%generation", "{% generation")


def messages_of(record: Record) -> list[dict[str, Any]] | str:
    """Return the messages as the trainer hands them to the template; a str says why that is not known."""
    if not any(turn.role == "assistant" for turn in record.turns):
        return "there is no assistant turn"
    if any(turn.calls for turn in record.turns):
        messages = record.raw.get("messages")
        if not isinstance(messages, list):
            return "its tool calls are not in messages"
        return [dict(message) for message in messages]
    return [_message(turn) for turn in record.turns]


def _message(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.reasoning and turn.read and turn.place in _FIELDS:
        message[turn.place] = turn.reasoning
    elif turn.reasoning and turn.read and turn.place.endswith("part"):
        parts = [{"type": "thinking", "thinking": turn.reasoning}, {"type": "text", "text": turn.content}]
        message["content"] = parts
    return message


def _turns(messages: list[dict[str, Any]]) -> list[int]:
    return [index for index, message in enumerate(messages) if message.get("role") == "assistant"]


def _whole(messages: list[dict[str, Any]]) -> list[tuple[list[dict[str, Any]], bool]]:
    return [(messages, False)]


def _by_generation(labeller: Labeller, messages: list[dict[str, Any]], renders: list[Rendered]) -> Labelled:
    (rendered,) = renders
    text = rendered.text or ""
    if not rendered.generation:
        ids = labeller.encode(text)
        return Labelled(ids, [True] * len(ids))
    return labeller.within(text, rendered.generation)


def _last(messages: list[dict[str, Any]]) -> list[tuple[list[dict[str, Any]], bool]]:
    last = _turns(messages)[-1]
    return [(messages[:last], True), (messages[: last + 1], False)]


def _by_prefix(labeller: Labeller, messages: list[dict[str, Any]], renders: list[Rendered]) -> Labelled:
    prompt, whole = (labeller.encode(rendered.text or "") for rendered in renders)
    same = 0
    while same < min(len(prompt), len(whole)) and prompt[same] == whole[same]:
        same += 1
    return Labelled(whole, [index >= same for index in range(len(whole))])


def _by_slot(labeller: Labeller, messages: list[dict[str, Any]], renders: list[Rendered]) -> Labelled | str:
    content = messages[_turns(messages)[-1]].get("content")
    if not isinstance(content, str):
        return "its content is no text"
    prompt = labeller.encode(renders[0].text or "")
    response = labeller.encode(content) + labeller.encode(labeller.checkpoint.eos)  # each slot by itself
    return Labelled(prompt + response, [False] * len(prompt) + [True] * len(response))


def _prompts(messages: list[dict[str, Any]]) -> list[tuple[list[dict[str, Any]], bool]]:
    jobs = [(messages, False)]
    for turn in _turns(messages):
        jobs += [(messages[:turn], True), (messages[: turn + 1], False)]
    return jobs


def _by_prompt(labeller: Labeller, messages: list[dict[str, Any]], renders: list[Rendered]) -> Labelled | str:
    whole, *parts = [rendered.text or "" for rendered in renders]
    spans = []
    for prompt, text in zip(parts[::2], parts[1::2], strict=True):
        if not text.startswith(prompt):
            return "the generation prompt is no prefix of the training text: see prompt-prefix"
        if not whole.startswith(text):
            continue  # an earlier turn that comes out otherwise once another follows
        spans.append((len(prompt), len(text)))
    return labeller.within(whole, spans) if spans else "no turn of it is a prefix of the training text"


def _dummies(messages: list[dict[str, Any]]) -> list[tuple[list[dict[str, Any]], bool]]:
    jobs = [(messages, False)]
    for turn in _turns(messages):
        dummy = [*messages[:turn], {"role": messages[turn]["role"], "content": _DUMMY}]
        jobs += [(dummy, False), (messages[: turn + 1], False)]
    return jobs


def _by_dummy(labeller: Labeller, messages: list[dict[str, Any]], renders: list[Rendered]) -> Labelled | str:
    """Compare each turn with a dummy in its place: the first and the last token that differ bound the loss."""
    whole, *parts = [labeller.encode(rendered.text or "") for rendered in renders]
    loss = [False] * len(whole)
    eos = labeller.checkpoint.tokenizer.eos_token_id  # type: ignore[union-attr]
    for dummy, full in zip(parts[::2], parts[1::2], strict=True):
        num = min(len(dummy), len(full))
        begin = next((i for i in range(num) if dummy[i] != full[i]), None)
        left = next((i for i in range(num) if dummy[-1 - i] != full[-1 - i]), None)
        if begin is None or left is None or len(full) - left <= begin:
            continue  # not found, so not learned
        end = len(full) - left
        for index in range(begin, min(end, len(whole))):
            loss[index] = True
        place = next((i for i in range(end, len(whole)) if whole[i] == eos), None)
        if place is not None and place - end <= _NEAR:
            loss[place] = True
    return Labelled(whole, loss)
