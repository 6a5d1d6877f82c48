"""Triton's interpreter made fit for vLLM V2's kernels, so that they run on a CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def interpret() -> None:
    """Patch Triton; TRITON_INTERPRET=1 has to be set. Before vLLM is imported, which looks for a Triton driver then.

    RuntimeError, if it has been imported already.
    """
    if "vllm" in sys.modules:
        raise RuntimeError("vllm is imported already: call interpret() before it")
    import torch
    import triton
    import triton.backends as backends
    import triton.runtime.interpreter as interpreter
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase

    class InterpretedCPU(DriverBase):  # type: ignore[misc]
        """A driver that says it is active; under the interpreter nothing else is asked of it."""

        def __init__(self) -> None: ...

        @staticmethod
        def is_active() -> bool:
            return True

        def get_current_target(self) -> Any:
            return GPUTarget("cpu", 0, 1)

        def get_active_torch_device(self) -> Any:
            return torch.device("cpu")

        def get_benchmarker(self) -> Any:
            return lambda *args, **kwargs: 0

        def map_python_to_cpp_type(self, ty: Any) -> Any:
            return ty

    backends.backends["cpu"] = backends.Backend(compiler=backends.backends["nvidia"].compiler, driver=InterpretedCPU)
    interpreter._interpreter = _BooleanMasks(interpreter._interpreter)
    interpreter._patch_lang = _Patches(interpreter._patch_lang, triton.language, triton.language.core)


class _BooleanMasks:
    """Compiled Triton takes integer masks, as vLLM's kernels for n-grams and grammars use, the interpreter boolean ones."""

    def __init__(self, memory: Any) -> None:
        self.memory = memory

    def __getattr__(self, name: str) -> Any:
        return getattr(self.memory, name)

    def load(self, pointers: Any, mask: Any, *rest: Any) -> Any:
        return self.memory.load(pointers, mask.astype(bool), *rest)

    def store(self, pointers: Any, value: Any, mask: Any) -> Any:
        return self.memory.store(pointers, value, mask.astype(bool))


class _Patches:
    """Triton's language patched once and for good: the interpreter does and undoes it for every call, most of its time."""

    def __init__(self, patch: Callable[[Any], Any], *languages: Any) -> None:
        self.patch, self.languages, self.done = patch, frozenset(map(id, languages)), set[frozenset[int]]()

    def __call__(self, function: Any) -> _Patches:
        """Patch what a function sees of the language."""
        seen = self.languages & {id(value) for value in function.__globals__.values()}
        if seen not in self.done:
            self.done.add(seen)
            self.patch(function)
        return self

    def restore(self) -> None:
        """Leave it: nothing but the interpreter runs in this process."""
