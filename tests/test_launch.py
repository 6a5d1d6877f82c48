"""The real launcher, end to end, on a stand-in for the CUDA driver: what it is told, what it refuses, what it gets wrong."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import zlib
from collections import Counter
from pathlib import Path

import pytest
from standin import standin

torch = pytest.importorskip("torch", reason="the device's kernels need torch")

from thinkguard import ThinkPolicy, ThinkProgram, Vocabulary  # noqa: E402
from thinkguard.core._core import CONSTANTS  # noqa: E402
from thinkguard.core.names import ActionKind, Kind  # noqa: E402
from thinkguard.device import images, kernels, launch, steps  # noqa: E402
from thinkguard.device.launch import DeviceKernels, Driver, HostKernels, UnavailableError  # noqa: E402
from thinkguard.device.proof import prove, scripts  # noqa: E402
from thinkguard.device.slots import DeviceSlots  # noqa: E402
from thinkguard.device.tables import DeviceProgram  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
STRUCTS = {
    steps.Ids: "tg_ids", steps.Logits: "tg_logits", steps.SlotsStep: "tg_slots_step",
    steps.SequencesStep: "tg_sequences_step", steps.EditsStep: "tg_edits_step",
}  # fmt: skip
CALLS = (
    "cuInit", "cuDeviceGet", "cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain", "cuLibraryLoadData", "cuLibraryGetKernel",
    "cuCtxPushCurrent_v2", "cuKernelGetFunction", "cuCtxPopCurrent_v2", "cuLaunchKernel",
)  # fmt: skip
STREAM = 0x7F12_3456_789A


@pytest.fixture
def driver():
    """The stand-in, and as it was behind the test."""
    standin().reset()
    yield standin()
    standin().reset()


@pytest.fixture
def gpu(driver, monkeypatch):
    """A device whose kernels are not known yet. It is the stand-in's, so what lies on it lies on the CPU."""
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(images, "FOLDER", driver.images)
    monkeypatch.setattr(kernels, "_found", {})
    monkeypatch.setattr(kernels, "prove", lambda found, device: prove(found, CPU))
    return torch.device("cuda", 0)


@pytest.fixture
def program():
    vocabulary = Vocabulary.from_parts([bytes([b]) for b in range(256)], added={"<eos>": 256}, special=[256], eos_ids=[256])
    return ThinkProgram("think", vocabulary)


def one_step(program, kernels):
    """Logits of a step in which a token is forced."""
    slots = DeviceSlots(DeviceProgram(program, "cpu", kernels), 1)
    slots.stage(0, program.bind(ThinkPolicy(max_thinking_tokens=0)))
    slots.flush()
    where, length = torch.zeros(1, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    logits = torch.zeros(1, 257)
    slots.apply(logits, where, where, where, torch.tensor([[10]]), length, length)
    return logits


def test_the_structs_are_those_of_guard_h(tmp_path):
    """Every field where C has it, of the size that it has there."""
    lines = [
        f'printf("{name} {field} %zu %zu\\n", offsetof({name}, {field}), sizeof((({name}*)0)->{field}));'
        for struct, name in STRUCTS.items()
        for field, _ in struct._fields_
    ]
    lines += [f'printf("{name} %zu\\n", sizeof({name}));' for name in STRUCTS.values()]
    source = tmp_path / "offsets.c"
    source.write_text('#include <stdio.h>\n#include "guard.h"\nint main(void) {\n' + "\n".join(lines) + "\nreturn 0;\n}\n")
    compiler = os.environ.get("CC") or shutil.which("cc") or "gcc"
    subprocess.run([compiler, f"-I{ROOT / 'csrc'}", str(source), "-o", str(tmp_path / "offsets")], check=True)
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # tools/sanitize.sh sets it
    said = subprocess.run([str(tmp_path / "offsets")], capture_output=True, text=True, check=True, env=env).stdout
    ours = [
        f"{name} {field} {getattr(struct, field).offset} {getattr(struct, field).size}"
        for struct, name in STRUCTS.items()
        for field, _ in struct._fields_
    ]
    ours += [f"{name} {ctypes.sizeof(struct)}" for struct, name in STRUCTS.items()]
    assert said.splitlines() == ours


@pytest.mark.parametrize("name", steps.KERNELS)
@pytest.mark.parametrize("ordinal", [0, 1])
def test_a_launch_says_which_kernel_how_many_blocks_and_where(driver, name, ordinal):
    """On the device whose context is current, and on another one."""
    found = driver.kernels(ordinal)
    before = driver.context
    with driver.doing_nothing():
        start = found.bind(name, steps.KERNELS[name]())
        start(5, STREAM)
        said = driver.launch
        start(7, 0)
    assert (said.kernel.decode(), said.num_blocks, said.num_lanes, said.stream) == (name, 5, launch.LANES, STREAM)
    assert said.context == found.context.value
    assert (driver.launch.number, driver.launch.num_blocks, driver.launch.stream) == (said.number + 1, 7, None)
    assert driver.context == before, "what was current is current again"


def test_a_thread_without_a_context_gets_one_for_the_call(driver, program):
    found, seen = driver.kernels(), []
    wanted = one_step(program, HostKernels())

    def work():
        seen.append(driver.context)
        seen.append(one_step(program, found))
        seen.append(driver.context)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    before, logits, after = seen
    assert before is after is None
    assert torch.equal(logits, wanted)
    assert driver.launch.context == found.context.value


def test_a_step_on_one_device_while_another_is_current(driver, program):
    first, second = driver.kernels(0), driver.kernels(1)
    assert driver.context == first.context.value != second.context.value
    assert torch.equal(one_step(program, second), one_step(program, HostKernels()))
    assert driver.launch.context == second.context.value
    assert driver.context == first.context.value
    driver.refuse("cuLaunchKernel", 719)
    with pytest.raises(UnavailableError, match="cuLaunchKernel: error 719"):
        one_step(program, second)
    assert driver.context == first.context.value


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_is_refused_is_named(driver, monkeypatch, call):
    monkeypatch.setattr(images, "FOLDER", driver.images)
    driver.refuse(call, 209)
    with pytest.raises(UnavailableError, match=rf"{call}\S*: CUDA_ERROR_NO_BINARY_FOR_GPU; please report this"):
        prove(DeviceKernels(0), CPU)
    driver.refuse()
    while driver.context is not None:  # where popping was refused
        driver.library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


@pytest.mark.parametrize("call", CALLS)
def test_where_a_call_is_refused_the_host_does_the_work_with_one_warning(driver, gpu, caplog, call):
    driver.refuse(call, 999)
    for _ in range(2):
        assert kernels.kernels_of(gpu) is None
    driver.refuse()
    assert kernels.kernels_of(gpu) is None, "it is found out once"
    while driver.context is not None:
        driver.library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
    [record] = caplog.records
    assert (record.name, record.levelno) == ("thinkguard", logging.WARNING)
    said = record.getMessage()
    assert re.match(rf"thinkguard: on cuda:0 the work is done on the host, .*: {call}\S*: error 999; please report", said)


def test_where_the_cubin_is_refused_the_ptx_is_tried(driver, monkeypatch, tmp_path):
    """As on Tegra, whose drivers take none that was made for a desktop."""
    monkeypatch.setattr(images, "FOLDER", tmp_path)
    for name, image in (("sm_90", b"\x7fELF"), ("compute_75", b".version 8.7")):
        (tmp_path / f"{name}.z").write_bytes(zlib.compress(image))
    (tmp_path / "images.json").write_text('{"images": {"sm_90": {}, "compute_75": {}}}', encoding="utf-8")
    loaded = []

    class Picky:
        def __getattr__(self, name):
            return getattr(driver.library, name)

        def cuLibraryLoadData(self, library, image, *rest):
            loaded.append(bytes(image[:4]))
            return 209 if image[:4] == b"\x7fELF" else driver.library.cuLibraryLoadData(library, image, *rest)

    one = Driver()
    one.library = Picky()
    prove(DeviceKernels(0, one), CPU)
    assert [image == b"\x7fELF" for image in loaded] == [True, False]


def test_a_gpu_that_does_what_the_host_does_is_used(driver, gpu, caplog):
    found = kernels.kernels_of(gpu)
    assert isinstance(found, DeviceKernels)
    assert kernels.kernels_of(gpu) is found
    assert kernels.kernels_of(CPU) is kernels._HOST
    assert not caplog.records


@pytest.mark.parametrize("after", [0, 1, 40, 100, 200, 320])
def test_one_wrong_bit_in_one_launch_is_found_by_the_proof(driver, gpu, caplog, after):
    driver.corrupt(after)
    assert kernels.kernels_of(gpu) is None
    [record] = caplog.records
    differs = r"their answers differ from the host's \(script \d, \w+, step \d+\); please report this with the name"
    assert re.search(differs, record.getMessage())


def test_a_driver_that_is_too_old_or_lacks_this_gpu(driver, monkeypatch):
    class Old:
        """All of a driver but what came with 12.0."""

        def __getattr__(self, name):
            if name.startswith("cuLibrary"):
                raise AttributeError(name)
            return getattr(driver.library, name)

    monkeypatch.setattr(images, "FOLDER", driver.images)
    old = Driver()
    old.library = Old()
    with pytest.raises(UnavailableError, match="has no cuLibraryLoadData: it is older than version 525"):
        DeviceKernels(0, old)
    with pytest.raises(UnavailableError, match="cuDeviceGet: error 1;"):
        DeviceKernels(5, Driver())


NO_DRIVER = """
import logging, sys, torch
from thinkguard.device.kernels import kernels_of
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
for _ in range(2):
    print(kernels_of(torch.device("cuda", 0)))
    torch.version.cuda = "12.8"
    print(kernels_of(torch.device("cuda", 1)))
"""


def test_without_a_driver_or_cuda_the_host_does_the_work():
    """In a process of its own, which has not loaded the stand-in."""
    done = subprocess.run([sys.executable, "-c", NO_DRIVER], capture_output=True, text=True, check=True, env={
        **os.environ, "PYTHONPATH": str(ROOT / "src"),
    })  # fmt: skip
    made_for, first, loaded, *rest = done.stdout.splitlines()
    why = "the work is done on the host, for its kernels do not run there"
    assert made_for.endswith(f"thinkguard: on cuda:0 {why}: they are made for CUDA")
    assert f"thinkguard: on cuda:1 {why}: the CUDA driver cannot be loaded: libcuda.so.1" in loaded
    assert [first, *rest] == ["None"] * 4


def test_without_images_the_host_does_the_work(driver, gpu, caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(images, "FOLDER", tmp_path)
    with pytest.raises(images.NoImageError, match=r"made without NVRTC.*pip install nvidia-cuda-nvrtc-cu12.*build it"):
        images.load(9, 0)
    assert kernels.kernels_of(gpu) is None
    [record] = caplog.records
    assert "this build of thinkguard has no GPU kernels" in record.getMessage()


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ((7, 5), "sm_75"), ((8, 0), "sm_80"), ((8, 6), "sm_80"), ((8, 9), "sm_80"), ((9, 0), "sm_90"), ((10, 0), "sm_100"),
        ((10, 3), "sm_100"), ((11, 0), "compute_75"), ((12, 0), "sm_120"), ((12, 1), "sm_120"), ((13, 0), "compute_75"),
        ((7, 0), None), ((6, 1), None),
    ],
    ids=str,
)  # fmt: skip
def test_which_image_a_gpu_takes(monkeypatch, tmp_path, capability, name):
    """A cubin runs on later minor versions of its major one; PTX is compiled by the driver for all that are later."""
    names = ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120", "compute_75")
    monkeypatch.setattr(images, "FOLDER", tmp_path)
    (tmp_path / "images.json").write_text(json.dumps({"images": {name: {} for name in names}}))
    for one in names:
        (tmp_path / f"{one}.z").write_bytes(zlib.compress(one.encode()))
    if name is None:
        with pytest.raises(images.NoImageError, match=r"no GPU kernels for compute capability .*: this build has sm_75"):
            images.load(*capability)
    else:
        assert images.load(*capability) == name.encode() + b"\0" * name.startswith("compute")


@pytest.mark.parametrize("capability", [(7, 5), (8, 9), (9, 0), (10, 3), (12, 0), (13, 0)], ids=str)
def test_the_images_of_this_build_are_handed_to_the_driver(driver, capability):
    if not (images.FOLDER / "images.json").exists():
        pytest.skip("this build has none: NVRTC was not installed")
    driver.be(*capability)
    assert set(DeviceKernels(0)._functions) == set(steps.KERNELS)


class Census:
    """The host's kernels; what the rows of slots need is counted before it is done, which changes nothing."""

    def __init__(self):
        self.actions = []

    def bind(self, name, step):
        run = HostKernels().bind(name, step)

        def start(num_blocks, stream):
            if name == "guard_slots":
                actions = torch.full((num_blocks, steps.EDIT_SIZE - 2), -1, dtype=torch.int32)
                step.actions = actions.data_ptr()
                run(num_blocks, stream)
                step.actions = 0
                self.actions += actions.tolist()
            run(num_blocks, stream)

        return start


def test_the_proof_sees_every_kind_of_action():
    census = Census()
    prove(census, CPU)
    kinds = Counter(kind for kind, *_ in census.actions)
    assert all(kinds[kind] >= 5 for kind in ActionKind), kinds
    fields = list(next(scripts()).program.start([]).decide().as_dict())
    actions = [dict(zip(fields, action, strict=True)) for action in census.actions]
    edits = [action for action in actions if action["kind"] == ActionKind.EDIT]
    flags = Counter(bit for edit in edits for bit in range(8) if edit["flags"] >> bit & 1)
    assert set(flags) == set(range(7)), "everything that an edit can be told"
    assert any(action["flags"] & CONSTANTS["FORCE_AIM"] for action in actions), "what to force in place of what cannot be"
    moved = {kind for kind in (Kind.END, Kind.IMPLICIT, Kind.BEGINS_END) if any(edit["moved"] & kind for edit in edits)}
    assert Kind.END in moved, "a wish to close again"
    assert {edit["cut"] for edit in edits} == {0, 1, 2, 3}, "characters that must not be left half written"
    assert any(edit["cut"] and edit["pending"] for edit in edits), "also behind one that is"
    assert any(edit["bias"] for edit in edits), "a bias"


def test_the_proof_reaches_every_meeting_of_lanes(driver):
    """So every loop that lanes share out, the one over a loop's periods included."""
    before = driver.sites
    driver.use(launch.LANES)
    prove(driver.kernels(), CPU)
    now = driver.sites
    text = "".join(path.read_text() for path in sorted((ROOT / "csrc").glob("*.c")))
    reached = [name for place, (name, times) in now.items() if times > before.get(place, ("", 0))[1]]
    wanted = re.findall(r"\btg_(?:meet|any|count|first|largest)(?=\()", text)
    assert sorted(name for name in reached if name != "TG_ALONE") == sorted(wanted)
