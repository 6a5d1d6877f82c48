"""What engines and APIs answered, as it is saved: chat completions, Responses, Anthropic, Gemini, Ollama, plain outputs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from thinkguard.doctor.records.conversations import turns_of
from thinkguard.doctor.records.record import Record, Turn
from thinkguard.doctor.records.turns import Reads, num_calls, text_of, turn_of

FINISHES: Final = ("finish_reason", "stop_reason", "done_reason", "finishReason")
_OUTPUTS: Final = ("output", "text", "completion", "generated_text", "response", "model_output", "generation", "content")
_STOPPED: Final = ("stop", "end_turn", "eos", "eos_token", "stop_sequence", "stop_str", "completed", "stop_token")
_CUT: Final = ("length", "max_tokens", "max_new_tokens", "max_output_tokens", "max_length", "model_length")
_CALLED: Final = ("tool_calls", "tool_use", "function_call", "tool_call")
_RENDERED: Final = re.compile(r"<\|[\w:]{1,40}\|>|<｜|\[/?INST\]|<start_of_turn>|<\|?[a-z:_]{0,12}think|<s>|◁think")
_INNER: Final = ("response", "body", "result", "output", "completion")
_TELLING: Final = frozenset(
    (*FINISHES, *_INNER, "choices", "candidates", "generated_text", "resps", "object", "type", "outputs")
)


def outputs_of(value: Mapping[str, Any], reads: Reads) -> list[Record]:
    """Read a saved output: a Record for each of its answers; empty if it is no saved output."""
    before, prompt = _prompt_of(value, reads)
    found: list[Record] = []
    for turn, finish in _answers(value, reads, 3):
        found.append(Record([*before, turn], "output", finish=_plain(finish), prompt=prompt, raw=value))
    return found


def is_output(value: Mapping[str, Any]) -> bool:
    """Whether the keys are those of a saved output, and not of a training record."""
    if _TELLING.isdisjoint(value):
        return False
    if "choices" in value or "candidates" in value or "generated_text" in value or "resps" in value:
        return isinstance(value.get("choices", ()), (list, tuple))
    if any(isinstance(value.get(name), str) for name in FINISHES):
        return True
    if value.get("object") in ("response", "chat.completion") or value.get("type") == "message":
        return True
    outputs = value.get("outputs", value.get("output"))
    first = outputs[0] if isinstance(outputs, list) and outputs else None
    if isinstance(first, Mapping) and ("text" in first or first.get("type") in ("reasoning", "message", "function_call")):
        return True
    return any(isinstance(value.get(name), Mapping) and is_output(value[name]) for name in _INNER)


def _answers(value: Mapping[str, Any], reads: Reads, depth: int) -> Iterator[tuple[Turn, Any]]:
    """Yield (turn, why it ended) of each answer."""
    finish = next((value[name] for name in FINISHES if value.get(name)), None)
    choices = value.get("choices") or value.get("candidates")
    if isinstance(choices, (list, tuple)):
        for choice in choices:
            if isinstance(choice, Mapping):
                yield from _choice(choice, reads)
        return
    several = value.get("outputs", value.get("output"))
    if isinstance(several, list) and several and isinstance(several[0], Mapping):
        if "text" in several[0]:
            for output in several:
                if isinstance(output, Mapping):
                    yield _with_field(output, output.get("text"), reads), output.get("finish_reason")
        else:
            details = value.get("incomplete_details")
            cut = details.get("reason") if isinstance(details, Mapping) else None
            yield _of_items(several, reads), finish or cut or value.get("status")
        return
    if isinstance(resps := value.get("resps"), list):
        texts = [text for item in resps for text in (item if isinstance(item, list) else [item]) if isinstance(text, str)]
        yield from ((Turn("assistant", text), finish) for text in texts)
        return
    if isinstance(value.get("message"), Mapping):
        yield _message(value["message"], reads), finish
        return
    messages = value.get("messages")
    if isinstance(messages, list) and messages and (turn := turns_of(messages, reads)[-1]).role == "assistant":
        yield turn, finish
        return
    if value.get("role") == "assistant" or value.get("type") == "message":
        yield _message(value, reads), finish
        return
    for name in _OUTPUTS:
        if isinstance(value.get(name), str):
            yield _with_field(value, value[name], reads), finish
            return
    for name in _INNER:
        if depth and isinstance(value.get(name), Mapping):
            yield from _answers(value[name], reads, depth - 1)
            return


def _choice(choice: Mapping[str, Any], reads: Reads) -> Iterator[tuple[Turn, Any]]:
    finish = next((choice[name] for name in FINISHES if choice.get(name)), None)
    message = choice.get("message")
    if isinstance(message, Mapping):
        yield _message(message, reads), finish
    elif isinstance(choice.get("content"), Mapping):  # Gemini
        yield _with_field({}, choice["content"].get("parts"), reads), finish
    elif "text" in choice:
        yield _with_field(choice, choice["text"], reads), finish


def _message(message: Mapping[str, Any], reads: Reads) -> Turn:
    turn = turn_of(message, "assistant", message.get("content"), reads)
    if len(message) <= 2 and (calls := num_calls(message)):
        turn.calls = calls
    return turn


def _with_field(holder: Mapping[str, Any], content: Any, reads: Reads) -> Turn:
    """Make a turn of a text that stands in an object of an engine, perhaps beside its reasoning."""
    thoughts = {name: holder[name] for name in ("reasoning_content", "reasoning", "thinking") if text_of(holder.get(name))}
    return turn_of({"role": "", "content": "", **thoughts}, "assistant", content, reads)


def _of_items(items: list[Any], reads: Reads) -> Turn:
    """Join the items of a Responses API's output."""
    turn = Turn("assistant", "", shape="parts")
    thoughts: list[str] = []
    for item in items:
        kind = item.get("type") if isinstance(item, Mapping) else None
        if kind == "reasoning":
            thoughts.append(text_of(item.get("content")) or text_of(item.get("summary")))
        elif kind == "message":
            turn.content += text_of(item.get("content"))
        elif isinstance(kind, str) and kind.endswith("_call"):
            turn.calls += 1
    if any(thoughts):
        turn.reasoning, turn.place = "".join(thoughts), "reasoning item"
        turn.read = reads is None or turn.place in reads
    return turn


def _prompt_of(value: Mapping[str, Any], reads: Reads) -> tuple[list[Turn], str]:
    """Return (the turns before the answer, the rendered prompt if that was saved instead)."""
    for holder in (value, value.get("request"), value.get("body")):
        if not isinstance(holder, Mapping):
            continue
        body = holder.get("body")
        inner = body if isinstance(body, Mapping) else holder
        messages = inner.get("messages") or inner.get("input") or inner.get("prompt") or inner.get("prompt_text")
        if isinstance(messages, list) and messages:
            turns = turns_of(messages, reads)
            return (turns[:-1] if turns[-1].role == "assistant" and holder is value else turns), ""
        if isinstance(messages, str) and messages:
            return ([], messages) if _RENDERED.search(messages) else ([Turn("user", messages)], "")
    return [], ""


def _plain(finish: Any) -> str | None:
    """Say in OpenAI's words why an answer ended."""
    if isinstance(finish, list) and finish:
        finish = finish[0]
    if isinstance(finish, Mapping):  # SGLang
        finish = finish.get("type")
    if not isinstance(finish, str) or not finish:
        return None
    plain = finish.lower()
    for name, spelled in (("stop", _STOPPED), ("length", _CUT), ("tool_calls", _CALLED)):
        if plain in spelled:
            return name
    return plain
