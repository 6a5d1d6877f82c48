"""From an audit's counts to checks, to facts such as a policy line, and to plots."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from thinkguard.doctor.audit.lengths import LEFT_OUT, TURN_TOKENS, rounded
from thinkguard.doctor.audit.summary import LOSSES, MISSING, UNREADABLE, UNRECOGNISED, Summary, edge_of
from thinkguard.doctor.catalogue import Entry, entries
from thinkguard.doctor.check import Check, Plot, Status
from thinkguard.doctor.judges.tags import EMPTY, LEADING_TEXT, SWITCHED_OFF
from thinkguard.doctor.records import record
from thinkguard.doctor.records.trainers import trainer_of

if TYPE_CHECKING:
    from thinkguard.doctor.audit.plan import AuditOptions

_MOST: Final = 0.5  # from this share of the records on, missing reasoning is a problem: the data are no mix any more
_EXAMPLES: Final = 4
_GRACE_FROM: Final = 512  # a smaller budget has no room for a line's end
_BAR_STARTS: Final = (0, 3, 7, 11)
_PERCENTS: Final = (50, 90, 95, 99)
_PART_OF: Final = {"training": "data", "output": "outputs", "tokenized": "mask"}
_BROKEN: Final = {  # one, and several
    UNREADABLE: ("record cannot be read", "records cannot be read"),
    UNRECOGNISED: ("record of no known shape", "records of no known shape"),
    LOSSES["part"]: ("part of a file cannot be read", "parts of files cannot be read"),
    LOSSES["file"]: ("file cannot be read", "files cannot be read"),
    LOSSES["nothing"]: ("file begins with a byte order mark", "files begin with a byte order mark"),
    MISSING: ("file of dataset_info.json is missing", "files of dataset_info.json are missing"),
}
_RENDER: Final = "whether the chat template reads it is not known: thinkguard doctor PATH --data FILES renders it"
_BY_DESIGN: Final = {
    "content-type": ("no assistant turn", "a list of parts", "null", "null, and only reasoning"),
    "literal-in-data": ("in a system turn", "in a user turn", "in a tool turn"),
    "cut-off": (LEFT_OUT,),
}


def lenient(check: str, kind: str, trainer: str | None) -> bool:
    """Whether such a hit is only a hazard: it does harm only with a template or a trainer that cannot take it."""
    if check == "white-space":
        return trainer != "llamafactory"
    return kind in _BY_DESIGN.get(check, ())


def data_checks(summary: Summary, options: AuditOptions) -> tuple[Check, ...]:
    """Make every check of the parts that the audit met records of."""
    parts = {part for kind, part in _PART_OF.items() if summary.kinds[kind]} | {"data"}
    return tuple(_check(entry, summary, options) for entry in entries().values() if entry.part in parts)


def _check(entry: Entry, summary: Summary, options: AuditOptions) -> Check:
    name = entry.name
    kind = next(kind for kind, part in _PART_OF.items() if part == entry.part)
    num = summary.kinds[kind]
    hit = summary.records_hit[name]
    if name == "file":
        return _file_check(summary)
    if not num:
        return Check(name, "not applicable", "no training records among those that could be read")
    if name == "cut-off" and not hit:
        return _not_cut(summary)
    if entry.part == "mask" and summary.settings.get("unit") != "tokens":
        return Check(name, "could not tell", "rows cannot be read without their tokenizer: give --tokenizer PATH")
    if name == "output-field" and not hit:
        places = [place for place in ("reasoning", "reasoning_content") if summary.facts[record.OUTPUT_IN + place]]
        if len(places) == 2:
            return Check(name, "note", "some outputs have it in `reasoning`, others in `reasoning_content`")
    if name == "field-unread" and not hit and not options.template_known and (fields := _template_decides(summary)):
        return Check(name, "could not tell", fields, fix=_RENDER)
    if not hit:
        return Check(name, "ok", f"none of {num:,} records")
    kinds = sorted(((n, kind) for (check, kind), n in summary.hits.items() if check == name), key=lambda of: (-of[0], of[1]))
    trainer = summary.settings.get("trainer") or None
    base = num - summary.facts[SWITCHED_OFF] if name in ("no-reasoning", "empty-reasoning") else num
    status: Status = "note" if all(lenient(name, kind, trainer) for _, kind in kinds) else "problem"
    count = f"{hit:,} of {base:,} records ({_rate(hit, base)})"
    classes = kinds[0][1] if len(kinds) == 1 else ", ".join(f"{kind} {n:,}" for n, kind in kinds[:6])
    found = f"{count}: {classes}"
    if name in ("no-reasoning", "empty-reasoning"):
        status = "problem" if hit >= _MOST * base and summary.settings.get("format") else "note"
        if status == "note" and name == "no-reasoning":
            found += "; a mix, if that is meant" if summary.settings.get("format") else "; and no markers of any family"
    if name == "cut-off":
        found += f"; limit {summary.settings.get('cutoff'):,} tokens, a template's own estimated at {TURN_TOKENS} per turn"
    evidence = tuple(_example(*example) for _, kind in kinds for example in summary.examples[name, kind][:_EXAMPLES])
    return Check(name, status, found, fix=_fix(name, trainer), evidence=evidence[:_EXAMPLES])


def _fix(name: str, trainer: str | None) -> str:
    """Return a remedy with the trainer's own option name; "" if the catalogue's has to do."""
    if name == "cut-off" and trainer is not None:
        leave = "`thinkguard audit FILES --tokenizer PATH --fix OUT.jsonl`"
        return f"raise {trainer_of(trainer).cutoff_name}, or leave these records out: {leave}"
    return ""


def _template_decides(summary: Summary) -> str:
    """Say which reasoning the trainer hands to the chat template without reading it; "" if there is none."""
    name = summary.settings.get("trainer")
    if not name:
        return ""
    trainer = trainer_of(name)
    left = {place: num for place in trainer.fields if (num := summary.facts[record.IN_FIELD + place])}
    return f"reasoning in fields that {trainer.title} hands to the chat template: {_listed(left)}" if left else ""


def _file_check(summary: Summary) -> Check:
    kinds = {kind: num for (check, kind), num in summary.hits.items() if check == "file"}
    read = f"{_many(summary.records, 'record')} in {_many(len(summary.files), 'file')}"
    if kinds:
        errors = ", ".join(f"{num:,} {_BROKEN.get(kind, (kind, kind))[num != 1]}" for kind, num in sorted(kinds.items()))
        evidence = [_example(*example) for kind in sorted(kinds) for example in summary.examples["file", kind]]
        return Check("file", "problem", f"{errors}, beside {read}", evidence=tuple(evidence[:_EXAMPLES]))
    if not summary.records:
        return Check("file", "problem", "no record in any of the files")
    return Check("file", "ok", read)


def _not_cut(summary: Summary) -> Check:
    limit = summary.settings.get("cutoff")
    if limit is None:
        return Check("cut-off", "not applicable", "no length limit is known: give --trainer or --cutoff-len")
    if summary.settings.get("unit") != "tokens":
        return Check("cut-off", "could not tell", "tokens were not counted: give --tokenizer with a tokenizer.json")
    return Check("cut-off", "ok", f"none of {summary.kinds['training']:,} records is longer than {limit:,} tokens")


def _example(file: str, line: int, excerpt: str) -> str:
    where = f"{file if len(file) <= 60 else '…' + file[-59:]}:{line}" if line else file
    return f"{where}: {excerpt}"[:200]


def _many(num: int, what: str) -> str:
    return f"{num:,} {what}{'s' * (num != 1)}"


def _rate(num: int, base: int) -> str:
    share = 100 * num / base if base else 100.0
    return "under 0.1%" if 0 < share < 0.1 else f"{share:.1f}%"


def data_facts(summary: Summary, options: AuditOptions) -> tuple[tuple[str, str], ...]:
    """Return what is neither good nor bad: what was read, how long it is, and a policy line that fits it."""
    facts = [("records", f"{summary.records:,} in {_many(len(summary.files), 'file')}")]
    if summary.shapes:
        facts.append(("shapes", _listed(summary.shapes)))
    if name := summary.settings.get("format"):
        facts.append(("format", name if options.format is not None else f"{name}, found in the data"))
    if num := summary.kinds["training"]:
        held = summary.facts[record.WITH_REASONING]
        places = {key: num for key, num in summary.facts.items() if key.startswith(record.IN_FIELD)}
        where = _listed({key.removeprefix(record.IN_FIELD): num for key, num in places.items()})
        facts.append(("reasoning", f"in {held:,} of {num:,} records ({_rate(held, num)})" + (f": {where}" if where else "")))
        facts += [(name, f"{summary.facts[name]:,}") for name in (EMPTY, SWITCHED_OFF, LEADING_TEXT) if summary.facts[name]]
    if summary.forms:
        facts.append(("white space", _listed(summary.forms)))
    unit = summary.settings.get("unit", "characters")
    for name in ("reasoning", "answer"):
        if summary.lengths.get(name):
            percentiles = ", ".join(f"p{percent} {summary.percentile(name, percent):,}" for percent in _PERCENTS)
            facts.append((f"{name} {unit}", percentiles))
    if unit == "tokens" and (policy := suggested_policy(summary)):
        facts.append(("policy", json.dumps(policy)))
    return tuple(facts)


def suggested_policy(summary: Summary) -> dict[str, int]:
    """Return policy fields that fit the data: it cuts no reasoning in 99 of 100 records. Empty without any."""
    most, answer = summary.percentile("reasoning", 99), summary.percentile("answer", 95)
    if most is None or answer is None:
        return {}
    budget = rounded(most)
    grace = {"grace_tokens": budget // 16} if budget >= _GRACE_FROM else {}
    return {"max_thinking_tokens": budget, **grace, "reserve_answer_tokens": rounded(answer)}


def _listed(counts: Mapping[str, int], most: int = 6) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = f", and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(f"{name} {num:,}" for name, num in ordered[:most]) + more


def _bar_of(index: int) -> int:
    """Return the first of the bins that one bar shows: a quarter of an octave, as nearly as 16 even bins allow."""
    return (index & ~15) + max(start for start in _BAR_STARTS if start <= index & 15)


def data_plots(summary: Summary, options: AuditOptions) -> tuple[Plot, ...]:
    """Return the histograms of the lengths, with their percentiles and the trainer's limit as marks."""
    plots = []
    unit = summary.settings.get("unit", "characters")
    for name in ("reasoning", "answer"):
        counts = summary.lengths.get(name)
        if not counts:
            continue
        bars = {_bar_of(index): 0 for index in range(min(counts), max(counts) + 1)}
        for index, num in counts.items():
            bars[_bar_of(index)] += num
        marks: list[tuple[float, str]] = [(float(summary.percentile(name, p) or 0), f"p{p}") for p in (50, 90, 99)]
        limit: Any = summary.settings.get("cutoff")
        if limit is not None and unit == "tokens":
            marks.append((float(limit), "length limit"))
        x = tuple(float(edge_of(index)) for index in bars)
        plots.append(Plot(f"{name.capitalize()} length", unit, "records", x, tuple(map(float, bars.values())), tuple(marks)))
    return tuple(plots)
