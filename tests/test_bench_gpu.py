"""The measurements of benches/gpu.py, small and under Triton's interpreter: a GPU is seldom at hand to find out there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import interpreted  # noqa: F401
import pytest

torch = pytest.importorskip("torch", reason="the device kernel needs torch")

BENCHES = Path(__file__).resolve().parents[1] / "benches"
WIDTH = 400


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHES))


@pytest.fixture
def sizes():
    from gpu_scenes import Sizes

    return Sizes(rows=1, width=WIDTH, launches=1, rounds=1, long=20, prompt=100, device="cpu")


@pytest.mark.parametrize(("kind", "dtype"), [("tokens", torch.float32), ("channels", torch.bfloat16)])
def test_slots_agree_with_c(kind, dtype):
    from gpu_agreement import agreement

    found = agreement(kind, dtype, steps=3, num_slots=2, width=WIDTH, capacity=96, device="cpu")
    assert found["mismatches"] == 0
    assert found["rows"] > 4


def test_whole_sequences_agree_with_c(monkeypatch):
    import gpu_agreement

    monkeypatch.setattr(gpu_agreement, "POLICIES", gpu_agreement.POLICIES[2:4])
    found = gpu_agreement.shuffled("text", torch.float32, steps=3, num_rows=2, width=WIDTH, device="cpu")
    assert found["rows"] == 2 * 2 * 3


def test_a_logit_that_differs_is_a_failure(monkeypatch):
    import gpu_agreement
    import gpu_common

    def wrong(rows, logits):
        gpu_common.edit_in_c(rows, logits)
        logits[0, 7] += 1

    monkeypatch.setattr(gpu_agreement, "edit_in_c", wrong)
    arguments = dict(steps=3, num_slots=2, width=WIDTH, capacity=96, device="cpu")
    found = gpu_common.row("it", lambda: gpu_agreement.agreement("tokens", torch.float32, **arguments))
    assert "token 7: logit" in found["failed"]


def test_kernel_rows(sizes, monkeypatch):
    import gpu_kernel

    monkeypatch.setattr(gpu_kernel, "RIVALS", [])  # vLLM takes seconds to import
    monkeypatch.setattr(gpu_kernel, "SHAPED", ["all forced"])
    *rows, shapes = gpu_kernel.kernels(True, sizes, ("thinking, 3 drafts each", "one long prompt, no chat"))
    assert [row["action"] for row in rows] == ["edit", "edit"]
    assert all(row["warm"]["thinkguard"]["median"] > 0 and row["cold"]["nothing"]["num"] == 1 for row in rows)
    assert set(shapes["best"].values()) == {"1 warps, blocks of 128"}


def test_a_kernel_that_edits_wrongly_is_a_failure(sizes, monkeypatch):
    import gpu_kernel

    scene = gpu_kernel.Scene
    monkeypatch.setattr(scene, "apply", lambda self: None)
    monkeypatch.setattr(gpu_kernel, "SHAPED", [])
    [row, _] = gpu_kernel.kernels(True, sizes, ["all forced"])
    assert "C has" in row["failed"]


def test_steps_that_must_not_wait_run(sizes):
    from gpu_sync import synchronisation

    rows = list(synchronisation(True, sizes))
    assert [row.get("steps") for row in rows] == [1, 1], rows


def test_generate_guarded_and_not():
    pytest.importorskip("transformers", reason="generate() is transformers'")
    from gpu_decode import Sizes, huggingface

    sizes = Sizes(
        batch=2, tokens=8, pairs=1, width=WIDTH, hidden=32, layers=1, heads=2, device="cpu", dtype=torch.float32
    )
    [row] = huggingface(True, sizes)
    assert row["same again"] is True, row
    assert row["outputs that the guard changed"] == 2
    assert 0 < row["guarded over unguarded"]["low"] <= row["guarded over unguarded"]["high"]


def test_a_ratio_has_an_interval(monkeypatch):
    import gpu_decode

    clock = iter([0, 1.0, 0, 2.0, 0, 2.0, 0, 1.0])
    monkeypatch.setattr(gpu_decode.time, "perf_counter", lambda: next(clock))
    found = gpu_decode.paired({"unguarded": lambda: None, "guarded": lambda: None}, 2, 10)
    assert found["guarded"]["median"] == 10.0  # first in the first pair, second in the other
    assert found["unguarded"]["median"] == 5.0
    assert found["guarded over unguarded"]["mean"] == 2.0


def test_what_cannot_run_says_why():
    from gpu_common import NotMeasured, row

    def absent():
        raise NotMeasured("no such host")

    assert row("it", absent) == {"what": "it", "not measured": "no such host"}
    assert row("it", lambda: {}["x"])["not measured"].startswith("KeyError: 'x' (line")


def test_a_section_that_dies_leaves_a_reason(monkeypatch):
    import gpu

    monkeypatch.setitem(gpu.SECTIONS, "gone", ("gpu_kernel", "kernels", 1))  # a name that the other process does not know
    [row] = gpu.in_own_process("gone", True, 60)
    assert row["what"] == "gone: the rest"
    assert row["not measured"].startswith("ended with status 1;")
    [row] = gpu.in_own_process("machine", True, 0)
    assert row["not measured"].startswith("took longer than 0 s")


def test_without_a_gpu_all_is_not_measured(tmp_path):
    file = tmp_path / "figures.json"
    command = [sys.executable, str(BENCHES / "gpu.py"), "--quick", "--out", str(file)]
    unseen = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=unseen)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures == json.loads(file.read_text())
    assert figures["machine"]["torch"] == torch.__version__
    assert {row["what"]: row["not measured"] for row in figures["rows"]} == dict.fromkeys(
        ("agreement", "kernel", "synchronisation", "generate", "compiled", "vllm"), "no GPU"
    )
