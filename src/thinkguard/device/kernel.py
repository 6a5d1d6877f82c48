"""The kernels: one launch brings every guarded sequence of a step up to date and edits its rows of logits.

Each must equal, for every sequence,

    for token_id in committed[folded:]: program.advance(row, token_id)
    for draft, logits in rows_of_this_step: program.apply([row], logits); program.advance(row, draft)

with the row behind the committed tokens kept. One program does all the work of a sequence, so that its state has one reader
and one writer.
"""

from __future__ import annotations

import triton
import triton.language as tl

from thinkguard.device import edit as edit
from thinkguard.device import layout as layout
from thinkguard.device import machine as machine
from thinkguard.device.decide import decide
from thinkguard.device.layout import Action, Policy, Row

# Of a sequence's state, behind its row: tokens accounted for, -1: none yet; and how many of them are the prompt.
FOLDED, PROMPT = tl.constexpr(len(Row._fields)), tl.constexpr(len(Row._fields) + 1)
ACTIVE, BIAS, EOS = tl.constexpr(0), tl.constexpr(20), tl.constexpr(32)  # places in a policy's block; its scalars between


@triton.jit
def _load_policy(policy):
    """A request's policy, all of its scalars at once: the loads do not wait for each other."""
    return Policy(
        tl.load(policy + 1), tl.load(policy + 2), tl.load(policy + 3), tl.load(policy + 4), tl.load(policy + 5),
        tl.load(policy + 6), tl.load(policy + 7), tl.load(policy + 8), tl.load(policy + 9), tl.load(policy + 10),
        tl.load(policy + 11), tl.load(policy + 12), tl.load(policy + 13), tl.load(policy + 14), tl.load(policy + 15),
        tl.load(policy + 16), tl.load(policy + 17), tl.load(policy + 18), tl.load(policy + 19),
        tl.load(policy + BIAS).to(tl.float32, bitcast=True), tl.load(policy + EOS + tl.arange(0, layout.MAX_EOS)),
    )  # fmt: skip


@triton.jit
def _load_row(state):
    return Row(
        tl.load(state), tl.load(state + 1), tl.load(state + 2), tl.load(state + 3), tl.load(state + 4),
        tl.load(state + 5), tl.load(state + 6), tl.load(state + 7), tl.load(state + 8), tl.load(state + 9),
        tl.load(state + 10), tl.load(state + 11), tl.load(state + 12), tl.load(state + 13), tl.load(state + 14),
        tl.load(state + 15), tl.load(state + 16), tl.load(state + 17), tl.load(state + 18), tl.load(state + 19),
    )  # fmt: skip


@triton.jit
def _store_row(state, row, folded, prompt):
    tl.store(state, row.phase)
    tl.store(state + 1, row.node)
    tl.store(state + 2, row.tail)
    tl.store(state + 3, row.seq)
    tl.store(state + 4, row.pos)
    tl.store(state + 5, row.flags)
    tl.store(state + 6, row.thinking)
    tl.store(state + 7, row.block)
    tl.store(state + 8, row.blocks)
    tl.store(state + 9, row.visible)
    tl.store(state + 10, row.answer)
    tl.store(state + 11, row.blank)
    tl.store(state + 12, row.extensions)
    tl.store(state + 13, row.space)
    tl.store(state + 14, row.closed_by)
    tl.store(state + 15, row.length)
    tl.store(state + 16, row.header_tokens)
    tl.store(state + 17, row.is_headed)
    tl.store(state + 18, row.body)
    tl.store(state + 19, row.limit)
    tl.store(state + FOLDED, folded)
    tl.store(state + PROMPT, prompt)


@triton.jit
def _fresh_row(limit):
    zero = limit * 0
    return Row(
        zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero - 1, zero, zero, zero, zero,
        zero, limit,
    )  # fmt: skip


@triton.jit
def _token(ids):
    """Ids as int32; those that do not fit are impossible ones."""
    return tl.where((ids < 0) | (ids > 2147483647), -1, ids).to(tl.int32)


@triton.jit
def _block(tokens, at, end, BLOCK: tl.constexpr):
    place = at + tl.arange(0, BLOCK)
    return _token(tl.load(tokens + place, mask=place < end, other=-1))


@triton.jit
def _turn_start(tables, tokens, num_tokens, L: tl.constexpr, BLOCK: tl.constexpr):
    """(index behind the last boundary, whether the prompt shows no chat): `tg_turn_start`, from the end, block by block."""
    found, high = -1, num_tokens
    while high > 0 and found < 0:
        low = tl.maximum(high - BLOCK, 0)
        info = machine.token_info(tables, _block(tokens, low, high, BLOCK), L)
        place = low + tl.arange(0, BLOCK)
        found = tl.max(tl.where(((info & layout.BOUNDARY) != 0) & (place < high), place, -1), axis=0)
        high = low
    raw = True
    if found >= 0:
        raw = (machine.token_info(tables, _token(tl.load(tokens + found)), L) & layout.RAW) != 0
    return found + 1, raw


@triton.jit
def _turn_start_by_text(tables, tokens, num_tokens, L: tl.constexpr, BLOCK: tl.constexpr):
    """The same for boundaries that are text or headers: `tg_turn_start_by_text`; runs that lead nowhere are skipped."""
    start, before, node, found, at = num_tokens * 0, 0, 0, 0, 0
    while at < num_tokens:
        if node == 0:  # on to the next token that leads anywhere
            ids = _block(tokens, at, num_tokens, BLOCK)
            known = (ids >= 0) & (ids < L.vocab_size)
            leads = tl.load(tables + ids * 4 + layout.TURNS_STEP, mask=known, other=0) != 0
            at += tl.min(tl.where(leads, tl.arange(0, BLOCK), BLOCK), axis=0)
        if at < num_tokens:
            token = _token(tl.load(tokens + at))
            if (machine.token_info(tables, token, L) & layout.TEXT) != 0:
                step = machine.follow(
                    tables, node, token, tl.load(tables + token * 4 + layout.TURNS_STEP),
                    L.turns_except_offset, L.turns_except_token, L.turns_except_step,
                )  # fmt: skip
                node, event = step & 0xFFFF, (step >> 16) & 0xFFFF
                kinds = tl.load(tables + L.turns_events + event * 8)
                last = tl.load(tables + L.turns_events + event * 8 + 1)
                if (kinds & layout.HEADER) != 0:
                    before = start
                    start = at + 1
                    if L.turns_by_header:
                        start = 0
                    found = 1
                if (last & layout.START) != 0:
                    start = tl.where(before != 0, before, at + 1)
        at += 1
    return tl.where((found != 0) & (start == 0), num_tokens, start), found == 0


@triton.jit
def _skip_name(tables, tokens, begin, end, L: tl.constexpr):
    """Skip the tokens at the start of a turn that spell the header's own text, if all of it is there."""
    node, at = 0, begin
    while node >= 0 and node != L.name_end and at < end:
        low, high = tl.load(tables + L.name_offset + node), tl.load(tables + L.name_offset + node + 1)
        found = machine.find(tables, L.name_token, low, high, _token(tl.load(tokens + at)))
        node = tl.load(tables + L.name_next + found, mask=found >= 0, other=-1)
        at += 1
    return tl.where(node == L.name_end, at, begin)


@triton.jit
def _begin(tables, policy, P, tokens, num_tokens, limit, L: tl.constexpr, BLOCK: tl.constexpr):
    """(row before the assistant's own part of a prompt, where that part begins, whether the prompt shows no chat)"""
    if L.has_turns:
        at, raw = _turn_start_by_text(tables, tokens, num_tokens, L, BLOCK)
    else:
        at, raw = _turn_start(tables, tokens, num_tokens, L, BLOCK)
    if L.name_end > 0:
        if not raw:
            at = _skip_name(tables, tokens, at, num_tokens, L)
    return machine.settle(tables, policy, P, _fresh_row(limit), L), at, raw


@triton.jit
def _end_prompt(tables, policy, P, row, raw, silent, L: tl.constexpr):
    """What `tg_start` does behind the prompt's last token."""
    if raw and (P.guards_raw == 0):
        row = machine.make_inert(row)
    elif raw and ((silent == 0) | (row.phase == layout.BEFORE)):  # 5: only a marker at the very end counts
        row = machine.settle(tables, policy, P, _fresh_row(row.limit), L)
    closed_by = row.closed_by
    if closed_by != layout.BY_NONE and (row.phase == layout.ANSWERING or row.phase == layout.HEADING):
        closed_by = layout.BY_PROMPT
    return Row(
        row.phase, row.node, row.tail, row.seq, row.pos, row.flags, row.thinking, row.block, row.blocks, row.visible, 0,
        row.blank, row.extensions, row.space, closed_by, row.length, row.header_tokens, row.is_headed, row.body, row.limit,
    )  # fmt: skip


@triton.jit
def _stays_silent(tables, row, token, silent, L: tl.constexpr):
    """Whether nothing visible stands behind the last marker of a prompt, this token included."""
    info = machine.token_info(tables, token, L)
    silent = tl.where((info & layout.VISIBLE) != 0, 0, silent)
    if (info & layout.TEXT) != 0:
        root = tl.load(tables + token * 4 + layout.STEP)
        step = machine.follow(tables, row.node, token, root, L.except_offset, L.except_token, L.except_step)
        event = (step >> 16) & 0xFFFF
        if event != 0:
            silent = tl.where(tl.load(tables + L.events + event * 8 + 4) != 0, 0, 1)
    return silent


@triton.jit
def _is_prefix(tokens, seen, num_tokens, BLOCK: tl.constexpr):
    """Whether the first tokens of a sequence are those that were seen."""
    same, at = 1, 0
    while at < num_tokens and same != 0:
        place = at + tl.arange(0, BLOCK)
        before = tl.load(seen + place, mask=place < num_tokens, other=-1)
        differ = (_block(tokens, at, num_tokens, BLOCK) != before) & (place < num_tokens)
        same = 1 - tl.max(differ.to(tl.int32), axis=0)
        at += BLOCK
    return same != 0


@triton.jit
def _keep(tokens, seen, num_tokens, BLOCK: tl.constexpr):
    for at in tl.range(0, num_tokens, BLOCK):
        place = at + tl.arange(0, BLOCK)
        tl.store(seen + place, _block(tokens, at, num_tokens, BLOCK), mask=place < num_tokens)


@triton.jit
def _find_seen(
    tokens, num_tokens, own, states, num_seen, seen_ptr, seen_stride, STATE_SIZE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The sequence of the last call, its own row's first, that all but the last of these tokens were seen in; -1: none."""
    found, index = -1, 0
    while index <= num_seen and found < 0:
        other = tl.where(index == 0, own, index - 1).to(tl.int64)
        length = tl.load(states + other * STATE_SIZE + FOLDED, mask=other < num_seen, other=-1)
        prompt = tl.load(states + other * STATE_SIZE + PROMPT, mask=other < num_seen, other=0)
        if length >= num_tokens - 1 and num_tokens >= prompt:
            if _is_prefix(tokens, seen_ptr + other * seen_stride, num_tokens - 1, BLOCK):
                found = other.to(tl.int32)
        index += 1
    return found


@triton.jit
def _walk(
    tables, policy, loop, P, row, at, total, prompt,
    tokens, inputs, offsets, first, num_rows, state, logits_ptr, logits_stride, logits_step, width,
    LOOP_SIZE: tl.constexpr, L: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Move a row over what was committed since it stood at `at`, and keep it; edit its logits and its drafts'.

    `at` < 0: a new sequence, which begins at the assistant's own part of the prompt.
    """
    raw, in_prompt, silent = False, 0, 1
    if at < 0:
        row, at, raw = _begin(tables, policy, P, tokens, prompt, row.limit, L, BLOCK)
        if P.loop_tokens != 0:
            machine.clear_loop(loop)
        in_prompt = 1
    index = 0  # of the slot's row that is next to be decided
    while index >= 0:
        if in_prompt != 0 and at >= prompt:
            row = _end_prompt(tables, policy, P, row, raw, silent, L)
            in_prompt = 0
        elif at < total + index:
            sampled = in_prompt == 0
            end = tl.where(sampled, total, prompt)
            skipped = 0
            if end - at >= 16:
                ids = _block(tokens, at, end, BLOCK)
                count = tl.minimum(end - at, BLOCK)
                row, skipped, shown = machine.skip_plain(tables, policy, P, row, ids, count, sampled, L, BLOCK)
                silent = tl.where(shown != 0, 0, silent)
                at += skipped
            if skipped == 0:
                if at < total:
                    token = _token(tl.load(tokens + at))
                else:
                    token = _token(tl.load(inputs + first + index))
                if in_prompt != 0:
                    silent = _stays_silent(tables, row, token, silent, L)
                row = machine.advance(tables, policy, loop, P, row, token, sampled, L)
                at += 1
        else:
            action = decide(tables, policy, P, row, L)
            logits = logits_ptr + (first + index).to(tl.int64) * logits_stride
            edit.carry_out(tables, policy, P, action, logits, logits_step, width, L, BLOCK)
            if index == 0:
                _store_row(state, row, at, prompt)
            index += 1
            if first + index >= num_rows:
                index = -1
            elif tl.load(offsets + first + index) != index:
                index = -1
            elif index == 1 and P.loop_tokens != 0:  # drafts are walked in a copy of the side block
                machine.copy_loop(loop, loop + LOOP_SIZE)
                loop += LOOP_SIZE


# A variant for each row count or alignment of a view would be compiled while requests wait.
@triton.jit(
    do_not_specialize=["num_rows", "width", "logits_stride", "logits_step", "tokens_stride"],
    do_not_specialize_on_alignment=[
        "logits_ptr", "slots_ptr", "offsets_ptr", "inputs_ptr", "tokens_ptr", "total_ptr", "prompt_ptr",
    ],
)  # fmt: skip
def guard_slots(
    logits_ptr, logits_stride, logits_step, num_rows, width,
    slots_ptr,  # [num_rows] the slot of each row
    offsets_ptr,  # [num_rows] its offset among the rows of its slot
    inputs_ptr,  # [num_rows] the token fed at each row; at offsets above 0 a draft
    tokens_ptr, tokens_stride,  # [num_slots, capacity] committed tokens
    total_ptr, prompt_ptr,  # [num_slots] how many are committed, and how many of them are the prompt
    states_ptr, loops_ptr, policies_ptr, tables_ptr,
    STATE_SIZE: tl.constexpr, LOOP_SIZE: tl.constexpr, L: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """For a host with slots: the program of a slot's first row does all of the slot's work."""
    first = tl.program_id(0)
    if tl.load(offsets_ptr + first) != 0:
        return
    slot = tl.load(slots_ptr + first).to(tl.int64)
    policy = policies_ptr + slot * L.policy_size
    if tl.load(policy + ACTIVE) == 0:
        return
    P = _load_policy(policy)
    state, loop = states_ptr + slot * STATE_SIZE, loops_ptr + slot * (2 * LOOP_SIZE)
    row, at = _load_row(state), tl.load(state + FOLDED)
    tokens = tokens_ptr + slot * tokens_stride
    total, prompt = tl.load(total_ptr + slot), tl.load(prompt_ptr + slot)
    if at > total:  # the slot's tokens are not those that it had
        at = -1
    _walk(
        tables_ptr, policy, loop, P, row, at, total, prompt,
        tokens, inputs_ptr, offsets_ptr, first, num_rows, state, logits_ptr, logits_stride, logits_step, width,
        LOOP_SIZE, L, BLOCK,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "num_rows", "num_tokens", "prompt", "limit", "width", "num_seen", "logits_stride", "logits_step", "tokens_stride",
        "seen_stride",
    ],
    do_not_specialize_on_alignment=["logits_ptr", "tokens_ptr"],
)  # fmt: skip
def guard_sequences(
    logits_ptr, logits_stride, logits_step, num_rows, width,
    tokens_ptr, tokens_stride, num_tokens,  # [num_rows, num_tokens] whole sequences
    prompt, limit,  # the prompt's tokens, -1: all of a sequence that was not seen; the output's limit, -1: unknown
    states_ptr, loops_ptr, seen_ptr, num_seen,  # what the last call left, and how many rows it had
    new_states_ptr, new_loops_ptr, new_seen_ptr, seen_stride,  # the same for the next call
    policy_ptr, tables_ptr,
    STATE_SIZE: tl.constexpr, LOOP_SIZE: tl.constexpr, L: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """For a host that hands over whole sequences: where each stands is found by its history, as `hf._Rows` finds it.

    Rows may have changed places and drafts may have been dropped; what a call reads and what it leaves lie apart.
    """
    own = tl.program_id(0)
    tokens = tokens_ptr + own.to(tl.int64) * tokens_stride
    P = _load_policy(policy_ptr)
    state, loop = new_states_ptr + own * STATE_SIZE, new_loops_ptr + own * (2 * LOOP_SIZE)
    row, at = _fresh_row(limit), -1
    behind = tl.where(prompt >= 0, tl.minimum(prompt, num_tokens), num_tokens)
    other = _find_seen(tokens, num_tokens, own, states_ptr, num_seen, seen_ptr, seen_stride, STATE_SIZE, BLOCK)
    if other >= 0:
        theirs = states_ptr + other * STATE_SIZE
        length, their_prompt = tl.load(theirs + FOLDED), tl.load(theirs + PROMPT)
        last = tl.load(seen_ptr + other.to(tl.int64) * seen_stride + num_tokens - 1, mask=length >= num_tokens, other=-2)
        again = last == _token(tl.load(tokens + num_tokens - 1))
        if length == num_tokens - 1 or (length == num_tokens and again):
            row = _load_row(theirs)
            at = length
            behind = their_prompt
            if P.loop_tokens != 0:
                machine.copy_loop(loops_ptr + other * (2 * LOOP_SIZE), loop)
        elif num_tokens - 1 >= their_prompt or again:
            behind = their_prompt
    _keep(tokens, new_seen_ptr + own.to(tl.int64) * seen_stride, num_tokens, BLOCK)
    _walk(
        tables_ptr, policy_ptr, loop, P, row, at, num_tokens, behind,
        tokens, tokens, tokens, own, own + 1, state, logits_ptr, logits_stride, logits_step, width,
        LOOP_SIZE, L, BLOCK,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=["width", "logits_stride", "logits_step"],
    do_not_specialize_on_alignment=["logits_ptr", "actions_ptr", "policies_ptr"],
)
def carry_out_actions(
    logits_ptr, logits_stride, logits_step, width, actions_ptr, policies_ptr, tables_ptr,
    ACTION_SIZE: tl.constexpr, L: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """For a host that decides by itself: one program for each action, [row, policy, and tg_action's fields]."""
    at = actions_ptr + tl.program_id(0) * ACTION_SIZE
    policy = policies_ptr + tl.load(at + 1).to(tl.int64) * L.policy_size
    bias = tl.load(at + 10).to(tl.float32, bitcast=True)
    action = Action(
        tl.load(at + 2), tl.load(at + 3), tl.load(at + 4), tl.load(at + 5), tl.load(at + 6), tl.load(at + 7),
        tl.load(at + 8), tl.load(at + 9), bias,
    )  # fmt: skip
    logits = logits_ptr + tl.load(at).to(tl.int64) * logits_stride
    edit.carry_out(tables_ptr, policy, _load_policy(policy), action, logits, logits_step, width, L, BLOCK)
