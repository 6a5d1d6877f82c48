"""What people ask of vLLM, a client in a request and the server's owner in its configuration, read and checked.

The frontend process calls `admit` and knows one request, nothing else: no default, no tokenizer, no EOS. What it raises is
the client's HTTP 400. vLLM itself is not needed here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from thinkguard.errors import PolicyError
from thinkguard.policy import (
    MAX_MESSAGE_BYTES,
    MOST,
    POLICY_DEFAULTS,
    ThinkPolicy,
    check_names,
    check_value,
    contradictions,
    shown,
)

ARGUMENT = "thinkguard"  # in extra_args, vllm_xargs and additional_config
BUDGET = "thinking_token_budget"  # vLLM's own word for max_thinking_tokens
SERVER_FIELDS = ("format", "raw_completions")

_MAX_JSON = 19_456  # characters; three messages of the greatest length fit in, every character escaped


def admit(params: Any) -> bool | dict[str, Any] | None:
    """Check what a request asks for and normalise it; PolicyError for what no server's default could make possible.

    `params.extra_args["thinkguard"]` becomes False, True or a dict of plain values. `thinking_token_budget` moves into it
    and is None afterwards, since vLLM's own holder overwrites even forced tokens; with the guard off it stays. `params` is
    the caller's own object and changes, the dict it came with does not. Doing it again changes nothing.
    """
    extra = params.extra_args if isinstance(params.extra_args, Mapping) else {}
    asked = asked_for(extra[ARGUMENT]) if ARGUMENT in extra else None
    if asked is not False:
        budget = _budget(getattr(params, BUDGET, None))  # vLLM below 0.19 has no such field
        if budget is not None:
            asked = {**(asked if isinstance(asked, dict) else {}), BUDGET: budget}
        if asked is not None and getattr(params, "trace_decode_token_ids", None):
            raise PolicyError("thinkguard with trace_decode_token_ids: the trace decides every token; leave one of them out")
    if isinstance(asked, dict):
        _check_together(asked)
    if asked is not None:
        params.extra_args = {**extra, ARGUMENT: asked}
    if asked is not False and hasattr(params, BUDGET):
        params.thinking_token_budget = None
    return asked


def asked_for(value: object) -> bool | dict[str, Any]:
    """What a request's argument means: on, off, or fields, every one of them possible by itself."""
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, Mapping):
        return _request_fields(value)
    if type(value) in (bool, int) and value in (0, 1):
        return bool(value)
    raise PolicyError(
        f"thinkguard={shown(value)}: must be true, false or an object of policy fields; vllm_xargs carries strings and "
        'numbers only, so write the object as JSON there: {"thinkguard": "{\\"max_thinking_tokens\\": 512}"}'
    )


def with_budget(fields: dict[str, Any]) -> dict[str, Any]:
    """A request's fields with vLLM's budget under its name here, unless the request says both: then ours is meant."""
    policy = {name: value for name, value in fields.items() if name != BUDGET}
    return {"max_thinking_tokens": fields[BUDGET], **policy} if BUDGET in fields else policy


def server_default(additional_config: Any) -> tuple[dict[str, Any] | None, str | None, bool]:
    """(fields of the default, None: only requests that ask are guarded; format; whether raw completions are guarded)."""
    config = additional_config.get(ARGUMENT, True) if isinstance(additional_config, Mapping) else True
    if isinstance(config, bool):
        return ({} if config else None), None, False
    try:
        if not isinstance(config, Mapping):
            raise PolicyError(f"{shown(config)} must be true, false, or an object of policy fields and {SERVER_FIELDS}")
        check_names(config, SERVER_FIELDS)
        fields = _policy_fields({name: value for name, value in config.items() if name not in SERVER_FIELDS})
        ThinkPolicy(**fields)
        format, raw = config.get("format"), config.get("raw_completions", False)
        if format is not None and not isinstance(format, str):
            raise PolicyError(f"format={shown(format)}: must be a family's name; `thinkguard formats` lists them")
        if not isinstance(raw, bool):
            raise PolicyError(f"raw_completions={shown(raw)}: must be true or false")
    except PolicyError as error:
        raise PolicyError(f"additional_config, thinkguard: {error}") from error
    return fields, format, raw


def _parsed(text: str) -> object:
    if len(text) > _MAX_JSON:
        raise PolicyError(f"thinkguard is {len(text)} characters of JSON, and {_MAX_JSON} are read: shorten the messages")
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except PolicyError:
        raise
    except (ValueError, RecursionError) as error:
        raise PolicyError(
            f"thinkguard={shown(text)} is not JSON ({error}): write an object of policy fields, true or false"
        ) from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise PolicyError(f"thinkguard gives {shown(name)} twice: give it once")
        values[name] = value
    return values


def _request_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    for name in SERVER_FIELDS:
        if name in values:
            raise PolicyError(
                f"{name}={shown(values[name])} is for the server to say, not for a request: start it with "
                f'--additional-config \'{{"thinkguard": {{"{name}": ...}}}}\''
            )
    check_names(values, (BUDGET,))
    fields = _policy_fields({name: value for name, value in values.items() if name != BUDGET})
    budget = _budget(values.get(BUDGET))
    return fields if budget is None else {**fields, BUDGET: budget}


def _policy_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Check fields one by one; returns them as values that msgpack carries, whatever enum or array they came from."""
    fields: dict[str, Any] = {}
    for name, value in values.items():
        check_value(name, value)
        if isinstance(value, str):
            length = len(value.encode())
            if length > MAX_MESSAGE_BYTES:
                raise PolicyError(f"{name} is {length} bytes of UTF-8 long: shorten it to {MAX_MESSAGE_BYTES} or less")
            fields[name] = str.__str__(value)
        else:
            fields[name] = value if value is None else int(value) if isinstance(value, int) else float(value)
    return fields


def _budget(value: object) -> int | None:
    """vLLM's own budget; None and -1 are none. What no sequence reaches is cut to the largest count there is."""
    if value is None or (value == -1 and not isinstance(value, bool)):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise PolicyError(f"{BUDGET}={shown(value)}: must be a whole number of tokens, or -1 for no budget")
    return min(int(value), MOST)


def _check_together(fields: dict[str, Any]) -> None:
    """Refuse what contradicts itself within the request; a partner that is missing may be the server's default."""
    given = with_budget(fields)
    for names, told in contradictions({**POLICY_DEFAULTS, **given}):
        if all(name in given for name in names):
            moved = BUDGET in fields and "max_thinking_tokens" not in fields and "max_thinking_tokens" in names
            raise PolicyError(f"{told} (max_thinking_tokens is the request's {BUDGET})" if moved else told)
