"""What the benchmarks on a GPU share: how much is measured, programs over generated vocabularies, and a runner's buffers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

from benches.measuring import leave_out
from thinkguard import ThinkFormat, ThinkPolicy, ThinkProgram, Vocabulary
from thinkguard.core._core import BoundPolicy, StateBatch, ThinkState
from thinkguard.core.names import Dtype
from thinkguard.device.launch import DeviceKernels, HostKernels, Kernels
from thinkguard.device.proof import prove
from thinkguard.device.slots import DeviceSlots
from thinkguard.device.tables import DeviceProgram
from thinkguard.errors import UnsupportedError

WIDTH = 151_936
BITS = {4: torch.int32, 2: torch.int16}
HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>")


@dataclass(frozen=True)
class Sizes:
    """How much is measured, minutes of it; tests have little of everything."""

    steps: int = 100  # beside the C core
    rows: int = 256
    width: int = WIDTH
    launches: int = 20  # of a round; the device's queue holds about a thousand entries, and each takes up to 30
    rounds: int = 12
    long: int = 8_192  # tokens of an output, where that is long
    prompt: int = 100_000  # tokens, where that is long
    tokens: int = 64  # that a model generates
    pairs: int = 8
    device: str = "cuda"


@cache
def kernels_on(device: str) -> Kernels:
    """The kernels of a device, proved there; a CPU's are the same C in place. An error says why they do not run."""
    where = torch.device(device)
    if where.type == "cpu":
        return HostKernels()
    kernels = DeviceKernels(torch.cuda.current_device() if where.index is None else where.index)
    prove(kernels, where)
    return kernels


def tables_on(device: str, kind: str, width: int) -> DeviceProgram:
    """A program's tables on a device."""
    return DeviceProgram(program(kind, width), device, kernels_on(device))


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

    bound: BoundPolicy
    prompt: list[int]
    row: ThinkState
    limit: int
    guards_raw: bool
    left_alone: bool  # a raw prompt, which is not guarded


class Host:
    """The buffers that vLLM's V2 runner hands to a processor, and the guard's slots."""

    def __init__(self, tables: DeviceProgram, num_slots: int, capacity: int, *, pinned: bool = False) -> None:
        """`pinned`: committed tokens lie in the host's memory, as vLLM has them, and the kernel reads them there."""
        self.tables, self.device = tables, tables.device
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
        self.slots.stage(slot, sequence.bound, sequence.limit, sequence.guards_raw)
        self.committed[slot, : len(ids)] = ids
        self.lengths[slot], self.prompts[slot] = len(ids), len(sequence.prompt)

    def send(self) -> None:
        """Bring the device's buffers up to date."""
        self.slots.flush()
        self.tokens.copy_(torch.from_numpy(self.committed))
        self.total.copy_(torch.from_numpy(self.lengths))
        self.prompt.copy_(torch.from_numpy(self.prompts))


def started(
    tables: DeviceProgram, policy: ThinkPolicy, prompt: list[int], limit: int = -1, guards_raw: bool = True
) -> Sequence:
    """A sequence behind its prompt."""
    bound = tables.program.bind(policy)
    begin, raw = tables.program.turn(np.array(prompt, np.int32))
    sequence = Sequence(bound, prompt, ThinkState(bound), limit, guards_raw, bool(raw) and not guards_raw)
    sequence.row.start(np.array(prompt[begin:], np.int32), raw, limit)
    if sequence.row.is_open():
        sequence.row.open(np.array(prompt, np.int32))
    return sequence


def edit_in_c(rows: list[ThinkState], logits: torch.Tensor) -> None:
    """Edit logits on the CPU, [num_rows, width], in place."""
    code = Dtype[str(logits.dtype).removeprefix("torch.").upper()]
    StateBatch(rows).apply(logits.data_ptr(), code, logits.stride(0), logits.stride(1), logits.shape[1])


def differences(got: torch.Tensor, want: torch.Tensor) -> Iterator[tuple[int, int, float, float]]:
    """(row, token, got, wanted) where the bits of two tensors of one shape and device differ: one source made both."""
    bits = BITS[got.element_size()]
    for place in (got.contiguous().view(bits) != want.contiguous().view(bits)).nonzero().tolist():
        yield place[0], place[1], float(got[tuple(place)]), float(want[tuple(place)])
