"""A program's tables and policies as the kernels read them, in a device's memory."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from thinkguard.core._core import BoundPolicy
from thinkguard.core.names import Seq
from thinkguard.core.program import ThinkProgram
from thinkguard.device import kernel
from thinkguard.device import layout as constants
from thinkguard.device.layout import Layout, Row
from thinkguard.errors import InputError

ROW_FIELDS = Row._fields
BLOCK = 128  # tokens looked at, or logits banned, at once
NUM_WARPS = 1  # scalar code: more warps only repeat it
STATE_SIZE = 32  # int32 of a sequence's state
LOOP_SIZE = 192  # of its side block, of which there are two: behind the committed tokens, and for drafts
ACTION_SIZE = 11  # of an action for `DeviceEdits`
MAX_SEQUENCE_TOKENS = 2304  # that a policy's block has room for; see `pack_policy`
_SCALARS = (
    "max_thinking_tokens", "min_thinking_tokens", "grace_tokens", "close_at", "soft_thinking_tokens", "max_extensions",
    "on_eos", "opening", "max_think_blocks", "min_answer_tokens", "max_answer_tokens", "loop_tokens", "markers_in_answer",
)  # fmt: skip


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
        sequences = [bound.sequence(seq) for seq in range(Seq.OPEN, Seq.PROGRAM)] + _program_sequences(self.program)
        offsets = np.cumsum([0, 0, *map(len, sequences)])
        if offsets[-1] > MAX_SEQUENCE_TOKENS:
            raise InputError(
                f"close_message and extend_message take {offsets[-1]} tokens with the markers; at most "
                f"{MAX_SEQUENCE_TOKENS} fit into a request's tables on the device: shorten them"
            )
        extend = bound.sequence(Seq.EXTEND)
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


def _padded(structs: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Structs of seven int32 as rows of eight."""
    return np.pad(structs.view(np.int32).reshape(len(structs), -1), ((0, 0), (0, 1)))


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
    place("events", _padded(arrays["events"]))
    place("nodes", _padded(arrays["nodes"]))
    for name in ("except_offset", "except_token", "except_step"):
        place(f"turns_{name}", turns.arrays[name] if turns else ())
    place("turns_events", _padded(turns.arrays["events"]) if turns else ())
    offsets, tokens, nexts, name_end = _name_automaton(program)
    for name, values in (("name_offset", offsets), ("name_token", tokens), ("name_next", nexts)):
        place(name, np.array(values, np.int32))
    lists = ("never", "inert", "blank", "partial1", "partial2", "partial3", "continuing1", "continuing2")
    for name in lists:
        place(name, arrays[name])
    num_sequences = Seq.PROGRAM + len(arrays["seq_offset"]) - 1
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


def sent(values: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy on the device that nobody waits for."""
    tensor = torch.from_numpy(np.array(values))
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # kept by torch until the copy is through
    return tensor.to(device, non_blocking=True)
