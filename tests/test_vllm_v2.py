"""V2's slots without an engine: what is launched, what waits for the device, what a slot remembers; both ways to do it."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("vllm", reason="the adapter is vLLM's, which is not installed")

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from thinkguard import ThinkPolicy, ThinkProgram, Vocabulary
from thinkguard.device.host_slots import HostSlots
from thinkguard.device.slots import DeviceSlots
from thinkguard.vllm import v2
from thinkguard.vllm.engine_requests import Guard
from thinkguard.vllm.v2 import V2Slots

ADDED = {"<|im_start|>": 256, "<|im_end|>": 257, "<think>": 258, "</think>": 259}
START, EOS, THINK, END = ADDED.values()
NEWLINE = ord("\n")
PROMPT = [START, *b"assistant\n"]
OPENED = [*PROMPT, THINK, NEWLINE]
SLOTS, WIDTH, CAPACITY = 4, 264, 64
LIMIT = 40  # tokens of prompt and output


class Requests:
    """Every request says by its parameters what becomes of it: a policy's fields, or None."""

    def __init__(self):
        pieces = [bytes([b]) for b in range(256)]
        vocabulary = Vocabulary.from_parts(pieces, added=ADDED, special=[START, EOS], eos_ids=[EOS])
        self.program = ThinkProgram("think", vocabulary)
        self.no_chats = 0  # how often a prompt was said to show no chat
        self.banned = 0  # how often it was said that what is due had been banned

    def guard_of(self, params):
        if params is None:
            return None
        fields = dict(params)
        return Guard(guards_raw=fields.pop("guards_raw", True), bound=self.program.bind(ThinkPolicy(**fields)))

    def limit_of(self, params, prompt_len):
        return LIMIT - prompt_len

    def say_no_chat(self):
        self.no_chats += 1

    def say_banned(self):
        self.banned += 1


class Runner:
    """The buffers of V2's RequestState that a processor sees, and the guard over them."""

    def __init__(self, device="cpu"):
        def zeros(*shape):
            return torch.zeros(shape, dtype=torch.int32, device=device)

        self.device, self.requests = device, Requests()
        self.states = SimpleNamespace(
            device=torch.device(device), max_num_reqs=SLOTS, all_token_ids=SimpleNamespace(gpu=zeros(SLOTS, CAPACITY)),
            total_len=SimpleNamespace(gpu=zeros(SLOTS)),
            prompt_len=SimpleNamespace(gpu=zeros(SLOTS), np=np.full(SLOTS, len(PROMPT), np.int32)),
        )  # fmt: skip
        self.guard = V2Slots(self.requests, self.states)

    def add(self, slot, params, ids=PROMPT, prompt=None):
        """A request takes a slot; behind the first `prompt` of its ids stands what it said before it was preempted."""
        self.say(slot, ids)
        self.states.prompt_len.gpu[slot] = self.states.prompt_len.np[slot] = len(ids) if prompt is None else prompt
        guarded = self.guard.add_request(slot, params)
        self.guard.apply_staged_writes()
        return guarded

    def say(self, slot, ids):
        """All that is committed in a slot."""
        self.states.all_token_ids.gpu[slot, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
        self.states.total_len.gpu[slot] = len(ids)

    def context(self, slots, drafts=None):
        """A step of some requests, each with its drafts."""
        each = [len((drafts or {}).get(slot, ())) + 1 for slot in slots]
        rows = [slot for slot, num in zip(slots, each, strict=True) for _ in range(num)]
        offsets = [offset for num in each for offset in range(num)]
        inputs = [token for slot in slots for token in [-9, *(drafts or {}).get(slot, ())]]
        ints = dict(dtype=torch.int32, device=self.device)
        return SimpleNamespace(
            idx_mapping_np=np.array(slots, np.int32), expanded_idx_mapping=torch.tensor(rows, **ints),
            expanded_local_pos=torch.tensor(offsets, **ints), input_ids=torch.tensor(inputs, **ints),
        )  # fmt: skip

    def step(self, *slots, drafts=None, logits=None):
        """What becomes of a step's logits, zeros if none are given."""
        context = self.context(slots, drafts)
        if logits is None:
            logits = torch.zeros(len(context.expanded_idx_mapping), WIDTH, device=self.device)
        assert self.guard.apply(logits, context) is logits
        return logits

    def legal(self, slot):
        """The ids that are left to a slot's request."""
        return possible(self.step(slot)[0])


def possible(row):
    return torch.isfinite(row).nonzero()[:, 0].tolist()


@pytest.fixture(params=[DeviceSlots, HostSlots], ids=["in place", "host path"])
def way(request, monkeypatch):
    """Slots where the logits are, and, as on a device on which the kernels do not run, on the host."""
    if request.param is HostSlots:
        monkeypatch.setattr(v2, "kernels_of", lambda device: None)
    return request.param


class Recorder:
    """Kernels that note how they are launched."""

    def __init__(self):
        self.launches = []

    def bind(self, name, step):
        return lambda num_blocks, stream: self.launches.append((name, num_blocks))


def test_one_launch_for_all_rows_none_without_a_guard_and_no_word_from_the_device(monkeypatch):
    """Anything that waits for a device (item, tolist, cpu, boolean indexing) raises on meta tensors: they have no values."""
    kernels = Recorder()
    monkeypatch.setattr(v2, "kernels_of", lambda device: kernels)
    runner = Runner("meta")
    guard, launches = runner.guard, kernels.launches
    assert guard.add_request(0, {"max_thinking_tokens": 3})
    assert guard.add_request(2, {"close_message": "Stop."})
    assert not guard.add_request(1, None)
    guard.apply_staged_writes()
    guard.apply_staged_writes()
    assert not launches, "there is no compilation to warm up"
    runner.step(0, 1, 2)
    assert launches == [("guard_slots", 3)]
    runner.step(1)
    runner.step(3, 1)
    assert len(launches) == 1
    guard.add_request(0, None)
    runner.step(0)
    assert len(launches) == 1
    runner.step(2, drafts={2: [7, 8]})
    assert launches[1:] == [("guard_slots", 3)]


def test_nothing_is_allocated_while_the_model_is_loaded(monkeypatch):
    """What is, vLLM throws away when it sleeps (level 2): the guard is made there, and its memory with the first request."""
    kernels = Recorder()
    monkeypatch.setattr(v2, "kernels_of", lambda device: kernels)
    runner = Runner("meta")
    assert runner.guard._made is None
    assert not runner.guard.add_request(1, None)
    runner.guard.apply_staged_writes()
    assert runner.guard._made is None
    assert runner.guard.add_request(0, {"max_thinking_tokens": 3})
    assert runner.guard._made is not None


def test_where_the_kernels_do_not_run_the_host_does_it(way):
    assert type(Runner().guard._slots) is way


def test_a_recycled_slot_knows_nothing_of_its_last_request(way):
    runner = Runner()
    runner.add(1, {"max_thinking_tokens": 0})
    assert runner.legal(1) == [THINK]
    for said in ([THINK], [THINK, NEWLINE]):
        runner.say(1, [*PROMPT, *said])
        assert runner.legal(1) == [NEWLINE]
    runner.add(1, {"opening": "forbid"})
    assert runner.legal(1) == [THINK]
    runner.say(1, [*PROMPT, THINK, NEWLINE])
    assert runner.legal(1) == [NEWLINE]
    runner.add(1, {"opening": "allow"})
    assert ord("h") in runner.legal(1)
    runner.add(1, None)
    assert runner.legal(1) == list(range(WIDTH))
    runner.add(1, {"max_thinking_tokens": 0}, OPENED)
    assert runner.legal(1) == [NEWLINE]


def test_a_batch_with_requests_that_are_left_alone(way):
    """The host does not look at each row: what lies in the slots says which of them is guarded."""
    runner = Runner()
    assert runner.add(0, {"max_thinking_tokens": 0})
    assert runner.add(1, {"max_thinking_tokens": 0})
    assert not runner.add(1, None)
    assert runner.add(2, {"max_thinking_tokens": 0, "guards_raw": False}, [*b"no chat"])
    assert runner.add(3, {"max_thinking_tokens": 0, "guards_raw": True}, [*b"no chat"])
    logits = runner.step(3, 1, 0, 2)
    assert [len(possible(row)) for row in logits] == [1, WIDTH, 1, WIDTH]
    for slot in (2, 1):
        assert runner.legal(slot) == list(range(WIDTH))
    assert runner.requests.no_chats == 1


def test_prompts_that_show_no_chat_are_said_once(way):
    """Found out where the slots are, read by the step behind; not of requests that asked, nor of the engine's own."""
    runner = Runner()
    raw = {"guards_raw": False}
    runner.states.index_to_req_id = {0: "_warmup_0_", 1: "chatcmpl-1"}
    runner.add(0, raw, [*b"no chat"])
    runner.add(1, raw)
    runner.add(2, {"guards_raw": True}, [*b"no chat"])
    for _ in range(3):
        runner.step(0, 1, 2)
    assert runner.requests.no_chats == 0
    runner.states.index_to_req_id[0] = "cmpl-2"
    runner.add(0, raw, [*b"no chat"])
    runner.step(1, 2)
    runner.step(1, 2)
    assert runner.requests.no_chats == 0, "its prompt was not read yet"
    for slot in (0, 0, 3):
        runner.add(3, raw, [*b"none"])
        runner.step(1, slot)
    assert runner.requests.no_chats == 1


def test_a_request_that_resumes_goes_on_where_it_was(way):
    """It comes back with all that it said, in whatever slot is free, in the middle of what is forced too."""
    policy = {"max_thinking_tokens": 2, "close_message": "So be it."}
    runner, ids = Runner(), [*OPENED, *b"hm"]
    runner.add(0, policy, ids, len(PROMPT))
    output = []
    while len(legal := runner.legal(0)) == 1:
        ids += legal
        output += legal
        slot = len(output) % SLOTS
        if len(output) % 3 == 0:
            runner.add(0, None)
            runner.add(slot, policy, ids, len(PROMPT))
            assert runner.legal(slot) == runner.legal(slot)
            runner.add(0, policy, ids, len(PROMPT))
        else:
            runner.say(0, ids)
    assert output == [*b"So be it.\n", END, *b"\n\n"]


def test_the_limit_keeps_room_for_the_answer(way):
    """`limit_of` says how many tokens the output may have; a prompt that is as long as the limit leaves none."""
    runner, ids = Runner(), list(OPENED)
    runner.add(0, {"reserve_answer_tokens": 6}, ids, len(PROMPT))
    while END not in ids:
        runner.say(0, ids)
        legal = runner.legal(0)
        ids.append(ord("h") if ord("h") in legal else legal[0])
    assert len(ids) < LIMIT - 6
    runner.add(1, {}, [START] * LIMIT)
    assert runner.legal(1)


def test_a_policy_of_any_length_is_taken(way):
    """Also beside one that is there already."""
    runner = Runner()
    runner.add(0, {"max_thinking_tokens": 0, "close_message": "short"}, OPENED)
    assert runner.legal(0) == [ord("s")]
    runner.add(1, {"max_thinking_tokens": 0, "close_message": "x" * 3000}, OPENED)
    assert [possible(row) for row in runner.step(0, 1)] == [[ord("s")], [ord("x")]]
    runner.say(1, [*OPENED, *b"x" * 30])
    assert runner.legal(1) == [ord("x")]


def test_drafts_are_judged_as_if_they_were_said(way):
    """And nothing of them is kept."""
    runner, drafts = Runner(), [*b"abc", NEWLINE, END]
    runner.add(0, {"max_thinking_tokens": 3}, OPENED)
    runner.add(1, {"max_thinking_tokens": 0}, OPENED)
    other, *found = (possible(row) for row in runner.step(1, 0, drafts={0: drafts}))
    assert other == [NEWLINE]
    for num, legal in enumerate(found):
        runner.say(0, [*OPENED, *drafts[:num]])
        assert runner.legal(0) == legal, num
    assert [len(legal) > 1 for legal in found] == [True] * 3 + [False] * 3
    runner.say(0, OPENED)
    assert runner.legal(0) == found[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_logits_of_every_type(way, dtype):
    """As C edits float32's; float64, which C does not know, keeps its precision where nothing is edited."""
    runner = Runner()
    biased = {"soft_thinking_tokens": 0, "close_bias": 3.0, "max_thinking_tokens": 4}
    runner.add(0, biased, [*OPENED, ord("a")], len(OPENED))
    runner.add(1, None)
    runner.add(2, {"max_thinking_tokens": 0}, OPENED)
    before = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    logits = runner.step(0, 1, 2, logits=before.clone())
    state = runner.requests.program.start(OPENED, ThinkPolicy(**biased))
    state.advance(ord("a"))
    want = before[0].float().numpy().copy()
    runner.requests.program.apply([state], want[None])
    changed = want != before[0].float().numpy()
    assert changed.sum() > 1
    assert torch.allclose(logits[0, changed].float(), torch.from_numpy(want[changed]).to(dtype).float(), rtol=2**-7)
    assert torch.equal(logits[0, ~changed], before[0, ~changed])
    assert torch.equal(logits[1], before[1])
    assert possible(logits[2]) == [NEWLINE]


def test_rows_without_a_slot_and_lengths_that_cannot_be_raise_nothing(way):
    runner = Runner()
    runner.add(0, {"max_thinking_tokens": 0}, OPENED)
    context = runner.context([0])
    for wrong in (-1, SLOTS, 2**31 - 1):
        context.expanded_idx_mapping.fill_(wrong)
        assert torch.isfinite(runner.guard.apply(torch.zeros(1, WIDTH), context)).all()
    for wrong in (-1, CAPACITY + 1, 2**31 - 1):
        runner.states.total_len.gpu[0] = wrong
        assert runner.legal(0) == list(range(WIDTH))
    assert runner.step(0, logits=torch.zeros(0, WIDTH)).shape == (0, WIDTH)
    runner.say(0, OPENED)
    assert runner.legal(0) == [NEWLINE]


def test_tokens_that_are_taken_back(way):
    """What a slot's request lost and said anew is read again."""
    runner = Runner()
    runner.add(0, {}, OPENED, len(PROMPT))
    for said, can_end, can_close in (([END, *b"\n\nyes"], True, False), (b"so", False, True)):
        runner.say(0, [*OPENED, *said])
        legal = runner.legal(0)
        assert (EOS in legal, END in legal) == (can_end, can_close)


def test_a_buffer_that_grows(way):
    runner, message = Runner(), {"max_thinking_tokens": 0, "close_message": "So be it."}
    runner.add(0, message, [*OPENED, *b"So"], len(PROMPT))
    assert runner.legal(0) == [ord(" ")]
    tokens = torch.zeros(SLOTS, 2 * CAPACITY, dtype=torch.int32)
    tokens[:, :CAPACITY] = runner.states.all_token_ids.gpu
    runner.states.all_token_ids.gpu = tokens
    runner.add(1, message, [*OPENED, *b"S"], len(PROMPT))
    runner.say(0, [*OPENED, *b"So be"])
    assert [possible(row) for row in runner.step(0, 1)] == [[ord(" ")], [ord("o")]]


class Calls(TorchDispatchMode):
    """Writes down which of torch's operations run, and how large what they return is."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.seen.append((func.name().removeprefix("aten::"), made.numel() if isinstance(made, torch.Tensor) else 0))
        return made


def test_the_host_path_fetches_new_tokens_and_the_rows_that_it_edits(monkeypatch):
    monkeypatch.setattr(v2, "kernels_of", lambda device: None)
    runner, allows_all = Runner(), {"markers_in_answer": "allow"}
    answer = [*OPENED, ord("a"), END, *b"\n\nyes"]
    runner.add(0, {"max_thinking_tokens": 9}, OPENED, len(PROMPT))
    runner.add(1, allows_all, answer, len(PROMPT))
    runner.step(0, 1)
    runner.say(0, [*OPENED, *b"ab"])
    context, logits = runner.context([0, 1]), torch.zeros(2, WIDTH)
    with Calls() as calls:
        runner.guard.apply(logits, context)
    assert next(size for name, size in calls.seen if name == "index.Tensor") == 2, "tokens"
    assert [size for name, size in calls.seen if name == "index_select"] == [WIDTH], "a row"
    context = runner.context([1])
    with Calls() as calls:
        runner.guard.apply(logits[1:], context)
    assert "index_select" not in [name for name, _ in calls.seen]


@pytest.mark.parametrize("seed", range(8))
def test_both_ways_do_the_same(seed, monkeypatch):
    """Requests with any policies come and go, draft, are preempted and say anything; logits are the same to the bit."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    here = Runner()
    monkeypatch.setattr(v2, "kernels_of", lambda device: None)
    runners = here, Runner()
    policies = (
        {"max_thinking_tokens": 3, "close_message": "Stop."}, {"min_thinking_tokens": 5, "min_answer_tokens": 3},
        {"loop_tokens": 8}, {"opening": "forbid"}, {"max_answer_tokens": 4, "max_thinking_tokens": 4}, None,
        {"opening": "allow", "guards_raw": False},
    )  # fmt: skip
    likely = [*b"a.\n<", *ADDED.values(), *b"</think>"]
    said = [[] for _ in range(SLOTS)]
    running = [None] * SLOTS
    for _ in range(40):
        for slot in range(SLOTS):
            if running[slot] is None or len(said[slot]) > CAPACITY - 8 or rng.random() < 0.05:
                running[slot], said[slot] = (rng.choice(policies),), list(rng.choice([PROMPT, OPENED, [*b"hm"]]))
                for runner in runners:
                    runner.add(slot, running[slot][0], said[slot])
            elif rng.random() < 0.05:
                for runner in runners:
                    runner.add(slot, running[slot][0], said[slot], int(runner.states.prompt_len.np[slot]))
        slots = rng.sample(range(SLOTS), rng.randint(1, SLOTS))
        drafts = {slot: [rng.choice(likely) for _ in range(rng.choice([0, 0, 2]))] for slot in slots}
        rows = here.context(slots, drafts).expanded_idx_mapping.tolist()
        logits = torch.randn(len(rows), WIDTH, generator=generator).to(rng.choice([torch.float32, torch.bfloat16]))
        found = [runner.step(*slots, drafts=drafts, logits=logits.clone()) for runner in runners]
        assert torch.equal(*(edited.view(torch.uint8) for edited in found))
        for slot in slots:
            legal = possible(found[0][rows.index(slot)].float())
            said[slot].append(rng.choice(legal if rng.random() < 0.9 else likely))
            for runner in runners:
                runner.say(slot, said[slot])


def test_what_another_processor_banned_is_said(way):
    runner = Runner()
    runner.add(0, {"max_thinking_tokens": 0}, OPENED)
    runner.step(0)
    assert not runner.requests.banned
    logits = torch.zeros(1, WIDTH)
    logits[0, NEWLINE] = -torch.inf  # the close begins with it
    assert possible(runner.step(0, logits=logits)[0]) == [END], "what is optional is skipped"
    assert runner.requests.banned == 1
