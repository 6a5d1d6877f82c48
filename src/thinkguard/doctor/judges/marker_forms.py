"""What to look for in a text: a family's markers, everything that only looks like them, and other families' markers."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Final

from thinkguard.doctor.records.trainers import trainer_of
from thinkguard.formats import ThinkFormat, facts_of
from thinkguard.formats.marks import telling

BLANK: Final = " \t\n\r\f\v"
_ZERO_WIDTH: Final = "\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff"
_INNER: Final = rf"[\s\\{_ZERO_WIDTH}]{{0,3}}"  # bounded, as every repetition here: a text of 10 MB takes linear time
_LETTERS: Final = rf"[\\{_ZERO_WIDTH}]{{0,2}}"
_SPELLINGS: Final = {
    "<": r"(?:[<＜‹〈《⟨]|&(?:amp;){0,2}(?:lt|LT|#0{0,4}60|#[xX]0{0,4}3[cC]);|\\u003[cC]|\\x3[cC])",
    ">": r"(?:[>＞›〉》⟩]|&(?:amp;){0,2}(?:gt|GT|#0{0,4}62|#[xX]0{0,4}3[eE]);|\\u003[eE]|\\x3[eE])",
    "/": r"(?:[/／\\]|&(?:#0{0,4}47|#[xX]0{0,4}2[fF]|sol);)",
    "[": r"[\[［【]",
    "]": r"[\]］】]",
    "|": r"[|｜]",
    ":": r"[:：]",
}
_BRACKETS: Final = "<>[]/|◁▷"
_OPENERS: Final = "<[◁"
_ALSO: Final = (("<reasoning>", "</reasoning>"), ("[thinking]", "[/thinking]"))  # of data sets, not of a family
_HINTS: Final = "<＜‹〈《⟨[［【◁&\\"  # with one of these every spelling begins
_LF_WORDS: Final = ("<think>\n", "\n</think>\n\n")  # of a template that names none of its own


@dataclass(frozen=True, slots=True)
class Markers:
    """What the judges look for. Immutable and picklable; made once per audit by `of`."""

    format: ThinkFormat
    trainer: str | None
    replaces_tool_turns: bool  # whether the trainer puts `tool_calls` in place of the content beside them
    prompt_opens: bool  # whether the prompt opens the block, so that a target may begin inside it
    start: str  # the canonical spellings, with their white space in open_text and close_text
    end: str
    open_text: str
    close_text: str
    marks: tuple[str, ...]  # all of the family's
    form: tuple[str, str, str]  # canonical white space: behind the start, before the end, behind the end
    exact: tuple[tuple[str, str], ...]  # each marker, with its group: "s" or "e"
    hint: re.Pattern[str]  # where a misspelled or another family's marker may begin
    alike: re.Pattern[str]  # matched there; groups "s", "e", "fs", "fe" (written in another way), "os", "oe" (another's)

    @classmethod
    def of(cls, format: ThinkFormat | None, *, trainer: str | None = None, prompt_opens: bool | None = None) -> Markers:
        """Prepare for a family; None is plain `<think>`. With a trainer, its own white space is the canonical one."""
        family = ThinkFormat.from_name("think") if format is None else format
        start, end = family.starts[0], family.ends[0]
        words = family.open_text, family.close_text
        if trainer == "llamafactory" and start == "<think>":
            words = facts_of(family.name).thought_words or _LF_WORDS
        exact = (*((mark, "s") for mark in family.starts), *((mark, "e") for mark in family.ends))
        groups = [(group, _any([mark for mark, of in exact if of == group])) for group in ("s", "e")]
        # the ends first: `<\think>` is read as an end where a block is open
        bracketed = (("fe", family.ends), ("fs", family.starts))
        groups += [(group, "|".join(loose(m) for m in marks if m[0] in _OPENERS)) for group, marks in bracketed]
        groups += [(group, f"(?i:{_any(marks)})") for group, marks in _others(family)]
        alike = re.compile("|".join(f"(?P<{group}>{pattern})" for group, pattern in groups if pattern))
        before, after = words[1].split(end)
        form = words[0].removeprefix(start), before, after[: len(after) - len(after.lstrip(BLANK))]
        marks = family.starts + family.ends
        replaces = trainer is not None and trainer_of(trainer).replaces_tool_turns
        return cls(
            family, trainer, replaces, bool(prompt_opens), start, end, *words, marks, form, exact, _hint(family), alike
        )

    def may_stand_in(self, text: str) -> bool:
        """Whether a text may hold a marker that is misspelled or another family's; nearly free where it holds none."""
        return any(char in text for char in _HINTS) and self.hint.search(text) is not None


def _hint(family: ThinkFormat) -> re.Pattern[str]:
    starts, ends = _telling()
    bare = {re.sub(r"^[<\[◁][/|]?", "", mark)[:1] for mark in (*family.starts, *family.ends, *starts, *ends)}
    letters = "".join(sorted({form for char in bare for form in _forms(char)}))
    after = rf"(?<=\\)(?:u003|x3|\\?[<&])|(?<=&)(?:amp;|lt|LT|#)|(?<![\\&]){_INNER}[/／\\|｜]?{_INNER}[{re.escape(letters)}]"
    return re.compile(rf"[{re.escape(_HINTS)}](?={after})")


def _forms(char: str) -> tuple[str, ...]:
    if char.isascii() and char.isalpha():
        return char.lower(), char.upper(), chr(ord(char.lower()) + 0xFEE0), chr(ord(char.upper()) + 0xFEE0)
    return (char,)


def _others(family: ThinkFormat) -> tuple[tuple[str, list[str]], ...]:
    starts, ends = _telling()
    known = {mark.casefold() for mark in family.starts + family.ends}
    return ("os", [m for m in starts if m.casefold() not in known]), ("oe", [m for m in ends if m.casefold() not in known])


@cache
def _telling() -> tuple[tuple[str, ...], tuple[str, ...]]:
    formats = [ThinkFormat.from_name(name) for name in ThinkFormat.names()]
    every_start = {mark for family in formats for mark in family.starts}
    starts = telling() & every_start
    more = ({start for start, _ in _ALSO}, {end for _, end in _ALSO})
    return tuple(sorted(starts | more[0])), tuple(sorted((telling() - every_start) | more[1]))


def _any(marks: Iterable[str]) -> str:
    return "|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True))


def loose(mark: str) -> str:
    """Return a pattern for every way in which a marker was seen misspelled: case, width, escapes, blanks inside."""
    parts = [r"\\{0,2}"]
    for index, char in enumerate(mark):
        if index:
            near = char in _BRACKETS or mark[index - 1] in _BRACKETS
            parts.append(_INNER if near else _LETTERS if char.isalpha() else "")
        if char in _SPELLINGS:
            parts.append(_SPELLINGS[char])
        elif char.isascii() and char.isalpha():
            parts.append(f"[{''.join(_forms(char))}]")
        else:
            parts.append(re.escape(char))
    return "".join(parts)


def difference(found: str, group: str) -> tuple[str, str]:
    """Name the check and the kind of a marker that is not written as the family writes it."""
    if "&" in found:
        return "html-escaped", "&-escapes"
    if group in ("os", "oe"):
        return "look-alike", f"another family's {found.lower()}"
    if "\\u" in found or "\\x" in found:
        return "look-alike", "character codes written out"
    if "\\" in found:
        return "look-alike", "backslash"
    if re.search(f"[{_ZERO_WIDTH}]", found):
        return "look-alike", "invisible character inside"
    if unicodedata.normalize("NFKC", found) != found or not html.unescape(found).isascii():
        return "look-alike", "full-width or other brackets"
    if any(char.isspace() for char in found):
        return "look-alike", "blank inside"
    return "look-alike", "upper or lower case"
