"""The automaton on the device: a program's tables, the state of sequences under way, and the launches.

The kernels are in _device_kernel.py; what they call follows the C core file by file. Nothing here waits for the device, and
a step is one launch.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from thinkguard import _device_kernel as kernel
from thinkguard import _device_layout as constants
from thinkguard._core import BoundPolicy
from thinkguard._device_layout import Layout, Row
from thinkguard.compile import SEQ_PROGRAM
from thinkguard.errors import InputError
from thinkguard.program import ThinkProgram

ROW_FIELDS = Row._fields
BLOCK = 128  # tokens looked at, or logits banned, at once
NUM_WARPS = 1  # scalar code: more warps only repeat it
STATE_SIZE = 32  # int32 of a sequence's state
LOOP_SIZE = 192  # of its side block, of which there are two: behind the committed tokens, and for drafts
ACTION_SIZE = 10  # of an action for `DeviceEdits`
MAX_SEQUENCE_TOKENS = 2304  # that a policy's block has room for; see `pack_policy`
_SCALARS = (
    "max_thinking", "min_thinking", "grace", "close_at", "soft", "max_extensions", "on_eos", "opening", "max_blocks",
    "min_answer", "max_answer", "loop_tokens", "markers_allowed",
)  # fmt: skip


# --- tables ---


class DeviceProgram:
    """A program's tables as one int32 buffer on a device, and their layout, a constant of the kernel."""

    def __init__(self, program: ThinkProgram, device: torch.device | str) -> None:
        self.program = program
        self.layout, buffer = _lay_out(program)
        self.tables = torch.from_numpy(buffer).to(device)

    def pack_policy(self, bound: BoundPolicy, guards_raw: bool = True) -> npt.NDArray[np.int32]:
        """Write a policy as the kernel reads it. [policy_size]

        InputError for one whose messages have more tokens than the block has room for.
        """
        layout, fields = self.layout, bound.fields
        sequences = [bound.sequence(seq) for seq in range(1, SEQ_PROGRAM)] + _program_sequences(self.program)
        offsets = np.cumsum([0, 0, *map(len, sequences)])
        if offsets[-1] > MAX_SEQUENCE_TOKENS:
            raise InputError(
                f"close_message and extend_message take {offsets[-1]} tokens with the markers; at most "
                f"{MAX_SEQUENCE_TOKENS} fit into a request's tables on the device: shorten them"
            )
        extend = bound.sequence(SEQ_PROGRAM - 1)
        block = np.zeros(layout.policy_size, np.int32)
        block[kernel.ACTIVE.value] = 1
        block[1 : 1 + len(_SCALARS)] = [fields[name] for name in _SCALARS]
        eos = bound.eos_token_ids
        first = extend[0] if extend else -1
        behind = (bound.close_room, bound.answer_eos, first, len(extend), guards_raw, len(eos))
        block[1 + len(_SCALARS) : 1 + len(_SCALARS) + len(behind)] = behind
        block[kernel.BIAS.value : kernel.BIAS.value + 1] = np.array([fields["close_bias"]], np.float32).view(np.int32)
        block[layout.eos : layout.seq_offset] = -1
        block[layout.eos : layout.eos + len(eos)] = eos
        block[layout.seq_offset : layout.seq_offset + len(offsets)] = offsets
        block[layout.seq_token : layout.seq_token + offsets[-1]] = [t for sequence in sequences for t in sequence]
        return block


def _program_sequences(program: ThinkProgram) -> list[list[int]]:
    arrays = program.tables.arrays
    return [arrays["seq_token"][begin:end].tolist() for begin, end in pairwise(arrays["seq_offset"])]


def _name_automaton(program: ThinkProgram) -> tuple[list[int], list[int], list[int], int]:
    """`ThinkProgram.turn`'s way over the header's own text, as (offsets, tokens, next nodes, last node).

    Node 0 stands before the turn's first token, whose leading spaces do not count; node 1 + p behind p bytes of the name.
    """
    name = program.format.header_text.encode()
    if not name:
        return [0, 0], [], [], 0
    vocabulary = program.vocabulary
    pieces = [vocabulary.token_bytes(token_id) for token_id in range(vocabulary.num_tokens)]
    offsets, tokens, nexts = [0], [], []
    for node in range(len(name) + 1):
        rest = name[max(node - 1, 0) :]
        for token_id, piece in enumerate(pieces):
            word = (piece.lstrip(b" ") if node == 0 else piece).rstrip(b" \n\r\t")
            if rest.startswith(word):
                tokens.append(token_id)
                nexts.append(1 + len(name) - len(rest) + len(word))
        offsets.append(len(tokens))
    return offsets, tokens, nexts, len(name) + 1


def _lay_out(program: ThinkProgram) -> tuple[Layout, npt.NDArray[np.int32]]:
    """Put all tables into one buffer."""
    arrays, scalars = program.tables.arrays, program.tables.scalars
    turns = program.turns
    parts: list[npt.NDArray[np.int32]] = []
    size = 0
    places: dict[str, int] = {}

    def place(name: str, values: Any) -> None:
        nonlocal size
        part = np.ascontiguousarray(values).reshape(-1).view(np.int32) if len(values) else np.zeros(0, np.int32)
        places[name] = size
        parts.append(part)
        size += len(part)

    marked = np.zeros(len(arrays["step"]), bool)
    marked[arrays["mark_token"]] = marked[arrays["never"]] = True
    token_table = np.zeros((len(arrays["step"]), 4), np.uint32)
    token_table[:, constants.STEP.value] = arrays["step"]
    token_table[:, constants.INFO.value] = arrays["info"] | np.where(marked, constants.MARKED.value, 0).astype(np.uint32)
    token_table[:, constants.TAIL.value] = arrays["tail"]
    if turns:
        token_table[:, constants.TURNS_STEP.value] = turns.arrays["step"]
    place("tokens", token_table)
    for name in ("except_offset", "except_token", "except_step", "mark_offset", "mark_token", "mark_mask"):
        place(name, arrays[name])
    place("events", np.pad(arrays["events"], ((0, 0), (0, 1))))
    place("nodes", np.pad(arrays["nodes"], ((0, 0), (0, 1))))
    for name in ("except_offset", "except_token", "except_step"):
        place(f"turns_{name}", turns.arrays[name] if turns else ())
    place("turns_events", np.pad(turns.arrays["events"], ((0, 0), (0, 1))) if turns else ())
    offsets, tokens, nexts, name_end = _name_automaton(program)
    for name, values in (("name_offset", offsets), ("name_token", tokens), ("name_next", nexts)):
        place(name, np.array(values, np.int32))
    lists = ("never", "inert", "blank", "partial1", "partial2", "partial3", "continuing1", "continuing2")
    for name in lists:
        place(name, arrays[name])
    num_sequences = SEQ_PROGRAM + len(arrays["seq_offset"]) - 1
    seq_offset = kernel.EOS.value + constants.MAX_EOS.value
    seq_token = seq_offset + num_sequences + 1
    del places["tokens"]
    layout = Layout(
        vocab_size=len(arrays["step"]),
        is_channel=bool(scalars["is_channel"]),
        has_turns=turns is not None,
        turns_by_header=bool(turns and turns.scalars["is_channel"]),
        name_end=name_end,
        eos=kernel.EOS.value,
        seq_offset=seq_offset,
        seq_token=seq_token,
        policy_size=-(-(seq_token + MAX_SEQUENCE_TOKENS) // 32) * 32,
        **{name: scalars[name] for name in ("header_seq", "channel_seq", "body_token", "message_end", "header_tokens")},
        **{name: scalars[name] for name in ("space_word", "space_bytes")},
        **{f"num_{name}": len(arrays[name]) for name in lists},
        **places,
    )
    return layout, np.concatenate(parts)


# --- sequences under way ---


class DeviceSlots:
    """The sequences of a host with slots. [num_slots]"""

    def __init__(self, program: DeviceProgram, num_slots: int) -> None:
        self.program, self.num_slots = program, num_slots
        device = program.tables.device
        self.states = torch.zeros(num_slots, STATE_SIZE, dtype=torch.int32, device=device)
        self.loops = torch.zeros(num_slots, 2 * LOOP_SIZE, dtype=torch.int32, device=device)
        self.policies = torch.zeros(num_slots, program.layout.policy_size, dtype=torch.int32, device=device)
        self._staged: dict[int, npt.NDArray[np.int32]] = {}

    def stage(self, slot: int, policy: npt.NDArray[np.int32] | None, limit: int = -1) -> None:
        """Give a slot to a new sequence with a packed policy, or, without one, to a sequence that is left alone."""
        record = np.zeros(1 + STATE_SIZE + self.program.layout.policy_size, np.int32)
        record[0] = slot
        record[1 + ROW_FIELDS.index("limit")] = limit
        record[1 + kernel.FOLDED.value] = -1
        if policy is not None:
            record[1 + STATE_SIZE :] = policy
        self._staged[slot] = record

    def flush(self) -> None:
        """Write what was staged: one transfer, whatever the number of sequences; none without any."""
        if not self._staged:
            return
        records = _sent(np.stack(list(self._staged.values())), self.states.device)
        self._staged.clear()
        slots = records[:, 0].long()
        self.states.index_copy_(0, slots, records[:, 1 : 1 + STATE_SIZE])
        self.policies.index_copy_(0, slots, records[:, 1 + STATE_SIZE :])

    def apply(
        self,
        logits: torch.Tensor,
        slots: torch.Tensor,
        offsets: torch.Tensor,
        inputs: torch.Tensor,
        tokens: torch.Tensor,
        total: torch.Tensor,
        prompt: torch.Tensor,
    ) -> None:
        """Account for what was committed since the last call and edit each row of logits in place, in one launch.

        logits: [num_rows, width], of any strides. slots, offsets, inputs: [num_rows], a row's slot, its offset among that
        slot's rows, which follow each other, and the token fed there, at offsets above 0 a draft. tokens: [num_slots,
        capacity] int32 or int64, of which the first total[slot] are committed and the first prompt[slot] the prompt.
        """
        if not len(logits):
            return
        kernel.guard_slots[(len(logits),)](
            logits, logits.stride(0), logits.stride(1), len(logits), logits.shape[1],
            slots, offsets, inputs, tokens, tokens.stride(0), total, prompt,
            self.states, self.loops, self.policies, self.program.tables,
            STATE_SIZE=STATE_SIZE, LOOP_SIZE=LOOP_SIZE, L=self.program.layout, BLOCK=BLOCK, num_warps=NUM_WARPS,
        )  # fmt: skip


class DeviceSequences:
    """The sequences of a host that hands over all of their tokens at every call, in any order."""

    def __init__(
        self, program: DeviceProgram, bound: BoundPolicy, prompt: int | None = None, max_tokens: int | None = None
    ) -> None:
        """`prompt` tokens of each sequence are its prompt, None: all those of a sequence that was not seen before."""
        self.program = program
        self.device = program.tables.device
        self._prompt = -1 if prompt is None else prompt
        self._limit = -1 if max_tokens is None else min(max_tokens, 2**30)
        self._policy = _sent(program.pack_policy(bound), self.device)
        self._num_seen = self._num_rows = self._capacity = 0
        self._seen, self._next = self._buffers(), self._buffers()

    def apply(self, token_ids: torch.Tensor, logits: torch.Tensor) -> None:
        """Edit each row of logits in place behind its sequence, in one launch.

        token_ids: [num_rows, length] of int64 or int32, each row contiguous. logits: [num_rows, width], of any strides.
        """
        num_rows, length = token_ids.shape
        if not num_rows:
            return
        if num_rows > self._num_rows or length > self._capacity:
            self._grow(num_rows, length)
        states, loops, seen = self._seen
        kernel.guard_sequences[(num_rows,)](
            logits, logits.stride(0), logits.stride(1), num_rows, logits.shape[1],
            token_ids, token_ids.stride(0), length, self._prompt, self._limit,
            states, loops, seen, self._num_seen, *self._next, seen.stride(0),
            self._policy, self.program.tables,
            STATE_SIZE=STATE_SIZE, LOOP_SIZE=LOOP_SIZE, L=self.program.layout, BLOCK=BLOCK, num_warps=NUM_WARPS,
        )  # fmt: skip
        self._seen, self._next, self._num_seen = self._next, self._seen, num_rows

    @property
    def states(self) -> torch.Tensor:
        """Where the sequences of the last call stand. [num_rows, STATE_SIZE]"""
        return self._seen[0][: self._num_seen]

    def _grow(self, num_rows: int, length: int) -> None:
        """Make room, by halves again as much as is needed, and keep what was seen."""
        self._num_rows, self._capacity = max(num_rows, self._num_rows), max(length + length // 2 + 256, self._capacity)
        old, self._seen, self._next = self._seen, self._buffers(), self._buffers()
        for before, after in zip(old, self._seen, strict=True):
            after[: before.shape[0], : before.shape[1]] = before

    def _buffers(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows = self._num_rows
        return self._zeros(rows, STATE_SIZE), self._zeros(rows, 2 * LOOP_SIZE), self._zeros(rows, self._capacity)

    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int32, device=self.device)


class DeviceEdits:
    """Edits that the host decided on, carried out on the device."""

    def __init__(self, program: DeviceProgram) -> None:
        self.program = program
        self._packed: list[BoundPolicy | None] = []
        self._policies = torch.zeros(0, program.layout.policy_size, dtype=torch.int32, device=program.tables.device)

    def apply(self, logits: torch.Tensor, actions: npt.NDArray[np.int32], policies: list[BoundPolicy | None]) -> None:
        """Carry out actions in one transfer and one launch; a policy that is new takes another transfer.

        actions: [num_actions, ACTION_SIZE], each a row of the logits, an index in `policies`, and tg_action's fields.
        """
        self._take_in(policies)
        kernel.carry_out_actions[(len(actions),)](
            logits, logits.stride(0), logits.stride(1), logits.shape[1],
            _sent(actions, logits.device), self._policies, self.program.tables,
            ACTION_SIZE=ACTION_SIZE, L=self.program.layout, BLOCK=BLOCK, num_warps=NUM_WARPS,
        )  # fmt: skip

    def _take_in(self, policies: list[BoundPolicy | None]) -> None:
        known = [*self._packed, *[None] * (len(policies) - len(self._packed))]
        new = [i for i, bound in enumerate(policies) if bound is not None and bound is not known[i]]
        if not new:
            return
        if len(policies) > len(self._policies):
            room = torch.zeros(2 * len(policies), self._policies.shape[1], dtype=torch.int32, device=self._policies.device)
            room[: len(self._policies)] = self._policies
            self._policies = room
        device = self._policies.device
        packed = np.stack([self.program.pack_policy(bound) for i in new if (bound := policies[i]) is not None])
        self._policies.index_copy_(0, _sent(np.array(new), device), _sent(packed, device))
        self._packed = list(policies)


def _sent(values: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy on the device that nobody waits for."""
    tensor = torch.from_numpy(np.array(values))
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # kept by torch until the copy is through
    return tensor.to(device, non_blocking=True)
