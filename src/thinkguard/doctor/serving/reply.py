"""What a server's answer to a chat says about thinking: which markers, where it was opened and closed, how long it was.

The fields `reasoning` and `content` are what a server makes of the model's text. If it also says what each sampled token
spells (`logprobs`), the text itself is read too, and compared with the fields.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from thinkguard.doctor.serving.client import ServerError
from thinkguard.formats.marks import Marks

_FIELDS: Final = ("reasoning", "reasoning_content")  # vLLM since 0.16 and the older name, which others keep


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer, whole or put together from a stream. Empty means: the server does not say."""

    content: str
    reasoning: str
    field: str  # where the reasoning was
    finish: str
    tokens: tuple[str, ...]  # what each sampled token spells
    num_tokens: int
    num_reasoning: int
    prompt: str  # as rendered by the chat template

    @property
    def raw(self) -> str:
        """The model's own text, markers included; "" if the server spells no tokens, or only those of the answer."""
        text = "".join(self.tokens)
        num_visible = len(squeezed(self.reasoning + self.content))
        return text if len(squeezed(text)) + num_visible // 8 >= num_visible else ""


def squeezed(text: str) -> str:
    """Return text without white space, which parsers trim and single SentencePiece tokens lose."""
    return "".join(text.split())


def skeleton(text: str) -> str:
    """Return text without what a server may spell wrongly token by token: white space, and characters outside ASCII."""
    return "".join(character for character in squeezed(text) if character.isascii())


def whole(answer: Any, where: str) -> Reply:
    """Read the answer to a chat request. ServerError if it holds no message."""
    choice = _choice(answer)
    message = choice.get("message") if choice else None
    if not isinstance(message, Mapping):
        raise ServerError(f"{where} answers JSON without choices[0].message: {str(answer)[:80]}")
    return _reply([(choice, message)], [answer])


def streamed(events: Iterable[Any], where: str) -> Reply:
    """Put the events of a streamed chat together; ServerError for an error event or a stream cut off."""
    parts: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = []
    answers: list[Mapping[str, Any]] = []
    for event in events:
        if isinstance(event, Mapping) and "error" in event:
            error = event["error"]
            raise ServerError(f"{where} streams an error: {error.get('message') if isinstance(error, Mapping) else error}")
        answers += [event] if isinstance(event, Mapping) else []
        choice = _choice(event)
        if choice and isinstance(choice.get("delta"), Mapping):
            parts.append((choice, choice["delta"]))
    if not any(choice.get("finish_reason") for choice, _ in parts):
        raise ServerError(f"{where} ends a stream of {len(answers)} events without a finish_reason")
    return _reply(parts, answers)


def _choice(answer: Any) -> Mapping[str, Any]:
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else {}


def _reply(parts: list[tuple[Mapping[str, Any], Mapping[str, Any]]], answers: list[Any]) -> Reply:
    content, reasoning, fields, tokens, finish = "", "", [], [], ""
    for choice, message in parts:
        text, thought = _texts(message.get("content"))
        content, reasoning = content + text, reasoning + thought
        fields += ["content"] if thought else []
        for name in _FIELDS:
            if isinstance(message.get(name), str) and message[name]:
                reasoning += message[name]
                fields.append(name)
                break
        finish = choice.get("finish_reason") or finish
        logprobs = choice.get("logprobs")
        for entry in (logprobs.get("content") or ()) if isinstance(logprobs, Mapping) else ():
            tokens.append(_token_text(entry))
    usage = [answer["usage"] for answer in answers if isinstance(answer.get("usage"), Mapping)][-1:]
    details = usage[0].get("completion_tokens_details") if usage else None
    prompts = [answer["prompt_text"] for answer in answers if isinstance(answer.get("prompt_text"), str)]
    return Reply(
        content=content,
        reasoning=reasoning,
        field=fields[0] if fields else "",
        finish=finish,
        tokens=tuple(tokens),
        num_tokens=_number(usage[0].get("completion_tokens")) if usage else len(tokens),
        num_reasoning=_number(details.get("reasoning_tokens")) if isinstance(details, Mapping) else 0,
        prompt=prompts[0] if prompts else "",
    )


def _texts(content: Any) -> tuple[str, str]:
    """Return (answer, thinking) of a message's content, which some servers send as a list of typed parts."""
    if isinstance(content, str):
        return content, ""
    texts = {"text": "", "thinking": ""}
    for part in content if isinstance(content, list) else ():
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in texts:
            value = part.get(kind)
            texts[kind] += value if isinstance(value, str) else _texts(value)[0]
    return texts["text"], texts["thinking"]


def _token_text(entry: Any) -> str:
    spelling = entry.get("bytes") if isinstance(entry, Mapping) else None
    if isinstance(spelling, list) and all(isinstance(byte, int) and 0 <= byte < 256 for byte in spelling):
        return bytes(spelling).decode("utf-8", "replace")
    return str(entry.get("token") or "") if isinstance(entry, Mapping) else ""


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


@dataclass(frozen=True, slots=True)
class Thought:
    """Where the thinking stood in a reply."""

    opened: bool
    closed: bool
    text: str
    answer: str
    num_tokens: int  # of the thinking; -1 if only a server could count them
    slack: int  # by how many tokens the count may be off
    by_prompt: bool = False  # opened by the chat template


def thought_of(reply: Reply, marks: Marks | None) -> Thought:
    """Read the thinking from the model's own text, else from text with markers in `content`, else from the fields."""
    text = reply.raw or ("" if reply.reasoning else reply.content)
    starts, ends = (marks.starts, marks.ends) if marks else ((), ())
    begin = _first(text, starts)
    close = _first(text, ends, begin[1] if begin else 0)
    by_prompt = not begin and (close is not None or any(reply.prompt.rstrip().endswith(start) for start in starts))
    if not text or not (begin or by_prompt):
        return _of_fields(reply, marks)
    eos = reply.tokens[-1] if reply.raw and reply.finish == "stop" else ""
    inside = (begin[1] if begin else 0, close[0] if close else len(text) - len(eos))
    thinking = text[slice(*inside)].strip()
    answer = _answer(reply, thinking, marks) if close or reply.reasoning else ""
    num = _count(reply, inside) if reply.raw else -1
    return Thought(True, close is not None, thinking, answer, num, 0, by_prompt)


def _answer(reply: Reply, thinking: str, marks: Marks | None) -> str:
    """Return what the server shows behind the thinking. The model's own text is not used: it would hold the EOS."""
    content = reply.content
    if reply.reasoning or not marks:
        return content.strip()
    close = _first(content, marks.ends)
    before = content[: close[0]] if close else ""
    for start in marks.starts:
        before = before.replace(start, "")
    if close and skeleton(before) == skeleton(thinking):
        return content[close[1] :].strip()
    return content.strip().removeprefix(thinking).strip()


def _of_fields(reply: Reply, marks: Marks | None) -> Thought:
    """Read the thinking from the fields alone: it is closed if there is an answer.

    If the model's text and the prompt are known and hold no marker, `reasoning` is an answer taken for thinking.
    """
    thinking, answer = reply.reasoning.strip(), reply.content.strip()
    if not thinking or (reply.raw and reply.prompt and marks is None):
        return Thought(False, False, "", answer, 0, 0)
    num, slack = (reply.num_reasoning, 4) if reply.num_reasoning else (-1, 0)
    return Thought(True, bool(answer), thinking, answer, num, slack)


def _first(text: str, marks: tuple[str, ...], begin: int = 0) -> tuple[int, int] | None:
    """Return (begin, end) of the first of several markers; None if there is none."""
    found = [(at, at + len(mark)) for mark in marks if (at := text.find(mark, begin)) >= 0]
    return min(found, default=None)


def _count(reply: Reply, inside: tuple[int, int]) -> int:
    """Count the tokens of a stretch; tokens of white space at its edges belong to the markers."""
    ends = list(itertools.accumulate(map(len, reply.tokens)))
    text, (begin, end) = reply.raw, inside
    while begin < end and text[begin].isspace():
        begin += 1
    while begin < end and text[end - 1].isspace():
        end -= 1
    num = sum(at < end and at + len(token) > begin for at, token in zip([0, *ends], reply.tokens, strict=False))
    return num if begin < end else 0
