"""What becomes of each request in a vLLM engine: its fields over the server's default, bound to the served model.

An exception here would end the engine for everybody, so nothing is raised. What of a request cannot be bound is left out,
and the rest holds: its other fields, the server's default, in the end the format alone. Each kind of reason is logged once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from vllm.logger import init_logger

from thinkguard.core._core import BoundPolicy
from thinkguard.core.names import MAX_EOS
from thinkguard.core.program import ThinkProgram
from thinkguard.errors import FormatError, PolicyError, ThinkGuardError, UnsupportedError
from thinkguard.policy import POLICY_DEFAULTS, ThinkPolicy, shown
from thinkguard.requests.admission import ARGUMENT, asked_for, server_default, with_budget
from thinkguard.requests.merge import merged
from thinkguard.vllm import interface
from thinkguard.vllm.grammar import why_no_grammar

_MAX_KEPT = 256  # different requests whose policies are kept bound
_MAX_SAID = 64  # kinds of reasons that are logged

_LOG = init_logger("vllm.thinkguard")  # vLLM gives handlers to its own loggers alone


@dataclass(frozen=True, slots=True)
class Guard:
    """How one request is guarded."""

    bound: BoundPolicy
    guards_raw: bool  # also where the prompt shows no chat turn


class Requests:
    """The server's default, and what becomes of it for each request.

    `vllm_config.additional_config["thinkguard"]` holds policy fields, `format` (a family's name, detected from tokenizer
    and chat template if absent) and `raw_completions` (true: prompts without a chat turn are guarded by default as well).
    false guards only the requests that ask for it. PolicyError, FormatError or UnsupportedError where that cannot be done.
    """

    def __init__(self, vllm_config: Any) -> None:
        model = vllm_config.model_config
        _check_model(model)
        self._said: set[str] = set()
        self._max_model_len: int = model.max_model_len
        self.vocab_size: int = model.get_vocab_size()
        default, format, self._raw = server_default(vllm_config.additional_config)
        self._by_default = default is not None
        self._default = {name: value for name, value in (default or {}).items() if value != POLICY_DEFAULTS[name]}
        tokenizer = interface.tokenizer_of(model)
        self.program = _compile(format, tokenizer, self.vocab_size)
        policy = ThinkPolicy(**self._default)
        self.program.bind(policy if self.program.eos_token_ids else replace(policy, max_answer_tokens=None))
        self._no_grammar = why_no_grammar(self.program, tokenizer, vllm_config.structured_outputs_config)
        self._kept = lru_cache(_MAX_KEPT)(self._resolve)
        evidence = "; ".join(self.program.format.evidence) or "named by the server"
        guarded = f"by default, {self._default or 'no field set'}" if self._by_default else "where a request asks for it"
        _LOG.info_once("thinkguard: format %r (%s); guarding %s", self.program.format.name, evidence, guarded)

    def guard_of(self, params: Any) -> Guard | None:
        """How to guard a request; None leaves it alone. Never raises, whatever `params` holds."""
        try:
            return self._guard_of(params)
        except Exception as error:
            self.say(f"a request is left alone: {shown(error)}", f"left alone, {type(error).__name__}")
            return None

    def limit_of(self, params: Any, prompt_len: int) -> int:
        """How many tokens the output may have."""
        room = max(self._max_model_len - prompt_len, 0)
        return room if params.max_tokens is None else max(min(params.max_tokens, room), 0)

    def say(self, reason: str, kind: str = "") -> None:
        """Log a reason once: of those that hold what requests wrote, and so are ever new, the first of each kind."""
        if (kind or reason) not in self._said and len(self._said) < _MAX_SAID:
            self._said.add(kind or reason)
            more = "; reasons that come up from here on are not logged" if len(self._said) == _MAX_SAID else ""
            _LOG.warning("thinkguard: %s%s", reason, more)

    def say_banned(self) -> None:
        """Log that what was due in a request had been banned before the guard saw the logits."""
        self.say(
            "the token that was due in a request, or all that may be sampled, was banned before: what is optional is "
            "skipped, and an end marker that stays banned is never written. Look at bad_words, allowed_token_ids, "
            "logit_bias and structured outputs"
        )

    def say_no_chat(self) -> None:
        """Log that a request which did not ask was left alone, for its prompt shows no chat."""
        self.say(
            f"a request is left alone: its prompt shows no chat turn as format {self.program.format.name!r} knows them. "
            "Completions that are to be guarded ask for it, or the server does: --additional-config "
            '\'{"thinkguard": {"raw_completions": true}}\'. If it was a chat, name the format that its template writes'
        )

    def _guard_of(self, params: Any) -> Guard | None:
        asked: bool | dict[str, Any] | None = None
        if isinstance(params.extra_args, Mapping) and ARGUMENT in params.extra_args:
            try:
                asked = asked_for(params.extra_args[ARGUMENT])
            except PolicyError as error:  # it came past admission
                self.say(f"a request's arguments are ignored, the server's default holds: {error}", "ignored arguments")
        if asked is False or (asked is None and not self._by_default):
            return None
        if asked is None and params.max_tokens == 1:
            self.say("requests for one token, as beam search and scoring make them, are left alone unless they ask")
            return None
        if getattr(params, "trace_decode_token_ids", None):
            self.say("a request with trace_decode_token_ids is left alone: the trace decides every token")
            return None
        fields = with_budget(asked) if isinstance(asked, dict) else {}
        stops, grammar = interface.stop_ids(params), interface.has_grammar(params)
        return self._kept(asked is not None, tuple(sorted(fields.items())), stops, bool(params.ignore_eos), grammar)

    def _resolve(
        self, asks: bool, fields: tuple[tuple[str, Any], ...], stops: tuple[int, ...], ignore_eos: bool, grammar: bool
    ) -> Guard | None:
        if grammar and self._no_grammar:
            self.say(f"requests with structured outputs are left alone, budgets included: {self._no_grammar}")
            return None
        asked, eos = dict(fields), self._eos(stops, ignore_eos)
        try:
            bound, dropped = self._bind(asked, self._default, eos, grammar)
        except ThinkGuardError:
            bound, dropped = self._bind_what_can_be(asked, eos, grammar)
        for kind, reason in dropped:
            self.say(reason, kind)
        return Guard(bound, asks or self._raw)

    def _bind(
        self, asked: Mapping[str, Any], default: Mapping[str, Any], eos: tuple[int, ...], bare_close: bool
    ) -> tuple[BoundPolicy, list[tuple[str, str]]]:
        """Bind fields over a default's. Returns, too, (kind, reason) of each field that does not apply; ThinkGuardError."""
        policy, reasons = merged(dict(asked), dict(default))
        dropped = [(f"contradiction, {reason.partition('=')[0]}", reason) for reason in reasons]
        if policy.max_answer_tokens is not None and not eos:
            why = "max_answer_tokens does not apply to a request that nothing stops (ignore_eos without stop_token_ids)"
            dropped.append(("", why))
            policy = replace(policy, max_answer_tokens=None)
        return self.program.bind(policy, eos, bare_close=bare_close), dropped

    def _bind_what_can_be(
        self, asked: Mapping[str, Any], eos: tuple[int, ...], grammar: bool
    ) -> tuple[BoundPolicy, list[tuple[str, str]]]:
        """As `_bind`, where all of a request cannot be: field by field, the default's first, each that fits those before."""
        dropped: list[tuple[str, str]] = []
        eos, bare_close = self._bind_stops(eos, grammar, dropped)
        default: dict[str, Any] = {}
        kept: dict[str, Any] = {}
        for fields, into, whose in ((self._default, default, "the server's default"), (asked, kept, "a request")):
            for name, value in fields.items():
                into[name] = value
                try:
                    self._bind(kept, default, eos, bare_close)
                except ThinkGuardError as error:
                    del into[name]
                    why = f"{name}={shown(value)} of {whose} is not applied: {error}"
                    dropped.append((f"cannot be bound, {name} of {whose}", why))
        bound, more = self._bind(kept, default, eos, bare_close)
        return bound, dropped + more

    def _bind_stops(
        self, eos: tuple[int, ...], grammar: bool, dropped: list[tuple[str, str]]
    ) -> tuple[tuple[int, ...], bool]:
        """Of the ids at which a request stops, those that the format can be bound with; and whether nothing is forced behind
        its end marker, as for a grammar, so that the white space there may be a stop.
        """
        bare = ThinkPolicy()
        for bare_close in (grammar, True):
            try:
                self.program.bind(bare, eos, bare_close=bare_close)
            except ThinkGuardError:
                continue
            if bare_close and not grammar:
                why = "nothing is forced behind the end marker of a request that stops at what would be"
                dropped.append(("stops at white space", why))
            return eos, bare_close
        kept: list[int] = []
        for token_id in sorted(eos, key=lambda one: one not in self.program.eos_token_ids):
            try:
                self.program.bind(bare, [*kept, token_id], bare_close=grammar)
                kept.append(token_id)
            except ThinkGuardError as error:
                why = f"a request stops at token {token_id}, which the guard has to take for any other token: {error}"
                dropped.append((f"stops, {type(error).__name__}", why))
        return tuple(one for one in eos if one in kept), grammar

    def _eos(self, stops: tuple[int, ...], ignore_eos: bool) -> tuple[int, ...]:
        """The ids that end a sequence: those at which vLLM stops, then the tokenizer's and the format's turn ends.

        The model means the end of its turn by the latter even where the server was not told to stop there: inside the
        thinking they would leave it unclosed (a client's stop string may well be one). Behind one in the answer the turn
        is over and nothing is guarded any more. With ignore_eos they are plain tokens.
        """
        more = () if ignore_eos else tuple(t for t in self.program.eos_token_ids if t not in stops)
        if more and stops:
            names = ", ".join(f"{t} ({self.program.vocabulary.token_bytes(t).decode(errors='replace')})" for t in more)
            self.say(
                f"vLLM does not stop at {names}, where a turn of format {self.program.format.name!r} ends, and what it "
                "generates behind it is not guarded: list these ids in generation_config.json or in stop_token_ids"
            )
        return (*stops, *more[: max(MAX_EOS - len(stops), 0)])


def _check_model(model: Any) -> None:
    if model.skip_tokenizer_init:
        raise UnsupportedError(
            "skip_tokenizer_init: thinkguard finds markers in what tokens spell, so it needs the tokenizer; start without it"
        )
    if getattr(model, "is_diffusion", False):
        raise UnsupportedError(f"{model.model}: a diffusion model does not write in order; start without thinkguard")
    if model.runner_type == "pooling":
        raise UnsupportedError(f"{model.model}: a pooling model generates no text; start without thinkguard")


def _compile(format: str | None, tokenizer: Any, vocab_size: int) -> ThinkProgram:
    try:
        return ThinkProgram(format, tokenizer, vocab_size)
    except FormatError as error:
        remedy = '--additional-config \'{"thinkguard": {"format": "..."}}\''
        raise FormatError(f"{error} (in vLLM by {remedy})") from error
