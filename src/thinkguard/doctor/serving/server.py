"""Ask a live OpenAI-compatible server a few short questions and say what becomes of the thinking.

One question is sent again and again, one request at a time: plain; streamed; with a tiny budget, in both ways of asking
for one; with a budget of 0; with a misspelt field; with too few tokens for its thinking; with markers in it; and asking for
JSON. Every request is greedy and has at most 1,024 tokens. What the plain answer makes pointless is not sent.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from thinkguard.doctor.check import Check, Report
from thinkguard.doctor.serving.asked import Asked
from thinkguard.doctor.serving.client import Client, RefusedError, ServerError, SlowError, base_urls
from thinkguard.doctor.serving.limits import limit_checks
from thinkguard.doctor.serving.reply import Reply, Thought, streamed, thought_of, whole
from thinkguard.doctor.serving.unusual import quoting, unusual_checks, wanting_json
from thinkguard.doctor.serving.verdict import thinking_checks
from thinkguard.errors import InputError
from thinkguard.formats.marks import Marks, marks_in

QUESTION: Final = "What is 123 + 456?"
MISSPELT: Final = "max_thinkin_tokens"
_MOST_TOKENS: Final = 1024
_MOST_BUDGET: Final = 16
_LEAST_ROOM, _MOST_ROOM = 24, 64
_CHAT: Final = "/chat/completions"
_EXTRAS: Final[tuple[dict[str, Any], ...]] = (
    {"logprobs": True, "return_tokens_as_token_ids": False, "return_prompt_text": True},
    {"logprobs": True},
    {},
)  # fields of every request: what each token spells, and the rendered prompt; the first set that the server accepts
_THINK: Final = {"enable_thinking": True, "thinking": True}  # the two names of the switch in chat templates


def examine_server(url: str, model: str | None = None, api_key: str | None = None, timeout: float = 60.0) -> Report:
    """Examine one server; `timeout` is for each request.

    ServerError if no question can be asked: no server, no chat, no JSON. InputError for an unusable URL or an unknown model.
    """
    client, cards = _find(url, api_key, timeout, model)
    name = model or str(cards[0]["id"])
    card = next((card for card in cards if card["id"] == name), {})
    length = card.get("max_model_len")
    most = _MOST_TOKENS if not isinstance(length, int) else min(_MOST_TOKENS, max(length // 2, length - _MOST_TOKENS, 1))
    asking = _Asking(client, name, most)
    found = f"{_version(client)} serves {name!r}" + (f" with {length} tokens" if isinstance(length, int) else "")
    if len(cards) > 1 and model is None:
        found += f", the first of {len(cards)} models (choose with --model)"
    server = Check("server", "ok", found)
    asked = _ask(asking)
    plain = thinking_checks(asked)
    return Report(f"{client.base}, model {name!r}", (server, *plain, *limit_checks(asked), *unusual_checks(asked, plain)))


def _find(url: str, api_key: str | None, timeout: float, model: str | None) -> tuple[Client, list[Mapping[str, Any]]]:
    """Return the server and the models it lists."""
    first: ServerError | None = None
    for base in base_urls(url):
        client = Client(base, api_key, timeout)
        try:
            answer = client.get("/models")
        except ServerError as error:
            gone = isinstance(error, RefusedError) and error.status in (404, 405)
            if isinstance(error, SlowError) or (isinstance(error, RefusedError) and not gone):
                raise
            first = first or error
            continue
        data = answer.get("data") if isinstance(answer, Mapping) else None
        cards = [card for card in data if isinstance(card, Mapping) and "id" in card] if isinstance(data, list) else []
        if not cards:
            first = first or ServerError(f"{base}/models lists no model: {str(answer)[:80]}")
            continue
        names = [str(card["id"]) for card in cards]
        if model is not None and model not in names:
            near = difflib.get_close_matches(model, names, 1, 0.0)[0]
            raise InputError(f"--model {model} is not served at {base}: did you mean {near!r}? ({', '.join(names[:8])})")
        return client, cards
    assert first is not None
    if model is not None and isinstance(first, RefusedError):
        return Client(base_urls(url)[0], api_key, timeout), [{"id": model}]
    raise first


def _version(client: Client) -> str:
    try:
        answer = client.at_root().get("/version")
    except ServerError:
        return "a server"
    return f"vLLM {answer['version']}" if isinstance(answer, Mapping) and "version" in answer else "a server"


@dataclass(slots=True)
class _Asking:
    """A model of a server, and the fields that each request to it has."""

    client: Client
    model: str
    most: int
    extra: dict[str, Any] = field(default_factory=dict)

    def ask(self, *, stream: bool = False, **fields: Any) -> Reply:
        """Ask the question once."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": QUESTION}],
            "temperature": 0,
            "max_tokens": self.most,
            **self.extra,
            **fields,
        }
        where = self.client.base + _CHAT
        if not stream:
            return whole(self.client.post(_CHAT, body), where)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        return streamed(_parsed(self.client.events(_CHAT, body), where), where)

    def first(self) -> Reply:
        """Ask the plain question; the reply spells tokens and prompt as far as the server agrees to that."""
        for extra in _EXTRAS:
            self.extra = dict(extra)
            try:
                return self.ask()
            except RefusedError as error:
                if error.status in (400, 422) and extra:
                    continue
                raise ServerError(f"no chat with {self.model!r}: {error}{_hint(error)}") from None
        raise AssertionError("the last of _EXTRAS is empty")

    def attempt(self, **fields: Any) -> Reply | ServerError:
        """Ask the question; an error is returned, not raised."""
        try:
            return self.ask(**fields)
        except ServerError as error:
            return error

    def counted(self, reply: Reply, thought: Thought) -> Thought:
        """Return the thought with its tokens counted: by the reply, the server's tokenizer, or its share of the text."""
        if thought.num_tokens >= 0 or not thought.text:
            return replace(thought, num_tokens=max(thought.num_tokens, 0))
        body = {"model": self.model, "prompt": thought.text, "add_special_tokens": False}
        try:
            answer = self.client.at_root().post("/tokenize", body)
            return replace(thought, num_tokens=int(answer["count"]), slack=4)
        except (ServerError, TypeError, KeyError, ValueError):
            share = len(thought.text) / max(len(thought.text) + len(thought.answer), 1)
            num = round(reply.num_tokens * share)
            return replace(thought, num_tokens=num, slack=8 + num // 4)


def _parsed(events: Iterator[str], where: str) -> Iterator[Any]:
    for event in events:
        if event.strip() == "[DONE]":
            return
        try:
            yield json.loads(event)
        except ValueError:
            raise ServerError(f"{where} streams an event that is not JSON: {event[:60]!r}") from None


def _hint(error: RefusedError) -> str:
    if "template" in error.message.lower():
        return "; serve it with a chat template (--chat-template FILE)"
    return "; is it a model for chats, and is the URL the one that ends in /v1?" if error.status == 404 else ""


def _ask(asking: _Asking) -> Asked:
    plain = asking.first()
    marks = marks_in(plain.raw or plain.content, plain.prompt)
    thought = asking.counted(plain, thought_of(plain, marks))
    switched = False
    if not thought.opened:
        plain, marks, thought, switched = _switched(asking, plain, marks, thought)

    def outcome(**fields: Any) -> tuple[Reply, Thought] | ServerError:
        reply = asking.attempt(**fields)
        return reply if isinstance(reply, ServerError) else (reply, asking.counted(reply, thought_of(reply, marks)))

    def xargs(**policy: Any) -> dict[str, Any]:
        return {"vllm_xargs": {"thinkguard": json.dumps(policy)}}

    num = thought.num_tokens
    budget = max(1, min(_MOST_BUDGET, num // 3))
    room = max(_LEAST_ROOM, min(_MOST_ROOM, num // 2))
    bare = {"min_thinking_tokens": 0, "close_message": ""}
    thinks = num > budget
    separated = thought.closed and bool(plain.reasoning)
    messages = [{"role": "user", "content": quoting(QUESTION, marks)}]
    return Asked(
        plain=plain,
        marks=marks,
        thought=thought,
        switched=switched,
        limit=asking.most,
        budget=budget,
        room=room,
        stream=asking.attempt(stream=True),
        misspelt=outcome(**xargs(**{MISSPELT: budget})),
        capped=outcome(**xargs(max_thinking_tokens=budget, **bare)) if thinks else None,
        native=outcome(thinking_token_budget=budget) if thinks else None,
        zero=outcome(**xargs(max_thinking_tokens=0, **bare)) if thinks else None,
        roomy=outcome(max_tokens=room, **xargs(reserve_answer_tokens=8, **bare)) if num > room else None,
        quoting=outcome(messages=messages, stream=True) if separated else None,
        formatted=outcome(**wanting_json()) if separated else None,
    )


def _switched(
    asking: _Asking, plain: Reply, marks: Marks | None, thought: Thought
) -> tuple[Reply, Marks | None, Thought, bool]:
    """Ask again with the chat template's switch on; returns the new reply and True, or the old one and False."""
    reply = asking.attempt(chat_template_kwargs=_THINK)
    if isinstance(reply, ServerError):
        return plain, marks, thought, False
    other = marks_in(reply.raw or reply.content, reply.prompt)
    second = asking.counted(reply, thought_of(reply, other))
    if not second.opened:
        return plain, marks, thought, False
    asking.extra["chat_template_kwargs"] = _THINK
    return reply, other, second, True
