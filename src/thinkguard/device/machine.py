"""csrc/machine.h and the advancing half of csrc/machine.c in Triton, function by function under the same names.

All of it is scalar code of one program; what C keeps behind pointers is passed by value, so that a draft is walked in a
copy. `tables` is the program (see `device.DeviceProgram`), `policy` the request's block of it, and `L`, the layout of
both, is known when the kernel is compiled: a format without channels has no code for them. Numbers in comments are the
rules of docs/semantics.md.
"""

from __future__ import annotations

import triton
import triton.language as tl

from thinkguard.device.layout import (
    ANSWER,
    ANSWERING,
    AT_SENTENCE,
    BEFORE,
    BODY,
    BODY_CALL,
    BODY_FINAL,
    BODY_FREE,
    BODY_NONE,
    BODY_PREAMBLE,
    BY_BOUNDARY,
    BY_BUDGET,
    BY_IMPLICIT,
    BY_LOOP,
    BY_MODEL,
    BY_NONE,
    CALL_END,
    CLOSING,
    DONE,
    END,
    EXTENDS,
    FINISH,
    GROWS_END,
    HEADER,
    HEADING,
    IMPLICIT,
    INERT,
    INFO,
    LOOP_PERIODS,
    MANY,
    MULTI,
    NO_LIMIT,
    OPEN,
    OPEN_FORBID,
    OPEN_FORCE,
    REACH,
    RECIPIENT,
    SEARCH,
    SEQ_CLOSE,
    SEQ_EXTEND,
    SEQ_OFF,
    SEQ_OPEN,
    SPELLED,
    START,
    START_BYTES,
    STATE_FORCED,
    STATE_INERT,
    STATE_LOOP,
    STATE_RECIPIENT,
    STATE_VIOLATION,
    STEP,
    TAIL,
    TEXT,
    THINKING,
    TOOL,
    VISIBLE,
    Row,
)


@triton.jit
def token_info(tables, token, L: tl.constexpr):
    """Return a token's info, a scalar's or a block's; ids beyond the vocabulary are tokens without text."""
    known = (token >= 0) & (token < L.vocab_size)
    return tl.load(tables + token * 4 + INFO, mask=known, other=INERT)


@triton.jit
def node_field(tables, node, field: tl.constexpr, L: tl.constexpr):
    """Return a field of `tg_node`."""
    return tl.load(tables + L.nodes + node * 8 + field)


@triton.jit
def find(tables, ids: tl.constexpr, low, high, token):
    """Return the index of `token` among tables[ids + low .. ids + high), -1: not there."""
    found = -1
    while low < high and found < 0:
        at = low + tl.arange(0, SEARCH)
        entries = tl.load(tables + ids + at, mask=at < high, other=-1)
        found = tl.max(tl.where((entries == token) & (at < high), at, -1), axis=0)
        low += SEARCH
    return found


@triton.jit
def follow(tables, node, token, from_root, offsets: tl.constexpr, tokens: tl.constexpr, steps: tl.constexpr):
    """Return where a token with text leads from a node, given where it leads from the root."""
    step = from_root
    if node != 0:
        at = find(tables, tokens, tl.load(tables + offsets + node), tl.load(tables + offsets + node + 1), token)
        if at >= 0:
            step = tl.load(tables + steps + at)
    return step


@triton.jit
def is_eos(P, token):
    """Whether a token is in the EOS set; negative ids are not."""
    return (tl.max((P.eos == token).to(tl.int32), axis=0) != 0) & (token >= 0)


@triton.jit
def among_eos(policy, P, tokens, L: tl.constexpr):
    """Which tokens of a block are in the EOS set."""
    among = tokens < 0
    for i in tl.range(0, P.num_eos):
        among |= tokens == tl.load(policy + L.eos + i)
    return among & (tokens >= 0)


@triton.jit
def mark_allowed(mask, legal):
    """`tg_mark_allowed`, of a scalar or a block."""
    kinds = (mask & 0xFFFF) & ~(EXTENDS | GROWS_END)
    reach = (mask >> 16) & 0xFFFF
    return ((mask & EXTENDS) != 0) & ((tl.where(kinds != 0, kinds, reach) & legal) != 0)


# --- sequences ---


@triton.jit
def sequence_token(policy, seq, pos, L: tl.constexpr):
    """The token of a sequence under way, -1: none."""
    begin = tl.load(policy + L.seq_offset + seq, mask=seq != 0, other=0)
    return tl.load(policy + L.seq_token + begin + pos, mask=seq != 0, other=-1)


@triton.jit
def _begin_sequence(policy, seq, pos, L: tl.constexpr):
    """Return (seq, pos), or no sequence if it ends there."""
    length = tl.load(policy + L.seq_offset + seq + 1) - tl.load(policy + L.seq_offset + seq)
    begun = pos < length
    return tl.where(begun, seq, 0), tl.where(begun, pos, 0)


# --- budgets ---


@triton.jit
def thinking_left(P, thinking, length, limit):
    """Tokens of thinking that are left; the limit of the output counts as a budget (8)."""
    left = tl.where(P.max_thinking == NO_LIMIT, MANY, P.max_thinking - thinking)
    room = tl.where(limit == NO_LIMIT, MANY, limit - length - P.close_room)
    return tl.minimum(left, room)


@triton.jit
def answer_may_restart(P, row):
    """Whether the answer may begin once more: the least answer has to fit again (9)."""
    fits = (P.max_answer == NO_LIMIT) | (P.max_answer - row.answer >= P.min_answer)
    return fits & ((row.limit == NO_LIMIT) | (row.limit - row.length > P.min_answer + 1))


@triton.jit
def extension_fits(P, thinking, extensions, length, limit, rest):
    """Whether one more extension may be said, of which `rest` tokens are still to come."""
    wanted = (thinking < P.min_thinking) & (extensions < P.max_extensions)
    return wanted & ((limit == NO_LIMIT) | (limit - length - P.close_room >= rest))


@triton.jit
def start_is_legal(P, row, L: tl.constexpr):
    legal = (row.blocks < P.max_blocks) & (P.opening != OPEN_FORBID) & answer_may_restart(P, row)
    legal &= (P.max_thinking == NO_LIMIT) | (row.thinking < P.max_thinking)
    left = thinking_left(P, row.thinking, row.length, row.limit)
    return legal & ((row.limit == NO_LIMIT) | (left > L.header_tokens))


@triton.jit
def answer_left(P, row):
    left = tl.where(P.max_answer == NO_LIMIT, MANY, P.max_answer - row.answer)
    return tl.minimum(left, tl.where(row.limit == NO_LIMIT, MANY, row.limit - row.length))


# --- text ---


@triton.jit
def pending_bytes(tail):
    """Bytes that the text's last character still misses; 0 if it is whole or already invalid."""
    pending, found = 0, 0
    for have in tl.static_range(1, 4):
        byte = (tail >> 8 * (have - 1)) & 0xFF
        leads = ((byte & 0xC0) != 0x80) & (found == 0)
        want = tl.where(byte >= 0xC2, 2, 1)
        want = tl.where(byte >= 0xE0, 3, want)
        want = tl.where(byte >= 0xF0, 4, want)
        want = tl.where(byte >= 0xF5, 1, want)
        if have > 1:
            second = (tail >> 8 * (have - 2)) & 0xFF
            wrong = (byte == 0xE0) & (second < 0xA0) | (byte == 0xED) & (second > 0x9F)
            wrong |= (byte == 0xF0) & (second < 0x90) | (byte == 0xF4) & (second > 0x8F)
            want = tl.where(wrong, 1, want)
        pending = tl.where(leads, tl.maximum(want - have, 0), pending)
        found = tl.where(leads, 1, found)
    return pending


@triton.jit
def _ends_sentence(tail):
    last = tail & 0xFF
    wide = tail & 0xFFFFFF
    is_wide = (wide == 0xE38082) | (wide == 0xEFBC81) | (wide == 0xEFBC9F) | (wide == 0xEFBC8E)
    before = tl.where(is_wide, tail >> 24, tail >> 8) & 0xFF
    ends = is_wide | (last == 46) | (last == 33) | (last == 63)  # . ! ?
    return ends & ((before < 48) | (before > 57))


@triton.jit
def _at_boundary(P, block, tail):  # 14
    at = ((tail & 0xFF) == 10) | ((P.close_at == AT_SENTENCE) & _ends_sentence(tail))
    return at & (block >= 1) & (pending_bytes(tail) == 0)


@triton.jit
def _in_start_space(space, info, bytes, L: tl.constexpr):
    """Whether a token lies wholly in the canonical white space behind a start, and that space's new state (7)."""
    length = (info >> 8) & 0xFF
    fits = (space >= 0) & (length > 0) & (length <= L.space_bytes - space)
    short = tl.where(fits, length, 1)
    word = L.space_word >> (8 * tl.where(fits, L.space_bytes - space - length, 0))
    mask = tl.where(short >= 4, -1, (1 << (8 * tl.minimum(short, 3))) - 1)
    inside = fits & ((word & mask) == bytes)
    return inside, tl.where(inside, space + length, -1)


# --- loops (16) ---


@triton.jit
def _note_for_loop(loop, P, token):
    """Count how long the last tokens have repeated, in the side block [count, ring, run]; whether that is a loop."""
    count = tl.load(loop)
    place = tl.arange(0, LOOP_PERIODS)
    p = place + 1
    looked_for = p <= P.loop_tokens // 4
    earlier = tl.load(loop + 1 + (count - p) % LOOP_PERIODS, mask=looked_for & (count >= p), other=-1)
    run = tl.load(loop + 1 + LOOP_PERIODS + place, mask=looked_for, other=0)
    run = tl.where((count >= p) & (earlier == token), run + 1, 0)
    tl.debug_barrier()  # all lanes have read the ring before one of them writes it
    tl.store(loop + 1 + LOOP_PERIODS + place, run, mask=looked_for)
    tl.store(loop + 1 + count % LOOP_PERIODS, token)
    tl.store(loop, count + 1)
    tl.debug_barrier()
    return tl.max((looked_for & (run >= P.loop_tokens - p)).to(tl.int32), axis=0) != 0


@triton.jit
def clear_loop(loop):
    """Zero a side block."""
    tl.debug_barrier()
    place = tl.arange(0, 256)
    tl.store(loop + place, 0, mask=place < 1 + 2 * LOOP_PERIODS)
    tl.debug_barrier()


@triton.jit
def copy_loop(loop, other):
    """Copy a side block."""
    tl.debug_barrier()
    place = tl.arange(0, 256)
    inside = place < 1 + 2 * LOOP_PERIODS
    tl.store(other + place, tl.load(loop + place, mask=inside, other=0), mask=inside)
    tl.debug_barrier()


# --- what has to be forced next ---


@triton.jit
def settle(tables, policy, P, row, L: tl.constexpr):
    """Look ahead for what has to be forced."""
    phase, closed_by, seq, pos = row.phase, row.closed_by, row.seq, row.pos
    if seq == 0 and phase != ANSWERING and phase != DONE:
        begin = 0
        if phase == THINKING:
            left = thinking_left(P, row.thinking, row.length, row.limit)
            reason = BY_NONE
            if left <= 0 or P.opening == OPEN_FORBID:
                reason = BY_BUDGET
            elif row.thinking >= P.min_thinking:  # 13
                if (row.flags & STATE_LOOP) != 0:
                    reason = BY_LOOP
                elif left <= P.grace:
                    if _at_boundary(P, row.block, row.tail):
                        reason = BY_BOUNDARY
            if reason != BY_NONE:
                phase = CLOSING
                closed_by = reason
                finish = node_field(tables, row.node, FINISH, L)
                begin = tl.where(finish != 0, finish, SEQ_CLOSE)  # 12, 19
        elif phase == BEFORE:
            if P.opening == OPEN_FORCE:  # 10
                open = node_field(tables, row.node, OPEN, L)
                begin = tl.where(open != 0, open, SEQ_OPEN)
            elif P.opening == OPEN_FORBID:
                begin = SEQ_OFF
            elif L.is_channel:
                begin = tl.where(node_field(tables, row.node, REACH, L) == 0, L.channel_seq, 0)
        elif L.is_channel:
            if phase == HEADING and row.body == BODY_NONE and row.is_headed == 0:
                begin = tl.where(node_field(tables, row.node, REACH, L) == 0, L.header_seq, 0)
        if begin != 0:
            seq, pos = _begin_sequence(policy, begin, 0, L)
    return Row(
        phase, row.node, row.tail, seq, pos, row.flags, row.thinking, row.block, row.blocks, row.visible, row.answer,
        row.blank, row.extensions, row.space, closed_by, row.length,
        row.header_tokens, row.is_headed, row.body, row.limit,
    )  # fmt: skip


# --- what a token did ---


@triton.jit
def _breaks_silence(tables, node_before, node, info, L: tl.constexpr):
    """Whether a token in BEFORE left visible text outside a live start prefix (10)."""
    had, has = node_field(tables, node_before, START_BYTES, L), node_field(tables, node, START_BYTES, L)
    length, leading = (info >> 8) & 0xFF, (info >> 16) & 0xFF
    outside = ((info & VISIBLE) != 0) & (length - has > leading)
    return ((had != 0) & (has != had + length)) | ((had == 0) & outside)


@triton.jit
def _account(tables, policy, loop, P, row, token, L: tl.constexpr):
    """Move a row over one token that is no EOS, all but `settle`; `token` is not negative."""
    phase, tail, seq, pos, flags = row.phase, row.tail, row.seq, row.pos, row.flags
    thinking, block, blocks, visible, answer = row.thinking, row.block, row.blocks, row.visible, row.answer
    blank, extensions, space, closed_by = row.blank, row.extensions, row.space, row.closed_by
    header_tokens, is_headed, body = row.header_tokens, row.is_headed, row.body

    known = token < L.vocab_size
    entry = tables + token * 4
    info = tl.load(entry + INFO, mask=known, other=INERT)
    bytes = tl.load(entry + TAIL, mask=known, other=0)
    step = tl.load(entry + STEP, mask=known, other=0)
    has_text = (info & TEXT) != 0
    is_visible = (info & VISIBLE) != 0
    if has_text:
        step = follow(tables, row.node, token, step, L.except_offset, L.except_token, L.except_step)
        length = (info >> 8) & 0xFF
        tail = tl.where(length >= 4, bytes, (tail << 8 * tl.minimum(length, 3)) | bytes)
    else:
        step = row.node
    node, event = step & 0xFFFF, (step >> 16) & 0xFFFF

    flags &= ~(STATE_LOOP | STATE_VIOLATION | STATE_FORCED)
    forced = (seq != 0) & (sequence_token(policy, seq, pos, L) == token)
    if forced:
        flags |= STATE_FORCED
        seq, pos = _begin_sequence(policy, seq, pos + 1, L)
    elif seq != 0:
        seq = 0
        pos = 0
        if phase == CLOSING:  # 19: back in THINKING, decide again from the text
            phase = THINKING
            closed_by = BY_NONE
    was = phase
    meant = False  # whether a marker decided the phase; nothing is counted then
    if event != 0:
        at = tables + L.events + event * 8
        kinds, last, starts = tl.load(at), tl.load(at + 1), tl.load(at + 2)
        tail_visible, behind_start = tl.load(at + 4), tl.load(at + 5)
        quoted = (was == ANSWERING) & (P.markers_allowed != 0) & (last != ANSWER)
        if L.is_channel:
            quoted = False
        if quoted:
            flags |= STATE_VIOLATION
        else:
            in_thinking = (was == THINKING) | (was == CLOSING)
            kind = last & ~SPELLED
            blocks += starts
            wrong = (kinds & MULTI) != 0
            begins_answer = BODY_NONE
            answer_visible = tail_visible
            begins_header = -1
            if kind == START:
                wrong |= in_thinking | (blocks > P.max_blocks)
                phase = THINKING
                closed_by = BY_NONE
                block = 0
                space = behind_start
                if P.loop_tokens != 0:
                    clear_loop(loop)
                meant = True
            elif kind == END:
                wrong |= ~in_thinking & ~((was == ANSWERING) & (body == BODY_PREAMBLE))
                if was == THINKING or was == BEFORE:
                    closed_by = BY_MODEL
                if L.is_channel:
                    begins_header = BODY_NONE
                else:
                    begins_answer = BODY_FINAL
            elif kind == ANSWER:
                wrong |= in_thinking
                if L.is_channel:
                    wrong |= was == ANSWERING
                if in_thinking:
                    closed_by = BY_MODEL
                begins_answer = BODY_FINAL
            elif kind == IMPLICIT:
                if in_thinking:
                    closed_by = BY_IMPLICIT
                    begins_answer = BODY_FINAL
                    answer_visible = 1
            elif L.is_channel:
                between = (was == HEADING) | (was == BEFORE)
                if kind == TOOL:
                    wrong |= ~between
                    begins_header = BODY_FREE
                elif kind == BODY:
                    wrong |= ~between
                    if between:
                        begins_answer = tl.where(body == BODY_FREE, BODY_PREAMBLE, BODY_FINAL)
                        begins_answer = tl.where((flags & STATE_RECIPIENT) != 0, BODY_CALL, begins_answer)
                elif kind == HEADER:
                    meant = True
                    if was != BEFORE:
                        wrong |= was != HEADING
                        begins_header = BODY_NONE
                        if seq == 0:
                            seq, pos = _begin_sequence(policy, L.header_seq, 1, L)
                elif kind == CALL_END:
                    wrong |= (was != ANSWERING) | (body != BODY_CALL)
                    begins_header = BODY_NONE
                elif kind == RECIPIENT:
                    if between:
                        flags |= STATE_RECIPIENT
            if begins_answer != BODY_NONE:
                phase = ANSWERING
                body = begins_answer
                visible = answer_visible
                blank = 0
                meant = True
            if begins_header >= 0:
                phase = HEADING
                body = begins_header
                header_tokens = 0
                is_headed = 0
                if begins_header == BODY_NONE:
                    flags &= ~STATE_RECIPIENT
                meant = True
            if wrong:
                flags |= STATE_VIOLATION
    if not meant:
        counts = was == ANSWERING  # as the answer's
        if was == THINKING:
            extends = (token == P.extend_token) & ~forced
            extends &= extension_fits(P, thinking, extensions, row.length, row.limit, P.extend_length - 1)
            inside, space = _in_start_space(space, info, bytes, L)
            if not inside and not forced:
                thinking += 1
                block += 1
                if P.loop_tokens != 0:
                    if _note_for_loop(loop, P, token):
                        flags |= STATE_LOOP
                if extends:  # 18
                    extensions += 1
                    seq, pos = _begin_sequence(policy, SEQ_EXTEND, 1, L)
        elif was == CLOSING:
            space = -1
        elif was == BEFORE:
            if not _breaks_silence(tables, row.node, node, info, L):
                blank += tl.where(is_visible | forced, 0, 1)
            elif L.is_channel:
                if not forced:
                    if node_field(tables, node, REACH, L) == 0:
                        phase = HEADING
                        body = BODY_FREE
                        header_tokens = 0
                        is_headed = 0
            else:
                phase = ANSWERING
                body = BODY_FINAL
                visible = 0
                blank = 0
                is_visible = True  # if not this token, then the half-written start before it
                counts = True
        elif L.is_channel:
            if was == HEADING:
                header_tokens += tl.where(body == BODY_FREE, 1, 0)
                is_headed = tl.where((body != BODY_FREE) & forced & (seq == 0), 1, is_headed)
        if counts:
            sampled = tl.where(forced, 0, 1)
            visible += tl.where(is_visible, 1, 0)
            answer += sampled
            blank = tl.where(is_visible, 0, blank + sampled)
    return Row(
        phase, node, tail, seq, pos, flags, thinking, block, blocks, visible, answer, blank, extensions, space, closed_by,
        row.length, header_tokens, is_headed, body, row.limit,
    )  # fmt: skip


@triton.jit
def _end_at_eos(P, row):
    early = (row.phase != ANSWERING) | (row.visible < P.min_answer)
    wrong = early & ~((row.phase == BEFORE) & (P.min_answer == 0))
    flags = row.flags & ~(STATE_LOOP | STATE_VIOLATION | STATE_FORCED)
    flags = tl.where(wrong, flags | STATE_VIOLATION, flags)
    return Row(
        row.phase * 0 + DONE, row.node, row.tail, row.seq * 0, row.pos * 0, flags, row.thinking, row.block, row.blocks,
        row.visible, row.answer, row.blank, row.extensions, row.space, row.closed_by, row.length + 1,
        row.header_tokens, row.is_headed, row.body,
        row.limit,
    )  # fmt: skip


@triton.jit
def make_inert(row):
    """Enforce nothing any more."""
    return Row(
        row.phase, row.node, row.tail, row.seq * 0, row.pos * 0, row.flags * 0 + STATE_INERT, row.thinking, row.block,
        row.blocks, row.visible, row.answer, row.blank, row.extensions, row.space, row.closed_by, row.length,
        row.header_tokens, row.is_headed,
        row.body, row.limit,
    )  # fmt: skip


@triton.jit
def _lengthened(row, by):
    return Row(
        row.phase, row.node, row.tail, row.seq, row.pos, row.flags, row.thinking, row.block, row.blocks, row.visible,
        row.answer, row.blank, row.extensions, row.space, row.closed_by, row.length + by,
        row.header_tokens, row.is_headed, row.body, row.limit,
    )  # fmt: skip


@triton.jit
def advance(tables, policy, loop, P, row, token, sampled, L: tl.constexpr):
    """Account for one token: `tg_advance`, or, not `sampled`, what `tg_start` does for each of a prompt."""
    if row.phase != DONE and (row.flags & STATE_INERT) == 0:
        if token < 0:
            if sampled:
                row = make_inert(row)
        elif sampled and is_eos(P, token):
            row = _end_at_eos(P, row)
        else:
            row = _account(tables, policy, loop, P, _lengthened(row, sampled.to(tl.int32)), token, L)
            row = settle(tables, policy, P, row, L)
    return row


@triton.jit
def skip_plain(tables, policy, P, row, tokens, count, sampled, L: tl.constexpr, BLOCK: tl.constexpr):
    """Advance a row over the first of `count` tokens that do nothing but count; (row, how many they were, visible ones).

    A token is plain if it has text, leads from the root to the root, and is no EOS. Thinking is skipped only as far as no
    limit comes into sight. The last four of a run are left to `advance`, which rebuilds the text's tail from them.
    """
    place = tl.arange(0, BLOCK)
    known = (tokens >= 0) & (tokens < L.vocab_size) & (place < count)
    info = tl.load(tables + tokens * 4 + INFO, mask=known, other=0)
    step = tl.load(tables + tokens * 4 + STEP, mask=known, other=0)
    plain = known & ((info & TEXT) != 0) & (step == 0)
    if sampled:
        plain &= ~among_eos(policy, P, tokens, L)
    run = tl.min(tl.where(plain, BLOCK, place), axis=0) - 4

    idle = (row.node == 0) & (row.seq == 0) & ((row.flags & STATE_INERT) == 0)
    thinks, answers = idle & (row.phase == THINKING), idle & (row.phase == ANSWERING)
    extends = (row.thinking < P.min_thinking) & (row.extensions < P.max_extensions)
    thinks &= (row.space < 0) & (P.loop_tokens == 0) & (P.opening != OPEN_FORBID) & ~extends
    room = thinking_left(P, row.thinking, row.length, row.limit) - P.grace - 5  # the last four rebuild the tail
    run = tl.where(thinks, tl.minimum(run, room), tl.where(answers, run, 0))
    run = tl.maximum(run, 0)
    shown = (place < run) & ((info & VISIBLE) != 0)
    num_shown = tl.sum(shown.to(tl.int32), axis=0)
    last_shown = tl.max(tl.where(shown, place, -1), axis=0)
    if run > 0:
        in_thinking, in_answer = tl.where(thinks, run, 0), tl.where(answers, run, 0)
        blank = tl.where(num_shown > 0, run - 1 - last_shown, row.blank + run)
        row = Row(
            row.phase, row.node, row.tail, row.seq, row.pos, row.flags & ~(STATE_LOOP | STATE_VIOLATION | STATE_FORCED),
            row.thinking + in_thinking, row.block + in_thinking, row.blocks, tl.where(answers, row.visible + num_shown,
            row.visible), row.answer + in_answer, tl.where(answers, blank, row.blank), row.extensions, row.space,
            row.closed_by, row.length + tl.where(sampled, run, 0), row.header_tokens, row.is_headed, row.body, row.limit,
        )  # fmt: skip
    return row, run, num_shown
