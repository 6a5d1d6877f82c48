"""ThinkLogitsProcessor for Hugging Face `generate(logits_processor=[...])`.

Two ways to know a row's state. By itself the processor is a pure function of each row of `input_ids`: it remembers the
sequences it has seen and compares whole histories, so that beams may be reordered and drafts dropped. Attached to a model
it learns prompt length, EOS and `max_length` from the one place that knows them, and a step costs O(batch). Where ids and
scores are on a GPU, the kernels find, advance and edit the rows there, by the same rules.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from thinkguard.core._core import StateBatch
from thinkguard.core.program import ThinkProgram
from thinkguard.core.trace import ThinkTrace
from thinkguard.errors import InputError, UnsupportedError
from thinkguard.formats import ThinkFormat
from thinkguard.hf.attached import AttachedProcessor, without_signature_lookup
from thinkguard.hf.binding import Binding
from thinkguard.hf.continuous import continuous_processor, with_per_request_processors
from thinkguard.hf.history import History
from thinkguard.hf.scores import DeviceRows, check_arguments, edit_scores, runs_on_device
from thinkguard.policy import POLICY_FIELDS, ThinkPolicy, check_names


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
        self.binding = Binding(self.program, self.policy, eos_token_id)
        self._local = threading.local()  # calls in other threads neither disturb the rows seen in this one nor evict them

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores with every row edited as its policy needs; a new tensor if any row was.

        input_ids: [num_rows, length], on any device and of any strides. scores: [num_rows, width] of float32, float16 or
        bfloat16; `width` may be narrower or wider than the vocabulary.
        """
        check_arguments(input_ids, scores)
        if runs_on_device(input_ids, scores):
            if not hasattr(self._local, "device_rows"):
                self._local.device_rows = DeviceRows(self.program, self.binding.bound, self.binding)
                self.binding.note_prompts(input_ids)
            edited: torch.Tensor = self._local.device_rows.edit(input_ids, scores.clone())
            return edited
        if not hasattr(self._local, "history"):
            self._local.history = History(self.program, self.binding.bound, note_prompt=self.binding.note_prompt)
        batch = StateBatch(self._local.history.states(input_ids.cpu().numpy()))
        return scores if batch.is_free() else edit_scores(batch, scores.clone(), self.binding)

    def explain(
        self, prompt_ids: Sequence[int], output_ids: Sequence[int], max_tokens: int | None = None
    ) -> ThinkTrace:
        """Say what happened in a finished output: reasoning, answer, counts, who closed it, which tokens were forced.

        Where no `eos_token_id` was given, the EOS set is that of the last attached call.
        """
        eos = self.binding.last_eos
        return self.program.explain(prompt_ids, output_ids, self.policy, max_tokens=max_tokens, eos_token_ids=eos)

    @contextmanager
    def attach(self, model: Any) -> Iterator[ThinkLogitsProcessor]:
        """Guard every `generate()` and `generate_batch()` of a model inside the `with` block.

        The processor need not be passed then; if it is, it works once. Prompt length, EOS and `max_length` come from the
        call itself, so that `reserve_answer_tokens` and the promise of a whole output hold without further arguments.
        UnsupportedError if a guard is attached to the model already.
        """
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
                own = continuous_processor(self.binding, generation_config)
            else:
                own = AttachedProcessor(self.binding, generation_config, input_ids_seq_length)
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


without_signature_lookup(ThinkLogitsProcessor)
