"""Which ordinary conversations a template does not render, and which checks therefore can tell nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from thinkguard.doctor.check import Check
from thinkguard.doctor.template.probes import FORMS
from thinkguard.doctor.template.readings import Readings, spelled

_STOPPED: Final = ("took ", "ended the process")
"""How the error begins if a render was stopped from outside. The probes behind it are not rendered either."""
_READS: Final = {
    "earlier-reasoning": "earlier/",
    "reasoning-field": "final/",
    "final-reasoning": "final/",
    "block-doubled": "final/",
    "empty-block": "final/plain/",
    "prompt-prefix": "final/",
    "half-open-turn": "half-open",
    "content-none": "call/",
    "content-parts": "parts",
    "tool-turn": "tool",
    "literal-marker": "literal/",
    "thinking-switch": "prompt/",
    "prefill": "prefill",
    "history": "history/",
    "reward-anchor": "prompt/",
}
"""Check -> how the names of the probes that it reads begin."""
_PLAIN: Final = {"earlier-reasoning": "earlier/plain", "history": "history/plain"}
"""Check -> its probe without reasoning: if that does not render, no probe of its kind does."""
_CONVERSATIONS: Final = {
    "prompt/": "a question",
    "final/": "a question and an answer",
    "both/": "an answer with its reasoning inline and once more",
    "earlier/": "two questions and two answers",
    "history/": "a second question",
    "half-open": "an answer whose reasoning has no end",
    "prefill": "an answer that is to be continued",
    "user parts": "a question that is a list of parts",
    "parts": "an answer that is a list of parts",
    "call/none": "a tool call beside content that is null",
    "call/absent": "a tool call beside no content",
    "call/": "a conversation with a tool call",
    "tool/": "a tool call that ends the conversation",
    "tool loop/": "a tool call and what is said to the tool's answer",
    "literal/start": "a start marker that is only quoted",
    "literal/end": "an end marker that is only quoted",
}
"""How a probe's name begins -> its conversation in words."""


def description(probe: str) -> str:
    """Say in words what a probe renders."""
    words = next(words for begin, words in _CONVERSATIONS.items() if probe.startswith(begin))
    rest = probe.split("/")[1:]
    form, switch = spelled(rest), next((part for part in rest if "=" in part), "")
    return words + (f", reasoning given as {form}" if form else "") + (f", with {switch}" if switch else "")


def first_stopped(readings: Readings) -> str:
    """Name the first probe whose render was stopped from outside, and why; "" if none was."""
    probes = ((name, readings.error(name)) for name in readings.renders)
    return next((f"{name}: {error}" for name, error in probes if error.startswith(_STOPPED)), "")


def no_result_renders(readings: Readings) -> str:
    """Return why no conversation that goes on behind a tool's answer renders; "" if one does."""
    probes = [f"tool loop/{form}/{arguments}" for form in FORMS for arguments in ("dict", "text")]
    return "" if any(map(readings.text, probes)) else readings.error(probes[0])


def failures(readings: Readings) -> dict[str, str]:
    """Return the ordinary conversations of several turns that raise an error: conversation in words -> error."""
    found = {
        description("earlier/plain"): readings.error("earlier/plain"),
        description("history/plain"): readings.error("history/plain"),
        "a tool's answer": no_result_renders(readings),
    }
    return {what: error for what, error in found.items() if error and not error.startswith(_STOPPED)}


def unread(readings: Readings, check: Check) -> Check:
    """Return the check, or one that could not tell if the probes that it reads did not render."""
    if check.name not in _READS or check.found.startswith("final-reasoning stands for it"):
        return check
    errors = [render.error for name, render in readings.renders.items() if name.startswith(_READS[check.name])]
    error = next((error for error in errors if error.startswith(_STOPPED)), "")
    if not error and check.name in _PLAIN and check.status not in ("skipped", "not applicable"):
        error = readings.error(_PLAIN[check.name])
    if not error:
        return check
    found = f"template-renders stands for it: such a conversation does not render: {error[:160]}"
    return replace(check, status="could not tell", found=found, wanted="", fix="", evidence=())
