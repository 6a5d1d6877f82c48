"""The judge of saved outputs: a model's own text, or what a server made of it, one at a time.

Text that holds no message (vLLM's `LLM.generate`, a completions API) is the model's own: one block and an answer is right
there. In a message that a chat API answered, thinking and answer belong into fields of their own.
"""

from __future__ import annotations

import re
from typing import Final

from thinkguard.doctor.check import LOST
from thinkguard.doctor.judges.output_fields import Fields, extracted_hit, field_hit, fields_of, text_of_tokens
from thinkguard.doctor.judges.structure import Reading, exact_events, read_turn, show
from thinkguard.doctor.judges.tags import Markers
from thinkguard.doctor.records.record import Hit, Record, Turn
from thinkguard.formats.marks import telling
from thinkguard.vocabulary import TokenFlag, Vocabulary

_ANY: Final = re.compile("|".join(map(re.escape, sorted(telling(), key=len, reverse=True))))
_CALL: Final = re.compile(  # followed by what makes it a call, not a word about calls
    r"<\|?(?:tool_call|function_call|function|tool_calls_begin|minimax:tool_call|tool_call_begin)\|?>"
    r"(?:\s*[{\[<]|[\w.-]{1,64}\s*\n)"
    r"|<function=\w|\[TOOL_CALLS\]\s*[\[{\w]|<｜tool▁calls?▁begin｜>|<\|tool_calls_section_begin\|>"
)
_HINTS: Final = ("tool_call", "<function", "TOOL_CALLS", "tool▁call")  # one of them is in every match of _CALL
_MUSING: Final = re.compile(  # how reasoning models begin, and how they go on
    r"\s*(?:Ok(?:ay)?\b[,.]|Alright[,.]|Hmm\b|Let me (?:think|see|start|work)|First, (?:I|let)"
    r"|The user (?:is|wants|asks|has)|We need to|I need to|So,? (?:the|I)|好的|嗯|首先|用户)"
)
_DOUBTS: Final = re.compile(
    r"\b(?:Wait[,.]|Hmm\b|[Ll]et me (?:double[- ])?check|[Ll]et me verify|Actually, |I should )|等等|再想想|不对"
)
_NO_THINKING: Final = re.compile(r"/no_?think\b|detailed thinking off")


def judge(record: Record, markers: Markers, vocabulary: Vocabulary | None) -> list[Hit]:
    """Say what is wrong with one saved output; the vocabulary reads saved token ids, and knows special markers."""
    turn = next((turn for turn in reversed(record.turns) if turn.role == "assistant"), None)
    if turn is None:
        return []
    fields = fields_of(record, turn)
    opens, off = _prompt(record, markers)
    if fields.parsed:
        hits, thinking = _parsed(record, turn, fields, markers, vocabulary, off)
    else:
        hits, thinking = _raw(record, turn, fields, markers, vocabulary, opens, off)
    if not any(hit.check in ("output-stopped", "output-cut") for hit in hits):
        hits += extracted_hit(record, thinking, markers)
    return hits


def _prompt(record: Record, markers: Markers) -> tuple[bool | None, bool]:
    """Return (whether the prompt opens the block, None if that is not known; whether thinking is off)."""
    tail = record.prompt[-400:].rstrip()
    questions = (turn.content for turn in record.turns if turn.role != "assistant")
    off = record.thinks is False or any(map(_NO_THINKING.search, questions))
    if tail:
        opened = tail.endswith(markers.format.starts)
        return opened, off or tail.endswith(markers.format.ends)
    return (True if markers.prompt_opens else None), off


def _raw(
    record: Record,
    turn: Turn,
    fields: Fields,
    markers: Markers,
    vocabulary: Vocabulary | None,
    opens: bool | None,
    off: bool,
) -> tuple[list[Hit], str]:
    """Return (hits, thinking) of a model's own text."""
    text = turn.content
    reading = read_turn(text, markers, opens is True or opens is None)
    if reading.block is None and not reading.broken:
        if opens and not off:
            return [_dropped(text, fields, markers, vocabulary) or _unclosed(text, 0, record, markers)], text
        hit = _without_markers(text, fields, markers, vocabulary)
        return ([hit] if hit else []), ""
    begin, body, close, after = reading.block or (0, 0, len(text), len(text))
    thinking = text[body:close]
    if reading.opened and opens is None and vocabulary is not None:  # the template is known: it does not open the block
        return [Hit("output-structure", "an end without a start", show(text, close, after))], thinking
    if reading.opened and opens is None:
        opens = True
    if reading.broken == "half-open":
        if call := _call_in(text, body, len(text), markers.format.implicit_ends):
            return [call], thinking
        return [_unclosed(text, body, record, markers)], thinking
    if reading.broken == "orphan-end":
        kind = "only the end, and the prompt opens nothing"
        lost = f"{LOST[0]}{markers.start}{LOST[1]}{show(text, 0, 0).removeprefix(''.join(LOST))}"
        return [Hit("output-marker-dropped", kind, lost)], thinking
    if markers.format.channel is not None:
        return [], thinking  # several messages of thinking are in order there
    if reading.broken:
        return [Hit("output-structure", reading.kind, show(text, *reading.spot))], thinking
    if (call := _call_in(text, body, close, markers.format.implicit_ends)) is not None:
        return [call], thinking
    return _regular(text, (begin, body, close, after), record, bool(opens), off, reading), thinking


def _regular(
    text: str, block: tuple[int, int, int, int], record: Record, opens: bool, off: bool, reading: Reading
) -> list[Hit]:
    """Say what is wrong with a single block and the text around it."""
    begin, body, close, after = block
    if opens and not reading.opened and body > begin:
        return [Hit("output-structure", "a start, though the prompt opens the block", show(text, begin, body))]
    if text[:begin].strip():
        return [Hit("output-structure", "text before the block", show(text, begin, body))]
    if not text[body:close].strip() and not off:
        return [Hit("output-structure", "an empty block", show(text, begin, after))]
    if close < after and not text[after:].strip() and not _calls(record):
        if record.finish == "length":
            return [Hit("output-cut", "right behind the end", show(text, close, after))]
        return [Hit("output-structure", "no answer behind the block", show(text, close, after))]
    return []


def _calls(record: Record) -> bool:
    return record.turns[-1].calls > 0 or record.finish == "tool_calls"


def _lost_end(text: str, markers: Markers) -> str:
    """Excerpt the end of a text; the end marker that it lacks stands between ⟦ and ⟧."""
    return show(text, len(text), len(text)).removesuffix("".join(LOST)) + f"{LOST[0]}{markers.end}{LOST[1]}"


def _unclosed(text: str, body: int, record: Record, markers: Markers) -> Hit:
    """Return the hit for thinking without an end: cut off by the limit, stopped, or for a reason that was not saved."""
    excerpt = _lost_end(text, markers)
    if record.finish == "length":
        return Hit("output-cut", "inside the reasoning", excerpt)
    if record.finish:
        return Hit("output-stopped", f"finish_reason {record.finish}", excerpt)
    return Hit("output-structure", "a start without an end" if body else "no end, and the prompt opens the block", excerpt)


def _telling(text: str) -> re.Match[str] | None:
    """Find a marker of any family that can mean nothing else."""
    return _ANY.search(text) if any(bracket in text for bracket in "<[◁") else None


def _call_in(text: str, begin: int, end: int, implicit_ends: tuple[str, ...]) -> Hit | None:
    """Find a tool call inside the reasoning; one that ends the reasoning in this family is no fault."""
    match = _CALL.search(text, begin, end) if any(hint in text for hint in _HINTS) else None
    if match is None or any(match[0].startswith(opener) for opener in implicit_ends):
        return None
    return Hit("output-tool-call", "a tool call inside the reasoning", show(text, match.start(), match.end()))


def _dropped(text: str, fields: Fields, markers: Markers, vocabulary: Vocabulary | None) -> Hit | None:
    """Find markers that the model wrote but the text lacks: in its token ids, or because they are special tokens."""
    text_by_ids = text_of_tokens(fields, vocabulary)
    events = exact_events(text_by_ids, markers) if text_by_ids else []
    if events:
        return Hit("output-marker-dropped", "in the tokens, not in the text", show(text_by_ids, *events[0][:2]))
    if vocabulary is None:
        return None
    for mark in markers.format.ends:
        token_id = vocabulary.added.get(mark)
        if token_id is not None and vocabulary.flags[token_id] & TokenFlag.SPECIAL:
            return Hit("output-marker-dropped", f"{mark} is a special token", _lost_end(text, markers))
    return None


def _without_markers(text: str, fields: Fields, markers: Markers, vocabulary: Vocabulary | None) -> Hit | None:
    """Find reasoning in a text without any marker."""
    text_by_ids = text_of_tokens(fields, vocabulary)
    for event in exact_events(text_by_ids, markers) if text_by_ids else ():
        return Hit("output-marker-dropped", "in the tokens, not in the text", show(text_by_ids, event.start, event.end))
    match = _MUSING.match(text)
    if match and _DOUBTS.search(text, match.end()):
        return Hit("output-marker-dropped", "reads like reasoning", show(text, match.start(), match.end()))
    return None


def _parsed(
    record: Record, turn: Turn, fields: Fields, markers: Markers, vocabulary: Vocabulary | None, off: bool
) -> tuple[list[Hit], str]:
    """Return (hits, thinking) of a message that a chat API answered."""
    content, reasoning = turn.content, (turn.reasoning or "").strip()
    if not reasoning and content:
        reading = read_turn(content, markers, True)
        if reading.block is not None or reading.broken:
            _, body, close, _ = reading.block or (0, 0, len(content), len(content))
            thinking = content[body:close]
            if reading.broken == "half-open" and record.finish:
                return [_unclosed(content, body, record, markers)], thinking
            events = exact_events(content, markers)
            spot = (events[0].start, events[0].end) if events else reading.spot
            return [Hit("output-parsed", "reasoning in the content", show(content, *spot))], thinking
        hit = _without_markers(content, fields, markers, vocabulary) or field_hit(record, turn, fields)
        return ([hit] if hit else []), ""
    inside = _telling(reasoning)
    if inside:
        kind = f"a marker in {turn.place or 'the reasoning'}"
        return [Hit("output-parsed", kind, show(reasoning, *inside.span()))], reasoning
    leaked = exact_events(content, markers)
    match = _telling(content)
    if leaked or match:
        spot = (leaked[0].start, leaked[0].end) if leaked else match.span() if match else (0, 0)
        return [Hit("output-parsed", "a marker in the content", show(content, *spot))], reasoning
    call = _call_in(reasoning, 0, len(reasoning), ())
    if call and not turn.calls:
        return [call], reasoning
    if reasoning and not content.strip() and not turn.calls:
        if off:
            return [Hit("output-parsed", "the answer in the reasoning", show(reasoning, 0, len(reasoning)))], ""
        if record.finish is None:
            kind = "reasoning without an answer"
            return [Hit("output-structure", kind, _lost_end(reasoning, markers))], reasoning
        return [_unclosed(reasoning, 1, record, markers)], reasoning
    hit = field_hit(record, turn, fields)
    return ([hit] if hit else []), reasoning
