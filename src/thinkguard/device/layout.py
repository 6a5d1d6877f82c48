"""thinkguard.h in Triton: the header's constants under its names, its structs, and where a program's tables lie."""

from __future__ import annotations

from typing import NamedTuple

import triton.language as tl

# A test compares the values with the header's.
START, END, ANSWER, IMPLICIT = tl.constexpr(1), tl.constexpr(2), tl.constexpr(4), tl.constexpr(8)
SPELLED, TOOL, BODY, HEADER = tl.constexpr(16), tl.constexpr(32), tl.constexpr(64), tl.constexpr(128)
CALL_END, RECIPIENT, MULTI = tl.constexpr(256), tl.constexpr(512), tl.constexpr(1024)
GROWS_END, EXTENDS = tl.constexpr(2048), tl.constexpr(4096)
TEXT, VISIBLE, INERT = tl.constexpr(1), tl.constexpr(2), tl.constexpr(4)
BOUNDARY, RAW = tl.constexpr(8), tl.constexpr(16)
BEFORE, THINKING, CLOSING = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
HEADING, ANSWERING, DONE = tl.constexpr(3), tl.constexpr(4), tl.constexpr(5)
BY_NONE, BY_MODEL, BY_BUDGET, BY_BOUNDARY = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
BY_LOOP, BY_IMPLICIT, BY_PROMPT = tl.constexpr(4), tl.constexpr(5), tl.constexpr(6)
BODY_NONE, BODY_FREE, BODY_FINAL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
BODY_CALL, BODY_PREAMBLE = tl.constexpr(3), tl.constexpr(4)
OPEN_FORCE, OPEN_FORBID = tl.constexpr(0), tl.constexpr(2)
EOS_CLOSE, AT_SENTENCE = tl.constexpr(0), tl.constexpr(1)
NO_LIMIT, LOOP_PERIODS, BLANK_PATIENCE = tl.constexpr(-1), tl.constexpr(64), tl.constexpr(8)
HEADER_PATIENCE, MAX_EOS = tl.constexpr(32), tl.constexpr(16)
SEQ_NONE, SEQ_OPEN, SEQ_CLOSE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
SEQ_OFF, SEQ_EXTEND = tl.constexpr(3), tl.constexpr(4)
STATE_INERT, STATE_LOOP, STATE_RECIPIENT = tl.constexpr(1), tl.constexpr(2), tl.constexpr(4)
STATE_VIOLATION, STATE_FORCED = tl.constexpr(8), tl.constexpr(16)
FREE, FORCE, EDIT, ALLOW = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
BAN_EOS, BAN_INERT, BAN_BLANK = tl.constexpr(1), tl.constexpr(2), tl.constexpr(4)
MOVE_EOS, MOVE_IMPLICIT, MOVE_END = tl.constexpr(8), tl.constexpr(16), tl.constexpr(32)
ONLY_CALL_END, NOT_CALL_END, BAN_NEVER = tl.constexpr(64), tl.constexpr(128), tl.constexpr(256)

MANY = tl.constexpr(2**31 - 1)  # of tokens that are left: any number
SEARCH = tl.constexpr(128)  # entries compared at once; the lists of a node are a few hundred long at most


class Row(NamedTuple):
    """Where one sequence stands: `tg_state`, field by field."""

    phase: tl.tensor
    node: tl.tensor
    tail: tl.tensor
    seq: tl.tensor
    pos: tl.tensor
    flags: tl.tensor
    thinking: tl.tensor
    block: tl.tensor
    blocks: tl.tensor
    visible: tl.tensor
    answer: tl.tensor
    blank: tl.tensor
    extensions: tl.tensor
    space: tl.tensor
    closed_by: tl.tensor
    length: tl.tensor
    header_tokens: tl.tensor
    is_headed: tl.tensor
    body: tl.tensor
    limit: tl.tensor


class Policy(NamedTuple):
    """The scalars of a request's policy: `tg_policy`, with what follows from it worked out on the host."""

    max_thinking: tl.tensor
    min_thinking: tl.tensor
    grace: tl.tensor
    close_at: tl.tensor
    soft: tl.tensor
    max_extensions: tl.tensor
    on_eos: tl.tensor
    opening: tl.tensor
    max_blocks: tl.tensor
    min_answer: tl.tensor
    max_answer: tl.tensor
    loop_tokens: tl.tensor
    markers_allowed: tl.tensor
    close_room: tl.tensor  # tg_close_room
    answer_eos: tl.tensor  # the EOS that ends an answer, -1: none
    extend_token: tl.tensor  # the extension's first token, -1: none
    extend_length: tl.tensor
    guards_raw: tl.tensor  # whether a prompt without a chat is guarded
    num_eos: tl.tensor
    close_bias: tl.tensor
    eos: tl.tensor  # [MAX_EOS], -1 behind the last


class Action(NamedTuple):
    """What the next step of a row needs: `tg_action`."""

    kind: tl.tensor
    token: tl.tensor
    node: tl.tensor
    forbidden: tl.tensor
    allowed: tl.tensor
    flags: tl.tensor
    cut: tl.tensor
    pending: tl.tensor
    bias: tl.tensor


class Layout(NamedTuple):
    """A program's scalars and the offsets of its tables, in int32 elements; a constant of the kernel."""

    vocab_size: int
    is_channel: bool
    header_seq: int
    channel_seq: int
    body_token: int
    message_end: int
    header_tokens: int
    space_word: int
    space_bytes: int
    has_turns: bool  # the turn's start is found by a second automaton
    turns_by_header: bool
    # tables
    except_offset: int
    except_token: int
    except_step: int
    mark_offset: int
    mark_token: int
    mark_mask: int
    events: int
    nodes: int
    turns_except_offset: int
    turns_except_token: int
    turns_except_step: int
    turns_events: int
    name_offset: int  # the header's own text as an automaton over tokens
    name_token: int
    name_next: int
    name_end: int  # its last node
    never: int
    num_never: int
    inert: int
    num_inert: int
    blank: int
    num_blank: int
    partial1: int
    num_partial1: int
    partial2: int
    num_partial2: int
    partial3: int
    num_partial3: int
    continuing1: int
    num_continuing1: int
    continuing2: int
    num_continuing2: int
    # a policy's block
    eos: int
    seq_offset: int
    seq_token: int
    policy_size: int


MARKED = tl.constexpr(1 << 28)  # of a device's info: some node marks the token, or it is never sampled
# Fields of tg_node, in the header's order; end_chars, the second, is the compiler's alone.
START_BYTES, MARKS, REACH = tl.constexpr(0), tl.constexpr(2), tl.constexpr(3)
PLAN, FINISH, OPEN = tl.constexpr(4), tl.constexpr(5), tl.constexpr(6)
# Of tables: one entry of four for each token. Of events and nodes: eight for each.
STEP, INFO, TAIL, TURNS_STEP = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
