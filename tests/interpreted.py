"""Triton's interpreter, switched on by conftest.py, made fit for these tests. Import it before vllm."""

import pytest

pytest.importorskip("triton", reason="the device kernel needs triton")

from thinkguard.bench.alternatives.interpreted import interpret

interpret()
