"""Which ordinary conversations a template does not render, and which checks can tell nothing for that reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from thinkguard.doctor.check import Check
from thinkguard.doctor.template.probes import FORMS
from thinkguard.doctor.template.readings import Readings

_STOPPED: Final = ("took ", "ended the process")
"""How the error of a render begins that was stopped from outside; what comes behind it is not rendered either."""
_NEEDED: Final = {
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
"""By check, how the names of the probes begin that it reads."""
_PLAIN: Final = {"earlier-reasoning": "earlier/plain", "history": "history/plain"}
"""By check, the probe without reasoning that renders if anything of the kind does."""


def stopped(readings: Readings) -> str:
    """Name the first probe whose render was stopped from outside, and why; "" if none was."""
    probes = ((name, readings.error(name)) for name in readings.renders)
    return next((f"{name}: {error}" for name, error in probes if error.startswith(_STOPPED)), "")


def no_result_renders(readings: Readings) -> str:
    """Why no conversation goes on behind what a tool answered; "" where one does."""
    probes = [f"tool loop/{form}/{arguments}" for form in FORMS for arguments in ("dict", "text")]
    return "" if any(map(readings.text, probes)) else readings.error(probes[0])


def failures(readings: Readings) -> dict[str, str]:
    """The ordinary conversations of more than one turn that raise, in words, and what they raise."""
    found = {
        "two questions and two answers": readings.error("earlier/plain"),
        "a second question": readings.error("history/plain"),
        "a tool's answer": no_result_renders(readings),
    }
    return {what: error for what, error in found.items() if error and not error.startswith(_STOPPED)}


def unread(readings: Readings, check: Check) -> Check:
    """Give the check back, or one that could not tell, if what it reads did not render."""
    if check.name not in _NEEDED or check.found.startswith("final-reasoning stands for it"):
        return check
    needed = [made.error for name, made in readings.renders.items() if name.startswith(_NEEDED[check.name])]
    error = next((error for error in needed if error.startswith(_STOPPED)), "")
    if not error and check.name in _PLAIN and check.status not in ("skipped", "not applicable"):
        error = readings.error(_PLAIN[check.name])
    if not error:
        return check
    found = f"template-renders stands for it: such a conversation does not render: {error[:160]}"
    return replace(check, status="could not tell", found=found, wanted="", fix="", evidence=())
