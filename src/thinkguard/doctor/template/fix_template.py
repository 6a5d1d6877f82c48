"""Mend a chat template that loses the reasoning of training texts, and show by rendering that it is mended."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from thinkguard.doctor.template.evidence import exchange
from thinkguard.doctor.template.mended import Scope, Strategy, mended_source
from thinkguard.doctor.template.probes import FIELDS, answer, label, probes, thought
from thinkguard.doctor.template.readings import DEFAULT, Readings, kept, printed, read_template, shape, spelled
from thinkguard.doctor.template.sandbox import Job, Renderer
from thinkguard.doctor.template.unread import description, first_stopped
from thinkguard.errors import InputError, UnsupportedError
from thinkguard.formats.fit import any_of
from thinkguard.formats.renders import SWITCHES

_FORMS = ("content", *FIELDS)


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
    probe, _, error = first_stopped(readings).partition(": ")
    if probe.startswith(("final", "both", "earlier")):  # the conversations to mend: a mended template stops there too
        raise UnsupportedError(f"this chat template cannot be mended, because it {error} on {description(probe)}")
    if not _losses(readings):
        raise InputError("nothing to mend: this chat template keeps the reasoning of every turn, inline and in every field")
    if readings.format.channel is not None:
        raise UnsupportedError(
            f"format {readings.format.name!r} writes a turn as several messages, and reasoning inside the content cannot be "
            f"told from an answer there; hand it over as {spelled(readings.fields_kept) or 'tokens'}"
        )
    attempts: list[str] = []
    choice: tuple[str, Readings, Strategy] | None = None
    for strategy in _strategies(readings):
        source = mended_source(readings.source, readings.format, strategy)
        wrong = _wrong_turns(renderer, readings, source)
        if wrong is None:
            after = read_template(renderer, source, readings.format, bos=readings.bos, eos=readings.eos)
            wrong = _worse(readings, after)
        if wrong is not None:
            attempts.append(f"{strategy}: {wrong}")
            continue
        choice = choice or (source, after, strategy)
        if not _lost_beside_calls(after):
            choice = (source, after, strategy)
            break
    if choice is None:
        raise UnsupportedError("this chat template cannot be mended. Tried: " + "; ".join(attempts))
    source, after, strategy = choice
    num = _compare_prompts(renderer, readings, source)
    with out.open("x", encoding="utf-8", newline="") as file:
        file.write(source)
    return _summary(readings, after, strategy, num, out)


def _strategies(readings: Readings) -> Iterator[Strategy]:
    """Yield the ways to mend, the smallest change first."""
    unread = tuple(field for field in FIELDS if not _is_whole(readings.shape(f"final/{field}/{DEFAULT}")))
    read = next((field for field in FIELDS if field not in unread), "")
    drop = _insertion(readings)
    for switch in readings.history_switches:
        yield Strategy("none", unread, read, switch=switch)
    hides: tuple[Scope, ...] = ("none", "earlier", "all")
    for hide in hides:
        yield Strategy(hide, unread, read)
        if drop:
            yield Strategy(hide, unread, read, drop)


def _insertion(readings: Readings) -> str:
    """Return what the template writes in front of an answer without reasoning, from the first marker on; "" for nothing."""
    for probe in (f"final/plain/{DEFAULT}", "earlier/plain"):
        text = exchange(readings.text(probe)).partition(answer(1))[0]
        match = re.search(any_of((*readings.format.starts, *readings.format.ends)), text)
        if match:
            return text[match.start() :]
    return ""


def _is_whole(letters: str) -> bool:
    """Whether a turn's shape is one block with the answer behind it, and nothing in front."""
    return letters.startswith("SREA")


def _losses(readings: Readings) -> list[str]:
    """Say which turns lose their reasoning or get another block; empty if none does."""
    final = [form for form in _FORMS if not _is_whole(readings.shape(f"final/{form}/{DEFAULT}"))]
    earlier = [form for form in _FORMS if not _is_whole(readings.shape(f"earlier/{form}"))]
    losses = [f"the final turn ({spelled(final)})"] if final else []
    return losses + ([f"earlier turns ({spelled(earlier)})"] if earlier else [])


def _wrong_turns(renderer: Renderer, readings: Readings, source: str) -> str | None:
    """Return the first turn that a mended template does not write as one block with the answer behind it; None if none."""
    format = readings.format
    jobs = probes(format, {"bos_token": readings.bos, "eos_token": readings.eos, **readings.tools})
    names = [name for form in _FORMS for name in (f"final/{form}/{DEFAULT}", f"earlier/{form}")]
    for name, render in zip(names, renderer.render(source, [jobs[name] for name in names]), strict=True):
        letters = shape(render.text or "", format)
        if not _is_whole(letters):
            return f"{name}: {render.error or letters or 'nothing'} instead of SREA"
        if re.search(any_of(format.answer_starts), exchange(render.text or "").partition(thought(1))[0]):
            return f"{name}: the reasoning stands behind the answer's own marker"
    return None


def _worse(before: Readings, after: Readings) -> str | None:
    """Return the first thing that a mended template does worse than the old one; None if there is none."""
    for name, old in before.renders.items():
        if old.text is None:
            continue
        new = after.renders[name]
        if new.text is None:
            return f"{name} raises {new.error}"
        if "/plain" in name and old.text != new.text and not name.startswith("literal"):
            return f"{name} is written differently"
        if printed(old.text):
            continue
        if name.startswith("call") and old.text != new.text and not name.startswith("call/none"):
            return f"{name} is written differently"
        if name.startswith("tool") and kept(before.shape(name)) and not kept(after.shape(name)):
            return f"{name} loses its reasoning"
        if name.startswith("literal") and (gone := {*before.shape(name)} & {*"RAT"} - {*after.shape(name)}):
            return f"{name} loses text ({', '.join(sorted(gone))})"
        if bool(old.generation) != bool(new.generation):
            return f"{name}: the marks of {{% generation %}} are lost"
        if old.generation and "/content" in name and not _learned(new.text, new.generation):
            return f"{name}: {{% generation %}} does not mark the reasoning"
    for key, held in before.prefix.items():
        form, _, switch = key.partition("/")
        closed = form != "plain" and before.state(switch) == "closed"  # such a prompt never begins a text with reasoning
        if held and not closed and not after.prefix.get(key):
            return f"the prompt no longer begins the training text ({key})"
    return None


def _learned(text: str, spans: tuple[tuple[int, int], ...]) -> bool:
    marked = "".join(text[start:end] for start, end in spans)
    return thought(1) in marked or thought(1) not in text


def _lost_beside_calls(readings: Readings) -> list[str]:
    """Return the forms in which a turn with a tool call loses its reasoning."""
    probes = ("tool", "tool loop")
    called = {form: [readings.shape(readings.called(f"{probe}/{form}")) for probe in probes] for form in _FORMS}
    return [form for form, shapes in called.items() if not all(map(kept, shapes))]


def _compare_prompts(renderer: Renderer, readings: Readings, source: str) -> int:
    """Compare the old and the mended template's prompts: after every conversation, with every switch, tools and a system
    message. Returns how many were compared.

    UnsupportedError for a difference, which is a mistake of this module: both prompts come from the old body.
    """
    tokens = {"bos_token": readings.bos, "eos_token": readings.eos, **readings.tools}
    system = {"role": "system", "content": "Be brief."}
    conversations = probes(readings.format, tokens)
    jobs: list[Job] = []
    for name, job in conversations.items():
        if name.endswith(DEFAULT) or not name.startswith(("prompt", "final", "earlier")):
            jobs.append(Job(job.messages, True, job.kwargs))
        if name.startswith(("history", "tool loop")):
            jobs.append(Job([system, *job.messages], True, job.kwargs))
    jobs += [Job(conversations["history/content"].messages, True, {**tokens, **switch}) for switch in SWITCHES[1:]]
    jobs += [conversations[f"prompt/{label(switch)}"] for switch in SWITCHES[1:]]
    olds, news = renderer.render(readings.source, jobs), renderer.render(source, jobs)
    for job, old, new in zip(jobs, olds, news, strict=True):
        if (old.text, old.error, old.generation) != (new.text, new.error, new.generation):
            switch = label({key: value for key, value in job.kwargs.items() if key not in tokens})
            raise UnsupportedError(f"the mended template writes another prompt ({switch}): {new.error or new.text}")
    return len(jobs)


def _summary(before: Readings, after: Readings, strategy: Strategy, num: int, out: Path) -> list[str]:
    lines = [f"{out}: {strategy}"]
    lines += [f"kept in training texts now: {where}" for where in _losses(before)]
    lines.append(f"prompts are the same byte for byte, compared after {num} conversations")
    if not kept(before.shape("history/content")):
        lines.append(
            "prompts still leave out the reasoning of earlier turns, as before, and training texts of several turns now "
            "hold it: make one record per turn where the two should agree"
        )
    if losses := _lost_beside_calls(after):
        lines.append(f"not mended: reasoning in a turn with a tool call ({spelled(losses)})")
    broken = [form for form in _FORMS if not any(after.prefix.get(f"{form}/{on}") for on in (DEFAULT, after.on))]
    if broken:
        lines.append(f"not mended: the prompt is not the beginning of the training text ({spelled(broken)})")
    return lines
