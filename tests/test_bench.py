"""The benchmarks: how outputs are read, what each alternative does in every case; no table says more than the file."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the logits are torch's")
pytest.importorskip("transformers", reason="the tokenizers are transformers'")

from thinkguard import cli  # noqa: E402
from thinkguard.bench import commands, generating, instructions, memory, quality, run, start, step  # noqa: E402
from thinkguard.bench.alternatives.alternative import MODULES, Cannot, load  # noqa: E402
from thinkguard.bench.plots import draw  # noqa: E402
from thinkguard.bench.reading import complaint  # noqa: E402
from thinkguard.bench.setting import Request, Setting, make_tokenizer  # noqa: E402
from thinkguard.bench.table import tables  # noqa: E402
from thinkguard.bench.timing import in_pairs, one_thread, ratio, spread, spread_of_rounds, with_pace  # noqa: E402
from thinkguard.errors import InputError  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
LIGHT = ("nothing", "plain torch", "thinkguard")  # need no host
OPENED = "<|im_start|>assistant\n<think>"


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """marker_tokens -> a small made vocabulary"""
    folders = {marker_tokens: tmp_path_factory.mktemp(f"made-{marker_tokens}") for marker_tokens in (True, False)}
    return {key: Setting.load(make_tokenizer(folder, 2048, marker_tokens=key)) for key, folder in folders.items()}


def test_made_tokenizers_split_markers_as_real_ones_do(settings):
    tokens, text = settings[True], settings[False]
    assert tokens.has_marker_tokens
    assert not text.has_marker_tokens
    for setting in settings.values():
        assert len(setting.tokenizer) == setting.width == 2048
        assert [setting.decode([token]) for token in setting.eos_ids] == ["<|im_end|>"]
        for written in ("What is two and two? <think>\nSo.</think>\n\nFour 🧮.", "</think>", "x</thi"):
            assert setting.decode(setting.encode(written)) == written
    pieces = [text.decode([token]) for token in text.encode("clear.</think>\n\nThe")]
    assert pieces[-4:] == [".</", "think", ">\n\n", "The"]
    assert text.decode([text.encode("<think>\n")[-1]]) == ">\n"
    with pytest.raises(InputError, match="vocab_size=100 has no room"):
        make_tokenizer(Path("nowhere"), 100, marker_tokens=True)


@pytest.mark.parametrize(
    ("written", "budget", "wrong"),
    [
        ("Two and two.</think>\n\nFour.<|im_end|>", 9, ""),
        ("Two and two.</think>\n\nFour.", 9, "it never finishes"),
        ("Two and two.<|im_end|>", 9, "not thinking, then an answer: 1 starts and 0 ends"),
        ("Two</think> is</think> four<|im_end|>", 9, "not thinking, then an answer: 1 starts and 2 ends"),
        ("Two</think>\n\n<|im_end|>", 9, "no answer"),
        ("Two and two and two</think>\n\nFour.<|im_end|>", 3, "5 thinking tokens under a budget of 3"),
        ("Two</thi</think>\n\nFour.<|im_end|>", 30, "half an end marker is left in the reasoning: 'Two</thi'"),
    ],
)
def test_an_output_is_read_by_its_text(settings, written, budget, wrong):
    for setting in settings.values():
        ids = setting.encode(written)
        assert complaint(setting, Request(setting.encode(OPENED), budget), ids) == wrong


def test_an_output_is_read_by_its_tokens(settings):
    tokens = settings[True]
    request = Request(tokens.encode(OPENED), 9)
    spelled = [*tokens.encode("Two</"), *tokens.encode("think"), *tokens.encode(">\n\n"), *tokens.encode("Four.<|im_end|>")]
    assert complaint(tokens, request, spelled) == "readers of tokens and of text see different ends"
    cut = [*tokens.encode("🧮")[:2], *tokens.encode("</think>Four.<|im_end|>")]
    assert complaint(tokens, request, cut) == "a character is cut in two"
    right = tokens.encode("Two</think>Four.<|im_end|>")
    assert complaint(tokens, request, right, verbatim=right) == ""
    other = tokens.encode("Two</think>Five.<|im_end|>")
    assert "its output was changed" in complaint(tokens, request, right, verbatim=other)


@pytest.fixture(scope="module")
def correctness(tmp_path_factory):
    """The short form of all cases, in a process of its own as `thinkguard bench` runs it."""
    out = tmp_path_factory.mktemp("correctness") / "found.json"
    env = {**os.environ, "TRITON_INTERPRET": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, "-m", "thinkguard.bench.correctness", "--quick", "--json", str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text(encoding="utf-8"))


def verdicts(found, name):
    return {row["case"]: row["verdict"] for row in found["rows"] if row["alternative"] == name}


def test_the_guard_is_right_in_every_case(correctness):
    assert set(verdicts(correctness, "thinkguard").values()) == {"right"}
    assert set(verdicts(correctness, "thinkguard")) == set(correctness["cases"])
    for row in correctness["rows"]:
        assert row["verdict"] != "right" or not any(one["wrong"] for one in row["runs"])
        assert row["verdict"] != "cannot" or row["why"]
        assert all(one["printed"] for one in row["runs"])


# Where each alternative of the pinned versions fails at what it is for; everything else is right or cannot be asked of it.
WRONG = {
    "plain torch": {
        "prompt opened by a longer token", "end in other tokens", "end begun at the cap, in other tokens",
        "every split of the end, made-text",
    },
    "vLLM V1 budget": {
        "endless thinking, markers as text", "prompt opened by a longer token", "end in other tokens",
        "end begun at the cap, in its own tokens", "end begun at the cap, in other tokens", "forced end preempted",
        "forced message preempted", "every split of the end, made-text",
    },
    "vLLM V2 budget": {
        "prompt opened by a longer token", "end in other tokens", "end begun at the cap, in other tokens",
        "every split of the end, made-text",
    },
    "SGLang processor": set(),
    "SGLang strict thinking": {
        "end in other tokens", "end begun at the cap, in other tokens", "every split of the end, made-text",
    },
    "xgrammar structural tag": set(),
    "llguidance grammar": set(),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_an_alternative_gets_wrong(correctness, name):
    about = correctness["alternatives"][name]
    if "cannot" in about:
        reason = f"{name}: {about['cannot']}"
        pytest.skip(reason)
    found = verdicts(correctness, name)
    assert {case for case, verdict in found.items() if verdict == "wrong"} == WRONG[name]
    assert found["endless thinking, markers as tokens"] == "right"


def test_what_is_not_installed_is_said(monkeypatch, settings):
    monkeypatch.setitem(MODULES, "absent", ("absent", "Absent"))
    with pytest.raises(Cannot, match="not installed here"):
        load("absent")
    rows = start.run(settings[True], {"broken": _Refusing}, repeats=1)
    assert rows == [{"alternative": "broken", "cannot": "no such markers"}]
    where = [step.Point(2048, 2, 4)]
    assert step.run({2048: settings[True]}, {"broken": _Refusing}, where, 0.01)[0]["cannot"] == "no such markers"


class _Refusing:
    def __init__(self, setting):
        raise Cannot("no such markers")


def test_a_step_is_timed_and_its_edits_are_asserted(settings):
    classes = {name: load(name) for name in LIGHT}
    rows = step.run({2048: settings[True]}, classes, [step.Point(2048, 3, 8)], 0.001)
    kinds = {(row["alternative"], row["kind"]) for row in rows}
    both = {(name, kind) for name in LIGHT for kind in ("thinking", "answer", "forced")}
    assert kinds == both - {("nothing", "forced")}
    assert all(0 < row["low"] <= row["median"] <= row["high"] for row in rows)


def test_a_step_that_forces_nothing_is_no_figure(settings):
    classes = {"does nothing": load("nothing")}
    with pytest.raises(AssertionError, match="does nothing"):
        step.run({2048: settings[True]}, classes, [step.Point(2048, 3, 8)], 0.001)


def test_the_start_is_timed(monkeypatch, settings):
    monkeypatch.setattr(start, "PROMPTS", (50, 500))
    rows = start.run(settings[True], {name: load(name) for name in LIGHT}, repeats=1)
    assert [row["alternative"] for row in rows] == list(LIGHT)
    assert all(set(row["admission"]) == {"50", "500"} for row in rows)


def test_memory_is_that_of_one_more(settings, tmp_path):
    """Measured as the command does it: in a process that has done nothing else."""
    out = tmp_path / "memory.json"
    command = [sys.executable, "-m", "thinkguard.bench.memory", str(settings[True].folder), "--width", "2048"]
    subprocess.run([*command, "--json", str(out), "--only", *LIGHT], check=True, capture_output=True)
    found = json.loads(out.read_text(encoding="utf-8"))
    sizes = {row["alternative"]: row for row in found["rows"]}
    assert sizes["nothing"]["setup"] <= 4 * 4096, "pages"
    assert sizes["nothing"]["request"] <= 4
    ours = sizes["thinkguard"]
    assert ours["setup"] >= settings[True].program.nbytes
    assert 19 * 4 <= ours["request"] < 4096, "a row is 19 integers, and what Python keeps around them"
    more = copy.deepcopy(found)
    for row in more["rows"]:
        row["request"] = row.get("request", 0) + 2
    (merged,) = [row for row in memory.merged([found, more])["rows"] if row["alternative"] == "thinkguard"]
    assert merged["request"]["high"] == ours["request"] + 2
    assert merged["setup"]["low"] == merged["setup"]["high"] == ours["setup"]


def test_memory_says_what_cannot_be_set_up(monkeypatch, settings):
    monkeypatch.setattr(memory, "load", lambda name: _Refusing)
    assert memory.run(settings[True], "broken") == {"alternative": "broken", "cannot": "no such markers"}


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
from thinkguard.bench.instructions import Windows
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


def test_steps_are_counted_one_by_one(settings):
    rows = list(instructions.walked(settings[True], {"thinkguard": load("thinkguard")(settings[True])}, _Numbers(), (8,)))
    assert [(row["kind"], len(row["windows"])) for row in rows] == [("thinking", 2), ("answer", 2), ("forced", 2)]


class _Numbers:
    """A meter that numbers the steps it runs."""

    num = 0

    def __call__(self, counted):
        counted()
        self.num += 1
        return self.num


def test_without_valgrind_nothing_is_counted(monkeypatch):
    monkeypatch.setattr(instructions.shutil, "which", lambda name: None if name == "valgrind" else name)
    assert instructions.run(LIGHT) == {"cannot": "valgrind is not installed"}
    monkeypatch.setattr(instructions.shutil, "which", lambda name: None)
    assert instructions.run(LIGHT) == {"cannot": "a C compiler is not installed"}
    monkeypatch.setenv("CC", "false")
    monkeypatch.setattr(instructions.shutil, "which", lambda name: name)
    assert "header was not compiled" in instructions.run(LIGHT)["cannot"]


def test_generate_is_measured_in_pairs(monkeypatch):
    monkeypatch.setattr(generating, "NEW_TOKENS", 12)
    monkeypatch.setattr(generating, "BUDGET", 4)
    (row,) = generating.run([generating.embedded(2)], pairs=2)
    assert row["ratio"]["pairs"] == 2
    assert row["alone"]["median"] > 0


def test_quality_is_counted(monkeypatch):
    monkeypatch.setattr(quality, "_ROOM", 64)
    found = quality.run(4, (6,))
    assert [row["way"] for row in found["rows"]] == [*quality.WAYS, quality.UNLIMITED]
    for row in found["rows"][:-1]:
        assert row["well_formed"] == row["num"] == 4
        assert row["mean_thinking_tokens"] <= 6


def test_runs_are_timed_in_pairs():
    order, checked = [], []
    runs = {name: lambda seed, name=name: order.append((name, seed)) for name in ("alone", "guarded")}
    rates = in_pairs(runs, lambda name, made: checked.append(name), pairs=2, num_tokens=10)
    there, back = ["alone", "guarded", "guarded", "alone"], ["guarded", "alone", "alone", "guarded"]
    turns = [(name, pair) for pair, names in enumerate([there, back, there]) for name in names]
    assert order == turns
    assert checked == [name for name, _ in turns]
    assert rates["alone"]["num"] == rates["ratio"]["pairs"] == 2, "the first pair warms up"
    assert spread([3.0, 1.0, 2.0], "s") == {"median": 2.0, "low": 1.0, "high": 3.0, "num": 3, "unit": "s"}
    rounds = spread_of_rounds([([1.0, 2.0, 3.0], 1.0), ([20.0, 40.0], 10.0)], "s")
    paced = rounds.pop("paced")
    assert rounds == {"median": 3.0, "low": 1.0, "high": 40.0, "num": 5, "unit": "s"}
    assert paced == {"low": 1.0, "high": 4.0}, "each round by the pace of its own"
    told = ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (told["median"], told["low"], told["high"], told["pairs"]) == (2.0, 2.0, 2.0, 3)


def test_what_is_timed_carries_the_pace_of_the_machine():
    ran = []
    made, pace = with_pace(lambda: ran.append(1) or "made")
    assert (made, ran) == ("made", [1])
    assert 0.1 < pace < 1000
    rates = in_pairs({"alone": lambda seed: None, "guarded": lambda seed: None}, lambda name, made: None, 3, 10)
    assert all(rates[name]["paced"]["low"] > 0 for name in ("alone", "guarded"))


def test_torch_keeps_its_threads():
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_the_command_offers_the_parts_that_there_are():
    assert tuple(run.PARTS) == commands.PARTS
    assert set(run.QUICK) < set(run.PARTS)
    assert set(run.COUNTED) < set(run.PARTS)


def test_parts_that_count_come_before_those_that_time(monkeypatch):
    begun = []

    def part(name):
        return lambda plan, folder: begun.append(name) or {"folder": folder.name}

    for name in run.PARTS:
        monkeypatch.setitem(run.PARTS, name, part(name))
    found = list(run.measure(list(run.PARTS), run.Plan(), lambda part: None))
    assert set(begun[:4]) == set(run.COUNTED)
    assert begun[4:] == [name for name in run.PARTS if name not in run.COUNTED]
    assert [next(iter(told["seconds"])) for told in found] == [*run.COUNTED, *begun[4:]]
    folders = [told[name]["folder"] for told in found for name in told["seconds"]]
    assert len(set(folders)) == 1, "tokenizers are made once for all parts"


def test_a_part_that_fails_takes_no_other_with_it(monkeypatch, tmp_path, capsys, written):
    def fails(plan, folder):
        raise RuntimeError("no")

    monkeypatch.setitem(run.PARTS, "correctness", fails)
    monkeypatch.setitem(run.PARTS, "memory", lambda plan, folder: {"cannot": "here"})
    found = list(run.measure(["correctness", "memory"], run.Plan(), lambda part: None))
    assert [told.get("correctness", told.get("memory")) for told in found] == [
        {"failed": "RuntimeError: no"}, {"cannot": "here"}
    ]  # fmt: skip
    out = tmp_path / "figures.json"
    assert cli.main(["bench", "--quick", "--parts", "correctness", "memory", "--json", str(out)]) == 2
    printed, told = capsys.readouterr()
    assert "Failed: RuntimeError: no" in printed
    assert "Not measured: here." in printed
    assert "no short form: memory" in told
    assert "correctness failed, as said above" in told
    assert json.loads(out.read_text(encoding="utf-8"))["memory"] == {"cannot": "here"}
    with pytest.raises(RuntimeError, match="correctness: RuntimeError: no"):
        list(written.measured(["correctness"]))


def test_the_command_prints_tables_and_writes_all_figures(monkeypatch, tmp_path, capsys):
    def part(plan, folder):
        assert plan.quick
        return quality.run(2, (4,))

    monkeypatch.setitem(run.PARTS, "quality", part)
    monkeypatch.setattr(quality, "_ROOM", 32)
    out = tmp_path / "figures.json"
    assert cli.main(["bench", "--quick", "--parts", "quality", "--json", str(out)]) == 0
    printed, told = capsys.readouterr()
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert tables(figures)["quality"] in printed
    assert figures["machine"]["cores"] == os.cpu_count()
    assert "quality" in told
    assert cli.main(["bench", "--tokenizers", str(tmp_path)]) == 2
    assert "holds no folder qwen3" in capsys.readouterr().err
    (tmp_path / "qwen3").mkdir()
    assert cli.main(["bench", "--tokenizers", str(tmp_path), "--parts", "step"]) == 2
    assert "--tokenizers is for the part correctness" in capsys.readouterr().err
    assert cli.main(["bench", "--json", str(tmp_path / "none" / "out.json")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_a_table_says_what_has_no_figure_and_what_varies():
    def row(name, low, median, high):
        where = {"vocab_size": 8, "batch": 2, "length": 4, "kind": "thinking"}
        return {**where, "alternative": name, "low": low, "median": median, "high": high}

    rows = [row("nothing", 1, 1, 1), row("plain torch", 10, 20, 30), row("thinkguard", 20, 20.5, 21)]
    slow = row("llguidance grammar", 0, 0, 0) | {"cannot": "too slow"}
    del slow["median"]
    rows += [slow, {"alternative": "vLLM V1 budget", "cannot": "absent"}]
    table, _, left_out = tables({"step": {"rows": rows}})["step"].partition("\n\n")
    assert table.endswith("| thinking, 2 x 4, 8 | 1.0 | **~20.0** | 20.5 |")
    assert left_out.splitlines() == [
        "- No figure for llguidance at 2 x 4, 8: too slow.", "- No figure for vLLM V1: absent."
    ]  # fmt: skip
    figure = {"low": 1, "median": 1, "high": 1}
    started = {"alternative": "thinkguard", "setup": figure, "admission": {"1000": figure | {"median": 3}}}
    other = {"alternative": "plain torch", "setup": figure | {"median": 2}, "admission": {"1000": figure | {"median": 2}}}
    shown = tables({"start": {"rows": [started, other, {"alternative": "vLLM V1 budget", "cannot": "absent"}]}})["start"]
    assert "| thinkguard | **1.0** | 3.0 |\n| plain torch | 2.0 | **2.0** |" in shown
    assert shown.endswith("- No figure for vLLM V1: absent.")


@pytest.fixture(scope="module")
def written():
    """benches/run.py as a module."""
    spec = importlib.util.spec_from_file_location("benches_run", ROOT / "benches" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_number_in_the_tables_is_the_files(written, tmp_path):
    pytest.importorskip("matplotlib", reason="the plots are matplotlib's")
    report = written.report
    figures = json.loads((report.RESULTS / "cpu-2-cores.json").read_text(encoding="utf-8"))
    for path, text in ((report.README, report.readme(figures)), (report.PAGE, report.page(figures))):
        assert f"{report.BEGIN}\n{text}\n{report.END}" in path.read_text(encoding="utf-8"), f"{path.name}: make bench"
    for picture in draw(figures, tmp_path):
        assert (ROOT / "docs" / "plots" / picture.name).stat().st_size > 1000


def test_runs_agree_where_their_spreads_overlap(written):
    first = {"rows": [{"alternative": "a", "kind": "x", "low": 1, "high": 2}, {"case": "c", "verdict": "right", "of": 3}]}
    second = copy.deepcopy(first)
    second["rows"][0] |= {"low": 2.0, "high": 3.0}
    assert written.compare("step", first, second) == {
        "figures": 3, "within": 3, "widened": 0.1, "outside": {}, "not in both": []
    }  # fmt: skip
    second["rows"][0]["low"], second["rows"][1]["verdict"] = 2.4, "wrong"
    told = written.compare("step", first, second)
    assert (told["figures"], told["within"]) == (3, 2), "a tenth more on both sides"
    assert told["outside"] == {"rows: c/verdict": ["right", "wrong"]}
    second["rows"][0]["low"] = 2.5
    assert written.compare("step", first, second)["outside"]["rows: a, x"] == [[1, 2], [2.5, 3.0]]
    faster = {"rows": [{"alternative": "a", "low": 10, "high": 12, "paced": {"low": 5, "high": 6}}]}
    slower = {"rows": [{"alternative": "a", "low": 20, "high": 24, "paced": {"low": 5, "high": 6}}]}
    assert written.compare("step", faster, slower)["within"] == 1, "twice as fast a machine"
    assert written.compare("step", {"a": {"low": 1, "high": 2}}, {"b": {"low": 1, "high": 2}})["not in both"] == ["a", "b"]
    bytes_ = {"rows": [{"alternative": "a", "setup": {"low": 0, "high": 0}, "request": {"low": 100, "high": 100}}]}
    more = copy.deepcopy(bytes_)
    more["rows"][0] |= {"setup": {"low": 2**20, "high": 2**21}, "request": {"low": 140, "high": 150}}
    assert list(written.compare("memory", bytes_, more)["outside"]) == ["rows: a/request"]


def test_a_part_is_held_against_the_run_before(written):
    here = {"cpu": "x", "load": 0.1}
    one = {"machine": here, "start": {"rows": [{"alternative": "a", "low": 1, "high": 2}]}, "seconds": {"start": 1}}
    first = written.added({"seconds": {"step": 5}}, one)
    assert first["agreement"] == {}
    assert first["seconds"] == {"step": 5, "start": 1}
    second = written.added(first, one | {"machine": here | {"load": 2.0}})
    assert second["agreement"]["start"]["within"] == 1
    assert written.added(second, one | {"machine": here | {"cpu": "y"}})["agreement"] == {}, "another machine"


def test_what_a_gpu_says_is_a_table(written):
    timed = {"what": "k", "us": {"median": 1.5, "unit": "us"}, "launches": 1, "seconds": 3}
    rows = [timed, {"what": "v", "not measured": "no"}]
    shown = written.report.gpu_table({"machine": {"gpu": "One"}, "rows": rows})
    assert "| k | us 1.5 us; launches 1 |" in shown
    assert "| v | not measured: no |" in shown
    assert shown.startswith("One;")
