"""Whether two chat templates do the same, by what they make of the same conversations."""

from __future__ import annotations

from collections.abc import Sequence

from thinkguard.doctor.check import Check, Status
from thinkguard.doctor.template.evidence import differ
from thinkguard.doctor.template.probes import FORMS
from thinkguard.doctor.template.readings import DEFAULT, Readings


def probe_vector(readings: Readings) -> dict[str, object]:
    """What a template does, as values that can be compared with another's."""
    forms = ("plain", *FORMS)
    return {
        "the generation prompt": readings.text(f"prompt/{DEFAULT}"),
        "what the switches do": readings.switches,
        "the final turn": {form: readings.shape(f"final/{form}/{DEFAULT}") for form in forms},
        "earlier turns": {form: readings.shape(f"earlier/{form}") for form in forms},
        "turns with a tool call": {form: readings.shape(readings.called(f"tool/{form}")) for form in forms[1:]},
    }


def differs_checks(a: Readings, b: Readings, names: Sequence[str]) -> tuple[Check, ...]:
    """Compare what two templates make of the same conversations; `names` say where each is from."""
    return (_differs(a, b, *names),)


def _differs(a: Readings, b: Readings, one: str, two: str) -> Check:
    name = "template-differs"
    if not a.source or not b.source:
        status: Status = "could not tell" if a.source or b.source else "not applicable"
        return Check(name, status, f"{two if a.source else one}: no chat template")
    if a.source == b.source:
        return Check(name, "ok", f"{one} and {two} are the same")
    first, second = probe_vector(a), probe_vector(b)
    apart = [key for key in first if first[key] != second[key]]
    texts = [key for key in a.renders if key in b.renders and a.text(key) != b.text(key)]
    seen: list[str] = []
    for key in texts[:1]:
        seen = [f"{who}: {text}" for who, text in zip((one, two), differ(a.text(key), b.text(key)), strict=True)]
    if apart:
        found = f"{one} and {two} differ in {', '.join(apart)}"
        return Check(name, "problem", found, "one template in training and serving", evidence=tuple(seen))
    if texts:
        found = f"{one} and {two} write {len(texts)} of {len(a.renders)} conversations differently"
        return Check(name, "note", found, evidence=tuple(seen))
    return Check(name, "ok", f"{one} and {two} are spelled differently and render alike")
