"""The specification in plain Python: what a guarded row is, rule by rule (docs/semantics.md has the numbers).

Slow and obvious: text is a list of symbols, markers are found by comparing suffixes, every token of the vocabulary is
tried. Never shipped; C and the device kernel are held against it. A symbol is a byte, or ("control", token id).

Text and markers are tuples of symbols, and of the text only the half-written marker at its end is kept, since the rest can
take no part in any marker. So a sequence meets the same few texts over and over, and what is a pure function of (pair, text,
token) is remembered.
"""

from __future__ import annotations

import functools
import math
import re
import string
from dataclasses import dataclass, field

from thinkguard.errors import TokenizerError
from thinkguard.formats import TURN_STARTS

WHITE = b" \t\n\r\f\v"
INF = float("inf")
NO_PERIOD_BEYOND, PATIENCE, HEADER_PATIENCE = 64, 8, 32
QUOTES = b"\"'`([{<>"


@dataclass
class Found:
    """What one token completes: (kind, spelled, index of its first symbol behind) of each marker."""

    markers: list = field(default_factory=list)
    foreign: int = 0  # ends of other pairs among what it completes: they mean nothing, and are never completed
    pair: int = 0  # of the last start, in this token or before it
    whole_call: bool = False  # one of them a tool call's opener that lies wholly in this token

    @property
    def kinds(self):
        return [kind for kind, _, _ in self.markers]

    @property
    def last(self):
        return self.markers[-1][0] if self.markers else None

    @property
    def counted(self):
        return sum(kind != "recipient" for kind in self.kinds) + self.foreign


class Model:
    """One sequence under one policy. `vocabulary` and `format` are the package's nouns; everything else is done here."""

    def __init__(self, format, vocabulary, policy, eos, max_tokens=None):
        self.format, self.vocabulary, self.policy, self.eos, self.limit = format, vocabulary, policy, list(eos), max_tokens
        added = sorted((name for name in vocabulary.added if name), key=len, reverse=True)
        self.added = re.compile("(" + "|".join(map(re.escape, added)) + ")") if added else None
        channel = format.channel
        self.markers = []  # (symbols, kind, spelled)
        self.pairs = {}  # symbols of a start or an end -> its index, in a format whose ends belong to their starts
        self.num_pairs, self.pair = len(format.starts) if format.paired else 1, 0
        self.controls = []
        for kind, texts in (
            ("start", format.starts),
            ("end", format.ends),
            ("answer", format.answer_starts),
            ("tool", channel.tool_headers if channel else ()),
            ("body", (channel.body,) if channel else ()),
            ("header", (self.pieces(channel.header)[1],) if channel else ()),
            ("call_end", (channel.call_end,) if channel and channel.call_end else ()),
        ):
            for text in texts:
                self.add_marker(self.symbols(text), kind, False)
        own = {symbols[0][1]: kind for symbols, kind, _ in self.markers if len(symbols) == 1 and is_control(symbols[0])}
        for symbols, _, _ in list(self.markers):
            for symbol in symbols:
                if is_control(symbol) and symbol[1] not in self.controls:
                    self.controls.append(symbol[1])
        for texts in (format.starts, format.ends) if format.paired else ():
            self.pairs |= {self.symbols(text): index for index, text in enumerate(texts)}
        for token in self.controls:  # rule 2: their plain spelling, by the single marker that they are or by itself
            self.add_marker(tuple(self.name_of(token).encode()), own.get(token), True)
            if (("control", token),) in self.pairs:
                self.pairs[tuple(self.name_of(token).encode())] = self.pairs[("control", token),]
        never = [bytes(symbols).decode() for symbols, _, spelled in self.markers if spelled]
        for text in format.implicit_ends:
            if not self.has_pieces(text):
                continue
            self.add_marker(self.symbols(text), "implicit", False)
            if not any(name in text for name in never):  # which is never completed, and so nothing around it
                self.add_marker(tuple(text.encode()), "implicit", False)
            self.controls += [s[1] for s in self.symbols(text) if is_control(s) and s[1] not in self.controls]
        for text in () if channel else (*format.answer_ends, *format.answer_parts):
            symbols = self.symbols(text)
            if is_control(symbols[0]) and symbols[0][1] in self.controls:  # else no marker looks like it
                self.add_marker(symbols, "body", False)
                self.controls += [s[1] for s in symbols if is_control(s) and s[1] not in self.controls]
        if channel and channel.recipient:
            self.add_marker(self.symbols(channel.recipient), "recipient", False)
        named = {*TURN_STARTS, *(format.boundaries or ())}
        named -= {*format.inner, *format.answer_ends, *format.answer_parts}
        found = {vocabulary.added[name] for name in named if name in vocabulary.added}
        self.turn_starts = set() if channel else found - set(self.controls)  # a marker's tokens have its own rules
        remembered = "bytes_of symbols_of is_visible read half reachable kinds_of reach_of is_never"
        for name in remembered.split():
            setattr(self, name, self.remembering(getattr(self, name)))
        self.is_channel = channel is not None
        self.start_space = format.open_text[len(format.starts[0]) :]
        self.end_space = format.close_text.split(format.ends[0])[1]
        self.open = self.spell_before_text(self.symbols(format.open_text))
        self.closes_line = not policy.close_message and format.close_text.startswith("\n")
        off_text = format.off_text or format.open_text + format.close_text
        self.off = self.spell_before_text(self.symbols(off_text))
        message = policy.extend_message or ""
        words = message.lstrip(" \t\n\r\f\v")
        self.lead = message[: message.rfind("\n", 0, len(message) - len(words)) + 1] if words else ""  # rule 18
        self.extend = self.spell(self.symbols(message[len(self.lead) :]))
        behind = "" if channel else self.end_space  # rule 19
        lead = policy.answer_prefix[: len(policy.answer_prefix) - len(policy.answer_prefix.lstrip(" \t\n\r\f\v"))]
        twice = next(n for n in range(len(lead), -1, -1) if behind.endswith(lead[:n]))
        self.prefix = self.spell(self.symbols(behind + policy.answer_prefix[twice:])) if policy.answer_prefix else []
        if policy.answer_prefix:
            twice = next(n for n in range(len(lead), -1, -1) if off_text.endswith(lead[:n]))
            self.off = self.spell(self.symbols(off_text + policy.answer_prefix[twice:]))
        self.newline = next(iter(self.line_breaks()), None)
        marks = [symbols for symbols, kind, spelled in self.markers if kind == "end" and self.is_mark(symbols, spelled)]
        self.marks = {symbols[0] for symbols in marks}
        self.mark_texts = {bytes(symbols[: 3 if symbols[0] == 0xE2 else 1]) for symbols in marks}
        self.header = self.spell(self.symbols(channel.header)) if channel else []
        role = next((h for h in format.assistant_headers if channel and channel.header.startswith(h)), "")
        self.channel = self.spell(self.symbols(channel.header[len(role) :])) if channel else []
        names = [self.spell(self.symbols(text)) for text in (*format.answer_starts, *format.starts)]
        self.header_tokens = len(self.header) + max(map(len, names)) if channel else 0
        begun = [symbols[:i] for symbols, _, _ in self.markers for i in range(1, len(symbols))]
        longest = []
        for pair in range(self.num_pairs):  # rule 8: any of them may be opened
            self.pair = pair
            longest += [len(self.close), *(len(self.finish_of(text)) for text in begun)]
        self.longest_close, self.pair = max(longest) + len(self.prefix), 0

    def remembering(self, method):
        """A method whose answers are kept; they depend on the pair, too."""
        known = functools.cache(lambda pair, *arguments: method(*arguments))
        return lambda *arguments: known(self.pair, *arguments)

    # --- the pair of the last start (rule 1) ---

    @property
    def end(self):
        return self.format.ends[self.pair]

    @property
    def close_text(self):
        return self.format.close_text.replace(self.format.ends[0], self.end)

    @property
    def close(self):
        return self.spell_before_text(self.symbols(self.policy.close_message + self.close_text))

    @property
    def bare(self):
        return self.spell_before_text(self.symbols(self.close_text[self.close_text.index(self.end) :]))

    def is_foreign(self, symbols, kind, pair):
        """Whether a marker is the end of another pair."""
        return kind == "end" and self.pairs.get(symbols, pair) != pair

    # --- text ---

    def pieces(self, text):
        return self.added.split(text) if self.added else [text]

    def symbols(self, text):
        symbols = []
        for i, piece in enumerate(self.pieces(text)):
            symbols += [("control", self.vocabulary.added[piece])] if i % 2 else list(piece.encode())
        return tuple(symbols)

    def add_marker(self, symbols, kind, spelled):
        if all(symbols != other for other, _, _ in self.markers):
            self.markers.append((symbols, kind, spelled))

    def name_of(self, token):
        return next(name for name, other in self.vocabulary.added.items() if other == token)

    def spell(self, symbols):
        tokens, run = [], []
        for symbol in [*symbols, None]:
            if symbol is None or is_control(symbol):
                tokens += self.vocabulary.encode_bytes(bytes(run)) if run else []
                run = []
                tokens += [symbol[1]] if symbol else []
            else:
                run.append(symbol)
        return tokens

    def spell_before_text(self, symbols):
        """Spell with a word behind it, whose own tokens are dropped again; as at a text's end where they share one."""
        last = max((i + 1 for i, symbol in enumerate(symbols) if is_control(symbol)), default=0)
        tokens, length = self.spell(symbols[:last]), 0
        try:
            in_front = self.spell((*symbols[last:], *b"A")) if symbols[last:] else []
        except TokenizerError:  # there is no such letter
            in_front = []
        for token in in_front:
            tokens.append(token)
            length += len(self.bytes_of(token))
            if length == len(symbols) - last:
                return tokens
        return self.spell(symbols)

    def bytes_of(self, token):
        return self.vocabulary.token_bytes(token) if token < self.vocabulary.num_tokens else b""

    def symbols_of(self, token):
        return (("control", token),) if token in self.controls else tuple(self.bytes_of(token))

    def is_inert(self, token):
        if token in self.controls:
            return False
        return not self.bytes_of(token) or bool(self.vocabulary.flags[token] & 2)

    def is_visible(self, token):
        special = token < self.vocabulary.num_tokens and self.vocabulary.flags[token] & 2
        return not special and bool(self.bytes_of(token).strip(WHITE))

    def read(self, text, token):
        """(half-written marker at the text's end, what was completed) after one more token. Markers do not overlap."""
        found = Found(pair=self.pair)
        for index, symbol in enumerate(self.symbols_of(token)):
            before, text = text, (*text, symbol)
            hits = [m for m in self.markers if text[-len(m[0]) :] == m[0]]
            if hits:
                symbols, kind, spelled = max(hits, key=lambda m: len(m[0]))
                if self.is_foreign(symbols, kind, found.pair):
                    found.foreign += 1
                else:
                    found.markers.append((kind, spelled, index + 1))
                if kind == "start":
                    found.pair = self.pairs.get(symbols, 0)
                found.whole_call |= kind == "implicit" and len(symbols) <= index + 1
                if not self.goes_on(symbols):
                    # Who skips special tokens does not see this one: what was half written before it goes on behind it.
                    dropped = len(symbols) == 1 and is_control(symbol) and self.vocabulary.flags[symbol[1]] & 2
                    text = before if dropped and not any(map(is_control, before)) else ()
        return self.half(text)[0], found

    def goes_on(self, symbols):
        return any(len(m[0]) > len(symbols) and m[0][: len(symbols)] == symbols for m in self.markers)

    def half(self, text, kind=None):
        """The longest end of the text that begins a marker (of a kind, spelled forms left out), and that marker."""
        for length in range(len(text), 0, -1):
            for symbols, k, spelled in self.markers:
                counts = k == kind and not spelled and not self.is_foreign(symbols, k, self.pair)
                if (kind is None or counts) and len(symbols) > length:
                    if symbols[:length] == text[len(text) - length :]:
                        return text[len(text) - length :], symbols
        return (), None

    def nearly(self, text):
        """Kinds of the starts and ends that lack but their last character at the end of a text, and nothing else goes on."""
        kinds = set()
        for symbols, kind, spelled in self.markers:
            if kind not in ("start", "end") or any(map(is_control, symbols)) or not self.is_mark(symbols, False):
                continue
            last = max(i for i, byte in enumerate(symbols) if not 0x80 <= byte < 0xC0)
            for length in range(last, len(symbols)):
                begun = symbols[:length]
                shared = sum(m[0][:length] == begun for m in self.markers) > 1
                if characters(begun) >= 5 and text[len(text) - length :] == begun and not shared:
                    foreign = self.is_foreign(symbols, kind, self.pair)
                    kinds |= {"spelled"} if foreign else {kind, "spelled"} if spelled else {kind}
        return kinds

    def reachable(self, text):
        """Kinds of the markers that a text with one of their control tokens already written can still become."""
        kinds = set()
        for length in range(len(text), 0, -1):
            begun = text[len(text) - length :]
            if any(is_control(s) for s in begun):
                found = [m for m in self.markers if len(m[0]) > length and m[0][:length] == begun]
                kinds |= {"spelled" if self.is_foreign(symbols, k, self.pair) else k for symbols, k, _ in found}
        return kinds

    def has_pieces(self, text):
        """Whether the vocabulary has pieces for all of a text, so that no token of a single byte is needed."""
        tokens = [token for piece in self.pieces(text)[::2] for token in self.vocabulary.encode_bytes(piece.encode())]
        return not any(self.vocabulary.flags[token] & 4 for token in tokens)

    def finish_of(self, text):
        """Rule 12: what finishes a half-written end, with the canonical white space behind it, or a tool call's opener."""
        begun, marker = self.half(text, "end")
        if characters(begun) >= 2:
            return self.spell_before_text(marker[len(begun) :] + self.symbols(self.end_space))
        begun, marker = self.half(text, "implicit")
        plain = bool(begun) and not any(map(is_control, marker)) and len(self.pieces(bytes(marker).decode())) > 1
        try:
            tokens = self.spell(marker[len(begun) :]) if characters(begun) >= 2 and not plain else []
        except TokenizerError:  # pieces are missing
            tokens = []
        seen, never = [], any(map(self.is_never, tokens))
        for token in tokens:
            text, found = self.read(text, token)
            seen += found.kinds + ["foreign"] * found.foreign
        return tokens if seen == ["implicit"] and not never else []

    # --- state ---

    def reset(self):
        self.phase, self.text, self.raw_text = "before", (), b""
        self.seq, self.pos = [], 0
        self.loop = self.recipient = self.violation = self.forced = self.inert = False
        self.thinking = self.block = self.blocks = self.visible = self.answer = self.blank = self.extensions = 0
        self.length = self.header_count = 0
        self.space, self.closed_by, self.body, self.history = None, "none", "none", []
        self.pair = 0
        self.markup = self.paragraph = self.spoken = self.is_bare = self.in_prefix = self.in_close = self.in_off = False

    def says_on(self, prompt_ids):
        """Rule 10: whether a prompt holds a text that says that thinking is on."""
        texts = [self.symbols(text) for text in self.format.on_texts]
        controls = {symbol for text in texts for symbol in text if is_control(symbol)}
        prompt = ()
        for token in prompt_ids:
            prompt += (("control", token),) if ("control", token) in controls else tuple(self.bytes_of(token))
        return any(text == prompt[i : i + len(text)] for text in texts for i in range(len(prompt)))

    def start(self, turn_ids, raw=False, prompt_ids=()):
        self.reset()
        self.opening = "force" if self.policy.opening == "auto" and self.format.on_texts is None else self.policy.opening
        self.settle()
        silent = True
        for token in turn_ids:
            _, found = self.read(self.text, token)
            if found.markers:
                silent = not self.tail_visible(token, found)
            elif self.is_visible(token):
                silent = False
            self.account(token, self.thinking_is_over())
            self.settle()
        if raw and (not silent or self.phase == "before"):  # rule 5
            self.reset()
            self.settle()
        if self.opening == "auto" and self.phase == "before" and self.says_on(prompt_ids):  # rule 10
            self.opening, self.seq = "force", []
            self.settle()
        elif self.phase in ("answering", "heading") and self.closed_by != "none":
            self.closed_by = "prompt"
            if self.in_prefix or (self.in_off and self.prefix):
                self.seq, self.pos = [], 0
        self.answer = 0  # max_answer_tokens is about what is sampled
        return self

    def snapshot(self):
        """What has to agree with the C core's row."""
        return {
            "phase": self.phase, "thinking": self.thinking, "block": self.block, "blocks": self.blocks,
            "visible": self.visible, "answer": self.answer, "blank": self.blank, "extensions": self.extensions,
            "closed_by": self.closed_by, "length": self.length, "forced": self.forced, "violation": self.violation,
            "next": self.seq[self.pos] if self.seq else None, "inert": self.inert,
            "markup": self.markup, "paragraph": self.paragraph, "spoken": self.spoken,
            "bare": self.is_bare, "pair": self.pair,
        }  # fmt: skip

    # --- advance ---

    def advance(self, token):
        if self.phase == "done" or self.inert:
            return
        if token < 0:
            self.inert, self.forced, self.violation, self.seq, self.pos = True, False, False, [], 0
            self.markup = self.paragraph = self.spoken = self.is_bare = False
            return
        is_over = self.thinking_is_over()
        self.length += 1
        if token in self.eos:
            early = self.phase != "answering" or self.visible < self.policy.min_answer_tokens
            self.violation = early and not (self.phase == "before" and self.policy.min_answer_tokens == 0)
            self.loop = self.forced = False
            self.phase, self.seq, self.pos = "done", [], 0
            return
        self.account(token, is_over)
        self.settle()

    def tail_visible(self, token, found):
        behind = self.symbols_of(token)[found.markers[-1][2] :]
        return bool(bytes(behind).strip(WHITE))

    def account(self, token, is_over):
        self.loop = self.violation = self.forced = False
        in_prefix, in_off = bool(self.seq) and self.in_prefix, bool(self.seq) and self.in_off
        if self.seq and self.seq[self.pos] == token:
            self.forced = True
            self.pos += 1
            if self.pos == len(self.seq):
                self.seq, self.pos = [], 0
        elif self.seq:
            self.seq, self.pos = [], 0
            if is_over and token == self.plan():  # rule 19
                self.closed_by = self.closed_by if self.phase == "closing" else "budget"
                self.phase, self.is_bare, self.forced = "closing", True, True
            elif self.phase == "closing":
                self.phase, self.closed_by, self.is_bare = "thinking", "none", True
        before, raw_before = self.text, self.raw_text
        self.text, found = self.read(self.text, token)
        self.raw_text += self.bytes_of(token)
        was = self.phase
        if found.last is not None or found.markers:
            quoted = was == "answering" and self.policy.markers_in_answer == "allow" and not self.is_channel
            quoted = quoted and found.markers[-1][:2] not in {("answer", False), ("implicit", False), ("body", False)}
            if quoted:
                self.violation = True
            elif self.follow(token, found, was):
                if found.pair != self.pair and self.in_close:  # what is left of it is another pair's
                    self.seq, self.pos = [], 0
                self.pair = found.pair
                return
        visible = self.is_visible(token)
        if was == "thinking":
            fits = self.spoken and self.extension_fits(len(self.extend) - 1)
            extends = not self.forced and fits and (token, True) == self.extension_aim(raw_before)
            self.markup |= self.shows_markup(before, token)
            self.spoken |= visible and not self.half(self.text, "start")[0]
            if self.in_start_space(token) or self.forced:  # rule 7
                return
            self.thinking += 1
            self.block += 1
            self.history.append(token)
            self.loop = self.repeats()
            if extends:  # rule 18
                self.extensions += 1
                self.begin(self.extend, 1)
        elif was == "closing":
            self.space = None
        elif was == "heading":
            if self.body == "free" or (self.forced and not self.seq):
                self.header_count += 1
        elif was == "before" and not self.breaks_silence(before, token):
            self.blank += not visible and not self.forced
        elif was == "before" and self.is_channel:
            if not self.forced and not self.reachable(self.text):
                self.begin_header("free")
        else:
            if was == "before":
                self.begin_answer("final", 0)
                visible = True
            self.markup |= self.shows_markup(before, token)
            self.paragraph |= visible and raw_before.endswith(b"\n\n") and self.visible > 0  # 20a
            said = (in_prefix or in_off) and self.forced
            self.visible += visible and not said
            self.answer += not self.forced
            self.blank = 0 if visible and not said else self.blank + (not self.forced)

    def follow(self, token, found, was):
        """Rule 1: the last marker decides, legal or not."""
        thinking = was in ("thinking", "closing")
        self.blocks += found.kinds.count("start")
        if found.counted > 1:
            self.violation = True
        kind, tail_visible = found.last, self.tail_visible(token, found)
        if kind == "start":
            if thinking or self.blocks > self.policy.max_think_blocks:
                self.violation = True
            self.phase, self.closed_by, self.block, self.history = "thinking", "none", 0, []
            self.markup = self.paragraph = self.spoken = self.is_bare = False
            tail = bytes(self.symbols_of(token)[found.markers[-1][2] :])
            self.space = tail if self.start_space.encode().startswith(tail) else None
        elif kind == "end":
            if not thinking and not (was == "answering" and self.body == "preamble") and not self.forced:
                self.violation = True
            if self.forced and was != "closing":  # of the thinking-off text
                self.closed_by = "budget"
            elif was in ("thinking", "before"):
                self.closed_by = "model"
            if self.is_channel:
                self.begin_header("none")
            else:
                self.begin_answer("final", tail_visible)
                if was != "answering" and not (self.seq and self.in_off):  # which ends in the prefix by itself
                    self.begin_prefix(token, found)
        elif kind == "answer":
            if thinking or (was == "answering" and self.is_channel):
                self.violation = True
            if thinking:
                self.closed_by = "model"
            self.begin_answer("final", tail_visible)
            if was == "heading":
                self.begin_prefix(token, found)
        elif kind == "implicit":
            if not thinking:
                return False
            self.closed_by = "implicit"
            self.begin_answer("final", self.is_visible(token))  # the opener belongs to the answer
            self.markup = True  # what it opens will be closed
        elif kind == "tool":
            self.violation |= was not in ("heading", "before")
            self.begin_header("free")
        elif kind == "body":
            if was not in ("heading", "before"):
                self.violation |= self.is_channel or thinking
                return False
            body = "call" if self.recipient else "preamble" if self.body == "free" else "final"
            self.begin_answer(body, tail_visible)
        elif kind == "header":
            if was != "before":
                self.violation |= was != "heading"
                self.begin_header("none")
                if not self.seq:
                    self.begin(self.header, 1)
        elif kind == "call_end":
            self.violation |= was != "answering" or self.body != "call"
            self.begin_header("none")
        else:
            if kind == "recipient" and was in ("heading", "before"):
                self.recipient = True
            return False
        return True

    def begin(self, seq, pos=0):
        self.seq, self.pos = (list(seq), pos) if pos < len(seq) else ([], 0)
        self.in_prefix = self.in_close = self.in_off = False

    def begin_prefix(self, token, found):
        """Rule 19: what is said behind an end marker."""
        room = INF if self.limit is None else self.limit - self.length
        if self.tail_visible(token, found) or self.closed_by == "none" or not self.prefix:
            return
        if self.policy.answer_prefix_on == "forced" and self.closed_by == "model":
            return
        if room > len(self.prefix) + self.policy.min_answer_tokens:
            has_tail = len(self.symbols_of(token)) > found.markers[-1][2]
            space = "" if self.is_channel else self.end_space[: len(self.end_space) - len(self.end_space.lstrip())]
            lengths = [sum(len(self.bytes_of(t)) for t in self.prefix[: i + 1]) for i in range(len(self.prefix))]
            self.begin(self.prefix, sum(length <= len(space) for length in lengths) if has_tail else 0)
            self.in_prefix = bool(self.seq)

    def begin_answer(self, body, visible):
        self.markup = self.paragraph = self.spoken = self.is_bare = False
        self.phase, self.body, self.visible, self.blank = "answering", body, int(visible), 0

    def begin_header(self, body):
        self.phase, self.body, self.header_count = "heading", body, 0
        if body == "none":
            self.recipient = False

    def in_start_space(self, token):
        rest = None if self.space is None else self.start_space.encode()[len(self.space) :]
        text = self.bytes_of(token)
        if rest is not None and text and rest.startswith(text):
            self.space += text
            return True
        self.space = None
        return False

    def breaks_silence(self, before, token):
        """Rule 10: visible text outside a live start prefix."""
        had, _ = self.half(before, "start")
        now, live = (*had, *self.symbols_of(token)), self.half(self.text, "start")[0]
        outside = b"".join(self.plain(symbol) for symbol in now[: len(now) - len(live)])
        return bool(outside.strip(WHITE)) and (bool(had) or self.is_visible(token))

    def plain(self, symbol):
        return self.bytes_of(symbol[1]) if is_control(symbol) else bytes([symbol])

    def repeats(self):
        """Rule 16."""
        loop_tokens = self.policy.loop_tokens
        length = loop_tokens + (3 if self.pending() else 0)  # so that a character is finished, if it ever is
        last = self.history[-length:]
        if not loop_tokens or len(last) < length:
            return False
        return any(all(last[i] == last[i - p] for i in range(p, length)) for p in range(1, loop_tokens // 4 + 1))

    # --- looking ahead ---

    def close_room(self):
        """Rule 8."""
        answer = max(self.policy.reserve_answer_tokens, self.policy.min_answer_tokens)
        return self.longest_close + self.header_tokens + answer + 1

    def thought(self):
        """What counts for the budget."""
        return self.block if self.policy.budget_per == "block" else self.thinking

    def thinking_left(self):
        left = INF if self.policy.max_thinking_tokens is None else self.policy.max_thinking_tokens - self.thought()
        left = 0 if self.opening == "forbid" else left
        return left if self.limit is None else min(left, self.limit - self.length - self.close_room())

    def thinking_is_over(self):
        """Or has no room to begin, so that what is still forced in front of its end is optional."""
        return self.phase == "closing" or (self.phase == "thinking" and self.thinking_left() <= 0)

    def answer_left(self):
        left = INF if self.policy.max_answer_tokens is None else self.policy.max_answer_tokens - self.answer
        return left if self.limit is None else min(left, self.limit - self.length)

    def answer_may_restart(self):
        """Whether the least answer still fits if its visible tokens are counted anew (rule 9)."""
        policy = self.policy
        if policy.max_answer_tokens is not None and policy.max_answer_tokens - self.answer < policy.min_answer_tokens:
            return False
        return self.limit is None or self.limit - self.length > policy.min_answer_tokens + 1

    def extension_fits(self, rest):
        """Rule 18, and that closing still fits behind what is to come of the message."""
        if self.thinking >= self.policy.min_thinking_tokens or self.extensions >= self.policy.max_extensions:
            return False
        return self.limit is None or self.limit - self.length - self.close_room() >= rest

    def extension_aim(self, text):
        """Rule 18: (what a wish to end leads to, whether that begins the message)."""
        lead = self.lead.encode()
        have = next(n for n in range(len(lead), -1, -1) if text.endswith(lead[:n]))
        return (self.extend[0], True) if have == len(lead) else (self.spell_before_text(lead[have:])[0], False)

    def line_breaks(self):
        """The token that is a line break, if there is one that may be sampled."""
        try:
            tokens = self.spell(b"\n")
        except TokenizerError:
            return []
        plain = len(tokens) == 1 and self.read((), tokens[0]) == ((), Found()) and not self.is_never(tokens[0])
        return tokens if plain else []

    def is_mark(self, symbols, spelled):
        """Whether an end begins, in plain bytes, with punctuation or a symbol (U+2000 to U+2FFF)."""
        first = symbols[0]
        if spelled or is_control(first):
            return False
        return first == 0xE2 or (first < 0x7F and chr(first) in string.punctuation)

    def shows_markup(self, before, token):
        """The character that such an end begins with, or a backtick; at the text's end it counts with the next token."""
        chars = [characters(self.half(text, "end")[0]) for text in (before, self.text)]
        return chars[0] == 1 or (chars[1] != 1 and self.has_markup(token))

    def has_markup(self, token):
        return bool(self.mark_texts) and any(text in self.bytes_of(token) for text in (*self.mark_texts, b"`"))

    def begun_ends(self):
        """20a: the kinds by which tokens begin an end, where they can hardly begin anything else."""
        chars = characters(self.half(self.text, "end")[0])
        if chars >= 2 or self.markup:
            return set()
        text = self.raw_text
        if chars:
            text = text[: max(i for i, byte in enumerate(text) if not 0x80 <= byte < 0xC0)]
        return set() if text[-1:] and text[-1] in QUOTES else {"begins end"}

    def start_is_legal(self):
        policy = self.policy
        if not self.answer_may_restart():
            return False
        if self.blocks >= policy.max_think_blocks or self.opening == "forbid":
            return False
        used = 0 if policy.budget_per == "block" else self.thinking
        if policy.max_thinking_tokens is not None and used >= policy.max_thinking_tokens:
            return False
        return self.limit is None or self.thinking_left() > self.header_tokens

    def pending(self, text=None):
        """Bytes that the last character still misses."""
        text = self.raw_text if text is None else text
        for have in (1, 2, 3):
            tail = text[len(text) - have :] if have <= len(text) else b""
            if not tail or 0x80 <= tail[0] < 0xC0:
                continue
            for more in range(1, 4):
                for low in (0x80, 0x90, 0xA0):
                    try:
                        (tail + bytes([low] + [0x80] * 2)[:more]).decode()
                    except UnicodeDecodeError:
                        continue
                    return more if tail[0] >= 0xC2 else 0
            return 0
        return 0

    def at_boundary(self):
        """Rule 14."""
        if self.block < 1 or self.pending():
            return False
        if self.raw_text.endswith(b"\n"):
            return True
        end = re.search(rb"(.?)([.!?]|\xe3\x80\x82|\xef\xbc\x81|\xef\xbc\x9f|\xef\xbc\x8e)\Z", self.raw_text, re.S)
        return self.policy.close_at == "sentence" and bool(end) and not end[1].isdigit()

    def settle(self):
        """What has to be forced next."""
        policy = self.policy
        if self.seq or self.phase == "done":
            return
        reach = self.reachable(self.text)
        if self.phase == "before" and self.opening_due():
            self.begin(self.opening_due())
            self.in_off = self.opening == "forbid"
        elif self.phase == "before" and self.is_channel and not reach:
            self.begin(self.channel)
        elif self.phase == "heading" and self.body == "none" and not self.header_count and not reach:
            self.begin(self.header)
        elif self.phase == "closing":
            self.begin_close()
        elif self.phase == "thinking":
            reason = None
            if self.thinking_left() <= 0:
                reason = "budget"
            elif self.thinking < policy.min_thinking_tokens:
                return
            elif self.loop:
                reason = "loop"
            elif self.thinking_left() <= policy.grace_tokens and self.at_boundary():
                reason = "boundary"
            if reason:
                self.phase, self.closed_by = "closing", reason
                self.begin_close()

    def opening_due(self):
        """Rule 10, as long as there is room for what it leads to."""
        opening, room = [], 0
        if self.opening == "force":
            begun, marker = self.half(self.text, "start")
            opening, room = self.open, self.close_room()
            if begun and (len(begun) > 1 or is_control(begun[0])):
                opening = self.spell_before_text(marker[len(begun) :] + self.symbols(self.start_space))
        elif self.opening == "forbid":
            opening, room = self.off, self.policy.min_answer_tokens
        fits = self.limit is None or not self.length or self.limit - self.length - len(opening) >= room
        return opening if fits else []

    def begin_close(self):
        after_line = self.closes_line and self.block > 0 and self.raw_text.endswith(b"\n")
        (here, found), (alone, wanted) = self.read(self.text, self.bare[0]), self.read((), self.bare[0])
        reads = here == alone and set(found.kinds) == set(wanted.kinds)  # not so `ba` behind `a`, if `ab` is a start
        is_bare = reads and (self.is_bare or after_line)
        finish = self.finish_of(self.text)
        self.begin(finish or (self.bare if is_bare else self.close))
        self.in_close = not finish

    # --- decide ---

    def decide(self):
        """("free",), ("force", token, the token for it, edit), ("allow", tokens, edit) or an edit, which is
        ("edit", banned test, target, sources test, bias). The last two stand for what cannot be forced or allowed.
        """
        if self.phase == "done" or self.inert:
            return ("free",)
        due, allowed = None, None
        if self.phase in ("thinking", "closing"):
            edit = self.decide_thinking()
        elif self.phase == "heading" or (self.phase == "before" and self.is_channel):
            due, allowed, edit = self.decide_header()
        else:
            due, edit = self.decide_answer()
        if self.seq:
            due = self.seq[self.pos]
        if due is not None:
            return ("force", due, self.plan() if self.thinking_is_over() else None, edit)
        return ("allow", allowed, edit) if allowed else edit

    def plan(self):
        """Rule 11."""
        bare = self.spell(self.symbols(self.end))
        begun, marker = self.half(self.text, "end")
        if characters(begun) >= 2 or (begun and len(begun) >= len(self.symbols_of(bare[0]))):
            return self.spell(marker[len(begun) :])[0]
        return bare[0]

    def decide_thinking(self):
        policy = self.policy
        forbidden = {"start", "answer", "tool", "body", "header", "call_end", "turn start"}
        target, bias, moved, eos = None, 0.0, set(), "ban"
        if self.thinking < policy.min_thinking_tokens and not self.thinking_is_over():  # rule 13
            ends = {"end", "implicit", "grows"} | self.begun_ends()
            forbidden |= ends
            if self.spoken and self.extension_fits(len(self.extend)):  # rule 18
                target, moved = self.extension_aim(self.raw_text)[0], ends
        else:
            target, moved = self.plan(), {"whole call"}
            eos = "move" if policy.on_eos == "close" else "ban"
            soft = policy.soft_thinking_tokens
            in_call = self.finish_of(self.text) and characters(self.half(self.text, "end")[0]) < 2
            if soft is not None and self.thought() >= soft and not in_call:  # rule 17
                bias = policy.close_bias * (self.thought() - soft) / (policy.max_thinking_tokens - soft)
        if not self.spoken:
            forbidden.add("half start")
        left = self.thinking_left()
        return self.edit(forbidden, moved, eos, cut=max(left, 1) if left <= 3 else 0, target=target, bias=bias)

    def cut_of(self, left):
        """Rule 15; where what ends there could not be, the output's limit counts."""
        if left < 1 and self.limit is not None:
            left = self.limit - self.length
        return left if 1 <= left <= 3 else 0

    def answer_eos(self):
        return next((t for t in self.eos if "call_end" not in self.read((), t)[1].kinds), self.eos[0])

    def decide_answer(self):
        policy = self.policy
        left, missing = self.answer_left(), policy.min_answer_tokens - self.visible
        full = policy.max_answer_tokens is not None and self.answer >= policy.max_answer_tokens and missing <= 0
        preamble, due = INF, None
        if full and self.phase == "answering" and self.body != "call" and self.eos:
            due = self.answer_eos()
        if self.body == "preamble":  # ends while the least answer still fits behind it
            room = INF if self.limit is None else self.limit - self.length - self.header_tokens - 2
            most = INF if policy.max_answer_tokens is None else policy.max_answer_tokens
            preamble = min(most - self.answer, room) - policy.min_answer_tokens
            if preamble <= 0:
                due = self.vocabulary.added[self.format.channel.message_end]
        eos = "ban" if missing > 0 else "allow"
        blank = missing > 0 and (self.blank >= PATIENCE or left <= missing)  # rule 20
        left = min(left, preamble)
        cut = self.cut_of(left)
        if policy.markers_in_answer == "allow" and self.phase == "answering" and not self.is_channel:
            return due, self.edit(None if self.answer_may_restart() else {"answer"}, set(), eos, cut=cut, blank=blank)
        forbidden, target, moved = {"end"}, None, set()
        if left <= 1:
            forbidden |= {"half start", "half end"}
        if not self.start_is_legal() or self.is_channel:
            forbidden.add("start")
        if not self.answer_may_restart():
            forbidden.add("answer")
        if self.is_channel:
            forbidden |= {"answer", "tool", "body", "header"}
            if self.body == "call":
                eos = "only call end" if eos == "allow" else eos
            else:
                forbidden.add("call_end")
                eos = "not call end" if eos == "allow" else eos
            if self.body == "preamble" and missing > 0:
                eos = "ban"
            elif self.body == "preamble":  # not the turn's end: EOS ends the message (rule 11)
                eos, target = "move", self.vocabulary.added[self.format.channel.message_end]
                forbidden.discard("end")
        elif self.phase == "answering":  # rule 20a
            sources = {"end"} | self.begun_ends()
            forbidden |= sources
            if not self.text and self.visible and not self.raw_text.endswith(b"\n\n"):
                done = self.paragraph and missing <= 0 and self.eos
                target = self.answer_eos() if done else self.newline
                moved = sources if target is not None else set()
        return due, self.edit(forbidden, moved, eos, cut=cut, blank=blank, target=target)

    def decide_header(self):
        room = INF if self.limit is None else self.limit - self.length
        forbidden = {"start", "end", "answer", "tool", "header", "call_end"}
        if self.body == "free":
            behind = 0 if self.recipient else self.header_tokens + 1  # of a preamble: its end, and one more header
            left = min(HEADER_PATIENCE - self.header_count, room - behind - self.policy.min_answer_tokens - 2)
            due = self.spell(self.symbols(self.format.channel.body))[0] if left <= 0 else None
            return due, None, self.edit(forbidden, set(), "ban", cut=self.cut_of(left))
        edit = self.edit(forbidden | {"body"}, set(), "ban")
        reach = self.reachable(self.text)
        legal = {"answer", "tool", "start"} & (reach or {"answer", "tool", "start"})
        if len(legal) > 1:
            if not self.start_is_legal():
                legal.discard("start")
            if legal != {"tool"} and room <= self.header_tokens + HEADER_PATIENCE + self.policy.min_answer_tokens + 2:
                legal.discard("tool")
        allowed = [t for t in range(self.vocabulary.num_tokens) if self.goes_towards(t, legal, bool(reach))]
        if len(allowed) > 1 and room <= 2 * self.header_tokens + self.policy.min_answer_tokens + 2:
            allowed = [max(allowed, key=lambda token: (len(self.bytes_of(token)), -token))]  # a name takes no more tokens
        if len(allowed) > 1:
            return None, set(allowed), edit
        return allowed[0] if allowed else self.header[0], None, edit

    def goes_towards(self, token, legal, inside):
        """Whether all of a token continues what is half written towards, or to the end of, a legal marker."""
        symbols = self.symbols_of(token)
        if not symbols or (not inside and not is_control(symbols[0])):
            return False
        text = (*self.half(self.text)[0], *symbols)
        text_after, found = self.read(self.text, token)
        if found.markers:
            whole = [k for s, k, _ in self.markers if s == text]
            return bool(set(found.kinds) & legal) and bool(whole)
        return self.half(text_after)[0] == text and bool(self.reachable(text_after) & legal)

    def edit(self, forbidden, moved, eos, cut=0, blank=False, target=None, bias=0.0):
        half_written, pending = bool(self.half(self.text)[0]), self.pending()

        def is_moved(token):
            if token in self.eos:
                return eos == "move"
            return bool(moved & self.kinds_of(self.text, token))

        def is_banned(token):
            if token in self.eos:
                if eos in ("only call end", "not call end"):
                    return ("call_end" in self.kinds_of(self.text, token)) != (eos == "only call end")
                return eos in ("ban", "move")
            if moved & self.kinds_of(self.text, token) or (forbidden is not None and self.is_forbidden(token, forbidden)):
                return True
            if forbidden is not None and half_written and self.is_inert(token):  # rule 2
                return True
            if blank and not self.is_visible(token):
                return True
            if cut and self.missing_after(token, pending) >= cut:  # rule 15
                return True
            return self.is_never(token)

        return ("edit", is_banned, target, is_moved, bias)

    def reach_of(self, text, token):
        """Kinds that a marker with control tokens can still become once the token is there."""
        return self.reachable(self.read(text, token)[0]) if self.symbols_of(token) else set()

    def kinds_of(self, text, token):
        """Kinds that a token completes; "spelled" and "multi" forbid it everywhere, "turn start" in the thinking, "grows"
        below the minimum, and "whole call" is moved."""
        before, (text, found) = self.half(text, "end")[0], self.read(text, token)
        kinds = set(found.kinds) | {"spelled" for _, spelled, _ in found.markers if spelled}
        kinds |= {"spelled"} if found.foreign else set()
        if found.counted > 1:
            kinds.add("multi")
        if token in self.turn_starts:
            kinds.add("turn start")
        if found.whole_call:
            kinds.add("whole call")
        symbols, half = self.symbols_of(token), self.half(text, "end")[0]
        if max(characters(half), characters(self.half(text, "implicit")[0])) > 2 and symbols:
            kinds.add("grows")
        if self.reachable(text):
            return kinds - {None}
        if symbols:
            kinds |= self.nearly(text)
        if characters(half) >= 2 and symbols:
            kinds.add("half end")
        others = max(characters(half), characters(self.half(text, "implicit")[0]))
        if characters(self.half(text, "start")[0]) >= 2 > others and symbols:
            kinds.add("half start")
        if characters(half) >= 2 > characters(before) and half[0] in self.marks:
            behind = symbols[: len(symbols) - len(half)]
            if not behind or is_control(behind[-1]) or behind[-1] not in QUOTES:
                kinds.add("begins end")
        return kinds - {None}

    def is_forbidden(self, token, forbidden):
        forbidden = forbidden | {"spelled", "multi"}
        reach = self.reach_of(self.text, token)
        return bool(self.kinds_of(self.text, token) & forbidden) or bool(reach and not reach - forbidden)

    def missing_after(self, token, pending):
        data = self.bytes_of(token)
        if all(0x80 <= byte < 0xC0 for byte in data):
            return max(0, pending - len(data))
        lead = max(i for i, byte in enumerate(data) if not 0x80 <= byte < 0xC0)
        want = 1 if data[lead] < 0xC2 or data[lead] >= 0xF5 else 2 + (data[lead] >= 0xE0) + (data[lead] >= 0xF0)
        return max(0, want - (len(data) - lead))

    def is_never(self, token):
        """Rule 3, and special tokens whose own text begins or holds a marker."""
        if token >= self.vocabulary.num_tokens or token in self.eos:
            return False
        if self.vocabulary.flags[token] & 8:
            return True
        text, found = self.read((), token)
        completes = found.markers or found.foreign
        return bool(self.bytes_of(token) and self.is_inert(token) and (self.half(text)[0] or completes))

    # --- logits ---

    def apply(self, logits):
        """The edited row, as a new list of floats."""
        can = lambda t: logits[t] > -INF  # noqa: E731  NaN reads as -inf
        action, width = self.decide(), len(logits)
        if action[0] == "free":
            return list(logits)
        if action[0] == "force":
            due, plan, (_, banned, *_) = action[1:]
            for token, legal in ((due, True), (plan, plan is not None and not banned(plan))):
                if legal and token < width and can(token):
                    return [0.0 if t == token else -INF for t in range(width)]
            action = action[3]
        if action[0] == "allow":
            allowed = {t for t in action[1] if t < width}
            if any(map(can, allowed)):
                return [v if t in allowed else -INF for t, v in enumerate(logits)]
            action = action[2]
        _, banned, target, moved, bias = action
        out = list(logits)
        if target is not None and target < width and can(target) and not banned(target):
            sources = [logits[t] for t in range(width) if moved(t) and not math.isnan(logits[t])]
            out[target] = max([logits[target], *sources]) + bias
        bans = [banned(t) for t in range(width)]
        if not any(can(t) and not bans[t] for t in range(width)):
            return list(logits)
        return [-INF if bans[t] else out[t] for t in range(width)]


def is_control(symbol):
    return isinstance(symbol, tuple)


def characters(symbols):
    """Length as people count: a control token is two, continuation bytes none."""
    return sum(2 if is_control(s) else not 0x80 <= s < 0xC0 for s in symbols)
