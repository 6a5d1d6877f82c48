"""Triton's interpreter, switched on by conftest.py, made fit for these tests. Import it before vllm."""

import pytest

pytest.importorskip("triton", reason="the device kernel needs triton")

from benches.alternatives.interpreted import interpret

interpret()
