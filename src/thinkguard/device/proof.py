"""Whether the kernels do on a device what the C does on the host: scripted sequences, before the first request.

Every kind of action, all types of logits, ids of both widths, drafts, loops, an output that is resumed, recycled slots and
reordered rows; states, loop blocks and logits have to be the same to the bit. Some tens of milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from thinkguard.core.program import ThinkProgram
from thinkguard.device.edits import DeviceEdits
from thinkguard.device.launch import REPORT, HostKernels, Kernels, UnavailableError
from thinkguard.device.sequences import DeviceSequences
from thinkguard.device.slots import DeviceSlots
from thinkguard.device.tables import DTYPES, DeviceProgram
from thinkguard.formats import ThinkFormat
from thinkguard.policy import ThinkPolicy
from thinkguard.vocabulary import Vocabulary

_WORDS = [b"</", b"think", b">\n", b"<think>", b"Wait", b" so", "é".encode(), "🧮".encode()[:2], "🧮".encode()[2:]]
_WORDS += [b"assistant", b"analysis", b"final", b"commentary"]
_HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>")
_POLICIES = (
    ThinkPolicy(loop_tokens=16, opening="allow", markers_in_answer="allow"),
    ThinkPolicy(max_thinking_tokens=30, soft_thinking_tokens=2, close_bias=3.5, grace_tokens=20, close_at="sentence"),
    ThinkPolicy(min_thinking_tokens=12, max_extensions=2, extend_message="Wait", min_answer_tokens=6, on_eos="ban"),
    ThinkPolicy(max_thinking_tokens=9, close_message="Stop.", answer_prefix="So:"),
    ThinkPolicy(max_answer_tokens=9, min_answer_tokens=9, reserve_answer_tokens=4, max_think_blocks=2),
    ThinkPolicy(opening="forbid"),
)
_TEXTS = (
    "<think>\nAnd so it went.</think>\n\nThe end.<eos>",
    "<think>\nab ab ab ab ab ab ab ab ab ab ab",
    "<think>\nSo.</think>\n\n\n \n \n \n \n \n \n",
    "<think>\nA🧮🧮🧮🧮🧮🧮</think>\n\n🧮🧮🧮🧮🧮🧮🧮🧮",
    "None here. <think>\nAfter all.</think>\n\nWell.<eos>",
)
_PAIRED = (
    "<thin>\nab ab ab ab ab</thin>\n\nThe end.<eos>",
    "<think>\nSo.</thin> And</think>\n\nWell.<thin>\nA🧮🧮🧮🧮🧮🧮</think></thin>\n\n🧮🧮🧮🧮🧮",
    "None here. <thin>\nAfter all.</thin>\n\nWell.</thin>\n\n\n \n <think>\nab ab ab ab",
)
_MESSAGES = (
    "<|channel|>analysis<|message|>So.<|end|><|start|>assistant<|channel|>final<|message|>The end.<|return|>",
    "<|channel|>commentary to=f<|message|>{}<|call|>",
    "<|channel|>analysis<|message|>A🧮🧮🧮🧮🧮<|end|><|start|>assistant<|channel|>final<|message|>🧮🧮🧮🧮🧮",
    "<|channel|>analysis<|message|>ab ab ab ab ab ab ab ab ab ab ab",
    "<|channel|>commentary<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=f<|message|>{}<|call|>",
)
_SLOTS, _CAPACITY, _STEPS, _RESUMED = 8, 5_600, 24, 5_000


@dataclass
class Script:
    """One program, and what a model would write."""

    program: ThinkProgram
    prompt: list[int]
    texts: list[list[int]]
    tokens: np.ndarray  # likely ones, drawn from


def _grammar() -> ThinkFormat:
    """The first family with a message grammar whose control tokens are those that the script has."""
    known = map(ThinkFormat.from_name, ThinkFormat.names())
    return next(format for format in known if format.channel and {*_HARMONY} >= {*format.controls})


def scripts() -> Iterator[Script]:
    """Markers as tokens, as text beside tokens that double bytes, starts with ends of their own, and a message grammar."""
    asked = replace(ThinkFormat.from_name("think"), on_texts=("assistant",))  # in every prompt, which is read for it
    starts, ends = (*asked.starts, "<thin>"), (*asked.ends, "</thin>")
    paired = replace(asked, starts=starts, ends=ends, paired=True, on_texts=())
    pieces = [bytes([byte]) for byte in range(256)] + _WORDS
    for format, texts, controls, doubles, eos, turn in (
        ("think", _TEXTS, ("<|im_start|>", "<eos>", "<think>", "</think>"), [], "<eos>", "<|im_start|>assistant\n"),
        (asked, _TEXTS, ("<|im_start|>", "<eos>"), [b"<", b"a"], "<eos>", "<|im_start|>assistant\n"),
        (paired, _PAIRED, ("<|im_start|>", "<eos>", "<thin>"), [], "<eos>", "<|im_start|>assistant\n<thin>"),
        (_grammar(), _MESSAGES, _HARMONY, [], "<|return|>", "<|start|>user<|message|>hi<|end|><|start|>assistant"),
    ):
        spelled = pieces + doubles
        added = {name: len(spelled) + i for i, name in enumerate(controls)}
        vocabulary = Vocabulary.from_parts(
            spelled, added=added, special=[added[name] for name in controls if "think" not in name],
            byte_ids=list(range(len(pieces), len(spelled))), eos_ids=[added[eos]],
        )  # fmt: skip
        program, encode = ThinkProgram(format, vocabulary), vocabulary.encode
        letters = encode("the way. And so on!\n")
        marks = [*added.values(), *encode("</think>\n<think>\n analysis final commentary to=f")]
        yield Script(
            program, encode(turn), list(map(encode, texts)), np.array([*letters * 4, *range(256, len(spelled)), *marks])
        )


def prove(kernels: Kernels, device: torch.device) -> None:
    """Hold the kernels on a device against the host. UnavailableError says where an answer differs."""
    for number, script in enumerate(scripts()):
        programs = [DeviceProgram(script.program, where, how) for where, how in ((device, kernels), ("cpu", HostKernels()))]
        for name, pair in (("slots", _slots), ("sequences", _sequences), ("edits", _edits)):
            for step, (theirs, ours) in enumerate(pair(script, *programs)):
                if not _same(theirs, ours):
                    raise UnavailableError(
                        f"their answers differ from the host's (script {number}, {name}, step {step}); {REPORT}"
                    )


def _same(theirs: list[torch.Tensor], ours: list[torch.Tensor]) -> bool:
    """Bit for bit, NaN included."""
    bits = ([tensor.cpu().contiguous().view(torch.uint8) for tensor in side] for side in (theirs, ours))
    return all(torch.equal(one, two) for one, two in zip(*bits, strict=True))


Pair = tuple[list[torch.Tensor], list[torch.Tensor]]


def _logits(rng: np.random.Generator, num_rows: int, width: int, step: int) -> torch.Tensor:
    """Rows of every type in turn, some logits -inf, a row all -inf but one, in every other step with a stride."""
    values = rng.standard_normal((num_rows, width)) * 4
    values[rng.random(values.shape) < 0.1] = -np.inf
    values[0, 1:] = -np.inf if step % 5 == 4 else values[0, 1:]
    apart = 1 + step % 2
    logits = torch.zeros(num_rows, width * apart, dtype=list(DTYPES)[step % len(DTYPES)])
    logits[:, ::apart] = torch.from_numpy(values)
    return logits[:, ::apart]


def _on(device: torch.device, logits: torch.Tensor) -> torch.Tensor:
    """A copy with the same strides."""
    base = torch.zeros(logits.shape[0], logits.stride(0), dtype=logits.dtype, device=device)
    copy = base[:, :: logits.stride(1)]
    copy.copy_(logits)
    return copy


def _slots(script: Script, theirs: DeviceProgram, ours: DeviceProgram) -> Iterator[Pair]:
    """Each slot's model writes one of the texts, as far as it may; its drafts are the text's next tokens, or anything."""
    rng, width = np.random.default_rng(1), script.program.vocabulary.num_tokens + 3
    sides = [DeviceSlots(program, _SLOTS) for program in (theirs, ours)]
    bounds = [script.program.bind(policy) for policy in _POLICIES]
    tokens = np.tile(script.prompt + [-1] * (_CAPACITY - len(script.prompt)), (_SLOTS, 1))
    total, prompt = np.full(_SLOTS, len(script.prompt)), np.full(_SLOTS, len(script.prompt))
    wishes = [list[int]()] * _SLOTS
    plain = script.program.vocabulary.encode("and so on it went, ")
    for step in range(_STEPS):
        for slot in range(_SLOTS) if step == 0 else [step // 2 % _SLOTS] * (step % 2):  # recycled
            wishes[slot] = script.texts[(slot + step) % len(script.texts)]
            total[slot] = len(script.prompt)
            if slot == 5:  # an output that is resumed, its thinking long and plain
                resumed = [*wishes[slot][:3], *plain * (_RESUMED // len(plain))]
                tokens[slot, total[slot] : total[slot] + len(resumed)] = resumed
                total[slot] += len(resumed)
            bound = None if slot == 7 and step else bounds[(slot + step) % len(bounds)]
            for side in sides:
                side.stage(slot, bound, limit=60 if slot % 3 == 1 else -1, guards_raw=slot % 2 == 0)
        order = rng.permutation(_SLOTS)
        rows = [(slot, offset) for slot in order for offset in range(1 + (slot + step) % 4)]
        drafts = [wishes[slot][offset - 1] if step % 5 else rng.choice(script.tokens) for slot, offset in rows]
        wide = torch.int64 if step % 2 else torch.int32
        arguments = [torch.tensor([row[i] for row in rows], dtype=wide) for i in (0, 1)]
        arguments += [torch.from_numpy(np.array(part)).to(wide) for part in (drafts, tokens, total, prompt)]
        logits = _logits(rng, len(rows), width, step)
        for index, (slot, offset) in enumerate(rows):
            logits[index, wishes[slot][offset]] += 30
        found = []
        for side in sides:
            side.flush()
            edited = _on(side.program.device, logits)
            side.apply(edited, *(argument.to(side.program.device) for argument in arguments))
            found.append([edited, side.slots, side.loops])
        yield found[0], found[1]
        chosen = found[1][0].float().nan_to_num(-torch.inf).argmax(1).tolist()
        kept = False  # whether the drafts up to a row were sampled
        for index, (slot, offset) in enumerate(rows):
            kept = offset == 0 or (kept and chosen[index - 1] == drafts[index])
            if kept and total[slot] < _CAPACITY:
                tokens[slot, total[slot]] = chosen[index]
                total[slot] += 1
                if chosen[index] == wishes[slot][0]:
                    wishes[slot] = [*wishes[slot][1:], wishes[slot][0]]


def _sequences(script: Script, theirs: DeviceProgram, ours: DeviceProgram) -> Iterator[Pair]:
    rng, width = np.random.default_rng(2), script.program.vocabulary.num_tokens + 3
    for number, policy in enumerate(_POLICIES):
        bound = script.program.bind(policy)
        sides = [DeviceSequences(program, bound, max_tokens=40 if number % 2 else None) for program in (theirs, ours)]
        rows = np.array([script.prompt] * 4)
        for step in range(_STEPS // 2):
            rows = rows[rng.permutation(len(rows))]
            ids = torch.from_numpy(rows).to(torch.int64 if step % 2 else torch.int32)
            logits = _logits(rng, len(rows), width, step)
            found = []
            for side in sides:
                edited = _on(side.device, logits)
                side.apply(ids.to(side.device), edited)
                found.append([edited, side.states])
            yield found[0], found[1]
            rows = np.concatenate([rows, rng.choice(script.tokens, (len(rows), 1))], 1)


def _edits(script: Script, theirs: DeviceProgram, ours: DeviceProgram) -> Iterator[Pair]:
    rng, width = np.random.default_rng(3), script.program.vocabulary.num_tokens + 3
    bounds = [script.program.bind(policy) for policy in _POLICIES]
    sides = [DeviceEdits(program) for program in (theirs, ours)]
    states = [script.program.start_bound(script.prompt, bound) for bound in bounds]
    for step in range(_STEPS // 2):
        for state in states:
            state.advance(int(rng.choice(script.tokens)))
        edits = np.array([[row, row, *_fields(state)] for row, state in enumerate(states)], np.int32)
        logits = _logits(rng, len(states), width, step)
        found = []
        for side in sides:
            edited = _on(side.program.device, logits)
            side.apply(edited, edits, list(bounds))
            found.append([edited])
        yield found[0], found[1]


def _fields(state: object) -> list[int]:
    """A state's next action as a tg_action, its bias as bits."""
    *whole, bias = state.decide().as_dict().values()  # type: ignore[attr-defined]
    return [*whole, int(np.float32(bias).view(np.int32))]
