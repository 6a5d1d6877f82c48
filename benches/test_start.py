"""Cost of starting: set up for a vocabulary, admit a request behind a short and a long prompt, compile, import.

A request is admitted whose like, with the same budget, was admitted before: grammars and policies are compiled. thinkguard,
vLLM's holder and the plain processor find out from the prompt whether the thinking is open; who hands a grammar to xgrammar,
llguidance or SGLang has to know, so that is found out before the clock.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import count
from typing import Any

import pytest

from benches.alternatives.alternative import LIGHT, TIMED, Alternative, Cannot, load
from benches.conftest import Sizes
from benches.measuring import CLOCK, by_clock, leave_out, pairs, rounds_of
from benches.setting import Request, Setting, made_vocabulary
from thinkguard import ThinkFormat, ThinkPolicy, ThinkProgram
from thinkguard.core.names import Phase, Seq
from thinkguard.policy import MAX_MESSAGE_BYTES
from thinkguard.requests.admission import asked_for, with_budget
from thinkguard.requests.merge import merged

pytestmark = pytest.mark.benchmark(group="start")

PROMPTS = (1_000, 10_000, 100_000)  # tokens
IMPORTS = {"package": "import thinkguard", "all names": "from thinkguard import *", "numpy alone": "import numpy"}
_BUDGET = 1_000


@pytest.fixture(scope="module")
def alternative_of(setting_of: Callable[[int], Setting], sizes: Sizes) -> Callable[[str], Alternative]:
    """Return a function from a name to what was set up. Cannot, where that cannot be."""

    @cache
    def made(name: str) -> Alternative:
        if not sizes.full and name not in LIGHT:
            raise Cannot("left out by --small")
        return load(name)(setting_of(sizes.vocab_size))

    return made


def prompt(setting: Setting, length: int) -> Request:
    """About so many tokens, behind which the thinking is open."""
    words = setting.encode(" the") * length
    return Request([*words[: length - 8], *setting.encode("<|im_start|>assistant\n" + setting.start + "\n")], _BUDGET)


@pytest.mark.parametrize("name", TIMED)
def test_set_up(
    request: pytest.FixtureRequest, benchmark: Any, alternative_of: Any, setting_of: Any, name: str, sizes: Sizes
) -> None:
    """What is imported and cached at the first time is not counted."""
    about = {"alternative": name, "vocab_size": sizes.vocab_size}
    try:
        first = alternative_of(name)
    except Cannot as reason:
        leave_out(request, str(reason), **about)
    again = benchmark.pedantic(load(name), (setting_of(sizes.vocab_size),), rounds=7)
    assert type(again) is type(first)
    benchmark.extra_info.update(about)


@pytest.mark.parametrize("length", PROMPTS)
@pytest.mark.parametrize("name", TIMED)
def test_admission(
    request: pytest.FixtureRequest, benchmark: Any, alternative_of: Any, setting_of: Any, name: str, length: int,
    sizes: Sizes,
) -> None:  # fmt: skip
    about = {"alternative": name, "length": length}
    try:
        alternative = alternative_of(name)
    except Cannot as reason:
        leave_out(request, str(reason), **about)
    setting = setting_of(sizes.vocab_size)
    asked = prompt(setting, length)
    setting.received([asked])
    rounds = rounds_of(lambda: alternative.start([asked]))
    batch = benchmark.pedantic(alternative.start, ([asked],), rounds=rounds)
    assert callable(batch.step)
    benchmark.extra_info.update(about)


@by_clock("start")
def test_admission_is_flat(benchmark: Any, setting_of: Any, sizes: Sizes) -> None:
    """thinkguard behind a prompt of 100,000 tokens over one of 1,000: only the turn at its end is read."""
    program, policy = setting_of(sizes.vocab_size).program, ThinkPolicy(max_thinking_tokens=_BUDGET)
    lengths = {"short": 1_000, "long": 100_000}
    prompts = {name: prompt(setting_of(sizes.vocab_size), length).prompt for name, length in lengths.items()}
    runs = {name: lambda number, ids=ids: program.start(ids, policy) for name, ids in prompts.items()}

    def check(name: str, state: Any) -> None:
        assert state.phase == Phase.THINKING, name

    found = pairs(benchmark, runs, check, 100 if sizes.full else 3)
    assert not sizes.full or found["ratio"]["median"] < 2


@pytest.mark.parametrize("markers", ["tokens", "text"])
def test_compile(benchmark: Any, sizes: Sizes, markers: str) -> None:
    """Compile a format onto a vocabulary that has been read."""
    vocabulary = made_vocabulary(sizes.vocab_size, marker_tokens=markers == "tokens")
    format = ThinkFormat.from_name("think")
    program = benchmark.pedantic(ThinkProgram, (format, vocabulary), rounds=7, warmup_rounds=1)
    benchmark.extra_info.update({"markers": markers, "vocab_size": sizes.vocab_size, "bytes": {"program": program.nbytes}})


def test_new_policy(benchmark: Any, sizes: Sizes) -> None:
    """Bind a policy with a message that was not seen before."""
    program, budgets = ThinkProgram("think", made_vocabulary(sizes.vocab_size, marker_tokens=True)), count(100)

    def fresh() -> Any:
        return (ThinkPolicy(close_message="Time is up.", max_thinking_tokens=next(budgets)),), {}

    bound = benchmark.pedantic(program.bind, setup=fresh, rounds=50, warmup_rounds=1)
    assert bound is not None


def test_new_message(benchmark: Any, setting_of: Any, sizes: Sizes) -> None:
    """A request's policy with the longest message, not seen before, as an engine reads and binds it between two steps."""
    setting, number = setting_of(sizes.vocab_size), count()
    program, words = setting.program, "Time is up now, so let me answer by what I have clear so far. " * 20

    def fresh() -> Any:
        return ({"close_message": f"{next(number)} {words}"[:MAX_MESSAGE_BYTES], "max_thinking_tokens": _BUDGET},), {}

    def admitted(asked: dict[str, Any]) -> Any:
        fields = asked_for(asked)
        assert isinstance(fields, dict)
        policy, dropped = merged(with_budget(fields), {})
        return program.bind(policy), dropped

    bound, dropped = benchmark.pedantic(admitted, setup=fresh, rounds=50, warmup_rounds=3)
    spelled = b"".join(map(program.vocabulary.token_bytes, bound.sequence(Seq.CLOSE)))
    assert (spelled[:MAX_MESSAGE_BYTES].decode(), dropped) == (bound.source.close_message, [])
    benchmark.extra_info.update({"vocab_size": sizes.vocab_size, "tokens": len(bound.sequence(Seq.CLOSE))})
    assert benchmark.disabled or not sizes.full or benchmark.stats.stats.min < 1e-3


@by_clock("start")
@pytest.mark.parametrize("names", IMPORTS)
def test_import(benchmark: Any, names: str) -> None:
    """In a fresh interpreter that has imported nothing; all names' import includes numpy's own."""
    code = f"import time; t = time.perf_counter(); {IMPORTS[names]}; print(time.perf_counter() - t)"

    def fresh() -> None:
        CLOCK.now += float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)

    benchmark.pedantic(fresh, rounds=15, warmup_rounds=1)
    benchmark.extra_info["names"] = names
