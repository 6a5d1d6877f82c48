"""The benchmarks of benches/gpu, small and on a CPU: a GPU is seldom at hand to find out there.

The guard's kernels run as lanes behind a stand-in for the driver or in place, vLLM's own under Triton's interpreter.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import interpreted  # noqa: F401  before vllm
import pytest
from standin import standin

torch = pytest.importorskip("torch", reason="the kernels edit torch's tensors")

from benches.gpu import common, conftest, scenes, test_gpu_agreement, test_gpu_kernel, test_gpu_sync  # noqa: E402
from thinkguard.device.launch import HostKernels  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 400
SIZES = common.Sizes(rows=1, width=WIDTH, launches=1, rounds=2, long=20, prompt=100, device="cpu")
WALK = {"steps": 3, "width": WIDTH, "device": "cpu"}


class Benchmark:
    """Calls what it is given as pytest-benchmark does, whose own fixture is switched off beside other processes."""

    def __init__(self):
        self.extra_info = {}

    def pedantic(self, target, rounds, warmup_rounds=0):
        for _ in range(warmup_rounds + rounds):
            target()


class Event:
    """An event of a device that is done with a call when the call returns."""

    woken = ()

    def __init__(self, enable_timing=False):
        self.at = 0.0

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3

    def query(self):
        return next(Event.woken, False)


@pytest.fixture(autouse=True)
def device(monkeypatch):
    """What is asked of the GPU beside its kernels. The cycles of every sleep."""
    slept = []
    monkeypatch.setattr(Event, "woken", iter(()))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", slept.append, raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    return slept


def tables_of(kind):
    return common.tables_on("cpu", kind, WIDTH)


@pytest.fixture(params=["in place", "lanes"])
def kernels(request, monkeypatch):
    """What runs on the CPU in the place of a GPU."""
    found = HostKernels() if request.param == "in place" else standin().kernels()
    monkeypatch.setattr(common, "kernels_on", lambda device: found)
    return found


def test_the_start_is_timed_anew_each_time():
    benchmark = Benchmark()
    test_gpu_agreement.test_start(benchmark, SIZES)
    assert "sm_90" in benchmark.extra_info["images"]


@pytest.mark.parametrize(("kind", "dtype"), [("tokens", torch.float32), ("channels", torch.bfloat16)])
def test_slots_agree_with_c(kind, dtype, kernels):
    found = test_gpu_agreement.walk_slots(kind, dtype, **WALK, num_slots=2, capacity=96)
    assert found["mismatches"] == 0
    assert found["rows"] > 4


def test_whole_sequences_agree_with_c(monkeypatch, kernels):
    monkeypatch.setattr(test_gpu_agreement, "POLICIES", test_gpu_agreement.POLICIES[2:4])
    assert test_gpu_agreement.walk_sequences("text", torch.float32, **WALK, num_rows=2)["rows"] == 2 * 2 * 3


def test_a_logit_that_differs_is_a_failure(monkeypatch):
    def wrong(rows, logits):
        common.edit_in_c(rows, logits)
        logits[0, 7] *= 1 + 2**-23  # its last bit

    monkeypatch.setattr(test_gpu_agreement, "edit_in_c", wrong)
    with pytest.raises(AssertionError, match="token 7: logit"):
        test_gpu_agreement.walk_slots("tokens", torch.float32, **WALK, num_slots=2, capacity=96)


@pytest.mark.parametrize("scene", ["thinking, 3 drafts each", "one long prompt, no chat"])
@pytest.mark.parametrize("beside", [test_gpu_kernel.NOTHING, scenes.RIVAL])
def test_kernels_are_timed_in_turn(scene, beside):
    if beside == scenes.RIVAL:
        pytest.importorskip("vllm", reason="the budget is vLLM's")
    benchmark = Benchmark()
    test_gpu_kernel.test_kernel(None, benchmark, tables_of, SIZES, scene, beside, "device", "warm")
    found = benchmark.extra_info
    assert set(found["pairs"]) == {scenes.GUARD, test_gpu_kernel.NOTHING, beside}
    assert len(found["pairs"][scenes.GUARD]) == SIZES.rounds
    assert min(found["pairs"][scenes.GUARD]) > min(found["pairs"][test_gpu_kernel.NOTHING]) > 0
    assert ({"ratio", "asked"} <= set(found)) == (beside == scenes.RIVAL)
    assert (found["scene"], found["action"], found["rows"]) == (scene, "edit", 4 if "drafts" in scene else 1)


def test_a_kernel_that_edits_wrongly_is_a_failure(monkeypatch):
    monkeypatch.setattr(scenes.Scene, "apply", lambda self: None)
    with pytest.raises(AssertionError, match="C has"):
        scenes.guards(None, tables_of("tokens"), "all forced", SIZES, rival=False)


def test_a_device_that_wakes_too_soon_sleeps_longer(monkeypatch, device):
    monkeypatch.setattr(Event, "woken", iter([True, True]))
    calls = []
    taken = test_gpu_kernel.Stopwatch().round({"it": lambda: calls.append(1)}, 3, lambda: None, lambda: None)
    assert [cycles // device[0] for cycles in device] == [1, 4, 16]
    assert (list(taken), len(calls)) == (["it"], 9)
    monkeypatch.setattr(Event, "woken", iter([True] * 9))
    with pytest.raises(RuntimeError, match="takes seconds to queue"):
        test_gpu_kernel.Stopwatch().round({}, 3, lambda: None, lambda: None)


def test_a_call_is_one_launch(monkeypatch):
    launches = {"guard_slots": 1.0}
    monkeypatch.setattr(test_gpu_sync, "launched", lambda action: (launches, 1e-6))
    benchmark = Benchmark()
    test_gpu_sync.test_launches(None, benchmark, tables_of, SIZES, "all forced", scenes.GUARD)
    assert benchmark.extra_info["launches"] == launches
    for wrong in ({"copy": 1.0}, {"guard_slots": 2.0}):
        launches = {"guard_slots": 1.0} | wrong
        with pytest.raises(AssertionError, match="guard_slots"):
            test_gpu_sync.test_launches(None, Benchmark(), tables_of, SIZES, "all forced", scenes.GUARD)


@pytest.mark.parametrize("name", [scenes.GUARD, test_gpu_sync.LAUNCH])
def test_the_time_of_a_call_and_of_its_launch(monkeypatch, name, kernels):
    monkeypatch.setattr(test_gpu_sync, "rounds_of", lambda call: 3)
    calls = []
    apply = common.DeviceSlots.apply
    monkeypatch.setattr(common.DeviceSlots, "apply", lambda slots, *step: calls.append(1) or apply(slots, *step))
    benchmark = Benchmark()
    test_gpu_sync.test_host_time(None, benchmark, tables_of, SIZES, "thinking", name)
    assert benchmark.extra_info == {"scene": "thinking", "alternative": name}
    assert len(calls) == 2 + 3 * (name == scenes.GUARD), "two checks; the launch alone goes around it"


@pytest.mark.parametrize("scene", ["thinking", "answering, nothing to edit"])
def test_what_a_step_takes_without_kernels(scene):
    benchmark = Benchmark()
    test_gpu_sync.test_host_path(None, benchmark, tables_of, SIZES, scene)
    assert benchmark.extra_info == {"scene": scene, "rows": 1, "width": WIDTH}


@pytest.mark.parametrize("host", ["vLLM V2", "generate()"])
def test_steps_that_must_not_wait_run(monkeypatch, host):
    if host == "vLLM V2":
        pytest.importorskip("vllm", reason="the adapter is vLLM's")
    monkeypatch.setattr(test_gpu_sync, "no_waiting", nullcontext)
    benchmark = Benchmark()
    test_gpu_sync.test_nothing_waits(None, benchmark, tables_of, SIZES, host)
    assert benchmark.extra_info == {"host": host}


def test_waiting_that_is_not_noticed_is_a_failure():
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"), test_gpu_sync.no_waiting("cpu"):
        pass


def test_generate_guarded_and_not(tmp_path):
    pytest.importorskip("transformers", reason="generate() is transformers'")
    from benches.gpu import test_gpu_throughput as throughput
    from benches.setting import Setting, make_tokenizer

    load = throughput.Load(2, tokens=8, pairs=1, hidden=32, layers=1, heads=2, device="cpu", dtype=torch.float32)
    setting = Setting.load(make_tokenizer(tmp_path, 2048, marker_tokens=True), 2048)
    benchmark = Benchmark()
    throughput.generate_in_pairs(benchmark, load, setting, throughput.model(load, setting), compiled=False)
    found = benchmark.extra_info
    assert found["same again"] is True
    assert found["outputs that the guard changed"] == 2
    assert 0 < found["ratio"]["low"] <= found["ratio"]["high"]
    with pytest.raises(AssertionError, match="thinking_tokens=8"):
        throughput.check_closed(load, setting, setting.start_ids, setting.encode(" the") * 8)


def test_what_has_no_time_left_is_left_out(monkeypatch):
    left = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(conftest, "leave_out", lambda request, why: left.append(why))
    cases = ("test_kernel", 400, 0), ("test_kernel", 415, 1), ("test_vllm[0.6]", 200, 1), ("test_vllm[0.6]", 300, 2)
    for name, begun, num in cases:
        monkeypatch.setattr(conftest, "BEGUN", time.monotonic() - begun)
        conftest.pytest_runtest_setup(SimpleNamespace(name=name, _request=None))
        assert len(left) == num, name
    assert "420 seconds" in left[0]


WITHOUT = "import pytest, sys; status = pytest.main(sys.argv[1:]); assert 'vllm' not in sys.modules; sys.exit(status)"


def test_without_a_gpu_all_is_left_out(tmp_path):
    pytest.importorskip("pytest_benchmark", reason="the benchmarks are pytest-benchmark's")
    file = tmp_path / "found.json"
    command = [sys.executable, "-c", WITHOUT, str(ROOT / "benches" / "gpu"), f"--benchmark-json={file}"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}  # it warns of those
    unseen = kept | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=unseen, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower()
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["machine_info"]["torch"] == torch.__version__
    assert found["benchmarks"] == []
    assert set(conftest.WANTED) <= {one["name"] for one in found["left_out"]}
    assert {one["name"].split("[")[0] for one in found["left_out"]} == {
        "test_start", "test_slots_agree", "test_whole_sequences_agree", "test_kernel", "test_launches", "test_host_time",
        "test_host_path", "test_nothing_waits", "test_generate", "test_vllm",
    }  # fmt: skip
    assert {(one["group"], one["cannot"]) for one in found["left_out"]} == {("gpu", "no GPU")}
