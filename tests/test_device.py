"""The Triton kernel, under Triton's interpreter, against the C core and the specification, after every step.

What the interpreter cannot show, that the kernel compiles for a GPU, is shown by compiling it for some.
"""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import cases
import interpreted  # noqa: F401
import numpy as np
import pytest
from model import Model

torch = pytest.importorskip("torch", reason="the device kernel needs torch")

from thinkguard import ThinkPolicy, ThinkProgram, Vocabulary  # noqa: E402
from thinkguard.core._core import StateBatch, ThinkState  # noqa: E402
from thinkguard.device import kernel  # noqa: E402
from thinkguard.device import layout as layout  # noqa: E402
from thinkguard.device import tables as device_tables  # noqa: E402
from thinkguard.device.edits import DeviceEdits  # noqa: E402
from thinkguard.device.slots import DeviceSlots  # noqa: E402
from thinkguard.device.tables import ROW_FIELDS, DeviceProgram  # noqa: E402
from thinkguard.errors import FormatError, InputError, PolicyError, TokenizerError  # noqa: E402

EXAMPLES = {"quick": 5, "default": 20, "thorough": 400}[os.environ.get("THINKGUARD_TEST_PROFILE", "default")]
DTYPES = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}  # rounding of the bias
CAPACITY = 96
MINUS_INF = -float("inf")


def state_of(slots, slot):
    return dict(zip(ROW_FIELDS, slots.states[slot].tolist(), strict=False))


def by_c(row, logits):
    """What C makes of a row of logits, as float32."""
    edited = logits.clone()
    dtype = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}[edited.dtype]
    StateBatch([row]).apply(edited.data_ptr(), dtype, 0, 1, edited.shape[0])
    return edited.float()


def assert_same(got, want, rounding, context):
    got, want = got.float().numpy(), want.numpy()
    with np.errstate(invalid="ignore"):
        near = np.abs(got - want) <= rounding * np.maximum(np.abs(want), 1)
    same = (got == want) | (np.isnan(got) & np.isnan(want)) | (near & np.isfinite(got) & np.isfinite(want))
    wrong = np.flatnonzero(~same)
    assert not len(wrong), f"{[(int(t), got[t], want[t]) for t in wrong[:8]]} {context()}"


class Request:
    """One sequence as C walks it, and what the host would know of it."""

    def __init__(self, rng, program, bound, model):
        vocabulary, added = program.vocabulary, program.vocabulary.added
        head = [rng.randrange(vocabulary.num_tokens) for _ in range(rng.choice([0, 0, 3, 20]))]
        lead = rng.choice([[added["<user>"]], [added["<user>"]], [added["<bos>"]], []])
        name = program.format.header_text if rng.random() < 0.5 else ""
        self.prompt = head + lead + (vocabulary.encode(name) if name else []) + cases.turn(rng, program, model)
        self.limit = rng.choice([-1, -1, 30])
        self.bound, self.guards_raw = bound, rng.random() < 0.8
        begin, raw = program.turn(np.array(self.prompt, np.int32))
        self.row = ThinkState(bound)
        self.row.start(np.array(self.prompt[begin:], np.int32), raw, self.limit)
        limit = None if self.limit < 0 else self.limit
        self.model = Model(program.format, vocabulary, bound.source, bound.eos_token_ids, limit)
        self.model.start(self.prompt[begin:], raw)
        self.left_alone = raw and not self.guards_raw
        self.output = []


class Host:
    """A runner with a few slots, as vLLM's V2: requests come, share steps, speculate, are preempted and leave."""

    def __init__(self, seed, num_slots=2):
        self.rng = random.Random(seed)
        self.program, bound, self.model = cases.case(self.rng)
        self.bounds = [bound]
        for _ in range(3):
            try:
                self.bounds.append(self.program.bind(cases.policy(self.rng)))
            except (FormatError, PolicyError, TokenizerError):
                continue
        self.device = DeviceProgram(self.program, "cpu")
        self.slots = DeviceSlots(self.device, num_slots)
        self.requests = [None] * num_slots
        self.tokens = torch.full((num_slots, CAPACITY), -7, dtype=torch.int32)  # what lies behind the end is never read
        self.total = torch.zeros(num_slots, dtype=torch.int32)
        self.prompt = torch.zeros(num_slots, dtype=torch.int32)

    def admit(self, slot, request):
        self.requests[slot] = request
        self.slots.stage(slot, self.device.pack_policy(request.bound, request.guards_raw), request.limit)
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
        self.slots.apply(
            logits, torch.tensor(rows), torch.tensor(offsets, dtype=torch.int32), torch.tensor(inputs, dtype=torch.int32),
            self.tokens, self.total, self.prompt,
        )  # fmt: skip
        untouched[:, : width * step : step] = logits
        assert torch.equal(memory.nan_to_num(5.0), untouched.nan_to_num(5.0)), "written beside the rows"
        sampled = {}
        for i, (slot, offset) in enumerate(zip(rows, offsets, strict=True)):
            request = self.requests[slot]
            if offset == 0:
                row = request.row.copy()
                if request.left_alone:
                    assert state_of(self.slots, slot)["flags"] == 1
                else:
                    assert state_of(self.slots, slot) == row.as_dict(), self.context(slot)
                    assert cases.snapshot(row) == request.model.snapshot(), self.context(slot)
                    specified = torch.tensor(request.model.apply(before[i].float().tolist())).to(dtype).float()
                    assert_same(logits[i], specified, DTYPES[dtype], lambda slot=slot: self.context(slot))
            else:
                row.advance(inputs[i] if inputs[i] >= 0 else -1)
            want = before[i].float() if request.left_alone else by_c(row, before[i])
            assert_same(logits[i], want, DTYPES[dtype], lambda slot=slot: self.context(slot))
            sampled.setdefault(slot, []).append((inputs[i], self.sample(logits[i].float())))
        for slot, pairs in sampled.items():
            self.commit(slot, pairs)

    def draft(self, slot):
        if self.rng.random() < 0.03:
            return -1
        return self.rng.choice([cases.random_token(self.rng, self.program), *self.requests[slot].output[-2:]])

    def sample(self, logits):
        possible = [t for t, value in enumerate(logits.tolist()) if value > MINUS_INF]
        if not possible or self.rng.random() < 0.05:
            return cases.random_token(self.rng, self.program)
        return max(possible, key=logits.tolist().__getitem__) if self.rng.random() < 0.5 else self.rng.choice(possible)

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
            "", self.program.format, request.bound.source, request.prompt, request.output, state_of(self.slots, slot),
            request.row.as_dict(),
        )))  # fmt: skip


@pytest.mark.parametrize("seed", range(EXAMPLES))
def test_the_kernel_agrees_with_the_core(seed):
    host = Host(seed)
    for _ in range(14):
        host.change()
        host.step()


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
def test_a_long_resumed_output_is_folded_like_token_by_token(policy, lengths):
    """Runs of plain tokens are skipped in blocks; every counter, and the text's tail, must come out the same."""
    rng = random.Random(str(policy))
    program = plain_program()
    bound = program.bind(ThinkPolicy(**policy))
    letters, others = b"abcdefghij klm.\n", [0xC3, 0xA9, ord("<"), 256, 257, 258, 259, 260]
    output = [rng.choice(letters) if rng.random() < 0.985 else rng.choice(others) for _ in range(2500)]
    prompt = [*b"hello", 261, *b"assistant\n"]
    tables = DeviceProgram(program, "cpu")
    slots = DeviceSlots(tables, 1)
    tokens = torch.tensor([prompt + output], dtype=torch.int32)
    begin, raw = program.turn(np.array(prompt, np.int32))
    assert not raw
    assert begin == len(prompt) - 1
    for length in lengths:
        row = ThinkState(bound)
        row.start(np.array(prompt[begin:], np.int32), raw, -1)
        row.advance_all(np.array(output[:length], np.int64))
        slots.stage(0, tables.pack_policy(bound))
        slots.flush()
        logits = torch.zeros(1, 263)
        where = torch.zeros(1, dtype=torch.int32)
        total = torch.tensor([len(prompt) + length], dtype=torch.int32)
        slots.apply(logits, where, where, where, tokens, total, torch.tensor([len(prompt)], dtype=torch.int32))
        assert state_of(slots, 0) == row.as_dict()
        assert torch.equal(logits[0], by_c(row, torch.zeros(263)))


def test_a_long_prompt_is_scanned_back_to_the_turn(tokenizer_dirs):
    """By the last boundary, and, where boundaries are headers, by the automaton over them."""
    for name, head, behind in (
        ("qwen3", "<|im_start|>user\n<think> I typed " + "word " * 700 + "<|im_end|>\n", "<|im_start|>assistant\n<think>\n"),
        ("gpt-oss", "<|start|>user<|message|>" + "<|channel|>analysis " * 90 + "<|end|>", "<|start|>assistant"),
        ("gpt-oss", "<|start|>user<|message|>hi<|end|>", "<|start|>assistant<|channel|>analysis<|message|>so"),
        ("qwen3", "a completion without a chat, " * 60, "and <think>"),
    ):  # fmt: skip
        program = ThinkProgram(None, str(tokenizer_dirs[name]))
        ids = program.vocabulary.encode(head + behind)
        bound = program.bind(ThinkPolicy())
        row = program.start_bound(np.array(ids, np.int32), bound)
        tables = DeviceProgram(program, "cpu")
        slots = DeviceSlots(tables, 1)
        slots.stage(0, tables.pack_policy(bound))
        slots.flush()
        where, length = torch.zeros(1, dtype=torch.int32), torch.tensor([len(ids)], dtype=torch.int32)
        logits = torch.zeros(1, program.vocabulary.num_tokens)
        slots.apply(logits, where, where, where, torch.tensor([ids], dtype=torch.int32), length, length)
        assert state_of(slots, 0) == row.as_dict(), name
        assert torch.equal(logits[0], by_c(row, torch.zeros(program.vocabulary.num_tokens)))


@pytest.mark.parametrize("seed", range(6))
def test_edits_that_the_host_decided_on(seed):
    """V1's rows stay on the host; what they need is carried out where the logits are, in one launch."""
    rng = random.Random(100 + seed)
    host = Host(seed, num_slots=1)
    tables = DeviceProgram(host.program, "cpu")
    edits, policies = DeviceEdits(tables), []
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
            assert_same(logits[i], wanted[i], 1e-6, requests[i].row.decide)


def test_a_policy_too_long_for_its_table_is_refused():
    program = plain_program()
    bound = program.bind(ThinkPolicy(close_message="x" * 2400))
    with pytest.raises(InputError, match=r"close_message and extend_message take 2\d+ tokens .*shorten"):
        DeviceProgram(program, "cpu").pack_policy(bound)


def test_constants_are_those_of_the_header():
    header = (Path(__file__).resolve().parents[1] / "csrc" / "thinkguard.h").read_text(encoding="utf-8")
    values = {name: eval(value) for name, value in re.findall(r"\bTG_(\w+) = ([-\d <]+)", header)}
    ours = {name: value.value for name, value in vars(layout).items() if name.isupper() and hasattr(value, "value")}
    of_nodes = {"START_BYTES", "MARKS", "REACH", "PLAN", "FINISH", "OPEN"}
    own = {"MANY", "SEARCH", "MARKED", "STEP", "INFO", "TAIL", "TURNS_STEP", *of_nodes}
    assert len(values) > 70
    assert {name: values.get(name) for name in ours.keys() - own} == {name: ours[name] for name in ours.keys() - own}

    def fields(struct):
        body = re.search(rf"typedef struct \{{([^}}]*)\}} {struct};", header)[1]
        return re.findall(r"\b(\w+)[,;]", re.sub(r"/\*.*?\*/", "", body, flags=re.S))

    assert list(ROW_FIELDS) == fields("tg_state")
    assert list(layout.Action._fields) == fields("tg_action")
    assert {name: ours[name] for name in of_nodes} == {name: fields("tg_node").index(name.lower()) for name in of_nodes}


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from thinkguard import ThinkProgram, Vocabulary
from thinkguard.device import kernel as kernels, tables as device
kernel = kernels.guard_slots
vocabulary = Vocabulary.from_parts([bytes([b]) for b in range(256)], added={"<eos>": 256}, eos_ids=[256])
layout = device.DeviceProgram(ThinkProgram("think", vocabulary), "cpu").layout
constants = dict(STATE_SIZE=device.STATE_SIZE, LOOP_SIZE=device.LOOP_SIZE, L=layout, BLOCK=device.BLOCK)
types = {name: "*i32" if name.endswith("_ptr") else "i32" for name in kernel.arg_names}
types |= {"logits_ptr": "*fp32", "slots_ptr": "*i64", "logits_stride": "i64", "tokens_stride": "i64"}
types |= {name: "constexpr" for name in constants}
options = {"num_warps": device.NUM_WARPS}
for target in (GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32)):
    compiled = triton.compile(ASTSource(kernel, types, constexprs=constants), target=target, options=options)
    print(target.arch, len(compiled.asm["cubin"]))
"""


def test_the_kernel_compiles_for_gpus():
    """Ahead of time, without one: Triton brings its own assembler."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    sizes = dict(line.split() for line in done.stdout.splitlines())
    assert set(sizes) == {"80", "90"}
    assert all(10_000 < int(size) < 1_000_000 for size in sizes.values()), sizes


def test_only_one_launch_and_no_word_to_the_host(monkeypatch):
    """On meta tensors, whose values do not exist, anything that waits for the device raises."""
    launches = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *arguments, **options: launches.append((grid, options["num_warps"]))

    monkeypatch.setattr(kernel, "guard_slots", Kernel())
    program = plain_program()
    tables = DeviceProgram(program, "meta")
    slots = DeviceSlots(tables, 4)
    for slot in range(3):
        slots.stage(slot, tables.pack_policy(program.bind(ThinkPolicy(max_thinking_tokens=slot))))
    slots.stage(3, None)
    slots.flush()
    assert not launches
    where = torch.zeros(5, dtype=torch.int32, device="meta")
    slots.apply(torch.zeros(5, 263, device="meta"), where, where, where, torch.zeros(4, 50, device="meta"), where, where)
    assert launches == [((5,), device_tables.NUM_WARPS)]
    slots.apply(torch.zeros(0, 263, device="meta"), where, where, where, torch.zeros(4, 50, device="meta"), where, where)
    assert len(launches) == 1
