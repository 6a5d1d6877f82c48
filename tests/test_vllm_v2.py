"""V2's slots without an engine: what is launched, what waits for the device (nothing), what a recycled slot remembers."""

from types import SimpleNamespace

import interpreted  # noqa: F401
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="V2's slots live on a device")

from thinkguard import ThinkPolicy, ThinkProgram, Vocabulary  # noqa: E402
from thinkguard.device import kernel as kernel  # noqa: E402
from thinkguard.vllm.v2 import V2Slots  # noqa: E402

ADDED = {"<|im_start|>": 256, "<|im_end|>": 257, "<think>": 258, "</think>": 259}
PROMPT = [256, *b"assistant\n"]
SLOTS, WIDTH = 4, 264


class Requests:
    """Every request says by its parameters what becomes of it: a policy's fields, or None."""

    def __init__(self):
        pieces = [bytes([b]) for b in range(256)]
        self.program = ThinkProgram("think", Vocabulary.from_parts(pieces, added=ADDED, special=[256, 257], eos_ids=[257]))
        self.vocab_size, self.said = WIDTH, []

    def guard_of(self, params):
        if params is None:
            return None
        return SimpleGuard(self.program.bind(ThinkPolicy(**params)), True)

    def limit_of(self, params, prompt_len):
        return 40 - prompt_len

    def say(self, reason):
        self.said.append(reason)


class SimpleGuard:
    def __init__(self, bound, guards_raw):
        self.bound, self.guards_raw = bound, guards_raw


def host(device):
    """The buffers of V2's RequestState that a processor sees."""

    def zeros(*shape):
        return torch.zeros(shape, dtype=torch.int32, device=device)

    return SimpleNamespace(
        device=torch.device(device), max_num_reqs=SLOTS, all_token_ids=SimpleNamespace(gpu=zeros(SLOTS, 64)),
        total_len=SimpleNamespace(gpu=zeros(SLOTS)),
        prompt_len=SimpleNamespace(gpu=zeros(SLOTS), np=np.full(SLOTS, len(PROMPT), np.int32)),
    )  # fmt: skip


def context(slots, device):
    """A step in which each of some requests has one row."""
    index = torch.tensor(slots, device=device)
    return SimpleNamespace(
        expanded_idx_mapping=index, idx_mapping_np=np.array(slots), input_ids=torch.zeros_like(index, dtype=torch.int32),
        expanded_local_pos=torch.zeros_like(index, dtype=torch.int32),
    )  # fmt: skip


@pytest.fixture
def launches(monkeypatch):
    """The grids of all launches; on meta tensors, which have no values, the kernel itself cannot run."""
    grids = []

    class Recorder:
        def __getitem__(self, grid):
            return lambda *arguments, **options: grids.append(grid)

    monkeypatch.setattr(kernel, "guard_slots", Recorder())
    return grids


def test_one_launch_for_all_rows_none_without_a_guard_and_no_word_from_the_device(launches):
    """Anything that waits for a device (item, tolist, cpu, boolean indexing) raises on meta tensors."""
    state = host("meta")
    slots = V2Slots(Requests(), state)
    assert launches == [(1,)]  # the warm-up
    assert slots.add_request(0, {"max_thinking_tokens": 3})
    assert slots.add_request(2, {"close_message": "Stop."})
    assert not slots.add_request(1, None)
    slots.apply_staged_writes()
    slots.apply_staged_writes()
    assert launches == [(1,)]
    logits = torch.zeros(3, WIDTH, device="meta")
    assert slots.apply(logits, context([0, 1, 2], "meta")) is logits
    assert launches[1:] == [(3,)]
    slots.apply(logits[:1], context([1], "meta"))
    slots.apply(logits[:2], context([3, 1], "meta"))
    assert len(launches) == 2
    slots.add_request(0, None)
    slots.apply(logits[:1], context([0], "meta"))
    assert len(launches) == 2


def test_a_recycled_slot_knows_nothing_of_its_last_request():
    state = host("cpu")
    requests = Requests()
    slots = V2Slots(requests, state)

    def step(slot, ids):
        state.all_token_ids.gpu[slot, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
        state.total_len.gpu[slot], state.prompt_len.gpu[slot] = len(ids), len(PROMPT)
        logits = torch.zeros(1, WIDTH)
        slots.apply(logits, context([slot], "cpu"))
        return np.flatnonzero(logits[0].numpy() > -np.inf).tolist()

    slots.add_request(1, {"max_thinking_tokens": 0})
    slots.apply_staged_writes()
    assert step(1, PROMPT) == [258]
    assert step(1, [*PROMPT, 258]) == [ord("\n")]
    assert step(1, [*PROMPT, 258, 10]) == [ord("\n")]
    slots.add_request(1, {"opening": "forbid"})
    slots.apply_staged_writes()
    assert step(1, PROMPT) == [258]
    assert step(1, [*PROMPT, 258, 10]) == [ord("\n")]
    slots.add_request(1, {"opening": "allow"})
    slots.apply_staged_writes()
    assert ord("h") in step(1, PROMPT)
    slots.add_request(1, None)
    slots.apply_staged_writes()
    assert step(1, PROMPT) == list(range(WIDTH))
    # The device alone knows it too: in a batch with a guarded request the kernel runs over this slot's row as well.
    slots.add_request(0, {"max_thinking_tokens": 0})
    slots.apply_staged_writes()
    state.all_token_ids.gpu[0, : len(PROMPT)] = torch.tensor(PROMPT, dtype=torch.int32)
    state.total_len.gpu[0] = state.prompt_len.gpu[0] = len(PROMPT)
    logits = torch.zeros(2, WIDTH)
    slots.apply(logits, context([0, 1], "cpu"))
    assert np.isfinite(logits[0].numpy()).sum() == 1
    assert np.isfinite(logits[1].numpy()).all()


def test_a_request_too_large_for_its_table_is_left_alone_and_said():
    requests = Requests()
    slots = V2Slots(requests, host("cpu"))
    assert not slots.add_request(0, {"close_message": "x" * 3000})
    assert len(requests.said) == 1
    assert "shorten them" in requests.said[0]
