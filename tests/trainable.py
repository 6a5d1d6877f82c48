"""A small model, records and a real Trainer for the tests of the monitor, with the fixtures that hand them out."""

from __future__ import annotations

import copy
import importlib.util
import random
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the monitor reads a torch model")
transformers = pytest.importorskip("transformers", reason="the trainer is transformers'")

from thinkguard.training.places import IGNORED, encode, render  # noqa: E402

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
