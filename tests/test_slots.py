"""Rows by batch index, read from the host's growing lists: random schedules, hostile lists, and what a step costs."""

from __future__ import annotations

import os
import random
import time

import cases
import numpy as np
import pytest

from thinkguard import ThinkPolicy, ThinkProgram, Vocabulary
from thinkguard.core._core import StateBatch
from thinkguard.core._slots import ACTION_FIELDS, Slots
from thinkguard.core.names import Dtype

SCHEDULES = {"quick": 10, "default": 60, "thorough": 2000}[os.environ.get("THINKGUARD_TEST_PROFILE", "default")]
ADDED = {"<eos>": 256, "<think>": 257, "</think>": 258}
EOS, START, END, A = 256, 257, 258, ord("a")
WIDTH = 259
VOCABULARY = Vocabulary.from_parts([bytes([b]) for b in range(256)], added=ADDED, special=[EOS], eos_ids=[EOS])
PROGRAM = ThinkProgram("think", VOCABULARY)
FIELDS = tuple(PROGRAM.start([]).decide().as_dict())


def row(**policy):
    return PROGRAM.start([START, ord("\n")], ThinkPolicy(**policy), turn_start=0)


def edit(slots, logits, **options):
    """Step and edit; (edited logits, how many edits)."""
    edited = np.array(logits, np.float32)
    num_edits = slots.step(len(edited))
    slots.edit(edited.ctypes.data, Dtype.FLOAT32, edited.shape[1], 1, edited.shape[1], **options)
    return edited, num_edits


def alone(behind_prompt, tokens, logits):
    """What one row makes of its logits if it is walked over the whole output."""
    walked = behind_prompt.copy()
    walked.advance_all(np.array([t if -(2**63) <= t < 2**63 else -2 for t in tokens], np.int64))
    edited = np.array([logits], np.float32)
    StateBatch([walked]).apply(edited.ctypes.data, Dtype.FLOAT32, edited.shape[1], 1, edited.shape[1])
    return edited[0]


@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_any_schedule_equals_rows_walked_alone(seed):
    """Requests of generated formats and policies come, go, move, swap, grow, wait, shrink and are replaced."""
    rng = random.Random(seed)
    made = [cases.case(rng) for _ in range(5)]
    slots, batch = Slots(), {}  # batch index -> (row behind the prompt, output)
    for _ in range(60):
        for _ in range(rng.choice([0, 0, 0, 1, 3])):
            index, other, do = rng.randrange(6), rng.randrange(6), rng.random()
            if do < 0.35:
                program, bound, model = rng.choice(made)
                turn = cases.turn(rng, program, model)
                prompt = [*cases.before_turn(rng, program), *turn]
                behind_prompt = cases.started(bound, model.limit, turn, rng.random() < 0.1, prompt)
                output = [cases.random_token(rng, program) for _ in range(rng.choice([0, 0, 5, 30]))]
                slots.put(index, behind_prompt.copy(), output)
                batch[index] = behind_prompt, output
            elif do < 0.5:
                slots.remove(index)
                batch.pop(index, None)
            elif do < 0.75:
                slots.move(index, other, False)
                if index != other:
                    batch.pop(other, None)
                    if index in batch:
                        batch[other] = batch.pop(index)
            else:
                slots.move(index, other, True)
                batch = {{index: other, other: index}.get(key, key): value for key, value in batch.items()}
        for _, output in batch.values():
            if output and output[-1] == -1:
                output[-1] = rng.choice([-1, rng.randrange(50)])
            elif rng.random() < 0.05:
                del output[rng.randrange(len(output) + 1) :]
            elif output and rng.random() < 0.05:
                output[-1] = rng.randrange(50)
            else:
                output += [rng.choice([-1, 2**40, 10, *range(50)]) for _ in range(rng.choice([0, 1, 1, 1, 3]))]
                output[:] = output[: output.index(-1) + 1] if -1 in output else output
        num_rows = rng.choice([6, 6, 6, 4, 8, 0])
        logits = [cases.logits(rng, 60) for _ in range(num_rows)]
        edited, num_edits = edit(slots, np.reshape(logits, (num_rows, 60)))
        assert slots.num_guarded == len(batch)
        assert slots.num_waiting == sum(-1 in batch[i][1] for i in batch if i < num_rows)
        assert num_edits <= sum(i < num_rows for i in batch)
        for i in range(num_rows):
            wanted = np.array(logits[i], np.float32)
            if i in batch and -1 not in batch[i][1]:
                wanted = alone(*batch[i], logits[i])
            assert np.array_equal(edited[i], wanted, equal_nan=True), i


def test_what_is_no_token_id_makes_a_row_inert_and_never_crashes():
    for token in (-2, -(2**31), 2**31, 2**63, 2**70, -(2**70), None, "a", 1.5, [1], object(), np.int64(3)):
        slots, output = Slots(), [A]
        slots.put(0, row(), output)
        assert slots.step(1) == 1
        output.append(token)
        assert slots.step(1) == 0
        output.append(A)
        assert slots.step(1) == slots.num_waiting == 0
        del output[1:]
        assert slots.step(1) == 1, "discarded, and walked anew"
    for token in (WIDTH, 2**31 - 1):
        slots = Slots()
        slots.put(0, row(), [token])
        assert slots.step(1) == 1


def test_a_step_reads_no_token_twice_but_the_last():
    """Ids that would make the row inert are put where it has read already."""
    slots, output = Slots(), [A] * 500
    behind_prompt = row(max_thinking_tokens=503)
    slots.put(0, behind_prompt.copy(), output)
    logits = np.zeros((1, WIDTH), np.float32)
    edit(slots, logits)
    output[:-1] = [None] * 499
    for length in range(501, 506):
        output.append(A)
        edited, _ = edit(slots, logits)
        assert np.array_equal(edited[0], alone(behind_prompt, [A] * length, logits[0]))
    assert np.isfinite(edited).sum() == 1, "the budget is spent, whatever the list holds"
    output[-1] = END
    assert slots.step(1) == 0, "another last token: all of the list is read again"


def test_a_step_costs_the_same_at_any_length():
    """The best of many single steps, so that another process's noise does not matter."""

    def best(length):
        slots = Slots()
        lists = [[A] * length for _ in range(32)]
        for i, output in enumerate(lists):
            slots.put(i, row(), output)
        times = []
        for _ in range(200):
            slots.step(32)
            for output in lists:
                output.append(A)
            begin = time.perf_counter()
            assert slots.step(32) == 32
            times.append(time.perf_counter() - begin)
        return min(times)

    short, long = best(128), best(32_768)
    assert long < 3 * short, f"{short * 1e6:.2f} us at 128 tokens, {long * 1e6:.2f} us at 32,768"


def test_the_actions_are_those_of_the_rows():
    slots = Slots()
    rows = [row(), row(max_thinking_tokens=0), row(soft_thinking_tokens=0, close_bias=4.0, max_thinking_tokens=4)]
    for i, one in enumerate(rows):
        slots.put(2 * i + 1, one.copy(), [A] * i)
        one.advance_all(np.array([A] * i, np.int64))
    out = np.full((5, ACTION_FIELDS), 77, np.int32)
    assert slots.step(7) == 3
    slots.write_actions(out)
    assert out[:3, 0].tolist() == [1, 3, 5]
    assert (out[3:] == 77).all()
    for written, one in zip(out[:3], rows, strict=True):
        assert slots.policies[written[1]] is one.policy
        fields = {**dict(zip(FIELDS, written[2:].tolist(), strict=True)), "bias": float(written[-1:].view(np.float32)[0])}
        assert fields == one.decide().as_dict()
    assert fields["bias"] == 2.0
    for wrong in (out[:2], np.ascontiguousarray(out[:, :-1])):
        with pytest.raises(ValueError, match=rf"wanted \[3, {ACTION_FIELDS}\]"):
            slots.write_actions(wrong)


def test_edits_may_lie_gathered():
    slots = Slots()
    for i in (0, 3, 4):
        slots.put(i, row(max_thinking_tokens=i % 2), [A])
    logits = np.random.default_rng(0).normal(size=(6, WIDTH)).astype(np.float32)
    spread, _ = edit(slots, logits)
    gathered = logits[[0, 3, 4]]
    slots.edit(gathered.ctypes.data, Dtype.FLOAT32, WIDTH, 1, WIDTH, gathered=True)
    assert np.array_equal(gathered, spread[[0, 3, 4]])
    assert not np.array_equal(gathered, logits[[0, 3, 4]])


def test_policies_are_held_once_and_as_long_as_they_are_needed():
    slots, first, second = Slots(), row(), row(max_thinking_tokens=3)
    for i in range(4):
        slots.put(i, first.copy(), [])
    slots.put(9, second.copy(), [])
    assert slots.policies == [first.policy, second.policy]
    for i in range(3):
        slots.remove(i)
        slots.remove(i)
    slots.move(9, 0, False)
    slots.move(0, 3, True)
    assert slots.policies == [first.policy, second.policy]
    slots.move(5, 0, False)
    assert slots.policies == [None, second.policy], "an unguarded request took the last one's place"
    slots.put(3, first.copy(), [])
    assert slots.policies == [first.policy, None]
    assert slots.num_guarded == 1


def test_edits_of_a_request_that_is_gone_are_forgotten():
    slots = Slots()
    slots.put(0, row(max_thinking_tokens=0), [])
    for change in (lambda: slots.remove(0), lambda: slots.put(0, row(), []), lambda: slots.move(0, 1, False)):
        slots.put(0, row(max_thinking_tokens=0), [])
        assert slots.step(1) == 1
        change()
        logits = np.zeros((2, WIDTH), np.float32)
        assert slots.edit(logits.ctypes.data, Dtype.FLOAT32, WIDTH, 1, WIDTH) == 0
        assert not logits.any()


def test_rows_that_had_to_be_left_alone_are_counted():
    slots = Slots()
    for i in range(3):
        slots.put(i, row(max_thinking_tokens=0), [])
    logits = np.zeros((3, WIDTH), np.float32)
    logits[1] = -np.inf
    assert slots.step(3) == 3
    assert slots.edit(logits.ctypes.data, Dtype.FLOAT32, WIDTH, 1, WIDTH) == 1


def test_arguments_are_checked():
    slots = Slots()
    for call in (lambda: slots.put(-1, row(), []), lambda: slots.remove(-1), lambda: slots.move(0, -1, True)):
        with pytest.raises(IndexError, match="index -1 in a batch"):
            call()
    for call in (lambda: slots.put(0, None, []), lambda: slots.put(0, row(), None), lambda: slots.put(0, row(), (A,))):
        with pytest.raises(TypeError):
            call()
    slots.remove(10**9)
    slots.move(10**9, 5, False)
    assert slots.step(100) == slots.num_guarded == 0
