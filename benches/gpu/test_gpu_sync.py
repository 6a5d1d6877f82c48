"""What a step asks of the host: launches, its time, and no waiting for the device; and what it takes without kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benches.gpu.common import Sizes, chat, differences, imported
from benches.gpu.scenes import GUARD, PLACES, RIVAL, RIVALS, Scene, guards
from benches.measuring import CLOCK, by_clock, leave_out, rounds_of
from thinkguard import ThinkPolicy
from thinkguard.device.host_slots import HostSlots
from thinkguard.device.sequences import DeviceSequences
from thinkguard.device.tables import DeviceProgram

pytestmark = pytest.mark.benchmark(group="gpu")
SHORT = [name for name, place in PLACES.items() if not place.is_one]
CASES = [(name, GUARD) for name in SHORT] + [(name, RIVAL) for name in SHORT if name in RIVALS]
LAUNCH = f"{GUARD}, its launch alone"
Action = Callable[[], Any]
Tables = Callable[[str], DeviceProgram]


@by_clock("gpu")
@pytest.mark.parametrize(("scene", "name"), CASES)
def test_launches(
    request: pytest.FixtureRequest, benchmark: Any, tables_of: Tables, sizes: Sizes, scene: str, name: str
) -> None:
    """The clock shows the device's time in the kernels of a call, as torch's profiler has it."""
    about = {"scene": scene, "alternative": name}
    one = guards(request, tables_of(PLACES[scene].kind), scene, sizes, rival=name == RIVAL, **about)[name]
    try:
        launches, _ = launched(one.apply)
    except Exception as error:  # not every machine lets the profiler run
        leave_out(request, f"the profiler: {type(error).__name__}: {error}", **about)
    if not launches:
        leave_out(request, "the profiler saw no kernels", **about)
    assert name == RIVAL or launches == {"guard_slots": 1}, launches

    def profiled() -> None:
        CLOCK.now += launched(one.apply)[1]

    benchmark.pedantic(profiled, rounds=3)
    one.check()
    benchmark.extra_info.update({**about, "launches": launches})


def launched(action: Action, num: int = 20) -> tuple[dict[str, float], float]:
    """Kernels that a call launches, number by name, and the seconds that the device is in them."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(num):
            action()
        torch.cuda.synchronize()
    events = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
    counts = Counter(event.name for event in events)
    seconds = sum(event.time_range.elapsed_us() for event in events) / 1e6
    return {kernel: count / num for kernel, count in counts.items()}, seconds / num


@pytest.mark.parametrize(("scene", "name"), [("thinking", LAUNCH), *CASES])
def test_host_time(
    request: pytest.FixtureRequest, benchmark: Any, tables_of: Tables, sizes: Sizes, scene: str, name: str
) -> None:
    """The host's time for a call; nothing waits for the device between calls."""
    about = {"scene": scene, "alternative": name}
    found = guards(request, tables_of(PLACES[scene].kind), scene, sizes, rival=name == RIVAL, **about)
    one = found[GUARD if name == LAUNCH else name]
    call = one.launch if isinstance(one, Scene) and name == LAUNCH else one.apply
    benchmark.pedantic(call, rounds=rounds_of(call))
    one.check()
    benchmark.extra_info.update(about)


@pytest.mark.parametrize("scene", ["thinking", "answering, nothing to edit"])
def test_host_path(request: pytest.FixtureRequest, benchmark: Any, tables_of: Tables, sizes: Sizes, scene: str) -> None:
    """A step where the kernels do not run: the device is waited for, and rows that are edited go to the host and back."""
    tables = tables_of(PLACES[scene].kind)
    one = guards(request, tables, scene, sizes, rival=False, scene=scene)[GUARD]
    assert isinstance(one, Scene)
    slots = HostSlots(tables.program, one.num_slots)
    for slot in range(one.num_slots):
        slots.stage(slot, one.sequence.bound, one.sequence.limit)
    slots.flush()
    step = partial(slots.apply, one.logits, *one.where)
    benchmark.pedantic(step, rounds=rounds_of(step))
    edited = one.logits.normal_(generator=torch.Generator(one.host.device).manual_seed(2)).clone()
    step()
    one.host.slots.apply(edited, *one.where)
    for row, token, got, wanted in differences(one.logits, edited):
        raise AssertionError(f"row {row}, token {token}: logit {got}, the kernels write {wanted}")
    benchmark.extra_info.update({"scene": scene, "rows": len(one.logits), "width": one.logits.shape[1]})


@pytest.mark.parametrize("host", ["vLLM V2", "generate()"])
def test_nothing_waits(request: pytest.FixtureRequest, benchmark: Any, tables_of: Tables, sizes: Sizes, host: str) -> None:
    """Steps of a host, timed while torch raises wherever the host waits for the device."""
    if host == "vLLM V2":
        imported(request, "thinkguard.vllm.v2", host=host)
    step, check = (v2_steps if host == "vLLM V2" else generate_steps)(tables_of("tokens"), sizes)
    step()  # what is made at the first one is no step's cost
    with no_waiting(sizes.device):
        benchmark.pedantic(step, rounds=20)
    check()
    benchmark.extra_info["host"] = host


@contextmanager
def no_waiting(device: str) -> Iterator[None]:
    """Let torch raise wherever the host waits for the device; that it does is tried."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError):
            torch.ones(1, device=device).item()
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()


def v2_steps(tables: DeviceProgram, sizes: Sizes) -> tuple[Action, Action]:
    """Steps in each of which a request arrives and all are guarded, through the adapter that vLLM calls; their check."""
    from thinkguard.vllm.engine_requests import Guard
    from thinkguard.vllm.v2 import V2Slots

    scene = Scene(tables, PLACES["thinking"], sizes)
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

    return step, lambda: check_thinking(tables, scene.logits)


def generate_steps(tables: DeviceProgram, sizes: Sizes) -> tuple[Action, Action]:
    """Steps of `generate()`: whole sequences, one token longer each time; their check."""
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

    return step, lambda: check_thinking(tables, logits)


def check_thinking(tables: DeviceProgram, logits: torch.Tensor) -> None:
    """In the thinking no row can end, begin a turn, or think anew; all else it can say."""
    added = tables.program.vocabulary.added
    banned = [added["<|im_end|>"], added["<|im_start|>"], added["<think>"]]
    assert (logits[:, banned] == -torch.inf).all()
    assert logits.isneginf().sum() == len(banned) * len(logits)
