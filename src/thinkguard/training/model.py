"""The model's side: reading it by teacher forcing, sampling from it, and leaving it as it was."""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch

from thinkguard.core.program import ThinkProgram
from thinkguard.training.places import IGNORED, MARKERS, Example, Marker, Place, Turns, places, stretches

_ANSWER_TOKENS: Final = 64  # of an example that are read
_SEED: Final = 0
Generate = Callable[[list[list[int]]], list[list[int]]]


@dataclass(frozen=True, slots=True)
class MarkerReading:
    """How the model reads one marker where the text has it: means over the marker's places."""

    probability: float  # of the whole marker, the product over its tokens
    loss: float  # its negative logarithm, in nats
    places: int


@dataclass(frozen=True, slots=True)
class ForcedExample:
    """One example that is read by teacher forcing, and what is read in it."""

    example: Example
    places: tuple[Place, ...]
    answer: tuple[int, ...]  # positions of the answer's tokens


def forced_example(program: ThinkProgram, turns: Turns, example: Example) -> ForcedExample | None:
    """Choose what is read in an example; None without a marker or a turn end. No first token: nothing predicts it."""
    found: list[Place] = []
    answer: list[int] = []
    for begin, end in stretches(program, turns, example):
        inside = [place for place in places(program, example.ids, begin, end) if place.begin > 0]
        found += inside
        closed = max((place.end for place in inside if place.marker == "end"), default=begin)
        behind = range(closed, end - (inside[-1].marker == "turn_end" if inside else 0))
        if not inside or inside[-1].marker != "start":  # thinking that breaks off has no answer
            answer += [i for i in behind if i > 0 and example.labels[i] != IGNORED]
    return ForcedExample(example, tuple(found), tuple(answer[:_ANSWER_TOKENS])) if found else None


def is_learnt(example: Example, place: Place) -> bool:
    """Whether a marker is in the loss."""
    return all(label != IGNORED for label in example.labels[place.begin : place.end])


def learnt_first(forced: Sequence[ForcedExample]) -> list[ForcedExample]:
    """Leave out the places of a marker that are masked, unless all places of that marker are."""
    learnt = {place.marker for item in forced for place in item.places if is_learnt(item.example, place)}
    return [
        replace(item, places=tuple(p for p in item.places if p.marker not in learnt or is_learnt(item.example, p)))
        for item in forced
    ]


def read_forced(model: Any, forced: Sequence[ForcedExample]) -> tuple[dict[Marker, MarkerReading], float | None]:
    """Read the markers' probability and loss, and the answers' mean loss per token. One forward per example, no cache."""
    losses: dict[Marker, list[float]] = {marker: [] for marker in MARKERS}
    answers: list[float] = []
    for item in learnt_first(forced):
        positions = sorted({i for place in item.places for i in range(place.begin, place.end)} | {*item.answer})
        if not positions:
            continue
        loss = dict(zip(positions, _losses(model, item.example.ids, positions), strict=True))
        for place in item.places:
            losses[place.marker].append(math.fsum(loss[i] for i in range(place.begin, place.end)))
        answers += [loss[i] for i in item.answer]
    readings = {
        marker: MarkerReading(_mean([math.exp(-x) for x in values]), _mean(values), len(values))
        for marker, values in losses.items()
        if values
    }
    return readings, _mean(answers) if answers else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _losses(model: Any, ids: Sequence[int], positions: Sequence[int]) -> list[float]:
    """Return the negative log probability, in nats, of the tokens at `positions`, each given all tokens before it."""
    length = positions[-1] + 1
    device = device_of(model)
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor([ids[:length]], device=device),
        "attention_mask": torch.ones((1, length), dtype=torch.long, device=device),
    }
    before = torch.tensor([i - 1 for i in positions], device=device)
    names = _forward_names(model)
    if "use_cache" in names:
        inputs["use_cache"] = False
    keeps = "logits_to_keep" in names
    if keeps:  # those of a whole example can take gigabytes
        inputs["logits_to_keep"] = before
    out = model(**inputs)
    logits = (out if isinstance(out, torch.Tensor) else out.logits)[0]
    logits = logits if keeps else logits[before]
    targets = torch.tensor([ids[i] for i in positions], device=logits.device)
    return [float(x) for x in torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none").tolist()]


def _forward_names(model: Any) -> frozenset[str]:
    """Return the arguments that the innermost model takes; its wrappers pass theirs on to it."""
    inner = getattr(model, "module", model)
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    return frozenset(inspect.signature(inner.forward).parameters)


def device_of(model: Any) -> torch.device:
    """Where a model takes its input: the device of its first parameter."""
    first = next(iter(model.parameters()), None)
    return torch.device("cpu") if first is None else first.device


def is_sharded(model: Any) -> bool:
    """Whether ranks hold parts of the model's weights (FSDP, ZeRO-3), so that each forward needs all of them."""
    by_module = any(type(module).__name__.startswith(("FSDP", "FullyShardedDataParallel")) for module in model.modules())
    return by_module or any(hasattr(p, "ds_id") or type(p).__name__ == "DTensor" for p in model.parameters())


def generate(
    model: Any, prompts: Sequence[Sequence[int]], eos: Sequence[int], max_new_tokens: int, temperature: float
) -> list[list[int]]:
    """Sample an output to every prompt in one batch with a cache; greedy at temperature 0."""
    from transformers import GenerationConfig

    width, pad = max(map(len, prompts)), eos[0] if eos else 0
    device = device_of(model)
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=list(eos) or None, pad_token_id=pad, use_cache=True, **sampling
    )
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    outputs: list[list[int]] = out[:, width:].tolist()
    return outputs


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Put a model in eval mode without gradients, with a fixed seed and a generation config of its own; restore all of it.

    In eval mode gradient checkpointing is out of action by itself. Each module gets back its own mode, for some may have
    been frozen, and each random generator its state: training goes on as if nothing had been done.
    """
    root, modes = model.training, [(module, module.training) for module in model.modules()]
    holders = [m for m in {id(m): m for m in (model, *model.modules())}.values() if _has_config(m)]
    configs = [(holder, holder.generation_config) for holder in holders]
    state, numpy_state = random.getstate(), np.random.get_state()  # the generator that trainers seed
    devices = sorted({p.device for p in model.parameters() if p.device.type not in ("cpu", "meta")}, key=str)
    kind = devices[0].type if devices else "cuda"
    with torch.random.fork_rng(devices=devices, device_type=kind), torch.no_grad():
        try:
            for holder, config in configs:
                holder.generation_config = type(config)()
            torch.default_generator.manual_seed(_SEED)
            for device in devices:
                with device:
                    torch.get_device_module(device).manual_seed(_SEED)
            model.eval()
            yield
        finally:
            for holder, config in configs:
                holder.generation_config = config
            model.train(root)  # some modules do more than set a flag
            for module, mode in modes:
                module.training = mode
            random.setstate(state)
            np.random.set_state(numpy_state)


def _has_config(module: Any) -> bool:
    return "generation_config" in vars(module)
