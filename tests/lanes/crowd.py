"""Crowds of generated sequences, walked twice side by side: by kernels that are tested, and in place by the host's C.

What both leave has to be the same to the bit: slots, loop blocks, logits and the memory between them. A step takes many
sequences at once, so that Python's own time does not decide how much is compared.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import cases
import numpy as np
import torch

from thinkguard.core.names import ActionKind
from thinkguard.device.edits import DeviceEdits
from thinkguard.device.launch import HostKernels
from thinkguard.device.sequences import DeviceSequences
from thinkguard.device.slots import DeviceSlots
from thinkguard.device.steps import EDIT_SIZE
from thinkguard.device.tables import DTYPES, DeviceProgram
from thinkguard.errors import FormatError, PolicyError, TokenizerError

WIDTHS = (torch.int32, torch.int64)
ACTION = ("kind", "token", "aim", "node", "forbidden", "moved", "allowed", "flags", "cut", "pending", "bias")
"""The fields of a tg_action."""
TEXT = 1  # of a token's info: has text


class Crowd:
    """One generated program with a few policies, and what its sequences are made of."""

    def __init__(self, seed: int) -> None:
        self.rng, self.random = random.Random(seed), np.random.default_rng(seed)
        self.program, bound, self.model = cases.case(self.rng)
        self.bounds = [bound]
        for loops in ({}, {}, {}, {"loop_tokens": 12}, {"loop_tokens": 256}):
            try:
                self.bounds.append(self.program.bind(replace(cases.policy(self.rng), **loops)))
            except (FormatError, PolicyError, TokenizerError):
                continue
        self.num_tokens = self.program.vocabulary.num_tokens
        tables = self.program.tables.arrays
        self.plain = np.flatnonzero((tables["step"] == 0) & (tables["info"] & TEXT != 0))
        self.rows = 0
        """Rows of logits that were compared so far."""
        self.actions: Counter[str] = Counter()
        """What they needed."""

    def prompt(self) -> list[int]:
        """Anything, mostly a boundary, and the assistant's own part."""
        added = self.program.vocabulary.added
        head = [self.rng.randrange(self.num_tokens) for _ in range(self.rng.choice([0, 0, 3, 20, 150]))]
        lead = self.rng.choice([[added["<user>"]], [added["<user>"]], [added["<bos>"]], []])
        name = self.program.format.header_text if self.rng.random() < 0.5 else ""
        return head + lead + self.program.vocabulary.encode(name) + cases.turn(self.rng, self.program, self.model)

    def resumed(self) -> list[int]:
        """An output that was begun elsewhere: none, mostly, or a long one: runs of plain tokens, loops, a second block."""
        if self.rng.random() < 0.7 or not len(self.plain):
            return []
        few = self.plain[: self.rng.choice([1, 2, 3, None, None])]
        tokens = self.random.choice(few, self.rng.choice([3, 30, 200]))
        others = self.random.random(len(tokens)) < self.rng.choice([0, 0.01, 0.1])
        text = np.where(others, self.random.integers(0, self.num_tokens, len(tokens)), tokens).tolist()
        begin = self.rng.choice([[], self.model.open, [*self.model.open, *self.model.close]])
        again = self.rng.choice([[], [], [*self.model.close, *self.model.open, *text[: self.rng.choice([1, 20])]]])
        return [*begin, *text, *again]

    def memory(self, num_rows: int) -> tuple[torch.Tensor, slice]:
        """Rows of logits of any type and stride, and where they lie in it: some rows with ties, -inf, NaN, inf."""
        width, apart = max(self.num_tokens + self.rng.choice([0, 0, 3, -2]), 1), self.rng.choice([1, 1, 2])
        values = np.full((num_rows, width * apart + 3), 7.0, np.float32)
        where = slice(0, width * apart, apart)
        values[:, where] = self.random.normal(0, 3, (num_rows, width)).round(1)
        style, draw = self.random.random((num_rows, 1)), self.random.random((num_rows, width))
        lowest = ((style < 0.3) & (draw > 0.2)) | ((style > 0.45) & (style < 0.5))
        values[:, where][lowest] = -np.inf
        values[:, where][(style > 0.3) & (style < 0.4) & (draw < 0.1)] = np.nan
        values[:, where][(style > 0.4) & (style < 0.45) & (draw < 0.02)] = np.inf
        return torch.from_numpy(values).to(self.rng.choice(list(DTYPES))), where

    def sample(self, logits: torch.Tensor) -> list[int]:
        """A token of each row that can be sampled, the likeliest in half of them; now and then any."""
        values = logits.float().nan_to_num(-torch.inf).numpy()
        keys = np.where(self.random.random((len(values), 1)) < 0.5, values, self.random.random(values.shape))
        tokens = np.where(values > -np.inf, keys, -np.inf).argmax(1)
        anything = self.random.random(len(tokens)) < 0.05
        return np.where(anything, self.random.integers(0, self.num_tokens + 1, len(tokens)), tokens).tolist()

    def compare(self, what: str, theirs: torch.Tensor, ours: torch.Tensor) -> None:
        """AssertionError, where a bit differs."""
        if not torch.equal(theirs.contiguous().view(torch.uint8), ours.contiguous().view(torch.uint8)):
            where = (theirs.contiguous().view(torch.int16) != ours.contiguous().view(torch.int16)).nonzero()[:8].tolist()
            raise AssertionError(f"{what} differ from the host's at (row, int16) {where}: {self.program.format}")


class SlotsCrowd(Crowd):
    """Of a host with slots: requests come, share steps, speculate, are preempted and leave."""

    CAPACITY = 480

    def __init__(self, seed: int, kernels: object, num_slots: int = 24) -> None:
        super().__init__(seed)
        self.sides = [DeviceSlots(DeviceProgram(self.program, "cpu", how), num_slots) for how in (kernels, HostKernels())]
        self.tokens = np.full((num_slots, self.CAPACITY), -7, np.int64)  # what lies behind the end is never read
        self.total, self.prompts = np.zeros(num_slots, np.int64), np.zeros(num_slots, np.int64)
        self.bound = [self.bounds[0]] * num_slots

    def admit(self, slot: int, again: bool) -> None:
        """A new request, or the same one once more: it was preempted, and its tokens are kept."""
        rng = self.rng
        if not again:
            ids = self.prompt()
            self.prompts[slot] = len(ids)
            ids += self.resumed()
            self.tokens[slot] = -7
            self.tokens[slot, : len(ids)] = ids
            self.total[slot] = len(ids)
            self.bound[slot] = None if rng.random() < 0.05 else rng.choice(self.bounds)
        limit, guards_raw = rng.choice([-1, -1, 30]), rng.random() < 0.8
        for side in self.sides:
            side.stage(slot, self.bound[slot], limit, guards_raw)

    def step(self) -> None:
        """A step of the host, on both sides."""
        rng = self.rng
        for slot in range(len(self.total)):
            full = self.total[slot] > self.CAPACITY - 8 or self.total[slot] > self.prompts[slot] + 260
            if not self.total[slot] or full or rng.random() < 0.04:
                self.admit(slot, False)
            elif rng.random() < 0.04:
                self.admit(slot, True)
        order = [slot for slot in range(len(self.total)) if rng.random() < 0.8]
        rng.shuffle(order)
        rows = [(slot, offset) for slot in order for offset in range(1 + rng.choice([0, 0, 1, 3]))]
        if not rows:
            return
        drafts = self.random.integers(0, self.num_tokens, len(rows))
        drafts[self.random.random(len(rows)) < 0.03] = -1
        memory, where = self.memory(len(rows))
        wide = [rng.choice(WIDTHS) for _ in range(6)]
        arguments = [np.array([row[0] for row in rows]), np.array([row[1] for row in rows]), drafts]
        arguments += [self.tokens, self.total, self.prompts]
        arguments = [torch.from_numpy(argument).to(width) for argument, width in zip(arguments, wide, strict=True)]
        found = []
        for side in self.sides:
            side.flush()
            edited = memory.clone()
            side.apply(edited[:, where], *arguments)
            found.append((edited, side.slots, side.loops))
        for what, *pair in zip(("logits", "slots", "loop blocks"), *found, strict=True):
            self.compare(what, *pair)
        self.count(arguments)
        self.rows += len(rows)
        sampled = self.sample(found[1][0][:, where])
        for index, (slot, offset) in enumerate(rows):
            if offset or rng.random() < 0.1:  # now and then nothing is committed
                continue
            accepted = 0  # drafts, from the front
            while index + accepted + 1 < len(rows) and rows[index + accepted + 1][1] and drafts[index + accepted + 1] >= 0:
                if rng.random() > 0.7:
                    break
                accepted += 1
            for token in [*drafts[index + 1 : index + 1 + accepted], sampled[index + accepted]]:
                self.tokens[slot, self.total[slot]] = token
                self.total[slot] += 1

    def count(self, arguments: list[torch.Tensor]) -> None:
        """Note what the rows needed: the same step is decided once more, which changes no state."""
        found = [torch.full((len(arguments[0]), len(ACTION)), -1, dtype=torch.int32) for _ in self.sides]
        for side, actions in zip(self.sides, found, strict=True):
            side.decide(actions, *arguments)
        self.compare("actions", *found)
        self.actions.update(ActionKind(kind).name for kind in found[1][:, 0].tolist() if kind >= 0)


class SequencesCrowd(Crowd):
    """Of a host that hands over whole sequences: beams that are reordered, drafts that are dropped, new prompts."""

    def __init__(self, seed: int, kernels: object, num_rows: int = 24) -> None:
        super().__init__(seed)
        self.num_rows, self.kernels = num_rows, kernels
        self.begin()

    def begin(self) -> None:
        """Another call, whose prompts are of one length."""
        prompt = self.prompt() + self.resumed() or [0]
        self.ids = np.array([prompt] * self.num_rows)
        self.known = len(prompt)
        limit = self.rng.choice([None, 30])
        bound, attached = self.rng.choice(self.bounds), self.rng.random() < 0.5
        self.sides = [
            DeviceSequences(DeviceProgram(self.program, "cpu", how), bound, self.known if attached else None, limit)
            for how in (self.kernels, HostKernels())
        ]

    def step(self) -> None:
        """A step of the host, on both sides."""
        rng, length = self.rng, self.ids.shape[1]
        if length > self.known + 60 or rng.random() < 0.04:
            self.begin()
        elif rng.random() < 0.3:
            self.ids = self.ids[self.random.integers(0, len(self.ids), rng.choice([len(self.ids), self.num_rows, 3]))]
        if rng.random() < 0.2:  # drafts that were refused
            self.ids = self.ids[:, : max(self.ids.shape[1] - rng.choice([1, 2, 5]), self.known)]
        memory, where = self.memory(len(self.ids))
        ids = torch.from_numpy(self.ids).to(rng.choice(WIDTHS))
        if rng.random() < 0.3:
            ids = ids.T.contiguous().T
        found = []
        for side in self.sides:
            edited = memory.clone()
            side.apply(ids, edited[:, where])
            slots, loops, seen = (buffer[: len(ids)] for buffer in side._seen)
            found.append((edited, slots, loops, seen[:, : ids.shape[1]]))
        for what, *pair in zip(("logits", "slots", "loop blocks", "tokens"), *found, strict=True):
            self.compare(what, *pair)
        self.rows += len(ids)
        sampled = np.array(self.sample(found[1][0][:, where]))
        new = [sampled] + [self.random.integers(0, self.num_tokens, len(ids)) for _ in range(rng.choice([0, 0, 0, 3]))]
        self.ids = np.concatenate([self.ids, np.stack(new, 1)], 1)


class EditsCrowd(Crowd):
    """Of a host that decides for itself: any edit of any row, likely or not."""

    def __init__(self, seed: int, kernels: object, num_rows: int = 24) -> None:
        super().__init__(seed)
        self.num_rows = num_rows
        self.sides = [DeviceEdits(DeviceProgram(self.program, "cpu", how)) for how in (kernels, HostKernels())]

    def step(self) -> None:
        """A step of the host, on both sides."""
        rng, num_edits = self.rng, self.rng.randrange(1, self.num_rows)
        memory, where = self.memory(self.num_rows)
        edits = np.zeros((num_edits, EDIT_SIZE), np.int32)
        action = {name: edits[:, 2 + i] for i, name in enumerate(ACTION)}
        edits[:, 0] = self.random.permutation(self.num_rows)[:num_edits]
        edits[:, 1] = self.random.integers(0, len(self.bounds), num_edits)
        action["kind"][:] = self.random.choice([0, 1, 2, 2, 2, 2, 3], num_edits)
        action["token"][:] = self.random.integers(-1, self.num_tokens + 4, num_edits)
        action["node"][:] = self.random.integers(0, len(self.program.tables.arrays["nodes"]), num_edits)
        for name in ("forbidden", "allowed", "flags"):
            masks = self.random.integers(0, 2**13, (2, num_edits))
            action[name][:] = masks[0] & masks[1]
        action["cut"][:], action["pending"][:] = self.random.integers(0, 4, (2, num_edits))
        bias = np.where(self.random.random(num_edits) < 0.5, 0, self.random.random(num_edits) * rng.choice([1, 70_000]))
        action["bias"][:] = bias.astype(np.float32).view(np.int32)
        found = []
        for side in self.sides:
            edited = memory.clone()
            side.apply(edited[:, where], edits, self.bounds)
            found.append(edited)
        self.compare("logits", *found)
        self.rows += num_edits
        self.actions.update(ActionKind(kind).name for kind in action["kind"].tolist())
