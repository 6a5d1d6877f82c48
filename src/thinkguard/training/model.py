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
from thinkguard.training.places import IGNORED, MARKERS, Marker, Place, Row, Turns, places, stretches

_ANSWER_TOKENS: Final = 64  # of a row that are read
_SEED: Final = 0
Generate = Callable[[list[list[int]]], list[list[int]]]


@dataclass(frozen=True, slots=True)
class MarkerReading:
    """What the model makes of one marker where the text has it; means over its places."""

    probability: float  # of the whole marker, the product over its tokens
    loss: float  # its negative logarithm, in nats
    places: int


@dataclass(frozen=True, slots=True)
class Forced:
    """One row to read, and what is read in it."""

    row: Row
    places: tuple[Place, ...]
    answer: tuple[int, ...]  # tokens of the answer


def forced_of(program: ThinkProgram, turns: Turns, row: Row) -> Forced | None:
    """Choose what is read in a row; None if it shows neither a marker nor a turn end. A row's first token has no past."""
    found: list[Place] = []
    answer: list[int] = []
    for begin, end in stretches(program, turns, row):
        inside = [place for place in places(program, row.ids, begin, end) if place.begin > 0]
        found += inside
        closed = max((place.end for place in inside if place.marker == "end"), default=begin)
        behind = range(closed, end - (inside[-1].marker == "turn_end" if inside else 0))
        if not inside or inside[-1].marker != "start":  # thinking that breaks off has no answer
            answer += [i for i in behind if i > 0 and row.labels[i] != IGNORED]
    return Forced(row, tuple(found), tuple(answer[:_ANSWER_TOKENS])) if found else None


def is_learnt(row: Row, place: Place) -> bool:
    """Whether a marker is in the loss."""
    return all(label != IGNORED for label in row.labels[place.begin : place.end])


def learnt_first(forced: Sequence[Forced]) -> list[Forced]:
    """Leave out the places of a marker that are masked, unless all of them are."""
    learnt = {place.marker for one in forced for place in one.places if is_learnt(one.row, place)}
    return [
        replace(one, places=tuple(p for p in one.places if p.marker not in learnt or is_learnt(one.row, p)))
        for one in forced
    ]


def read_forced(model: Any, forced: Sequence[Forced]) -> tuple[dict[Marker, MarkerReading], float | None]:
    """Read the markers' probability and loss, and the answers' mean loss per token. One forward per row, no cache."""
    losses: dict[Marker, list[float]] = {marker: [] for marker in MARKERS}
    answers: list[float] = []
    for one in learnt_first(forced):
        wanted = sorted({i for place in one.places for i in range(place.begin, place.end)} | {*one.answer})
        if not wanted:
            continue
        loss = dict(zip(wanted, _losses(model, one.row.ids, wanted), strict=True))
        for place in one.places:
            losses[place.marker].append(math.fsum(loss[i] for i in range(place.begin, place.end)))
        answers += [loss[i] for i in one.answer]
    readings = {
        marker: MarkerReading(_mean([math.exp(-x) for x in values]), _mean(values), len(values))
        for marker, values in losses.items()
        if values
    }
    return readings, _mean(answers) if answers else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _losses(model: Any, ids: Sequence[int], wanted: Sequence[int]) -> list[float]:
    """Negative log probability of the tokens at `wanted`, each behind all tokens in front of it."""
    length = wanted[-1] + 1
    device = device_of(model)
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor([ids[:length]], device=device),
        "attention_mask": torch.ones((1, length), dtype=torch.long, device=device),
    }
    before = torch.tensor([i - 1 for i in wanted], device=device)
    names = _forward_names(model)
    if "use_cache" in names:
        inputs["use_cache"] = False
    kept = "logits_to_keep" in names
    if kept:  # the logits of a whole row can take gigabytes
        inputs["logits_to_keep"] = before
    out = model(**inputs)
    logits = (out if isinstance(out, torch.Tensor) else out.logits)[0]
    logits = logits if kept else logits[before]
    targets = torch.tensor([ids[i] for i in wanted], device=logits.device)
    return [float(x) for x in torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none").tolist()]


def _forward_names(model: Any) -> frozenset[str]:
    """The arguments that the innermost model takes: wrappers hand theirs on."""
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
