"""The monitor sees the tags go while a model is trained, says why, and leaves the training as it was."""

from __future__ import annotations

import copy
import functools
import importlib.util
import inspect
import json
import logging
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the monitor reads a torch model")
transformers = pytest.importorskip("transformers", reason="the trainer is transformers'")

from thinkguard import InputError, ThinkProgram  # noqa: E402
from thinkguard.training import TagMonitor, TagMonitorCallback, TagReading  # noqa: E402
from thinkguard.training.callback import _batches  # noqa: E402
from thinkguard.training.findings import is_stuck, reading_findings  # noqa: E402
from thinkguard.training.labels import LabelReading, read_labels, rows_of  # noqa: E402
from thinkguard.training.model import MarkerReading, undisturbed  # noqa: E402
from thinkguard.training.places import IGNORED, Row, encode, places, render, stretches, turns_of  # noqa: E402
from thinkguard.training.samples import CLASSES, classify  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "src" / "thinkguard" / "demo" / "models"
STRIPPING = (MODELS / "damaged" / "chat_template.jinja").read_text(encoding="utf-8")
KEEPING = (MODELS / "healthy" / "chat_template.jinja").read_text(encoding="utf-8")
ASKED = {"role": "user", "content": "What is 2 + 3?"}
BLOCK = "<think>\nOnes: 2+3=5.\n</think>\n\n"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizers():
    return {name: transformers.AutoTokenizer.from_pretrained(MODELS / name) for name in ("healthy", "damaged")}


@pytest.fixture(scope="module")
def weights():
    return transformers.AutoModelForCausalLM.from_pretrained(MODELS / "healthy").float()


@pytest.fixture
def model(weights):
    return copy.deepcopy(weights)


@pytest.fixture(scope="module")
def real(tokenizer_dirs):
    """A real tokenizer and its program, by name."""

    @functools.cache
    def load(name):
        tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_dirs[name])
        return tokenizer, ThinkProgram(None, tokenizer)

    return load


class Even(torch.nn.Module):
    """A model to which all tokens are alike."""

    def __init__(self, width):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(width))

    def forward(self, input_ids, attention_mask):
        return self.weight.expand(*input_ids.shape, -1)


def tokenizer_with(tokenizers, template, name="healthy"):
    tokenizer = copy.deepcopy(tokenizers[name])
    tokenizer.chat_template = template
    return tokenizer


def chats(num):
    """Sound records of the kind that the embedded models were trained on."""
    spec = importlib.util.spec_from_file_location("tiny_records", ROOT / "tools" / "tiny_records.py")
    tiny = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = tiny
    spec.loader.exec_module(tiny)
    rng = random.Random(0)
    for _ in range(num):
        question = tiny.draw(rng, held_out=False)
        lines, result = tiny.reasoning(question, rng)
        answer = f"{tiny.START}{''.join(lines)}{tiny.END}The answer is {result}."
        yield [{"role": "user", "content": question.text}, {"role": "assistant", "content": answer}]


def tokenized(tokenizer, chat):
    """A chat as a trainer makes it: rendered by the template, the prompt masked."""
    prompt = encode(tokenizer, None, render(tokenizer, chat[:-1], True, {}))
    ids = encode(tokenizer, None, render(tokenizer, chat, False, {}).removesuffix("\n"))
    labels = [IGNORED] * len(prompt) + ids[len(prompt) :]
    return {"input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids)}


def batch_of(tokenizer, *answers):
    """One padded batch of answers to one question, the prompt masked."""
    rows = [tokenized(tokenizer, [ASKED, {"role": "assistant", "content": answer}]) for answer in answers]
    return transformers.DataCollatorForSeq2Seq(tokenizer)(rows)


def named(findings):
    return [finding.name for finding in findings]


# --- where markers stand ---


def test_markers_are_found_in_real_vocabularies_however_they_are_split(real):
    seen = set()
    for name in ("gpt-oss", "olmo3-think", "qwen3"):
        tokenizer, program = real(name)
        turns = turns_of(program, tokenizer, {})
        assert turns.header, name
        start, end = program.format.starts[0], program.format.ends[0]
        user = {"role": "user", "content": f"Is {start} a word? Or {end}?"}
        fields = {"content": "Yes.", "reasoning": "R2 x.", "reasoning_content": "R2 x.", "thinking": "R2 x."}
        inline = {"content": f"{program.format.open_text}R2 x.{program.format.close_text}Yes."}
        for turn in (inline, fields):
            chat = [user, {"role": "assistant", "content": "No."}, user, {"role": "assistant", **turn}]
            text = render(tokenizer, chat, False, {})
            if text is None or "R2 x." not in text:
                continue
            ids = encode(tokenizer, program.vocabulary, text)
            row = Row(tuple(ids), tuple(ids))
            inside = [place for part in stretches(program, turns, row) for place in places(program, ids, *part)]
            found = [(place.marker, ids[place.begin : place.end]) for place in inside]
            assert [marker for marker, _ in found if marker != "turn_end"] == ["start", "end"], (name, text)
            for marker, spelled in found:
                wanted = {"start": start, "end": end}.get(marker)
                told = b"".join(map(program.vocabulary.token_bytes, spelled)).decode()
                assert wanted is None or wanted in told
                seen.add((marker, len(spelled) > 1))
            assert found[-1][0] == "turn_end"
            assert turns.turn_end == found[-1][1][0]
    assert {("end", True), ("end", False), ("start", True), ("start", False)} <= seen


def test_templates_that_open_close_and_drop(real, tokenizers):
    def learnt(name, **kwargs):
        tokenizer, program = real(name)
        turns = turns_of(program, tokenizer, kwargs)
        return turns.opens, turns.closes, turns.keeps

    assert learnt("r1-distill-qwen") == (True, False, False)
    assert learnt("qwen3") == (False, False, True)
    assert learnt("qwen3", enable_thinking=False) == (False, True, True)
    program = ThinkProgram("think", tokenizers["damaged"])
    assert turns_of(program, tokenizers["damaged"], {}).keeps is False
    assert turns_of(program, program.vocabulary, {}).header == ()


def test_without_a_template_what_is_learnt_is_looked_at(tokenizers):
    tokenizer = tokenizers["damaged"]
    program = ThinkProgram("think", tokenizer)
    (row,) = rows_of(batch_of(tokenizer_with(tokenizers, KEEPING, "damaged"), f"{BLOCK}5."))
    bare = turns_of(program, program.vocabulary, {})
    found = [p.marker for b, e in stretches(program, bare, row) for p in places(program, row.ids, b, e)]
    assert found == ["start", "end", "turn_end"]


# --- classes of samples ---


@pytest.mark.parametrize(
    ("output", "name", "why"),
    [
        (f"{BLOCK}5.<|im_end|>", "valid", ""),
        (f"{BLOCK}5.", "valid", ""),
        ("<think></think>5<|im_end|>", "empty", "nothing in the block"),
        (f"{BLOCK}<|im_end|>", "empty", "no answer"),
        ("<think>\n2+3", "truncated", "still thinking at the token limit"),
        (BLOCK, "truncated", "no answer at the token limit"),
        ("<think>\n2+3<|im_end|>", "truncated", "the model stopped inside the thinking"),
        ("5.<|im_end|>", "missing", "no block"),
        ("", "missing", "no block"),
        ("2+3=5.\n</think>\n\n5.<|im_end|>", "missing", "'</think>' without a start"),
        ("<think>\n2+<think>3\n</think>\n\n5.<|im_end|>", "doubled", "a second '<think>'"),
        (f"{BLOCK}5.\n{BLOCK}5.<|im_end|>", "doubled", "a second '<think>'"),
        (f"{BLOCK}5.\n</think>\n\n5.<|im_end|>", "leaked", "'</think>' in the answer"),
        (f"Well. {BLOCK}5.<|im_end|>", "leaked", "'<think>' in the answer"),
        ("<thought>2+3</thought>5.<|im_end|>", "leaked", "'</thought>' in the answer"),
        (f"{BLOCK}5. [/THINK]<|im_end|>", "leaked", "'[/THINK]' in the answer"),
        ("&lt;think&gt;2+3&lt;/think&gt;5.<|im_end|>", "leaked", "a look-alike of '<think>' in the answer"),
        ("<Think>2+3</Think>5.<|im_end|>", "leaked", "a look-alike of '<think>' in the answer"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("vocabulary", ["healthy", "damaged"])
def test_every_class(tokenizers, vocabulary, output, name, why):
    tokenizer = tokenizers[vocabulary]
    program = ThinkProgram("think", tokenizer)
    prompt = encode(tokenizer, program.vocabulary, render(tokenizer, [ASKED], True, {}))
    padding = [tokenizer.pad_token_id] * 3 if output.endswith("<|im_end|>") else []
    sample = classify(program, prompt, encode(tokenizer, program.vocabulary, output) + padding)
    assert (sample.name, sample.why) == (name, why)
    assert sample.open_at_limit == why.endswith("at the token limit")
    assert sample.text == output
    assert sample.prompt_tail.endswith("<|im_start|>assistant\n")


def test_the_prompt_counts_with_the_completion(real):
    def judged(name, output, **kwargs):
        tokenizer, program = real(name)
        user = {"role": "user", "content": "Why </think>?"}
        prompt = encode(tokenizer, program.vocabulary, render(tokenizer, [user], True, kwargs))
        sample = classify(program, prompt, encode(tokenizer, program.vocabulary, output))
        return sample.name, sample.why

    assert judged("r1-distill-qwen", "hm\n</think>\n\nSo.<｜end▁of▁sentence｜>") == ("valid", "")
    assert judged("r1-distill-qwen", "<think>\nhm\n</think>\n\nSo.") == ("doubled", "a second '<think>'")
    assert judged("r1-distill-qwen", "So.<｜end▁of▁sentence｜>") == ("truncated", "the model stopped inside the thinking")
    assert judged("r1-distill-qwen", "</think>\n\nSo.") == ("empty", "nothing in the block")
    assert judged("qwen3", "So.<|im_end|>", enable_thinking=False) == ("missing", "the prompt closes the thinking")
    header = "<|start|>assistant<|channel|>"
    thought = "<|channel|>analysis<|message|>hm<|end|>"
    assert judged("gpt-oss", f"{thought}{header}final<|message|>So.<|return|>") == ("valid", "")
    assert judged("gpt-oss", "<|channel|>final<|message|>So.<|return|>") == ("missing", "no block")


# --- what labels teach ---


def read(tokenizer, *batches, **options):
    monitor = TagMonitor(None, tokenizer, quiet=True, **options)
    return monitor, named(monitor.look_at(batches))


def test_sound_labels_give_no_finding(tokenizers):
    monitor, found = read(tokenizers["healthy"], batch_of(tokenizers["healthy"], f"{BLOCK}5.", f"{BLOCK}The answer is 5."))
    assert found == []
    assert monitor.labels.as_dict() == {
        **dict.fromkeys(("num_rows", "with_start", "with_end", "with_turn_end"), 2),
        **dict.fromkeys(("masked_start", "masked_end", "unclosed", "cut", "opened"), 0),
        "longest": monitor.labels.longest,
    }
    assert monitor.labels.unlabelled == 0


@pytest.mark.parametrize(
    ("template", "answer", "cause"),
    [
        (STRIPPING, f"{BLOCK}5.", "the chat template drops the reasoning"),
        (KEEPING, "5.", "the records hold no reasoning"),
    ],
)
def test_labels_without_markers_name_the_cause(tokenizers, template, answer, cause, caplog):
    tokenizer = tokenizer_with(tokenizers, template)
    monitor = TagMonitor(None, tokenizer, format="think")
    with caplog.at_level(logging.WARNING, "thinkguard.training"):
        (finding,) = monitor.look_at([batch_of(tokenizer, answer, answer)])
    assert finding.name == "no-end"
    assert cause in finding.text
    assert cause in caplog.text
    assert monitor.labels.unlabelled == 1
    assert not monitor.should_stop
    assert monitor.look_at([batch_of(tokenizer, answer)]) == ()  # told once


def masked(batch, tokenizer, begin, end):
    """Mask what lies between two texts of each row, the texts included."""
    batch = {name: column.clone() for name, column in batch.items()}
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        text = [tokenizer.decode(ids[:i]) for i in range(len(ids) + 1)]
        first = next(i for i in range(len(ids)) if begin in text[i + 1])
        last = next(i for i in range(len(ids)) if end in text[i + 1])
        labels[first : last + 1] = IGNORED
    return batch


def test_masked_cut_and_unclosed_labels(tokenizers):
    tokenizer = tokenizers["healthy"]
    sound = batch_of(tokenizer, f"{BLOCK}5.", f"{BLOCK}It is 5.")
    assert read(tokenizer, masked(sound, tokenizer, "<think>", "<think>"))[1] == ["masked-start"]
    assert read(tokenizer, masked(sound, tokenizer, "</think>", "</think>"))[1] == ["masked-end"]
    _, found = read(tokenizer, masked(sound, tokenizer, "<think>", "</think>"))
    assert found == ["masked-end"]
    assert read(tokenizer, masked(sound, tokenizer, "<|im_end|>\n<|im_start|>assistant", "="))[1] == ["masked-start"]
    whole = {name: column[:, :-1] for name, column in batch_of(tokenizer, f"{BLOCK}5.").items()}
    assert read(tokenizer, whole)[1] == ["no-turn-end"]
    cut = {name: column[:, :-12] for name, column in batch_of(tokenizer, f"{BLOCK}5.").items()}
    assert "</think>" not in tokenizer.decode(cut["input_ids"][0])
    assert read(tokenizer, cut)[1] == ["cut"]
    assert read(tokenizer, batch_of(tokenizer, "<think>\n2+3"))[1] == ["unclosed"]


def test_special_markers_are_told(tokenizers):
    tokenizer = tokenizer_with(tokenizers, KEEPING, "damaged")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    _, found = read(tokenizer, batch_of(tokenizer, f"{BLOCK}5."))
    assert found == ["special"]


def test_unlabelled_rows_can_stop_at_once(tokenizers):
    tokenizer = tokenizer_with(tokenizers, STRIPPING)
    batch = batch_of(tokenizer, f"{BLOCK}5.")
    monitor, found = read(tokenizer, batch, format="think", stop_on={"unlabelled": 0.9})
    assert found == ["no-end", "stop"]
    assert monitor.should_stop
    assert read(tokenizer, format="think", stop_on={"unlabelled": 0.9})[1] == ["no-labels"]


def test_packed_rows_are_taken_apart(tokenizers):
    tokenizer = tokenizers["healthy"]
    rows = [tokenized(tokenizer, chat) for chat in chats(3)]
    packed = {
        "input_ids": torch.tensor([[i for row in rows for i in row["input_ids"]]]),
        "labels": torch.tensor([[i for row in rows for i in row["labels"]]]),
        "position_ids": torch.tensor([[i for row in rows for i in range(len(row["input_ids"]))]]),
    }
    assert [list(row.ids) for row in rows_of(packed)] == [row["input_ids"] for row in rows]
    assert list(rows_of({"input_ids": torch.zeros(1, 3)})) == []
    program = ThinkProgram(None, tokenizer)
    turns = turns_of(program, tokenizer, {})
    blind = {name: column for name, column in packed.items() if name != "position_ids"}
    assert read_labels(program, turns, rows_of(blind)).with_end == 1  # one row, still with its markers


# --- reading a model ---


def test_forced_probabilities_are_those_of_the_whole_row(tokenizers, model):
    for name in ("healthy", "damaged"):
        tokenizer = tokenizer_with(tokenizers, KEEPING, name)
        record = [ASKED, {"role": "assistant", "content": f"{BLOCK}5."}]
        monitor = TagMonitor(model, tokenizer, [record], format="think", quiet=True)
        reading = monitor.check(0, sample=False)
        ids = tokenized(tokenizer, record)["input_ids"]
        with torch.no_grad():
            logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for marker, text in (("start", "<think>\n"), ("end", "</think>\n\n")):
            tokens = encode(tokenizer, None, text)[: 1 if name == "healthy" else None]
            at = next(i for i in range(len(ids)) if ids[i : i + len(tokens)] == tokens)
            loss = -sum(logp[at - 1 + k, token].item() for k, token in enumerate(tokens))
            assert reading.markers[marker].loss == pytest.approx(loss, rel=1e-4)
            assert reading.markers[marker].probability == pytest.approx(np.exp(-loss), rel=1e-3)
            assert reading.markers[marker].places == 1
        assert reading.markers["turn_end"].loss == pytest.approx(-logp[-2, ids[-1]].item(), rel=1e-4)
        assert reading.answer_loss > 0


def test_a_plain_module_and_a_generator_of_ones_own_will_do(tokenizers):
    tokenizer = tokenizers["healthy"]
    output = encode(tokenizer, None, f"{BLOCK}5.<|im_end|>")
    monitor = TagMonitor(Even(512), tokenizer, ["What is 2 + 3?"], generate=lambda prompts: [output for _ in prompts])
    reading = monitor.check(3)
    assert reading.markers["start"].probability == pytest.approx(1 / 512)
    assert reading.metrics()["valid"] == 1
    assert reading.as_dict()["samples"][0]["name"] == "valid"
    assert reading.step == 3
    with pytest.raises(InputError, match="returned 0 outputs for 1 prompts"):
        TagMonitor(Even(512), tokenizer, ["?"], generate=lambda prompts: []).check(0)


def test_records_of_every_shape(tokenizers):
    tokenizer = tokenizer_with(tokenizers, STRIPPING)
    answer = {"role": "assistant", "content": "5.", "reasoning_content": "Ones: 2+3=5."}
    records = [
        "What is 2 + 3?",
        [ASKED],
        [ASKED, {"role": "assistant", "content": f"{BLOCK}5."}],
        {"messages": [ASKED, answer]},
        {"prompt": "What is 2 + 3?", "completion": f"{BLOCK}5."},
        {"prompt": [ASKED], "completion": [answer]},
        {"prompt": [ASKED]},
    ]
    prompts, rows = TagMonitor(None, tokenizer, records, format="think").watched
    assert len(prompts) == 7
    assert len(set(prompts)) == 1
    assert [tokenizer.decode(row.ids[len(prompts[0]) :]) for row in rows] == [f"{BLOCK}5.<|im_end|>"] * 4
    assert all(row.labels[: len(prompts[0])] == (IGNORED,) * len(prompts[0]) for row in rows)
    for record in (5, [], {"text": "?"}):
        with pytest.raises(InputError, match=r"records\[0\]=.*wanted a text"):
            TagMonitor(None, tokenizer, [record], format="think")


def test_an_opened_prompt_is_not_opened_again(real):
    tokenizer, _ = real("r1-distill-qwen")
    monitor = TagMonitor(None, tokenizer, [[ASKED, {"role": "assistant", "content": f"{BLOCK}5."}]])
    ((prompt,), (row,)) = monitor.watched
    assert tokenizer.decode(row.ids).count("<think>") == 1
    assert tokenizer.decode(prompt).endswith("<｜Assistant｜><think>\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_prompts": -1}, "num_prompts=-1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"stop_on": {"gone": 0.5}}, "stop_on has 'gone'"),
        ({"stop_on": {"missing": 0.0}}, "wanted a share above 0"),
    ],
)
def test_wrong_options_are_refused(tokenizers, options, message):
    with pytest.raises(InputError, match=message):
        TagMonitor(None, tokenizers["healthy"], **options)


def test_wrong_callback_options_are_refused():
    with pytest.raises(InputError, match="max_tokens= is no option"):
        TagMonitorCallback(max_tokens=5)
    with pytest.raises(InputError, match="read_steps=-1"):
        TagMonitorCallback(read_steps=-1)


def fail_inside(model):
    with undisturbed(model):
        assert not model.training
        for draw in (lambda: torch.rand(1), random.random, np.random.rand):
            draw()
        raise RuntimeError("out of memory")


def test_a_model_is_left_as_it_was(tokenizers, model):
    model.train()
    model.model.layers[1].eval()  # somebody froze it
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    modes = [module.training for module in model.modules()]
    config, config_text = model.generation_config, model.generation_config.to_json_string()
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(5)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    monitor = TagMonitor(model, tokenizers["healthy"], ["What is 2 + 3?"], temperature=1.0, max_new_tokens=40, quiet=True)
    first, again = monitor.check(0), monitor.check(1)
    assert first.samples == again.samples  # the same seed for every reading
    with pytest.raises(RuntimeError, match="out of memory"):
        fail_inside(model)
    assert [module.training for module in model.modules()] == modes
    assert model.generation_config is config
    assert config.to_json_string() == config_text
    assert model.config.use_cache is False
    assert model.is_gradient_checkpointing
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    assert all(p.grad is None for p in model.parameters())


# --- what readings mean ---


def told(step, p_end, answer_loss):
    return TagReading(step, {"end": MarkerReading(p_end, -np.log(p_end), 4)}, answer_loss, (), 0.0)


def test_a_probability_that_does_not_grow_is_told():
    flat = [told(i, 0.01, loss) for i, loss in enumerate((2.0, 1.5, 1.2, 1.0))]
    assert is_stuck(flat)
    assert not is_stuck(flat[:3])
    assert not is_stuck([told(i, 0.01, 2.0) for i in range(4)])  # nothing is learnt
    assert not is_stuck([*flat[:3], told(3, 0.5, 1.0)])
    assert not is_stuck([told(0, 0.001, 2.0), *(told(i, 0.05, 1.0) for i in range(1, 4))])  # it grows


def test_every_finding_has_the_cause_that_the_labels_and_the_readings_show(tokenizers):
    tokenizer = tokenizers["healthy"]
    sound = batch_of(tokenizer, f"{BLOCK}5.", f"{BLOCK}It is 5.")

    def told_of(batch, readings, *, embeddings=True, tokenizer=tokenizer):
        monitor, _ = read(tokenizer, batch, format="think")
        found = reading_findings(monitor.program, monitor.turns, monitor.labels, readings, 1, embeddings)
        return [(finding.name, finding.text) for finding in found]

    flat = [told(i, 0.01, loss) for i, loss in enumerate((2.0, 1.5, 1.2, 1.0))]
    stripping = tokenizer_with(tokenizers, STRIPPING)
    for (name, text), cause in (
        (told_of(sound, flat, embeddings=False)[0], "in modules_to_save"),
        (told_of(sound, flat)[0], "few records close their thinking"),
        (told_of(masked(sound, tokenizer, "</think>", "</think>"), flat)[0], "masked (-100)"),
        (told_of(batch_of(stripping, f"{BLOCK}5."), flat, tokenizer=stripping)[0], "the chat template drops"),
    ):
        assert name == "stuck"
        assert "stays at 0.01 (loss 4.61) while the answers are learnt (loss 1.00)" in text
        assert cause in text

    program = ThinkProgram("think", tokenizer)
    prompt = encode(tokenizer, None, render(tokenizer, [ASKED], True, {}))

    def of(output, p_start=0.01):
        sample = classify(program, prompt, encode(tokenizer, None, output))
        return [TagReading(1, {"start": MarkerReading(p_start, -np.log(p_start), 1)}, None, (sample,), 0.0)]

    half = batch_of(tokenizer, "<think>\n2+3")
    for (name, text), wanted, cause in (
        (told_of(sound, of("5.<|im_end|>"))[0], "missing", "has not learnt to open"),
        (told_of(sound, of("5.<|im_end|>", 0.9))[0], "missing", "is not what the training rows begin with"),
        (told_of(masked(sound, tokenizer, "<think>", "<think>"), of("5.<|im_end|>"))[0], "missing", "is masked (-100)"),
        (told_of(half, of("<think>\n2+3<|im_end|>"))[0], "truncated", "from records without an end"),
        (told_of(sound, of("<think>\n2+3<|im_end|>"))[0], "truncated", "the turn end comes before the end marker"),
        (told_of(sound, of(f"{BLOCK}<|im_end|>"))[0], "empty", "whose block or answer is empty"),
        (told_of(sound, of(f"<think>{BLOCK}5.<|im_end|>"))[0], "doubled", "both open the thinking"),
        (told_of(sound, of(f"{BLOCK}5.</think><|im_end|>"))[0], "leaked", "markers in their answers"),
    ):
        assert name == wanted
        assert text.startswith(f"100% of the samples are {wanted} (")
        assert cause in text


def sampled(tokenizer, model, outputs, **options):
    ids = [encode(tokenizer, None, output) for output in outputs]
    return TagMonitor(model, tokenizer, [f"{i}?" for i in range(len(ids))], generate=lambda prompts: ids, **options)


def test_broken_samples_are_told_and_stop_the_run_when_they_last(tokenizers, model):
    outputs = ["5.<|im_end|>", "<think>\n2<|im_end|>", "<think>\n2<|im_end|>", f"{BLOCK}5."]
    monitor = sampled(tokenizers["healthy"], model, outputs, stop_on={"truncated": 0.5}, quiet=True)
    first = monitor.check(0)
    assert first.findings == ()
    assert not monitor.should_stop
    assert first.metrics()["truncated"] == 0.5
    monitor.check(1, sample=False)  # says nothing of the samples
    second = monitor.check(2)
    assert named(second.findings) == ["truncated", "stop"]
    assert "the model stopped inside the thinking" in second.findings[0].text
    assert monitor.should_stop


def test_samples_cut_by_their_limit_are_no_verdict(tokenizers, model):
    monitor = sampled(tokenizers["healthy"], model, ["<think>\n2"] * 2, stop_on={"truncated": 0.1}, patience=1, quiet=True)
    reading = monitor.check(0)
    assert named(reading.findings) == ["open-at-limit"]
    assert (reading.metrics()["truncated"], reading.metrics()["open_at_limit"]) == (1, 1)
    assert not monitor.should_stop


def test_a_prompt_that_closes_is_told_at_once(real):
    tokenizer, _ = real("qwen3")
    output = encode(tokenizer, None, "5.<|im_end|>")
    options = {"chat_template_kwargs": {"enable_thinking": False}, "quiet": True}
    monitor = TagMonitor(Even(8), tokenizer, ["?"], generate=lambda prompts: [output], **options)
    (finding,) = monitor.check(0).findings
    assert finding.name == "missing"
    assert "the generation prompt closes it" in finding.text


# --- trainers ---


def trained(tokenizers, model, template, folder, *callbacks, name="healthy", **arguments):
    tokenizer = tokenizer_with(tokenizers, template, name)
    rows = [tokenized(tokenizer, chat) for chat in chats(80)]
    wanted = dict(max_steps=10, logging_steps=4, eval_strategy="steps", eval_steps=8, learning_rate=2e-3, save_strategy="no")
    wanted |= dict(per_device_train_batch_size=8, report_to=[], use_cpu=True, disable_tqdm=True)
    args = transformers.TrainingArguments(output_dir=folder, **wanted | arguments)
    trainer = transformers.Trainer(
        model, args, train_dataset=rows, eval_dataset=rows[:8], processing_class=tokenizer,
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer), callbacks=list(callbacks),
    )  # fmt: skip
    trainer.train()
    return trainer


def logged(trainer, name):
    key = f"thinkguard/{name}"
    return {entry["step"]: entry[key] for entry in trainer.state.log_history if key in entry}


def test_training_through_the_stripping_template_trips_the_monitor_at_the_first_evaluation(
    tokenizers, model, tmp_path, caplog
):
    watch = TagMonitorCallback(read_steps=2, max_new_tokens=160, stop_on={"missing": 0.5}, patience=1, format="think")
    with caplog.at_level(logging.WARNING, "thinkguard.training"):
        trainer = trained(tokenizers, model, STRIPPING, tmp_path, watch)
    assert trainer.state.global_step == 8  # the first evaluation, of 10 steps
    findings = [record.getMessage() for record in caplog.records if record.name == "thinkguard.training"]
    assert [finding.split(":")[0] for finding in findings] == ["no-end", "missing", "stop"]
    assert all("the chat template drops the reasoning" in finding for finding in findings[:2])
    assert logged(trainer, "missing") == {8: 1.0}
    assert logged(trainer, "labels_with_end") == {2: 0.0}
    assert logged(trainer, "p_start")[8] < 0.5 < watch.monitor.labels.with_turn_end


def test_training_through_the_keeping_template_does_not(tokenizers, model, tmp_path, caplog):
    watch = TagMonitorCallback(read_steps=2, max_new_tokens=160, stop_on={"missing": 0.5}, patience=1)
    with caplog.at_level(logging.WARNING, "thinkguard.training"):
        trainer = trained(tokenizers, model, KEEPING, tmp_path, watch, max_steps=8)
    assert trainer.state.global_step == 8
    assert [record for record in caplog.records if record.name == "thinkguard.training"] == []
    assert min(logged(trainer, "valid").values()) >= 0.75
    assert set(logged(trainer, "p_end")) == {2, 4, 6, 8}
    assert logged(trainer, "p_end")[8] > 0.5
    assert logged(trainer, "labels_with_end") == {2: 1.0}
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluations] == [8]


def test_training_is_the_same_bit_for_bit_with_the_monitor(tokenizers, weights, tmp_path):
    ends = []
    for watched in (False, True):
        transformers.set_seed(3)
        model = copy.deepcopy(weights)
        model.config.attention_dropout = 0.1
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.1
        watch = [TagMonitorCallback(read_steps=1, max_new_tokens=16, temperature=1.0)] if watched else []
        options = dict(max_steps=3, eval_steps=2, gradient_checkpointing=True, per_device_train_batch_size=4)
        trainer = trained(tokenizers, model, KEEPING, tmp_path, *watch, **options)
        ends.append((model.state_dict(), torch.get_rng_state(), random.getstate(), trainer.state.log_history))
    assert all(torch.equal(value, ends[1][0][name]) for name, value in ends[0][0].items())
    assert torch.equal(ends[0][1], ends[1][1])
    assert ends[0][2] == ends[1][2]
    losses = [[entry["eval_loss"] for entry in end[3] if "eval_loss" in entry] for end in ends]
    assert losses[0] == losses[1]
    assert len(losses[0]) >= 2


def test_reporters_in_front_of_the_callback_see_the_reading(tokenizers, model, tmp_path):
    class Reporter(transformers.TrainerCallback):
        def __init__(self):
            self.seen = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.seen.append(dict(logs))

    reporter = Reporter()
    watch = TagMonitorCallback(read_steps=1, max_new_tokens=8)
    options = dict(max_steps=2, logging_steps=50, eval_strategy="no")
    trainer = trained(tokenizers, model, KEEPING, tmp_path, reporter, watch, **options)
    assert ["thinkguard/p_end" in entry for entry in reporter.seen] == [True, True, False]
    assert list(logged(trainer, "valid")) == [2]
    assert [entry["loss"] > 0 for entry in reporter.seen[:2]] == [True, True]


def test_the_best_model_can_be_chosen_by_a_reading(tokenizers, model, tmp_path):
    watch = TagMonitorCallback(max_new_tokens=160)
    options = dict(
        max_steps=4, eval_steps=2, save_strategy="steps", save_steps=2, metric_for_best_model="thinkguard/valid",
        greater_is_better=True, load_best_model_at_end=True, save_total_limit=1,
    )  # fmt: skip
    trainer = trained(tokenizers, model, KEEPING, tmp_path, watch, **options)
    assert trainer.state.best_metric == max(logged(trainer, "valid").values())
    assert trainer.evaluate()["eval_thinkguard/valid"] == logged(trainer, "valid")[4]


def test_evaluating_without_training_reads_too(tokenizers, model, tmp_path):
    tokenizer = tokenizers["healthy"]
    args = transformers.TrainingArguments(output_dir=tmp_path, report_to=[], use_cpu=True, disable_tqdm=True)
    rows = [tokenized(tokenizer, chat) for chat in chats(8)]
    trainer = transformers.Trainer(
        model, args, eval_dataset=rows, processing_class=tokenizer, callbacks=[TagMonitorCallback(max_new_tokens=160)],
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer),
    )  # fmt: skip
    assert 0 <= trainer.evaluate()["eval_thinkguard/valid"] <= 1


def test_an_evaluation_before_the_first_step_has_a_reading_of_its_own(tokenizers, model, tmp_path):
    watch = TagMonitorCallback(read_steps=2, max_new_tokens=8)
    options = dict(max_steps=2, logging_steps=1, eval_on_start=True, eval_steps=50)
    trainer = trained(tokenizers, model, KEEPING, tmp_path, watch, **options)
    assert set(logged(trainer, "p_end")) == {0, 2}
    assert logged(trainer, "labels_with_end") == {0: 1.0}


def test_streams_are_looked_at_only_where_that_does_no_harm():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([{"input_ids": torch.tensor([i]), "labels": torch.tensor([i])} for i in range(9)])

    class Replayed(Stream):
        def take(self, num):
            raise AssertionError("only its presence is looked at")

    def first(dataset):
        return [batch["input_ids"].tolist() for batch in _batches(torch.utils.data.DataLoader(dataset, 2), 3)]

    assert first(Stream()) == []
    assert first(Replayed()) == [[[0]], [[1]], [[2]]]
    assert first([{"input_ids": torch.tensor([i])} for i in range(9)]) == [[[0]], [[3]], [[6]]]
    assert list(_batches(None, 3)) == []


def test_a_reading_that_fails_ends_the_watch_and_not_the_training(tokenizers, model, tmp_path, caplog, monkeypatch):
    def fails(*arguments):
        raise RuntimeError("CUDA out of memory")

    watch = TagMonitorCallback(generate=fails, read_steps=3)
    with caplog.at_level(logging.WARNING, "thinkguard.training"):
        trainer = trained(tokenizers, model, KEEPING, tmp_path, watch, max_steps=3, eval_steps=2)
    assert trainer.state.global_step == 3
    told = [record.getMessage() for record in caplog.records if record.name == "thinkguard.training"]
    assert told == ["step 2: RuntimeError: CUDA out of memory; the training goes on, and nothing is sampled any more"]
    assert set(logged(trainer, "p_end")) == {3}
    monkeypatch.setattr("thinkguard.training.model.read_forced", fails)
    caplog.clear()
    watch = TagMonitorCallback(read_steps=1)
    with caplog.at_level(logging.WARNING, "thinkguard.training"):
        trainer = trained(tokenizers, model, KEEPING, tmp_path, watch, max_steps=2, eval_strategy="no")
    told = [record.getMessage() for record in caplog.records if record.name == "thinkguard.training"]
    assert told == ["step 1: RuntimeError: CUDA out of memory; the training goes on, and the watch ends here"]
    assert logged(trainer, "p_end") == {}


def test_a_start_that_fails_is_an_error_before_the_first_step(tokenizers, model, tmp_path):
    with pytest.raises(InputError, match=r"records\[0\]=7"):
        trained(tokenizers, model, KEEPING, tmp_path, TagMonitorCallback([7]), max_steps=1)


def test_trl_through_either_template(tokenizers, model, tmp_path, caplog):
    trl = pytest.importorskip("trl", reason="SFTTrainer is trl's")
    datasets = pytest.importorskip("datasets", reason="SFTTrainer takes a datasets.Dataset")
    data = datasets.Dataset.from_list([{"prompt": chat[:1], "completion": chat[1:]} for chat in chats(64)])
    args = trl.SFTConfig(
        output_dir=tmp_path, max_steps=8, per_device_train_batch_size=8, learning_rate=2e-3, report_to=[], use_cpu=True,
        save_strategy="no", disable_tqdm=True, bf16=False, logging_steps=50,
    )  # fmt: skip
    missing = {}
    for name, template in (("stripping", STRIPPING), ("keeping", KEEPING)):
        caplog.clear()
        watch = TagMonitorCallback(read_steps=4, max_new_tokens=160, format="think")
        tokenizer = tokenizer_with(tokenizers, template)
        trainer = trl.SFTTrainer(
            copy.deepcopy(model), args, train_dataset=data, processing_class=tokenizer, callbacks=[watch]
        )
        with caplog.at_level(logging.WARNING, "thinkguard.training"):
            trainer.train()
        assert set(logged(trainer, "p_turn_end")) == {4, 8}
        assert ("the chat template drops the reasoning" in caplog.text) == (name == "stripping")
        missing[name] = logged(trainer, "missing")[8]
        assert "mean_token_accuracy" in trainer.state.log_history[-2]
    assert missing["stripping"] > 0.5 > missing["keeping"]


def test_the_documentation_has_the_figures_that_were_measured(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    spec = importlib.util.spec_from_file_location("mend_damaged", ROOT / "tools" / "mend_damaged.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    figures = json.loads(tool.RESULTS.read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert tool.tables(figures) in text, "run tools/mend_damaged.py --only-table"
    before, _, old, _, mended, _ = figures["outputs"]
    assert (before["well_formed"], old["well_formed"]) == (0, 0)
    assert mended["well_formed"] > 0.9 * mended["num"]
    assert "final-reasoning" in figures["problems_before"]
    assert "final-reasoning" not in figures["problems_after"]


def test_the_documentation_names_every_option_class_and_value():
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    options = {*inspect.signature(TagMonitor).parameters, *inspect.signature(TagMonitorCallback).parameters}
    names = options - {"model", "quiet", "options"} | set(CLASSES)
    names |= {f"{kind}_{marker}" for kind in ("p", "loss") for marker in ("start", "end", "turn_end")}
    names |= set(LabelReading(1, 1, 1, 1, 0, 0, 0, 0, 9, 0).metrics())
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


RANKS = """
import copy, os, sys
import torch, transformers
from torch.distributed.fsdp import fully_shard
sys.path.insert(0, {tests!r})
from test_training import MODELS, STRIPPING, TagMonitorCallback, logged, trained


def same_everywhere(number):
    both = [torch.zeros(()), torch.zeros(())]
    torch.distributed.all_gather(both, torch.tensor(number))
    return bool(both[0] == both[1])


def run(rank):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    tokenizers = {{"damaged": transformers.AutoTokenizer.from_pretrained(MODELS / "damaged")}}
    model = transformers.AutoModelForCausalLM.from_pretrained(MODELS / "damaged").float()
    whole = copy.deepcopy(model)
    watch = TagMonitorCallback(read_steps=1, max_new_tokens=40, stop_on={{"missing": 0.5}}, patience=1, format="think")
    options = dict(name="damaged", eval_steps=2, per_device_train_batch_size=2, ddp_backend="gloo")
    trainer = trained(tokenizers, model, STRIPPING, {folder!r}, watch, **options)
    rank = torch.distributed.get_rank()
    assert torch.distributed.get_world_size() == 2
    assert (watch.monitor is None) == (rank == 1)
    assert trainer.state.global_step == 2
    assert logged(trainer, "missing") == {{2: 1.0}}
    assert same_everywhere(sum(p.sum().item() for p in model.parameters()))

    # Sharded: every rank reads the same rows, nothing is sampled, and the numbers are those of the whole model.
    parts = copy.deepcopy(whole)
    for layer in parts.model.layers:
        fully_shard(layer)
    fully_shard(parts)
    read = {{}}
    for name, one in (("whole", whole), ("parts", parts)):
        watch = TagMonitorCallback(read_steps=1, num_rows=4, max_new_tokens=8, label_rows=8, format="think")
        handed = dict(model=one, processing_class=tokenizers["damaged"], train_dataloader=trainer.get_train_dataloader())
        state = transformers.TrainerState(global_step=1, max_steps=9)
        control = transformers.TrainerControl()
        watch.on_train_begin(trainer.args, state, control, **handed)
        watch.on_step_end(trainer.args, state, control, **handed)
        read[name], logs = watch._pending, {{}}
        watch.on_log(trainer.args, state, control, logs=logs)
        assert (watch.monitor is None) == (name == "whole" and rank == 1)
        assert logs and control.should_log and not control.should_training_stop
    assert same_everywhere(read["parts"]["thinkguard/loss_turn_end"])
    for name, value in read["whole"].items():
        if name == "thinkguard/seconds":
            continue
        assert abs(read["parts"][name] - value) <= 1e-4 * max(1.0, abs(value)), name
    state.global_step = 9
    watch.on_step_end(trainer.args, state, control, **handed)
    assert "thinkguard/valid" not in watch._last and "thinkguard/p_turn_end" in watch._last
    torch.distributed.destroy_process_group()


torch.multiprocessing.start_processes(run, nprocs=2, start_method="fork")  # one import for both
"""


def test_two_ranks_stop_at_the_same_step_and_read_a_sharded_model_together(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS.format(tests=str(Path(__file__).parent), folder=str(tmp_path)), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    own = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("missing: 100% of the samples") == 1
