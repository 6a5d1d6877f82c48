"""Whether two chat templates do the same: both render the same conversations, and the texts are compared."""

from __future__ import annotations

from collections.abc import Sequence

from thinkguard.doctor.check import Check, Status
from thinkguard.doctor.template.evidence import differences
from thinkguard.doctor.template.probes import FORMS
from thinkguard.doctor.template.readings import DEFAULT, Readings


def probe_vector(readings: Readings) -> dict[str, object]:
    """Return what a template does, aspect by aspect, as values that can be compared with another template's."""
    forms = ("plain", *FORMS)
    return {
        "the generation prompt": readings.text(f"prompt/{DEFAULT}"),
        "what the switches do": readings.switches,
        "the final turn": {form: readings.shape(f"final/{form}/{DEFAULT}") for form in forms},
        "earlier turns": {form: readings.shape(f"earlier/{form}") for form in forms},
        "turns with a tool call": {form: readings.shape(readings.called(f"tool/{form}")) for form in forms[1:]},
    }


def differs_checks(a: Readings, b: Readings, names: Sequence[str]) -> tuple[Check, ...]:
    """Compare what two templates make of the same conversations; `names` say where each of them comes from."""
    return (_differs(a, b, *names),)


def _differs(a: Readings, b: Readings, name_a: str, name_b: str) -> Check:
    name = "template-differs"
    if not a.source or not b.source:
        status: Status = "could not tell" if a.source or b.source else "not applicable"
        return Check(name, status, f"{name_b if a.source else name_a}: no chat template")
    if a.source == b.source:
        return Check(name, "ok", f"{name_a} and {name_b} are the same")
    first, second = probe_vector(a), probe_vector(b)
    apart = [key for key in first if first[key] != second[key]]
    texts = [key for key in a.renders if key in b.renders and a.text(key) != b.text(key)]
    evidence: list[str] = []
    for key in texts[:1]:
        excerpts = zip((name_a, name_b), differences(a.text(key), b.text(key)), strict=True)
        evidence = [f"{template}: {text}" for template, text in excerpts]
    if apart:
        found = f"{name_a} and {name_b} differ in {', '.join(apart)}"
        return Check(name, "problem", found, "one template in training and serving", evidence=tuple(evidence))
    if texts:
        found = f"{name_a} and {name_b} write {len(texts)} of {len(a.renders)} conversations differently"
        return Check(name, "note", found, evidence=tuple(evidence))
    return Check(name, "ok", f"{name_a} and {name_b} are spelled differently and render alike")
