"""Cost of a step of every alternative, on the host. vLLM V2's kernels are not timed: on a CPU Triton interprets them.

One axis at a time is moved away from 151,936 tokens, 32 rows and 1,024 tokens of thinking.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from typing import Any

import pytest

from benches.alternatives.alternative import LIGHT, TIMED, Alternative, Cannot, load
from benches.conftest import Sizes
from benches.measuring import by_clock, leave_out, one_thread, pairs, rounds_of
from benches.setting import Setting
from benches.stepping import KINDS, NOTHING, Point, Walk, bring

torch = pytest.importorskip("torch", reason="the logits are torch's")
pytestmark = pytest.mark.benchmark(group="step")

USUAL = Point(151_936, 32, 1024)
POINTS = [
    *(Point(151_936, 32, length) for length in (128, 1024, 8192, 32_768)),
    *(Point(151_936, batch, 1024) for batch in (1, 256, 1024)),
    *(Point(vocab_size, 32, 1024) for vocab_size in (32_000, 262_144)),
]
COPIED = {"llguidance grammar": 2**19}  # rows x tokens; beyond, its matchers take half a minute to copy


@pytest.fixture(scope="module", autouse=True)
def single_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def walk_of(setting_of: Callable[[int], Setting], sizes: Sizes) -> Callable[[str, Point], Walk]:
    """Return a function from an alternative's name and a point to its walk. Cannot, where there is none."""

    @cache
    def alternative_of(name: str, vocab_size: int) -> Alternative:
        return load(name)(setting_of(vocab_size))

    @cache
    def logits_of(point: Point) -> Any:
        return torch.randn(point.batch, point.vocab_size, generator=torch.Generator().manual_seed(0))

    def walk(name: str, point: Point) -> Walk:
        if point.batch * point.length > COPIED.get(name, math.inf):
            raise Cannot("a batch takes half a minute to copy")
        if not sizes.full:
            point = Point(2048, min(point.batch, 3), min(point.length, 8))
        return Walk(alternative_of(name, point.vocab_size), name, setting_of(point.vocab_size), point, logits_of(point))

    return walk


PLACES = [(point, name) for point in POINTS for name in TIMED]


@pytest.fixture(scope="module", params=PLACES, ids=lambda place: f"{place[1]}-{place[0]}")
def walk(
    request: pytest.FixtureRequest, walk_of: Callable[[str, Point], Walk], sizes: Sizes
) -> tuple[Walk | str, Point, str]:
    """(the walk or why there is none, where, whose)"""
    point, name = request.param
    if not sizes.full and (name not in LIGHT or point not in (USUAL, POINTS[0])):
        return "left out by --small", point, name
    try:
        return walk_of(name, point), point, name
    except Cannot as reason:
        return str(reason), point, name


@pytest.mark.parametrize("kind", KINDS)
def test_step(request: pytest.FixtureRequest, benchmark: Any, walk: tuple[Walk | str, Point, str], kind: str) -> None:
    """Logits are written before every step; what was edited is asserted behind the last."""
    found, point, name = walk
    about = {"alternative": name, "kind": kind}
    if isinstance(found, str):
        leave_out(request, found, **about, **asdict(point))
    if (name, kind) == (NOTHING, "forced"):
        pytest.skip("nothing forces nothing")
    steps = bring(found, kind)
    rounds = rounds_of(lambda: steps.step(steps.prepare()))
    benchmark.pedantic(steps.step, setup=lambda: ((steps.prepare(),), {}), rounds=rounds)
    steps.check()
    benchmark.extra_info.update({**about, **asdict(found.point)})


@by_clock("step")
@pytest.mark.parametrize("name", [name for name in TIMED if name != "thinkguard"])
def test_step_beside(
    request: pytest.FixtureRequest, benchmark: Any, walk_of: Callable[[str, Point], Walk], name: str, sizes: Sizes
) -> None:
    """A step of thinkguard over a step of another, in pairs, in the thinking at the usual point."""
    about = {"alternative": name, "kind": "thinking"}
    if not sizes.full and name not in LIGHT:
        leave_out(request, "left out by --small", **about)
    try:
        steps = {key: bring(walk_of(key, USUAL), "thinking") for key in (name, "thinkguard")}
    except Cannot as reason:
        leave_out(request, str(reason), **about)
    tokens = dict.fromkeys(steps, 0)

    def prepare(key: str) -> None:
        tokens[key] = steps[key].prepare()

    runs = {key: lambda number, key=key: steps[key].step(tokens[key]) for key in steps}
    found = pairs(benchmark, runs, lambda key, nothing: None, 100 if sizes.full else 3, prepare)
    for one in steps.values():
        one.check()
    benchmark.extra_info.update(about)
    if name == "plain torch" and sizes.full:
        assert found["ratio"]["median"] < 0.5, "a step takes at most half of what the obvious processor takes"
