"""Triton's interpreter, switched on by conftest.py, made fit for the kernels of vLLM's V2 runner. Import it before vllm."""

import pytest

pytest.importorskip("triton", reason="the kernels of vLLM's V2 runner need triton")

from benches.alternatives.interpreted import interpret

interpret()
