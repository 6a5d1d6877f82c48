"""The benchmarks: how outputs are read, what each alternative does in every case; no table says more than the file."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the logits are torch's")
pytest.importorskip("transformers", reason="the tokenizers are transformers'")

from thinkguard import cli  # noqa: E402
from thinkguard.bench import commands, generating, instructions, quality, run, start, step  # noqa: E402
from thinkguard.bench.alternatives.alternative import MODULES, Cannot, load  # noqa: E402
from thinkguard.bench.plots import draw  # noqa: E402
from thinkguard.bench.reading import complaint  # noqa: E402
from thinkguard.bench.setting import Request, Setting, make_tokenizer  # noqa: E402
from thinkguard.bench.table import tables  # noqa: E402
from thinkguard.bench.timing import in_pairs, ratio, spread  # noqa: E402
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
        "EOS in the thinking", "every split of the end, made-text",
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
        "end in other tokens", "end begun at the cap, in other tokens", "EOS in the thinking", "a second block capped",
        "every split of the end, made-text",
    },
    "xgrammar structural tag": {"a cut inside a character"},
    "llguidance grammar": {"a cut inside a character"},
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
    monkeypatch.setattr(start, "_HELD", 64)
    rows = start.run(settings[True], {name: load(name) for name in LIGHT}, repeats=1)
    assert [row["alternative"] for row in rows] == list(LIGHT)
    assert all(set(row["admission"]) == {"50", "500"} for row in rows)


@pytest.mark.parametrize("kind", instructions.KINDS)
def test_what_is_counted_is_the_kind_of_step(kind):
    rows = instructions.walk(kind, 5)
    assert len(rows.rows) == instructions.ROWS
    assert {"thinking": 5, "answer": 0, "forced": 0}[kind] == rows.rows[0].thinking_tokens


def test_without_valgrind_nothing_is_counted(monkeypatch):
    monkeypatch.setattr(instructions.shutil, "which", lambda name: None)
    assert instructions.run() == {"cannot": "valgrind is not installed"}


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
    turns = [("alone", 0), ("guarded", 0), ("guarded", 1), ("alone", 1), ("alone", 2), ("guarded", 2)]
    assert order == turns
    assert checked == [name for name, _ in turns]
    assert rates["alone"]["num"] == rates["ratio"]["pairs"] == 2, "the first pair warms up"
    assert spread([3.0, 1.0, 2.0], "s") == {"median": 2.0, "low": 1.0, "high": 3.0, "num": 3, "unit": "s"}
    told = ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (told["median"], told["low"], told["high"], told["pairs"]) == (2.0, 2.0, 2.0, 3)


def test_the_command_offers_the_parts_that_there_are():
    assert tuple(run.PARTS) == commands.PARTS
    assert set(run.QUICK) < set(run.PARTS)


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


@pytest.fixture(scope="module")
def written():
    """benches/run.py as a module."""
    spec = importlib.util.spec_from_file_location("benches_run", ROOT / "benches" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_number_in_the_tables_is_the_files(written, tmp_path):
    pytest.importorskip("matplotlib", reason="the plots are matplotlib's")
    figures = json.loads((written.RESULTS / "cpu-2-cores.json").read_text(encoding="utf-8"))
    for path, text in ((written.README, written.readme(figures)), (written.PAGE, written.page(figures))):
        assert f"{written.BEGIN}\n{text}\n{written.END}" in path.read_text(encoding="utf-8"), f"{path.name}: make bench"
    for picture in draw(figures, tmp_path):
        assert (ROOT / "docs" / "plots" / picture.name).stat().st_size > 1000
