"""Another logits processor that stands before the guard and bans what the guard is about to force.

A *ban* sets tokens of a row to -inf, or to NaN, as `bad_words`, `allowed_token_ids` and `no_repeat_ngram_size` do. `Watch`
looks at one such row before the guard edits it and behind that; `Denied` counts what an output could not have.

Whatever is banned, an output holds no illegal marker, no EOS inside its thinking and no second start, as far as something
legal can be sampled; where nothing can, the output stops. It keeps its cap and its greatest answer but for one token in
each row in which the close, or EOS, could not be; what it may lack is a close, an opening or a header that could not be
written, and then, at a limit, what would have come behind them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from thinkguard.core._core import CONSTANTS

BEFORE, HEADING = 0, 3  # phases
FREE, FORCE, ALLOW = 0, 1, 3  # kinds of an action
VALUES = (-np.inf,) * 5 + (np.nan,)


@dataclass
class Denied:
    """Rows of one output in which what was due could not be sampled, by what it was part of."""

    opening: int = 0  # the opening, or the text that stands for no thinking
    close: int = 0  # a close that could go on with nothing else either
    header: int = 0  # what stands between two messages of a channel format
    eos: int = 0
    others: int = 0  # what is optional: white space, a message
    stopped: bool = False  # nothing that is legal could be sampled in the row behind the output's last token

    def __bool__(self) -> bool:
        return self.stopped or bool(self.opening + self.close + self.header + self.eos + self.others)

    @property
    def ends_open(self) -> bool:
        """Whether an output with a known limit may end before its structure is complete."""
        return self.stopped or bool(self.close + self.header)

    def allowance(self, policy):
        """The policy that an output keeps to: every row that was denied may have cost one token."""
        most, answer, opening = policy.max_thinking_tokens, policy.max_answer_tokens, policy.opening
        fields = {
            "max_thinking_tokens": None if most is None else most + self.close,
            "max_answer_tokens": None if answer is None else answer + self.eos,
        }
        if (self.opening or self.close) and opening == "forbid":
            fields |= {
                "opening": "allow", "max_think_blocks": 1, "max_thinking_tokens": self.close,
                "min_thinking_tokens": 0, "grace_tokens": 0, "soft_thinking_tokens": None, "close_bias": 0.0,
                "extend_message": None, "max_extensions": 0,
            }  # fmt: skip
        elif self.opening:
            fields["opening"] = "allow"
        return replace(policy, **fields)


class Watch:
    """A row that another processor has banned tokens of, and what the guard makes of it."""

    def __init__(self, action, phase, row) -> None:
        self.action, self.phase, self.before = action, phase, row.copy()
        self.closes = bool(action.as_dict()["flags"] & CONSTANTS["FORCE_AIM"])
        self.is_told = False  # whether `apply` has to count the row

    def can(self, token) -> bool:
        return 0 <= token < len(self.before) and self.before[token] > -np.inf  # not where it is NaN

    def is_legal(self, token) -> bool:
        return self.action.allows(token) or self.action.allows_in_place(token)

    def read(self, row, denied, words) -> tuple[int, bool]:
        """(token that is sampled, whether it is forced); what could not be is counted in `denied`.

        `words` are tokens that no policy forbids for long: as long as one of them can be sampled, something legal can.
        """
        token = int(row.argmax())
        if np.isnan(row[token]):
            token = int(np.where(np.isnan(row), -np.inf, row).argmax())
        action, due = self.action, self.action.token
        if not (row[token] > -np.inf and self.is_legal(token)):
            assert np.array_equal(row, self.before, equal_nan=True), "a row in which nothing legal is left was edited"
            legal = [t for t in np.flatnonzero(self.before > -np.inf).tolist() if self.is_legal(t)]
            assert not legal, f"token {token} was sampled though {legal[:5]} were legal"
            assert not any(self.can(t) for t in words), "words are banned"
            denied.stopped, self.is_told = True, self.action.kind != FREE
            return token, False
        assert self.can(token), f"token {token} was banned by another processor"
        if action.kind == ALLOW and not action.allows(token):
            self.is_told = True
            self.count(denied, goes_on=False)
            return token, False
        if action.kind != FORCE or token == due:
            return token, action.kind == FORCE
        assert not self.can(due), f"token {due} was due and could be sampled, but {token} was"
        self.is_told = True
        goes_on = self.closes and token == action.as_dict()["aim"]
        self.count(denied, goes_on=goes_on)
        return token, goes_on

    def count(self, denied, *, goes_on) -> None:
        policy, due = self.action.policy, self.action.token
        if due in policy.eos_token_ids:
            denied.eos += 1
        elif self.closes and not goes_on:
            denied.close += 1
        elif self.phase == HEADING:
            denied.header += 1
        elif self.phase == BEFORE or policy.source.opening == "forbid":
            denied.opening += 1
        else:
            denied.others += 1


class Words:
    """`bad_words`, `suppress_tokens`: some of what the guard writes is banned for the whole output."""

    def __init__(self, rng) -> None:
        self.parts = rng.choices(["end", "end", "start", "newline", "message", "eos", "letters"], k=rng.choice([1, 1, 2, 3]))

    def begin(self, bench, job, rng) -> None:
        self.value, self.words = rng.choice(VALUES), defaultdict(list)
        for part in self.parts:
            for word in self.spelled(bench, job.policy, part, rng):
                self.words[tuple(word[:-1])].append(word[-1])

    def spelled(self, bench, policy, part, rng):
        """Words as lists of tokens: the last of a word is banned behind the others."""
        if part == "eos":
            return [[token] for token in bench.eos]
        if part == "newline":
            return [[token] for token in bench.pools["white"].tolist() if b"\n" in bench.pieces[token]]
        if part == "letters":
            return [[token] for token in bench.pools["end"].tolist() if rng.random() < 0.5]
        texts = (
            [policy.close_message] if part == "message" else bench.reading.ends if part == "end" else bench.reading.starts
        )
        spelled = [bench.encode(before + text + after) for text in texts for before in ("", "\n") for after in ("", "\n\n")]
        if rng.random() < 0.5:
            return [word for word in spelled if word]
        return [[token] for word in spelled for token in word]

    def ban(self, bench, row, output, action, rng) -> None:
        for behind, tokens in self.words.items():
            if not behind or tuple(output.ids[-len(behind) :]) == behind:
                row[tokens] = self.value


class Allowed:
    """`allowed_token_ids`: all else is banned for the whole output."""

    def __init__(self, rng) -> None:
        self.share = rng.choice([0.0, 0.0, 0.001, 0.1, 0.6])
        self.pools = rng.sample(["end", "start", "markers", "eos", "white", "byte"], rng.randrange(4))

    def begin(self, bench, job, rng) -> None:
        self.value = rng.choice(VALUES)
        self.mask = np.random.default_rng(rng.getrandbits(32)).random(bench.width) >= self.share
        for pool in ("end", "start", "markers", "eos"):
            self.mask[bench.pools.get(pool, [])] = True
        self.mask[rng.choices(bench.words.tolist(), k=rng.choice([0, 1, 20]))] = False
        for pool in self.pools:
            self.mask[bench.pools.get(pool, [])] = False

    def ban(self, bench, row, output, action, rng) -> None:
        np.putmask(row, self.mask, self.value)


class NoRepeat:
    """`no_repeat_ngram_size=2`: a pair of tokens that prompt or output hold already is not written again."""

    def __init__(self, rng) -> None:
        pass

    def begin(self, bench, job, rng) -> None:
        self.value, self.behind, self.last = rng.choice(VALUES), defaultdict(list), None
        for token in job.prompt:
            self.note(token)

    def note(self, token) -> None:
        self.behind[self.last].append(token)
        self.last = token

    def ban(self, bench, row, output, action, rng) -> None:
        if output.ids:
            self.note(output.ids[-1])
        row[self.behind.get(self.last, [])] = self.value


class Due:
    """In some of the steps what the guard is about to force, or to aim at, is banned among other tokens."""

    def __init__(self, rng) -> None:
        self.often = rng.choice([0.1, 0.5, 0.9])
        self.plan = rng.choice([0.0, 0.5])

    def begin(self, bench, job, rng) -> None:
        pass

    def ban(self, bench, row, output, action, rng) -> None:
        if rng.random() >= self.often:
            return
        value = rng.choice(VALUES)
        tokens = [action.token, action.as_dict()["aim"] if rng.random() < self.plan else -1]
        if action.kind == ALLOW:
            tokens += [token for token in bench.pools["near"].tolist() if action.allows(token) and rng.random() < 0.9]
        for name in rng.choices(list(bench.pools), k=4):
            pool = bench.pools[name]
            tokens += [int(pool[rng.randrange(len(pool))]) for _ in range(5)]
        row[[token for token in tokens if token >= 0]] = value


KINDS = (Words, Words, Allowed, NoRepeat, Due, Due)


def draw_bans(rng):
    """One other processor, now and then two."""
    return [rng.choice(KINDS)(rng) for _ in range(rng.choice([1, 1, 1, 2]))]
