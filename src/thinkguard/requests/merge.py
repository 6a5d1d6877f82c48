"""A request's fields over a server's default."""

from __future__ import annotations

from typing import Any

from thinkguard.policy import POLICY_DEFAULTS, ThinkPolicy, contradictions, shown


def merged(asked: dict[str, Any], default: dict[str, Any]) -> tuple[ThinkPolicy, list[str]]:
    """Return the policy of a request's fields over the default's, and why each field that it lacks is not applied.

    Where two fields contradict each other, one of the default's is dropped. Only if dropping it does not resolve the
    contradiction is it a field of the request: one that has no effect without a partner which the default overrules.
    """
    asked, default = dict(asked), {name: value for name, value in default.items() if name not in asked}
    dropped = []
    while found := next(contradictions(values := {**POLICY_DEFAULTS, **default, **asked}), None):
        names, message = found
        choices = [(fields, name) for fields in (default, asked) for name in names if name in fields]
        fields, name = next((choice for choice in choices if _resolves(choice[1], names, values)), choices[-1])
        whose = "the server's default" if fields is default else "a request"
        dropped.append(f"{name}={shown(fields.pop(name))} of {whose} is not applied: {message}")
    return ThinkPolicy(**default, **asked), dropped


def _resolves(name: str, names: tuple[str, str], values: dict[str, Any]) -> bool:
    """Whether two fields no longer contradict each other once one of them is as if never set."""
    return all(pair != names for pair, _ in contradictions({**values, name: POLICY_DEFAULTS[name]}))
