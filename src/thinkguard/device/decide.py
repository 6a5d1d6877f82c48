"""The deciding half of csrc/machine.c in Triton: what a row's next step needs."""

from __future__ import annotations

import triton
import triton.language as tl

from thinkguard.device.layout import (
    ALLOW,
    ANSWER,
    ANSWERING,
    BAN_BLANK,
    BAN_EOS,
    BAN_INERT,
    BAN_NEVER,
    BEFORE,
    BLANK_PATIENCE,
    BODY,
    BODY_CALL,
    BODY_FREE,
    BODY_PREAMBLE,
    CALL_END,
    CLOSING,
    DONE,
    EDIT,
    END,
    EOS_CLOSE,
    FORCE,
    FREE,
    GROWS_END,
    HEADER,
    HEADER_PATIENCE,
    HEADING,
    IMPLICIT,
    MANY,
    MARKS,
    MOVE_END,
    MOVE_EOS,
    MOVE_IMPLICIT,
    MULTI,
    NO_LIMIT,
    NOT_CALL_END,
    ONLY_CALL_END,
    PLAN,
    REACH,
    SEARCH,
    SPELLED,
    START,
    STATE_INERT,
    STATE_RECIPIENT,
    THINKING,
    TOOL,
    Action,
)
from thinkguard.device.machine import (
    answer_left,
    answer_may_restart,
    extension_fits,
    mark_allowed,
    node_field,
    pending_bytes,
    sequence_token,
    start_is_legal,
    thinking_left,
)


@triton.jit
def _decide_header(tables, policy, P, row, forbidden, flags, L: tl.constexpr):
    """Between two messages: which channel comes next, or a tool call's free header; (kind, token, forbidden, flags, cut)."""
    zero = row.node * 0
    kind, token, cut = zero + EDIT, zero - 1, zero
    bounded = row.limit != NO_LIMIT
    room = tl.where(bounded, row.limit - row.length, MANY)
    if row.body == BODY_FREE:
        behind = tl.where((row.flags & STATE_RECIPIENT) != 0, 0, L.header_tokens + 1)
        left = HEADER_PATIENCE - row.header_tokens
        left = tl.where(bounded, tl.minimum(left, room - behind - P.min_answer - 2), left)
        if left <= 0:
            kind = zero + FORCE
            token = zero + L.body_token
        else:
            cut = tl.where(left <= 3, left, 0)
            forbidden |= START | END | ANSWER | TOOL | HEADER | CALL_END
            flags |= BAN_EOS
    else:
        reach = node_field(tables, row.node, REACH, L)
        legal = tl.where(reach != 0, reach, -1) & (ANSWER | TOOL | START)
        if (legal & (legal - 1)) != 0:
            if not start_is_legal(P, row, L):
                legal &= ~START
            tight = room <= L.header_tokens + HEADER_PATIENCE + P.min_answer + 2
            legal = tl.where(((legal & ~TOOL) != 0) & tight, legal & ~TOOL, legal)
        low, high = tl.load(tables + L.mark_offset + row.node), tl.load(tables + L.mark_offset + row.node + 1)
        count, only = 0, -1
        while low < high:
            at = low + tl.arange(0, SEARCH)
            allowed = mark_allowed(tl.load(tables + L.mark_mask + at, mask=at < high, other=0), legal)
            marked = tl.load(tables + L.mark_token + at, mask=at < high, other=-1)
            count += tl.sum(allowed.to(tl.int32), axis=0)
            only = tl.maximum(only, tl.max(tl.where(allowed, marked, -1), axis=0))
            low += SEARCH
        flags = zero
        if count > 1:
            kind = zero + ALLOW
            forbidden = legal
        else:
            kind = zero + FORCE
            token = tl.where(count == 1, only, sequence_token(policy, L.header_seq, 0, L))
    return kind, token, forbidden, flags, cut


@triton.jit
def _decide_answer(P, row, forbidden, flags, L: tl.constexpr):
    """(kind, token, forbidden, flags, cut)"""
    zero = row.node * 0
    kind, token, cut = zero + EDIT, zero - 1, zero
    left, missing = answer_left(P, row), P.min_answer - row.visible
    room = zero + MANY
    bounded = row.limit != NO_LIMIT
    in_preamble, in_call = False, False
    if L.is_channel:
        in_preamble, in_call = row.body == BODY_PREAMBLE, row.body == BODY_CALL
        if in_preamble:  # ends while the least answer still fits behind it
            room = tl.where(P.max_answer == NO_LIMIT, MANY, P.max_answer - row.answer - P.min_answer)
            behind = L.header_tokens + P.min_answer + 2
            room = tl.where(bounded, tl.minimum(row.limit - row.length - behind, room), room)
    over = (P.max_answer != NO_LIMIT) & (row.answer >= P.max_answer) & (row.phase == ANSWERING)
    if room <= 0:
        kind = zero + FORCE
        token = zero + L.message_end
    elif over and not in_call and P.answer_eos >= 0:
        kind = zero + FORCE
        token = P.answer_eos
    else:
        if missing > 0:
            flags |= BAN_EOS
            if row.blank >= BLANK_PATIENCE or left <= missing:  # 20
                flags |= BAN_BLANK
        left = tl.minimum(left, room)
        cut = tl.where((left >= 1) & (left <= 3), left, 0)
        restarts = answer_may_restart(P, row)
        quotes = (P.markers_allowed != 0) & (row.phase == ANSWERING)
        if L.is_channel:
            forbidden |= START | END | ANSWER | TOOL | BODY | HEADER
            if in_call:
                flags |= ONLY_CALL_END
            else:
                forbidden |= CALL_END
                flags |= NOT_CALL_END
            if in_preamble:
                if missing > 0:
                    flags |= BAN_EOS
                else:  # a preamble is not the turn's end: EOS ends the message (11)
                    flags |= MOVE_EOS
                    token = zero + L.message_end
                    forbidden &= ~END
        elif quotes:
            forbidden = tl.where(restarts, 0, forbidden | ANSWER)
        else:
            forbidden |= END
            forbidden = tl.where(start_is_legal(P, row, L), forbidden, forbidden | START)
            forbidden = tl.where(restarts, forbidden, forbidden | ANSWER)
    return kind, token, forbidden, flags, cut


@triton.jit
def _decide_thinking(tables, P, row, forbidden, flags, L: tl.constexpr):
    """(token, forbidden, flags, cut, bias)"""
    token, bias = row.node * 0 - 1, row.node.to(tl.float32) * 0.0
    forbidden |= START | ANSWER | TOOL | BODY | HEADER | CALL_END
    if row.thinking < P.min_thinking:  # 13
        forbidden |= END | IMPLICIT | GROWS_END
        flags |= BAN_EOS
        if extension_fits(P, row.thinking, row.extensions, row.length, row.limit, P.extend_length):  # 18
            flags |= MOVE_END
            token = P.extend_token
    else:  # 11
        flags |= tl.where(P.on_eos == EOS_CLOSE, MOVE_EOS, BAN_EOS) | MOVE_IMPLICIT
        token = node_field(tables, row.node, PLAN, L)
        if P.soft != NO_LIMIT and row.thinking >= P.soft:  # 17
            risen = P.close_bias * (row.thinking - P.soft).to(tl.float32)
            bias = tl.div_rn(risen, (P.max_thinking - P.soft).to(tl.float32))
    left = thinking_left(P, row.thinking, row.length, row.limit)
    cut = tl.where(left <= 3, left, 0)  # 15
    return token, forbidden, flags, cut, bias


@triton.jit
def decide(tables, policy, P, row, L: tl.constexpr):
    """Say what the next step needs."""
    zero = row.node * 0  # a tensor, so that the interpreter, too, sees one type in all branches
    kind, token, forbidden, flags, cut, pending = zero + FREE, zero - 1, zero, zero, zero, zero
    bias = zero.to(tl.float32)
    if row.phase != DONE and (row.flags & STATE_INERT) == 0:
        if row.seq != 0:
            kind = zero + FORCE
            token = sequence_token(policy, row.seq, row.pos, L)
        else:
            kind = zero + EDIT
            forbidden = zero + (SPELLED | MULTI)
            heads = False
            if L.is_channel:
                heads = (row.phase == HEADING) | (row.phase == BEFORE)
            if row.phase == THINKING or row.phase == CLOSING:
                token, forbidden, flags, cut, bias = _decide_thinking(tables, P, row, forbidden, flags, L)
            elif heads:
                if L.is_channel:
                    kind, token, forbidden, flags, cut = _decide_header(tables, policy, P, row, forbidden, flags, L)
            else:
                kind, token, forbidden, flags, cut = _decide_answer(P, row, forbidden, flags, L)
            if kind == EDIT:
                if row.node != 0 and forbidden != 0:
                    flags |= BAN_INERT  # 2
                if L.num_never > 0:
                    flags |= BAN_NEVER  # 3
                if cut != 0:
                    pending = pending_bytes(row.tail)
                if flags == 0 and cut == 0:
                    if (node_field(tables, row.node, MARKS, L) & forbidden) == 0:
                        kind = zero + FREE
    allowed = tl.where(kind == ALLOW, forbidden, 0)
    forbidden = tl.where(kind == ALLOW, 0, forbidden)
    return Action(kind, token, row.node, forbidden, allowed, flags, cut, pending, bias)
