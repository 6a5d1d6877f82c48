"""Compile a format against a vocabulary: markers as strings of symbols, the lifted tables, and what may be forced.

A symbol is a byte, or one of the *controls*: the added tokens that markers are written with. Everything that is forced is
spelled here, in the tokenizer's own way, and walked through the finished tables once to see that it does what it is for.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thinkguard.core import _core
from thinkguard.core.names import Kind, Seq, TokenInfo
from thinkguard.errors import FormatError, TokenizerError
from thinkguard.formats import DEFAULT_INNER, TURN_STARTS, ThinkFormat
from thinkguard.formats.fit import views_of
from thinkguard.vocabulary import TokenFlag, Vocabulary

Arrays = dict[str, npt.NDArray[Any]]
Symbols = tuple[int, ...]

_CONTROL = 256


@dataclass(frozen=True, slots=True)
class Compiled:
    """Everything that `_core.Tables` and the binding of policies are made from."""

    arrays: Arrays
    scalars: dict[str, int]
    turns: tuple[Arrays, dict[str, int]] | None  # the automaton over turn boundaries that are text or headers
    shown: tuple[Arrays, dict[str, int]] | None  # that over the texts of a prompt that say that thinking is on
    open: list[int]
    close: tuple[list[int], ...]  # of each pair
    off: list[int]
    bare: tuple[list[int], ...]  # of each close, the end marker and what is behind it
    end_ids: frozenset[int]  # tokens that are an end marker by themselves
    eos_token_ids: tuple[int, ...]


class _Alphabet:
    """The symbols that texts of one format are written in: bytes, and the added tokens found in them."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.controls: dict[int, int] = {}  # token id -> index
        names = sorted((name for name in vocabulary.added if name), key=len, reverse=True)
        self._added = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None

    def split(self, text: str) -> list[str]:
        """Cut a text at its added tokens; those have odd indices."""
        return self._added.split(text) if self._added else [text]

    def symbols(self, text: str) -> Symbols:
        """Write a text in symbols, its added tokens as controls."""
        symbols: list[int] = []
        for index, part in enumerate(self.split(text)):
            if index % 2:
                token_id = self.vocabulary.added[part]
                symbols.append(_CONTROL + self.controls.setdefault(token_id, len(self.controls)))
            else:
                symbols += part.encode()
        return tuple(symbols)

    def token_ids(self, symbols: Symbols, *, before_text: bool = False) -> list[int]:
        """Spell symbols in the tokenizer's own way; `before_text`: as where a word comes behind them."""
        by_index = list(self.controls)
        token_ids: list[int] = []
        run = bytearray()
        for symbol in symbols:
            if symbol < _CONTROL:
                run.append(symbol)
                continue
            if run:
                token_ids += self.vocabulary.encode_bytes(bytes(run))
                run.clear()
            token_ids.append(by_index[symbol - _CONTROL])
        if run:
            token_ids += self.vocabulary.encode_bytes(bytes(run), before_text=before_text)
        return token_ids


def compile_format(format: ThinkFormat, vocabulary: Vocabulary) -> Compiled:
    """Compile; FormatError where the vocabulary cannot express the format."""
    for piece in format.controls:
        if piece not in vocabulary.added:
            raise FormatError(
                f"format {format.name!r} needs {piece!r} to be one added token, and this vocabulary has no such token: it "
                "belongs to another family; name that one with format=, or pass a ThinkFormat without controls"
            )
    alphabet = _Alphabet(vocabulary)
    patterns = _patterns(format, alphabet)
    space = format.open_text.removeprefix(format.starts[0]).encode()
    views = views_of(format)
    lifted = _lift(vocabulary, alphabet, patterns, space, _pairs(format, alphabet, patterns), len(views))
    _mark_turn_starts(lifted, format, vocabulary, alphabet)
    _count_halves(lifted)
    default_eos = _eos(format, vocabulary)
    _flag_tokens(lifted, format, vocabulary, alphabet)
    _flag_markup(lifted, patterns, vocabulary)
    _list_tokens(lifted, vocabulary)
    lifted |= _name_walk(format.header_text.encode(), vocabulary)
    sequences: list[list[int]] = []
    spellings = [_Spelling(view, alphabet, patterns, lifted, sequences, pair) for pair, view in enumerate(views)]
    spelled = spellings[0]
    lifted["seq_offset"] = np.cumsum([0, *map(len, sequences)], dtype=np.int32)
    lifted["seq_token"] = np.array([token_id for sequence in sequences for token_id in sequence], np.int32)
    end_ids = frozenset(
        token for token, index in alphabet.controls.items() if patterns.get((_CONTROL + index,), 0) & Kind.END
    )
    scalars = spelled.scalars() | {"space_word": signed(int.from_bytes(space, "big")), "space_bytes": len(space)}
    scalars |= {"newline": _newline(lifted, vocabulary), "num_pairs": len(views)}
    scalars |= {name: max(one.scalars()[name] for one in spellings) for name in ("longest_finish", "longest_call")}
    compiled = Compiled(
        arrays=lifted,
        scalars=scalars,
        turns=_turns(format, vocabulary, lifted),
        shown=_shown(format, vocabulary, lifted),
        open=spelled.open,
        close=tuple(one.close for one in spellings),
        off=spelled.off,
        bare=tuple(one.bare for one in spellings),
        end_ids=end_ids,
        eos_token_ids=default_eos,
    )
    tables = _core.Tables(lifted, scalars)
    for one in spellings:
        one.verify(tables)
    _refuse_overlaps(format, vocabulary, alphabet, patterns)
    return compiled


def _refuse_overlaps(
    format: ThinkFormat, vocabulary: Vocabulary, alphabet: _Alphabet, patterns: dict[Symbols, int]
) -> None:
    """Refuse a marker that plain text and the beginning of a marker's own token could spell together.

    With `|think|` and `|/think|` as tokens, the text `|/think` and the token `|/think|` behind it read as an end too many.
    """
    contents = {index: vocabulary.token_bytes(token_id) for token_id, index in alphabet.controls.items()}
    for symbols in patterns:
        marker = b"".join(contents[s - _CONTROL] if s >= _CONTROL else bytes([s]) for s in symbols)
        for content in contents.values():
            for length in range(1, min(len(marker), len(content))):
                if marker.endswith(content[:length]):
                    raise FormatError(
                        f"format {format.name!r}: {marker.decode(errors='replace')!r} ends as the token "
                        f"{content.decode(errors='replace')!r} begins, so that plain text in front of the token could spell "
                        "the marker unseen; give the markers other brackets"
                    )


def signed(word: int) -> int:
    """A word of four bytes as C's int32 has it."""
    return word - 2**32 if word >= 2**31 else word


def _eos(format: ThinkFormat, vocabulary: Vocabulary) -> tuple[int, ...]:
    turn_ends = [vocabulary.added[text] for text in format.turn_ends if text in vocabulary.added]
    ends = {vocabulary.added.get(text) for text in format.ends}
    return tuple(
        t for t in dict.fromkeys((*vocabulary.eos_ids, *turn_ends)) if t not in ends or t in vocabulary.eos_ids
    )


def _patterns(format: ThinkFormat, alphabet: _Alphabet) -> dict[Symbols, int]:
    """Every marker with its kind, and the plain spelling of every control token that markers are written with."""
    channel = format.channel
    listed: list[tuple[str, int]] = [(text, Kind.START) for text in format.starts]
    listed += [(text, Kind.END) for text in format.ends]
    listed += [(text, Kind.ANSWER) for text in format.answer_starts]
    if channel:
        listed += [(text, Kind.TOOL) for text in channel.tool_headers]
        listed += [(channel.body, Kind.BODY), (alphabet.split(channel.header)[1], Kind.HEADER)]
        listed += [(channel.call_end, Kind.CALL_END)] if channel.call_end else []
    patterns: dict[Symbols, int] = {}
    for text, kind in listed:
        patterns.setdefault(alphabet.symbols(text), int(kind))
    names = {token_id: name for name, token_id in alphabet.vocabulary.added.items()}
    for token_id, index in alphabet.controls.items():
        kind = patterns.get((_CONTROL + index,), 0)
        patterns.setdefault(tuple(names[token_id].encode()), int(kind | Kind.SPELLED))
    spelled = [bytes(symbols) for symbols, kind in patterns.items() if kind & Kind.SPELLED]
    for text in _openers(format, alphabet):
        patterns.setdefault(alphabet.symbols(text), int(Kind.IMPLICIT))
        if not any(other in text.encode() for other in spelled):  # which is never completed, and so nothing around it
            patterns.setdefault(tuple(text.encode()), int(Kind.IMPLICIT))
    if channel and channel.recipient:
        patterns.setdefault(alphabet.symbols(channel.recipient), int(Kind.RECIPIENT))
    for text in () if channel else (*format.answer_ends, *format.answer_parts):
        parts = alphabet.split(text)
        if not parts[0] and alphabet.vocabulary.added[parts[1]] in alphabet.controls:  # else no marker looks like it
            patterns.setdefault(alphabet.symbols(text), int(Kind.BODY))
    return patterns


def _pairs(format: ThinkFormat, alphabet: _Alphabet, patterns: dict[Symbols, int]) -> dict[Symbols, int]:
    """The pair of each start and end, spelled forms included; empty where any end closes what any start opens."""
    if not format.paired:
        return {}
    listed = (*enumerate(format.starts), *enumerate(format.ends))
    pairs = {alphabet.symbols(text): pair for pair, text in listed}
    names = {token_id: name for name, token_id in alphabet.vocabulary.added.items()}
    for token_id, index in alphabet.controls.items():
        spelled = tuple(names[token_id].encode())
        if (_CONTROL + index,) in pairs and patterns[spelled] & Kind.SPELLED:
            pairs[spelled] = pairs[_CONTROL + index,]
    return pairs


def _openers(format: ThinkFormat, alphabet: _Alphabet) -> list[str]:
    """Return the openers of tool calls, but for those that this vocabulary has no pieces for: its model writes none."""
    vocabulary = alphabet.vocabulary

    def has_pieces(text: str) -> bool:
        runs = (part.encode() for part in alphabet.split(text)[::2])
        return not any(vocabulary.flags[t] & TokenFlag.BYTE for run in runs for t in vocabulary.encode_bytes(run))

    return [text for text in format.implicit_ends if has_pieces(text)]


def _lift(
    vocabulary: Vocabulary, alphabet: _Alphabet, patterns: dict[Symbols, int], space: bytes,
    pairs: dict[Symbols, int], num_pairs: int,
) -> Arrays:  # fmt: skip
    control = np.full(vocabulary.num_tokens, -1, np.int32)
    for token_id, index in alphabet.controls.items():
        control[token_id] = index
    lengths = [len(symbols) for symbols in patterns]
    return _core.lift(
        vocabulary.text,
        vocabulary.offsets,
        control,
        np.array([s for symbols in patterns for s in symbols], np.int32),
        np.cumsum([0, *lengths], dtype=np.int32),
        np.array(list(patterns.values()), np.int32),
        np.array([pairs.get(symbols, 0) for symbols in patterns], np.int32),
        np.array([len(vocabulary.token_bytes(t)) for t in alphabet.controls], np.int32),
        np.array([bool(vocabulary.flags[t] & TokenFlag.SPECIAL) for t in alphabet.controls], np.int32),
        space,
        num_pairs,
    )


def _mark_turn_starts(lifted: Arrays, format: ThinkFormat, vocabulary: Vocabulary, alphabet: _Alphabet) -> None:
    """Mark, at every node, the tokens that begin a turn or a role as TG_BODY: forbidden while thinking, free in an answer.

    Where they lead stays as it is. In channel formats the control tokens are markers themselves, and nothing is added.
    """
    written = {*format.inner, *format.answer_ends, *format.answer_parts}  # by the assistant, inside its turn
    names = {*TURN_STARTS, *(format.boundaries or ())} - written
    added = {vocabulary.added[name] for name in names if name in vocabulary.added} - set(alphabet.controls)
    if format.channel or not added:
        return
    starts, size = np.array(sorted(added), np.int64), vocabulary.num_tokens
    nodes, offset, masks = lifted["nodes"], lifted["mark_offset"], lifted["mark_mask"]
    places = np.arange(len(nodes), dtype=np.int64) * size  # a mark is at its node's place + its token
    marks = np.repeat(places, np.diff(offset)) + lifted["mark_token"]
    wanted = (places[:, None] + starts).ravel()
    masks[np.isin(marks, wanted)] |= np.uint32(Kind.BODY)
    missing = np.setdiff1d(wanted, marks)
    marks = np.concatenate([marks, missing])
    order = np.argsort(marks)
    lifted["mark_mask"] = np.concatenate([masks, np.full(len(missing), Kind.BODY, np.uint32)])[order]
    lifted["mark_token"] = (marks[order] % size).astype(np.int32)
    lifted["mark_offset"] = np.searchsorted(marks[order], np.append(places, len(nodes) * size)).astype(np.int32)
    nodes["marks"] |= Kind.BODY


def _count_halves(lifted: Arrays) -> None:
    """Count, of each node's first marks, those that speak of half-written markers alone, which most steps skip."""
    halves = Kind.EXTENDS | Kind.GROWS_END | Kind.BEGINS_END | Kind.HALF_START | Kind.HALF_END
    offset, others = lifted["mark_offset"], np.flatnonzero(lifted["mark_mask"] & np.uint32(0xFFFFFFFF ^ halves))
    first = np.append(others, len(lifted["mark_mask"]))[np.searchsorted(others, offset[:-1])]
    lifted["nodes"]["halves"] = np.minimum(first, offset[1:]) - offset[:-1]


def _flag_tokens(lifted: Arrays, format: ThinkFormat, vocabulary: Vocabulary, alphabet: _Alphabet) -> None:
    """Add to `info` what only the vocabulary and the format know."""
    info = lifted["info"]
    inert = ((info & TokenInfo.TEXT) == 0) | ((vocabulary.flags & TokenFlag.SPECIAL) != 0)
    info[inert] &= np.uint32(0xFFFFFFFF ^ int(TokenInfo.VISIBLE))
    inert[list(alphabet.controls)] = False
    info[inert] |= np.uint32(TokenInfo.INERT)
    raw = {*vocabulary.bos_ids, *vocabulary.pad_ids}
    if format.boundaries is None:
        inner = {*DEFAULT_INNER, *format.inner, *format.answer_ends, *format.implicit_ends}
        boundaries = {t for name, t in vocabulary.added.items() if name.strip() and name not in inner}
        boundaries -= set(alphabet.controls)
    else:
        boundaries = {vocabulary.added[name] for name in format.boundaries if name in vocabulary.added} | raw
    info[list(boundaries)] |= np.uint32(TokenInfo.BOUNDARY)
    info[[t for t in raw if t in boundaries]] |= np.uint32(TokenInfo.RAW)


def _is_mark(symbols: Symbols) -> bool:
    """Whether a marker begins with ASCII punctuation in plain bytes."""
    return symbols[0] < 0x80 and chr(symbols[0]) in string.punctuation


def _flag_markup(lifted: Arrays, patterns: dict[Symbols, int], vocabulary: Vocabulary) -> None:
    """Flag the tokens with a character that an end in plain bytes begins with; where there is one, also with a backtick."""
    begun = {bytes(symbols[:1]) for symbols, kind in patterns.items() if kind == Kind.END and _is_mark(symbols)}
    begun |= {bytes(symbols[:3]) for symbols, kind in patterns.items() if kind == Kind.END and symbols[0] == 0xE2}
    for text in begun | {b"`"} if begun else ():
        at = np.ones(max(len(vocabulary.text) - len(text) + 1, 0), np.bool_)
        for index, byte in enumerate(text):
            at &= vocabulary.text[index : index + len(at)] == byte
        first = np.flatnonzero(at)
        token_ids = np.searchsorted(vocabulary.offsets, first, side="right") - 1
        whole = first + len(text) <= vocabulary.offsets[token_ids + 1]
        lifted["info"][token_ids[whole]] |= np.uint32(TokenInfo.MARKUP)


def _newline(lifted: Arrays, vocabulary: Vocabulary) -> int:
    """The token that spells a line break and may be sampled; -1: there is none."""
    try:
        token_ids = vocabulary.encode("\n")
    except TokenizerError:
        return -1
    is_plain = len(token_ids) == 1 and token_ids[0] not in lifted["never"] and lifted["step"][token_ids[0]] == 0
    return token_ids[0] if is_plain else -1


def _list_tokens(lifted: Arrays, vocabulary: Vocabulary) -> None:
    """The tokens that whole classes of bans are about; what is EOS for a policy is none of them there."""
    info, step = lifted["info"], lifted["step"]
    inert = (info & TokenInfo.INERT) != 0
    misleading = inert & ((info & TokenInfo.TEXT) != 0) & (step != 0)
    never = misleading | ((vocabulary.flags & TokenFlag.DUPLICATE) != 0)
    missing, continuing = info >> 24 & 3, info >> 26 & 3
    lifted["never"] = _ids(never)
    lifted["inert"] = _ids(inert)
    lifted["blank"] = _ids((info & TokenInfo.VISIBLE) == 0)
    for count in (1, 2, 3):
        lifted[f"partial{count}"] = _ids(missing >= count)
    for count in (1, 2):
        lifted[f"continuing{count}"] = _ids(continuing == count)
    if len(lifted["partial1"]):
        single = (vocabulary.offsets[1:] - vocabulary.offsets[:-1]) == 1
        have = set(vocabulary.text[vocabulary.offsets[:-1][single & ~never]].tolist())
        lacking = [byte for byte in range(0x80, 0xC0) if byte not in have]
        if lacking:
            raise FormatError(
                f"the vocabulary has tokens that end inside a UTF-8 character, but none for the continuation byte "
                f"0x{lacking[0]:02X}: such a character could never be finished before a cap"
            )


def _name_walk(name: bytes, vocabulary: Vocabulary) -> Arrays:
    """A walk over the tokens that spell the header's own text at the start of a turn, white space behind a token left out.

    Node 0 stands before the turn's first token, whose leading white space does not count; node 1 + p behind p bytes of the
    name.
    """
    empty = np.empty(0, np.int32)
    if not name:
        return {"name_offset": empty, "name_token": empty, "name_next": empty}
    # Only those can match anywhere whose text, white space aside, is part of the name: a few of thousands.
    pieces = [(token_id, piece) for token_id, piece in _pieces_of(name, vocabulary) if piece.strip(b" \n\r\t") in name]
    offsets, tokens, nexts = [0], [], []
    for node in range(len(name) + 2):  # from the last node, behind all of the name, nothing leads on
        rest = name[max(node - 1, 0) :]
        for token_id, piece in pieces if node <= len(name) else ():
            word = (piece.lstrip(b" \n\r\t") if node == 0 else piece).rstrip(b" \n\r\t")
            if rest.startswith(word):
                tokens.append(token_id)
                nexts.append(1 + len(name) - len(rest) + len(word))
        offsets.append(len(tokens))
    found = {"name_offset": offsets, "name_token": tokens, "name_next": nexts}
    return {key: np.array(values, np.int32) for key, values in found.items()}


def _pieces_of(name: bytes, vocabulary: Vocabulary) -> list[tuple[int, bytes]]:
    """The tokens, ascending, that could spell a part of a name: those that begin with one of its bytes or white space."""
    begins = np.zeros(256, np.bool_)
    begins[list(name + b" \n\r\t")] = True
    first, behind = vocabulary.offsets[:-1], vocabulary.offsets[1:]
    padded = np.append(vocabulary.text, np.uint8(name[0]))  # a token without bytes leads nowhere, and is one of them
    some = begins[padded[np.minimum(first, len(vocabulary.text))]] | (first == behind)
    return [(token_id, vocabulary.token_bytes(token_id)) for token_id in np.flatnonzero(some).tolist()]


def _ids(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    return np.flatnonzero(mask).astype(np.int32)


class _Spelling:
    """The sequences that may be forced, and what finishes a half-written marker at each node, behind a start of one pair.

    `format` has that pair first; `sequences` are those of all pairs, to which what is new is added: one that opens is under
    way in one pair, and then in another one.
    """

    def __init__(
        self, format: ThinkFormat, alphabet: _Alphabet, patterns: dict[Symbols, int], lifted: Arrays,
        sequences: list[list[int]], pair: int,
    ) -> None:  # fmt: skip
        self.format, self.alphabet, self.lifted, self.sequences, self.pair = format, alphabet, lifted, sequences, pair
        num_nodes = len(lifted["depth"])
        own = slice(pair * num_nodes, (pair + 1) * num_nodes)
        self.nodes, self.end_of, self.end_depth = (lifted[name][own] for name in ("nodes", "end_of", "end_depth"))
        channel = format.channel
        self.open = self.spell(format.open_text, before_text=True)
        self.close = self.spell(format.close_text, before_text=True)
        self.bare = self.spell(format.close_text[format.close_text.index(format.ends[0]) :], before_text=True)
        self.off = self.spell(format.off_text or format.open_text + format.close_text, before_text=True)
        self.header_seq = self.channel_seq = self.header_tokens = 0
        if channel:
            header = self.spell(channel.header)
            role = next((h for h in format.assistant_headers if channel.header.startswith(h)), "")
            self.header_seq = self.add(header)
            self.channel_seq = self.add(self.spell(channel.header.removeprefix(role)))
            self.header_tokens = len(header) + max(
                len(self.spell(text)) for text in (*format.answer_starts, *format.starts)
            )
        self._finish_nodes(list(patterns))

    def spell(self, text: str, *, before_text: bool = False) -> list[int]:
        return self.alphabet.token_ids(self.alphabet.symbols(text), before_text=before_text) if text else []

    def add(self, token_ids: list[int]) -> int:
        if token_ids not in self.sequences:
            self.sequences.append(token_ids)
        return Seq.PROGRAM + self.sequences.index(token_ids)

    def _finish_nodes(self, patterns: list[Symbols]) -> None:
        format, symbols_of = self.format, self.alphabet.symbols
        behind_end = symbols_of(format.close_text.split(format.ends[0])[1])
        behind_start = symbols_of(format.open_text.removeprefix(format.starts[0]))
        bare_end = self.alphabet.token_ids(symbols_of(format.ends[0]))
        first = bare_end[0]
        planned = 1 if first in self.alphabet.controls else len(self.alphabet.vocabulary.token_bytes(first))
        nodes, self.finishes, self.longest_call = self.nodes, [], 0
        for node in range(len(nodes)):
            rest = patterns[self.end_of[node]][self.end_depth[node] :]
            # Behind a plan's own first token the plan goes on, even where that token has fewer than two characters.
            begun_end = nodes["end_chars"][node] >= 2 or self.end_depth[node] >= planned
            nodes["plan"][node] = self.alphabet.token_ids(rest)[0] if begun_end else first
            if nodes["end_chars"][node] >= 2:
                finish = self.alphabet.token_ids(rest + behind_end, before_text=True)
                nodes["finish"][node] = self.add(finish)
                self.finishes.append((node, finish))
            elif self.lifted["call_chars"][node] >= 2:
                opener = patterns[self.lifted["call_of"][node]]
                finish = self._spelled_or_none(opener[self.lifted["call_depth"][node] :])
                if not self._is_plain_spelling(opener) and self._opens_a_call(node, finish):
                    nodes["finish"][node] = self.add(finish)
                    self.longest_call = max(self.longest_call, len(finish))
            begun = patterns[self.lifted["start_of"][node]][: self.lifted["start_depth"][node]]
            if self.lifted["start_of"][node] >= 0 and (len(begun) > 1 or begun[0] >= _CONTROL):
                rest = patterns[self.lifted["start_of"][node]][len(begun) :]
                nodes["open"][node] = self.add(self.alphabet.token_ids(rest + behind_start, before_text=True))

    def _spelled_or_none(self, symbols: Symbols) -> list[int]:
        try:
            return self.alphabet.token_ids(symbols)
        except TokenizerError:
            return []

    def _is_plain_spelling(self, opener: Symbols) -> bool:
        """Whether an opener is one of the spellings in plain bytes of what the model has tokens for."""
        return max(opener) < _CONTROL and len(self.alphabet.split(bytes(opener).decode())) > 1

    def _opens_a_call(self, node: int, token_ids: list[int]) -> bool:
        """Whether tokens complete an opener from a node, and nothing else."""
        step, offset, tokens = (self.lifted[name] for name in ("step", "except_offset", "except_token"))
        seen: list[int] = []
        for token_id in token_ids:
            first, behind = int(offset[node]), int(offset[node + 1])
            at = first + int(np.searchsorted(tokens[first:behind], token_id))
            found = at < behind and tokens[at] == token_id
            leads = int(self.lifted["except_step"][at] if found else step[token_id])
            node = leads & 0xFFFF
            if leads >> 16:
                number = (leads >> 16) * (len(self.lifted["nodes"]) // len(self.nodes)) + self.pair
                seen.append(int(self.lifted["events"]["kinds"][number]))
        return seen == [Kind.IMPLICIT] and not set(token_ids) & set(self.lifted["never"].tolist())

    def scalars(self) -> dict[str, int]:
        channel = self.format.channel
        return {
            "is_channel": int(channel is not None),
            "header_seq": self.header_seq,
            "channel_seq": self.channel_seq,
            "body_token": self.spell(channel.body)[0] if channel else -1,
            "message_end": self.spell(channel.message_end)[0] if channel else -1,
            "header_tokens": self.header_tokens,
            "longest_finish": max((len(tokens) for _, tokens in self.finishes), default=0),
            "longest_call": self.longest_call,
        }

    def verify(self, tables: _core.Tables) -> None:
        """Walk what may be forced: it has to complete the marker that it is for, and no other of its sort.

        No marker may need byte tokens: an invalid byte before them would turn all of them into U+FFFD.

        The close sequence is walked from wherever it may begin, so that text before it cannot turn it into a start. The
        opening and the thinking-off text are forced before any start, where the first pair's marks are right.
        """
        vocabulary = self.alphabet.vocabulary
        for marker in (*self.format.starts, *self.format.ends):
            if any(vocabulary.flags[t] & TokenFlag.BYTE for t in self.spell(marker)):
                raise FormatError(
                    f"format {self.format.name!r}: this vocabulary has no pieces for some of {marker!r} and spells it in "
                    "single bytes, which an invalid byte before them makes unreadable; name a format with other markers"
                )
        banned = set(self.lifted["never"].tolist())
        both = int(Kind.START | Kind.END | Kind.IMPLICIT)
        ends = int(Kind.END | Kind.ANSWER)  # either may be what the thinking-off text leads to
        walks = [(0, self.open, int(Kind.START), both), (0, self.off, 0, 0)] if self.pair == 0 else []
        whole = np.flatnonzero(self.nodes["finish"] == Seq.NONE).tolist()
        walks += [(node, self.close, int(Kind.END), both) for node in whole]
        walks += [(node, tokens, int(Kind.END), both) for node, tokens in self.finishes]
        for node, tokens, wanted, among in walks:
            kinds = seen = 0
            at, pair = node, self.pair
            for token in tokens:
                at, number = tables.step(at, token, pair)
                event = self.lifted["events"][number]
                kinds |= int(event["kinds"])
                seen += bool(event["kinds"] & among)
                pair = int(event["pair"]) if event["starts"] else pair
            as_wanted = bool(kinds & ends) if tokens is self.off else kinds & among == wanted and seen == 1
            if not as_wanted or kinds & (Kind.SPELLED | Kind.MULTI) or banned & set(tokens):
                spelled = b"".join(map(self.alphabet.vocabulary.token_bytes, tokens))
                raise FormatError(
                    f"format {self.format.name!r}: the vocabulary spells {spelled!r} as {tokens}, which does not read as "
                    "the marker it is for; give the format other white space, or name another format"
                )


def _turns(format: ThinkFormat, vocabulary: Vocabulary, lifted: Arrays) -> tuple[Arrays, dict[str, int]] | None:
    """An automaton over boundaries, needed where they are text or where headers tell the turns apart.

    What tokens are by themselves it shares with the markers' tables.
    """
    if format.boundaries is None or (not format.assistant_headers and _all_added(format.boundaries, vocabulary)):
        return None
    alphabet = _Alphabet(vocabulary)
    patterns = {alphabet.symbols(text): int(Kind.HEADER) for text in format.boundaries}
    patterns |= {alphabet.symbols(text): int(Kind.START) for text in format.assistant_headers}
    return _prompt_tables(alphabet, patterns, bool(format.assistant_headers), lifted)


def _shown(format: ThinkFormat, vocabulary: Vocabulary, lifted: Arrays) -> tuple[Arrays, dict[str, int]] | None:
    """An automaton over the texts of a prompt that say that thinking is on; none where no prompt has to be asked."""
    if not format.on_texts:
        return None
    alphabet = _Alphabet(vocabulary)
    patterns = {alphabet.symbols(text): int(Kind.HEADER) for text in format.on_texts}
    return _prompt_tables(alphabet, patterns, False, lifted)


def _prompt_tables(
    alphabet: _Alphabet, patterns: dict[Symbols, int], has_headers: bool, lifted: Arrays
) -> tuple[Arrays, dict[str, int]]:
    """Tables of an automaton that only reads prompts."""
    vocabulary = alphabet.vocabulary
    arrays = _lift(vocabulary, alphabet, patterns, b"", {}, 1) | {"info": lifted["info"], "tail": lifted["tail"]}
    empty = np.empty(0, np.int32)
    names = ("never", "inert", "blank", "partial1", "partial2", "partial3", "continuing1", "continuing2", "seq_token")
    arrays |= dict.fromkeys(names, empty) | {"seq_offset": np.zeros(1, np.int32)} | _name_walk(b"", vocabulary)
    scalars = dict.fromkeys(
        ("header_seq", "channel_seq", "header_tokens", "longest_finish", "longest_call", "space_word", "space_bytes"), 0
    )
    scalars |= {"is_channel": int(has_headers), "body_token": -1, "message_end": -1, "newline": -1, "num_pairs": 1}
    return arrays, scalars


def _all_added(names: Iterable[str], vocabulary: Vocabulary) -> bool:
    return all(name in vocabulary.added for name in names)
