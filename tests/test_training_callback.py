"""The callback in real trainers: transformers, TRL, several ranks; what it logs, stops, and leaves as it was."""

from __future__ import annotations

import copy
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

import pytest

torch = pytest.importorskip("torch", reason="the monitor reads a torch model")
transformers = pytest.importorskip("transformers", reason="the trainer is transformers'")

from trainable import (  # noqa: E402, F401  # the fixtures among them
    KEEPING,
    ROOT,
    STRIPPING,
    chats,
    logged,
    model,
    one_thread,
    tokenized,
    tokenizer_with,
    tokenizers,
    trained,
    weights,
)

from thinkguard import InputError  # noqa: E402
from thinkguard.training import TagMonitor, TagMonitorCallback  # noqa: E402
from thinkguard.training.callback import _batches  # noqa: E402
from thinkguard.training.labels import LabelReading  # noqa: E402
from thinkguard.training.samples import CLASSES  # noqa: E402


def test_wrong_callback_options_are_refused():
    with pytest.raises(InputError, match="max_tokens= is no option"):
        TagMonitorCallback(max_tokens=5)
    with pytest.raises(InputError, match="read_steps=-1"):
        TagMonitorCallback(read_steps=-1)


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
from trainable import MODELS, STRIPPING, logged, trained

from thinkguard.training import TagMonitorCallback


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
