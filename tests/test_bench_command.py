"""The command `bench` as a user types it, on the embedded model; and the clock that it and the benchmarks share."""

import json
import re
import sys
from contextlib import nullcontext
from statistics import median
from types import SimpleNamespace

import pytest
from modes import CLEAN_TEMPLATE, HEALTHY, checkpoint, edit_json

from thinkguard.bench import timing
from thinkguard.bench.timing import in_pairs, pace, ratio, timed_pair
from thinkguard.cli import main

torch = pytest.importorskip("torch", reason="`thinkguard bench` runs a model with torch")
transformers = pytest.importorskip("transformers", reason="`thinkguard bench` runs a model with transformers")

PAIRS, BATCH, TOKENS = 2, 3, 32
SHORT = ("--batch", str(BATCH), "--new-tokens", str(TOKENS), "--pairs", str(PAIRS), "--device", "cpu")
ONCE = ("--new-tokens", str(TOKENS), "--pairs", "1", "--device", "cpu")
OFF = "{{ '<think>\\n\\n</think>\\n\\n' }}"  # what a template writes where thinking is off


def bench(capsys, *arguments):
    """(exit status, stdout, stderr)"""
    status = main(["bench", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def calls(monkeypatch):
    """What each `generate()` was: "alone" or "guarded", the ids it made, its seed."""
    generate, calls = transformers.Qwen2ForCausalLM.generate, []

    def spied(model, **arguments):
        made = generate(model, **arguments)
        name = "guarded" if "_get_logits_processor" in vars(model) else "alone"
        calls.append((name, made, torch.initial_seed()))
        return made

    monkeypatch.setattr(transformers.Qwen2ForCausalLM, "generate", spied)
    return calls


def measured(capsys, path, *arguments):
    """What `--json` prints for a model that can be measured."""
    status, out, err = bench(capsys, "--model", path, *ONCE, *arguments, "--json")
    assert status == 0, err
    return json.loads(out)


# --- what it prints ---


def test_the_figures_follow_from_the_seconds_of_the_pairs(capsys):
    status, out, _ = bench(capsys, "--model", HEALTHY, *SHORT, "--json")
    found = json.loads(out)
    assert status == 0
    seconds = found["seconds"]
    assert list(seconds) == ["alone", "guarded"]
    assert all(len(pairs) == PAIRS and min(pairs) > 0 for pairs in seconds.values())
    for name, pairs in seconds.items():
        assert found["tokens_per_second"][name] == pytest.approx(BATCH * TOKENS / median(pairs))
    ratios = [alone / guarded for alone, guarded in zip(*seconds.values(), strict=True)]
    assert found["ratio"]["median"] == pytest.approx(median(ratios))
    assert min(ratios) <= found["ratio"]["low"] <= found["ratio"]["median"] <= found["ratio"]["high"] <= max(ratios)
    assert found["ratio"]["pairs"] == PAIRS


def test_the_json_says_what_was_measured_and_where(capsys):
    _, out, _ = bench(capsys, "--model", HEALTHY, *SHORT, "--json")
    found = json.loads(out)
    assert (found["model"], found["batch"], found["new_tokens"]) == (str(HEALTHY), BATCH, TOKENS)
    assert found["max_thinking_tokens"] == TOKENS // 2
    assert found["format"] == "qwq"  # ChatML whose prompt does not open the thinking
    assert sum(found["closed_by"].values()) == 2 * BATCH * PAIRS  # the warm-up does not count
    assert set(found["closed_by"]) <= {"budget", "model"}
    assert found["device"] == "cpu"
    assert found["device_name"]
    assert found["threads"] == torch.get_num_threads()
    assert found["dtype"] == "bfloat16"  # as the model is shipped
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["transformers"] == transformers.__version__
    assert set(found["versions"]) == {"thinkguard", "torch", "transformers"}


def test_the_answer_goes_to_stdout_and_the_progress_elsewhere(capsys):
    status, out, err = bench(capsys, "--model", HEALTHY, *SHORT, "--format", "think")
    assert status == 0
    lines = out.splitlines()
    assert re.fullmatch(r"alone +[\d.,]+ tokens/s", lines[0])
    assert re.fullmatch(r"guarded +[\d.,]+ tokens/s", lines[1])
    interval = rf"95 %: \d\.\d{{3}} to \d\.\d{{3}}; {PAIRS} pairs in the order a b b a"
    assert re.fullmatch(rf"guarded / alone +\d\.\d{{3}}  \({interval}\)", lines[2])
    assert any("healthy, bfloat16, format think" in line for line in lines)
    assert any(f"at most {TOKENS // 2} tokens" in line for line in lines)
    assert len({re.match(r"\S+( / \S+)? +", line).end() for line in lines if line}) == 1  # aligned
    assert err.splitlines()[1:] == ["warmed up", "pair 1 of 2", "pair 2 of 2"]


# --- what it runs ---


def test_both_runs_make_as_many_tokens_in_turn(capsys, calls):
    _, out, _ = bench(capsys, "--model", HEALTHY, *SHORT, "--json")
    prompt = json.loads(out)["prompt_tokens"]
    there, back = ["alone", "guarded", "guarded", "alone"], ["guarded", "alone", "alone", "guarded"]
    assert [name for name, _, _ in calls] == there + back + there  # the first pair warms up
    assert {tuple(made.shape) for _, made, _ in calls} == {(BATCH, prompt + TOKENS)}
    assert [seed for _, _, seed in calls] == [0] * 4 + [1] * 4 + [2] * 4


def test_no_turn_end_that_the_model_s_configuration_lacks_is_written(capsys, calls, tmp_path):
    path = checkpoint(tmp_path)
    for name in ("config.json", "generation_config.json"):
        edit_json(path / name, lambda config: config.update(eos_token_id=507))  # <|endoftext|>, as in some base models
    prompt = measured(capsys, path, "--new-tokens", "96")["prompt_tokens"]
    assert not any((made[:, prompt:] == 509).any() for _, made, _ in calls)  # <|im_end|>


def test_a_template_that_thinks_only_if_asked_is_asked(capsys, tmp_path):
    template = f"{CLEAN_TEMPLATE}{{% if add_generation_prompt and not enable_thinking %}}{OFF}{{% endif %}}"
    assert measured(capsys, checkpoint(tmp_path, template))["closed_by"] == {"budget": 2}


def test_without_a_template_the_question_is_followed_by_the_opening(capsys, tmp_path):
    path = checkpoint(tmp_path)
    (path / "chat_template.jinja").unlink()
    assert measured(capsys, path, "--format", "think")["closed_by"] == {"budget": 2}


# --- what it refuses ---


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "/nowhere"], "--model /nowhere: there is no such folder; give one with config.json"),
        (["--model", "."], "--model .: holds no config.json; give a folder with it"),
        (["--model", "no-such-model"], "--model no-such-model: its config cannot be loaded: "),
        (["--model", HEALTHY, "--device", "gpu"], "--device gpu: "),
        (["--model", HEALTHY, "--device", "meta"], "--device meta: "),
        (["--model", HEALTHY, "--device", "cuda:99"], "leave it out for "),
        (["--model", HEALTHY, "--format", "thnk"], "format='thnk' is not a known family: did you mean 'think'"),
        (["--model", HEALTHY, "--new-tokens", "8"], "--new-tokens 8 is too small: half of them are the guard's budget"),
        (["--model", HEALTHY, "--new-tokens", "2000"], "exceeds the model's 1024 positions (max_position_embeddings)"),
    ],
)
def test_what_cannot_be_measured_says_why(arguments, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, out, err = bench(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("thinkguard bench: ")
    assert said in err


def test_the_least_number_of_tokens_that_an_error_gives_is_accepted(capsys):
    _, _, err = bench(capsys, "--model", HEALTHY, "--new-tokens", "8")
    least = int(re.search(r"give at least (\d+)$", err.strip())[1])
    assert bench(capsys, "--model", HEALTHY, *ONCE, "--new-tokens", least)[0] == 0
    assert f"give at least {least}" in bench(capsys, "--model", HEALTHY, *ONCE, "--new-tokens", least - 1)[2]


def test_the_greatest_number_of_tokens_that_an_error_gives_is_accepted(capsys, tmp_path):
    path = checkpoint(tmp_path)
    edit_json(path / "config.json", lambda config: config.update(max_position_embeddings=96))
    _, _, err = bench(capsys, "--model", path)
    most = int(re.search(r"give at most (\d+)$", err.strip())[1])
    assert bench(capsys, "--model", path, *ONCE, "--new-tokens", most)[0] == 0
    assert f"give at most {most}" in bench(capsys, "--model", path, *ONCE, "--new-tokens", most + 1)[2]


def test_broken_weights_are_named(capsys, tmp_path):
    path = checkpoint(tmp_path)
    (path / "model.safetensors").write_bytes(b"nothing")
    status, _, err = bench(capsys, "--model", path, *ONCE)
    assert status == 2
    assert f"--model {path}: its model cannot be loaded: " in err


def test_a_tokenizer_without_markers_asks_for_the_format(capsys, tmp_path):
    path = checkpoint(tmp_path, "{% for m in messages %}{{ m.content }}{% endfor %}")
    text = (path / "tokenizer.json").read_text(encoding="utf-8")
    (path / "tokenizer.json").write_text(text.replace("think>", "thonk>"), encoding="utf-8")
    status, _, err = bench(capsys, "--model", path, *ONCE)
    assert status == 2
    assert f"--model {path}: no reasoning markers found" in err
    assert "--format" in err


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (f"{CLEAN_TEMPLATE}{{% if add_generation_prompt %}}{OFF}{{% endif %}}", "its chat template ends the thinking"),
        ("{{ raise_exception('only tools, <think>') }}", "its chat template does not render a question: only tools"),
    ],
)
def test_a_template_that_leaves_nothing_to_guard_is_refused(template, said, capsys, tmp_path):
    path = checkpoint(tmp_path, template)
    status, _, err = bench(capsys, "--model", path, *ONCE, "--format", "think")
    assert status == 2
    assert said in err
    assert f"thinkguard doctor {path}" in err


def test_a_configuration_that_multiplies_outputs_is_refused(capsys, tmp_path):
    path = checkpoint(tmp_path)
    edit_json(path / "generation_config.json", lambda config: config.update(do_sample=True, num_return_sequences=2))
    status, out, err = bench(capsys, "--model", path, *ONCE)
    assert (status, out) == (2, "")
    assert "remove what ends or multiplies outputs from generation_config.json" in err


def test_a_guard_that_does_not_hold_gives_an_error_and_no_figure(capsys, monkeypatch):
    from thinkguard.hf import ThinkLogitsProcessor

    monkeypatch.setattr(ThinkLogitsProcessor, "attach", lambda guard, model: nullcontext())
    status, out, err = bench(capsys, "--model", HEALTHY, *ONCE)
    assert (status, out) == (2, "")
    assert "the guard did not hold an output that was timed" in err
    assert f"max_thinking_tokens={TOKENS // 2}" in err


def test_memory_that_is_too_small_is_said_with_the_remedy(capsys, monkeypatch):
    def full(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB.")

    monkeypatch.setattr(transformers.Qwen2ForCausalLM, "generate", full)
    status, out, err = bench(capsys, "--model", HEALTHY, *ONCE, "--batch", "7")
    assert (status, out) == (2, "")
    assert f"--batch 7 and --new-tokens {TOKENS} failed on cpu: CUDA out of memory. Tried to allocate 20 GiB; lower" in err


def test_without_transformers_it_says_what_to_install(capsys, monkeypatch):
    for name in ("transformers", "transformers.utils"):
        monkeypatch.setitem(sys.modules, name, None)
    status, _, err = bench(capsys, "--model", HEALTHY)
    assert status == 2
    assert "pip install 'thinkguard[hf]'" in err


@pytest.mark.parametrize("option", ["--batch", "--new-tokens", "--pairs"])
def test_a_count_of_nothing_is_refused(option, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["bench", "--model", str(HEALTHY), option, "0"])
    assert caught.value.code == 2
    assert f"argument {option}: must be at least 1" in capsys.readouterr().err


# --- the clock ---


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test advances."""
    clock = SimpleNamespace(now=0.0)
    clock.perf_counter = lambda: clock.now
    monkeypatch.setattr(timing, "time", clock)
    return clock


def taking(clock, seconds):
    """A run that takes as long as `seconds` says of the pair's number, and returns the number."""

    def run(number):
        clock.now += seconds(number)
        return number

    return run


def test_a_pair_runs_a_b_b_a_and_an_odd_one_b_a_a_b(clock):
    order = []
    runs = {"a": lambda number: order.append(("a", number)), "b": lambda number: order.append(("b", number))}
    in_pairs(runs, lambda name, result: None, 2)
    assert order == [("a", 0), ("b", 0), ("b", 0), ("a", 0), ("b", 1), ("a", 1), ("a", 1), ("b", 1),
                     ("a", 2), ("b", 2), ("b", 2), ("a", 2)]  # fmt: skip


def test_a_pair_s_seconds_are_the_mean_of_two_runs(clock):
    steps = iter([1.0, 10.0, 20.0, 3.0])
    runs = {name: taking(clock, lambda _: next(steps)) for name in "ab"}
    assert timed_pair(runs, lambda name, result: None, 0) == {"a": 2.0, "b": 15.0}


def test_the_warm_up_is_dropped(clock):
    runs = {"a": taking(clock, lambda number: [100.0, 1.0, 2.0, 3.0][number]), "b": taking(clock, lambda number: 5.0)}
    assert in_pairs(runs, lambda name, result: None, 3) == {"a": [1.0, 2.0, 3.0], "b": [5.0, 5.0, 5.0]}


def test_every_result_is_checked_behind_the_clock(clock):
    checked = []

    def check(name, result):
        clock.now += 1000.0
        checked.append((name, result))

    assert in_pairs({name: taking(clock, lambda _: 1.0) for name in "ab"}, check, 1) == {"a": [1.0], "b": [1.0]}
    assert checked == [("a", 0), ("b", 0), ("b", 0), ("a", 0), ("b", 1), ("a", 1), ("a", 1), ("b", 1)]


def test_a_check_that_fails_is_heard(clock):
    def check(name, result):
        raise LookupError(name)

    with pytest.raises(LookupError, match="a"):
        in_pairs({name: taking(clock, lambda _: 1.0) for name in "ab"}, check, 1)


def test_a_ratio_is_the_median_of_the_pairs_ratios():
    found = ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0])
    assert (found.median, found.pairs) == (2.0, 3)
    assert (found.low, found.high) == (1.0, 3.0)  # of three pairs, each is often enough the median of a draw
    same = ratio([3.0] * 5, [2.0] * 5)
    assert (same.low, same.median, same.high) == (1.5, 1.5, 1.5)


def test_an_interval_narrows_with_the_pairs_and_is_the_same_each_time():
    ratios = [0.9, 0.95, 1.0, 1.05, 1.1]
    few, many = ratio(ratios, [1.0] * 5), ratio(ratios * 20, [1.0] * 100)
    assert few == ratio(ratios, [1.0] * 5)
    assert few.low <= many.low <= many.median == few.median == 1.0
    assert many.median <= many.high <= few.high
    assert many.high - many.low < few.high - few.low


def test_a_ratio_without_pairs_or_of_unequal_lengths_is_refused():
    with pytest.raises(ValueError, match="at least one pair"):
        ratio([], [])
    with pytest.raises(ValueError, match="shorter"):
        ratio([1.0, 2.0], [1.0])


def test_the_pace_of_this_machine_is_a_few_milliseconds():
    assert 0.1 < pace() < 1000
