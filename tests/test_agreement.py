"""The C core against the specification: the same state, the same answers and the same row of logits after every token.

THINKGUARD_TEST_PROFILE chooses how much: "quick" (sanitizers), "default", or "thorough" (minutes).
"""

from __future__ import annotations

import math
import os
import random

import cases
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from thinkguard.core._core import StateBatch
from thinkguard.core.names import ActionKind, Dtype, Phase, StateFlag

EXAMPLES = {"quick": 25, "default": 200, "thorough": 5000}[os.environ.get("THINKGUARD_TEST_PROFILE", "default")]
SETTINGS = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
SEEDS = st.integers(0, 2**32 - 1)
STORAGE = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
ROUNDING = {"float32": 1e-6, "float16": 2**-10, "bfloat16": 2**-7}  # of the bias, which C adds in single precision


def to_bfloat16(values):
    """Bits of the nearest bfloat16, ties to even; numpy has no such type."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def from_bfloat16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def stored(values, dtype):
    with np.errstate(over="ignore"):
        return to_bfloat16(values) if dtype == "bfloat16" else np.asarray(values, STORAGE[dtype])


def read(array, dtype):
    return from_bfloat16(np.ascontiguousarray(array)) if dtype == "bfloat16" else array.astype(np.float32)


def edit(row, logits, dtype, step, back=False):
    """What C makes of a row of logits that lies scattered in memory; nothing between and around may change."""
    width = len(logits)
    memory = np.full(width * step + 7, 0x1234, np.int64).astype(STORAGE[dtype])
    untouched = memory.copy()
    where = (3 + np.arange(width) * step)[:: -1 if back else 1]
    memory[where] = stored(logits, dtype)
    first = memory.ctypes.data + int(where[0]) * memory.itemsize if width else memory.ctypes.data
    left = StateBatch([row]).apply(first, Dtype[dtype.upper()], 0, -step if back else step, width)
    edited = read(memory[where], dtype)
    untouched[where] = memory[where]
    assert memory.tobytes() == untouched.tobytes(), "apply wrote beside the row"
    return edited, left


def same(got, want, dtype):
    want = read(stored(want, dtype), dtype)
    with np.errstate(invalid="ignore"):
        close = np.abs(got - want) <= ROUNDING[dtype] * np.maximum(np.abs(want), 1)
    return (got == want) | (np.isnan(got) & np.isnan(want)) | (close & np.isfinite(got) & np.isfinite(want))


def allowed_by(decision, token):
    kind = decision[0]
    if kind == "edit":
        return not decision[1](token)
    return token in decision[1] if kind == "allow" else token == decision[1] if kind == "force" else True


def spelled(program, tokens):
    known = range(program.vocabulary.num_tokens)
    return [program.vocabulary.token_bytes(token) if token in known else token for token in tokens]


def begin(seed):
    """(rng, program, model, row, what both started behind: turn, whether it was raw, prompt) of a generated case."""
    rng = random.Random(seed)
    program, bound, model = cases.case(rng)
    turn = cases.turn(rng, program, model)
    behind = turn, rng.random() < 0.1, [*cases.before_turn(rng, program), *turn]
    row = cases.started(bound, model.limit, *behind)
    model.start(*behind)
    return rng, program, model, row, behind


class LockStep(RuleBasedStateMachine):
    """Moves a row of C's and a model by the same tokens."""

    @initialize(seed=SEEDS)
    def start(self, seed):
        self.rng, self.program, self.model, self.row, self.behind = begin(seed)
        self.tokens, self.saved = [], None
        self.edited = []

    def context(self):
        tokens = spelled(self.program, [*self.behind[2], "|", *self.behind[0], "|", *self.tokens])
        return "\n".join(map(str, ("", self.program.format, self.row.policy.source, tokens, *state_of(self.row))))

    @rule(draw=st.floats(0, 1, exclude_max=True), likely=st.booleans())
    def sample(self, draw, likely):
        """Go on with a token that the guard left possible."""
        possible = [t for t, value in enumerate(self.edited) if value > -math.inf]
        if likely and possible:
            possible = [max(possible, key=self.edited.__getitem__)]
        self.advance(possible[int(draw * len(possible))] if possible else 0)

    @rule(draw=st.floats(0, 1, exclude_max=True))
    def sample_any(self, draw):
        self.sample(draw, False)

    @rule(draw=st.floats(0, 1, exclude_max=True))
    def sample_markers(self, draw):
        """Go on with a legal token that belongs to a marker, so that markers get written."""
        possible = [t for t, value in enumerate(self.edited) if value > -math.inf]
        inside = [t for t in possible if self.model.symbols_of(t) and self.model.read(self.model.text, t)[0]]
        possible = inside or possible
        self.advance(possible[int(draw * len(possible))] if possible else 0)

    @rule(token=st.integers(-1, 500))
    def intrude(self, token):
        """Go on with any token whatever, as if another processor had insisted; -1 is rare, for nothing happens after it."""
        self.advance(-1 if token < 0 else token % (self.program.vocabulary.num_tokens + 2))

    @rule()
    def save(self):
        self.saved = self.row.copy(), len(self.tokens)

    @precondition(lambda self: self.saved)
    @rule()
    def roll_back(self):
        row, length = self.saved
        self.row.rollback_to(row)
        self.tokens = self.tokens[:length]
        self.model.start(*self.behind)
        for token in self.tokens:
            self.model.advance(token)

    def advance(self, token):
        self.tokens.append(token)
        self.program.advance(self.row, token)
        self.model.advance(token)

    @invariant()
    def agree(self):
        assert cases.snapshot(self.row) == self.model.snapshot(), self.context()
        width = max(self.program.vocabulary.num_tokens + self.rng.choice([0, 0, 3, -2]), 1)
        dtype = self.rng.choice(["float32", "float32", "float16", "bfloat16"])
        logits = read(stored(cases.logits(self.rng, width), dtype), dtype)
        edited, left = edit(self.row, logits, dtype, self.rng.choice([1, 1, 2, 3]), self.rng.random() < 0.2)
        wanted = self.model.apply(logits.tolist())
        differs = np.flatnonzero(~same(edited, wanted, dtype))
        shown = [(int(t), spelled(self.program, [int(t)]), logits[t], edited[t], wanted[t]) for t in differs[:9]]
        assert not shown, f"{dtype}, width {width}: {shown}{self.context()}"
        if left and self.row.decide().kind == ActionKind.EDIT:
            assert np.array_equal(edited, logits, equal_nan=True), self.context()
        assert (edited > -math.inf).any() or not (logits > -math.inf).any(), f"nothing is left{self.context()}"
        action, decision = self.row.decide(), self.model.decide()
        for token in (0, width - 1, *(self.rng.randrange(width) for _ in range(5))):
            assert action.allows(token) == allowed_by(decision, token), f"allows({token}){self.context()}"
        self.edited = edited.tolist()


TestLockStep = LockStep.TestCase
TestLockStep.settings = SETTINGS


@pytest.fixture(scope="module")
def histories():
    """Rows walked over some tokens, with everything that is needed to walk them again."""
    walked = []
    for seed in range(EXAMPLES):
        rng, program, _, row, behind = begin(10_000 + seed)
        states, tokens = [row.copy()], []
        for _ in range(rng.randrange(1, 50)):
            logits = np.array([[rng.gauss(0, 3) for _ in range(program.vocabulary.num_tokens)]], np.float32)
            program.apply([row], logits)
            tokens.append(int(logits.argmax()) if rng.random() < 0.95 else cases.random_token(rng, program))
            program.advance(row, tokens[-1])
            states.append(row.copy())
        walked.append((program, row.policy, behind, states, tokens))
    return walked


def state_of(row):
    return row.as_dict(), row.decide().as_dict()


def test_a_row_is_a_pure_function_of_its_history(histories):
    """Token by token, all at once, or in two halves: the same state, so that any engine may recompute at any time."""
    for _, bound, behind, states, tokens in histories:
        limit = states[0].as_dict()["limit"]
        for cut in {0, len(tokens) // 2, len(tokens)}:
            row = cases.started(bound, limit, *behind)
            row.advance_all(np.array(tokens[:cut], np.int64))
            assert state_of(row) == state_of(states[cut])
            row.advance_all(np.array(tokens[cut:], np.int64))
            assert state_of(row) == state_of(states[-1])


def test_a_saved_row_goes_on_as_if_nothing_had_come_between(histories):
    """Rollback is assignment, the loop detector's side block included: a rejected draft leaves no trace."""
    for *_, states, tokens in histories:
        for cut in {0, len(tokens) // 3, len(tokens) // 2}:
            row, strayed = states[cut].copy(), states[-1].copy()
            strayed.rollback_to(row)
            row.advance_all(np.array(tokens[:3], np.int64))  # another future, which must not be shared
            strayed.advance_all(np.array(tokens[cut:], np.int64))
            assert state_of(strayed) == state_of(states[-1])


def test_a_batch_is_its_rows(histories):
    """Advancing and editing a batch equals doing so row by row, whatever each row's policy."""
    for program, _, behind, states, tokens in histories[: max(10, EXAMPLES // 4)]:
        rows = [state.copy() for state in states[:-1]]
        if not rows:
            continue
        batch = StateBatch(rows)
        rng = np.random.default_rng(len(behind[2]))
        logits = rng.normal(0, 3, (len(rows), program.vocabulary.num_tokens)).astype(np.float32)
        one_by_one = logits.copy()
        program.apply(batch, logits)
        for i, row in enumerate(rows):
            program.apply([row], one_by_one[i : i + 1])
        assert np.array_equal(logits, one_by_one)
        batch.advance(np.array(tokens, np.int64))
        assert [state_of(row) for row in rows] == [state_of(state) for state in states[1:]]


@settings(SETTINGS, max_examples=2 * EXAMPLES)
@given(seed=SEEDS)
def test_a_guarded_row_never_breaks_its_own_rules(seed):
    """Whatever the logits, sampling only what the guard leaves possible is never a violation, but for allowed quotes."""
    rng, program, _, row, behind = begin(seed)
    for step in range(40):
        if row.flags & StateFlag.INERT or row.phase == Phase.DONE:
            return
        logits = np.array([[rng.gauss(0, 3) for _ in range(program.vocabulary.num_tokens)]], np.float32)
        if program.apply([row], logits):
            return
        token = int(logits.argmax())
        before = row.decide()
        program.advance(row, token)
        assert before.allows(token)
        quoted = row.policy.source.markers_in_answer == "allow"
        assert not row.flags & 8 or quoted, (
            f"step {step}: token {token} {spelled(program, [token])}\n{program.format}\n{row.policy.source}\n"
            f"{spelled(program, behind[2])}\n{before.as_dict()}\n{row.as_dict()}"
        )
