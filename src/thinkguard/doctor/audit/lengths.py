"""How long reasoning and answers are, and which records lose their end at a trainer's length limit."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from thinkguard.doctor.judges.marker_forms import Markers
from thinkguard.doctor.judges.tags import Judged
from thinkguard.doctor.records.record import Hit, Record
from thinkguard.doctor.records.trainers import trainer_of
from thinkguard.errors import TokenizerError

TURN_TOKENS: Final = 5  # what a template adds to a turn; ChatML's header and end
_MARKER_TOKENS: Final = 6  # a start and an end with their white space, each one token or a few
_WORDS: Final = re.compile(r" ?\S+[\r\n]*|\s+?(?= \S)|\s+")
_TRIED_TOKENS: Final = 20_000
_TOLERANCE: Final = 500  # at most one token in so many may be counted wrong
_MAX_WORDS: Final = 400_000  # remembered at once, some 50 MB
_LONG_WORD: Final = 48  # characters; longer words hardly come again
_PIECE: Final = 1 << 17  # longer texts are counted in pieces: a tokenizer's merges are not linear in one long word


@dataclass(frozen=True, slots=True)
class Limit:
    """A trainer's length limit."""

    tokens: int
    name: str  # its option: "cutoff_len"
    cuts: str  # "end", "both" (LLaMA-Factory shortens prompt and target), "drop"


def limit_of(trainer: str | None, cutoff_len: int | None) -> Limit | None:
    """Return the limit of `cutoff_len` or else the trainer's own; None if there is neither."""
    defaults = None if trainer is None else trainer_of(trainer)
    tokens = cutoff_len if cutoff_len is not None or defaults is None else defaults.cutoff
    if tokens is None:
        return None
    cuts = "both" if trainer == "llamafactory" else "end" if defaults is None else defaults.cuts
    return Limit(tokens, "cutoff_len" if defaults is None else defaults.cutoff_name, cuts)


class TokenCounter:
    """Counts tokens, a batch of texts at a time, in this one thread.

    Nearly every tokenizer splits a text before a space that a word follows, so the count of a word can be remembered.
    Whether this one does is tried on the first texts; if not, every text is encoded whole, which takes ten times as long.
    """

    def __init__(self, path: Path) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the audit has a process per core already
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ImportError("counting tokens needs tokenizers: pip install 'thinkguard[doctor]'") from error
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises bare Exceptions
            raise TokenizerError(f"{file} is no tokenizer that can be read ({error}); give a whole tokenizer.json") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._words: dict[str, int] = {}
        self._tried = 0  # tokens of the texts on which words were tried
        self._by_words = True

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, without those that the tokenizer adds at its ends."""
        sound = [text if text.isascii() else text.encode("utf-8", "replace").decode() for text in texts]
        if not self._by_words:
            return self._whole(sound)
        counts = self._counted_by_words(sound)
        if self._tried < _TRIED_TOKENS:
            whole = self._whole(sound)
            self._by_words = sum(abs(a - b) for a, b in zip(whole, counts, strict=True)) * _TOLERANCE <= sum(whole)
            self._tried += sum(whole)
            return whole
        return counts

    def _whole(self, texts: Sequence[str]) -> list[int]:
        pieces, owners = [], []
        for index, text in enumerate(texts):
            for start in range(0, len(text), _PIECE):
                pieces.append(text[start : start + _PIECE])
                owners.append(index)
        counts = [0] * len(texts)
        for index, num in zip(owners, self._encoded(pieces), strict=True):
            counts[index] += num
        return counts

    def _counted_by_words(self, texts: Sequence[str]) -> list[int]:
        known = self._words
        split = [_WORDS.findall(text) for text in texts]
        new = set().union(*split).difference(known)
        if new:
            if len(known) + len(new) > _MAX_WORDS:
                known.clear()
                new = set().union(*split)
            long = [word for word in new if len(word) > _PIECE]
            fresh = [word for word in new if len(word) <= _PIECE]
            known.update(zip(fresh, self._encoded(fresh), strict=True))
            known.update(zip(long, self._whole(long), strict=True))
        counts = [sum(map(known.__getitem__, words)) for words in split]
        for word in new:
            if len(word) > _LONG_WORD:
                del known[word]
        return counts

    def _encoded(self, texts: Sequence[str]) -> list[int]:
        return [len(encoding) for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of the last turn, and of the turns before it."""

    reasoning: int
    answer: int
    before: tuple[tuple[str, int], ...]  # role and tokens of the turns before it


def measure(records: Sequence[tuple[Record, Judged]], counter: TokenCounter) -> list[Lengths]:
    """Count the tokens of a batch of records."""
    texts: list[str] = []
    for record, judged in records:
        texts += (judged.reasoning, judged.answer)
        last = _last(record)
        texts += (_text(turn.content, turn.reasoning if turn.read else None) for turn in record.turns[:last])
    counts = iter(counter.count(texts))
    found = []
    for record, _ in records:
        reasoning, answer = next(counts), next(counts)
        before = tuple((turn.role, next(counts)) for turn in record.turns[: _last(record)])
        found.append(Lengths(reasoning, answer, before))
    return found


def _last(record: Record) -> int:
    return max((index for index, turn in enumerate(record.turns) if turn.role == "assistant"), default=len(record.turns))


def _text(content: str, reasoning: str | None) -> str:
    return content if not reasoning else f"{reasoning}\n{content}"


LOSES_END: Final = "the end marker is cut off"
LOSES_ANSWER: Final = "the end of the answer is cut off"
LEFT_OUT: Final = "the record is left out"


def cut(lengths: Lengths, limit: Limit, markers: Markers) -> Hit | None:
    """Return what a record loses at the limit, None for nothing; the template's own tokens are estimated."""
    markup = _MARKER_TOKENS if lengths.reasoning else 0
    target = lengths.reasoning + markup + lengths.answer + 1
    prompt = sum(TURN_TOKENS + num for _, num in lengths.before) + TURN_TOKENS - 1
    total = prompt + target
    if total <= limit.tokens:
        return None
    counts = f"{total} tokens: {prompt} of prompt, {lengths.reasoning} of reasoning, {lengths.answer} of answer"
    if limit.cuts == "drop":
        return Hit("cut-off", LEFT_OUT, counts)
    kept = _kept(lengths, target, limit.tokens) if limit.cuts == "both" else limit.tokens - prompt
    if kept >= target:
        return None  # the prompt alone is shortened
    lost = LOSES_END if lengths.reasoning and kept < lengths.reasoning + markup else LOSES_ANSWER
    return Hit("cut-off", lost, f"{counts}; {max(kept, 0)} of the last turn are kept")


def _kept(lengths: Lengths, target: int, limit: int) -> int:
    """Return how many tokens LLaMA-Factory keeps of the last target. Pair by pair, prompt and target share what is left."""
    sources, targets, used = [0], [], 0
    for role, num in lengths.before:
        if role == "assistant":
            targets.append(num + 1)
            sources.append(0)
        else:
            sources[-1] += num + TURN_TOKENS
    for source, length in zip(sources, [*targets, target], strict=True):
        room = limit - used
        if room <= 0:
            return 0
        if length * 2 < room:
            most = room
        elif source * 2 < room:
            most = room - source
        else:
            most = room * length // (source + length)
        kept = min(most, length)
        used += kept + min(max(room - kept, 0), source)
    return kept


def rounded(num: int) -> int:
    """Round a length up to a budget that reads well: 1, 1.25, 1.5 or 1.75 times a power of two, at least 16."""
    power = 16
    while power * 2 < num:
        power *= 2
    return next(value for value in (power, power * 5 // 4, power * 3 // 2, power * 7 // 4, power * 2) if value >= num)
