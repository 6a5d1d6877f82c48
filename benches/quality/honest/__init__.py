"""Honest answers: HTML, XML, code and a letter, all of which a guard has to let through token by token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thinkguard.core.program import ThinkProgram
from thinkguard.policy import ThinkPolicy

NAMES = ("code.md", "feed.xml", "letter.md", "table.html")
TEXTS = {name: Path(__file__).with_name(name).read_text(encoding="utf-8").rstrip("\n") for name in NAMES}
"""Name -> an answer."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A token of an honest answer that could not have been written."""

    text: str  # the answer's name
    position: int
    token: str
    before: str  # the end of what stood there


@dataclass(frozen=True, slots=True)
class Fed:
    """How many tokens were fed, and which the guard refused."""

    num: int
    refused: tuple[Refused, ...]


def feed(program: ThinkProgram, tokenizer: Any, policy: ThinkPolicy | None = None) -> Fed:
    """Feed every answer, its end included, behind a short thinking; each token is the best by far where it is due.

    A token is refused if its logit is not the largest any more once the guard has edited the row. Whatever became of it,
    the answer goes on with it.
    """
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Show me."}], tokenize=False, add_generation_prompt=True
    )
    opening = tokenizer.encode(prompt + "<think>\nI show it.\n</think>\n\n", add_special_tokens=False)
    logits, refused, num = np.zeros((1, len(tokenizer)), np.float32), [], 0
    for name, text in TEXTS.items():
        # Encoded behind the opening, as a model would write it.
        whole = tokenizer.encode(
            prompt + "<think>\nI show it.\n</think>\n\n" + text + tokenizer.eos_token, add_special_tokens=False
        )
        begin = next((i for i, (a, b) in enumerate(zip(opening, whole, strict=False)) if a != b), len(opening))
        asked = len(tokenizer.encode(prompt, add_special_tokens=False))
        state = program.start(whole[:asked], policy)
        for position in range(asked, len(whole)):
            token = whole[position]
            if position >= begin:
                num += 1
                logits.fill(0)
                logits[0, token] = 100
                program.apply([state], logits)
                if logits[0].argmax() != token:
                    before = tokenizer.decode(whole[begin:position])[-20:]
                    refused.append(Refused(name, position - begin, tokenizer.decode([token]), before))
            program.advance(state, token)
    return Fed(num, tuple(refused))
