"""What is no token id, no state, no tensor that can be edited: an error that names it, its value and the remedy."""

from __future__ import annotations

import array
import copy
import pickle
import re
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress

import numpy as np
import pytest

from thinkguard import FormatError, InputError, PolicyError, ThinkFormat, ThinkPolicy, ThinkProgram, Vocabulary
from thinkguard.core._core import Action, BoundPolicy, StateBatch, Tables, ThinkState
from thinkguard.core._slots import Slots
from thinkguard.core.names import Seq, StateFlag
from thinkguard.formats.format import MAX_MARKER_BYTES

EOS, START, END, WIDTH = 256, 257, 258, 259
PROGRAM = ThinkProgram(
    "think",
    Vocabulary.from_parts(
        [bytes([b]) for b in range(256)],
        added={"<eos>": EOS, "<think>": START, "</think>": END},
        special=[EOS],
        eos_ids=[EOS],
    ),
)
A = ord("a")
MOST = 2**31 - 1


def state(**fields):
    return PROGRAM.start([], ThinkPolicy(**fields))


def logits(num_rows=1):
    return np.zeros((num_rows, WIDTH), np.float32)


def unaligned(dtype, *shape):
    """An array whose items begin one byte behind where they should."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.zeros(size + 1, np.uint8)[1:].view(dtype).reshape(shape)


def named(value):
    """A value as a test's name: the same in every process."""
    return re.sub(r" at 0x\w+", "", repr(value))


# --- single ids ---

NO_NUMBERS = [97.5, 97.0, float("nan"), "a", b"a", None, True, [97], object()]
NO_NUMBERS += [np.float32(97), np.bool_(True), np.array([97])]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=named)
def test_what_is_no_whole_number_is_no_token(value):
    guarded = state()
    before = guarded.as_dict()
    for call in (lambda: PROGRAM.advance(guarded, value), lambda: guarded.advance(value)):
        with pytest.raises(InputError, match=r"^token_id is .*, a .*: wanted a whole number, as token ids are$"):
            call()
    with pytest.raises(InputError, match=r"^token is .* wanted a whole number"):
        guarded.decide().allows(value)
    with pytest.raises(InputError, match=r"^token is .* wanted a whole number"):
        PROGRAM.tables.step(0, value)
    assert guarded.as_dict() == before


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8, np.array])
def test_whole_numbers_of_any_library_are_ids(kind):
    guarded = state()
    PROGRAM.advance(guarded, kind(A))
    assert guarded.as_dict()["length"] == 1
    assert guarded.flags & StateFlag.INERT == 0
    assert guarded.decide().allows(kind(A)) in (True, False)


@pytest.mark.parametrize("value", [-1, -(2**31), 2**31, 2**63, 2**70, np.int64(2**40), np.uint64(2**63)], ids=named)
def test_a_number_that_is_no_id_makes_a_state_inert_and_is_refused_where_an_id_is_asked_about(value):
    guarded = state()
    guarded.advance(value)
    assert guarded.flags & StateFlag.INERT
    with pytest.raises(InputError, match=rf"^token is {int(value)}, which is no token id \(0 to {MOST}\)"):
        state().decide().allows(value)
    assert state().decide().allows(MOST) is False, "a token without text, and one is forced"
    assert PROGRAM.tables.step(0, value) == PROGRAM.tables.step(0, -1)


def test_tensors_of_one_id():
    torch = pytest.importorskip("torch", reason="the ids are torch's")
    guarded = state()
    PROGRAM.advance(guarded, torch.tensor(A))
    assert guarded.as_dict()["length"] == 1
    for wrong in (torch.tensor(97.5), torch.tensor([97]), torch.tensor(True), torch.zeros(0)):
        with pytest.raises(InputError, match=r"^token_id is tensor\(.* a Tensor: wanted a whole number"):
            PROGRAM.advance(guarded, wrong)


# --- rows of ids ---

NO_ROWS = [
    [[1, 2], [3]], [[1, 2], [3, 4]], [1, [2]], [1, 2.5], [1.0], [True, False], [1, True], ["1"], [None], [1, np.float64(2)],
    "12", b"12", 5, None, {1, 2}, {0: 1}, iter([1]), np.zeros((2, 2), np.int64), np.zeros((0, 3), np.int64), np.array([1.0]),
    np.array([True]), np.array([1, 2], object), np.array("1"), object(), deque([1]),
]  # fmt: skip


@pytest.mark.parametrize("ids", NO_ROWS, ids=named)
def test_what_is_no_row_of_ids_is_no_prompt(ids):
    with pytest.raises(InputError, match=r"^prompt_ids (holds|has|is) .*: wanted (one row of whole numbers|a list or an)"):
        PROGRAM.start(ids)


@pytest.mark.parametrize("ids", [one for one in NO_ROWS if not isinstance(one, deque)], ids=named)
def test_what_is_no_row_of_ids_is_no_output(ids):
    guarded = state()
    before = guarded.as_dict()
    with pytest.raises(InputError, match=r"^token_ids (holds|has) .*: wanted one row of whole numbers"):
        guarded.advance_all(ids)
    batch = StateBatch([guarded, guarded])
    with pytest.raises(InputError, match=r"^token_ids (holds|has) "):
        batch.advance(ids)
    assert guarded.as_dict() == before


@pytest.mark.parametrize("ids", [[[1, 2], [3]], [1, 2.5], [True], ["1"], [None], "12", b"12", 5, None, np.zeros((2, 2))])
def test_what_is_no_row_of_ids_cannot_be_explained(ids):
    with pytest.raises(InputError, match=r"^output_ids (holds .*|is a .*): wanted one row of whole numbers"):
        PROGRAM.explain([], ids)


@pytest.mark.parametrize(
    "ids", [[1, -100], [2**31], [2**70], np.array([1, -100]), np.array([2**40]), np.array([2**63], np.uint64)]
)
def test_numbers_that_are_no_ids_are_no_prompt(ids):
    wrong = next(int(one) for one in ids if not 0 <= one <= MOST)
    with pytest.raises(InputError, match=rf"^prompt_ids holds {wrong}, which is no token id \(0 to {MOST}\): leave out"):
        PROGRAM.start(ids)


def test_rows_of_ids_of_any_kind_are_read_alike():
    turn = [START, *b"\nab"]
    wanted = PROGRAM.start(turn).as_dict()
    byte = np.array(turn, np.int32).tobytes()
    kinds = [
        tuple(turn), np.array(turn), np.array(turn, ">i4"), np.array(turn, np.uint16), np.array(turn[::-1])[::-1],
        np.frombuffer(b"." + byte, np.int32, offset=1), [np.int64(one) for one in turn], array.array("q", turn),
        np.array(turn).repeat(2)[::2],
    ]  # fmt: skip
    frozen = np.array(turn)
    frozen.flags.writeable = False
    for ids in (*kinds, frozen):
        assert PROGRAM.start(ids).as_dict() == wanted
        walked, one = state(), state()
        walked.advance_all(ids)
        for token in turn:
            one.advance(token)
        assert walked.as_dict() == one.as_dict()
        batch = StateBatch([state() for _ in turn])
        batch.advance(ids)
        assert [other.as_dict()["length"] for other in batch.states] == [1] * len(turn)


def test_ids_that_lie_askew_are_read_as_they_are():
    """A field of packed records has a stride that is no whole number of ids, and bytes read as ids may begin anywhere."""
    records = np.zeros(3, [("id", "<i8"), ("weight", "<f4")])
    records["id"] = [START, A, A]
    one = unaligned(np.int64, 3)
    one[:] = [START, A, A]
    wanted = state()
    for token in (START, A, A):
        wanted.advance(token)
    for ids in (records["id"], one):
        walked = state()
        walked.advance_all(ids)
        assert walked.as_dict() == wanted.as_dict()
        batch = StateBatch([state(), state(), state()])
        batch.advance(ids)
        assert batch.states[1].as_dict()["thinking"] == batch.states[2].as_dict()["thinking"]
    with pytest.raises(InputError, match="token ids lie askew in memory"):
        PROGRAM.tables.turn_start(unaligned(np.int32, 3))


def test_what_a_host_lists_as_output_never_raises():
    """What is no int of Python's own makes the state inert: lists of outputs hold nothing else."""
    for item, inert in ((A, 0), (np.int64(A), 1), (1.5, 1), ("a", 1), (None, 1), ([A], 1), (2**70, 1), (object(), 1)):
        slots, guarded = Slots(), state()
        slots.put(0, guarded, [item])
        slots.step(1)
        assert guarded.flags & StateFlag.INERT == inert * StateFlag.INERT, repr(item)


# --- other arguments ---


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"turn_start": 1.5}, r"^turn_start=1.5: must be an index into the 2 prompt ids, or their number"),
        ({"turn_start": "a"}, r"^turn_start='a': must be an index"),
        ({"turn_start": True}, r"^turn_start=True: must be an index"),
        ({"turn_start": -1}, r"^turn_start=-1: must be an index"),
        ({"max_tokens": 97.5}, r"^max_tokens=97.5: must be how many tokens the output may have"),
        ({"max_tokens": "9"}, r"^max_tokens='9': must be how many"),
        ({"max_tokens": True}, r"^max_tokens=True: must be how many"),
        ({"eos_token_ids": [1.5]}, r"^eos_token_ids holds 1.5, a float: wanted one row of whole numbers"),
        ({"eos_token_ids": "12"}, r"^eos_token_ids='12': wanted token ids"),
        ({"eos_token_ids": [None]}, r"^eos_token_ids holds None"),
        ({"eos_token_ids": [True]}, r"^eos_token_ids holds True"),
        ({"eos_token_ids": 0.5}, r"^eos_token_ids holds 0.5"),
        ({"eos_token_ids": [2**31]}, r"^eos_token_ids holds 2147483648, which is no token id"),
        ({"policy": {"max_thinking_tokens": 3}}, r"^policy=\{.*ThinkPolicy.from_mapping makes one of a dict"),
        ({"policy": {}}, r"^policy=\{\}: wanted a ThinkPolicy"),
        ({"policy": 5}, r"^policy=5: wanted a ThinkPolicy"),
    ],
)  # fmt: skip
def test_other_arguments_are_checked_too(arguments, told):
    with pytest.raises(InputError, match=told):
        PROGRAM.start([1, 2], **arguments)


def test_one_eos_may_stand_for_itself():
    assert PROGRAM.start([], eos_token_ids=EOS).policy.eos_token_ids == (EOS,)
    assert PROGRAM.start([], eos_token_ids=np.array([EOS, EOS, 3])).policy.eos_token_ids == (EOS, 3)


@pytest.mark.parametrize("width", [1.5, "a", 0, -1, True])
def test_a_width_is_a_whole_number(width):
    with pytest.raises(InputError, match=rf"^vocab_size={width!r}: must be the width of the logits, or None"):
        ThinkProgram("think", PROGRAM.vocabulary, width)


@pytest.mark.parametrize("wrong", [None, 3, PROGRAM.bind(ThinkPolicy()), "state", [1]], ids=lambda one: type(one).__name__)
def test_what_is_no_state_is_refused(wrong):
    name = type(wrong).__name__
    for call in (lambda: PROGRAM.advance(wrong, A), lambda: PROGRAM.decide(wrong)):
        with pytest.raises(InputError, match=rf"^state is a {name}, wanted what ThinkProgram.start returns"):
            call()
    with pytest.raises(InputError, match=rf"^states\[1\] is a {name}, wanted"):
        PROGRAM.apply([state(), wrong], logits(2))
    with pytest.raises(InputError, match=r"^(states is a|states\[0\] is a) "):
        PROGRAM.apply(wrong, logits())


def test_a_single_state_is_no_batch():
    with pytest.raises(InputError, match=r"^states is a ThinkState: wanted a list of states, one for each row"):
        PROGRAM.apply(state(), logits())


def test_a_policy_is_bound_to_its_program():
    other = ThinkProgram("think", PROGRAM.vocabulary)
    with pytest.raises(InputError, match=r"^bound is another program's: wanted what this program's bind\(\) returns"):
        PROGRAM.start_bound([], other.bind(ThinkPolicy()))
    for wrong in (None, ThinkPolicy()):
        with pytest.raises(InputError, match=rf"^bound is a {type(wrong).__name__}: wanted"):
            PROGRAM.start_bound([], wrong)
    with pytest.raises(InputError, match=r"^limit=-7: must be how many tokens"):
        state().start(np.zeros(0, np.int32), False, -7)


# --- logits ---


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="the logits are torch's")


def no_strided_tensors(torch):
    plain, mkldnn = torch.zeros(1, WIDTH), torch.backends.mkldnn.is_available()
    askew, halves = bytearray(WIDTH * 4 + 1), bytearray(WIDTH * 2 + 1)
    return {
        "negative bit": (torch._neg_view(torch.zeros(1, WIDTH)), r"have the negative bit set.*pass logits.resolve_neg\(\)"),
        "imaginary part": (torch.zeros(1, WIDTH, dtype=torch.complex64).conj().imag, "have the negative bit set"),
        "one byte off": (torch.frombuffer(askew, dtype=torch.float32, offset=1)[None], "lie askew in memory"),
        "half a float16": (torch.frombuffer(halves, dtype=torch.float16, offset=1)[None], "lie askew in memory"),
        "no memory": (torch._efficientzerotensor(1, WIDTH), "have no memory of their own.*pass a copy"),
        "sparse": (plain.to_sparse(), r"are a tensor without strided memory.*pass logits.to_dense\(\)"),
        "mkldnn": (plain.to_mkldnn() if mkldnn else plain.to_sparse(), "are a tensor without strided"),
        "complex": (plain.to(torch.complex64), "are complex64: wanted float32"),
        "list of tensors": ([plain], "are list: wanted"),
    }


NO_STRIDED = (
    "negative bit", "imaginary part", "one byte off", "half a float16", "no memory", "sparse", "mkldnn", "complex",
    "list of tensors",
)  # fmt: skip


@pytest.mark.parametrize("kind", NO_STRIDED)
def test_tensors_that_cannot_be_edited_where_they_lie_are_refused(torch, kind):
    tensor, told = no_strided_tensors(torch)[kind]
    before = tensor.clone() if kind not in ("list of tensors", "sparse", "mkldnn") else None
    with pytest.raises(InputError, match=f"^logits {told}"):
        PROGRAM.apply([state()], tensor)
    if before is not None:
        assert torch.equal(tensor.clone(), before), "left as it was"

    class Own(torch.Tensor):  # described by its attributes, not by the exchange interface
        pass

    if kind in ("negative bit", "one byte off"):
        with pytest.raises(InputError, match=f"^logits {told}"):
            PROGRAM.apply([state()], tensor.as_subclass(Own))


def test_a_resolved_tensor_is_edited(torch):
    tensor = torch._neg_view(torch.zeros(1, WIDTH)).resolve_neg()
    assert PROGRAM.apply([state()], tensor) == 0
    assert tensor[0, START] == 0
    assert torch.isneginf(tensor).sum() == WIDTH - 1


@pytest.mark.parametrize("strides", [(4, 4), (0, 4), (8, 4), (4, 0), (4 * WIDTH - 4, 4), (-4, 4)])
def test_rows_that_overlap_are_refused(strides):
    memory = np.zeros(4 * WIDTH, np.float32)[8:]
    view = np.lib.stride_tricks.as_strided(memory, (2, WIDTH), strides)
    with pytest.raises(InputError, match=r"^logits share memory .*: pass a copy"):
        PROGRAM.apply([state(), state()], view)
    assert not memory.any()


@pytest.mark.parametrize("shape", [(1, WIDTH), (2, WIDTH), (WIDTH, 1), (2, 1), (1, 1)])
def test_rows_that_do_not_overlap_are_edited(shape):
    num_rows, width = shape
    views = np.zeros(shape, "f4"), np.zeros(shape[::-1], "f4").T, np.zeros((num_rows, 2 * width), "f4")[:, ::2]
    for view in views:
        assert PROGRAM.apply([state() for _ in range(num_rows)], view) == num_rows * (width <= START)


def test_other_arrays_are_refused():
    with pytest.raises(InputError, match=r"^logits lie askew in memory"):
        PROGRAM.apply([state()], unaligned(np.float32, 1, WIDTH))

    class Described:
        dtype, shape = np.dtype("f4"), (1, WIDTH)

    with pytest.raises(InputError, match=r"^logits are Described: wanted a numpy array or a torch tensor"):
        PROGRAM.apply([state()], Described())


def test_kernels_are_given_what_they_know(torch):
    from thinkguard.device.launch import HostKernels
    from thinkguard.device.slots import DeviceSlots
    from thinkguard.device.tables import DTYPES, DeviceProgram

    with pytest.raises(InputError, match=r"^logits are torch.float64: wanted torch.float32, torch.float16, torch.bfloat16"):
        DTYPES[torch.float64]
    assert torch.float64 not in DTYPES
    assert DTYPES.get(torch.float64) is None
    slots = DeviceSlots(DeviceProgram(PROGRAM, "cpu", HostKernels()), 3)
    for slot in (-1, 3):
        with pytest.raises(InputError, match=rf"^slot={slot}: must be one of the 3 slots, from 0 on"):
            slots.stage(slot, bound())


# --- what holds memory ---


def bound():
    return PROGRAM.bind(ThinkPolicy())


@pytest.mark.parametrize("cls", [BoundPolicy, StateBatch, Tables, ThinkState])
def test_nothing_half_made_can_be_had(cls):
    with pytest.raises(TypeError, match="positional argument"):
        cls.__new__(cls)


def test_an_action_made_by_itself_answers_nothing():
    action = Action.__new__(Action)
    assert action.kind == 0
    with pytest.raises(TypeError, match=r"^actions are made by ThinkState.decide\(\)"):
        action.allows(A)


def test_nothing_is_made_a_second_time():
    """`__init__` on an object that C holds addresses of changes nothing."""
    guarded = state()
    batch, tables = StateBatch([guarded]), PROGRAM.tables
    for one, arguments in ((batch, ([guarded, 3],)), (batch, (None,)), (tables, ({}, {})), (tables, (None, None))):
        with suppress(TypeError):
            one.__init__(*arguments)
    assert len(batch) == 1
    assert batch.states == (guarded,)
    assert not batch.is_free()
    assert tables.placed_size > 0
    with pytest.raises(InputError, match=r"^states\[1\] is a int"):
        StateBatch([guarded, 3])


@pytest.mark.parametrize("name", ["arrays", "scalars"])
def test_tables_are_read_only(name):
    mapping = getattr(PROGRAM.tables, name)
    with pytest.raises(TypeError, match="does not support item assignment"):
        mapping[next(iter(mapping))] = None
    for change in ("clear", "pop", "update", "setdefault"):
        assert not hasattr(mapping, change)
    with pytest.raises(AttributeError):
        setattr(PROGRAM.tables, name, {})


def test_the_memory_of_tables_and_policies_is_read_only():
    policy = bound()
    for held in (*PROGRAM.tables.arrays.values(), policy.block, policy.tokens):
        if len(held):
            with pytest.raises(ValueError, match="read-only"):
                held[0] = held[0]
        with pytest.raises(ValueError, match=r"resize|own its data"):
            held.resize(len(held) + 7)
    with pytest.raises(TypeError, match="does not support item assignment"):
        policy.fields["loop_tokens"] = 10**6
    for array_ in PROGRAM.tables.arrays.values():
        array_.shape = (1, *array_.shape)  # of the view alone
        array_.shape = array_.shape[1:]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"step": None}, r"^arrays\['step'\] is of type NoneType: wanted an array of uint32"),
        ({"step": np.zeros(WIDTH, np.uint64)}, r"^arrays\['step'\] has shape \[259\] and type uint64: wanted one"),
        ({"step": np.zeros(3, np.uint32)}, r"^arrays has 3 of step, 259 of info"),
        ({"info": np.zeros(2 * WIDTH, np.uint32)[::2]}, r"^arrays\['info'\] has shape .* wanted one contiguous row"),
        ({"info": unaligned(np.uint32, WIDTH)}, r"^arrays\['info'\] has shape .* wanted one contiguous row"),
        ({"nodes": PROGRAM.tables.arrays["nodes"][:0]}, r"^arrays has 0 nodes"),
        ({"mark_offset": np.zeros(1, np.int32)}, r"^arrays has 1 of mark_offset and 18 of except_offset: wanted 18"),
        ({"mark_offset": PROGRAM.tables.arrays["mark_offset"] + 10**6}, r"^arrays\['mark_offset'\] has to rise from 0"),
        ({"seq_offset": np.array([0, -5], np.int32)}, r"^arrays\['seq_offset'\] has to rise from 0"),
    ],
)  # fmt: skip
def test_tables_take_nothing_that_c_would_walk_out_of(change, told):
    with pytest.raises(ValueError, match=told):
        Tables({**PROGRAM.tables.arrays, **change}, PROGRAM.tables.scalars)


@pytest.mark.parametrize(("num_pairs", "told"), [(0, "^scalars has 0 pairs"), (2, "^arrays has 17 nodes .* for 2 pairs")])
def test_tables_have_as_many_nodes_and_events_for_each_pair(num_pairs, told):
    with pytest.raises(ValueError, match=told):
        Tables(PROGRAM.tables.arrays, {**PROGRAM.tables.scalars, "num_pairs": num_pairs})


@pytest.mark.parametrize("pair", [-1, 2])
def test_a_pair_that_there_is_not_is_refused(pair):
    program = ThinkProgram("hy3", _plain())
    tables, policy = program.tables, program.bind(ThinkPolicy())
    start = np.array(program.vocabulary.encode("<think>"), np.int32)
    for call in (lambda: tables.kinds_on_the_way(start, pair), lambda: policy.sequence(Seq.CLOSE, pair)):
        with pytest.raises(IndexError, match=rf"^pair {pair} is not among the format's 2"):
            call()
    node = 0
    for token in start[:-1]:
        node, _ = tables.step(node, int(token))
    with pytest.raises(IndexError, match=rf"^pair {pair} is not among the format's 2"):
        tables.step(node, int(start[-1]), pair)


def test_tables_need_all_arrays():
    with pytest.raises(ValueError, match=r"^arrays has no step, info, .*: pass all that `compile_format` makes"):
        Tables({}, {})


@pytest.mark.parametrize(
    ("fields", "sequences", "eos", "told"),
    [
        ({}, [[[1], [2]]], (), r"^\[2\] sequences of each pair: wanted six for each of 1"),
        ({}, [[[]] * 6] * 2, (), r"^\[6, 6\] sequences of each pair: wanted six for each of 1"),
        ({}, [[[1.5], [], [], [], [], []]], (), r"^sequences holds 1.5"),
        ({}, [[[-5], [], [], [], [], []]], (), r"^sequences holds -5, which is no token id"),
        ({}, [[[]] * 6], (1.5,), r"^eos_token_ids holds 1.5"),
        ({}, [[[]] * 6], (2**31,), r"^eos_token_ids holds 2147483648"),
        ({"loop_tokens": 10**6}, [[[]] * 6], (), r"^loop_tokens=1000000: must lie between 0 and 256"),
    ],
)
def test_a_bound_policy_takes_nothing_that_c_would_walk_out_of(fields, sequences, eos, told):
    with pytest.raises(ValueError, match=told):
        BoundPolicy(PROGRAM.tables, None, {**bound().fields, **fields}, sequences, eos)


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy])
def test_copies_are_forks_or_the_thing_itself(how):
    guarded = state()
    guarded.advance(START)
    fork = how(guarded)
    assert fork is not guarded
    assert fork.as_dict() == guarded.as_dict()
    assert fork.policy is guarded.policy
    for shared in (guarded.policy, PROGRAM.tables):
        assert how(shared) is shared
    again = how(PROGRAM).start([START])
    assert again.as_dict() == PROGRAM.start([START]).as_dict()


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (lambda: PROGRAM.tables, "pickle its ThinkProgram"),
        (bound, "pickle its ThinkProgram and ThinkPolicy"),
        (state, "keep the token ids"),
        (lambda: state().decide(), "as_dict"),
        (lambda: StateBatch([state()]), "make one of the states' copies"),
        (Slots, "the host's own"),
    ],
)
def test_what_lives_in_this_process_alone_says_so_when_pickled(make, remedy):
    with pytest.raises(TypeError, match=f"cannot be pickled: .*{remedy}"):
        pickle.dumps(make())


def test_slots_keep_their_policies_to_themselves():
    slots = Slots()
    slots.put(0, state(), [])
    slots.policies.clear()
    assert len(slots.policies) == 1
    slots.remove(0)
    assert slots.policies == [None]
    with pytest.raises(IndexError, match="nor beyond int32"):
        slots.put(2**60, state(), [])
    assert slots.num_guarded == 0


_CRASHES = """
import numpy as np, gc
from thinkguard import ThinkPolicy, ThinkProgram, Vocabulary
from thinkguard.core._core import *
from thinkguard.core._slots import Slots
program = ThinkProgram("think", Vocabulary.from_parts([bytes([b]) for b in range(256)], added={"<eos>": 256}, eos_ids=[256]))
state, bound = program.start([]), program.bind(ThinkPolicy())
tries = [
    lambda: Action.__new__(Action).allows(3), lambda: StateBatch.__new__(StateBatch).is_free(),
    lambda: BoundPolicy.__new__(BoundPolicy).close_room, lambda: ThinkState.__new__(ThinkState).decide(),
    lambda: Tables.__new__(Tables).placed_size, lambda: program.tables.arrays.__setitem__("step", None),
    lambda: program.tables.__init__({}, {}), lambda: StateBatch([state]).__init__([state, 3]), lambda: bound.block.fill(9),
    lambda: bound.block.resize(1, refcheck=False), lambda: program.tables.arrays["step"].resize(1, refcheck=False),
]
for one in tries:
    try:
        one()
    except (TypeError, ValueError, AttributeError):
        pass
gc.collect()
rest = [np.full(5000, 2**31 - 1, np.int32) for _ in range(100)]
logits = np.zeros((1, 257), np.float32)
program.apply([state], logits)
program.advance(program.start([5]), 5)
slots = Slots()
slots.put(0, state, [])
slots.policies.clear()
slots.remove(0)
print("alive", program.tables.placed_size, bound.close_room)
"""


def test_nothing_of_this_ends_the_process():
    done = subprocess.run([sys.executable, "-c", _CRASHES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    whole = ThinkProgram("think", _plain())
    assert done.stdout == f"alive {whole.tables.placed_size} {whole.bind(ThinkPolicy()).close_room}\n"


def _plain():
    return Vocabulary.from_parts([bytes([b]) for b in range(256)], added={"<eos>": 256}, eos_ids=[256])


# --- long markers and messages ---


def format_with(**texts):
    return ThinkFormat(
        **{"name": "own", "starts": ("<a>",), "ends": ("<b>",), "open_text": "<a>\n", "close_text": "\n<b>\n\n", **texts}
    )


def long_end(length):
    return {"ends": ("<" + "b" * (length - 2) + ">",), "close_text": "\n<" + "b" * (length - 2) + ">\n\n"}


@pytest.mark.parametrize("field", ["starts", "ends", "answer_starts", "implicit_ends", "boundaries", "assistant_headers"])
def test_a_marker_that_is_too_long_is_refused_at_once(field):
    """What can follow each of a marker's bytes is spelled when it is compiled, so long ones would take seconds."""
    begin = time.perf_counter()
    with pytest.raises(
        FormatError,
        match=rf"^format 'own': {field} holds '<x+'\.\.\., 800 bytes of UTF-8, and at most "
        rf"{MAX_MARKER_BYTES} can be looked for; name a shorter text",
    ):
        format_with(**{field: ("<" + "x" * 798 + ">",)})
    assert time.perf_counter() - begin < 0.02
    with pytest.raises(FormatError, match="header_text holds"):
        format_with(header_text="x" * 800)
    with pytest.raises(FormatError, match=r"off_text holds .*, 900 bytes"):
        format_with(off_text="é" * 450)


def test_the_longest_marker_is_compiled_and_kept():
    format = format_with(**long_end(MAX_MARKER_BYTES))
    program = ThinkProgram(format, _plain())
    walked = program.start(program.vocabulary.encode("<a>\n"), ThinkPolicy(max_thinking_tokens=0))
    forced = []
    while walked.phase < 4:
        forced.append(walked.decide().token)
        program.advance(walked, forced[-1])
    assert bytes(forced).decode() == format.close_text.rstrip("\n")


def longest_match(rest, known):
    if not rest:
        return []
    for piece in known:
        if rest.startswith(piece) and (behind := longest_match(rest[len(piece) :], known)) is not None:
            return [piece, *behind]
    return None


def test_a_message_is_spelled_in_tokens_that_no_dictionary_of_lengths_misses():
    """The longest match, against the definition: of all tokens that fit, the longest after which the rest can be spelled."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        pieces = {bytes(rng.choice(list(b"ab "), rng.integers(1, 6)).tolist()) for _ in range(12)} | {b"a", b" "}
        vocabulary = Vocabulary.from_parts(sorted(pieces))
        text = rng.choice(list(b"ab "), 14).astype(np.uint8).tobytes()

        wanted = longest_match(text, sorted(pieces, key=len, reverse=True))
        if wanted is None:
            with pytest.raises(ValueError, match="no tokens of this vocabulary spell"):
                vocabulary.encode(text.decode())
        else:
            assert list(map(vocabulary.token_bytes, vocabulary.encode(text.decode()))) == wanted


def test_a_message_with_a_special_token_is_still_refused():
    with pytest.raises(PolicyError, match=r"close_message='So <eos>' holds a special token"):
        PROGRAM.bind(ThinkPolicy(close_message="So <eos>"))
