"""A program with a policy, bound to the EOS set of each `generate()` call."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from thinkguard.core._core import BoundPolicy
from thinkguard.core.ids import index_of
from thinkguard.core.program import ThinkProgram
from thinkguard.policy import ThinkPolicy

BANNED: Final = (
    "another logits processor had banned the token that was due, or all that may be sampled: what is optional is skipped, "
    "and an end marker that stays banned is never written. Look at bad words, suppressed or allowed tokens, "
    "no_repeat_ngram_size and grammars; a trace lists such places as `skipped` and `violations`"
)
_LOG: Final = logging.getLogger("thinkguard")


class Binding:
    """What all calls of one processor share; made once, used by its calls in any thread."""

    def __init__(self, program: ThinkProgram, policy: ThinkPolicy, eos_token_id: int | Iterable[int] | None) -> None:
        self.program, self.policy = program, policy
        self.eos_token_ids = _token_ids(eos_token_id)  # in place of the tokenizer's and the host's; None: theirs
        self.bound = program.bind(policy, self.eos_token_ids)
        self.last_eos = self.eos_token_ids  # of the last attached call, for `explain`
        self.device_tables: dict[Any, Any] = {}  # device -> DeviceProgram, for the steps that run on a GPU
        self.notes_prompts = True  # until one was said to show no chat
        self.notes_banned = True  # until it was said that another processor bans what is due

    def for_call(self, generation_config: Any) -> BoundPolicy:
        """The policy with the EOS set of one `generate()` call: the host's ids and the format's, or `eos_token_id`."""
        if self.eos_token_ids is not None:
            return self.bound
        host = _token_ids(getattr(generation_config, "eos_token_id", None)) or ()
        self.last_eos = (*(t for t in host if t >= 0), *self.program.eos_token_ids)
        return self.program.bind(self.policy, self.last_eos)

    def note_banned(self) -> None:
        """Say once that what had to be sampled was banned by somebody else."""
        if self.notes_banned:
            self.notes_banned = False
            _LOG.warning("thinkguard: %s", BANNED)

    def note_prompts(self, input_ids: torch.Tensor) -> None:
        """`note_prompt` for prompts on a device, which is waited for. input_ids: [num_rows, length]"""
        for prompt_ids in input_ids.cpu().numpy() if self.notes_prompts else ():
            self.note_prompt(prompt_ids)

    def note_prompt(self, prompt_ids: npt.NDArray[np.integer[Any]]) -> None:
        """Say once that a prompt shows no chat: more often than not a chat template is missing, or is not understood."""
        if self.notes_prompts and len(prompt_ids) and self.program.turn(prompt_ids)[1]:
            self.notes_prompts = False
            _LOG.warning(
                "thinkguard: a prompt shows no chat turn as format %r knows them, so it is guarded as plain text: of what "
                "it holds only a marker at its very end counts. Render prompts with the tokenizer's chat template "
                "(add_generation_prompt=True); if it was one, name the format that the template writes with format=",
                self.program.format.name,
            )


def _token_ids(eos: int | Iterable[int] | None) -> tuple[int, ...] | None:
    if eos is None:
        return None
    if isinstance(eos, torch.Tensor):
        eos = eos.flatten().tolist()
    some = eos if isinstance(eos, Iterable) and not isinstance(eos, (str, bytes)) else (eos,)
    return tuple(index_of("eos_token_id", token_id) for token_id in some)
