"""Hostile generation with real vocabularies, and readers of the text that share no code with the package.

A `Bench` is one tokenizer with one format compiled for it. `generate` samples many sequences at once from full-width
rows of logits that a *taste* has bent; `Reading` holds the regular expressions that a finished or a cut output has to
match. What a token spells is worked out here as well, from the tokenizer's own names of its tokens.
"""

from __future__ import annotations

import bisect
import codecs
import re
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from bans import Denied, Watch

from thinkguard import ThinkPolicy, ThinkProgram
from thinkguard.core._core import StateBatch
from thinkguard.errors import InputError, PolicyError

WHITE = " \t\n\r\f\v"
VISIBLE = re.compile(r"[^ \t\n\r\f\v]")
NUM_SLOTS = 8


def any_of(texts):
    return "|".join(map(re.escape, texts)) or "(?!)"


@dataclass(frozen=True)
class Reading:
    """How a family's text is read: markers, what opens an answer, the openers of tool calls, which end the reasoning."""

    starts: tuple[str, ...] = ("<think>",)
    ends: tuple[str, ...] = ("</think>",)
    openers: tuple[str, ...] = ()
    implicit: tuple[str, ...] = ()
    off: str = r"<think>[ \n]*</think>"
    space: bytes = b"\n"  # what may follow the start without being counted
    paired: bool = False  # whether no other end closes what a start began

    @property
    def markers(self):
        return (*self.starts, *self.ends)

    def complaint(self, text, policy, *, whole):
        """Say what is wrong with a decoded output without its EOS, "" if it is as its policy asks."""
        start, end = any_of(self.starts), any_of(self.ends)
        answer = f"(?:(?!{start}|{end})[\\s\\S])*"
        reasoning = f"(?:(?!{start}|{end}|{any_of(self.openers)}|{any_of(self.implicit)})[\\s\\S])*"
        pairs = zip(map(re.escape, self.starts), map(re.escape, self.ends), strict=True) if self.paired else [(start, end)]
        called = f"(?={any_of(self.implicit)})"  # an opener belongs to the answer
        block = "|".join(f"(?:{opened}){reasoning}(?:{own}|{called})" for opened, own in pairs)
        block = f"(?:{block})"
        most = policy.max_think_blocks
        if policy.markers_in_answer == "allow":
            answer = r"[\s\S]*"
            if opening_of(policy) == "allow":  # nothing tells a quoted marker from one that is meant
                empty = whole and policy.min_answer_tokens and not VISIBLE.search(text)
                return "the answer is empty" if empty else ""
        if opening_of(policy) == "forbid":
            shape = f"{self.off}(?P<answer>{answer})"
        elif opening_of(policy) == "force":
            shape = f"(?:{block}{answer}){{0,{most - 1}}}{block}(?P<answer>{answer})"
        else:
            shape = f"(?:{answer}{block}){{0,{most}}}(?P<answer>{answer})"
        match = re.fullmatch(shape, text)
        if whole:
            if not match:
                return "the whole text has another structure"
            shown = re.split(any_of(self.openers), match["answer"])[-1].lstrip(" \n")
            shown = shown.removeprefix(policy.answer_prefix.lstrip(" \n"))  # which is no answer yet
            if policy.min_answer_tokens and not VISIBLE.search(shown):
                return "the answer is empty"
            return ""
        if match:
            return ""
        inside = f"(?:{answer}{block}){{0,{most - 1}}}{answer}(?:{start}){reasoning}"
        if opening_of(policy) == "force":
            inside = f"(?:{block}{answer}){{0,{most - 1}}}(?:{start}){reasoning}"
        if opening_of(policy) != "forbid" and re.fullmatch(inside, text):
            return ""
        begun = self.starts if opening_of(policy) == "force" else ("<think>\n\n</think>", *self.starts, *self.ends)
        half = opening_of(policy) == "force" or opening_of(policy) == "forbid"
        if half and (any(marker.startswith(text) for marker in begun) or re.fullmatch(f"(?:{start})\\s*", text)):
            return ""
        if opening_of(policy) == "forbid" and re.fullmatch(f"(?:{start})\\s*(?:{any_of(_beginnings(self.ends))})?", text):
            return ""
        return "what there is of the text begins no text with the right structure"

    def complaint_of(self, output, text, *, whole):
        """`complaint` of an output whose opening, perhaps, another processor did not let the guard write."""
        policy, denied = output.job.policy, output.denied
        wrong = self.complaint(text, policy, whole=whole)
        if wrong and (denied.opening or denied.close):
            if opening_of(policy) == "forbid" and not self.complaint(text.lstrip(WHITE), policy, whole=whole):
                return ""
            return self.complaint(text, denied.allowance(policy), whole=whole)
        return wrong


def opening_of(policy):
    """What opening= comes to: no format here says that its prompts can be without thinking."""
    return "force" if policy.opening == "auto" else policy.opening


def _beginnings(texts):
    return [text[:length] for text in texts for length in range(len(text), 0, -1)]


class Harmony(Reading):
    """Messages with headers: analysis, then perhaps preambles, then a final answer or a tool call."""

    @property
    def markers(self):
        return ("<|channel|>analysis<|message|>", "<|end|>", "<|channel|>final<|message|>")

    def complaint(self, text, policy, *, whole):
        control = r"<\|(?:start|channel|message|end|call)\|>"
        body = f"(?:(?!{control})[\\s\\S])*"
        header = f"(?:(?!{control}|to=)[\\s\\S])*"
        analysis = rf"<\|channel\|>analysis<\|message\|>{body}<\|end\|>"
        preamble = rf"<\|channel\|>commentary{header}<\|message\|>{body}<\|end\|>"
        final = rf"<\|channel\|>final<\|message\|>(?P<final>{body})"
        call = rf"<\|channel\|>commentary{header}to=(?:(?!{control})[\s\S])*<\|message\|>(?P<call>{body})"
        again = r"<\|start\|>assistant"
        first = {"force": f"{analysis}{again}", "allow": "", "forbid": ""}[opening_of(policy)]
        middle = "" if opening_of(policy) == "forbid" else f"(?:(?:{analysis}|{preamble}){again})*"
        last = final if opening_of(policy) == "forbid" else f"(?:{final}|{call})"
        if text.count("<|channel|>analysis<|message|>") > policy.max_think_blocks:
            return "too many blocks of reasoning"
        match = re.fullmatch(first + middle + last, text)
        if whole:
            if not match:
                return "the whole text has another structure"
            shown = match["final"] if match["final"] is not None else match.groupdict().get("call")
            shown = shown.lstrip(" \n").removeprefix(policy.answer_prefix.lstrip(" \n"))
            if policy.min_answer_tokens and not VISIBLE.search(shown):
                return "the answer is empty"
            return ""
        if match:
            return ""
        done = re.match(f"(?:(?:{analysis}|{preamble}){again})*", text)
        rest = text[done.end() :]
        begun = done[0]
        if opening_of(policy) == "force" and begun and not re.match(analysis, begun):
            return "the reasoning does not come first"
        if opening_of(policy) == "forbid" and begun:
            return "more than a final message"
        open_message = (
            rf"<\|channel\|>(?:analysis<\|message\|>{body}|commentary(?:(?!{control})[\s\S])*(?:<\|message\|>{body})?)"
        )
        if opening_of(policy) != "forbid" and re.fullmatch(f"{open_message}(?:<\\|end\\|>)?", rest):
            return ""
        heads = [f"{lead}<|channel|>{name}" for lead in ("", "<|end|><|start|>assistant") for name in
                 ("analysis<|message|>", "final<|message|>", "commentary")]  # fmt: skip
        tail = rest[rest.rindex("<|end|>") :] if "<|end|>" in rest else rest
        whole_before = not tail.startswith("<|end|>") or re.fullmatch(open_message, rest[: len(rest) - len(tail)])
        if whole_before and any(head.startswith(tail) for head in heads):
            return ""
        return "what there is of the text begins no text with the right structure"

    def complaint_of(self, output, text, *, whole):
        """Where a header could not be written, any text without the tokens of other markers may stand in its place."""
        policy, denied = output.job.policy, output.denied
        wrong = self.complaint(text, policy, whole=whole)
        if not wrong or not (denied.opening or denied.header):
            return wrong
        body = r"(?:(?!<\|(?:start|channel|message|end|call)\|>)[\s\S])*"
        header = r"(?:(?!<\|(?:message|end|call)\|>)[\s\S])*"
        message = rf"{header}<\|message\|>{body}"
        if text.count("<|channel|>analysis<|message|>") > policy.max_think_blocks:
            return "too many blocks of reasoning"
        if not re.fullmatch(rf"(?:{message}<\|end\|>)*(?:{message}|{header})", text):
            return "the whole text has another structure, whatever stands for its headers"
        last = text.rsplit("<|end|>", 1)[-1]
        if whole and not re.match(rf"{header}(?:<\|channel\|>final|to={header})<\|message\|>", last):
            return "the last message is neither an answer nor a call"
        return ""


@dataclass
class Output:
    """One generated sequence and how it came about."""

    job: Job
    ids: list[int] = field(default_factory=list)
    forced: list[bool] = field(default_factory=list)
    finished: bool = False
    denied: Denied = field(default_factory=Denied)


@dataclass
class Job:
    """What one sequence is asked for and how its sampler behaves."""

    policy: ThinkPolicy
    taste: object
    max_tokens: int | None = None
    stop: int = 80  # tokens, where the guard does not know a limit
    prompt: tuple[int, ...] = ()
    before: bytes = b""  # text of the assistant's turn that the prompt holds
    bans: tuple = ()  # what another processor bans before the guard sees a row


@cache
def _load(directory: Path):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(directory)


class Bench:
    """A tokenizer, a format compiled for it, and everything a hostile sampler wants to know about the vocabulary."""

    def __init__(self, name: str, directory: Path, format: str | None, reading: Reading) -> None:
        self.name, self.reading = name, reading
        self.tokenizer = _load(directory)
        self.program = ThinkProgram(format, self.tokenizer)
        self.num_tokens = self.program.vocabulary.num_tokens
        self.width = -(-self.num_tokens // 256) * 256 + 64  # wider than the vocabulary, as models are
        self.eos = self.program.eos_token_ids
        self.added = {str(content): token for token, content in self.tokenizer.added_tokens_decoder.items()}
        self.special = {self.added[content] for content in self.tokenizer.all_special_tokens if content in self.added}
        self.special |= {t for t, content in self.tokenizer.added_tokens_decoder.items() if content.special}
        self.pieces = self._spell_all()
        self.ordinary: dict[bytes, list[int]] = {}
        for token, piece in enumerate(self.pieces):
            if piece and token not in self.special and token not in self.added.values():
                self.ordinary.setdefault(piece, []).append(token)
        rng = np.random.default_rng(1)
        self.base = rng.normal(0, 1, (4, self.width)).astype(np.float32)
        words = [t for t, piece in enumerate(self.pieces) if re.fullmatch(rb" ?[a-zA-Z]{2,}", piece)]
        self.base[:, words] += 4
        self.words = np.array(words[:: len(words) // 40])  # where at most one of them is left, a token is forced
        self.num_sampled = 0

    def _spell_all(self) -> list[bytes]:
        """What each token spells, by GPT-2's table of bytes or by SentencePiece's rules."""
        shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [b for b in range(256) if b not in shown]
        table = {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}
        by_id = {token: content.encode() for content, token in self.added.items()}
        pieces = []
        names = self.tokenizer.convert_ids_to_tokens(list(range(self.num_tokens)))
        spm = "<0x0A>" in (names[t] for t in range(300))
        for token, name in enumerate(names):
            if token in by_id:
                pieces.append(by_id[token])
            elif name is None:
                pieces.append(b"")
            elif spm:
                byte = re.fullmatch("<0x([0-9A-F]{2})>", name)
                pieces.append(bytes.fromhex(byte[1]) if byte else name.replace("▁", " ").encode())
            else:
                pieces.append(bytes(table[c] for c in name) if all(c in table for c in name) else name.encode())
        return pieces

    @cached_property
    def pools(self) -> dict[str, np.ndarray]:
        """Tokens by what a hostile sampler can do with them."""
        texts = [
            b"\n" + marker.encode() for marker in (*self.reading.markers, *self.reading.openers, *self.reading.implicit)
        ]
        texts += [
            content.encode()
            for content in ("<|end|>", "<|start|>assistant", "<|message|>")
            if len(self.reading.markers) == 3
        ]
        near = set()
        chunks = {text[a:b] for text in texts for a in range(len(text)) for b in range(a + 1, len(text) + 1)}
        heads = {text[1:b] for text in texts for b in range(2, len(text) + 1)}
        tails = {text[a:] for text in texts for a in range(1, len(text))}
        for token, piece in enumerate(self.pieces):
            if not piece:
                continue
            if (
                piece in chunks
                or any(piece[-n:] in heads for n in range(1, len(piece)))
                or (len(piece) > 1 and any(piece[:n] in tails for n in range(2, len(piece))))
            ):
                near.add(token)
        starts = [self.added[s] for s in self.reading.starts if s in self.added]
        ends = [self.added[e] for e in self.reading.ends if e in self.added]
        parts = {}
        for name, marks in (("end", self.reading.ends), ("start", self.reading.starts)):
            spelled = [mark.encode() for mark in marks]
            parts[name] = {m[a:b] for m in spelled for a in range(len(m)) for b in range(a + 1, len(m) + 1)}
        pools = {
            "any": list(range(self.width)),
            "near": sorted(near),
            "white": [t for t, piece in enumerate(self.pieces) if piece and not piece.strip(b" \t\n\r\f\v")],
            "half": [t for t, piece in enumerate(self.pieces) if not _is_utf8(piece)],
            "special": sorted(set(self.added.values())) + list(range(self.num_tokens, self.width)),
            "eos": list(self.eos),
            "end": ends + [t for t, p in enumerate(self.pieces) if {p, p.strip()} & parts["end"]],
            "start": starts + [t for t, p in enumerate(self.pieces) if {p, p.strip()} & parts["start"]],
            "markers": starts + ends + [t for c, t in self.added.items() if any(c in m for m in self.reading.markers)],
            "byte": [t for piece, tokens in self.ordinary.items() if len(piece) == 1 for t in tokens],
            "tool": [t for c, t in self.added.items() if "tool" in c or c == "<|constrain|>"],
        }
        return {name: np.array(tokens, np.int64) for name, tokens in pools.items() if tokens}

    # --- splits of a text into tokens ---

    def splits(self, text: bytes, rng, most: int) -> list[list[int]]:
        """All ways to spell a text in ordinary tokens, or `most` of them drawn at random."""
        ways = [0] * len(text) + [1]
        choices: list[list[tuple[int, int]]] = [[] for _ in text]
        for at in reversed(range(len(text))):
            for stop in range(at + 1, len(text) + 1):
                if ways[stop]:
                    choices[at] += [(token, stop) for token in self.ordinary.get(text[at:stop], ())]
            ways[at] = sum(ways[stop] for _, stop in choices[at])
        if not ways[0]:
            return []

        def walk(number):
            tokens, at = [], 0
            while at < len(text):
                for token, stop in choices[at]:
                    if number < ways[stop]:
                        tokens.append(token)
                        at = stop
                        break
                    number -= ways[stop]
            return tokens

        if ways[0] <= most:
            return [walk(number) for number in range(ways[0])]
        return [walk(rng.randrange(ways[0])) for _ in range(most)]

    # --- generation ---

    def generate(self, jobs, rng) -> list[Output]:
        """Sample one output for each job: the largest logit of rows that its taste has bent and the guard edited."""
        waiting, outputs = list(jobs)[::-1], []
        logits = np.empty((NUM_SLOTS, self.width), np.float32)
        slots: list[tuple[Output, object, int]] = []
        while waiting or slots:
            while waiting and len(slots) < NUM_SLOTS:
                job = waiting.pop()
                try:
                    row = self.program.start(job.prompt, job.policy, max_tokens=job.max_tokens)
                except (InputError, PolicyError):
                    continue  # a limit that cannot hold what is asked for, or a message that spells a marker
                job.taste.begin(self, rng)
                for ban in job.bans:
                    ban.begin(self, job, rng)
                slots.append((Output(job), row, job.max_tokens or job.stop))
            if not slots:
                break
            batch = StateBatch([row for _, row, _ in slots])
            full = True
            while full:
                work = logits[: len(slots)]
                watched = {}
                for at, (output, row, _) in enumerate(slots):
                    np.copyto(work[at], self.base[rng.randrange(len(self.base))])
                    output.job.taste.bend(self, work[at], output, rng)
                    if output.job.bans:
                        action, phase = row.decide(), row.phase
                        for ban in output.job.bans:
                            ban.ban(self, work[at], output, action, rng)
                        watched[at] = Watch(action, phase, work[at])
                left_alone = self.program.apply(batch, work)
                tokens = work.argmax(axis=1)
                forced = np.isneginf(work[:, self.words]).sum(axis=1) >= len(self.words) - 1
                for at, watch in watched.items():
                    tokens[at], forced[at] = watch.read(work[at], slots[at][0].denied, self.words)
                told = sum(watch.is_told for watch in watched.values())
                assert left_alone == told, "apply counts other rows than those in which what was due could not be sampled"
                best = [work[at, token] for at, token in enumerate(tokens) if not slots[at][0].denied.stopped]
                assert all(value > -np.inf for value in best), "nothing finite was left"
                for at, (output, _, limit) in enumerate(slots):
                    token = int(tokens[at])
                    if output.denied.stopped:
                        full = False
                        continue
                    output.ids.append(token)
                    output.forced.append(bool(forced[at]))
                    output.finished = token in self.eos
                    full = full and not output.finished and len(output.ids) < limit
                    output.job.taste.took(self, token, bool(forced[at]), rng)
                batch.advance(tokens)
                self.num_sampled += len(slots)
            over = [s[0].finished or s[0].denied.stopped or len(s[0].ids) >= s[2] for s in slots]
            outputs += [s[0] for s, is_over in zip(slots, over, strict=True) if is_over]
            slots = [s for s, is_over in zip(slots, over, strict=True) if not is_over]
        return outputs

    # --- checks ---

    def encode(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids, skip=False):
        return self.tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)

    def check(self, output: Output) -> str:
        """Read an output by its text and by its token ids; say what is wrong, "" if nothing."""
        job, ids = output.job, output.ids
        policy, reading = job.policy, self.reading
        own = ids[:-1] if output.finished else ids
        text = job.before.decode() + self.decode(own)
        ends_open = output.denied and isinstance(reading, Harmony)  # in a preamble, or before the answer's header
        ends_open = ends_open or output.denied.ends_open
        whole = output.finished or (job.max_tokens is not None and not ends_open)
        wrong = reading.complaint_of(output, text, whole=whole)
        if wrong:
            return wrong
        if job.max_tokens is not None and len(ids) > job.max_tokens:
            return "longer than max_tokens"
        if whole and not output.finished and self._is_cut(own):
            return "the limit cut a character"
        if whole and not output.finished and policy.markers_in_answer == "ban" and (half := self._half_marker(text)):
            return f"the text ends in {half!r}"
        if policy.markers_in_answer == "ban":
            skipped = job.before.decode() + self.decode(own, skip=True)
            markers = [m for m in reading.markers if m not in self.added or self.added[m] not in self.special]
            if not isinstance(reading, Harmony) and len(markers) == len(reading.markers):
                wrong = reading.complaint_of(output, skipped, whole=whole)
                if wrong:
                    return f"without special tokens, {wrong}"
            else:
                parts = self._parts(own) if isinstance(reading, Harmony) else [self.decode(own, skip=True)]
                if any(marker in part for part in parts for marker in reading.markers):
                    return "without special tokens, a marker's text shows"
            for marker in (m for m in (*reading.markers, "<|start|>", "<|message|>", "<|channel|>") if m in self.added):
                if self.decode(own).count(marker) != own.count(self.added[marker]):
                    return f"a reader by token and a reader by text disagree about {marker!r}"
        return self._counts(output, own)

    def _is_cut(self, own) -> bool:
        """Whether the text ends inside a character."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(b"".join(self.pieces[token] for token in own if token < self.num_tokens))
        return bool(decoder.getstate()[0])

    def _half_marker(self, text) -> str:
        """Two characters or more of a marker in plain text that end a text, and begin no tool call or opener as well."""
        others = (*self.reading.openers, *self.reading.implicit)
        for marker in (m for m in self.reading.markers if not any(content in m for content in self.added)):
            for half in (marker[:length] for length in range(2, len(marker))):
                if text.endswith(half) and not any(other.startswith(half) for other in others):
                    return half
        return ""

    def _parts(self, own):
        """The texts between the control tokens of the markers, without special tokens."""
        cuts = [i for i, token in enumerate(own) if token in self.pools["markers"]]
        return [self.decode(own[a:b], skip=True) for a, b in zip([0, *cuts], [*cuts, len(own)], strict=True)]

    def _counts(self, output: Output, own) -> str:
        """Count the tokens that were sampled inside the reasoning and behind it."""
        job, reading, policy = output.job, self.reading, output.denied.allowance(output.job.policy)
        if policy.markers_in_answer == "allow":
            return ""
        pieces = [self.pieces[t] if t < self.num_tokens else b"" for t in own]
        ends = np.cumsum([len(job.before), *map(len, pieces)])[1:].tolist()  # of each token, in bytes
        text = job.before + b"".join(pieces)
        start = "|".join(re.escape(s) for s in reading.starts).encode()
        stop = "|".join(re.escape(e) for e in (*reading.ends, *reading.implicit)).encode()
        thinking, at, closed = 0, 0, True
        for opened in re.finditer(start, text):
            end = re.compile(stop).search(text, opened.end())
            first = bisect.bisect_left(ends, opened.end()) + 1 if opened.end() > len(job.before) else 0
            last = bisect.bisect_left(ends, end.end()) if end else len(own)
            closed, at, space = end is not None, last + 1, reading.space
            before = thinking
            if first and opened.end() < ends[first - 1]:  # the token that completes the start goes on
                behind = text[opened.end() : ends[first - 1]]
                space = space[len(behind) :] if space.startswith(behind) else b""
            for i in range(first, last):
                if pieces[i] and space.startswith(pieces[i]) and thinking == before:
                    space = space[len(pieces[i]) :]
                    continue
                space = b""
                thinking += not output.forced[i]
        if policy.max_thinking_tokens is not None and thinking > policy.max_thinking_tokens:
            return f"{thinking} tokens of thinking were sampled"
        if opening_of(policy) == "forbid" and thinking:
            return f"{thinking} tokens of thinking were sampled though it is forbidden"
        if opening_of(policy) == "force" and at and closed and policy.max_think_blocks == 1 and job.max_tokens is None:
            if thinking < policy.min_thinking_tokens and not job.before:
                return f"only {thinking} tokens of thinking were sampled"
        if isinstance(reading, Harmony) or policy.max_think_blocks > 1 or not closed:
            return ""
        if not at:
            return ""  # without reasoning before it, an answer begins behind what could have become a start
        answer = [i for i in range(at, len(own)) if not output.forced[i]]
        if policy.max_answer_tokens is not None and len(answer) > policy.max_answer_tokens:
            return f"{len(answer)} tokens of answer were sampled"
        if output.finished and opening_of(policy) == "force":
            behind = [pieces[i] for i in range(max(at - 1, 0), len(own)) if own[i] not in self.special]
            shown = sum(bool(piece.strip(b" \t\n\r\f\v")) for piece in behind)
            if shown < policy.min_answer_tokens:
                return f"the answer has only {shown} visible tokens"
        return ""


def _is_utf8(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


# --- tastes: how a sampler is bent ---


class Taste:
    """Each step, a few tokens of some pools are much liked."""

    MIXES = {  # noqa: RUF012
        "random": {"any": 4, "near": 1, "eos": 1, "white": 0.5, "half": 0.5, "special": 0.5},
        "eos": {"eos": 1},
        "end": {"end": 1},
        "start": {"start": 1},
        "white": {"white": 1},
        "half": {"half": 4, "any": 1, "eos": 0.2},
        "near": {"near": 6, "eos": 0.3},
        "broken": {"near": 3, "special": 2, "markers": 1, "eos": 0.2},
        "bytes": {"byte": 6, "markers": 0.3, "eos": 0.2},
        "tool": {"tool": 1, "any": 1, "eos": 0.1},
        "markers": {"markers": 2, "any": 1, "near": 0.5, "eos": 0.1},
        "both": {"start": 1, "end": 1, "eos": 0.3, "any": 0.5},
    }
    ALWAYS = ("eos", "end", "start", "white")  # all of the pool, at every step

    def __init__(self, name: str, often: float = 1.0) -> None:
        self.name, self.often = name, often

    def begin(self, bench: Bench, rng) -> None:
        mix = {pool: weight for pool, weight in self.MIXES[self.name].items() if pool in bench.pools}
        mix = mix or {"any": 1}
        self.names, self.weights = list(mix), list(mix.values())

    def bend(self, bench: Bench, row, output: Output, rng) -> None:
        if rng.random() >= self.often:
            return
        if self.name in self.ALWAYS:
            pool = bench.pools[self.name]
            row[pool] = 50 + 10 * np.random.default_rng(rng.getrandbits(32)).random(len(pool))
            return
        for name in rng.choices(self.names, self.weights, k=5):
            pool = bench.pools[name]
            row[pool[rng.randrange(len(pool))]] = 20 + 30 * rng.random()

    def took(self, bench: Bench, token: int, forced: bool, rng) -> None:
        pass


class Script(Taste):
    """Wants one sequence of tokens, begun after some free tokens of thinking or of answer."""

    def __init__(self, tokens, wait: int, where: str, stubborn: str, then: Taste) -> None:
        self.tokens, self.wait, self.where, self.stubborn, self.then = list(tokens), wait, where, stubborn, then

    def begin(self, bench, rng):
        self.at, self.free, self.answering = 0, 0, self.where == "thinking"
        self.then.begin(bench, rng)

    def wanted(self):
        return self.answering and self.free >= self.wait and self.at < len(self.tokens)

    def bend(self, bench, row, output, rng):
        if self.wanted():
            row[self.tokens[self.at]] = 1000
        elif self.answering and self.at < len(self.tokens):
            pass  # base logits: words
        elif not self.answering:
            pool = bench.pools["end"]
            row[pool] = 50
            markers = bench.pools.get("markers", pool)
            row[markers[rng.randrange(len(markers))]] = 49
            if output.forced and output.forced[-1] and not all(output.forced):
                self.answering, self.free = True, 0
            if any(e in bench.decode(output.ids) for e in bench.reading.ends):
                self.answering, self.free = True, 0
        else:
            self.then.bend(bench, row, output, rng)

    def took(self, bench, token, forced, rng):
        if self.wanted():
            if token == self.tokens[self.at] or (self.stubborn == "skip" and not forced):
                self.at += 1
            elif not forced:
                self.at = len(self.tokens)
        elif self.answering and not forced:
            self.free += 1


class Writer(Taste):
    """Writes valid text whatever happens, in tokens that often end inside a character."""

    def __init__(self, text: str, eos: float = 0.02) -> None:
        self.text, self.eos = text.encode(), eos

    def begin(self, bench, rng):
        self.at, self.stops = 0, False

    def boundary(self):
        return self.at >= len(self.text) or self.text[self.at] & 0xC0 != 0x80

    def bend(self, bench, row, output, rng):
        self.stops = self.stops or (self.boundary() and rng.random() < self.eos)
        if self.stops and self.boundary():
            row[list(bench.eos)] = 500
        short = rng.random() < 0.7
        for length in range(1, 25):
            for token in bench.ordinary.get(self.text[self.at : self.at + length], ()):
                row[token] = 100 + (25 - length if short else length) + rng.random()

    def took(self, bench, token, forced, rng):
        piece = bench.pieces[token] if token < bench.num_tokens else b""
        if not forced and piece and self.text.startswith(piece, self.at):
            self.at += len(piece)


# --- policies ---


def draw_policy(rng, **given) -> ThinkPolicy:
    """Any fields that go together."""
    while True:
        most = rng.choice([None, 0, 1, 2, 3, 5, 8, 13, 20, 40, 60])
        least = rng.choice([0, 0, 0, 1, 3, 8])
        extend = rng.choice([(None, 0)] * 3 + [("Wait", 1), ("\nHmm, let me check.", 2)]) if least else (None, 0)
        soft = rng.choice([(None, 0.0), (None, 0.0), (least, 30.0)])
        prefix = rng.choice(["", "", "", "\n\nFinal answer:", "So it is: "])
        fields = {
            "max_thinking_tokens": most,
            "min_thinking_tokens": least,
            "grace_tokens": rng.choice([0, 0, 3, 8]),
            "close_at": rng.choice(["line", "sentence"]),
            "close_message": rng.choice(["", "", "\n\nTime is up.", " so <"]),
            "soft_thinking_tokens": soft[0],
            "close_bias": soft[1],
            "extend_message": extend[0],
            "max_extensions": extend[1],
            "on_eos": rng.choice(["close", "close", "ban"]),
            "opening": rng.choice(["force", "force", "auto", "auto", "allow", "allow", "forbid"]),
            "max_think_blocks": rng.choice([1, 1, 1, 2, 3]),
            "min_answer_tokens": rng.choice([1, 1, 1, 2, 5, 0]),
            "max_answer_tokens": rng.choice([None, None, 3, 10]),
            "reserve_answer_tokens": rng.choice([0, 0, 3]),
            "loop_tokens": rng.choice([0, 0, 0, 8, 24]),
            "markers_in_answer": rng.choice(["ban"] * 9 + ["allow"]),
            "answer_prefix": prefix,
            "answer_prefix_on": rng.choice(["any", "forced"]) if prefix else "any",
        } | given
        try:
            return ThinkPolicy(**fields)
        except PolicyError:
            continue
