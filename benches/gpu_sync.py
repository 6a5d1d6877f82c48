"""Steps of both hosts while torch raises wherever the host waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from gpu_common import Result, chat, program, row
from gpu_kernel import Action
from gpu_scenes import SETTINGS, Scene, Sizes

from thinkguard import ThinkPolicy
from thinkguard.device.sequences import DeviceSequences
from thinkguard.device.tables import DeviceProgram
from thinkguard.vllm.v2 import V2Slots


def synchronisation(quick: bool, sizes: Sizes | None = None) -> Iterator[Result]:
    """Steps of vLLM's V2 and of generate() while torch raises where the host waits for the device."""
    yield row("no host synchronisation: vLLM's V2", partial(without_waiting, _v2_steps, sizes or Sizes()))
    yield row("no host synchronisation: generate()", partial(without_waiting, _generate_steps, sizes or Sizes()))


def without_waiting(steps: Callable[[DeviceProgram, Sizes], Action], sizes: Sizes) -> Result:
    """Run steps once so that kernels are compiled, and again while waiting is an error; the net itself is tried too."""
    tables = DeviceProgram(program("tokens", sizes.width), sizes.device)
    step, num = steps(tables, sizes), 20
    step()
    if sizes.device != "cuda":
        return {"steps": 1, "net": "not there: no GPU"}
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(num):
            step()
        caught = False
        try:
            torch.ones(1, device="cuda").item()
        except RuntimeError:
            caught = True
    except RuntimeError as error:
        raise AssertionError(f"the host waited: {error}") from error
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert caught, "torch did not object to item(), so that it proves nothing"
    return {"steps": num, "net": "item() was caught"}


@dataclass(frozen=True)
class Guard:
    """The two fields of `vllm_requests.Guard` that the adapter reads; that module needs vLLM itself."""

    bound: Any
    guards_raw: bool


def _v2_steps(tables: DeviceProgram, sizes: Sizes) -> Action:
    """Steps in each of which a request arrives and all are guarded, through the same adapter that vLLM calls."""
    scene = Scene(tables, SETTINGS["thinking"], sizes)
    bounds = [tables.program.bind(ThinkPolicy(max_thinking_tokens=100 + i)) for i in range(64)]
    requests = SimpleNamespace(
        program=tables.program, vocab_size=sizes.width, say=lambda reason: None, limit_of=lambda params, prompt_len: 1000,
        guard_of=lambda params: Guard(bounds[params % len(bounds)], True),
    )  # fmt: skip
    host = scene.host
    states = SimpleNamespace(
        device=host.device, max_num_reqs=scene.num_slots, all_token_ids=SimpleNamespace(gpu=host.tokens),
        total_len=SimpleNamespace(gpu=host.total), prompt_len=SimpleNamespace(gpu=host.prompt, np=host.prompts),
    )  # fmt: skip
    slots = V2Slots(requests, states)  # type: ignore[arg-type]
    for slot in range(scene.num_slots):
        assert slots.add_request(slot, slot)
    context = SimpleNamespace(
        idx_mapping_np=np.arange(scene.num_slots), idx_mapping=scene.rows, expanded_idx_mapping=scene.rows,
        expanded_local_pos=scene.offsets, input_ids=scene.inputs,
    )  # fmt: skip
    arrived = 0

    def step() -> None:
        nonlocal arrived
        slots.add_request(arrived % scene.num_slots, arrived)
        arrived += 1
        slots.apply_staged_writes()
        slots.apply(scene.logits, context)
        host.total.add_(1)

    return step


def _generate_steps(tables: DeviceProgram, sizes: Sizes) -> Action:
    """Steps of `generate()`: whole sequences, one token longer each time."""
    num_rows, encode = min(sizes.rows, 32), tables.program.vocabulary.encode
    prompt = encode(chat("tokens"))
    words = torch.full((num_rows, len(prompt) + 40), encode(" the")[0], device=sizes.device)
    words[:, : len(prompt)] = torch.tensor(prompt, device=sizes.device)
    sequences = DeviceSequences(tables, tables.program.bind(ThinkPolicy()), prompt=len(prompt), max_tokens=1000)
    logits = torch.randn(num_rows, sizes.width, device=sizes.device)
    length = len(prompt)

    def step() -> None:
        nonlocal length
        sequences.apply(words[:, :length].contiguous(), logits)
        length += 1

    return step
