"""Continuous batching (`generate_batch`) through its own interface: a processor that is told which requests it edits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from thinkguard.core._core import StateBatch, ThinkState
from thinkguard.errors import UnsupportedError
from thinkguard.hf.binding import Binding
from thinkguard.hf.scores import edit_scores


@contextmanager
def with_per_request_processors(model: Any) -> Iterator[None]:
    """Have a model's continuous batching hand each request's processor arguments on; other models are left alone."""
    method = getattr(model, "init_continuous_batching", None)
    if method is None:
        yield
        return
    managers: list[Any] = []  # made under this guard

    def init_continuous_batching(
        generation_config: Any = None, continuous_batching_config: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        import transformers

        manager = getattr(model, "_cached_continuous_batching_manager", None)
        if manager is not None and manager not in managers:
            raise UnsupportedError(
                "the model has a persistent manager from before it was guarded: call "
                "model.destroy_cached_continuous_batching_manager() first"
            )
        config = continuous_batching_config or getattr(generation_config, "continuous_batching_config", None)
        kind: Any = getattr(transformers, "ContinuousBatchingConfig", object)  # older releases have none
        config = copy.copy(config or kind())  # the caller's stays as it is
        if not hasattr(config, "per_request_processors"):
            raise UnsupportedError(
                "this version of transformers has continuous batching without per-request processors: upgrade to 5.8"
            )
        if getattr(config, "use_async_batching", None):
            raise UnsupportedError(
                "continuous batching with use_async_batching=True decides before the last token is known: set it to False"
            )
        graphs = getattr(config, "use_cuda_graph", None)
        if any(graphs) if isinstance(graphs, tuple) else graphs:
            raise UnsupportedError(
                "continuous batching with use_cuda_graph=True replays steps without asking the guard: set it to False"
            )
        config.per_request_processors = True
        config.use_async_batching = config.use_cuda_graph = False
        managers.append(method(generation_config, config, *args, **kwargs))
        return managers[-1]

    model.init_continuous_batching = init_continuous_batching
    try:
        yield
    finally:
        del model.init_continuous_batching


@dataclass(slots=True)
class _Request:
    think: ThinkState
    seen: int  # tokens of the output that it has been advanced by


def continuous_processor(binding: Binding, generation_config: Any) -> Any:
    """What `model._get_logits_processor` hands to continuous batching: converted there into the per-request processor."""
    place, _ = _classes()
    return place(binding, generation_config)


@cache
def _classes() -> tuple[Any, Any]:
    """(the place in the model's list, the processor that continuous batching puts there), registered with the host."""
    from transformers.generation.continuous_batching import cb_logits_processors as host

    class Place:
        """Stands in the model's list until continuous batching replaces it."""

        supports_continuous_batching = True

        def __init__(self, binding: Binding, generation_config: Any) -> None:
            self.binding, self.generation_config = binding, generation_config

    class ContinuousProcessor(host.ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
        """Edits the logits of every request that gets a new token."""

        supported_kwargs: dict[str, type] = {}  # noqa: RUF012  the host's interface
        ignored_kwargs: tuple[str, ...] = ()

        def __init__(self, place: Place) -> None:
            self.binding, self.generation_config = place.binding, place.generation_config
            self.requests: dict[str, _Request] = {}
            self.batch = StateBatch([])

        def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
            int32_tensor.fill_(-1)

        def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
            """Bring every request up to date; the argument of each is its index in the batch."""
            states = [request.state for request in requests_with_new_token]
            alive = {state.request_id for state in states}
            if len(self.requests) > 4 * len(alive) + 64:
                self.requests = {key: value for key, value in self.requests.items() if key in alive}
            self.batch = StateBatch([self._think(state) for state in states])
            return torch.arange(len(states), dtype=torch.int32)

        def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
            """scores: [num_tokens, vocab_size], of which the first rows are the requests'."""
            edit_scores(self.batch, scores[: len(self.batch)], self.binding)
            return scores

        def _think(self, state: Any) -> ThinkState:
            """Where a request stands: its prompt, and what was generated before and after it was preempted."""
            prompt = state._true_initial_tokens or len(state.initial_tokens)
            output = state.initial_tokens[prompt:] + state.generated_tokens
            request = self.requests.get(state.request_id)
            if request is None or request.seen > len(output) or not output:  # an id may be used again
                limit = state.max_new_tokens
                if limit is not None:
                    limit += len(state.initial_tokens) - prompt
                bound = self.binding.for_call(self.generation_config)
                request = _Request(self.binding.program.start_bound(state.initial_tokens[:prompt], bound, limit), 0)
                self.binding.note_prompt(np.array(state.initial_tokens[:prompt], np.int64))
                self.requests[state.request_id] = request
            request.think.advance_all(output[request.seen :])
            request.seen = len(output)
            return request.think

    host.CLASSIC_TO_CB_PROCESSORS_MAP[Place] = ContinuousProcessor
    return Place, ContinuousProcessor
