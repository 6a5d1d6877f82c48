"""ThinkLogitsProcessor for Hugging Face `generate(logits_processor=[...])`.

Two ways to know a row's state. By itself the processor is a pure function of each row of `input_ids`: it remembers the
sequences it has seen and compares whole histories, so that beams may be reordered and drafts dropped. Attached to a model
it learns prompt length, EOS and `max_length` from the one place that knows them, and a step costs O(batch). Where ids and
scores are on a GPU, the kernels of device.py find, advance and edit the rows there, by the same rules.
"""

from __future__ import annotations

import inspect
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from thinkguard._core import BoundPolicy, Row, RowBatch
from thinkguard.errors import InputError, UnsupportedError
from thinkguard.formats import ThinkFormat
from thinkguard.hf_scores import FLOATS, DeviceRows, edit_scores, runs_on_device
from thinkguard.policy import POLICY_FIELDS, ThinkPolicy, check_names
from thinkguard.program import ThinkProgram
from thinkguard.trace import ThinkTrace

_REMEMBERED = 64  # sequences kept beside those of the last call, or twice as many as its rows
Ids = npt.NDArray[np.int64]


@dataclass(slots=True, eq=False)
class _Seen:
    """A sequence that was seen, and where it stands."""

    ids: Ids
    prompt: int  # its first tokens are the prompt
    row: Row


class _Rows:
    """Rows by history: finds where a sequence stands from the sequences seen before."""

    def __init__(
        self, program: ThinkProgram, bound: BoundPolicy, prompt: int | None = None, max_tokens: int | None = None
    ) -> None:
        self.program, self.bound, self.prompt, self.max_tokens = program, bound, prompt, max_tokens
        self.last: list[_Seen] = []
        self.older: deque[_Seen] = deque()

    def rows(self, batch: Ids) -> list[Row]:
        """The state behind each sequence. batch: [num_rows, length], strides as they come"""
        seen = [
            self._find(i, ids) for i, ids in enumerate(np.array(batch, np.int64))
        ]  # a copy: hosts reuse their buffers
        again = {id(one) for one in seen}
        self.older.extend(other for other in self.last if id(other) not in again)
        while len(self.older) > max(_REMEMBERED, 2 * len(seen)):
            self.older.popleft()
        self.last = seen
        return [one.row for one in seen]

    def _find(self, index: int, ids: Ids) -> _Seen:
        """Continue the sequence that all but the last token of `ids` were seen in, else take `ids` for a prompt."""
        if not len(ids):  # inputs_embeds: the prompt has no ids
            return self._walk(ids, 0)
        before = len(ids) - 1
        own = self.last[index : index + 1]
        for seen in (*own, *(other for other in self.last if other not in own), *reversed(self.older)):
            if len(seen.ids) < before or len(ids) < seen.prompt or not np.array_equal(seen.ids[:before], ids[:-1]):
                continue
            if len(seen.ids) == before:
                row = seen.row.copy()
                self.program.advance(row, int(ids[-1]))
                return _Seen(ids, seen.prompt, row)
            if len(seen.ids) == len(ids) and seen.ids[-1] == ids[-1]:
                return seen
            if before >= seen.prompt or seen.ids[before] == ids[-1]:
                return self._walk(ids, seen.prompt)
        return self._walk(ids, len(ids) if self.prompt is None else min(self.prompt, len(ids)))

    def _walk(self, ids: Ids, prompt: int) -> _Seen:
        row = self.program.start_bound(_prompt_ids(ids[:prompt]), self.bound, self.max_tokens)
        row.advance_all(ids[prompt:])
        return _Seen(ids, prompt, row)


def _prompt_ids(ids: Ids) -> npt.NDArray[np.int32]:
    if len(ids) and (ids.min() < 0 or ids.max() >= 2**31):
        wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
        raise InputError(f"input_ids holds {wrong}, which is no token id: pad with the tokenizer's pad token")
    return ids.astype(np.int32)


class ThinkLogitsProcessor(LogitsProcessor):  # type: ignore[misc]
    """Hold every sequence to think, then answer.

    `tokenizer` is anything ThinkProgram takes; `format` is detected if None; `vocab_size` is optional and only
    checked, as there; `eos_token_id` replaces the tokenizer's EOS and the format's turn ends. Policy fields are
    keywords: `ThinkLogitsProcessor(tokenizer, max_thinking_tokens=512)`. One processor may serve any number of calls.
    """

    supports_continuous_batching = True  # through `attach` only; without it the first step says so

    def __init__(
        self,
        tokenizer: object,
        *,
        format: ThinkFormat | str | None = None,
        vocab_size: int | None = None,
        eos_token_id: int | Iterable[int] | None = None,
        policy: ThinkPolicy | None = None,
        **fields: Any,
    ) -> None:
        if policy is not None and fields:
            raise InputError(f"policy= and {', '.join(fields)}=: give a ThinkPolicy or its fields, not both")
        check_names(fields, ("format", "vocab_size", "eos_token_id", "policy"))
        self.policy = (
            policy
            if policy is not None
            else ThinkPolicy(**{name: fields[name] for name in POLICY_FIELDS if name in fields})
        )
        if isinstance(tokenizer, ThinkProgram):
            self.program = tokenizer
        else:
            self.program = ThinkProgram(format, tokenizer, vocab_size)
        self.eos_token_ids = _eos_ids(eos_token_id)
        self.bound = self.program.bind(self.policy, self.eos_token_ids)
        self._last_eos = self.eos_token_ids  # of the last attached call, for `explain`
        self.device_tables: dict[Any, Any] = {}  # device -> DeviceProgram, for the steps that run on a GPU
        self._local = threading.local()  # calls in other threads neither disturb the rows seen in this one nor evict them

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores with every row edited as its policy needs; a new tensor if any row was.

        input_ids: [num_rows, length], on any device and of any strides. scores: [num_rows, width] of float32, float16 or
        bfloat16; `width` may be narrower or wider than the vocabulary.
        """
        _check(input_ids, scores)
        if runs_on_device(input_ids, scores):
            if not hasattr(self._local, "device_rows"):
                self._local.device_rows = DeviceRows(self.program, self.bound, self.device_tables)
            edited: torch.Tensor = self._local.device_rows.edit(input_ids, scores.clone())
            return edited
        if not hasattr(self._local, "rows"):
            self._local.rows = _Rows(self.program, self.bound)
        batch = RowBatch(self._local.rows.rows(input_ids.cpu().numpy()))
        return scores if batch.is_free() else edit_scores(batch, scores.clone())

    def explain(
        self, prompt_ids: Sequence[int], output_ids: Sequence[int], max_tokens: int | None = None
    ) -> ThinkTrace:
        """Say what happened in a finished output: reasoning, answer, counts, who closed it, which tokens were forced.

        Where no `eos_token_id` was given, the EOS set is that of the last attached call.
        """
        eos = self._last_eos
        trace: ThinkTrace = self.program.explain(
            prompt_ids, output_ids, self.policy, max_tokens=max_tokens, eos_token_ids=eos
        )
        return trace

    @contextmanager
    def attach(self, model: Any) -> Iterator[ThinkLogitsProcessor]:
        """Guard every `generate()` and `generate_batch()` of a model inside the `with` block.

        The processor need not be passed then; if it is, it works once. Prompt length, EOS and `max_length` come from the
        call itself, so that `reserve_answer_tokens` and the promise of a whole output hold without further arguments.
        UnsupportedError if a guard is attached to the model already.
        """
        from thinkguard.hf_continuous import continuous_processor, with_per_request_processors

        method = getattr(model, "_get_logits_processor", None)
        if method is None:
            raise InputError(f"model is a {type(model).__name__}: wanted a transformers model that has generate()")
        model = getattr(method, "__self__", model)  # the model inside a wrapper (PEFT), whose own generate() runs
        if "_get_logits_processor" in vars(model):
            raise UnsupportedError("a guard is attached to this model already: leave its `with` block first")

        def get_logits_processor(
            generation_config: Any, input_ids_seq_length: int | None = None, *args: Any, **kwargs: Any
        ) -> Any:
            if input_ids_seq_length is None:
                own = continuous_processor(self, generation_config)
            else:
                own = AttachedProcessor(self, generation_config, input_ids_seq_length)
            given = list(kwargs.pop("logits_processor", None) or [])
            # Among the caller's processors, and so before sampling cuts tokens away: a forced token must still be there.
            given = [own if one is self else one for one in given]
            # A draft model's calls bring the target's guard along, which alone knows where the prompt ended.
            given += [] if any(isinstance(one, AttachedProcessor) or one is own for one in given) else [own]
            return method(
                generation_config, input_ids_seq_length, *args, logits_processor=LogitsProcessorList(given), **kwargs
            )

        model._get_logits_processor = get_logits_processor
        try:
            with with_per_request_processors(model):
                yield self
        finally:
            del model._get_logits_processor

    def bind_for(self, generation_config: Any) -> BoundPolicy:
        """The policy with the EOS set of one `generate()` call: the host's ids and the format's, or `eos_token_id`."""
        if self.eos_token_ids is not None:
            return self.bound
        host = _eos_ids(getattr(generation_config, "eos_token_id", None)) or ()
        self._last_eos = (*(t for t in host if t >= 0), *self.program.eos_token_ids)
        return self.program.bind(self.policy, self._last_eos)


class AttachedProcessor(LogitsProcessor):  # type: ignore[misc]
    """The guard of one `generate()` call; made by `ThinkLogitsProcessor.attach`."""

    def __init__(self, guard: ThinkLogitsProcessor, generation_config: Any, prompt: int) -> None:
        limit = getattr(generation_config, "max_length", None)
        max_tokens = None if limit is None else max(int(limit) - prompt, 0)
        self.guard = guard
        bound = guard.bind_for(generation_config)
        self._rows = _Rows(guard.program, bound, prompt, max_tokens)
        self._device_rows = DeviceRows(guard.program, bound, guard.device_tables, prompt, max_tokens)
        # What a limit has to hold at most; the first prompt tells whether a smaller one is enough.
        self._is_roomy = max_tokens is None or max_tokens >= guard.program.most_room(bound)
        # Prompt lookup tries one tensor of scores again and again.
        shares = ("output_logits", "prompt_lookup_num_tokens")
        self._keeps_logits = any(getattr(generation_config, name, None) for name in shares)
        self._reorders = (getattr(generation_config, "num_beams", None) or 1) > 1
        self._batch: RowBatch | None = None
        self._length = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """As ThinkLogitsProcessor's, with the prompt's length known; scores are edited in place."""
        if runs_on_device(input_ids, scores):
            return self._on_device(input_ids, scores)
        batch, (num_rows, length) = self._batch, input_ids.shape
        # A draft model may live elsewhere.
        if batch is not None and length == self._length + 1 and _is_host_int64(input_ids):
            row_stride, stride = input_ids.stride()
            if batch.follow(input_ids.data_ptr(), row_stride, stride, num_rows, length):
                self._length = length
                return edit_scores(batch, scores.clone() if self._keeps_logits else scores)
        return self._by_history(input_ids, scores)

    def _on_device(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        _check(input_ids, scores)
        if not self._is_roomy:
            self._rows.rows(input_ids.cpu().numpy())  # InputError for a limit that is too small
            self._is_roomy = True
        return self._device_rows.edit(input_ids, scores.clone() if self._keeps_logits else scores)

    def _by_history(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The first step of a call, beams, and what assisted decoding does after a dropped draft."""
        _check(input_ids, scores)
        batch = RowBatch([row.copy() for row in self._rows.rows(input_ids.cpu().numpy())])
        self._batch, self._length = None, input_ids.shape[1]
        if not self._reorders and _is_host_int64(input_ids):
            row_stride, stride = input_ids.stride()
            batch.note_last(input_ids.data_ptr(), row_stride, stride, self._length)
            self._batch = batch
        return edit_scores(batch, scores.clone() if self._keeps_logits else scores)


def _without_signature_lookup(processor: Any) -> None:
    """`generate` asks for the signature of every processor at every step: 9.9 us, 1.0 us with this attribute."""
    names = ("self", "input_ids", "scores")
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    processor.__call__.__signature__ = inspect.Signature(parameters)


_without_signature_lookup(ThinkLogitsProcessor)
_without_signature_lookup(AttachedProcessor)


def _is_host_int64(input_ids: torch.Tensor) -> bool:
    return input_ids.is_cpu and input_ids.dtype is torch.int64


def _check(input_ids: torch.Tensor, scores: torch.Tensor) -> None:
    if input_ids.ndim == 1 and scores.ndim == 2:
        raise InputError(
            "input_ids has one dimension, as in continuous batching, where they are no histories: use "
            "`with guard.attach(model): model.generate_batch(...)`"
        )
    if input_ids.ndim != 2 or input_ids.is_floating_point():
        raise InputError(
            f"input_ids is {input_ids.dtype} of shape {list(input_ids.shape)}: wanted ids, [num_rows, length]"
        )
    if scores.ndim != 2 or scores.dtype not in FLOATS:
        raise InputError(
            f"scores are {scores.dtype} of shape {list(scores.shape)}: wanted float32, float16 or bfloat16, "
            "[num_rows, vocab_size]"
        )
    if len(input_ids) != len(scores):
        raise InputError(
            f"input_ids has {len(input_ids)} rows and scores {len(scores)}: wanted one row of scores for each"
        )


def _eos_ids(eos: int | Iterable[int] | None) -> tuple[int, ...] | None:
    if eos is None:
        return None
    if isinstance(eos, torch.Tensor):
        eos = eos.flatten().tolist()
    return tuple(int(token_id) for token_id in eos) if isinstance(eos, Iterable) else (int(eos),)
