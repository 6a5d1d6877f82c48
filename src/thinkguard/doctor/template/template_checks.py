"""What the readings of a chat template mean for training: what the learned text loses, doubles or inserts."""

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
from thinkguard.doctor.template.evidence import (
    differences,
    error_excerpt,
    excerpt,
    exchange,
    mark_added,
    mark_lost,
    mark_missing,
)
from thinkguard.doctor.template.probes import FIELDS, FORMS, ON, PARTS, answer, inline
from thinkguard.doctor.template.readings import DEFAULT, Readings, kept, printed, spelled
from thinkguard.doctor.template.situation import Situation
from thinkguard.doctor.template.turn_checks import turn_checks
from thinkguard.doctor.template.unread import description, failures, first_stopped, unread

FIX_TEMPLATE: Final = "Write a template that keeps it: thinkguard doctor PATH --fix-template OUT.jinja, and train with that."


def template_checks(readings: Readings, facts: Counter[str] | None, trainer: str | None) -> tuple[Check, ...]:
    """Make every check of the template's part but `template-differs`.

    `facts` are the counts of the data, if there are any: a hazard that records meet is a problem, not a note. A problem with
    training texts is only a note if the trainer renders them with templates of its own.
    """
    situation = Situation(facts, trainer)
    checks = _checks(readings, situation)
    if situation.misspelled:
        respelled = _checks(readings, situation.respelled())
        checks = [situation.follows(check, other) for check, other in zip(checks, respelled, strict=True)]
    return tuple(map(situation.for_trainer, checks))


def _checks(readings: Readings, situation: Situation) -> list[Check]:
    """Make the checks, in the catalogue's order."""
    names = [name for name, entry in entries().items() if entry.part == "template" and name != "template-differs"]
    first = _renders(readings)
    if not readings.works:
        why = "no chat template" if not readings.source else "template-renders stands for it"
        return [first, *(Check(name, "skipped", why) for name in names if name != first.name)]
    final = unread(readings, _final(readings, situation))
    checks = [first, final]
    if final.fired and not readings.fields_kept:
        checks += [Check(name, "skipped", "final-reasoning stands for it") for name in names if name in _FOLLOWS]
    else:
        checks += [_earlier(readings, situation), _field(readings, situation), _doubled(readings, situation)]
        checks += [_prefix(readings, situation)]
    checks.append(_empty(readings, situation))
    checks = [unread(readings, check) for check in checks]
    checks += turn_checks(readings, situation, {check.name for check in checks if check.fired})
    checks = [unread(readings, check) for check in checks]
    by_name = {check.name: check for check in reversed(checks)}
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
        return Check("template-renders", "note", found, evidence=(error_excerpt(error),) if error else ())
    if readings.works:
        bad = sum(1 for render in readings.renders.values() if render.text is None)
        if why := first_stopped(readings):
            name, _, error = why.partition(": ")
            found = f"{error} on {description(name)}; {bad} of {len(readings.renders)} conversations are not rendered"
            return Check("template-renders", "note", found, evidence=(excerpt(error),))
        if failing := failures(readings):
            found = f"an ordinary conversation renders, but raises on {', on '.join(failing)}"
            evidence = tuple(dict.fromkeys(map(error_excerpt, failing.values())))
            return Check("template-renders", "note", found, evidence=evidence)
        rest = f", {bad} unusual ones raise" if bad else ""
        return Check("template-renders", "ok", f"{len(readings.renders) - bad} conversations render{rest}")
    names = ("final/plain/by default", "prompt/by default")
    errors = tuple(dict.fromkeys(error for name in names if (error := readings.error(name))))
    found = f"a question and an answer do not render: {errors[0]}" if errors else "question or answer do not come out"
    evidence = tuple(map(excerpt if first_stopped(readings) else error_excerpt, errors))
    evidence = evidence or tuple(excerpt(readings.text(name)) for name in names)
    return Check("template-renders", "problem", found, "an ordinary conversation renders", evidence=evidence)


def _final(readings: Readings, situation: Situation) -> Check:
    name = f"final/content/{DEFAULT}"
    form, fields = readings.format, readings.fields_kept - {"content", "text part"}
    if "content" in readings.fields_kept:
        return Check("final-reasoning", "ok", f"kept: {spelled(readings.fields_kept)}")
    if readings.error(name):
        what, evidence = "inline reasoning raises an error", (error_excerpt(readings.error(name)),)
    else:
        what = "reasoning inside the content is lost"
        if "R" in (shape := readings.shape(name)):
            moved = shape.find("A") < shape.find("R")
            what = "the reasoning is moved behind the answer" if moved else "the reasoning comes out without its markers"
        evidence = (mark_lost(readings, inline(form, 1, answer(1)), exchange(readings.text(name))),)
    switch = next((on for on in ON if kept(readings.shape(f"final/content/{on}"))), None)
    if switch:
        what += f", except with {switch}"
    wanted = f"{form.starts[0]}...{form.ends[0]} in front of the answer in the training text"
    if fields:
        num = situation.uses("content")
        found = f"{what} ({num} records), kept: {spelled(fields)}" if num else f"{what}; kept: {spelled(fields)}"
        fix = f"Hand reasoning over as {spelled(sorted(fields)[:1])}"
        if form.channel is None:  # a turn of several messages cannot be mended
            fix += f". Or {FIX_TEMPLATE[0].lower()}{FIX_TEMPLATE[1:]}"
        return Check("final-reasoning", "problem" if num else "note", found, wanted, fix, evidence)
    if situation.facts is not None and not situation.count(WITH_REASONING):
        found = f"{what}, in every field; the data hold none"
        return Check("final-reasoning", "note", found, wanted, FIX_TEMPLATE, evidence)
    found = f"{what}, and no message field is read instead: what is trained on is the answer alone"
    return Check("final-reasoning", "problem", found, wanted, FIX_TEMPLATE, evidence)


def _earlier(readings: Readings, situation: Situation) -> Check:
    name = "earlier-reasoning"
    gone = [form for form in FORMS if form in readings.fields_kept - readings.earlier_kept]
    if not gone:
        return Check(name, "ok", f"kept in earlier turns: {spelled(readings.earlier_kept)}")
    form = next((form for form in gone if situation.uses(form)), gone[0])
    error = readings.error(f"earlier/{form}")
    evidence = (error_excerpt(error) if error else _without(readings, form, f"earlier/{form}"),)
    found = f"{'raises an error in' if error else 'dropped from'} every turn but the last ({spelled(gone)})"
    switches = readings.history_switches
    fix = f"Pass {switches[0]} to the template when training texts are rendered" if switches else ""
    num = situation.count(EARLIER_REASONING) if any(map(situation.uses, gone)) else 0
    if num and situation.learns_earlier_turns:
        found += f"; {num} records have reasoning there, and the loss is on those turns, too"
        wanted = "earlier turns that are learned hold their reasoning, or are not learned"
        return Check(name, "problem", found, wanted, fix, evidence)
    return Check(name, "note", found, fix=fix, evidence=evidence)


def _field(readings: Readings, situation: Situation) -> Check:
    name, read = "reasoning-field", readings.fields_kept & {*FIELDS, *PARTS}
    used = {form: count for form in (*FIELDS, PARTS[0]) if (count := situation.uses(form))}
    unread = [form for form in used if form not in read and not (form == PARTS[0] and PARTS[1] in read)]
    as_list = (f"final/{PARTS[0]}/{DEFAULT}", "parts")
    listed = PARTS[0] in unread and all(printed(readings.text(probe)) for probe in as_list)
    if listed:
        unread.remove(PARTS[0])
    bare = sorted(readings.fields_bare & {*FIELDS, *PARTS})
    others = readings.fields_kept - {*FIELDS}
    summary = f"reads no message field with reasoning, only {spelled(others)}"
    if read & {*FIELDS}:
        summary = f"reads {spelled(read)}"
    if unread:
        num = sum(used[form] for form in unread)
        found = f"{summary}; {num} records have it in {spelled(unread)}"
        fix = f"Rename the field to {sorted(read & {*FIELDS})[0]}" if read & {*FIELDS} else ""
        evidence = _without(readings, unread[0], f"final/{unread[0]}/{DEFAULT}")
        return Check(name, "problem", found, "the field that the data use", fix, (evidence,))
    if listed:
        return Check(name, "skipped", "content-parts stands for it: a list with a thinking part is printed as it stands")
    if bare:
        summary += f"; out of {spelled(bare)} it comes without markers"
    if not read & {*FIELDS} and situation.facts is None:
        return Check(name, "note", summary, evidence=(_without(readings, FIELDS[0], f"final/{FIELDS[0]}/{DEFAULT}"),))
    return Check(name, "ok", summary)


def _without(readings: Readings, form: str, probe: str) -> str:
    """Spell a turn that has lost its reasoning."""
    if form in ("content", "text part"):
        return mark_lost(readings, inline(readings.format, 1, answer(1)), exchange(readings.text(probe)))
    return mark_missing(readings, probe, inline(readings.format, 1, ""))


def _doubled(readings: Readings, situation: Situation) -> Check:
    name = "block-doubled"

    def twice(form: str, switch: str = DEFAULT) -> bool:
        shape = readings.shape(f"final/{form}/{switch}").partition("A")[0]
        return shape != "SRE" and kept(shape)

    forms = [form for form in FORMS if form in readings.fields_kept and twice(form)]
    if not forms:
        both = [field for field in FIELDS if readings.shape(f"both/{field}").count("R") > 1]
        rest = f"; given inline and as {spelled(both)} at once, it comes out twice" if both else ""
        return Check(name, "ok", f"one block{rest}")
    once = [form for form in FORMS if form in readings.fields_kept and form not in forms]
    num = sum(map(situation.uses, forms))
    on = readings.on
    cured = on != DEFAULT and not any(twice(form, on) for form in forms)
    records = f" ({num} records)" if num else ""
    found = f"reasoning given as {spelled(forms)}{records} comes out behind another block or end marker"
    fix = f"Hand it over as {spelled(once[:1])}" if once else ""
    fix = f"Render records with reasoning with {on}" if cured else fix
    evidence = (mark_added(readings, f"final/{forms[0]}/{DEFAULT}"),)
    lost_now = num or not (once or cured or situation.facts is not None)
    return Check(name, "problem" if lost_now else "note", found, "one block in front of the answer", fix, evidence)


def _empty(readings: Readings, situation: Situation) -> Check:
    name, probe = "empty-block", f"final/plain/{DEFAULT}"
    shape = readings.shape(probe).partition("A")[0]
    if not shape:
        return Check(name, "ok", "a turn without reasoning stays as it is")
    what = "an empty block" if "S" in shape else "a lone end marker"
    num = situation.count(WITHOUT_REASONING)
    found = f"{what} is written in front of an answer without reasoning"
    evidence = (mark_added(readings, probe),)
    off = [
        switch
        for switch, state in readings.switches.items()
        if state == "closed" and readings.text(f"final/plain/{switch}").startswith(readings.text(f"prompt/{switch}"))
    ]
    fix = f"Render records without reasoning with {off[0]} and keep the loss off the prompt" if off else ""
    if num:
        return Check(name, "problem", f"{found}: {num} records", "no block that the model would learn", fix, evidence)
    return Check(name, "note", found, fix=fix, evidence=evidence)


def _prefix(readings: Readings, situation: Situation) -> Check:
    name = "prompt-prefix"
    forms = [form for form in FORMS if form in readings.fields_kept]
    holds = {form: next((on for on in ON if readings.prefix.get(f"{form}/{on}")), None) for form in forms}
    broken = [form for form in forms if holds[form] is None]
    num = sum(map(situation.uses, broken))
    if broken:
        where = f"final/{broken[0]}/{readings.on}"
        prompt, text = readings.text(f"prompt/{readings.on}"), readings.text(where)
        records = f" ({num} records)" if num else ""
        found = f"the prompt is not how a training text with reasoning given as {spelled(broken)}{records} begins"
        excerpts = differences(prompt, text[: len(prompt)])
        evidence = tuple(f"{who}: {part}" for who, part in zip(("prompt", "text"), excerpts, strict=True))
        fine = [form for form in forms if form not in broken]
        fix = f"Hand reasoning over as {spelled(fine[:1])}" if fine else ""
        bad = bool(num) or (not fine and situation.facts is None) or (not fine and bool(situation.count(WITH_REASONING)))
        wanted = "the generation prompt is the beginning of the training text"
        return Check(name, "problem" if bad else "note", found, wanted, fix, evidence)
    ids = [f"{form}/{holds[form]}" for form in forms if readings.prefix_ids.get(f"{form}/{holds[form]}") is False]
    if ids:
        form = ids[0].partition("/")[0]
        found = f"the prompt's text begins the training text, its ids do not ({spelled([form])}): a token crosses the border"
        return Check(name, "note", found, evidence=(excerpt(exchange(readings.text(f"final/{ids[0]}"))),))
    switch = next((on for on in holds.values() if on not in (None, DEFAULT)), None)
    as_ids = " as text and as ids" if readings.prefix_ids else " as text"
    with_switch = f", with {switch}" if switch else ""
    return Check(name, "ok", f"the prompt begins the training text{as_ids}{with_switch}")
