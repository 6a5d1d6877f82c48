"""What the demonstration trains on and asks, written beside the model: it knows no tasks of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from benches.quality.tasks.draw import shown, tasks

RECORDS: Final = 64
QUESTIONS: Final = 16
SEED: Final = 2  # the model was taught on records of seed 0


def write(folder: Path) -> None:
    """Write `records.jsonl`, each a list of messages, and `questions.json`, which no training shows."""
    with (folder / "records.jsonl").open("w", encoding="utf-8") as out:
        for one in shown(RECORDS, SEED):
            if one.answer is not None:
                answer = {"role": "assistant", "content": f"<think>\n{one.reasoning}\n</think>\n\n{one.answer}"}
                out.write(json.dumps({"messages": [{"role": "user", "content": one.question}, answer]}) + "\n")
    asked = [task.question for task in tasks(QUESTIONS, SEED, careful=0)]
    (folder / "questions.json").write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")
