"""Triton's interpreter made fit for these tests. Import it before vllm, which looks for a Triton driver when it is imported.

conftest.py switches the interpreter on, so that V2's kernels, and ours, run without a GPU.
"""

import sys

import pytest

pytest.importorskip("triton", reason="the device kernel needs triton")
assert "vllm" not in sys.modules, "interpreted must be imported before vllm"

import torch  # noqa: E402
import triton.backends as backends  # noqa: E402
import triton.runtime.interpreter as interpreter  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.backends.driver import DriverBase  # noqa: E402


class InterpretedCPU(DriverBase):
    """A driver that says it is active; under the interpreter nothing else is asked of it."""

    def __init__(self):
        pass

    @staticmethod
    def is_active():
        return True

    def get_current_target(self):
        return GPUTarget("cpu", 0, 1)

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_benchmarker(self):
        return lambda *args, **kwargs: 0

    def map_python_to_cpp_type(self, ty):
        return ty


class BooleanMasks:
    """Compiled Triton takes integer masks, as vLLM's kernels for n-grams and grammars use, the interpreter boolean ones."""

    def __init__(self, memory):
        self.memory = memory

    def __getattr__(self, name):
        return getattr(self.memory, name)

    def load(self, pointers, mask, *rest):
        return self.memory.load(pointers, mask.astype(bool), *rest)

    def store(self, pointers, value, mask):
        return self.memory.store(pointers, value, mask.astype(bool))


backends.backends["cpu"] = backends.Backend(compiler=backends.backends["nvidia"].compiler, driver=InterpretedCPU)
interpreter._interpreter = BooleanMasks(interpreter._interpreter)


_patched = set()


def _call_device_function(function, *args, **kwargs):
    """The interpreter patches Triton's language anew for every call, most of its time; once for each function does."""
    if function not in _patched:
        _patched.add(function)
        interpreter._patch_lang(function.fn)
    return function.rewrite()(*args, **kwargs)


interpreter.InterpretedFunction.__call__ = _call_device_function
