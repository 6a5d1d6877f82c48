"""The kernels against the C core and the specification, after every step: in place on the CPU, and as lanes in fibers.

The lanes run csrc/guard.cu itself, started by the real launcher through a stand-in for the CUDA driver. What that shows is
the matter of tests/lanes/test_meetings.py; it cannot show memory order, occupancy and speed.
"""

import os
import random
from collections import Counter
from itertools import count

import cases
import numpy as np
import pytest
from model import Model
from standin import standin

torch = pytest.importorskip("torch", reason="the device kernel needs torch")

from lanes.crowd import EditsCrowd, SequencesCrowd, SlotsCrowd  # noqa: E402

from thinkguard import ThinkPolicy, ThinkProgram, Vocabulary  # noqa: E402
from thinkguard.core._core import CONSTANTS, StateBatch, ThinkState  # noqa: E402
from thinkguard.core.names import STATE_FIELDS, ActionKind, StateFlag  # noqa: E402
from thinkguard.device.edits import DeviceEdits  # noqa: E402
from thinkguard.device.host_slots import HostSlots  # noqa: E402
from thinkguard.device.launch import HostKernels  # noqa: E402
from thinkguard.device.sequences import DeviceSequences  # noqa: E402
from thinkguard.device.slots import DeviceSlots  # noqa: E402
from thinkguard.device.steps import LOOP_SIZE  # noqa: E402
from thinkguard.device.tables import DeviceProgram  # noqa: E402
from thinkguard.errors import FormatError, PolicyError, TokenizerError  # noqa: E402

PROFILE = os.environ.get("THINKGUARD_TEST_PROFILE", "default")
EXAMPLES = {"quick": 5, "default": 20, "thorough": 400}[PROFILE]
ROWS = {"quick": 4_000, "default": 60_000, "thorough": 1_200_000}[PROFILE]  # of crowds, compared to the bit
DTYPES = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}  # rounding of the specification's bias
CAPACITY = 96
MINUS_INF = -float("inf")


@pytest.fixture(params=["in place", "lanes"])
def kernels(request):
    """The C over one sequence after the other, and by the launcher as blocks of lanes."""
    if request.param == "in place":
        return HostKernels()
    standin().reset()
    return standin().kernels()


def by_c(row, logits):
    """What C makes of a row of logits."""
    edited = logits.clone()
    dtype = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}[edited.dtype]
    StateBatch([row]).apply(edited.data_ptr(), dtype, 0, 1, edited.shape[0])
    return edited


def assert_bits(got, want, context):
    """The host's C and the kernels are one source: nothing is rounded differently."""
    same = torch.equal(got.contiguous().view(torch.uint8), want.to(got.dtype).contiguous().view(torch.uint8))
    assert same or torch.equal(got.nan_to_num(), want.to(got.dtype).nan_to_num()), context()


def assert_same(got, want, rounding, context):
    got, want = got.float().numpy(), want.numpy()
    with np.errstate(invalid="ignore"):
        near = np.abs(got - want) <= rounding * np.maximum(np.abs(want), 1)
    same = (got == want) | (np.isnan(got) & np.isnan(want)) | (near & np.isfinite(got) & np.isfinite(want))
    wrong = np.flatnonzero(~same)
    assert not len(wrong), f"{[(int(t), got[t], want[t]) for t in wrong[:8]]} {context()}"


def loop_block(model):
    """What is kept of a block's tokens by the specification: how many, the last 64, and how long each period has held."""
    tokens, size = model.history, CONSTANTS["LOOP_PERIODS"]
    ring, runs = [0] * size, [0] * size
    for at, token in enumerate(tokens):
        ring[at % size] = token
    for period in range(1, model.policy.loop_tokens // 4 + 1):
        differ = [at for at in range(len(tokens)) if at < period or tokens[at] != tokens[at - period]]
        runs[period - 1] = len(tokens) - 1 - max(differ, default=-1)
    return [len(tokens), *ring, *runs]


class Request:
    """One sequence as C walks it, and what the host would know of it."""

    def __init__(self, rng, program, bound, model):
        vocabulary, added = program.vocabulary, program.vocabulary.added
        head = [rng.randrange(vocabulary.num_tokens) for _ in range(rng.choice([0, 0, 3, 20]))]
        head += cases.before_turn(rng, program) if rng.random() < 0.5 else []
        lead = rng.choice([[added["<user>"]], [added["<user>"]], [added["<bos>"]], []])
        name = program.format.header_text if rng.random() < 0.5 else ""
        self.prompt = head + lead + (vocabulary.encode(name) if name else []) + cases.turn(rng, program, model)
        self.limit = rng.choice([-1, -1, 30])
        self.bound, self.guards_raw = bound, rng.random() < 0.8
        begin, raw = program.turn(np.array(self.prompt, np.int32))
        limit = None if self.limit < 0 else self.limit
        self.row = cases.started(bound, limit, self.prompt[begin:], raw, self.prompt)
        self.model = Model(program.format, vocabulary, bound.source, bound.eos_token_ids, limit)
        self.model.start(self.prompt[begin:], raw, self.prompt)
        self.left_alone = raw and not self.guards_raw
        self.output = []

    def loops(self):
        """Whether loops are looked for: outside of a block nothing reads what is kept for that."""
        return self.bound.source.loop_tokens and self.model.phase == "thinking"


def sample(rng, program, logits):
    """A token that can be sampled, the likeliest as often as not; now and then any."""
    values = logits.tolist()
    possible = [token for token, value in enumerate(values) if value > MINUS_INF]
    if not possible or rng.random() < 0.05:
        return cases.random_token(rng, program)
    return max(possible, key=values.__getitem__) if rng.random() < 0.5 else rng.choice(possible)


class Host:
    """A runner with a few slots, as vLLM's V2: requests come, share steps, speculate, are preempted and leave."""

    def __init__(self, seed, kernels, num_slots=2):
        self.rng = random.Random(seed)
        self.program, bound, self.model = cases.case(self.rng)
        self.bounds = [bound]
        for _ in range(3):
            try:
                self.bounds.append(self.program.bind(cases.policy(self.rng)))
            except (FormatError, PolicyError, TokenizerError):
                continue
        if kernels is None:
            self.slots = HostSlots(self.program, num_slots)
        else:
            self.slots = DeviceSlots(DeviceProgram(self.program, "cpu", kernels), num_slots)
        self.requests = [None] * num_slots
        self.tokens = torch.full((num_slots, CAPACITY), -7, dtype=torch.int32)  # what lies behind the end is never read
        self.total = torch.zeros(num_slots, dtype=torch.int32)
        self.prompt = torch.zeros(num_slots, dtype=torch.int32)

    def admit(self, slot, request):
        self.requests[slot] = request
        self.slots.stage(slot, request.bound, request.limit, request.guards_raw)
        ids = request.prompt + request.output
        self.tokens[slot] = -7
        self.tokens[slot, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
        self.total[slot], self.prompt[slot] = len(ids), len(request.prompt)

    def change(self):
        """Requests arrive in free slots; one may be preempted and come back in whatever slot is free."""
        for slot, request in enumerate(self.requests):
            if request is None or len(request.prompt + request.output) > CAPACITY - 8 or self.rng.random() < 0.05:
                self.admit(slot, Request(self.rng, self.program, self.rng.choice(self.bounds), self.model))
            elif self.rng.random() < 0.08:
                self.requests[slot] = None
                self.admit(slot, request)
        self.slots.flush()

    def step(self):
        rng, num_tokens = self.rng, self.program.vocabulary.num_tokens
        width = max(num_tokens + rng.choice([0, 0, 3, -2]), 1)
        order = [slot for slot in range(len(self.requests)) if rng.random() < 0.8]
        rng.shuffle(order)
        rows, offsets, inputs = [], [], []
        for slot in order:
            drafts = [self.draft(slot) for _ in range(rng.choice([0, 0, 1, 3]))]
            for offset, token in enumerate([-9, *drafts]):
                rows.append(slot)
                offsets.append(offset)
                inputs.append(token)
        dtype = rng.choice(list(DTYPES))
        step = rng.choice([1, 1, 2])
        memory = torch.full((len(rows), width * step + 3), 7.0, dtype=dtype)
        logits = memory[:, : width * step : step]
        for i in range(len(rows)):
            logits[i] = torch.tensor(cases.logits(rng, width))
        before, untouched = logits.clone(), memory.clone()
        wide = rng.choice([torch.int32, torch.int64])
        self.slots.apply(
            logits, torch.tensor(rows, dtype=wide), torch.tensor(offsets, dtype=torch.int32),
            torch.tensor(inputs, dtype=torch.int32), self.tokens.to(wide), self.total, self.prompt,
        )  # fmt: skip
        untouched[:, : width * step : step] = logits
        assert torch.equal(memory.nan_to_num(5.0), untouched.nan_to_num(5.0)), "written beside the rows"
        sampled = {}
        for i, (slot, offset) in enumerate(zip(rows, offsets, strict=True)):
            request = self.requests[slot]
            if offset == 0:
                row = request.row.copy()
                if request.left_alone:
                    assert self.slots.state_of(slot)["flags"] == StateFlag.INERT | StateFlag.NO_CHAT
                else:
                    assert self.slots.state_of(slot) == row.as_dict(), self.context(slot)
                    assert cases.snapshot(row) == request.model.snapshot(), self.context(slot)
                    if request.loops():
                        assert self.loop_block(slot) == loop_block(request.model), self.context(slot)
                    specified = torch.tensor(request.model.apply(before[i].float().tolist())).to(dtype).float()
                    assert_same(logits[i], specified, DTYPES[dtype], lambda slot=slot: self.context(slot))
            else:
                row.advance(inputs[i] if inputs[i] >= 0 else -1)
            want = before[i] if request.left_alone else by_c(row, before[i])
            assert_bits(logits[i], want, lambda slot=slot: self.context(slot))
            sampled.setdefault(slot, []).append((inputs[i], sample(self.rng, self.program, logits[i].float())))
        for slot, pairs in sampled.items():
            self.commit(slot, pairs)

    def loop_block(self, slot):
        """What is kept behind the committed tokens."""
        slots = self.slots if isinstance(self.slots, DeviceSlots) else self.slots._slots
        return slots.loops[slot, :LOOP_SIZE].tolist()

    def draft(self, slot):
        if self.rng.random() < 0.03:
            return -1
        return self.rng.choice([cases.random_token(self.rng, self.program), *self.requests[slot].output[-2:]])

    def commit(self, slot, pairs):
        """Accept drafts from the front, in half of the steps as many as there are, and one sampled token behind them."""
        accepted = 0
        while accepted + 1 < len(pairs) and pairs[accepted + 1][0] >= 0 and self.rng.random() < 0.7:
            accepted += 1
        request = self.requests[slot]
        for token in [*(pairs[i + 1][0] for i in range(accepted)), pairs[accepted][1]]:
            request.output.append(token)
            request.row.advance(token)
            request.model.advance(token)
            self.tokens[slot, self.total[slot]] = token
            self.total[slot] += 1

    def context(self, slot):
        request = self.requests[slot]
        return "\n".join(map(str, (
            "", self.program.format, request.bound.source, request.prompt, request.output,
            self.slots.state_of(slot), request.row.as_dict(),
        )))  # fmt: skip


@pytest.mark.parametrize("seed", range(EXAMPLES))
def test_the_kernels_agree_with_the_core(seed, kernels):
    host = Host(seed, kernels)
    for _ in range(14):
        host.change()
        host.step()


@pytest.mark.parametrize("seed", range(EXAMPLES // 2))
def test_the_host_path_agrees_with_the_core(seed):
    """What is done where the kernels cannot run: lengths and tokens fetched, edited rows sent back."""
    host = Host(1000 + seed, None)
    for _ in range(14):
        host.change()
        host.step()


@pytest.mark.parametrize("num_lanes", [3, 16, 32, 128])
def test_crowds_of_sequences_agree_with_the_host_to_the_bit(num_lanes):
    """In each number of lanes a quarter of the profile's rows; 128 is a GPU's. Edits come on top."""
    driver, rows, actions = standin(), Counter(), Counter()
    driver.reset()
    driver.use(num_lanes)
    for seed in count(1000 * num_lanes):
        for kind in (SlotsCrowd, SequencesCrowd, EditsCrowd):
            crowd = kind(seed, driver.kernels())
            for _ in range(12):
                crowd.step()
            rows[kind] += crowd.rows
            actions += crowd.actions
        if rows[SlotsCrowd] + rows[SequencesCrowd] >= ROWS // 4:
            break
    assert rows[SlotsCrowd] > rows[SequencesCrowd] > ROWS // 20
    assert set(actions) == {kind.name for kind in ActionKind}, "each of them occurs"
    assert actions["FREE"] < actions.total() / 2


@pytest.mark.parametrize("seed", range(EXAMPLES))
def test_sequences_in_any_order_agree_with_the_core(seed, kernels):
    """Beams are reordered and dropped, drafts are refused; where each row stands is found by its history alone."""
    rng = random.Random(2000 + seed)
    program, bound, model = cases.case(rng)
    limit, dtype = rng.choice([None, 30]), rng.choice(list(DTYPES))
    prompt = Request(rng, program, bound, model).prompt or [program.vocabulary.added["<user>"]]
    begin, raw = program.turn(np.array(prompt, np.int32))
    sequences = DeviceSequences(DeviceProgram(program, "cpu", kernels), bound, len(prompt), limit)
    outputs = [[] for _ in range(rng.choice([1, 2, 5]))]
    for _ in range(14):
        ids = torch.tensor([prompt + output for output in outputs], dtype=rng.choice([torch.int32, torch.int64]))
        before = torch.tensor([cases.logits(rng, program.vocabulary.num_tokens + 1) for _ in outputs]).to(dtype)
        logits = before.clone()
        sequences.apply(ids, logits)
        for i, output in enumerate(outputs):
            row = cases.started(bound, limit, prompt[begin:], raw, prompt)
            row.advance_all(np.array(output, np.int64))
            spec = Model(program.format, program.vocabulary, bound.source, bound.eos_token_ids, limit)
            spec.start(prompt[begin:], raw, prompt)
            for token in output:
                spec.advance(token)
            context = f"{program.format} {bound.source} {prompt} {output}"
            assert dict(zip(STATE_FIELDS, sequences.states[i].tolist(), strict=True)) == row.as_dict(), context
            assert cases.snapshot(row) == spec.snapshot(), context
            assert_bits(logits[i], by_c(row, before[i]), lambda context=context: context)
            if i == 0:
                specified = torch.tensor(spec.apply(before[i].float().tolist())).to(dtype).float()
                assert_same(logits[i], specified, DTYPES[dtype], lambda context=context: context)
        picked = [rng.randrange(len(outputs)) for _ in outputs] if rng.random() < 0.3 else range(len(outputs))
        refused = rng.choice([0, 0, 0, 1, 3])
        kept = max(len(outputs[0]) - refused, 0)
        outputs = [[*outputs[i][:kept], sample(rng, program, logits[i].float())] for i in picked]


def plain_program():
    """A vocabulary of single bytes, of which nearly all are plain, with text markers."""
    pieces = [bytes([b]) for b in range(256)] + [b"</", b"think", b">\n", b"<think>", b"Wait"]
    added = {"<|im_start|>": 261, "<|im_end|>": 262}
    vocabulary = Vocabulary.from_parts(pieces, added=added, special=[261, 262], eos_ids=[262])
    return ThinkProgram("think", vocabulary)


@pytest.mark.parametrize(
    ("policy", "lengths"),
    [
        ({}, (0, 1, 17, 300, 2500)),
        ({"max_thinking_tokens": 700}, (600, 740)),
        ({"max_thinking_tokens": 700, "grace_tokens": 40, "close_at": "sentence"}, (650, 720)),
        ({"min_thinking_tokens": 250, "max_extensions": 2, "extend_message": "Wait"}, (200, 600)),
        ({"loop_tokens": 16}, (150,)),
        ({"max_think_blocks": 3, "max_thinking_tokens": 1200}, (2500,)),
        ({"min_answer_tokens": 600}, (1500,)),
    ],
    ids=str,
)
def test_a_long_resumed_output_is_folded_like_token_by_token(policy, lengths, kernels):
    """Runs of plain tokens are skipped in blocks; every counter, and the text's tail, must come out the same."""
    rng = random.Random(str(policy))
    program = plain_program()
    bound = program.bind(ThinkPolicy(**policy))
    letters, others = b"abcdefghij klm.\n", [0xC3, 0xA9, ord("<"), 256, 257, 258, 259, 260]
    output = [rng.choice(letters) if rng.random() < 0.985 else rng.choice(others) for _ in range(2500)]
    prompt = [*b"hello", 261, *b"assistant\n"]
    slots = DeviceSlots(DeviceProgram(program, "cpu", kernels), 1)
    tokens = torch.tensor([prompt + output], dtype=torch.int32)
    begin, raw = program.turn(np.array(prompt, np.int32))
    assert not raw
    assert begin == len(prompt) - 1
    for length in lengths:
        row = ThinkState(bound)
        row.start(np.array(prompt[begin:], np.int32), raw, -1)
        row.advance_all(np.array(output[:length], np.int64))
        slots.stage(0, bound)
        slots.flush()
        logits = torch.zeros(1, 263)
        where = torch.zeros(1, dtype=torch.int32)
        total = torch.tensor([len(prompt) + length], dtype=torch.int32)
        slots.apply(logits, where, where, where, tokens, total, torch.tensor([len(prompt)], dtype=torch.int32))
        assert slots.state_of(0) == row.as_dict()
        assert torch.equal(logits[0], by_c(row, torch.zeros(263)))


def test_a_long_prompt_is_scanned_back_to_the_turn(tokenizer_dirs):
    """By the last boundary, and, where boundaries are headers, by the automaton over them."""
    programs = {name: ThinkProgram(None, str(tokenizer_dirs[name])) for name in ("qwen3", "gpt-oss")}
    standin().reset()
    for name, head, behind in (
        ("qwen3", "<|im_start|>user\n<think> I typed " + "word " * 700 + "<|im_end|>\n", "<|im_start|>assistant\n<think>\n"),
        ("gpt-oss", "<|start|>user<|message|>" + "<|channel|>analysis " * 90 + "<|end|>", "<|start|>assistant"),
        ("gpt-oss", "<|start|>user<|message|>hi<|end|>", "<|start|>assistant<|channel|>analysis<|message|>so"),
        ("qwen3", "a completion without a chat, " * 60, "and <think>"),
    ):  # fmt: skip
        program = programs[name]
        ids = program.vocabulary.encode(head + behind)
        bound = program.bind(ThinkPolicy())
        row = program.start_bound(np.array(ids, np.int32), bound)
        wanted = by_c(row, torch.zeros(program.vocabulary.num_tokens))
        for kernels in (HostKernels(), standin().kernels()):
            slots = DeviceSlots(DeviceProgram(program, "cpu", kernels), 1)
            slots.stage(0, bound)
            slots.flush()
            where, length = torch.zeros(1, dtype=torch.int32), torch.tensor([len(ids)], dtype=torch.int32)
            logits = torch.zeros(1, program.vocabulary.num_tokens)
            slots.apply(logits, where, where, where, torch.tensor([ids], dtype=torch.int32), length, length)
            assert slots.state_of(0) == row.as_dict(), name
            assert torch.equal(logits[0], wanted)


@pytest.mark.parametrize("seed", range(6))
def test_edits_that_the_host_decided_on(seed, kernels):
    """V1's rows stay on the host; what they need is carried out where the logits are, in one launch."""
    rng = random.Random(100 + seed)
    host = Host(seed, kernels, num_slots=1)
    edits, policies = DeviceEdits(DeviceProgram(host.program, "cpu", kernels)), []
    for _ in range(4):
        requests = [Request(rng, host.program, rng.choice(host.bounds), host.model) for _ in range(5)]
        for request in requests:
            for _ in range(rng.randrange(12)):
                request.row.advance(cases.random_token(rng, host.program))
            if request.bound not in policies:
                place = rng.randrange(len(policies) + 1)  # one that is gone makes room for another
                policies[place : place + 1] = [request.bound]
        requests = [request for request in requests if request.bound in policies]
        logits = torch.tensor([cases.logits(rng, host.program.vocabulary.num_tokens + 2) for _ in requests])
        wanted = torch.stack([by_c(request.row, row) for request, row in zip(requests, logits, strict=True)])
        actions = []
        for i, request in enumerate(requests):
            action = request.row.decide().as_dict()
            bias = int(np.float32(action.pop("bias")).view(np.int32))
            actions.append([i, policies.index(request.bound), *action.values(), bias])
        edits.apply(logits, np.array(actions, np.int32), policies)
        for i in range(len(requests)):
            assert_bits(logits[i], wanted[i], requests[i].row.decide)


def test_a_policy_of_any_length_is_taken(kernels):
    """Room is made for it, and what the other slots had stays."""
    program = plain_program()
    short, long = (program.bind(ThinkPolicy(max_thinking_tokens=0, close_message="x" * num)) for num in (3, 4000))
    slots = DeviceSlots(DeviceProgram(program, "cpu", kernels), 2)
    prompt = [261, *b"assistant\n", 259, *b"\n"]
    tokens = torch.tensor([prompt, prompt], dtype=torch.int32)
    where, length = torch.arange(2, dtype=torch.int32), torch.full((2,), len(prompt), dtype=torch.int32)
    for slot, bound in ((0, short), (1, long)):
        slots.stage(slot, bound)
        slots.flush()
    logits = torch.zeros(2, 263)
    slots.apply(logits, where, torch.zeros_like(where), where, tokens, length, length)
    assert [logits[i].argmax().item() for i in (0, 1)] == [ord("x")] * 2
    assert slots.policies.shape[1] >= 4000


@pytest.mark.parametrize(
    "wrong",
    [
        {"slots": 7}, {"slots": -1}, {"offsets": 1}, {"total": 10**6}, {"total": -1}, {"prompt": 10**6}, {"prompt": -3},
    ],
    ids=str,
)  # fmt: skip
def test_indices_out_of_range_are_left_alone(kernels, wrong):
    program = plain_program()
    slots = DeviceSlots(DeviceProgram(program, "cpu", kernels), 1)
    slots.stage(0, program.bind(ThinkPolicy(max_thinking_tokens=0)))
    slots.flush()
    tokens = torch.tensor([[261, 10]], dtype=torch.int32)
    given = {"slots": 0, "offsets": 0, "inputs": 0, "total": 2, "prompt": 2} | wrong
    one = {name: torch.tensor([value], dtype=torch.int32) for name, value in given.items()}
    logits = torch.zeros(1, 263)
    slots.apply(logits, one["slots"], one["offsets"], one["inputs"], tokens, one["total"], one["prompt"])
    assert (logits == 0).all()


class Recorder:
    """Kernels that only note how they are launched."""

    def __init__(self):
        self.launches = []

    def bind(self, name, step):
        return lambda num_blocks, stream: self.launches.append((name, num_blocks))


def test_only_one_launch_and_no_word_to_the_host():
    """On meta tensors, whose values do not exist, anything that waits for the device raises."""
    program, kernels = plain_program(), Recorder()
    slots = DeviceSlots(DeviceProgram(program, "meta", kernels), 4)
    for slot in range(3):
        slots.stage(slot, program.bind(ThinkPolicy(max_thinking_tokens=slot)))
    slots.stage(3, None)
    slots.flush()
    assert not kernels.launches
    where = torch.zeros(5, dtype=torch.int32, device="meta")
    tokens = torch.zeros(4, 50, dtype=torch.int32, device="meta")
    slots.apply(torch.zeros(5, 263, device="meta"), where, where, where, tokens, where, where)
    assert kernels.launches == [("guard_slots", 5)]
    slots.apply(torch.zeros(0, 263, device="meta"), where, where, where, tokens, where, where)
    assert len(kernels.launches) == 1
