"""The guard inside one `generate()` call of a model that it is attached to: it knows prompt, EOS and `max_length`.

A step costs O(batch): each row is advanced by its newest token. Only where rows are reordered or a draft was dropped are
whole histories compared.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import LogitsProcessor

from thinkguard.core._core import StateBatch
from thinkguard.hf.binding import Binding
from thinkguard.hf.history import History
from thinkguard.hf.scores import DeviceRows, check_arguments, edit_scores, runs_on_device


class AttachedProcessor(LogitsProcessor):  # type: ignore[misc]
    """The guard of one `generate()` call; made by `ThinkLogitsProcessor.attach`."""

    def __init__(self, binding: Binding, generation_config: Any, prompt: int) -> None:
        limit = getattr(generation_config, "max_length", None)
        max_tokens = None if limit is None else max(int(limit) - prompt, 0)
        program, bound = binding.program, binding.for_call(generation_config)
        self._binding, self._begins = binding, True
        self._history = History(program, bound, prompt, max_tokens, binding.note_prompt)
        self._device_rows = DeviceRows(program, bound, binding, prompt, max_tokens)
        # What a limit has to hold at most; the first prompt tells whether a smaller one is enough.
        self._is_roomy = max_tokens is None or max_tokens >= program.most_room(bound)
        # Prompt lookup hands the same tensor of scores over more than once, so a copy is edited.
        shares = ("output_logits", "prompt_lookup_num_tokens")
        self._keeps_logits = any(getattr(generation_config, name, None) for name in shares)
        self._reorders = (getattr(generation_config, "num_beams", None) or 1) > 1
        self._batch: StateBatch | None = None
        self._length = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """As ThinkLogitsProcessor's, with the prompt's length known; scores are edited in place."""
        try:
            if runs_on_device(input_ids, scores):
                return self._on_device(input_ids, scores)
            batch, (num_rows, length) = self._batch, input_ids.shape
            if batch is not None and length == self._length + 1 and _is_host_int64(input_ids):
                row_stride, stride = input_ids.stride()
                if batch.follow(input_ids.data_ptr(), row_stride, stride, num_rows, length):
                    self._length = length
                    return edit_scores(batch, scores.clone() if self._keeps_logits else scores, self._binding)
        except (AttributeError, IndexError, RuntimeError, ValueError):  # of what is no strided tensor [n, n]
            check_arguments(input_ids, scores)  # says what is wrong with it
            raise
        return self._by_history(input_ids, scores)

    def _on_device(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        check_arguments(input_ids, scores)
        if not self._is_roomy:
            self._history.states(input_ids.cpu().numpy())  # InputError for a limit that is too small
            self._is_roomy = True
        if self._begins:  # the step behind the prompts
            self._binding.note_prompts(input_ids)
            self._begins = False
        return self._device_rows.edit(input_ids, scores.clone() if self._keeps_logits else scores)

    def _by_history(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The first step of a call, beams, and what assisted decoding does after a dropped draft."""
        check_arguments(input_ids, scores)
        batch = StateBatch([state.copy() for state in self._history.states(input_ids.cpu().numpy())])
        self._batch, self._length = None, input_ids.shape[1]
        if not self._reorders and _is_host_int64(input_ids):
            row_stride, stride = input_ids.stride()
            batch.note_last(input_ids.data_ptr(), row_stride, stride, self._length)
            self._batch = batch
        return edit_scores(batch, scores.clone() if self._keeps_logits else scores, self._binding)


def without_signature_lookup(processor: Any) -> None:
    """`generate` asks for the signature of every processor at every step: 9.9 us, 1.0 us with this attribute."""
    names = ("self", "input_ids", "scores")
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    processor.__call__.__signature__ = inspect.Signature(parameters)


without_signature_lookup(AttachedProcessor)


def _is_host_int64(input_ids: torch.Tensor) -> bool:
    """Whether the core can read them where they lie; a draft model may live elsewhere."""
    return input_ids.is_cpu and input_ids.dtype is torch.int64
