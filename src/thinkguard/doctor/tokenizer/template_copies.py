"""Whether the copies of a chat template in one folder say the same: which one is read depends on the tool."""

from __future__ import annotations

from itertools import groupby

from thinkguard.doctor.check import Check
from thinkguard.doctor.tokenizer.checkpoint import Checkpoint
from thinkguard.doctor.tokenizer.files import TemplateCopy


def template_copies(checkpoint: Checkpoint) -> Check:
    """Check F27: do chat_template.jinja, tokenizer_config.json and the like agree?"""
    copies = sorted(checkpoint.folder.copies, key=lambda copy: copy.name)
    if not copies:
        return Check("template-copies", "not applicable", "the folder has no chat template")
    alike: list[str] = []
    for name, group in groupby(copies, key=lambda copy: copy.name):
        same = list(group)
        for other in same[1:]:
            if _plain(other.source) == _plain(same[0].source):
                continue
            difference = _difference(checkpoint, same[0], other) if name == "default" else "their texts differ"
            if difference:
                which = "" if name == "default" else f" for {name!r}"
                found = f"{same[0].place} and {other.place} hold different templates{which}"
                wanted = "one template: what the trainer reads is what the server reads"
                fix = (
                    f"keep one: put the text that the model was trained with into {same[0].place}, "
                    f"and remove chat_template from {other.place}"
                )
                return Check("template-copies", "problem", found, wanted, fix, (difference,))
            alike.append(f"{same[0].place} and {other.place} differ in text but write the same")
    if len(copies) == 1:
        return Check("template-copies", "ok", f"one chat template, in {copies[0].place}")
    places = ", ".join(dict.fromkeys(copy.place for copy in copies))
    return Check("template-copies", "ok", alike[0] if alike else f"{places} agree")


def _plain(source: str) -> str:
    """Return a template without what editors change: line ends, white space around it."""
    return source.replace("\r\n", "\n").strip()


def _difference(checkpoint: Checkpoint, mine: TemplateCopy, theirs: TemplateCopy) -> str:
    """Show the first thing that two templates write differently, or "" if they write the same."""
    first, second = checkpoint.copies[mine.source], checkpoint.copies[theirs.source]
    for probe, text in first.items():
        if text != second[probe]:
            return f"{probe}: {mine.place} writes {_from(text, second[probe])}, {theirs.place} {_from(second[probe], text)}"
    return ""


def _from(text: str, other: str) -> str:
    """Spell a text from shortly before the place where it parts from another."""
    if not text:
        return "nothing"
    parted = (at for at, (mine, theirs) in enumerate(zip(text, other, strict=False)) if mine != theirs)
    same = next(parted, min(len(text), len(other)))
    start = max(same - 15, 0)
    return ("…" if start else "") + f"{text[start : same + 35]!r}"
