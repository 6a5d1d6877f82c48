"""V1's rows without an engine: vLLM's own persistent batch drives them, and the specification says what each row must be."""

from __future__ import annotations

import math
import os
import random
from contextlib import suppress
from types import SimpleNamespace

import cases
import numpy as np
import pytest
from model import Model
from test_agreement import same

pytest.importorskip("vllm", reason="vLLM's own batch and parameters are used, and it is not installed")

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessors, MoveDirectionality
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from thinkguard import ThinkPolicy, ThinkProgram, Vocabulary
from thinkguard.device.edits import DeviceEdits
from thinkguard.device.launch import HostKernels
from thinkguard.device.tables import DeviceProgram
from thinkguard.errors import ThinkGuardError
from thinkguard.vllm import v1
from thinkguard.vllm.engine_requests import Guard
from thinkguard.vllm.v1 import V1Batch

SCHEDULES = {"quick": 4, "default": 40, "thorough": 1000}[os.environ.get("THINKGUARD_TEST_PROFILE", "default")]
CPU, OTHER = torch.device("cpu"), torch.device("mps")  # the other: any on which the CPU's code cannot reach the logits
KERNELS = "kernels"  # in the place of a device: one on which they run, which here is the CPU
ADDED = {"<eos>": 256, "<think>": 257, "</think>": 258, "<user>": 259}
EOS, START, END, USER, A = 256, 257, 258, 259, ord("a")
WIDTH = 260
PROGRAM = ThinkProgram(
    "think", Vocabulary.from_parts([bytes([b]) for b in range(256)], added=ADDED, special=[EOS, USER], eos_ids=[EOS])
)
OPENED = [USER, START, ord("\n")]  # a prompt that opened the thinking
UNI, SWAP = MoveDirectionality.UNIDIRECTIONAL, MoveDirectionality.SWAP


class Requests:
    """Stands for `engine_requests.Requests`: a guard is what a request's parameters carry."""

    def __init__(self, program=PROGRAM):
        self.program, self.said = program, []

    def guard_of(self, params):
        return params.extra_args and params.extra_args["guard"]

    def limit_of(self, params, prompt_len):
        return params.extra_args["limit"]

    def say(self, reason):
        if reason not in self.said:
            self.said.append(reason)

    def say_no_chat(self):
        self.say("no chat")

    def say_banned(self):
        self.say("banned")


def params(guard=None, limit=2**20):
    return SamplingParams(extra_args={"guard": guard, "limit": limit} if guard else None)


def guarded(guards_raw=False, limit=2**20, **policy):
    return params(Guard(PROGRAM.bind(ThinkPolicy(**policy)), guards_raw), limit)


def batch_on(device, requests):
    """V1Batch whose logits lie on a device, or where the kernels edit them."""
    batch = V1Batch(requests, OTHER if device == KERNELS else device)
    if device == KERNELS:
        batch._device = DeviceEdits(DeviceProgram(requests.program, CPU, HostKernels()))
    return batch


def rows_of(*requests, device=CPU):
    """V1Batch over (params, prompt, output) requests, one at each batch index."""
    rows = batch_on(device, Requests())
    rows.update_state(BatchUpdate(len(requests), [], [(i, *request) for i, request in enumerate(requests)], []))
    return rows


def edited(rows, num_rows=1, width=WIDTH, dtype=torch.float32):
    logits = torch.zeros(num_rows, width, dtype=dtype)
    assert rows.apply(logits) is logits
    return logits


def legal(rows, index=0, num_rows=1):
    """The ids that are left possible."""
    return torch.isfinite(edited(rows, num_rows)[index]).nonzero().flatten().tolist()


# --- vLLM's own batch ---


def drawn(rng, program):
    """A generated policy that the program can spell."""
    while True:
        with suppress(ThinkGuardError):
            return program.bind(cases.policy(rng))


class Watched:
    """A request, what it has really said, and the specification walking beside it."""

    def __init__(self, rng, name, program):
        bound, self.limit = drawn(rng, program), rng.choice([2**20, 2**20, 60, 20, 3, 0])
        self.guard = Guard(bound, rng.random() < 0.5) if rng.random() < 0.8 else None
        model = Model(program.format, program.vocabulary, bound.source, bound.eos_token_ids, self.limit)
        turn = cases.turn(rng, program, model)
        user = [program.vocabulary.added["<user>"]] if rng.random() < 0.8 else []
        self.prompt = [*cases.before_turn(rng, program), *user, *turn] or [0]
        begin, raw = program.turn(np.array(self.prompt, np.int32))
        embedded = rng.random() < 0.05
        self.model = None if not self.guard or embedded or (raw and not self.guard.guards_raw) else model
        self.turn, self.raw = self.prompt[begin:], raw
        self.state = CachedRequestState(
            req_id=name, prompt_token_ids=None if embedded else self.prompt, mm_features=[], generator=None,
            sampling_params=params(self.guard, self.limit), block_ids=([0],), num_computed_tokens=0, output_token_ids=[],
            prompt_embeds=torch.zeros(len(self.prompt), 4) if embedded else None,
        )  # fmt: skip
        self.said = []
        self.restart()

    def restart(self):
        if self.model:
            self.model.start(self.turn, self.raw, self.prompt)
            for token in self.said:
                self.model.advance(token)

    def say(self, token):
        self.said.append(token)
        if self.model:
            self.model.advance(token)


class Runner:
    """The steps of V1's model runner that touch a batch: who is scheduled, what the lists hold, and what is sampled."""

    def __init__(self, rng, program, asynchronous, device):
        self.rng, self.program, self.asynchronous = rng, program, asynchronous
        self.requests = Requests(program)
        self.rows = batch_on(device, self.requests)
        self.rows.is_argmax_invariant = lambda: False
        self.batch = InputBatch(
            max_num_reqs=5, max_model_len=256, max_num_batched_tokens=256, device=CPU, block_sizes=[16],
            vocab_size=program.vocabulary.num_tokens, max_num_blocks_per_req=[16], logitsprocs=LogitsProcessors([self.rows]),
            logitsprocs_need_output_token_ids=True,
        )  # fmt: skip
        self.alive, self.num_requests, self.in_flight = {}, 0, {}

    def step(self):
        for name in [n for n, r in self.alive.items() if len(r.said) > 60 or self.rng.random() < 0.02]:
            self.batch.remove_request(name)
            del self.alive[name]
        while len(self.alive) < self.rng.choice([1, 4, 8]):
            name, self.num_requests = str(self.num_requests), self.num_requests + 1
            self.alive[name] = Watched(self.rng, name, self.program)
        self.schedule()
        self.batch.condense()
        if self.batch.num_reqs > 1 and self.rng.random() < 0.2:
            self.batch.swap_states(*self.rng.sample(range(self.batch.num_reqs), 2))
        self.batch.refresh_metadata()
        self.batch.update_async_output_token_ids()
        self.sample()

    def schedule(self):
        """Preempt some, discard tokens of some, resume and add others."""
        running = list(self.batch.req_id_to_index)
        for name in running:
            if self.rng.random() < 0.08:
                self.batch.remove_request(name)
                running.remove(name)
            elif self.rng.random() < 0.03:  # tokens are discarded, the one in flight too
                request = self.alive[name]
                kept = self.rng.randrange(len(request.said) + 1)
                del request.said[kept:], request.state.output_token_ids[kept:]
                request.restart()
                self.batch.num_tokens_no_spec[self.batch.req_id_to_index[name]] = len(request.prompt) + kept
        waiting = [r for n, r in self.alive.items() if n not in self.batch.req_id_to_index and n not in running]
        for request in self.rng.sample(waiting, len(waiting)):
            if self.batch.num_reqs < 5 and self.rng.random() < 0.7:
                if self.asynchronous:
                    request.state.output_token_ids = list(request.said)  # recovered from the scheduler's own
                self.batch.add_request(request.state)

    def sample(self):
        names = self.batch.req_ids
        if not names:
            return
        width = max(self.program.vocabulary.num_tokens + self.rng.choice([0, 0, 2]), 1)
        before = [cases.logits(self.rng, width) for _ in names]
        logits = torch.tensor(before)
        self.rows.apply(logits)
        for i, name in enumerate(names):
            request = self.alive[name]
            wanted = before[i] if request.model is None else request.model.apply(before[i])
            differs = np.flatnonzero(~same(logits[i].numpy(), wanted, "float32")).tolist()
            assert not differs, f"request {name} at {i} having said {request.said} behind {request.prompt}"
        tokens = [self.choose(row) for row in logits.tolist()]
        dropped = {i for i in range(len(names)) if self.rng.random() < 0.1}  # a prompt that is not yet read to its end
        for i, name in enumerate(names):
            if i not in dropped:
                self.alive[name].say(tokens[i])
                self.alive[name].state.output_token_ids.append(-1 if self.asynchronous else tokens[i])
                self.batch.num_tokens_no_spec[i] += 1
        if self.asynchronous:
            self.batch.prev_req_id_to_index = {name: i for i, name in enumerate(names) if i not in dropped}
            copied = SimpleNamespace(synchronize=lambda: None)
            self.batch.set_async_sampled_token_ids(torch.tensor(tokens).unsqueeze(1), copied)

    def choose(self, row):
        """Mostly what the guard leaves possible, sometimes anything, as if another processor had insisted."""
        possible = [t for t, value in enumerate(row) if value > -math.inf]
        return self.rng.choice(possible) if possible and self.rng.random() < 0.95 else self.rng.randrange(len(row))


@pytest.mark.parametrize(("asynchronous", "device"), [(False, CPU), (True, CPU), (True, KERNELS)], ids=str)
@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_every_step_of_vllms_batch_equals_the_specification(seed, asynchronous, device):
    """Arrivals, ends, preemption, resumption, swaps, chunked prompts, discarded tokens; -1 filled in late or never there."""
    rng = random.Random(seed)
    program, _, _ = cases.case(rng)
    runner = Runner(rng, program, asynchronous, device)
    for _ in range(40):
        runner.step()
    expected = ("no chat", "embeddings", "banned")  # logits hold -inf here
    assert not [reason for reason in runner.requests.said if not any(part in reason for part in expected)]


# --- single things that happen to a batch ---


def test_an_unguarded_request_takes_a_guarded_ones_place():
    for change, num_legal in (
        (BatchUpdate(2, [], [(0, params(), OPENED, [])], []), [WIDTH, WIDTH]),
        (BatchUpdate(2, [], [], [(1, 0, UNI)]), [WIDTH, WIDTH]),
        (BatchUpdate(2, [], [], [(0, 1, UNI)]), [WIDTH, 1]),
        (BatchUpdate(2, [], [], [(0, 1, SWAP)]), [WIDTH, 1]),
        (BatchUpdate(2, [], [], [(0, 0, UNI)]), [1, WIDTH]),
        (BatchUpdate(1, [0], [], [(1, 0, UNI)]), [WIDTH, WIDTH]),
    ):
        rows = rows_of((guarded(max_thinking_tokens=0), OPENED, []), (params(), OPENED, []))
        assert [len(legal(rows, i, 2)) for i in range(2)] == [1, WIDTH]
        rows.update_state(change)
        assert [len(legal(rows, i, 2)) for i in range(2)] == num_legal


def test_removed_comes_before_added_and_added_before_moved():
    closing, free = guarded(max_thinking_tokens=0), guarded()
    rows = rows_of((free, OPENED, []), (free, OPENED, []))
    rows.update_state(BatchUpdate(3, [1, 0], [(1, closing, OPENED, [])], [(1, 2, UNI), (2, 0, SWAP)]))
    assert [len(legal(rows, i, 3)) for i in range(3)] == [1, WIDTH, WIDTH]


def test_resumption_in_the_middle_of_a_forced_sequence():
    """V1 removes a preempted request and adds it again, its output so far in the same list or, asynchronously, a new one."""
    request = guarded(close_message="So be it.", max_thinking_tokens=0)
    for copied in (list, lambda output: output):
        output = []
        rows = rows_of((request, OPENED, output))
        for _ in range(5):
            output += legal(rows)
        rows.update_state(BatchUpdate(0, [0], [], []))
        assert len(legal(rows)) == WIDTH
        output = copied(output)
        rows.update_state(BatchUpdate(1, [], [(0, request, OPENED, output)], []))
        for _ in range(8):
            output += legal(rows)
        assert output == [*b"So be it.\n", END, *b"\n\n"]
        assert len(legal(rows)) > 1


def test_lists_are_read_when_logits_are_there():
    """Under asynchronous scheduling the last token is filled in between `update_state` and `apply`."""
    output = []
    rows = rows_of((guarded(max_thinking_tokens=1), OPENED, output))
    output.append(-1)
    rows.update_state(None)
    output[-1] = A
    assert len(legal(rows)) == 1
    assert rows._requests.said == []


def test_a_token_that_stays_unknown_leaves_its_request_alone_and_is_told_once():
    """Whether the state forces or bans depends on that token: an edit for the state before it could write a forced token
    twice, so the row of logits stays as it is, and what is read later is accounted for as text."""
    outputs = [[], []]
    rows = rows_of(*((guarded(max_thinking_tokens=1), OPENED, output) for output in outputs))
    outputs[0] += [-1]
    outputs[1] += [A]
    for _ in range(2):
        assert [len(legal(rows, i, 2)) for i in range(2)] == [WIDTH, 1]
    outputs[0] += [-1]
    assert len(legal(rows, 0, 2)) == WIDTH
    outputs[0][:] = [A, ord("\n"), -1]
    assert len(legal(rows, 0, 2)) == WIDTH
    outputs[0][2] = END
    rows.apply(torch.zeros(2, WIDTH))
    assert EOS not in legal(rows, 0, 2)
    assert len(rows._requests.said) == 1
    assert "--no-async-scheduling" in rows._requests.said[0]


def test_a_list_that_shrinks_or_changes_its_end_is_walked_again():
    output = [A, END, A]
    rows = rows_of((guarded(max_thinking_tokens=3), OPENED, output))
    assert EOS in legal(rows), "answered"
    del output[1:]
    assert EOS not in legal(rows), "thinking again"
    output += [END, A]
    assert EOS in legal(rows)
    output[1:] = [A, ord("b")]
    assert len(legal(rows)) == 1, "as long as before, but the budget is spent"
    output.clear()
    assert EOS not in legal(rows)


def test_prompts_without_a_turn_are_guarded_where_that_is_asked_for():
    policy = dict(max_thinking_tokens=0)
    assert len(legal(rows_of((guarded(False, **policy), [A, A], [])))) == WIDTH
    assert len(legal(rows_of((guarded(True, **policy), [A, A], [])))) == 1
    assert len(legal(rows_of((guarded(False, **policy), [USER, A], [END])))) == 257, "EOS is free, the markers are not"


def test_prompt_embeddings_are_left_alone_and_told_once():
    rows = rows_of((guarded(), None, []), (guarded(max_thinking_tokens=0), OPENED, []), (guarded(), None, []))
    assert [len(legal(rows, i, 3)) for i in range(3)] == [WIDTH, 1, WIDTH]
    assert len(rows._requests.said) == 1
    assert "embeddings" in rows._requests.said[0]


def test_prompt_ids_that_are_none_are_tokens_without_text():
    """Where a prompt holds embeddings in some places, ids beyond the vocabulary stand there."""
    for odd in (-1, -(2**40), 2**31 - 1, 2**40, 2**63 - 1):
        rows = rows_of((guarded(max_thinking_tokens=0), [odd, *OPENED, odd], []))
        assert len(legal(rows)) == 1


@pytest.mark.parametrize("limit", range(9))
def test_a_limit_that_is_too_small_raises_nothing(limit):
    output = []
    rows = rows_of((guarded(limit=limit, max_thinking_tokens=9), [USER, A], output))
    for _ in range(limit + 2):
        output.append(max(legal(rows)))
    assert len(output) == limit + 2


def test_logits_may_have_more_rows_than_the_batch_or_fewer():
    closing = guarded(max_thinking_tokens=0)
    rows = rows_of(*((closing, OPENED, []) for _ in range(3)))
    assert torch.isfinite(edited(rows, 5)).sum(1).tolist() == [1, 1, 1, WIDTH, WIDTH]
    assert torch.isfinite(edited(rows, 2)).sum(1).tolist() == [1, 1]
    assert edited(rows, 0).shape == (0, WIDTH)
    assert torch.isfinite(edited(rows, 3, width=10)).all(), "the forced token is not among the logits"
    assert edited(rows, 3, width=0).shape == (3, 0)


class Untouched:
    """Logits of which nothing but the shape may be looked at."""

    shape = (2, WIDTH)


def test_a_step_without_edits_touches_no_logits():
    answer = [END, A, A]
    allows_all = guarded(markers_in_answer="allow")
    rows = rows_of((params(), OPENED, []), (params(), OPENED, []))
    assert rows.apply(Untouched).shape == (2, WIDTH)
    rows = rows_of((params(), OPENED, []), (allows_all, OPENED, answer))
    for _ in range(5):
        answer.append(A)
        rows.update_state(None)
        assert rows.apply(Untouched) is Untouched
    output = [EOS]
    rows = rows_of((guarded(), OPENED, output))
    assert rows.apply(Untouched) is Untouched, "over"


# --- logits on another device ---


class Calls(TorchDispatchMode):
    """Writes down which of torch's operations run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name().removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


def mixed(device):
    """Forced, quiet, biased, finished, waiting and unguarded requests."""
    biased = guarded(soft_thinking_tokens=0, close_bias=3.0, max_thinking_tokens=4)
    return rows_of(
        (guarded(max_thinking_tokens=0), OPENED, []), (params(), OPENED, []), (guarded(), OPENED, [A]),
        (guarded(), OPENED, [EOS]), (biased, OPENED, [A]), (guarded(), [USER], []), (guarded(), OPENED, [-1]),
        (guarded(min_answer_tokens=3), OPENED, [END, *b"\n" * 9]), device=device,
    )  # fmt: skip


@pytest.mark.parametrize("device", [OTHER, KERNELS], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("width", [WIDTH, WIDTH + 5])
def test_a_device_gets_the_same_edits(dtype, width, device):
    """By the kernels, or, where they do not run and for logits whose type they do not know, by copies on the CPU."""
    values = torch.randn(9, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    here, there = values.clone(), values.clone()
    mixed(CPU).apply(here)
    mixed(device).apply(there)
    assert torch.equal(here, there)
    assert (here != values).any(1).tolist() == [True, False, True, False, True, True, False, True, False]
    wide = torch.zeros(width, 18, dtype=dtype).T[::2]
    wide.copy_(values)
    mixed(device).apply(wide)
    assert torch.equal(wide, here)


def test_a_device_is_asked_for_the_rows_that_need_an_edit_and_no_more():
    rows, logits = mixed(OTHER), torch.zeros(9, WIDTH)
    with Calls() as calls:
        rows.apply(logits)
    assert sorted({"index_select", "index_copy_"} & set(calls.names)) == ["index_copy_", "index_select"]
    assert len([name for name in calls.names if name not in ("_to_copy", "detach", "lift_fresh")]) == 2
    rows = rows_of((guarded(), OPENED, [EOS]), (params(), OPENED, []), device=OTHER)
    with Calls() as calls:
        rows.apply(logits)
    assert calls.names == []


def test_where_the_kernels_do_not_run_the_host_edits_copies(monkeypatch):
    """A GPU whose driver refuses them, or of another maker; a CPU is not asked."""
    asked = []
    monkeypatch.setattr(v1, "kernels_of", asked.append)
    for device in (torch.device("cuda"), torch.device("xpu"), CPU):
        rows = V1Batch(Requests(), device)
        rows.update_state(BatchUpdate(1, [], [(0, guarded(max_thinking_tokens=0), OPENED, [])], []))
        assert len(legal(rows)) == 1
    assert asked == [torch.device("cuda"), torch.device("xpu")]


def test_the_kernels_edit_what_is_forced_and_the_few_logits_of_the_rest_where_they_are():
    """No row is copied, whatever its width."""
    rows, logits = mixed(KERNELS), torch.zeros(9, WIDTH)
    with Calls() as calls:
        rows.apply(logits)
    assert not {"index_select", "clone"} & set(calls.names)
    assert torch.isfinite(logits).sum(1).tolist()[:2] == [1, WIDTH]
    with Calls() as calls:
        rows.apply(logits)
    assert not {"index_copy_", "zeros"} & set(calls.names), "the policies are there"


@pytest.mark.parametrize("device", [OTHER, KERNELS], ids=str)
def test_many_requests_on_a_device(device):
    closing = guarded(max_thinking_tokens=0)
    rows = rows_of(*((closing, OPENED, []) for _ in range(300)), device=device)
    logits = edited(rows, 300)
    assert (torch.isfinite(logits).sum(1) == 1).all()
    rows.update_state(BatchUpdate(10, list(range(299, 9, -1)), [], []))
    assert torch.isfinite(edited(rows, 10)).sum() == 10


@pytest.mark.parametrize("device", [CPU, KERNELS], ids=str)
def test_what_another_processor_banned_is_said(device):
    rows = rows_of((guarded(max_thinking_tokens=0), OPENED, []), device=device)
    edited(rows)
    assert not rows._requests.said
    logits = torch.zeros(1, WIDTH)
    logits[0, ord("\n")] = -math.inf  # the close begins with it
    rows.apply(logits)
    assert torch.isfinite(logits[0]).nonzero().flatten().tolist() == [END], "what is optional is skipped"
    assert rows._requests.said == ["banned"]
