"""What every output must be, in plain words: a reading that shares no code with thinkguard's own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from benches.setting import Request, Setting


def complaint(
    setting: Setting, request: Request, ids: Sequence[int], *, blocks: int = 1, verbatim: Sequence[int] = ()
) -> str:
    """Say what is wrong with an output, "" if nothing is. `verbatim`: what it has to be, where nothing has to be edited."""
    end, start = setting.end, setting.start
    if not ids or [i for i, token in enumerate(ids) if token in setting.eos_ids] != [len(ids) - 1]:
        return "it never finishes"
    ids = ids[:-1]
    text = setting.decode(ids)
    opened = setting.opened(request)
    if "\ufffd" in text:
        return "a character is cut in two"
    shown = ("" if not opened else start) + text
    plain = f"(?:(?!{start}|{end})[\\s\\S])*"
    if not re.fullmatch(f"\\s*{start}{plain}{end}{plain}(?:{start}{plain}{end}{plain}){{0,{blocks - 1}}}", shown):
        return f"not thinking, then an answer: {shown.count(start)} starts and {shown.count(end)} ends"
    if not re.search(r"\S", shown.rpartition(end)[2]):
        return "no answer"
    if setting.has_marker_tokens and ids.count(setting.end_ids[0]) != text.count(end):
        return "readers of tokens and of text see different ends"
    for reasoning in re.findall(f"{start}({plain}){end}", shown):
        if re.search(r"</(t(h(i(nk?)?)?)?)?\s*($|<)", reasoning):
            return f"half an end marker is left in the reasoning: {reasoning[-20:]!r}"
    for num in thinking_tokens(setting, ids, opened):
        if num > request.budget:
            return f"{num} thinking tokens under a budget of {request.budget}"
    if verbatim and list(ids) != list(verbatim[:-1]):
        return "the model closed in time by itself, but its output was changed"
    return ""


def thinking_tokens(setting: Setting, ids: Sequence[int], opened: bool) -> Iterator[int]:
    """Visible tokens of each block that lie wholly between its markers; a forced message is not among them."""
    message = setting.message.strip()
    inside, text = opened, ""
    spans = []
    for n in range(1, len(ids) + 1):  # decoded prefixes: slow and obvious
        longer = setting.decode(ids[:n])
        spans.append((len(text), len(longer)))
        text = longer
    position = 0
    while True:
        if not inside:
            found = text.find(setting.start, position)
            if found < 0:
                return
            position, inside = found + len(setting.start), True
        found = text.find(setting.end, position)
        stop = len(text) if found < 0 else found
        said = text.rfind(message, position, stop) if message else -1
        stop = said if said >= 0 else stop
        yield sum(1 for a, b in spans if a >= position and b <= stop and text[a:b].strip())
        if found < 0:
            return
        position, inside = found + len(setting.end), False
