"""Checks of what a server makes of a limit on thinking: a budget, none, a misspelt one, too few tokens in all."""

from __future__ import annotations

from typing import Final

from thinkguard.doctor.check import Check
from thinkguard.doctor.serving.asked import FLAG, Asked, skipped, within
from thinkguard.doctor.serving.client import RefusedError, ServerError
from thinkguard.doctor.serving.reply import Reply, Thought

_MARGIN: Final = 64  # a close message of the server's own policy comes on top of a budget
_LOG: Final = "look at the server's log for this request"


def limit_checks(asked: Asked) -> tuple[Check, ...]:
    """Judge the answers to requests with a limit."""
    return _budget(asked), _native(asked), _zero(asked), _misspelt(asked), _room(asked)


def _short(name: str) -> Check:
    return skipped(name, "there was too little thinking to cap")


def _summary(outcome: tuple[Reply, Thought]) -> str:
    """Say how an answer under a budget came out."""
    reply, thought = outcome
    about = "about " if thought.slack else ""
    ended = "then an answer" if thought.answer else f"no answer, finish_reason {reply.finish!r}"
    return f"{about}{thought.num_tokens} tokens of thinking, {ended}"


def _budget(asked: Asked) -> Check:
    name, asks = "budget", f"vllm_xargs thinkguard max_thinking_tokens={asked.budget}"
    wanted = f"at most {asked.budget} tokens of thinking (of {asked.thought.num_tokens}), then an answer"
    if asked.capped is None:
        return _short(name)
    if isinstance(asked.capped, ServerError):
        return Check(name, "problem", f"{asks}: {asked.capped}", wanted, FLAG)
    found = f"{asks}: {_summary(asked.capped)}"
    if asked.caps and asked.answers(asked.capped[1]):
        return Check(name, "ok", found)
    fix = f"thinkguard is not loaded: {FLAG}"
    if asked.reads_policy:
        fix = "thinkguard is loaded but leaves this request alone: the server's log says why"
    return Check(name, "problem", found, wanted, fix)


def _native(asked: Asked) -> Check:
    name, asks = "native-budget", f"thinking_token_budget={asked.budget}"
    wanted = f"at most {asked.budget} tokens of thinking (of {asked.thought.num_tokens}), then an answer"
    fix = f"{FLAG}, which takes it over; no reasoning parser is needed"
    if asked.native is None:
        return _short(name)
    if isinstance(asked.native, ServerError):
        return Check(name, "problem", f"{asks}: {asked.native}", wanted, fix)
    thought, found = asked.native[1], f"{asks}: {_summary(asked.native)}"
    shorter = thought.num_tokens <= min(asked.budget + _MARGIN, asked.thought.num_tokens * 3 // 4)
    if asked.answers(thought) and (asked.kept(thought) or shorter):
        more = "" if asked.kept(thought) else "; the server's own close message comes on top"
        return Check(name, "ok", found + more)
    return Check(name, "problem", found, wanted, fix)


def _zero(asked: Asked) -> Check:
    name, asks = "zero-budget", "max_thinking_tokens=0"
    if asked.zero is None:
        return _short(name)
    if not asked.caps:
        return skipped(name, "a budget has no effect: see budget")
    wanted = "no thinking, and an answer"
    if isinstance(asked.zero, ServerError):
        return Check(name, "problem", f"{asks}: {asked.zero}", wanted, _LOG)
    found = f"{asks}: {_summary(asked.zero)}"
    if within(asked.zero[1], 0) and (asked.zero[1].answer or not asked.thought.answer):
        return Check(name, "ok", found)
    return Check(name, "problem", found, wanted, _LOG)


def _misspelt(asked: Asked) -> Check:
    name, outcome = "misspelt-field", asked.misspelt
    wanted = "HTTP 400 that names max_thinking_tokens"
    if isinstance(outcome, RefusedError) and asked.reads_policy:
        found = f"HTTP {outcome.status}: {outcome.message}"
        if outcome.status == 400:
            return Check(name, "ok", found)
        return Check(name, "problem", found, wanted, "let whatever stands in between pass the server's status on")
    if not asked.caps:
        return skipped(name, "nobody reads thinkguard's fields: see budget")
    found = str(outcome) if isinstance(outcome, ServerError) else "answered as if nothing were wrong"
    fix = "one version of thinkguard for the API server and the engine; see that nothing in between drops vllm_xargs"
    return Check(name, "problem", found, wanted, fix)


def _room(asked: Asked) -> Check:
    name, asks = "little-room", f"max_tokens={asked.room}"
    wanted = f"the thinking (of {asked.thought.num_tokens} tokens) closed in time for an answer"
    if asked.roomy is None:
        if not asked.thought.opened:
            return skipped(name, "there was no thinking: see opened")
        return Check(name, "could not tell", f"{asked.thought.num_tokens} tokens of thinking fit into {asks}")
    if isinstance(asked.roomy, RefusedError) and isinstance(asked.capped, RefusedError):
        return skipped(name, "the server refuses vllm_xargs: see budget")
    if isinstance(asked.roomy, ServerError):
        return Check(name, "problem", f"{asks}: {asked.roomy}", wanted, _LOG)
    found = f"{asks}: {_summary(asked.roomy)}"
    if asked.answers(asked.roomy[1]):
        return Check(name, "ok", found)
    return Check(name, "problem", found, wanted, f"{FLAG}, which keeps room for the answer")
