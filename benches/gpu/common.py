"""What the benchmarks on a GPU share: how much is measured, programs over generated vocabularies, and a runner's buffers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from benches.measuring import leave_out
from thinkguard import ThinkFormat, ThinkPolicy, ThinkProgram, Vocabulary
from thinkguard.core._core import StateBatch, ThinkState
from thinkguard.core.names import Dtype
from thinkguard.device.slots import DeviceSlots
from thinkguard.device.tables import ROW_FIELDS, DeviceProgram
from thinkguard.errors import UnsupportedError

WIDTH = 151_936
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-7}  # of the bias
HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>")


@dataclass(frozen=True)
class Sizes:
    """How much is measured; tests have little of everything."""

    steps: int = 150  # beside the C core
    rows: int = 256
    width: int = WIDTH
    launches: int = 20  # of a round; the device's queue holds about a thousand entries, and each takes up to 30
    rounds: int = 12
    long: int = 8_192  # tokens of an output, where that is long
    prompt: int = 100_000  # tokens, where that is long
    tokens: int = 128  # that a model generates
    pairs: int = 10
    device: str = "cuda"


def imported(request: pytest.FixtureRequest, module: str, **about: Any) -> Any:
    """Import a module that needs vLLM; without one that fits, the benchmark is left out."""
    try:
        return import_module(module)
    except (ImportError, UnsupportedError) as error:
        leave_out(request, f"no vLLM: {error}", **about)


# --- programs ---


def program(kind: str, width: int = WIDTH) -> ThinkProgram:
    """<think> as tokens ("tokens") or as text ("text"), or a message grammar ("channels"), over `width` token ids."""
    pieces = [bytes([b]) for b in range(256)]
    pieces += [b"</", b"think", b">\n", b">\n\n", b"<th", b"ink>", b" the", b"\n\n", b"analysis", b"final", b"commentary"]
    names = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    eos = "<|im_end|>"
    if kind == "tokens":
        names += ["<think>", "</think>"]
    elif kind == "channels":
        names, eos = [*HARMONY, "<|endoftext|>"], "<|return|>"
    words = np.random.default_rng(0).integers(97, 123, (width - len(pieces) - len(names), 8), np.uint8)
    pieces += [word.tobytes() for word in words]
    added = {name: len(pieces) + i for i, name in enumerate(names)}
    vocabulary = Vocabulary.from_parts(pieces, added=added, special=list(added.values())[:3], eos_ids=[added[eos]])
    return ThinkProgram(ThinkFormat.from_name("gpt_oss_harmony" if kind == "channels" else "think"), vocabulary)


def chat(kind: str, opened: bool = True) -> str:
    """The end of a prompt, behind which the assistant's turn begins."""
    if kind == "channels":
        return "<|start|>user<|message|>hi<|end|><|start|>assistant" + ("<|channel|>analysis<|message|>" if opened else "")
    return "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n" + ("<think>\n" if opened else "")


# --- a host with slots ---


@dataclass
class Sequence:
    """What a host knows of one sequence, and where C says that it stands."""

    policy: npt.NDArray[np.int32]
    prompt: list[int]
    row: ThinkState
    limit: int
    left_alone: bool  # a raw prompt whose policy does not guard those


class Host:
    """The buffers that vLLM's V2 runner hands to a processor, and the guard's slots."""

    def __init__(self, tables: DeviceProgram, num_slots: int, capacity: int, *, pinned: bool = False) -> None:
        """`pinned`: committed tokens lie in the host's memory, as vLLM has them, and the kernel reads them there."""
        self.tables, self.device = tables, tables.tables.device
        self.slots = DeviceSlots(tables, num_slots)
        self.committed = np.zeros((num_slots, capacity), np.int32)
        self.lengths, self.prompts = np.zeros(num_slots, np.int32), np.zeros(num_slots, np.int32)
        if pinned:
            self.tokens = torch.zeros(num_slots, capacity, dtype=torch.int32, pin_memory=True)
        else:
            self.tokens = torch.zeros(num_slots, capacity, dtype=torch.int32, device=self.device)
        self.total = torch.zeros(num_slots, dtype=torch.int32, device=self.device)
        self.prompt = torch.zeros(num_slots, dtype=torch.int32, device=self.device)

    def admit(self, slot: int, sequence: Sequence, ids: list[int]) -> None:
        """Give a slot to a sequence of which `ids` are committed."""
        self.slots.stage(slot, sequence.policy, sequence.limit)
        self.committed[slot, : len(ids)] = ids
        self.lengths[slot], self.prompts[slot] = len(ids), len(sequence.prompt)

    def send(self) -> None:
        """Bring the device's buffers up to date."""
        self.slots.flush()
        self.tokens.copy_(torch.from_numpy(self.committed))
        self.total.copy_(torch.from_numpy(self.lengths))
        self.prompt.copy_(torch.from_numpy(self.prompts))

    def state(self, slot: int) -> dict[str, int]:
        return dict(zip(ROW_FIELDS, self.slots.states[slot].tolist(), strict=False))


def started(
    tables: DeviceProgram, policy: ThinkPolicy, prompt: list[int], limit: int = -1, raw_too: bool = True
) -> Sequence:
    """A sequence behind its prompt."""
    bound = tables.program.bind(policy)
    begin, raw = tables.program.turn(np.array(prompt, np.int32))
    sequence = Sequence(tables.pack_policy(bound, raw_too), prompt, ThinkState(bound), limit, raw and not raw_too)
    sequence.row.start(np.array(prompt[begin:], np.int32), raw, limit)
    return sequence


def edit_in_c(rows: list[ThinkState], logits: torch.Tensor) -> None:
    """Edit logits on the CPU, [num_rows, width], in place."""
    code = Dtype[str(logits.dtype).removeprefix("torch.").upper()]
    StateBatch(rows).apply(logits.data_ptr(), code, logits.stride(0), logits.stride(1), logits.shape[1])


def differences(got: torch.Tensor, want: torch.Tensor) -> Iterator[tuple[int, int, float, float]]:
    """(row, token, got, wanted) where two tensors of one shape and device differ by more than the bias's rounding."""
    rounding = ROUNDING[got.dtype]
    got, want = got.float(), want.float()
    near = ((got - want).abs() <= rounding * want.abs().clamp(min=1)) & got.isfinite() & want.isfinite()
    same = (got == want) | near | (got.isnan() & want.isnan())
    for place in (~same).nonzero().tolist():
        yield place[0], place[1], float(got[tuple(place)]), float(want[tuple(place)])
