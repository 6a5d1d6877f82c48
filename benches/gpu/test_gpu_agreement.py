"""The compiled kernels against the C core on generated sequences: states and logits the same to the bit, step by step."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import torch

from benches.gpu.common import Host, Sequence, Sizes, chat, differences, edit_in_c, kernels_on, started, tables_on
from thinkguard import ThinkPolicy
from thinkguard.core._core import ThinkState
from thinkguard.device.images import manifest
from thinkguard.device.sequences import DeviceSequences
from thinkguard.device.slots import STATE

pytestmark = pytest.mark.benchmark(group="gpu")
KINDS = ("tokens", "text", "channels")
DTYPES = ("float32", "bfloat16")
POLICIES = (
    ThinkPolicy(),
    ThinkPolicy(max_thinking_tokens=0),
    ThinkPolicy(max_thinking_tokens=24, grace_tokens=8, close_at="sentence", close_message="Time is up."),
    ThinkPolicy(max_thinking_tokens=40, soft_thinking_tokens=5, close_bias=6.0),
    ThinkPolicy(min_thinking_tokens=16, extend_message="Wait", max_extensions=2, max_thinking_tokens=64),
    ThinkPolicy(on_eos="ban", loop_tokens=16, min_answer_tokens=12),
    ThinkPolicy(opening="allow", max_answer_tokens=10, max_thinking_tokens=3),
    ThinkPolicy(opening="forbid", markers_in_answer="allow"),
    ThinkPolicy(max_think_blocks=3, max_thinking_tokens=30, loop_tokens=8, min_answer_tokens=4),
)


def test_start(benchmark: Any, sizes: Sizes) -> None:
    """The kernels loaded and proved, as the first request on a device waits for."""

    def start() -> None:
        kernels_on.cache_clear()
        kernels_on(sizes.device)

    benchmark.pedantic(start, rounds=3)
    built = manifest()
    benchmark.extra_info.update({"compiler": built["compiler"], "images": ", ".join(built["images"])})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_slots_agree(benchmark: Any, sizes: Sizes, kind: str, dtype: str) -> None:
    """The clock shows how long it took to find out."""
    how = {"steps": sizes.steps, "width": sizes.width, "device": sizes.device}
    seen = benchmark.pedantic(walk_slots, (kind, getattr(torch, dtype)), how)
    benchmark.extra_info.update({"kind": kind, "dtype": dtype, **seen})


@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_sequences_agree(benchmark: Any, sizes: Sizes, dtype: str) -> None:
    how = {"steps": sizes.steps // 2, "width": sizes.width, "device": sizes.device}
    seen = benchmark.pedantic(walk_sequences, ("tokens", getattr(torch, dtype)), how)
    benchmark.extra_info.update({"kind": "tokens", "dtype": dtype, **seen})


class Requests:
    """A runner whose requests come, share steps, speculate, are preempted and leave."""

    def __init__(self, kind: str, dtype: torch.dtype, device: str, num_slots: int, width: int, capacity: int) -> None:
        self.kind, self.dtype, self.width, self.capacity = kind, dtype, width, capacity
        self.rng = random.Random(f"{kind} {dtype}")
        self.tables = tables_on(device, kind, width - 8)  # logits are wider than the vocabulary
        self.host = Host(self.tables, num_slots, capacity)
        self.generator = torch.Generator(device).manual_seed(0)
        vocabulary = self.tables.program.vocabulary
        words = ["\n", ".", " the", "a", "</", "think", ">\n", "\n\n", "<th", "ink>", "<", "analysis", "final", " to"]
        self.likely = sorted({*vocabulary.added.values(), *(t for word in words for t in vocabulary.encode(word))})
        self.sequences: list[Sequence | None] = [None] * num_slots
        self.outputs: list[list[int]] = [[] for _ in range(num_slots)]
        self.seen: Counter[str] = Counter()

    def change(self) -> None:
        """Fill free slots; preempt a few requests, which come back where they were with all of their output to fold."""
        for slot, sequence in enumerate(self.sequences):
            length = 0 if sequence is None else len(sequence.prompt) + len(self.outputs[slot])
            if sequence is None or length > self.capacity - 8 or self.rng.random() < 0.01:
                prompt = self.tables.program.vocabulary.encode(self.prompt())
                limit = self.rng.choice([-1, -1, self.capacity // 2])
                policy, guards_raw = self.rng.choice(POLICIES), self.rng.random() < 0.8
                self.sequences[slot], self.outputs[slot] = started(self.tables, policy, prompt, limit, guards_raw), []
                self.seen["requests"] += 1
            elif self.rng.random() < 0.02:
                self.seen["preempted"] += 1
            else:
                continue
            self.host.admit(slot, self.sequences[slot], self.sequences[slot].prompt + self.outputs[slot])

    def prompt(self) -> str:
        draw = self.rng.random()
        head = "words of some prompt " * self.rng.choice([0, 0, 3])
        if draw < 0.05:
            return head + "no chat"
        return head + chat(self.kind, draw < 0.6) + (" the a b.\n" if draw < 0.2 else "")

    def token(self) -> int:
        return self.rng.choice(self.likely) if self.rng.random() < 0.5 else self.rng.randrange(self.width)

    def logits(self, num_rows: int) -> torch.Tensor:
        """Ordinary rows, rows behind a grammar's mask, and NaN among both; wider in memory than they say."""
        memory = torch.randn(num_rows, self.width + 3, generator=self.generator, device=self.host.device).to(self.dtype)
        draws = torch.tensor([self.rng.random() for _ in range(num_rows)])
        for i in (draws < 0.2).nonzero().flatten().tolist():
            keep = [self.token() for _ in range(self.rng.choice([1, 4, 64]))]
            kept = memory[i, keep]
            memory[i] = -torch.inf
            memory[i, keep] = kept
        memory[:, self.likely] += torch.rand(num_rows, len(self.likely), generator=self.generator, device=memory.device) * 8
        memory[:, self.rng.randrange(self.width)] = torch.nan
        return memory[:, : self.width]

    def step(self) -> None:
        """One step of the runner; AssertionError says where the two differ."""
        self.change()
        self.host.send()
        order = [slot for slot in range(len(self.sequences)) if self.rng.random() < 0.9] or [0]
        self.rng.shuffle(order)
        rows, offsets, inputs = [], [], []
        for slot in order:
            for offset in range(1 + self.rng.choice([0, 0, 1, 3])):
                rows.append(slot)
                offsets.append(offset)
                inputs.append(-1 if offset and self.rng.random() < 0.02 else self.token())
        logits = self.logits(len(rows))
        want = logits.cpu().contiguous()
        device, host = self.host.device, self.host
        host.slots.apply(
            logits, torch.tensor(rows, device=device), torch.tensor(offsets, dtype=torch.int32, device=device),
            torch.tensor(inputs, dtype=torch.int32, device=device), host.tokens, host.total, host.prompt,
        )  # fmt: skip
        walked = self.walk_in_c(rows, offsets, inputs)
        guarded = [i for i, one in enumerate(walked) if one is not None]
        part = want[guarded]
        edit_in_c([walked[i] for i in guarded], part)
        want[guarded] = part
        for i, token, got, wanted in differences(logits, want.to(device)):
            raise AssertionError(f"row {i}, token {token}: logit {got}, C has {wanted}; {self.context(rows[i])}")
        self.seen["rows"] += len(rows)
        self.seen["drafts"] += len(rows) - len(order)
        self.commit(rows, offsets, inputs, self.sampled(logits))

    def walk_in_c(self, rows: list[int], offsets: list[int], inputs: list[int]) -> list[ThinkState | None]:
        """C's row at each row of logits, None where a raw prompt is left alone; states are compared on the way."""
        states = self.host.slots.slots[:, STATE:].tolist()
        walked: list[ThinkState | None] = []
        for slot, offset, token in zip(rows, offsets, inputs, strict=True):
            sequence = self.sequences[slot]
            if offset == 0:
                own = sequence.row.copy()
                alone = sequence.left_alone
                state = dict(zip(own.as_dict(), states[slot], strict=True))
                assert state["flags"] == 1 if alone else state == own.as_dict(), f"state {state}; {self.context(slot)}"
            else:
                own.advance(token)
            walked.append(None if alone else own.copy())
            self.seen[("free", "force", "edit", "allow")[own.decide().kind]] += not alone
        return walked

    def sampled(self, logits: torch.Tensor) -> list[int]:
        """The best token of each row, a random one of those that are left, or any."""
        values = logits.float().nan_to_num(-torch.inf, neginf=-torch.inf)
        noise = torch.rand(values.shape, generator=self.generator, device=values.device)
        best = values.argmax(-1).tolist()
        some = torch.where(values > -torch.inf, noise, -1).argmax(-1).tolist()
        draws = [self.rng.random() for _ in best]
        return [b if d < 0.7 else s if d < 0.97 else self.token() for b, s, d in zip(best, some, draws, strict=True)]

    def commit(self, rows: list[int], offsets: list[int], inputs: list[int], sampled: list[int]) -> None:
        """Accept drafts from the front, and one sampled token behind them."""
        done = set()
        for i, slot in enumerate(rows):
            if slot in done:
                continue
            last = i + 1 == len(rows) or offsets[i + 1] == 0
            accepted = not last and inputs[i + 1] >= 0 and self.rng.random() < 0.7
            token = inputs[i + 1] if accepted else sampled[i]
            if not accepted:
                done.add(slot)
            self.sequences[slot].row.advance(token)
            self.outputs[slot].append(token)
            self.host.committed[slot, self.host.lengths[slot]] = token
            self.host.lengths[slot] += 1

    def context(self, slot: int) -> str:
        sequence = self.sequences[slot]
        source, state = sequence.row.policy.source, sequence.row.as_dict()
        return f"{source}, prompt {sequence.prompt}, output {self.outputs[slot]}, limit {sequence.limit}, C's row {state}"


def walk_slots(
    kind: str, dtype: torch.dtype, *, steps: int, width: int, device: str, num_slots: int = 32, capacity: int = 192
) -> dict[str, int]:
    """Compare `steps` steps; what was seen on the way."""
    requests = Requests(kind, dtype, device, num_slots, width, capacity)
    for _ in range(steps):
        requests.step()
    seen = ("rows", "drafts", "requests", "preempted", "free", "edit", "force", "allow")
    counts = {name: requests.seen[name] for name in seen}
    assert counts["edit"], counts
    return {"steps": steps, "slots": num_slots, "width": width, **counts, "mismatches": 0}


def walk_sequences(
    kind: str, dtype: torch.dtype, *, steps: int, width: int, device: str, num_rows: int = 16
) -> dict[str, int]:
    """The kernel for `generate()`: whole sequences that grow, change places and are dropped for others, as beams do."""
    rng, generator = random.Random(f"{kind} {dtype}"), torch.Generator(device).manual_seed(0)
    tables = tables_on(device, kind, width)
    encode, added = tables.program.vocabulary.encode, tables.program.vocabulary.added
    likely = torch.tensor(sorted({*added.values(), *encode("\n.</think>\n\n a the<")}), device=device)
    prompt, edited = encode(chat(kind)), 0
    for policy in POLICIES:
        sequences = DeviceSequences(tables, tables.program.bind(policy), len(prompt), steps + 100)
        first = started(tables, policy, prompt, steps + 100)
        ids, walked = torch.tensor([prompt] * num_rows, device=device), [first.row.copy() for _ in range(num_rows)]
        for _ in range(steps):
            logits = torch.randn(num_rows, width, generator=generator, device=device)
            logits[:, likely] += torch.rand(num_rows, len(likely), generator=generator, device=device) * 8
            logits = logits.to(dtype)
            want = logits.cpu()
            edit_in_c(walked, want)
            sequences.apply(ids, logits)
            for i, (state, own) in enumerate(zip(sequences.states.tolist(), walked, strict=True)):
                found = dict(zip(own.as_dict(), state, strict=True))
                assert found == own.as_dict(), f"state {found}, C has {own.as_dict()}; {policy}, {ids[i].tolist()}"
            for i, token, got, wanted in differences(logits, want.to(device)):
                raise AssertionError(f"token {token}: logit {got}, C has {wanted}; {policy}, {ids[i].tolist()}")
            edited += num_rows
            order = [rng.randrange(num_rows) if rng.random() < 0.1 else i for i in range(num_rows)]
            next_ids = logits[order].float().argmax(-1)
            for i in range(num_rows):
                if rng.random() < 0.1:
                    next_ids[i] = rng.randrange(width)
            ids = torch.cat([ids[order], next_ids[:, None]], dim=1)
            walked = [walked[i].copy() for i in order]
            for own, token in zip(walked, next_ids.tolist(), strict=True):
                own.advance(token)
    return {"steps": steps, "policies": len(POLICIES), "width": width, "rows": edited, "mismatches": 0}
