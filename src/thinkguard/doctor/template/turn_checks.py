"""What the readings of a chat template mean for turns out of the ordinary, for prompts, and for what is sent back."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from thinkguard.doctor.check import Check
from thinkguard.doctor.records.record import HALF_OPEN, LITERAL, NO_CONTENT, PARTS, TOOL_REASONING
from thinkguard.doctor.template.evidence import (
    differences,
    error_excerpt,
    excerpt,
    exchange,
    mark_added,
    mark_lost,
    mark_missing,
    mark_spot,
)
from thinkguard.doctor.template.probes import (
    CALLED,
    CUT,
    FIELDS,
    FORMS,
    RESULT,
    TAIL,
    answer,
    inline,
    question,
    thought,
    turn,
)
from thinkguard.doctor.template.readings import DEFAULT, Readings, kept, printed, spelled
from thinkguard.doctor.template.situation import Situation
from thinkguard.doctor.template.unread import no_result_renders

_COMMON_SWITCH: Final = "enable_thinking"
_JOIN: Final = "Join the text parts of each message to one string"


def turn_checks(readings: Readings, situation: Situation, fired: Collection[str]) -> list[Check]:
    """Make the checks of this file; `fired` names the template's other checks that found something."""
    half, prefill = _half_open(readings, situation, fired), _prefill(readings, fired)
    if half.fired and prefill.fired:
        half = Check(half.name, "skipped", "prefill stands for it: the same turn")
    return [
        *(half, prefill, _none(readings, situation), _parts(readings, situation), _tools(readings, situation)),
        *(_literal(readings, situation, fired), _switch(readings), _history(readings, fired), _anchor(readings)),
    ]


def _half_open(readings: Readings, situation: Situation, fired: Collection[str]) -> Check:
    name, shape = "half-open-turn", readings.shape("half-open")
    num = situation.count(HALF_OPEN)
    if readings.error("half-open"):
        found, evidence = "a start without an end raises an error", error_excerpt(readings.error("half-open"))
    elif shape in ("SR", "SRE"):
        return Check(name, "ok", "a turn with a start and no end stays as it is")
    else:
        what = "an empty block or an end is put in front of it" if "R" in shape else "its reasoning is lost"
        found, evidence = f"of a turn with a start and no end, {what}", mark_added(readings, "half-open")
    if num:
        return Check(name, "problem", f"{found}: {num} records", "no such records", "", (evidence,))
    if "empty-block" in fired:
        return Check(name, "skipped", "empty-block stands for it: the same block is written here")
    return Check(name, "note", found, evidence=(evidence,))


def _prefill(readings: Readings, fired: Collection[str]) -> Check:
    name = "prefill"
    text = readings.text("prefill")
    if error := readings.error("prefill"):
        return Check(name, "note", "a turn to be continued raises an error", evidence=(error_excerpt(error),))
    begun = readings.format.open_text + thought(1)
    front, found, _ = text.rpartition(CUT)
    if found and front.endswith(begun):
        alone = re.sub(r"\s", "", front.partition(question(1))[2])
        before = readings.shape("prefill").partition("S")[0]
        if not before and alone.count(re.sub(r"\s", "", readings.format.starts[0])) == 1:
            return Check(name, "ok", "a turn that is to be continued keeps its start")
        cause = next((other for other in ("empty-block", "half-open-turn") if other in fired), None)
        return Check(name, "skipped", f"{cause or 'half-open-turn'} stands for it")
    if "final-reasoning" in fired and not found:
        return Check(name, "skipped", "final-reasoning stands for it")
    evidence = (mark_missing(readings, "prefill", begun),)
    return Check(name, "note", "of a turn that is to be continued, the start or the reasoning is lost", evidence=evidence)


def _none(readings: Readings, situation: Situation) -> Check:
    name = "content-none"
    empty = readings.called("call/empty")
    if error := readings.error(empty):
        return Check(name, "could not tell", f"no tool call renders: {error[:160]}")
    arguments = empty.rpartition("/")[2]
    faults: list[str] = []
    evidence: list[str] = []
    for kind, content in (("none", "null"), ("absent", "left out")):
        probe = f"call/{kind}/{arguments}"
        if error := readings.error(probe):
            faults.append(f"content that is {content} beside a tool call raises an error")
            evidence.append(error_excerpt(error))
        elif (spot := _none_printed(readings.text(probe), readings.text(empty))) is not None:
            faults.append(f"content that is {content} is printed as {spot!r}")
            evidence.append(mark_spot(exchange(readings.text(probe)), spot))
    if not faults:
        return Check(name, "ok", "null content beside a tool call renders like empty content")
    found = "; ".join(faults)
    if num := situation.count(NO_CONTENT):
        return Check(name, "problem", f"{found}: {num} records", "nothing in place of no content", "", tuple(evidence))
    return Check(name, "note", found, evidence=tuple(dict.fromkeys(evidence)))


def _none_printed(text: str, empty: str) -> str | None:
    return next((word for word in ("None", "null", "undefined") if text.count(word) > empty.count(word)), None)


def _parts(readings: Readings, situation: Situation) -> Check:
    name = "content-parts"
    faults: dict[str, str] = {}
    for probe, word, who in (("parts", answer(1), "an assistant's"), ("user parts", question(1), "a user's")):
        text = readings.text(probe)
        if error := readings.error(probe):
            faults[f"{who} content as parts raises an error"] = error_excerpt(error)
        elif word not in text:
            faults[f"{who} content as parts is lost"] = excerpt(text[-160:])
        elif printed(text):
            faults[f"{who} content as parts is printed as a list"] = excerpt(exchange(text))
    if not faults and "content" in readings.fields_kept and "text part" not in readings.fields_kept:
        faults["reasoning inline in a text part is lost"] = excerpt(exchange(readings.text(f"final/text part/{DEFAULT}")))
    if not faults:
        return Check(name, "ok", "content as a list of parts renders like a string")
    found, evidence = "; ".join(faults), tuple(dict.fromkeys(faults.values()))
    if num := situation.count(PARTS):
        beside = spelled(readings.fields_kept & {"content", *FIELDS}) or "inline"
        fix = f"{_JOIN}, and hand its thinking over as {beside}" if situation.uses("thinking part") else ""
        return Check(name, "problem", f"{found}: {num} records", "the text of the parts", fix, evidence)
    return Check(name, "note", found, evidence=evidence)


def _tools(readings: Readings, situation: Situation) -> Check:
    name = "tool-turn"
    forms = [form for form in FORMS if form in readings.fields_kept]
    if not forms:
        return Check(name, "skipped", "final-reasoning stands for it")
    probes = {form: (readings.called(f"tool/{form}"), readings.called(f"tool loop/{form}")) for form in forms}
    failed = [readings.error(alone) for alone, _ in probes.values()]
    if all(failed):
        return Check(name, "could not tell", f"no turn with a tool call renders: {failed[0][:160]}")
    no_result = no_result_renders(readings)
    if no_result:
        probes = {form: (alone, alone) for form, (alone, _) in probes.items()}
    gone = [form for form, names in probes.items() if not all(_in_front(readings, probe) for probe in names)]
    if not gone and no_result:
        found = f"template-renders stands for it: nothing renders behind a tool's answer: {no_result[:160]}"
        return Check(name, "could not tell", found)
    if not gone:
        return Check(name, "ok", f"kept in turns with tool calls: {spelled(forms)}")
    worst = next((probe for probe in probes[gone[0]] if not _in_front(readings, probe)), "")
    error, moved = readings.error(worst), kept(readings.shape(worst))
    what = "raises an error" if error else "moved behind the call" if moved else "lost"
    if error:
        evidence = (error_excerpt(error),)
    elif moved:
        evidence = (mark_spot(exchange(readings.text(worst)), thought(1)),)
    else:
        evidence = (mark_missing(readings, worst, inline(readings.format, 1, "")),)
    all_of_it = "" if len(gone) < len(forms) else ", in every form that the final turn keeps"
    found = f"{what} in a turn with a tool call ({spelled(gone)}){all_of_it}"
    num = situation.count(TOOL_REASONING) if any(map(situation.uses, gone)) else 0
    if num:
        return Check(name, "problem", f"{found}: {num} records", "the reasoning in front of the call", "", evidence)
    return Check(name, "note", found, evidence=evidence)


def _in_front(readings: Readings, probe: str) -> bool:
    """Whether the reasoning of a turn with a tool call comes out, in front of the call."""
    text = exchange(readings.text(probe)).partition(RESULT)[0]
    call = text.rfind(CALLED)
    return kept(readings.shape(probe)) and not -1 < call < text.find(thought(1))


def _literal(readings: Readings, situation: Situation, fired: Collection[str]) -> Check:
    name = "literal-marker"
    forms = [form for form in ("content", *FIELDS) if form in readings.fields_kept]
    faults: dict[str, str] = {}
    for kind, marker in (("end", readings.format.ends[0]), ("start", readings.format.starts[0])):
        for form in ("plain", *forms):
            probe = f"literal/{kind}/{form}"
            shape, text = readings.shape(probe), exchange(readings.text(probe))
            if error := readings.error(probe):
                faults[f"a {marker!r} in an answer raises an error"] = error_excerpt(error)
            elif "A" not in shape or "T" not in shape or (form != "plain" and "R" not in shape):
                quoted = turn(readings.format, form if form == "content" else "plain", 1, f" {marker} {TAIL}")["content"]
                faults.setdefault(f"a {marker!r} in an answer deletes text", mark_lost(readings, quoted, text))
            elif re.search("S[^E]*A[^T]*E", shape):
                faults.setdefault(f"a {marker!r} in an answer makes reasoning of it", excerpt(text))
        probe = f"literal/{kind}/user"
        if error := readings.error(probe):
            faults[f"a {marker!r} in a question raises an error"] = error_excerpt(error)
        elif TAIL not in readings.text(probe) or question(1) not in readings.text(probe):
            faults[f"a {marker!r} in a question deletes text"] = excerpt(readings.text(probe))
    if not faults:
        return Check(name, "ok", "markers that are only quoted change nothing")
    end_in_answer = f"a {readings.format.ends[0]!r} in an answer"
    if "final-reasoning" in fired and all(fault.startswith(end_in_answer) for fault in faults):
        return Check(name, "skipped", "final-reasoning stands for it: the content is cut at the end marker")
    found, evidence = "; ".join(faults), tuple(dict.fromkeys(faults.values()))[:3]
    if num := situation.count(LITERAL):
        return Check(name, "problem", f"{found}: {num} records", "quoted markers stay text", "", evidence)
    return Check(name, "note", found, evidence=evidence)


def _switch(readings: Readings) -> Check:
    name, switches = "thinking-switch", readings.switches
    if not switches:
        return Check(name, "not applicable", "no switch has an effect on the prompt")
    states = {"open": "opens the block", "closed": "closes the block", "none": "changes the prompt"}
    found = ", ".join(f"{switch} {states[state]}" for switch, state in switches.items())
    if any(switch.startswith(_COMMON_SWITCH) for switch in switches):
        return Check(name, "ok", found)
    names = sorted({switch.partition("=")[0] for switch in switches})
    fix = f"Pass chat_template_kwargs={{{names[0]!r}: ...}}"
    return Check(name, "note", f"{found}; {_COMMON_SWITCH} is ignored without a word", fix=fix)


def _history(readings: Readings, fired: Collection[str]) -> Check:
    name = "history"
    if readings.prompt_state == "closed":
        return Check(name, "not applicable", "by default the prompt closes the block: nothing is generated in it")
    forms = [form for form in ("content", *FIELDS) if form in readings.earlier_kept]
    if not forms:
        return Check(name, "skipped", "earlier-reasoning stands for it")
    if "prompt-prefix" in fired:
        return Check(name, "skipped", "prompt-prefix stands for it: turns begin otherwise than prompts end")
    prompt = readings.text(f"prompt/{DEFAULT}")
    generated = thought(1) + readings.format.close_text + answer(1)
    if readings.prompt_state == "none":
        generated = readings.format.open_text + generated
    else:
        generated = readings.format.open_text.removeprefix(readings.opening()) + generated
    wrong = [form for form in forms if not readings.text(f"history/{form}").startswith(prompt + generated)]
    if len(wrong) < len(forms):
        fine = [form for form in forms if form not in wrong]
        return Check(name, "ok", f"a later prompt holds the turn as it was generated, sent back as {spelled(fine)}")
    later = readings.text(f"history/{wrong[0]}")
    shape = readings.shape(f"history/{wrong[0]}")
    what = "holds it with other white space or markers than it was generated with" if kept(shape) else "lacks it"
    found = f"training texts keep the reasoning of earlier turns, but a later prompt {what} ({spelled(wrong)})"
    excerpts = differences(prompt + generated, later[: len(prompt + generated)])
    evidence = tuple(f"{who}: {part}" for who, part in zip(("generated", "later"), excerpts, strict=True))
    return Check(name, "note", found, evidence=evidence)


def _anchor(readings: Readings) -> Check:
    name = "reward-anchor"
    if readings.prompt_state != "open":
        return Check(name, "ok", "a completion begins with the start marker")
    found = f"the prompt ends in {readings.opening()!r}: no completion begins with {readings.format.starts[0]}"
    evidence = mark_spot(exchange(readings.text(f"prompt/{DEFAULT}")), readings.opening())
    return Check(name, "note", found, evidence=(evidence,))
