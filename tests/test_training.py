"""The monitor sees the tags go while a model is trained, says why, and leaves the training as it was."""

from __future__ import annotations

import functools
import logging
import random

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the monitor reads a torch model")
transformers = pytest.importorskip("transformers", reason="the trainer is transformers'")

from trainable import (  # noqa: E402, F401  # the fixtures among them
    ASKED,
    BLOCK,
    KEEPING,
    STRIPPING,
    batch_of,
    chats,
    model,
    named,
    one_thread,
    tokenized,
    tokenizer_with,
    tokenizers,
    weights,
)

from thinkguard import InputError, ThinkProgram  # noqa: E402
from thinkguard.training import TagMonitor, TagReading  # noqa: E402
from thinkguard.training.findings import is_stuck, reading_findings  # noqa: E402
from thinkguard.training.labels import examples_of, read_labels  # noqa: E402
from thinkguard.training.model import MarkerReading, undisturbed  # noqa: E402
from thinkguard.training.places import IGNORED, Example, encode, places, render, stretches, turns_of  # noqa: E402
from thinkguard.training.samples import classify  # noqa: E402


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
            example = Example(tuple(ids), tuple(ids))
            inside = [place for part in stretches(program, turns, example) for place in places(program, ids, *part)]
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
    (example,) = examples_of(batch_of(tokenizer_with(tokenizers, KEEPING, "damaged"), f"{BLOCK}5."))
    bare = turns_of(program, program.vocabulary, {})
    found = [p.marker for b, e in stretches(program, bare, example) for p in places(program, example.ids, b, e)]
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
    assert [list(example.ids) for example in examples_of(packed)] == [row["input_ids"] for row in rows]
    assert list(examples_of({"input_ids": torch.zeros(1, 3)})) == []
    program = ThinkProgram(None, tokenizer)
    turns = turns_of(program, tokenizer, {})
    blind = {name: column for name, column in packed.items() if name != "position_ids"}
    assert read_labels(program, turns, examples_of(blind)).with_end == 1  # one row, still with its markers


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
    prompts, examples = TagMonitor(None, tokenizer, records, format="think").watched
    assert len(prompts) == 7
    assert len(set(prompts)) == 1
    assert [tokenizer.decode(example.ids[len(prompts[0]) :]) for example in examples] == [f"{BLOCK}5.<|im_end|>"] * 4
    assert all(example.labels[: len(prompts[0])] == (IGNORED,) * len(prompts[0]) for example in examples)
    for record in (5, [], {"text": "?"}):
        with pytest.raises(InputError, match=r"records\[0\]=.*wanted a text"):
            TagMonitor(None, tokenizer, [record], format="think")


def test_an_opened_prompt_is_not_opened_again(real):
    tokenizer, _ = real("r1-distill-qwen")
    monitor = TagMonitor(None, tokenizer, [[ASKED, {"role": "assistant", "content": f"{BLOCK}5."}]])
    ((prompt,), (example,)) = monitor.watched
    assert tokenizer.decode(example.ids).count("<think>") == 1
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
