"""Checks of two unusual requests: a question that quotes markers, and one that wants JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from thinkguard.doctor.check import Check, Status
from thinkguard.doctor.serving.asked import Asked, quoted, skipped
from thinkguard.doctor.serving.client import RefusedError, ServerError
from thinkguard.doctor.serving.reply import Reply, Thought, skeleton
from thinkguard.formats.marks import Marks, found_in

SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"sum": {"enum": ["579", "680"]}},
    "required": ["sum"],
    "additionalProperties": False,
}
"""Small and finite, so that a model that knows no JSON gets through it too."""


def quoting(question: str, marks: Marks | None) -> str:
    """Spell the question with an end marker and a tool call's opener in it."""
    end = marks.ends[0] if marks else "</think>"
    return f"{question} (Pasted by mistake, to be ignored: {end} <tool_call>)"


def wanting_json() -> dict[str, Any]:
    """Return the request's field that asks for JSON, as OpenAI spells it."""
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA}}}


def unusual_checks(asked: Asked, checks: tuple[Check, ...]) -> tuple[Check, ...]:
    """Judge both answers; `checks` are those of the plain answers, which may explain them."""
    status = {check.name: check.status for check in checks}
    return _marker_in_prompt(asked, status), _structured(asked, status)


def _stands_for(status: Mapping[str, Status], *names: str) -> str:
    """Return "see NAME" for the first of the checks that already says what is wrong; "" if none does."""
    for name in names:
        if status[name] in ("problem", "skipped"):
            return f"see {name}"
    return ""


def _marker_in_prompt(asked: Asked, status: Mapping[str, Status]) -> Check:
    name, outcome = "marker-in-prompt", asked.quoting
    why = _stands_for(status, "opened", "closed", "separated", "content", "stream")
    if why or outcome is None:
        return skipped(name, f"the plain question is not answered rightly: {why or 'see separated'}")
    wanted = "thinking and answer told apart as without the quoted markers"
    if isinstance(outcome, RefusedError) and outcome.status in (400, 422):
        return skipped(name, f"the server refuses a question that quotes markers: {outcome}")
    if isinstance(outcome, ServerError):
        return Check(name, "problem", f"a question that quotes markers: {outcome}", wanted, "look at the server's log")
    reply, thought = outcome
    evidence = (f"reasoning {quoted(reply.reasoning)}", f"content {quoted(reply.content)}")
    lost = _misplaced(reply, thought, asked)
    if lost:
        return Check(name, "note", f"a question that quotes markers is answered with {lost}", wanted, evidence=evidence)
    if not thought.opened or (not reply.reasoning and not reply.raw):
        found = "the model did not think about a question that quotes markers"
        return Check(name, "could not tell", found, evidence=evidence)
    return Check(name, "ok", "thinking and answer stay apart when the question quotes markers")


def _misplaced(reply: Reply, thought: Thought, asked: Asked) -> str:
    """Return what went wrong with an answer's fields; "" for nothing."""
    reasoning = reply.reasoning.strip()
    for start in asked.marks.starts if asked.marks else ():
        reasoning = reasoning.removeprefix(start)  # vLLM's streams leave it there when the machine is busy
    if not reasoning:
        if reply.raw and thought.opened and skeleton(thought.text):
            return "its thinking in the content"
        return "markers in the content, and no `reasoning`" if found_in(reply.content, asked.marks) else ""
    if reply.raw and thought.opened and skeleton(thought.text) != skeleton(reasoning):
        return "a `reasoning` that is not what stands between the markers"
    if reply.finish == "stop" and not reply.content.strip() and thought.closed and asked.thought.answer:
        return "thinking alone: the answer is missing"
    return ""


def _structured(asked: Asked, status: Mapping[str, Status]) -> Check:
    name, outcome = "structured-output", asked.formatted
    why = _stands_for(status, "opened", "closed", "separated", "content")
    if why or outcome is None:
        return skipped(name, f"the plain question is not answered rightly: {why or 'see separated'}")
    wanted = "thinking as without a format, then the JSON in `content`"
    if isinstance(outcome, RefusedError) and outcome.status < 500:
        return skipped(name, f"the server refuses response_format: {outcome}")
    if isinstance(outcome, ServerError):
        return Check(name, "problem", f"response_format: {outcome}", wanted, "look at the server's log for this request")
    reply, thought = outcome
    evidence = (f"reasoning {quoted(reply.reasoning)}", f"content {quoted(reply.content)}")
    if _is_json(reply.content):
        if thought.text or not asked.thought.text:
            return Check(name, "ok", f"{thought.num_tokens} tokens of thinking, then JSON in the content")
        return Check(name, "problem", "JSON without any thinking", wanted, evidence=evidence)
    if _is_json(reply.reasoning) or (not reply.content.strip() and "{" in reply.reasoning[-200:]):
        return Check(name, "problem", f"the JSON is in `{reply.field}`, not in the content", wanted, evidence=evidence)
    if reply.finish == "length" and thought.text and reply.content.lstrip().startswith("{"):
        return Check(name, "ok", f"{thought.num_tokens} tokens of thinking, then JSON, cut off at {reply.num_tokens} tokens")
    if reply.finish == "length":
        return Check(name, "could not tell", f"no JSON within {reply.num_tokens} tokens", evidence=evidence)
    if not reply.content.strip():
        return Check(name, "problem", "no content at all", wanted, evidence=evidence)
    return Check(name, "not applicable", "the server answers without JSON: it ignores response_format", evidence=evidence)


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
