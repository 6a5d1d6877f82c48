"""Teach SmolLM2 to think in text tags: its last six layers, on tasks that are drawn by a seed.

The frozen layers below are asked once for every example, so that each pass trains on what they said.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from benches.quality.tasks.draw import Shown

TRAINED_LAYERS: Final = 6
BATCH_SIZE: Final = 8
COMMON_IDS: Final = 4096
IGNORED: Final = -100
TEMPLATE: Final = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""The published template without its system message, which is a third of a short prompt."""


@dataclass(frozen=True)
class Batch:
    """What the frozen layers made of some examples, and the tokens to be said at the places that count."""

    hidden: torch.Tensor  # [rows, width, size]
    places: torch.Tensor  # [rows, width], bool: where a token is learnt
    targets: torch.Tensor  # [how many places]


def encode(tokenizer: Any, example: Shown) -> tuple[list[int], int]:
    """Return (ids of prompt and output, where the output begins). What never ends is not ended."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": example.question}], tokenize=False, add_generation_prompt=True
    )
    output = f"<think>\n{example.reasoning}\n"
    if example.answer is not None:
        output += f"</think>\n\n{example.answer}{tokenizer.eos_token}"
    begin = len(tokenizer.encode(prompt, add_special_tokens=False))
    return tokenizer.encode(prompt + output, add_special_tokens=False), begin


class Halves:
    """A Llama cut in two: the layers that stay as they are, and those that learn."""

    def __init__(self, model: Any, trained: int = TRAINED_LAYERS) -> None:
        self.model, self.inner = model, model.model
        self.layers, self.norm = self.inner.layers, self.inner.norm
        self.cut = len(self.layers) - trained
        model.requires_grad_(False)
        self.learning = nn.ModuleList([*self.layers[self.cut :], self.norm]).requires_grad_(True)

    def below(self, ids: torch.Tensor) -> torch.Tensor:
        """[rows, width] -> what stands before the first layer that learns."""
        with torch.inference_mode():
            found = self._run(self.layers[: self.cut], nn.Identity(), input_ids=ids)
        return found.clone()  # outside inference mode, so that gradients may be taken behind it

    def above(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the layers that learn, and the last norm, make of it."""
        return self._run(self.layers[self.cut :], self.norm, inputs_embeds=hidden)

    def _run(self, layers: nn.ModuleList, norm: nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
        # No mask: batches are padded behind their rows, where causal attention never looks.
        self.inner.layers, self.inner.norm = layers, norm
        try:
            found: torch.Tensor = self.inner(**inputs, use_cache=False).last_hidden_state
            return found
        finally:
            self.inner.layers, self.inner.norm = self.layers, self.norm


def batches(halves: Halves, rows: Sequence[tuple[list[int], int]], size: int = BATCH_SIZE) -> Iterator[Batch]:
    """Yield rows of like length together, behind the frozen layers."""
    ordered = sorted(rows, key=lambda row: len(row[0]))
    for start in range(0, len(ordered), size):
        group = ordered[start : start + size]
        width = max(len(ids) for ids, _ in group)
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in group])
        labels = torch.tensor([[IGNORED] * b + ids[b:] + [IGNORED] * (width - len(ids)) for ids, b in group])
        places = labels[:, 1:] != IGNORED
        yield Batch(halves.below(ids[:, :-1]), places, labels[:, 1:][places])


class Head(nn.Module):
    """The logits of the tokens that are common or taught: the others' rows cost a third of the time and change little.

    Rows of `learning` ids are learnt, and written into the model by `write`.
    """

    def __init__(self, weight: torch.Tensor, targets: torch.Tensor, learning: Sequence[int] = ()) -> None:
        super().__init__()
        common = torch.arange(COMMON_IDS)  # a byte pair encoding numbers frequent tokens first
        self.ids = torch.cat([torch.unique(torch.cat([common, targets])), torch.tensor(learning, dtype=torch.long)]).unique()
        self.index = torch.full((len(weight),), -1).index_put((self.ids,), torch.arange(len(self.ids)))
        self.fixed = weight.detach()[self.ids].clone()
        self.learning = list(learning)
        self.rows = nn.Parameter(weight.detach()[self.learning].clone(), requires_grad=bool(learning))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[places, size] -> [places, ids]."""
        logits = hidden @ self.fixed.T
        if self.learning:
            logits = logits.index_copy(1, self.index[self.learning], hidden @ self.rows.T)
        return logits

    def write(self, weight: torch.Tensor) -> None:
        """Write the rows that were learnt into the model's own weights."""
        with torch.no_grad():
            weight[self.learning] = self.rows


def train(halves: Halves, head: Head, prepared: Sequence[Batch], *, passes: int, rate: float, seed: int) -> float:
    """Train in place; returns the mean loss at the end."""
    weights = [weight for part in (halves.learning, head) for weight in part.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, passes * len(prepared), pct_start=0.1, cycle_momentum=False, final_div_factor=1e3
    )
    rng, mean_loss = random.Random(f"batches {seed}"), 0.0
    for _ in range(passes):
        for batch in rng.sample(list(prepared), len(prepared)):
            logits = head(halves.above(batch.hidden)[batch.places])
            loss = nn.functional.cross_entropy(logits, head.index[batch.targets])
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            mean_loss = loss.item() if not mean_loss else 0.9 * mean_loss + 0.1 * loss.item()
    return mean_loss


def teach(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Shown],
    *,
    passes: int,
    rate: float,
    learning: Sequence[int] = (),
    seed: int = 0,
) -> str:
    """Teach a model in place, the logits of the `learning` ids with it; returns a line that says how it went."""
    torch.manual_seed(seed)
    begin = time.monotonic()
    halves = Halves(model)
    rows = [encode(tokenizer, example) for example in examples]
    prepared = list(batches(halves, rows))
    ready = time.monotonic() - begin
    head = Head(model.lm_head.weight, torch.cat([batch.targets for batch in prepared]), learning)
    loss = train(halves, head, prepared, passes=passes, rate=rate, seed=seed)
    head.write(model.lm_head.weight)
    num, whole = sum(len(ids) for ids, _ in rows), time.monotonic() - begin
    return f"{len(rows)} examples, {num} tokens, loss {loss:.3f}; {ready:.0f} s below, {whole - ready:.0f} s above"
