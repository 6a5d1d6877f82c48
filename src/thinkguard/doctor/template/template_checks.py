"""What the readings of a chat template mean for training: what is lost, doubled or inserted in the text that is learned."""

from __future__ import annotations

from collections import Counter
from typing import Final

from thinkguard.doctor.catalogue import entries
from thinkguard.doctor.check import Check
from thinkguard.doctor.records.record import (
    EARLIER_REASONING,
    WITH_REASONING,
    WITHOUT_REASONING,
)
from thinkguard.doctor.template.differs import differs_checks as differs_checks
from thinkguard.doctor.template.differs import probe_vector as probe_vector
from thinkguard.doctor.template.evidence import added, differ, lost, missing, own, raised, shown
from thinkguard.doctor.template.probes import FIELDS, FORMS, ON, PARTS, answer, inline
from thinkguard.doctor.template.readings import DEFAULT, Readings, kept, printed, spelled
from thinkguard.doctor.template.situation import Situation
from thinkguard.doctor.template.turn_checks import turn_checks
from thinkguard.doctor.template.unread import described, failures, stopped, unread

FIX_TEMPLATE: Final = "Write a template that keeps it: thinkguard doctor PATH --fix-template OUT.jinja, and train with that."


def template_checks(readings: Readings, facts: Counter[str] | None, trainer: str | None) -> tuple[Check, ...]:
    """Make every check of the template's part but `template-differs`.

    With `facts`, the counts of the data, a hazard that the data meet is a problem. A trainer that has templates of its own
    makes of a problem with training texts a note.
    """
    situation = Situation(facts, trainer)
    made = _made(readings, situation)
    if situation.misspelled:
        own = _made(readings, situation.respelled())
        made = [situation.follows(check, other) for check, other in zip(made, own, strict=True)]
    return tuple(map(situation.for_trainer, made))


def _made(readings: Readings, situation: Situation) -> list[Check]:
    """Make the checks, in the catalogue's order."""
    names = [name for name, entry in entries().items() if entry.part == "template" and name != "template-differs"]
    first = _renders(readings)
    if not readings.works:
        why = "no chat template" if not readings.source else "template-renders stands for it"
        return [first, *(Check(name, "skipped", why) for name in names if name != first.name)]
    final = unread(readings, _final(readings, situation))
    made = [first, final]
    if final.fired and not readings.fields_kept:
        made += [Check(name, "skipped", "final-reasoning stands for it") for name in names if name in _FOLLOWS]
    else:
        made += [_earlier(readings, situation), _field(readings, situation), _doubled(readings, situation)]
        made += [_prefix(readings, situation)]
    made.append(_empty(readings, situation))
    made = [unread(readings, check) for check in made]
    made += turn_checks(readings, situation, {check.name for check in made if check.fired})
    made = [unread(readings, check) for check in made]
    by_name = {check.name: check for check in reversed(made)}
    return [by_name[name] for name in names]


_FOLLOWS: Final = frozenset(
    {"earlier-reasoning", "reasoning-field", "block-doubled", "prompt-prefix", "tool-turn", "literal-marker", "history"}
)


def _renders(readings: Readings) -> Check:
    if not readings.source:
        return Check("template-renders", "not applicable", "no chat template: give one with --template FILE")
    if readings.needs_tools:
        error = next(iter(readings.errors), "")
        found = "renders only with tools; read here with one tool, look_up"
        return Check("template-renders", "note", found, evidence=(raised(error),) if error else ())
    if readings.works:
        bad = sum(1 for made in readings.renders.values() if made.text is None)
        if why := stopped(readings):
            name, _, error = why.partition(": ")
            found = f"{error} on {described(name)}; {bad} of {len(readings.renders)} conversations are not rendered"
            return Check("template-renders", "note", found, evidence=(shown(error),))
        if failed := failures(readings):
            found = f"an ordinary conversation renders, but raises on {', on '.join(failed)}"
            return Check("template-renders", "note", found, evidence=tuple(dict.fromkeys(map(raised, failed.values()))))
        rest = f", {bad} unusual ones raise" if bad else ""
        return Check("template-renders", "ok", f"{len(readings.renders) - bad} conversations render{rest}")
    names = ("final/plain/by default", "prompt/by default")
    errors = tuple(dict.fromkeys(error for name in names if (error := readings.error(name))))
    found = f"a question and an answer do not render: {errors[0]}" if errors else "question or answer do not come out"
    seen = tuple(map(shown if stopped(readings) else raised, errors)) or tuple(shown(readings.text(name)) for name in names)
    return Check("template-renders", "problem", found, "an ordinary conversation renders", evidence=seen)


def _final(readings: Readings, situation: Situation) -> Check:
    name = f"final/content/{DEFAULT}"
    form, fields = readings.format, readings.fields_kept - {"content", "text part"}
    if "content" in readings.fields_kept:
        return Check("final-reasoning", "ok", f"kept: {spelled(readings.fields_kept)}")
    if readings.error(name):
        what, seen = "inline reasoning raises an error", (raised(readings.error(name)),)
    else:
        what = "reasoning inside the content is lost"
        if "R" in (came := readings.shape(name)):
            moved = came.find("A") < came.find("R")
            what = "the reasoning is moved behind the answer" if moved else "the reasoning comes out without its markers"
        seen = (lost(readings, inline(form, 1, answer(1)), own(readings.text(name))),)
    switch = next((on for on in ON if kept(readings.shape(f"final/content/{on}"))), None)
    if switch:
        what += f", except with {switch}"
    wanted = f"{form.starts[0]}...{form.ends[0]} in front of the answer in the training text"
    if fields:
        met = situation.uses("content")
        found = f"{what} ({met} records), kept: {spelled(fields)}" if met else f"{what}; kept: {spelled(fields)}"
        fix = f"Hand reasoning over as {spelled(sorted(fields)[:1])}"
        if form.channel is None:  # a turn of several messages cannot be mended
            fix += f". Or {FIX_TEMPLATE[0].lower()}{FIX_TEMPLATE[1:]}"
        return Check("final-reasoning", "problem" if met else "note", found, wanted, fix, seen)
    if situation.facts is not None and not situation.count(WITH_REASONING):
        return Check("final-reasoning", "note", f"{what}, in every field; the data hold none", wanted, FIX_TEMPLATE, seen)
    found = f"{what}, and no message field is read instead: what is trained on is the answer alone"
    return Check("final-reasoning", "problem", found, wanted, FIX_TEMPLATE, seen)


def _earlier(readings: Readings, situation: Situation) -> Check:
    name = "earlier-reasoning"
    gone = [form for form in FORMS if form in readings.fields_kept - readings.earlier_kept]
    if not gone:
        return Check(name, "ok", f"kept in earlier turns: {spelled(readings.earlier_kept)}")
    form = next((form for form in gone if situation.uses(form)), gone[0])
    error = readings.error(f"earlier/{form}")
    seen = (raised(error) if error else _without(readings, form, f"earlier/{form}"),)
    found = f"{'raises an error in' if error else 'dropped from'} every turn but the last ({spelled(gone)})"
    switches = readings.history_switches
    fix = f"Pass {switches[0]} to the template when training texts are rendered" if switches else ""
    met = situation.count(EARLIER_REASONING) if any(map(situation.uses, gone)) else 0
    if met and situation.learns_earlier_turns:
        found += f"; {met} records have reasoning there, and the loss is on those turns, too"
        wanted = "earlier turns that are learned hold their reasoning, or are not learned"
        return Check(name, "problem", found, wanted, fix, seen)
    return Check(name, "note", found, fix=fix, evidence=seen)


def _field(readings: Readings, situation: Situation) -> Check:
    name, read = "reasoning-field", readings.fields_kept & {*FIELDS, *PARTS}
    used = {form: met for form in (*FIELDS, PARTS[0]) if (met := situation.uses(form))}
    unread = [form for form in used if form not in read and not (form == PARTS[0] and PARTS[1] in read)]
    as_list = (f"final/{PARTS[0]}/{DEFAULT}", "parts")
    listed = PARTS[0] in unread and all(printed(readings.text(probe)) for probe in as_list)
    if listed:
        unread.remove(PARTS[0])
    bare = sorted(readings.fields_bare & {*FIELDS, *PARTS})
    others = readings.fields_kept - {*FIELDS}
    told = f"reads {spelled(read)}" if read & {*FIELDS} else f"reads no message field with reasoning, only {spelled(others)}"
    if unread:
        num = sum(used[form] for form in unread)
        found = f"{told}; {num} records have it in {spelled(unread)}"
        fix = f"Rename the field to {sorted(read & {*FIELDS})[0]}" if read & {*FIELDS} else ""
        seen = _without(readings, unread[0], f"final/{unread[0]}/{DEFAULT}")
        return Check(name, "problem", found, "the field that the data use", fix, (seen,))
    if listed:
        return Check(name, "skipped", "content-parts stands for it: a list with a thinking part is printed as it stands")
    if bare:
        told += f"; out of {spelled(bare)} it comes without markers"
    if not read & {*FIELDS} and situation.facts is None:
        return Check(name, "note", told, evidence=(_without(readings, FIELDS[0], f"final/{FIELDS[0]}/{DEFAULT}"),))
    return Check(name, "ok", told)


def _without(readings: Readings, form: str, probe: str) -> str:
    """Spell a turn that has lost its reasoning."""
    if form in ("content", "text part"):
        return lost(readings, inline(readings.format, 1, answer(1)), own(readings.text(probe)))
    return missing(readings, probe, inline(readings.format, 1, ""))


def _doubled(readings: Readings, situation: Situation) -> Check:
    name = "block-doubled"

    def twice(form: str, switch: str = DEFAULT) -> bool:
        came = readings.shape(f"final/{form}/{switch}").partition("A")[0]
        return came != "SRE" and kept(came)

    forms = [form for form in FORMS if form in readings.fields_kept and twice(form)]
    if not forms:
        both = [field for field in FIELDS if readings.shape(f"both/{field}").count("R") > 1]
        rest = f"; given inline and as {spelled(both)} at once, it comes out twice" if both else ""
        return Check(name, "ok", f"one block{rest}")
    once = [form for form in FORMS if form in readings.fields_kept and form not in forms]
    met = sum(map(situation.uses, forms))
    on = readings.on
    cured = on != DEFAULT and not any(twice(form, on) for form in forms)
    records = f" ({met} records)" if met else ""
    found = f"reasoning given as {spelled(forms)}{records} comes out behind another block or end marker"
    fix = f"Hand it over as {spelled(once[:1])}" if once else ""
    fix = f"Render records with reasoning with {on}" if cured else fix
    seen = (added(readings, f"final/{forms[0]}/{DEFAULT}"),)
    lost_now = met or not (once or cured or situation.facts is not None)
    return Check(name, "problem" if lost_now else "note", found, "one block in front of the answer", fix, seen)


def _empty(readings: Readings, situation: Situation) -> Check:
    name, probe = "empty-block", f"final/plain/{DEFAULT}"
    came = readings.shape(probe).partition("A")[0]
    if not came:
        return Check(name, "ok", "a turn without reasoning stays as it is")
    what = "an empty block" if "S" in came else "a lone end marker"
    met = situation.count(WITHOUT_REASONING)
    found = f"{what} is written in front of an answer without reasoning"
    seen = (added(readings, probe),)
    off = [
        switch
        for switch, state in readings.switches.items()
        if state == "closed" and readings.text(f"final/plain/{switch}").startswith(readings.text(f"prompt/{switch}"))
    ]
    fix = f"Render records without reasoning with {off[0]} and keep the loss off the prompt" if off else ""
    if met:
        return Check(name, "problem", f"{found}: {met} records", "no block that the model would learn", fix, seen)
    return Check(name, "note", found, fix=fix, evidence=seen)


def _prefix(readings: Readings, situation: Situation) -> Check:
    name = "prompt-prefix"
    forms = [form for form in FORMS if form in readings.fields_kept]
    holds = {form: next((on for on in ON if readings.prefix.get(f"{form}/{on}")), None) for form in forms}
    broken = [form for form in forms if holds[form] is None]
    met = sum(map(situation.uses, broken))
    if broken:
        where = f"final/{broken[0]}/{readings.on}"
        prompt, text = readings.text(f"prompt/{readings.on}"), readings.text(where)
        records = f" ({met} records)" if met else ""
        found = f"the prompt is not how a training text with reasoning given as {spelled(broken)}{records} begins"
        apart = differ(prompt, text[: len(prompt)])
        seen = tuple(f"{who}: {part}" for who, part in zip(("prompt", "text"), apart, strict=True))
        fine = [form for form in forms if form not in broken]
        fix = f"Hand reasoning over as {spelled(fine[:1])}" if fine else ""
        bad = bool(met) or (not fine and situation.facts is None) or (not fine and bool(situation.count(WITH_REASONING)))
        wanted = "the generation prompt is the beginning of the training text"
        return Check(name, "problem" if bad else "note", found, wanted, fix, seen)
    ids = [f"{form}/{holds[form]}" for form in forms if readings.prefix_ids.get(f"{form}/{holds[form]}") is False]
    if ids:
        form = ids[0].partition("/")[0]
        found = f"the prompt's text begins the training text, its ids do not ({spelled([form])}): a token crosses the border"
        return Check(name, "note", found, evidence=(shown(own(readings.text(f"final/{ids[0]}"))),))
    switch = next((on for on in holds.values() if on not in (None, DEFAULT)), None)
    as_ids = " as text and as ids" if readings.prefix_ids else " as text"
    with_switch = f", with {switch}" if switch else ""
    return Check(name, "ok", f"the prompt begins the training text{as_ids}{with_switch}")
