"""The story that thinkguard is for, on a real model: fine-tuned through a chat template that drops the reasoning, it forgets
to think; the callback warns before the first step, the doctor names the cause, and through the mended template it stays.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from thinkguard.demo.lab import STORY_MODEL, folder, generate

STRIPPING: Final = """\
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""What many published templates do to earlier turns, done to every turn: the reasoning is dropped."""
TRAINED_LAYERS: Final = 6
BATCH_SIZE: Final = 8
ROOM: Final = 72  # tokens of an output beside the guard's budget


@dataclass(frozen=True, slots=True)
class Told:
    """What came of the questions at one point of the story: a row of the table."""

    model: str
    guarded: bool
    num: int
    classes: dict[str, int]  # by thinkguard.training's classes
    example: str


def run(num: int = 8, budget: int = 48, num_records: int = 32, as_json: bool = False) -> str:
    """Tell the story with `num` questions and fine-tunes on `num_records` records; returns the text, or JSON."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    source = folder() / STORY_MODEL
    asked = json.loads((source / "questions.json").read_text(encoding="utf-8"))[:num]
    lines = (source / "records.jsonl").read_text(encoding="utf-8").splitlines()[:num_records]
    with TemporaryDirectory(prefix="thinkguard-demo-") as text:
        work = Path(text)
        data = work / "records.jsonl"
        data.write_text("\n".join(lines) + "\n", encoding="utf-8")
        chats = [json.loads(line)["messages"] for line in lines]
        return _told(_Teller(source, work, data, chats, asked, budget), as_json)


def _told(teller: _Teller, as_json: bool) -> str:
    rows = [teller.ask("as it came", *teller.load(), guarded=False)]
    problems = teller.diagnose()
    _progress(f"the doctor: {', '.join(problems)}")
    model, tokenizer, warned, stripped = teller.fine_tune(STRIPPING, "after a fine-tune through the template that strips")
    rows += [stripped, teller.ask("... the same", model, tokenizer, guarded=True)]
    mended = teller.mend()
    left = teller.diagnose(mended)
    *_, warned_again, kept = teller.fine_tune(mended.read_text(encoding="utf-8"), "after one through the mended template")
    rows.append(kept)
    if as_json:
        about = {"problems": problems, "warnings": warned, "problems_mended": left, "warnings_mended": warned_again}
        return json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=2)
    found = "\n".join(f"  {name}: {what}" for name, what in problems.items())
    return "\n\n".join(
        [
            "A chat template that drops the reasoning. thinkguard doctor says of it, before anything is trained:\n" + found,
            "The training callback warns before the first step:\n" + "\n".join(f"  {line}" for line in warned),
            "With the template that thinkguard doctor --fix-template wrote: "
            + (", ".join(left) or "no problem")
            + ("; the callback: " + ", ".join(warned_again) if warned_again else "; the callback is silent")
            + ".",
            table(rows),
            "\n\n".join(f"[{row.model}{', guarded' if row.guarded else ''}] {asked}\n{row.example}" for asked, row in
                        ((teller.asked[0], row) for row in rows)),
        ]
    )  # fmt: skip


def table(rows: Sequence[Told]) -> str:
    """The rows as aligned plain text."""
    lines: list[tuple[str, ...]] = [("SmolLM2-135M that thinks", "", "thinks, then answers", "no thinking", "else")]
    for row in rows:
        valid, missing = row.classes.get("valid", 0), row.classes.get("missing", 0)
        counts = [f"{count}/{row.num}" for count in (valid, missing, row.num - valid - missing)]
        lines.append((row.model, "guarded" if row.guarded else "alone", *counts))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _Teller:
    """The model's folder, its records, and what is done with them."""

    def __init__(
        self, source: Path, work: Path, data: Path, chats: list[list[dict[str, str]]], asked: list[str], budget: int
    ) -> None:
        self.source, self.work, self.data, self.chats, self.asked, self.budget = source, work, data, chats, asked, budget
        self.broken = work / "broken"  # the checkpoint as it is trained, but for its weights
        self.broken.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"):
            shutil.copy(source / name, self.broken)
        (self.broken / "chat_template.jinja").write_text(STRIPPING, encoding="utf-8")

    def load(self) -> tuple[Any, Any]:
        """Return (the model as it came, its tokenizer)."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(self.source).float().eval()
        return model, AutoTokenizer.from_pretrained(self.source)

    def diagnose(self, template: Path | None = None) -> dict[str, str]:
        """Return the doctor's problems, by name."""
        from thinkguard.doctor.examine import examine

        report = examine(self.broken, data=[self.data], template=template, trainer="trl", format="think", num_processes=1)
        return {check.name: check.found for check in report.problems}

    def mend(self) -> Path:
        """Let the doctor mend the template."""
        from thinkguard.doctor.examine import mend_template

        out = self.work / "mended.jinja"
        mend_template(self.broken, out, format="think")
        return out

    def ask(self, name: str, model: Any, tokenizer: Any, *, guarded: bool) -> Told:
        """Ask every question; guarded, the model has to think, however it was trained."""
        from thinkguard.hf import ThinkLogitsProcessor
        from thinkguard.training.samples import classify

        guard = ThinkLogitsProcessor(tokenizer, format="think", max_thinking_tokens=self.budget, grace_tokens=12)
        prompts = [self.prompt(tokenizer, [{"role": "user", "content": question}]) for question in self.asked]
        model.eval()
        with guard.attach(model) if guarded else nullcontext():
            outputs = generate(model, prompts, tokenizer.eos_token_id, self.budget + ROOM)
        samples = [classify(guard.program, p, o) for p, o in zip(prompts, outputs, strict=True)]
        found = dict(Counter(str(sample.name) for sample in samples))
        return Told(name, guarded, len(samples), found, tokenizer.decode(outputs[0], skip_special_tokens=True))

    def prompt(self, tokenizer: Any, chat: list[dict[str, str]], *, whole: bool = False) -> list[int]:
        """A chat in the template, as ids; by default with the assistant's turn begun."""
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=not whole)
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    def fine_tune(self, template: str, name: str) -> tuple[Any, Any, list[str], Told]:
        """Train the last layers on the records as a template renders them; (model, tokenizer, warnings, what came of it)."""
        from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainingArguments

        from thinkguard.training import TagMonitorCallback

        model, tokenizer = self.load()
        tokenizer.chat_template = template
        model.requires_grad_(False)
        for layer in model.model.layers[-TRAINED_LAYERS:]:
            layer.requires_grad_(True)
        rows = []
        for chat in self.chats:
            ids, begin = self.prompt(tokenizer, chat, whole=True), len(self.prompt(tokenizer, chat[:-1]))
            rows.append({"input_ids": ids, "labels": [-100] * begin + ids[begin:], "attention_mask": [1] * len(ids)})
        arguments = TrainingArguments(
            output_dir=str(self.work / "out"), per_device_train_batch_size=BATCH_SIZE, num_train_epochs=2,
            learning_rate=4e-4, lr_scheduler_type="cosine", warmup_steps=2, logging_strategy="no", report_to=[],
            save_strategy="no", use_cpu=True, disable_tqdm=True, seed=0,
        )  # fmt: skip
        watch = TagMonitorCallback(read_steps=0, sample_steps=0, num_rows=0, num_prompts=0, format="think")
        trainer = Trainer(
            model, arguments, train_dataset=rows, data_collator=DataCollatorForSeq2Seq(tokenizer),
            processing_class=tokenizer, callbacks=[watch],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)  # stdout is the story's
        _progress(f"training on {len(rows)} records: {name}")
        warnings = _Warnings()
        logger = logging.getLogger("thinkguard.training")
        logger.addHandler(warnings)
        propagates, logger.propagate = logger.propagate, False
        try:
            trainer.train()
        finally:
            logger.removeHandler(warnings)
            logger.propagate = propagates
        return model, tokenizer, warnings.lines, self.ask(name, model, tokenizer, guarded=False)


class _Warnings(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.lines.append(record.getMessage())
