"""Mend a chat template that loses the reasoning of training texts, and show by rendering that it is mended."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from thinkguard.doctor.template.evidence import own
from thinkguard.doctor.template.mended import Scope, Strategy, written
from thinkguard.doctor.template.probes import FIELDS, answer, label, probes, thought
from thinkguard.doctor.template.readings import DEFAULT, Readings, kept, printed, read_template, shape, spelled
from thinkguard.doctor.template.sandbox import Job, Renderer
from thinkguard.doctor.template.unread import described, stopped
from thinkguard.errors import InputError, UnsupportedError
from thinkguard.formats.fit import any_of
from thinkguard.formats.renders import SWITCHES

_WANTED = ("content", *FIELDS)


def fix_template(renderer: Renderer, readings: Readings, out: Path) -> list[str]:
    """Write a template whose training texts keep their reasoning, and whose prompts are the same; return what was done.

    Several ways are tried; the first that every probe accepts is written. InputError if the file exists or if nothing is
    lost; UnsupportedError, with what was tried and seen, if no way is accepted.
    """
    if out.exists():
        raise InputError(f"{out} exists: a template is written to a new file; name another one, or move this one away")
    if not out.parent.is_dir():
        raise InputError(f"{out}: the folder {out.parent} does not exist")
    if not readings.works:
        why = readings.errors[0] if readings.errors else "a question and an answer do not come out"
        raise UnsupportedError(f"this chat template cannot be mended, because it does not render: {why}")
    stuck, _, error = stopped(readings).partition(": ")
    if stuck.startswith(("final", "both", "earlier")):  # what is to be mended; no other body would get through it
        raise UnsupportedError(f"this chat template cannot be mended, because it {error} on {described(stuck)}")
    if not _lacking(readings):
        raise InputError("nothing to mend: this chat template keeps the reasoning of every turn, inline and in every field")
    if readings.format.channel is not None:
        raise UnsupportedError(
            f"format {readings.format.name!r} writes a turn as several messages, and reasoning inside the content cannot be "
            f"told from an answer there; hand it over as {spelled(readings.fields_kept) or 'tokens'}"
        )
    tried: list[str] = []
    chosen: tuple[str, Readings, Strategy] | None = None
    for strategy in _strategies(readings):
        source = written(readings.source, readings.format, strategy)
        wrong = _wrong_turns(renderer, readings, source)
        if wrong is None:
            after = read_template(renderer, source, readings.format, bos=readings.bos, eos=readings.eos)
            wrong = _worse(readings, after)
        if wrong is not None:
            tried.append(f"{strategy}: {wrong}")
            continue
        chosen = chosen or (source, after, strategy)
        if not _lost_beside_calls(after):
            chosen = (source, after, strategy)
            break
    if chosen is None:
        raise UnsupportedError("this chat template cannot be mended. Tried: " + "; ".join(tried))
    source, after, strategy = chosen
    num = _compare_prompts(renderer, readings, source)
    with out.open("x", encoding="utf-8", newline="") as file:
        file.write(source)
    return _told(readings, after, strategy, num, out)


def _strategies(readings: Readings) -> Iterator[Strategy]:
    """The smallest change first."""
    unread = tuple(field for field in FIELDS if not _whole(readings.shape(f"final/{field}/{DEFAULT}")))
    read = next((field for field in FIELDS if field not in unread), "")
    drop = _inserted(readings)
    for switch in readings.history_switches:
        yield Strategy("none", unread, read, switch=switch)
    hides: tuple[Scope, ...] = ("none", "earlier", "all")
    for hide in hides:
        yield Strategy(hide, unread, read)
        if drop:
            yield Strategy(hide, unread, read, drop)


def _inserted(readings: Readings) -> str:
    """What the template puts in front of an answer without reasoning, from its first marker on."""
    for probe in (f"final/plain/{DEFAULT}", "earlier/plain"):
        text = own(readings.text(probe)).partition(answer(1))[0]
        match = re.search(any_of((*readings.format.starts, *readings.format.ends)), text)
        if match:
            return text[match.start() :]
    return ""


def _whole(shown: str) -> bool:
    """Whether a turn came out as one block with the answer behind it, and nothing else."""
    return shown.startswith("SREA")


def _lacking(readings: Readings) -> list[str]:
    """Which turns lose reasoning or get another block, in words."""
    final = [form for form in _WANTED if not _whole(readings.shape(f"final/{form}/{DEFAULT}"))]
    earlier = [form for form in _WANTED if not _whole(readings.shape(f"earlier/{form}"))]
    told = [f"the final turn ({spelled(final)})"] if final else []
    return told + ([f"earlier turns ({spelled(earlier)})"] if earlier else [])


def _wrong_turns(renderer: Renderer, readings: Readings, source: str) -> str | None:
    """Return which turn a mended template writes otherwise than as one block with the answer behind it."""
    format = readings.format
    jobs = probes(format, {"bos_token": readings.bos, "eos_token": readings.eos, **readings.tools})
    names = [name for form in _WANTED for name in (f"final/{form}/{DEFAULT}", f"earlier/{form}")]
    for name, made in zip(names, renderer.render(source, [jobs[name] for name in names]), strict=True):
        came = shape(made.text or "", format)
        if not _whole(came):
            return f"{name}: {made.error or came or 'nothing'} instead of SREA"
        if re.search(any_of(format.answer_starts), own(made.text or "").partition(thought(1))[0]):
            return f"{name}: the reasoning stands behind the answer's own marker"
    return None


def _worse(before: Readings, after: Readings) -> str | None:
    """Return what a mended template does worse than the old one."""
    for name, made in before.renders.items():
        if made.text is None:
            continue
        now = after.renders[name]
        if now.text is None:
            return f"{name} raises {now.error}"
        if "/plain" in name and made.text != now.text and not name.startswith("literal"):
            return f"{name} is written differently"
        if printed(made.text):
            continue
        if name.startswith("call") and made.text != now.text and not name.startswith("call/none"):
            return f"{name} is written differently"
        if name.startswith("tool") and kept(before.shape(name)) and not kept(after.shape(name)):
            return f"{name} loses its reasoning"
        if name.startswith("literal") and (gone := {*before.shape(name)} & {*"RAT"} - {*after.shape(name)}):
            return f"{name} loses text ({', '.join(sorted(gone))})"
        if bool(made.generation) != bool(now.generation):
            return f"{name}: the marks of {{% generation %}} are lost"
        if made.generation and "/content" in name and not _learned(now.text, now.generation):
            return f"{name}: {{% generation %}} does not mark the reasoning"
    for key, held in before.prefix.items():
        form, _, switch = key.partition("/")
        closed = form != "plain" and before.state(switch) == "closed"  # never the beginning of a text with reasoning
        if held and not closed and not after.prefix.get(key):
            return f"the prompt no longer begins the training text ({key})"
    return None


def _learned(text: str, spans: tuple[tuple[int, int], ...]) -> bool:
    marked = "".join(text[start:end] for start, end in spans)
    return thought(1) in marked or thought(1) not in text


def _lost_beside_calls(readings: Readings) -> list[str]:
    """The forms in which a turn with a tool call loses its reasoning."""
    probes = ("tool", "tool loop")
    called = {form: [readings.shape(readings.called(f"{probe}/{form}")) for probe in probes] for form in _WANTED}
    return [form for form, shapes in called.items() if not all(map(kept, shapes))]


def _compare_prompts(renderer: Renderer, readings: Readings, source: str) -> int:
    """Compare prompts after every conversation, with every switch, tools and a system message; return how many.

    They are written by the old body, so that a difference is a mistake of this module: UnsupportedError.
    """
    tokens = {"bos_token": readings.bos, "eos_token": readings.eos, **readings.tools}
    system = {"role": "system", "content": "Be brief."}
    made = probes(readings.format, tokens)
    asked: list[Job] = []
    for name, job in made.items():
        if name.endswith(DEFAULT) or not name.startswith(("prompt", "final", "earlier")):
            asked.append(Job(job.messages, True, job.kwargs))
        if name.startswith(("history", "tool loop")):
            asked.append(Job([system, *job.messages], True, job.kwargs))
    asked += [Job(made["history/content"].messages, True, {**tokens, **switch}) for switch in SWITCHES[1:]]
    asked += [made[f"prompt/{label(switch)}"] for switch in SWITCHES[1:]]
    was, now = renderer.render(readings.source, asked), renderer.render(source, asked)
    for job, old, new in zip(asked, was, now, strict=True):
        if (old.text, old.error, old.generation) != (new.text, new.error, new.generation):
            switch = label({key: value for key, value in job.kwargs.items() if key not in tokens})
            raise UnsupportedError(f"the mended template writes another prompt ({switch}): {new.error or new.text}")
    return len(asked)


def _told(before: Readings, after: Readings, strategy: Strategy, num: int, out: Path) -> list[str]:
    told = [f"{out}: {strategy}"]
    told += [f"kept in training texts now: {where}" for where in _lacking(before)]
    told.append(f"prompts are the same byte for byte, compared after {num} conversations")
    if not kept(before.shape("history/content")):
        told.append(
            "prompts still leave out the reasoning of earlier turns, as before, and training texts of several turns now "
            "hold it: make one record per turn where the two should agree"
        )
    if lost := _lost_beside_calls(after):
        told.append(f"not mended: reasoning in a turn with a tool call ({spelled(lost)})")
    broken = [form for form in _WANTED if not any(after.prefix.get(f"{form}/{on}") for on in (DEFAULT, after.on))]
    if broken:
        told.append(f"not mended: the prompt is not the beginning of the training text ({spelled(broken)})")
    return told
