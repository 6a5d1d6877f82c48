"""Prompts, batches, and noise that every arm of a comparison shares."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import LogitsProcessor

from benches.quality.judging import Judged, judge
from benches.quality.tasks.task import Task
from benches.quality.ways import Way
from thinkguard.core.program import ThinkProgram
from thinkguard.demo.lab import generate
from thinkguard.hf import ThinkLogitsProcessor
from thinkguard.policy import ThinkPolicy


@dataclass(frozen=True, slots=True)
class Room:
    """New tokens of an output: of the model alone, and of a guarded one beside its cap."""

    alone: int = 192
    answer: int = 80

    def of(self, way: Way) -> int:
        """The limit under a way."""
        return way.cap + self.answer if way.cap else self.alone


_ROOM: Final = Room()


class SharedNoise(LogitsProcessor):  # type: ignore[misc]
    """Sample by adding noise to the logits: the largest sum is a draw from their softmax (Gumbel's trick).

    A prompt's noise at a position is the same whoever edited the logits, so that two policies differ only where they act.
    """

    def __init__(self, seeds: Sequence[int | None], num_prompts: int, temperature: float) -> None:
        self.temperature = temperature
        self.generators = [
            None if seed is None else torch.Generator().manual_seed(1_000_003 * seed + prompt)
            for seed in seeds
            for prompt in range(num_prompts)
        ]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return logits over temperature plus noise, [num_rows, width]; rows without a seed are greedy and stay."""
        for row, generator in enumerate(self.generators):
            if generator is not None:
                noise = torch.empty(scores.shape[1]).exponential_(generator=generator)
                scores[row] = scores[row] / self.temperature - noise.log()
        return scores


@dataclass(frozen=True)
class Model:
    """A model of the laboratory, its tokenizer, and the guard's program for it."""

    name: str
    model: Any
    tokenizer: Any
    program: ThinkProgram

    @classmethod
    def load(cls, name: str) -> Model:
        """Load it from the laboratory; FileNotFoundError says what is missing, and the remedy."""
        from benches.quality.lab import place

        model, tokenizer = place.load(name)
        return cls(name, model, tokenizer, ThinkProgram("think", tokenizer, model.config.vocab_size))

    def prompts(self, tasks: Sequence[Task]) -> list[list[int]]:
        """Each task's question in the model's template, as ids."""
        chats = [[{"role": "user", "content": task.question}] for task in tasks]
        texts = [self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
        return [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]


def ask(
    one: Model,
    tasks: Sequence[Task],
    way: Way,
    seeds: Sequence[int | None] = (None,),
    *,
    temperature: float = 0.7,
    room: Room = _ROOM,
) -> list[list[Judged]]:
    """Answer every task by every seed in one batch, None being greedy; returns the judged outputs of each seed."""
    policy, limit = way.policy, room.of(way)
    prompts = one.prompts(tasks) * len(seeds)
    eos = one.tokenizer.eos_token_id
    guard = None if policy is None else ThinkLogitsProcessor(one.program, policy=policy)
    processors = [*([] if guard is None else [guard]), SharedNoise(seeds, len(tasks), temperature)]
    with nullcontext() if guard is None else guard.attach(one.model):
        outputs = generate(one.model, prompts, eos, limit, logits_processor=processors)
    judged = []
    for task, prompt, output in zip([*tasks] * len(seeds), prompts, outputs, strict=True):
        # Alone, no opening was due and no limit was known: only the structure is judged.
        trace = one.program.explain(
            prompt, output, policy or ThinkPolicy(opening="allow"), max_tokens=limit if policy else None
        )
        ids_of_text = [token for token in output if token != eos]
        text = one.tokenizer.decode(ids_of_text, clean_up_tokenization_spaces=False)
        judged.append(judge(task, text, ids_of_text, trace, message="" if policy is None else policy.close_message))
    return [judged[i : i + len(tasks)] for i in range(0, len(judged), len(tasks))]
