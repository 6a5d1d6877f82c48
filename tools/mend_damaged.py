"""Mend the embedded damaged model: name the cause, mend its template, train it for a while, and measure what came back.

    python tools/mend_damaged.py [--records 3000] [--only-table]

The damaged model learnt its records behind a chat template that drops their reasoning. The doctor has to name that, its
`--fix-template` to mend it, and a short fine-tune through the mended template to bring the tags back. The same fine-tune
through the old template is the control. Writes benches/results/mended.json and the tables in docs/training.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tiny_records import records
from train_tiny_models import encode
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments
from transformers.utils import logging as transformers_logging

from thinkguard.bench.machine import machine
from thinkguard.demo.arithmetic import Question, questions
from thinkguard.demo.run import MODELS, Asked, ask, summarize
from thinkguard.doctor.examine import examine, mend_template
from thinkguard.hf import ThinkLogitsProcessor
from thinkguard.training import TagMonitorCallback

ROOT = Path(__file__).resolve().parents[1]
RESULTS, DOC = ROOT / "benches" / "results" / "mended.json", ROOT / "docs" / "training.md"
BEGIN, END = "<!-- mended: begin -->", "<!-- mended: end -->"
DAMAGED = MODELS / "damaged"
BUDGET, MAX_NEW_TOKENS = 160, 256
EPOCHS = 4
SEED = 1  # of the records; the embedded models were trained on those of seed 0
OLD, MENDED = "the old template", "the mended template"


def log(text: str) -> None:
    """Report progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def diagnose(data: Path, template: Path | None = None) -> dict[str, str]:
    """Return the doctor's problems with the damaged checkpoint, by name."""
    report = examine(DAMAGED, data=[data], template=template, trainer="trl", format="think", num_processes=1)
    return {check.name: check.found for check in report.problems}


def write_data(file: Path, num: int) -> None:
    """Write the records as a data set holds them."""
    with file.open("w", encoding="utf-8") as out:
        for record in records(num, SEED):
            asked = {"role": "user", "content": record.question.text}
            out.write(json.dumps({"messages": [asked, {"role": "assistant", "content": record.content}]}) + "\n")


def counted(model: Any, tokenizer: Any, asked: list[Question], name: str, guarded: bool) -> Asked:
    """Answer all questions greedily; count what came."""
    guard = ThinkLogitsProcessor(tokenizer, format="think", max_thinking_tokens=BUDGET, grace_tokens=16)
    model.eval()
    _, traces = ask(model, tokenizer, guard, asked, guarded=guarded, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    return summarize(name, guarded, asked, traces)


def fine_tune(template: str, num: int, folder: Path) -> tuple[Any, Any, list[dict[str, float]], float]:
    """Train the damaged model on the records as a template renders them; (model, tokenizer, log, seconds)."""
    tokenizer = AutoTokenizer.from_pretrained(DAMAGED)
    tokenizer.chat_template = template
    model = AutoModelForCausalLM.from_pretrained(DAMAGED).float()
    rows = [encode(tokenizer, record) for record in records(num, SEED)]
    data = [{"input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids)} for ids, labels in rows]
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        num_train_epochs=EPOCHS,
        learning_rate=2e-3,
        weight_decay=0.05,
        adam_beta2=0.98,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        train_sampling_strategy="group_by_length",
        logging_steps=250,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    watch = TagMonitorCallback(read_steps=250, sample_steps=250, num_rows=32, max_new_tokens=MAX_NEW_TOKENS, format="think")
    collator = DataCollatorForSeq2Seq(tokenizer)
    trainer = Trainer(
        model, arguments, train_dataset=data, data_collator=collator, processing_class=tokenizer, callbacks=[watch]
    )
    begin = time.monotonic()
    trainer.train()
    return model, tokenizer, trainer.state.log_history, time.monotonic() - begin


def run(num_records: int, num_questions: int, threads: int) -> dict[str, Any]:
    """Do all of it; the figures as plain JSON types."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    asked = questions(num_questions)
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "records.jsonl", Path(folder) / "mended.jinja"
        write_data(data, num_records)
        before = diagnose(data)
        log(f"the doctor: {', '.join(before)}")
        done = mend_template(DAMAGED, out, format="think")
        after = diagnose(data, out)
        log(f"the doctor on the mended template: {', '.join(after) or 'no problem'}")
        files = {OLD: DAMAGED / "chat_template.jinja", MENDED: out}
        templates = {name: file.read_text(encoding="utf-8") for name, file in files.items()}
        tokenizer = AutoTokenizer.from_pretrained(DAMAGED)
        model = AutoModelForCausalLM.from_pretrained(DAMAGED).float()
        answered = [counted(model, tokenizer, asked, "before", guarded) for guarded in (False, True)]
        logs, seconds = {}, {}
        for name, template in templates.items():
            model, tokenizer, logs[name], seconds[name] = fine_tune(template, num_records, Path(folder))
            answered += [counted(model, tokenizer, asked, name, guarded) for guarded in (False, True)]
            log(f"{name}: {seconds[name]:.0f} s")
    return {
        "records": num_records,
        "epochs": EPOCHS,
        "questions": num_questions,
        "threads": threads,
        "problems_before": before,
        "mended_by": [line.replace(str(out), out.name) for line in done],
        "problems_after": after,
        "training_seconds": seconds,
        "outputs": [asdict(one) for one in answered],
        "readings": {name: readings(log_history) for name, log_history in logs.items()},
    }


def readings(log_history: list[dict[str, float]]) -> list[dict[str, float]]:
    """What the monitor put into a trainer's log, by step."""
    kept = []
    for entry in log_history:
        values = {key.removeprefix("thinkguard/"): value for key, value in entry.items() if key.startswith("thinkguard/")}
        kept += [{"step": entry["step"], **values}] if values else []
    return kept


def tables(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    where = figures["machine"]
    lines = [
        f"The doctor on the damaged checkpoint and {figures['records']:,} records: "
        + ", ".join(f"`{name}`" for name in figures["problems_before"])
        + ". With the mended template: "
        + (", ".join(f"`{name}`" for name in figures["problems_after"]) or "no problem")
        + ".",
        "",
        "| greedy answers to held-out questions | guarded | one think block | answered | right | thinking tokens |",
        "|---|---|---|---|---|---|",
    ]
    names = {"before": "before", OLD: "after training through the old template", MENDED: "... through the mended one"}
    for one in figures["outputs"]:
        counts = " | ".join(f"{one[key]}/{one['num']}" for key in ("well_formed", "answered", "right"))
        guarded = "yes" if one["guarded"] else "no"
        lines.append(f"| {names[one['model']]} | {guarded} | {counts} | {one['mean_thinking_tokens']:.0f} |")
    head = "| step | `p_start` old | mended | `p_end` old | mended | `valid` old | mended |"
    lines += ["", head, "|---|---|---|---|---|---|---|"]
    old, mended = ({entry["step"]: entry for entry in figures["readings"][name]} for name in (OLD, MENDED))
    for step in sorted(set(old) & set(mended)):
        cells = [_cell(entry.get(key)) for key in ("p_start", "p_end", "valid") for entry in (old[step], mended[step])]
        lines.append(f"| {step} | {' | '.join(cells)} |")
    seconds = ", ".join(f"{value:.0f} s through {name}" for name, value in figures["training_seconds"].items())
    checks = [entry["seconds"] for entry in mended.values()]
    watched = f"{len(checks)} checks took {sum(checks):.0f} s of the last"
    about = f"{where['cpu']}, {figures['threads']} thread, torch {where['torch']}, `{figures['command']}`"
    lines += ["", f"*{about}; {figures['epochs']} epochs in {seconds}; {watched}; load {where['load']:.1f} at the start.*"]
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def main() -> None:
    """Measure, or only write the tables again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=3000, help="records to learn from (default %(default)s)")
    parser.add_argument("--questions", type=int, default=200, help="held-out questions (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only-table", action="store_true", help="rewrite the tables from the figures that are there")
    args = parser.parse_args()
    if not args.only_table:
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        transformers_logging.disable_progress_bar()
        figures = {"command": "python tools/mend_damaged.py", "machine": machine()}
        figures |= run(args.records, args.questions, args.threads)
        RESULTS.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    written = tables(json.loads(RESULTS.read_text(encoding="utf-8")))
    text = DOC.read_text(encoding="utf-8")
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    DOC.write_text(f"{text[:begin]}\n{written}\n{text[end:]}", encoding="utf-8")
    print(written)


if __name__ == "__main__":
    main()
