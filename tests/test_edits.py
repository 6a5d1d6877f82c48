"""What `apply` does to a row of logits at the edges: dtypes, layouts, widths, other processors' bans, hostile ids."""

from __future__ import annotations

import math

import numpy as np
import pytest
from test_agreement import from_bfloat16, to_bfloat16

from thinkguard import ThinkPolicy, ThinkProgram, Vocabulary
from thinkguard.core._core import StateBatch, ThinkState
from thinkguard.core.names import Dtype
from thinkguard.errors import InputError

BYTES = [bytes([byte]) for byte in range(256)]
ADDED = {"<eos>": 256, "<think>": 257, "</think>": 258}
EOS, START, END, A, B = 256, 257, 258, ord("a"), ord("b")
WIDTH = 259
VOCABULARY = Vocabulary.from_parts(BYTES, added=ADDED, special=[EOS], eos_ids=[EOS])
PROGRAM = ThinkProgram("think", VOCABULARY)
INF = math.inf


def row(*tokens, **policy):
    made = PROGRAM.start([START, ord("\n")], ThinkPolicy(**policy), turn_start=0)
    for token in tokens:
        PROGRAM.advance(made, token)
    return made


def closing():
    return row(max_thinking_tokens=0)


def biased(bias):
    """A row whose plan, the end marker, gets `bias`."""
    return row(A, soft_thinking_tokens=0, close_bias=2 * bias, max_thinking_tokens=2)


def apply_bfloat16(rows, bits):
    return StateBatch(rows).apply(bits.ctypes.data, Dtype.BFLOAT16, bits.shape[1], 1, bits.shape[1])


def test_no_rows_one_row_and_many():
    assert PROGRAM.apply([], np.empty((0, WIDTH), np.float32)) == 0
    assert PROGRAM.apply([], np.empty((0, 0), np.float32)) == 0
    rows = [closing() if i % 3 else row(A) for i in range(1000)]
    logits = np.zeros((1000, WIDTH), np.float32)
    assert PROGRAM.apply(rows, logits) == 0
    for i in (0, 1, 999):
        alone = np.zeros((1, WIDTH), np.float32)
        assert PROGRAM.apply([rows[i]], alone) == 0
        assert np.array_equal(alone[0], logits[i])


@pytest.mark.parametrize("forced", [0, WIDTH - 1])
def test_the_first_and_the_last_id_can_be_forced_and_banned(forced):
    pieces = [b"\n", *(bytes([byte]) for byte in range(256) if byte != 10)]
    names = {"<eos>": 256, "</think>": 257, "<think>": 258} if forced else {"<think>": 0, "<eos>": 257, "</think>": 258}
    pieces = pieces if forced else [b"", *pieces]
    program = ThinkProgram("think", Vocabulary.from_parts(pieces, added=names, special=[names["<eos>"]]))
    logits = np.zeros((1, WIDTH), np.float32)
    start = program.start([])
    assert program.apply([start], logits) == 0
    assert np.flatnonzero(logits[0] == 0).tolist() == [forced]
    program.advance(start, forced)
    while start.decide().kind == 1:
        program.advance(start, start.decide().token)
    logits[:] = 0
    assert program.apply([start], logits) == 0
    assert logits[0, forced] == -INF, "another start"


def test_a_row_without_anything_to_sample_stays_as_it_was():
    for guarded in (closing(), row(A), row(A, END)):
        for fill in (-INF, math.nan):
            logits = np.full((1, WIDTH), fill, np.float32)
            before = logits.copy()
            assert PROGRAM.apply([guarded], logits) == 1
            assert np.array_equal(logits, before, equal_nan=True)


def test_a_forced_token_that_another_processor_banned_is_skipped():
    guarded = closing()
    for value in (-INF, math.nan):
        logits = np.zeros((2, WIDTH), np.float32)
        logits[0, guarded.decide().token] = value
        assert PROGRAM.apply([guarded, guarded], logits) == 1, "said of one row"
        assert np.flatnonzero(np.isfinite(logits[0])).tolist() == [END], "the end marker, without what is optional"
        assert np.isfinite(logits[1]).sum() == 1


def test_where_another_processor_leaves_only_what_is_banned_the_row_stays():
    logits = np.full((1, WIDTH), -INF, np.float32)
    logits[0, START] = 3
    assert PROGRAM.apply([row(A)], logits) == 1
    assert logits[0, START] == 3


def test_nothing_is_raised_from_a_ban():
    """EOS wants to become the end marker, but a grammar has banned that: then EOS is only banned."""
    logits = np.zeros((1, WIDTH), np.float32)
    logits[0, EOS], logits[0, END] = 9, -INF
    assert PROGRAM.apply([row(A)], logits) == 0
    assert logits[0, END] == logits[0, EOS] == -INF


def test_nan_reads_as_banned():
    logits = np.zeros((1, WIDTH), np.float32)
    logits[0, EOS] = math.nan
    assert PROGRAM.apply([row(A)], logits) == 0
    assert logits[0, END] == 0
    assert logits[0, EOS] == -INF
    logits = np.full((1, WIDTH), math.nan, np.float32)
    logits[0, A] = 1
    assert PROGRAM.apply([row(A)], logits) == 0
    assert logits[0, A] == 1
    assert math.isnan(logits[0, END])


def test_the_larger_of_source_and_target_wins():
    for eos, end in ((5, 1), (1, 5), (-3, -4)):
        logits = np.full((1, WIDTH), -9, np.float32)
        logits[0, EOS], logits[0, END] = eos, end
        PROGRAM.apply([row(A)], logits)
        assert logits[0, END] == max(eos, end)
        assert logits[0, EOS] == -INF


@pytest.mark.parametrize(
    ("logits", "told"),
    [
        (np.zeros((1, WIDTH), np.int64), "int64"),
        (np.zeros((1, WIDTH), np.float64), "float64"),
        (np.zeros((1, WIDTH), ">f4"), ">f4"),
        (np.zeros((1, WIDTH), bool), "bool"),
        ([[0.0] * WIDTH], "list"),
        (None, "NoneType"),
        (np.zeros(WIDTH, np.float32), r"shape \[259\] for 1 states"),
        (np.zeros((2, WIDTH), np.float32), r"shape \[2, 259\] for 1 states"),
        (np.zeros((0, WIDTH), np.float32), r"shape \[0, 259\] for 1 states"),
        (np.zeros((1, 1, WIDTH), np.float32), r"shape \[1, 1, 259\]"),
        (np.float32(3), r"shape \[\] for 1 states"),
        (np.broadcast_to(np.float32(0), (1, WIDTH)), "read-only"),
        (np.lib.stride_tricks.as_strided(np.zeros(4, np.float32), (1, WIDTH), (0, 0)), "share memory"),
        (np.zeros((1, WIDTH), [("a", "u1"), ("b", "<f4")])["b"], "askew"),
    ],
)
def test_other_logits_are_refused(logits, told):
    with pytest.raises(InputError, match=told):
        PROGRAM.apply([row(A)], logits)


def test_rows_that_share_their_memory_are_refused():
    logits = np.lib.stride_tricks.as_strided(np.zeros(WIDTH, np.float32), (2, WIDTH), (0, 4))
    with pytest.raises(InputError, match="share memory"):
        PROGRAM.apply([row(A), closing()], logits)


def test_a_read_only_array_is_refused_and_left_alone():
    logits = np.zeros((1, WIDTH), np.float32)
    logits.flags.writeable = False
    with pytest.raises(InputError, match="read-only"):
        PROGRAM.apply([row(A)], logits)
    assert not logits.any()


def test_what_is_no_row_is_refused():
    with pytest.raises(InputError, match=r"states\[1\] is a int"):
        PROGRAM.apply([row(A), 3], np.zeros((2, WIDTH), np.float32))


@pytest.mark.parametrize("width", [0, 1, 97, 98, 256, 257, 258, 259, 260, 1000])
@pytest.mark.parametrize(
    "make", [closing, lambda: row(A), lambda: row(A, END), lambda: row(*b"a</thin"), lambda: biased(1)]
)
def test_logits_may_be_narrower_or_wider_than_the_vocabulary(width, make):
    memory = np.zeros((1, width + 8), np.float32)
    guarded = make()
    left = PROGRAM.apply([guarded], memory[:, 4 : 4 + width])
    assert not memory[0, :4].any()
    assert not memory[0, 4 + width :].any()
    action = guarded.decide()
    if not left:
        banned = [token for token in range(width) if memory[0, 4 + token] == -INF]
        assert banned == [token for token in range(width) if not action.allows(token)]


@pytest.mark.parametrize("layout", ["columns", "every second", "backwards", "transposed", "upside down"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_any_layout_is_edited_in_place(layout, dtype):
    rows = [closing(), row(A), row(A, END)]
    plain = np.zeros((3, WIDTH), dtype)
    PROGRAM.apply(rows, plain)
    memory = np.zeros((6, 2 * WIDTH), dtype)
    views = {
        "columns": memory[:3, 7 : 7 + WIDTH],
        "every second": memory[::2, ::2],
        "backwards": memory[:3, WIDTH - 1 :: -1],
        "transposed": np.zeros((WIDTH, 3), dtype).T,
        "upside down": memory[2::-1, :WIDTH],
    }
    view = views[layout]
    PROGRAM.apply(rows, view)
    assert np.array_equal(view, plain)
    view[:] = 0
    assert not memory.any()


def test_hostile_ids_make_a_row_inert_or_are_tokens_without_text():
    for token in (-1, -(2**31), 2**31, 2**63, -(2**70), 2**70):
        guarded = row(A)
        PROGRAM.advance(guarded, token)
        assert guarded.flags & 1
        assert guarded.decide().kind == 0
        PROGRAM.advance(guarded, A)
        assert guarded.flags & 1
    for token in (WIDTH, 2**31 - 1):
        guarded = row(A)
        PROGRAM.advance(guarded, token)
        assert not guarded.flags & 1
        assert guarded.thinking_tokens == 2
    batch = StateBatch([row(A), row(A)])
    batch.advance(np.array([2**40, A]))
    assert [r.flags & 1 for r in batch.states] == [1, 0]
    with pytest.raises(InputError, match="3 entries for 2 states"):
        batch.advance(np.array([1, 2, 3]))


@pytest.mark.parametrize("ids", [[-1], [2**31], [1.5], [[1]], ["a"], [None], [2**70], object()])
def test_prompt_ids_that_are_none_are_refused(ids):
    with pytest.raises(InputError, match="prompt_ids"):
        PROGRAM.start(ids)


@pytest.mark.parametrize("ids", [[-1], [2**31], list(range(17))])
def test_eos_ids_that_are_none_are_refused(ids):
    with pytest.raises(InputError, match="eos_token_ids"):
        PROGRAM.start([], eos_token_ids=ids)


def test_a_negative_limit_is_refused_not_taken_for_none():
    with pytest.raises(InputError, match="max_tokens=-1"):
        PROGRAM.start([], ThinkPolicy(opening="allow"), max_tokens=-1)


def test_a_row_of_another_policy_cannot_be_assigned():
    with pytest.raises(InputError, match="different policies"):
        row(A).rollback_to(closing())


# --- half precision ---


def test_every_half_is_read_and_written_without_loss():
    """Through a redirect: the end marker takes EOS's value, all 65,536 of them."""
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    logits = np.full((65536, WIDTH), -65504, np.float16)
    logits[:, EOS] = every
    for start in range(0, 65536, 8192):
        part = logits[start : start + 8192]
        assert PROGRAM.apply([row(A)] * len(part), part) == 0
    assert np.array_equal(logits[:, END], np.where(every >= -65504, every, np.float16(-65504)))
    assert (logits[:, EOS] == -INF).all()


def test_every_bfloat16_is_read_and_written_without_loss():
    every = np.arange(65536, dtype=np.uint16)
    values = from_bfloat16(every)
    lowest = np.uint16(0xFF7F)
    for start in range(0, 65536, 8192):
        bits = np.full((8192, WIDTH), lowest, np.uint16)
        bits[:, EOS] = every[start : start + 8192]
        assert apply_bfloat16([row(A)] * 8192, bits) == 0
        source, target = values[start : start + 8192], from_bfloat16(np.array([lowest]))
        assert np.array_equal(from_bfloat16(bits[:, END]), np.where(source >= target, source, target))
        assert (bits[:, EOS] == 0xFF80).all()


@pytest.mark.parametrize("scale", [1e-8, 1e-6, 1e-4, 1e-2, 1.0, 100.0, 60000.0])
def test_a_bias_rounds_to_the_nearest_half_ties_to_even(scale):
    rng = np.random.default_rng(0)
    for bias in [*(rng.random(60) * scale).tolist(), scale, 2**-24, 2**-25, 3 * 2**-25, 2**-14]:
        guarded = biased(bias)
        added = np.float32(guarded.decide().bias)
        values = np.concatenate([rng.normal(0, scale / 4, 40), rng.normal(0, 1, 20), [0.0, -bias, 65504.0]])
        values = np.clip(values, -65504, 65504).astype(np.float16)
        logits = np.full((len(values), WIDTH), -INF, np.float16)
        logits[:, A] = 0
        logits[:, END] = values
        PROGRAM.apply([guarded] * len(values), logits)
        with np.errstate(over="ignore"):
            wanted = (values.astype(np.float32) + added).astype(np.float16)
        wanted = np.where(wanted == INF, np.float16(65504), wanted)
        assert np.array_equal(logits[:, END], wanted), bias
        bits = np.full((len(values), WIDTH), 0xFF80, np.uint16)
        bits[:, A], bits[:, END] = 0, to_bfloat16(values)
        wanted = to_bfloat16(from_bfloat16(bits[:, END]) + added)
        apply_bfloat16([guarded] * len(values), bits)
        assert np.array_equal(from_bfloat16(bits[:, END]), from_bfloat16(wanted)), bias


def test_a_bias_never_makes_an_infinity():
    """A softmax over +inf is NaN, and the whole batch is lost."""
    logits = np.zeros((1, WIDTH), np.float16)
    assert PROGRAM.apply([biased(4e5)], logits) == 0
    assert logits[0, END] == np.float16(65504)
    logits = np.zeros((1, WIDTH), np.float16)
    logits[0, END] = INF
    assert PROGRAM.apply([biased(4e5)], logits) == 0
    assert logits[0, END] == INF, "what came in stays what it was"


def test_a_tensor_is_described_however_it_comes():
    """By DLPack's exchange interface where torch has it, by its attributes elsewhere: views, subclasses, gradients."""
    torch = pytest.importorskip("torch", reason="its tensors are edited")
    wanted = torch.zeros(2, WIDTH)
    PROGRAM.apply([row(A), row(A)], wanted.numpy())

    class Own(torch.Tensor):
        pass

    views = [
        torch.zeros(2, WIDTH), torch.zeros(WIDTH, 2).T, torch.zeros(4, 2 * WIDTH)[1::2, ::2],
        torch.zeros(9 + 2 * WIDTH)[9:].view(2, -1),
        torch.nn.Parameter(torch.zeros(2, WIDTH), requires_grad=True), torch.zeros(2, WIDTH, requires_grad=True),
        torch.zeros(2, WIDTH).as_subclass(Own),
    ]  # fmt: skip
    for tensor in views:
        PROGRAM.apply([row(A), row(A)], tensor)
        assert torch.equal(tensor.detach().as_subclass(torch.Tensor), wanted)
    one = torch.zeros(1, WIDTH).expand(2, WIDTH)
    for wrong, message in (
        (one, "share memory"), (torch.zeros(1, 1).expand(2, WIDTH), "share memory"),
        (torch.zeros(3, WIDTH), r"shape \[3, 259\]"), (torch.zeros(WIDTH), r"shape \[259\]"),
        (torch.zeros(2, WIDTH, dtype=torch.float64), "logits are float64"),
        (torch.zeros(2, WIDTH, dtype=torch.int32), "logits are int32"),
        (torch.zeros(2, WIDTH, device="meta"), "logits are on meta"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            PROGRAM.apply([row(A), row(A)], wrong)



def test_torch_tensors_of_every_dtype_agree_with_numpy():
    torch = pytest.importorskip("torch", reason="bfloat16 logits and tensors need torch")
    rows = [closing(), row(A), row(A, END), biased(1.37)]
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, WIDTH, generator=generator)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        tensor = values.to(dtype, copy=True)
        plain = tensor.float().numpy().copy()
        assert PROGRAM.apply(rows, tensor) == 0
        PROGRAM.apply(rows, plain)
        assert torch.equal(tensor, torch.from_numpy(plain).to(dtype))
        wide = torch.zeros(WIDTH, 8, dtype=dtype).T[::2]
        wide.copy_(values.to(dtype))
        PROGRAM.apply(rows, wide)
        assert torch.equal(wide, tensor)
    with pytest.raises(InputError, match="share memory"):
        PROGRAM.apply(rows, torch.zeros(1, WIDTH).expand(4, WIDTH))
    with pytest.raises(InputError, match="float64"):
        PROGRAM.apply(rows, values.double())


def test_a_row_that_was_never_started_does_not_crash():
    fresh = ThinkState(PROGRAM.bind(ThinkPolicy()))
    assert fresh.decide().kind in (0, 1, 2)
    fresh.advance(A)
