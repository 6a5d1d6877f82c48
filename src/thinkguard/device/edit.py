"""csrc/edit.c in Triton: carrying out an action on a row of logits.

`logits` points at the row's first element, `stride` is the distance between two of them. Values are handled as float32.
Where C walks until it finds a token that survives, blocks are looked at: first without the node's marks, which few tokens
have, then with them. Loads that decide are kept apart from stores by barriers, for lanes of one program share the row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from thinkguard.device.layout import (
    ALLOW,
    BAN_BLANK,
    BAN_EOS,
    BAN_INERT,
    BAN_NEVER,
    CALL_END,
    EDIT,
    END,
    FORCE,
    GROWS_END,
    IMPLICIT,
    INERT,
    INFO,
    MARKED,
    MARKS,
    MOVE_END,
    MOVE_EOS,
    MOVE_IMPLICIT,
    NOT_CALL_END,
    ONLY_CALL_END,
    TEXT,
    VISIBLE,
)
from thinkguard.device.machine import (
    among_eos,
    find,
    is_eos,
    mark_allowed,
    node_field,
    token_info,
)

MAX_HALF = tl.constexpr(65504.0)
LOWEST = tl.constexpr(float("-inf"))
_FILL = tl.constexpr(2048)  # logits of a forced or allowed row that are written at once


@triton.jit
def _read(logits, stride, token, width, mask):
    """Logits as float32; NaN and tokens out of reach read as -inf."""
    value = tl.load(logits + token.to(tl.int64) * stride, mask=mask & (token >= 0) & (token < width), other=LOWEST)
    value = value.to(tl.float32)
    return tl.where(value == value, value, LOWEST)


@triton.jit
def _ban(logits, stride, token, width, mask):
    mask = (mask & (token >= 0) & (token < width)) != 0  # the interpreter makes integers of scalar & block
    tl.store(logits + token.to(tl.int64) * stride, LOWEST, mask=mask)


# --- the predicate ---


@triton.jit
def _mark_banned(mask, forbidden):
    kinds = mask & 0xFFFF
    reach = (mask >> 16) & 0xFFFF
    return ((kinds & forbidden) != 0) | ((reach != 0) & ((reach & ~forbidden) == 0))


@triton.jit
def _moved_kinds(flags):
    implicit = tl.where((flags & MOVE_IMPLICIT) != 0, IMPLICIT, 0)
    return implicit | tl.where((flags & MOVE_END) != 0, END | GROWS_END, 0)


@triton.jit
def _marks_of(tables, low, high, token, L: tl.constexpr):
    """The marks of a block of tokens among a node's, by binary search."""
    begin, end = token * 0 + low, token * 0 + high
    span = high - low
    while span > 0:
        middle = begin + (end - begin) // 2
        before = (begin < end) & (tl.load(tables + L.mark_token + middle, mask=middle < high, other=-1) < token)
        begin, end = tl.where(before, middle + 1, begin), tl.where(before, end, middle)
        span = span // 2
    found = tl.load(tables + L.mark_token + begin, mask=begin < high, other=-1) == token
    return tl.load(tables + L.mark_mask + begin, mask=found & (begin < high), other=0)


@triton.jit
def _eos_is_banned(flags, mark):
    """Whether tokens of the EOS set are banned, given their marks."""
    ends_call = (mark & CALL_END) != 0
    by_call = (ends_call & ((flags & NOT_CALL_END) != 0)) | (~ends_call & ((flags & ONLY_CALL_END) != 0))
    return ((flags & (BAN_EOS | MOVE_EOS)) != 0) | by_call


@triton.jit
def _missing_after(info, pending):
    """Bytes of a character that the text misses after a token, taken that it follows `pending` missing ones."""
    continuing = (info >> 26) & 3
    missing = tl.where(continuing != 0, tl.maximum(pending - continuing, 0), (info >> 24) & 3)
    return tl.where((info & TEXT) != 0, missing, pending)


@triton.jit
def _allows_by_info(A, info):
    """What an EDIT lets be sampled of tokens outside the EOS set, marks and `never` left out."""
    allowed = ((A.flags & BAN_INERT) == 0) | ((info & INERT) == 0)
    allowed &= ((A.flags & BAN_BLANK) == 0) | ((info & VISIBLE) != 0)
    return allowed & ((A.cut == 0) | (_missing_after(info, A.pending) < A.cut))


@triton.jit
def _allows_by_mark(A, mark):
    return ~(_mark_banned(mark, A.forbidden) | ((mark & _moved_kinds(A.flags)) != 0))


@triton.jit
def _is_never(tables, token, L: tl.constexpr):
    """Which tokens of a block are never sampled (rule 3); the list holds byte tokens and a handful of others."""
    never = token < 0
    for i in tl.range(0, L.num_never):
        never |= token == tl.load(tables + L.never + i)
    return never


@triton.jit
def _target_survives(tables, P, A, mark, L: tl.constexpr):
    """`tg_allows` of the redirects' target."""
    info = token_info(tables, A.token, L)
    allowed = _allows_by_mark(A, mark) & _allows_by_info(A, info)
    if L.num_never > 0:
        never = find(tables, L.never, 0, L.num_never, A.token) >= 0
        allowed &= ((A.flags & BAN_NEVER) == 0) | ~never
    eos = is_eos(P, A.token)
    return (eos & ~_eos_is_banned(A.flags, mark)) | (~eos & allowed)


@triton.jit
def _anything_survives(tables, policy, P, A, low, high, logits, stride, width, L: tl.constexpr, BLOCK: tl.constexpr):
    """Whether a token that can be sampled is let through; all of the row is looked at only where little is left."""
    survives = 0
    for careful in tl.static_range(2):
        start = 0
        while start < width and survives == 0:
            token = start + tl.arange(0, BLOCK)
            inside = token < width
            allowed = _read(logits, stride, token, width, inside) > LOWEST
            eos = among_eos(policy, P, token, L)
            info = token_info(tables, token, L)
            if careful == 1:
                mark = _marks_of(tables, low, high, token, L)
                by_mark = _allows_by_mark(A, mark)
                if L.num_never > 0:
                    by_mark &= ((A.flags & BAN_NEVER) == 0) | ~_is_never(tables, token, L)
                allowed &= (eos & ~_eos_is_banned(A.flags, mark)) | (~eos & by_mark)
            else:
                allowed &= ~eos & ((info & MARKED) == 0)
            allowed &= eos | _allows_by_info(A, info)
            survives = tl.max((allowed & inside).to(tl.int32), axis=0)
            start += BLOCK
    return survives != 0


# --- carrying it out ---


# EOS is spared by writing it back: see `_edit`.


@triton.jit
def _ban_list(tables, logits, stride, width, list: tl.constexpr, count: tl.constexpr, BLOCK: tl.constexpr):
    """Ban the tokens of a list."""
    for start in tl.range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        _ban(logits, stride, tl.load(tables + list + at, mask=at < count, other=-1), width, at < count)


@triton.jit
def _ban_textless(tables, logits, stride, width, L: tl.constexpr, BLOCK: tl.constexpr):
    """Ban inert tokens without text."""
    for start in tl.range(0, L.num_inert, BLOCK):
        at = start + tl.arange(0, BLOCK)
        token = tl.load(tables + L.inert + at, mask=at < L.num_inert, other=-1)
        info = tl.load(tables + token * 4 + INFO, mask=token >= 0, other=TEXT)
        _ban(logits, stride, token, width, (info & TEXT) == 0)


@triton.jit
def _ban_beyond(logits, stride, width, L: tl.constexpr, BLOCK: tl.constexpr):
    """Ban the ids between the vocabulary and the logits' width."""
    for start in tl.range(L.vocab_size, width, BLOCK):
        token = start + tl.arange(0, BLOCK)
        _ban(logits, stride, token, width, token < width)


@triton.jit
def _ban_marks(tables, A, low, high, logits, stride, width, L: tl.constexpr, BLOCK: tl.constexpr):
    for start in tl.range(low, high, BLOCK):
        at = start + tl.arange(0, BLOCK)
        token = tl.load(tables + L.mark_token + at, mask=at < high, other=-1)
        mark = tl.load(tables + L.mark_mask + at, mask=at < high, other=0)
        _ban(logits, stride, token, width, ~_allows_by_mark(A, mark))


@triton.jit
def _ban_cut(tables, A, logits, stride, width, L: tl.constexpr, BLOCK: tl.constexpr):
    """Ban what would leave too much of a character missing (rule 15)."""
    if A.cut == 1:
        _ban_list(tables, logits, stride, width, L.partial1, L.num_partial1, BLOCK)
    elif A.cut == 2:
        _ban_list(tables, logits, stride, width, L.partial2, L.num_partial2, BLOCK)
    else:
        _ban_list(tables, logits, stride, width, L.partial3, L.num_partial3, BLOCK)
    if A.pending >= A.cut:
        if A.pending - 1 >= A.cut:
            _ban_list(tables, logits, stride, width, L.continuing1, L.num_continuing1, BLOCK)
        if A.pending - 2 >= A.cut:
            _ban_list(tables, logits, stride, width, L.continuing2, L.num_continuing2, BLOCK)
        _ban_textless(tables, logits, stride, width, L, BLOCK)
        _ban_beyond(logits, stride, width, L, BLOCK)


@triton.jit
def _largest_moved(tables, A, eos_logits, low, high, logits, stride, width, L: tl.constexpr, BLOCK: tl.constexpr):
    """The largest logit among the tokens that are moved to the target, -inf: none of them can be sampled."""
    eos = eos_logits.to(tl.float32)
    largest = tl.where((A.flags & MOVE_EOS) != 0, tl.max(tl.where(eos == eos, eos, LOWEST), axis=0), LOWEST)
    moved = _moved_kinds(A.flags)
    for start in tl.range(low, tl.where(moved != 0, high, low), BLOCK):
        at = start + tl.arange(0, BLOCK)
        token = tl.load(tables + L.mark_token + at, mask=at < high, other=-1)
        mark = tl.load(tables + L.mark_mask + at, mask=at < high, other=0)
        values = _read(logits, stride, token, width, (mark & moved) != 0)
        largest = tl.maximum(largest, tl.max(values, axis=0))
    return largest


@triton.jit
def _edit(tables, policy, P, A, logits, stride, width, L: tl.constexpr, BLOCK: tl.constexpr):
    concerns = (node_field(tables, A.node, MARKS, L) & (A.forbidden | _moved_kinds(A.flags))) != 0
    low, high = tl.load(tables + L.mark_offset + A.node), tl.load(tables + L.mark_offset + A.node + 1)
    eos_marks = P.eos * 0
    if L.is_channel:  # elsewhere the EOS set is not told apart by marks
        eos_marks = _marks_of(tables, low, high, P.eos, L)
    eos_logits = tl.load(logits + P.eos.to(tl.int64) * stride, mask=(P.eos >= 0) & (P.eos < width), other=LOWEST)
    target = _read(logits, stride, A.token, width, A.token >= 0)
    survives = False
    if target > LOWEST:
        at = find(tables, L.mark_token, low, high, A.token)
        mark = tl.load(tables + L.mark_mask + at, mask=at >= 0, other=0)
        survives = _target_survives(tables, P, A, mark, L)
    if survives:
        moved = _largest_moved(tables, A, eos_logits, low, high, logits, stride, width, L, BLOCK)
        larger = tl.maximum(moved, target)
        value = larger + A.bias
        if logits.dtype.element_ty == tl.float16:  # inf would break a softmax
            value = tl.where((larger <= MAX_HALF) & (value > MAX_HALF), MAX_HALF, value)
        tl.debug_barrier()
        tl.store(logits + A.token.to(tl.int64) * stride, value.to(logits.dtype.element_ty), mask=value != target)
    else:
        survives = _anything_survives(tables, policy, P, A, low, high, logits, stride, width, L, BLOCK)
        tl.debug_barrier()
    if survives:
        if concerns:
            _ban_marks(tables, A, low, high, logits, stride, width, L, BLOCK)
        if L.num_never > 0:
            if (A.flags & BAN_NEVER) != 0:
                _ban_list(tables, logits, stride, width, L.never, L.num_never, BLOCK)
        if (A.flags & BAN_BLANK) != 0:
            _ban_list(tables, logits, stride, width, L.blank, L.num_blank, BLOCK)
        elif (A.flags & BAN_INERT) != 0:
            _ban_list(tables, logits, stride, width, L.inert, L.num_inert, BLOCK)
        if (A.flags & (BAN_BLANK | BAN_INERT)) != 0:
            _ban_beyond(logits, stride, width, L, BLOCK)
        if A.cut != 0:
            _ban_cut(tables, A, logits, stride, width, L, BLOCK)
        tl.debug_barrier()
        banned = _eos_is_banned(A.flags, eos_marks)
        inside = ((P.eos >= 0) & (P.eos < width) & ((P.eos != A.token) | banned)) != 0
        kept = tl.where(banned, LOWEST, eos_logits.to(tl.float32)).to(logits.dtype.element_ty)
        tl.store(logits + P.eos.to(tl.int64) * stride, kept, mask=inside)


@triton.jit
def _force(A, logits, stride, width):
    if _read(logits, stride, A.token, width, A.token >= 0) > LOWEST:
        tl.debug_barrier()
        for start in tl.range(0, width, _FILL):
            token = start + tl.arange(0, _FILL)
            value = tl.where(token == A.token, 0.0, LOWEST).to(logits.dtype.element_ty)
            tl.store(logits + token.to(tl.int64) * stride, value, mask=token < width)


@triton.jit
def _allow(tables, A, logits, stride, width, L: tl.constexpr, BLOCK: tl.constexpr):
    low, high = tl.load(tables + L.mark_offset + A.node), tl.load(tables + L.mark_offset + A.node + 1)
    survives = 0
    for start in tl.range(low, high, BLOCK):
        at = start + tl.arange(0, BLOCK)
        token = tl.load(tables + L.mark_token + at, mask=at < high, other=-1)
        mark = tl.load(tables + L.mark_mask + at, mask=at < high, other=0)
        alive = _read(logits, stride, token, width, mark_allowed(mark, A.allowed)) > LOWEST
        survives = tl.maximum(survives, tl.max(alive.to(tl.int32), axis=0))
    if survives != 0:
        begin = 0  # marks ascend by token: ban the gaps between the allowed ones
        while begin < width:
            end = width
            for start in tl.range(low, high, BLOCK):
                at = start + tl.arange(0, BLOCK)
                token = tl.load(tables + L.mark_token + at, mask=at < high, other=-1)
                mark = tl.load(tables + L.mark_mask + at, mask=at < high, other=0)
                ahead = mark_allowed(mark, A.allowed) & (token >= begin)
                end = tl.minimum(end, tl.min(tl.where(ahead, token, width), axis=0))
            for start in tl.range(begin, end, _FILL):
                token = start + tl.arange(0, _FILL)
                _ban(logits, stride, token, end, token < end)
            begin = end + 1


@triton.jit
def carry_out(tables, policy, P, A, logits, stride, width, L: tl.constexpr, BLOCK: tl.constexpr):
    """Carry out an action on a row of logits: `tg_apply`."""
    if A.kind == EDIT:
        _edit(tables, policy, P, A, logits, stride, width, L, BLOCK)
    elif A.kind == FORCE:
        _force(A, logits, stride, width)
    elif L.is_channel:
        if A.kind == ALLOW:
            _allow(tables, A, logits, stride, width, L, BLOCK)
