"""The benchmarks: that they run and assert, what is said about their figures, and that no table says more than the file."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the logits are torch's")
pytest.importorskip("transformers", reason="the tokenizers are transformers'")

from benches import instructions, measuring  # noqa: E402
from benches.alternatives.alternative import MODULES, Cannot, load  # noqa: E402
from benches.report import pages, tables  # noqa: E402
from benches.report.compare import compare  # noqa: E402
from benches.report.plots import draw  # noqa: E402
from benches.report.results import RESULTS, Results  # noqa: E402
from benches.setting import Setting, make_tokenizer  # noqa: E402
from benches.stepping import KINDS, Forced, Point, Walk, bring  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
KEPT = RESULTS / "cpu-2-cores.json"


def benches(*arguments: str, **options):
    """Run pytest on the benchmarks in a process of its own; engines are the served tests' matter."""
    command = [sys.executable, "-m", "pytest", "benches", "-q", *arguments]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """What the benchmarks measure in small: that they run and find what they assert, not figures to believe in."""
    out = tmp_path_factory.mktemp("benches") / "small.json"
    done = benches("--small", f"--benchmark-json={out}", "-k", "not serve and not v1_step")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return json.loads(out.read_text(encoding="utf-8"))


def test_every_group_is_measured_and_says_how_fast_the_machine_was(small):
    assert {one["group"] for one in small["benchmarks"]} == {"audit", "core", "generate", "memory", "start", "step"}
    for one in small["benchmarks"]:
        assert 0.1 < one["extra_info"]["pace"] < 1000
        assert one["stats"]["median"] > 0
    assert {one["group"] for one in small["left_out"]} >= {"gpu", "step"}
    assert all(one["cannot"] for one in small["left_out"])
    assert "node" not in small["machine_info"], "no machine's name is kept"
    about = {one["name"].partition("[")[0]: one["extra_info"] for one in small["benchmarks"]}
    paired = {name: found for name, found in about.items() if "ratio" in found}
    names = {"test_step_beside", "test_core_step_long", "test_core_step_scalars", "test_generate", "test_processor_call"}
    assert set(paired) == {*names, "test_admission_is_flat"}
    for found in paired.values():
        assert found["ratio"]["low"] <= found["ratio"]["median"] <= found["ratio"]["high"]
        assert {len(seconds) for seconds in found["pairs"].values()} == {found["ratio"]["pairs"]}


def test_every_table_is_made_of_what_was_measured(small, tmp_path):
    file = tmp_path / "small.json"
    file.write_text(json.dumps(small), encoding="utf-8")
    results = Results.read(file)
    assert "| thinkguard |" in tables.start(results)
    assert "| thinkguard |" in tables.memory(results)
    head = "| step, rows x thinking tokens, vocabulary (us) | nothing | plain torch | thinkguard |"
    assert tables.step(results).startswith(head)
    assert "left out by --small" in tables.step(results)
    assert tables.instructions(results) == "Instructions were not counted: left out by --small."
    assert "| embedded model | 8 |" in tables.rates(results, "test_generate")
    assert "not measured: no GPU" in pages.gpu_table(results) or torch.cuda.is_available()
    with pytest.raises(LookupError, match=r"0 figures of test_serve are about \{\}; measure it: make bench"):
        results.row("test_serve")


def test_benchmarks_are_not_shared_out():
    done = benches("-n", "2")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "benchmarks are timed one behind the other: leave out -n" in done.stderr


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    return Setting.load(make_tokenizer(tmp_path_factory.mktemp("made"), 2048, marker_tokens=True))


def walk_of(setting, name):
    return Walk(load(name)(setting), name, setting, Point(2048, 3, 8), torch.randn(3, setting.width))


@pytest.mark.parametrize("name", ["plain torch", "thinkguard"])
def test_steps_edit_what_their_kind_says(setting, name):
    walk = walk_of(setting, name)
    for kind in KINDS:
        steps = bring(walk, kind)
        for _ in range(3):
            steps.step(steps.prepare())
        steps.check()


def test_a_step_that_edits_nothing_is_no_figure(setting, monkeypatch):
    with pytest.raises(AssertionError, match="nothing forced nothing within 3 steps"):
        Forced(walk_of(setting, "nothing"))
    walk = walk_of(setting, "thinkguard")
    monkeypatch.setattr(walk.running, "step", lambda sampled, logits: None)
    with pytest.raises(AssertionError, match="thinkguard"):
        walk.check()


def test_what_is_not_installed_is_said(monkeypatch):
    monkeypatch.setitem(MODULES, "absent", ("absent", "Absent"))
    with pytest.raises(Cannot, match="not installed here"):
        load("absent")


def test_rounds_are_as_many_as_patience_allows(monkeypatch):
    now = iter([0, 9.0, 0, 0.01, *[0, 9.0], *[0, 0.2, 0, 0.2], *[0, 1e-6, 0, 1e-6]])
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: next(now))
    assert measuring.rounds_of(lambda: None) == 1, "three would take half a minute"
    next(now), next(now)
    assert measuring.rounds_of(lambda: None) == 1
    assert measuring.rounds_of(lambda: None) == 3
    assert measuring.rounds_of(lambda: None) == measuring.MOST


def test_torch_keeps_its_threads():
    before = torch.get_num_threads()
    with measuring.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_instructions_are_counted_where_a_window_is_open(tmp_path):
    """Of a light program: the hosts' imports take valgrind minutes. Where valgrind is not installed, that is said."""
    library = tmp_path / "requests.so"
    refused = instructions.build(library)
    if shutil.which("valgrind") is None:
        assert refused == "valgrind is not installed"
        return
    assert refused == ""
    program = f"""
from pathlib import Path
from benches.instructions import Windows
window = Windows(Path({str(library)!r}))
for num in (100, 1000, 10_000, 10_000):
    window(lambda: sum(range(num)))
sum(range(1_000_000))
"""
    counts = instructions.counted(["-c", program], tmp_path)
    _, short, long, again = (counts[str(number)] for number in (1, 2, 3, 4))
    assert long == pytest.approx(again, rel=0.02)
    assert short > 1000
    assert 5 * short < long < 12 * short


def test_steps_are_counted_one_by_one(setting, monkeypatch):
    monkeypatch.setattr(instructions, "LENGTHS", (8,))
    ran = []

    def window(counted):
        counted()
        ran.append(counted)
        return str(len(ran))

    found = list(instructions.walked(setting, {"thinkguard": load("thinkguard")(setting)}, window))
    assert found == [("thinkguard", 8, kind, [str(2 * i + 1), str(2 * i + 2)]) for i, kind in enumerate(KINDS)]


def test_without_valgrind_nothing_is_counted(monkeypatch, tmp_path):
    monkeypatch.setattr(instructions.shutil, "which", lambda name: None if name == "valgrind" else name)
    assert instructions.build(tmp_path / "requests.so") == "valgrind is not installed"
    monkeypatch.setattr(instructions.shutil, "which", lambda name: None)
    assert instructions.build(tmp_path / "requests.so") == "a C compiler is not installed"
    monkeypatch.setenv("CC", "false")
    monkeypatch.setattr(instructions.shutil, "which", lambda name: name)
    assert "header was not compiled" in instructions.build(tmp_path / "requests.so")


# What is said about figures


def figure(name, low, high, **about):
    stats = {"q1": low, "median": (low + high) / 2, "q3": high}
    return {"group": "step", "name": name, "fullname": f"x.py::{name}", "extra_info": about, "stats": stats}


def results_of(*benchmarks, left_out=(), **machine):
    return Results({"cpu": "x", **machine}, list(benchmarks), list(left_out))


def test_times_agree_in_multiples_of_the_pace():
    one = results_of(figure("a", 1.0, 2.0, pace=1.0))
    assert compare(one, results_of(figure("a", 2.0, 4.0, pace=2.0))) == (1, []), "twice as slow a machine"
    assert compare(one, results_of(figure("a", 2.1, 3.0, pace=1.0))) == (1, []), "a tenth more on both sides"
    num, [(name, old, new)] = compare(one, results_of(figure("a", 2.6, 3.0, pace=1.0)))
    assert (num, name, old, new) == (1, "a: time in paces", (1e3, 2e3), (2.6e3, 3e3))
    assert compare(one, results_of(figure("b", 9.0, 9.0, pace=1.0))) == (0, []), "nothing is compared with it"


def test_ratios_instructions_and_bytes_agree_as_they_are():
    def one(ratio, instructions, request):
        interval = {"low": ratio, "median": ratio, "high": ratio + 0.1}
        about = {"ratio": interval, "instructions": [instructions] * 2, "bytes": {"request": request}}
        return results_of(figure("a", 1.0, 2.0, **about))

    assert compare(one(0.5, 1000, 100), one(0.59, 1004, 110)) == (3, [])
    num, differ = compare(one(0.5, 1000, 100), one(0.61, 1020, 160))
    assert (num, [name for name, *_ in differ]) == (3, ["a: ratio", "a: instructions", "a: bytes, request"])


def test_two_files_are_compared_by_one_command(tmp_path):
    paths = [tmp_path / "old.json", tmp_path / "new.json"]
    for path, low in zip(paths, (1.0, 9.0), strict=True):
        results_of(figure("a", low, low, pace=1.0)).write(path)
    command = [sys.executable, "-m", "benches.report.compare", *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "a: time in paces: 1000 before, 9000 now\n0 of 1 figures agree\n")


def test_new_figures_take_the_place_of_old_ones():
    old = results_of(figure("a", 1, 2), figure("b", 1, 2), left_out=[{"name": "c", "cannot": "no"}], load=0.1)
    new = results_of(figure("b", 3, 4), figure("c", 5, 6), left_out=[{"name": "a", "cannot": "gone"}], load=2.0)
    both = old.with_new(new)
    assert [(one["name"], one["stats"]["q1"]) for one in both.benchmarks] == [("b", 3), ("c", 5)]
    assert both.left_out == [{"name": "a", "cannot": "gone"}]
    with pytest.raises(ValueError, match=r"another machine or with other versions \(cpu\)"):
        old.with_new(results_of(figure("a", 1, 2), cpu="y"))


def test_a_table_says_what_has_no_figure_and_what_varies():
    def step(name, low, median, high):
        where = {"vocab_size": 8, "batch": 2, "length": 4, "kind": "thinking"}
        one = figure(f"test_step[{name}]", low * 1e-6, high * 1e-6, alternative=name, **where)
        one["stats"]["median"] = median * 1e-6
        return one

    found = [step("nothing", 1, 1, 1), step("plain torch", 10, 20, 30), step("thinkguard", 20, 20.5, 21)]
    where = {"vocab_size": 8, "batch": 2, "length": 4, "kind": "thinking"}
    missing = [{"name": "test_step[x]", "alternative": "llguidance grammar", "cannot": "too slow", **where}]
    missing += [{"name": "test_step[y]", "alternative": "vLLM V1 budget", "cannot": "absent", **where}]
    table, _, left_out = tables.step(results_of(*found, left_out=missing)).partition("\n\n")
    assert table.endswith("| thinking, 2 x 4, 8 | 1.0 | **~20.0** | 20.5 |")
    assert left_out.splitlines() == [
        "- No figure for llguidance at 2 x 4, 8: too slow.", "- No figure for vLLM V1 at 2 x 4, 8: absent."
    ]  # fmt: skip
    row = {"ratio": {"low": 0.5, "median": 0.8, "high": 1.0}}
    assert (tables.ratio(row), tables.ratio(row, inverse=True)) == ("0.800 (0.500 .. 1.000)", "1.250 (1.000 .. 2.000)")


def test_every_number_in_the_pages_is_the_files(tmp_path):
    pytest.importorskip("matplotlib", reason="the plots are matplotlib's")
    results = Results.read(KEPT)
    for (path, name), text in pages.written(results).items():
        begin, end = (mark.format(name) for mark in pages.MARKS)
        assert f"{begin}\n{text}\n{end}" in path.read_text(encoding="utf-8"), f"{path.name}: python -m benches.report"
    for picture in draw(results, pages.outputs("quality"), tmp_path):
        assert (ROOT / "docs" / "plots" / picture.name).stat().st_size > 1000


def test_what_a_gpu_says_is_a_table():
    timed = copy.deepcopy(figure("test_gpu_step[edit]", 1e-6, 2e-6, launches=1)) | {"group": "gpu"}
    missing = [{"name": "test_gpu_generate", "group": "gpu", "cannot": "no GPU"}]
    shown = pages.gpu_table(results_of(timed, left_out=missing, gpu="One"))
    assert "| gpu_step[edit] | 1.5 us; launches 1 |" in shown
    assert "| gpu_generate, 1 of them | not measured: no GPU |" in shown
    assert shown.startswith("One;")
