"""The judge of tokenised rows: what the loss covers of markers, reasoning, answer and turn end, one row at a time.

A row is what a trainer keeps on disk: `input_ids` and `labels`, -100 where there is no loss.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from thinkguard.doctor.check import LOST
from thinkguard.doctor.judges.packing import packed_hit
from thinkguard.doctor.judges.tags import Markers
from thinkguard.doctor.records.record import Hit, Record
from thinkguard.formats import DEFAULT_INNER, ThinkFormat
from thinkguard.formats.fit import any_of
from thinkguard.vocabulary import TokenFlag, Vocabulary

IGNORED: Final = -100
_SHOWN: Final = 60  # bytes on either side of a spot
_OFF: Final = re.compile(rb"/no_?think\b|detailed thinking off")
_LEAST: Final = 0.5  # share of the reasoning's tokens below which it counts as masked


@dataclass(frozen=True, slots=True)
class Row:
    """A row's text as bytes, and where its tokens are in it."""

    ids: npt.NDArray[np.int64]
    loss: npt.NDArray[np.bool_]  # [num_tokens]
    text: bytes
    ends: npt.NDArray[np.int64]  # [num_tokens], where each token ends in the text

    def tokens(self, begin: int, end: int) -> slice:
        """Return the tokens that spell text[begin:end]."""
        first = int(np.searchsorted(self.ends, begin, "right"))
        return slice(first, int(np.searchsorted(self.ends, end, "left")) + 1 if end > begin else first)

    def learned(self, begin: int, end: int) -> float:
        """Return the share of the tokens of text[begin:end] that are in the loss; 1 if there are no tokens."""
        part = self.loss[self.tokens(begin, end)]
        return float(part.mean()) if part.size else 1.0

    def show(self, begin: int, end: int) -> str:
        """Return evidence: text[begin:end] between ⟦ and ⟧, with a little of the text around it."""
        end = min(end, begin + _SHOWN)
        parts = (self.text[max(0, begin - _SHOWN) : begin], self.text[begin:end], self.text[end : end + _SHOWN])
        before, spot, after = (part.decode("utf-8", "replace").replace("\n", "\\n") for part in parts)
        return f"{before[-50:]}{LOST[0]}{spot}{LOST[1]}{after[:40]}"


def judge(record: Record, markers: Markers, vocabulary: Vocabulary | None) -> list[Hit]:
    """Say what is wrong with the loss of one row; nothing without a vocabulary, which spells the row's ids."""
    if vocabulary is None:
        return []
    row = row_of(record.raw, vocabulary)
    if isinstance(row, str):
        columns = ", ".join(f"{name} [{np.size(value)}]" for name, value in record.raw.items())
        return [Hit("row-ids", row, f"columns {columns}"[:160])]
    hit = packed_hit(record.raw, row.ids, vocabulary)
    return ([hit] if hit else []) + judge_row(row, markers, vocabulary)


def row_of(raw: Mapping[str, Any], vocabulary: Vocabulary) -> Row | str:
    """Read a row; a str says why it cannot be read."""
    if raw.get("input_ids") is None or raw.get("labels") is None:
        return "no labels" if raw.get("labels") is None else "no input_ids"
    try:
        ids, labels = (np.asarray(raw[name], np.int64) for name in ("input_ids", "labels"))
    except (TypeError, ValueError, OverflowError):
        return "ids or labels that are no numbers"
    if ids.ndim != 1 or ids.shape != labels.shape:
        return "ids and labels of different lengths"
    if not ids.size:
        return "an empty row"
    if ids.min() < 0 or ids.max() >= vocabulary.num_tokens:
        return "ids that this tokenizer does not have"
    begins, lengths = vocabulary.offsets[ids], vocabulary.offsets[ids + 1] - vocabulary.offsets[ids]
    ends = np.cumsum(lengths)
    where = np.repeat(begins - (ends - lengths), lengths) + np.arange(int(ends[-1]))
    return Row(ids, labels != IGNORED, vocabulary.text[where].tobytes(), ends)


def judge_row(row: Row, markers: Markers, vocabulary: Vocabulary) -> list[Hit]:
    """Judge a row whose text is known: every block of a turn that is learned."""
    if not row.loss.any():
        return [Hit("mask-end", "nothing of the row is in the loss", row.show(len(row.text), len(row.text)))]
    found = list(_pattern(markers.format).finditer(row.text))
    starts = {mark.encode() for mark in markers.format.starts}
    turn_ends = _turn_ends(row, markers.format, vocabulary)
    hits: list[Hit] = []
    for index, match in enumerate(found):
        if match[0] not in starts:
            continue
        close = found[index + 1] if index + 1 < len(found) else None
        if close is None or close[0] in starts:
            if close is None and row.learned(match.end(), len(row.text)) and not _after(turn_ends, match.end()):
                hits.append(Hit("mask-end", "the row ends inside the block", row.show(*match.span())))
            continue
        hits += _judge_block(row, match.span(), close.span(), turn_ends, markers)
    return list({(hit.check, hit.kind): hit for hit in reversed(hits)}.values())


def _pattern(format: ThinkFormat) -> re.Pattern[bytes]:
    return re.compile(any_of(format.starts + format.ends).encode())


def _turn_ends(row: Row, format: ThinkFormat, vocabulary: Vocabulary) -> npt.NDArray[np.int64]:
    """Return where in the text the tokens begin that may end a turn: EOS, the format's own, other control tokens."""
    eos = {*vocabulary.eos_ids, *(vocabulary.added[text] for text in format.turn_ends if text in vocabulary.added)}
    ends = np.isin(row.ids, list(eos))
    if format.channel is None:
        markers = (*format.starts, *format.ends, *format.answer_starts, *format.answer_ends, *format.implicit_ends)
        marker_text = "".join(markers)
        inner = DEFAULT_INNER | set(format.inner)
        spared = [i for text, i in vocabulary.added.items() if text in marker_text or text in inner]
        special = (vocabulary.flags[row.ids] & TokenFlag.SPECIAL) != 0
        ends |= special & ~np.isin(row.ids, spared)
    return row.ends[ends] - (vocabulary.offsets[row.ids[ends] + 1] - vocabulary.offsets[row.ids[ends]])


def _after(places: npt.NDArray[np.int64], at: int) -> int:
    """Return the first of the places at or behind `at`; 0 for none."""
    later = places[places >= at]
    return int(later[0]) if later.size else 0


def _judge_block(
    row: Row, start: tuple[int, int], end: tuple[int, int], turn_ends: npt.NDArray[np.int64], markers: Markers
) -> list[Hit]:
    """Judge one block and the answer behind it, if any of that is learned."""
    turn_end = _after(turn_ends, end[1])
    if _after(turn_ends, start[1]) and _after(turn_ends, start[1]) < end[0]:
        return []  # the end belongs to another turn: what the text itself lacks is the data's or the template's matter
    behind = turn_end or len(row.text)
    parts = {"start": start, "body": (start[1], end[0]), "end": end, "answer": (end[1], behind)}
    share = {name: row.learned(*span) for name, span in parts.items() if row.text[slice(*span)].strip()}
    if not any(share.values()) and not (turn_end and row.learned(turn_end, turn_end + 1)):
        return []  # a turn that is not learned
    if "body" not in share:
        if share["start"] and share["end"] and not _switched_off(row, start[0], turn_ends):
            return [Hit("mask-empty-block", "an empty block in the loss", row.show(start[0], end[1]))]
        return []
    if share["body"] < _LEAST and (share["end"] == 1 or share.get("answer")):
        kind = "the reasoning and its markers" if not share["start"] and not share["end"] else "the reasoning alone"
        return [Hit("mask-body", kind, row.show(*parts["body"]))]
    hits = []
    if share["start"] < 1 and not markers.prompt_opens:
        hits.append(Hit("mask-start", "the start marker is not in the loss", row.show(*start)))
    if share["end"] < 1:
        hits.append(Hit("mask-end", "the end marker is not in the loss", row.show(*end)))
    elif share.get("answer", 1.0) < _LEAST:
        hits.append(Hit("mask-end", "the answer is not in the loss", row.show(*parts["answer"])))
    elif turn_end and "answer" in share and not row.learned(turn_end, turn_end + 1):
        hits.append(Hit("mask-end", "the turn's end is not in the loss", row.show(turn_end, turn_end + 1)))
    return hits


def _switched_off(row: Row, start: int, turn_ends: npt.NDArray[np.int64]) -> bool:
    """Whether the question before a block switches thinking off, so that an empty one is the right answer."""
    before = turn_ends[turn_ends < start]
    question = row.text[int(before[-3]) if len(before) > 2 else 0 : start]
    return _OFF.search(question) is not None
