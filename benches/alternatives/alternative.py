"""What an alternative is: set up for one setting, started with requests, stepped over logits."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Protocol, TypeVar

from benches.setting import Request, Setting

T = TypeVar("T")
MODULES: Final = {
    "nothing": ("nothing", "Nothing"),
    "plain torch": ("plain_torch", "PlainTorch"),
    "vLLM V1 budget": ("vllm_v1", "VllmV1"),
    "vLLM V2 budget": ("vllm_v2", "VllmV2"),
    "SGLang processor": ("sglang_processor", "SglangProcessor"),
    "SGLang strict thinking": ("sglang_strict", "SglangStrict"),
    "xgrammar structural tag": ("xgrammar_tag", "XgrammarTag"),
    "llguidance grammar": ("llguidance_lark", "LlguidanceLark"),
    "thinkguard": ("guard", "Guard"),
}
"""Name of each alternative -> its module beside this file and the class in it."""
TIMED: Final = tuple(name for name in MODULES if name != "vLLM V2 budget")
"""Those that have figures without a GPU: vLLM V2's kernels are interpreted on a CPU."""
LIGHT: Final = ("nothing", "plain torch", "thinkguard")
"""Those that need no other engine."""


class Cannot(Exception):
    """Why an alternative cannot be set up: for a vocabulary, or on this machine at all."""


class Batch(Protocol):
    """The running sequences of one alternative."""

    def step(self, sampled: Sequence[int] | None, logits: Any) -> None:
        """Take the tokens sampled last (None at first), and edit logits in place.

        logits: torch.Tensor [num_rows, width] of float32
        """

    def resume(self, row: int, request: Request) -> None:
        """Preempt a row and admit it again, `request.output` being all that it generated; a `step(None, ...)` follows."""


class Alternative(Protocol):
    """One way to hold a thinking budget, set up for one setting. Its constructor raises Cannot."""

    name: str
    version: str
    path: str  # where its host calls it
    cannot: dict[str, str]  # need of a case -> why it is not met

    def __init__(self, setting: Setting) -> None: ...
    def start(self, requests: Sequence[Request]) -> Batch:
        """Admit requests."""


def load(name: str) -> type[Alternative]:
    """Return the class of an alternative. Cannot, where what it needs is not installed."""
    module, cls = MODULES[name]
    try:
        found: type[Alternative] = getattr(importlib.import_module(f"{__package__}.{module}"), cls)
    except ImportError as error:
        raise Cannot(f"not installed here: {error}") from None
    return found


def loaded(names: Iterable[str]) -> Iterator[tuple[str, type[Alternative] | Cannot]]:
    """Load several, those that cannot be with the reason."""
    for name in names:
        try:
            yield name, load(name)
        except Cannot as reason:
            yield name, reason


def set_up(cls: type[Alternative] | Cannot, setting: Setting) -> Alternative | Cannot:
    """Set an alternative up for a setting; why that cannot be is returned."""
    if isinstance(cls, Cannot):
        return cls
    try:
        return cls(setting)
    except Cannot as reason:
        return reason


def started(requests: Sequence[Request], make: Callable[[Request], T], copy: Callable[[T], T]) -> list[T]:
    """Make a state for each request; one that stands several times in the list is started once and copied."""
    made: dict[int, T] = {}
    states = []
    for request in requests:
        first = made.get(id(request))
        states.append(make(request) if first is None else copy(first))
        made.setdefault(id(request), states[-1])
    return states
