"""Requests that all stand at the same place, as a runner's buffers hold them, for the guard and for vLLM's own budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from benches.gpu.common import Host, Sizes, chat, differences, edit_in_c, imported, started
from thinkguard import ThinkPolicy
from thinkguard.core.names import ActionKind
from thinkguard.device.tables import DeviceProgram, stream_of

BUDGET = 2**29
GUARD, RIVAL = "thinkguard", "vLLM V2 budget"


@dataclass(frozen=True)
class Place:
    """Where all requests of a scene stand."""

    action: str = "edit"  # what C decides there
    kind: str = "tokens"  # of the program
    head: str = chat("tokens")  # a prompt's end, behind it four words are committed
    budget: int = BUDGET
    drafts: int = 0  # of each request
    is_long_prompt: bool = False
    is_long_output: bool = False

    @property
    def is_one(self) -> bool:
        """Whether the scene is one request, all of which every launch reads anew."""
        return self.is_long_prompt or self.is_long_output


ANSWER = "so\n</think>\n\nYes"
MARKUP = ANSWER + " `so`"  # with markup in it, nothing is taken for the beginning of an end
PLACES = {
    "thinking": Place(),
    "thinking, 3 drafts each": Place(drafts=3),
    "answering, nothing to edit": Place("free", "text", chat("text") + MARKUP),
    "answering, markers banned": Place(head=chat("tokens") + ANSWER),
    "all forced": Place("force", budget=0),
    "one long resume": Place(is_long_output=True),
    "one long prompt, a chat": Place(is_long_prompt=True),
    "one long prompt, no chat": Place(head="words without a chat", is_long_prompt=True),
}
RIVALS = [name for name, place in PLACES.items() if place.budget and place.kind == "tokens"]
"""Where vLLM's budget can be compared: its markers are single tokens."""


class Scene:
    """Requests that all stand at the same place, and what one step of them is."""

    def __init__(self, tables: DeviceProgram, place: Place, sizes: Sizes, pinned: bool = False) -> None:
        self.tables, self.place, self.anew, self.drafts = tables, place, place.is_one, place.drafts
        self.num_slots = 1 if self.anew else sizes.rows
        rng, head = np.random.default_rng(0), tables.program.vocabulary.encode(place.head)
        filler = sizes.prompt if place.is_long_prompt else 0
        output = sizes.long if place.is_long_output else 4
        steps = 0 if self.anew else sizes.launches * (sizes.rounds + 16)
        capacity = filler + len(head) + output + steps
        self.host = Host(tables, self.num_slots, capacity, pinned=pinned)
        self.host.committed[:] = words = rng.integers(300, sizes.width - 16, (self.num_slots, capacity), np.int32)
        policy = ThinkPolicy(max_thinking_tokens=place.budget)
        self.sequence = started(tables, policy, [*words[0, :filler].tolist(), *head])
        for slot in range(self.num_slots):
            behind = words[slot, filler + len(head) :][:output].tolist()
            self.host.admit(slot, self.sequence, self.sequence.prompt + behind)
        self.host.send()
        where, num_rows = self.host.device, self.num_slots * (1 + self.drafts)
        self.rows = torch.arange(num_rows, device=where) // (1 + self.drafts)
        self.offsets = (torch.arange(num_rows, device=where) % (1 + self.drafts)).int()
        self.inputs = torch.from_numpy(rng.integers(300, sizes.width - 16, num_rows, np.int32)).to(where)
        self.logits = torch.randn(num_rows, sizes.width, device=where, generator=torch.Generator(where).manual_seed(0))
        self.edited = torch.tensor(sorted(tables.program.vocabulary.added.values()), device=where)
        self.values = self.logits[:, self.edited]
        self.new_slots = self.host.slots.slots.clone()
        if pinned:  # as UvaBackedTensor keeps it
            self.host.prompt = self.host.prompt.cpu().pin_memory()

    def begin(self) -> None:
        """What happens before a step: the logits come from a model, a token was committed."""
        self.logits.index_copy_(1, self.edited, self.values)
        if not self.anew:
            self.host.total.add_(1)

    def renew(self) -> None:
        """What happens before a call, where every call reads the request anew."""
        if self.anew:
            self.host.slots.slots.copy_(self.new_slots)

    @property
    def where(self) -> tuple[torch.Tensor, ...]:
        """What slots are told of a step behind its logits."""
        return self.rows, self.offsets, self.inputs, self.host.tokens, self.host.total, self.host.prompt

    def apply(self) -> None:
        """One step."""
        self.host.slots.apply(self.logits, *self.where)

    def launch(self) -> None:
        """What `apply` ends in, alone: a launch of the step that it described last."""
        self.host.slots._launch(len(self.logits), stream_of(self.host.device))

    def check(self) -> None:
        """States and logits of some slots must be those of the C core."""
        where = self.host.device
        fresh = torch.randn(self.logits.shape, device=where, generator=torch.Generator(where).manual_seed(1))
        self.logits.copy_(fresh)
        self.renew()
        self.apply()
        prompt, lengths, each = len(self.sequence.prompt), self.host.total.tolist(), 1 + self.drafts
        assert max(lengths) <= self.host.committed.shape[1], "more steps than tokens"
        for slot in {0, self.num_slots // 2, self.num_slots - 1}:
            ids = self.host.committed[slot].copy()
            ids[:prompt] = self.sequence.prompt
            walk = self.sequence.row.copy()
            walk.advance_all(ids[prompt : lengths[slot]].astype(np.int64))
            state = self.host.slots.state_of(slot)
            assert state == walk.as_dict(), f"slot {slot}: state {state}, C has {walk.as_dict()}"
            action = ActionKind(walk.decide().kind).name.lower()
            assert action == self.place.action, f"slot {slot}: {action}"
            walked = [walk.copy()]
            for token in self.inputs[slot * each + 1 : (slot + 1) * each].tolist():
                walk.advance(token)
                walked.append(walk.copy())
            want = fresh[slot * each : (slot + 1) * each].cpu()
            edit_in_c(walked, want)
            for i, token, got, wanted in differences(self.logits[slot * each : (slot + 1) * each].cpu(), want):
                raise AssertionError(f"slot {slot}, row {i}, token {token}: logit {got}, C has {wanted}")


class Budget:
    """vLLM's own budget over a scene's buffers; never reached."""

    def __init__(self, scene: Scene, kernels: Callable[..., None]) -> None:
        self.kernels, self.scene, where = kernels, scene, scene.host.device
        added = scene.tables.program.vocabulary.added

        def each(value: int) -> torch.Tensor:
            return torch.full((scene.num_slots,), value, dtype=torch.int32, device=where)

        self.requests, self.budget = torch.arange(scene.num_slots, device=where), each(BUDGET)
        if scene.host.tokens.is_pinned():
            self.budget = self.budget.cpu().pin_memory()
        self.last_start, self.last_end, self.scanned = each(-1), each(-1), each(0)
        markers = (added["<think>"], added["</think>"])
        self.start, self.end = (torch.tensor([marker], dtype=torch.int32, device=where) for marker in markers)

    def renew(self) -> None:
        if self.scene.anew:
            for cache, value in ((self.last_start, -1), (self.last_end, -1), (self.scanned, 0)):
                cache.fill_(value)

    def apply(self) -> None:
        scene, host = self.scene, self.scene.host
        self.kernels(
            scene.logits, self.requests, scene.rows, self.budget, host.tokens, host.total, scene.inputs, scene.offsets,
            self.last_start, self.last_end, self.scanned, self.start, self.end, self.end,
        )  # fmt: skip

    def check(self) -> None:
        """All tokens were seen, the last start was found where it is, and no logit was touched."""
        before = self.scene.logits.clone()
        self.renew()
        self.apply()
        assert torch.equal(before, self.scene.logits)
        assert torch.equal(self.scanned, self.scene.host.total)
        prompt, start = self.scene.sequence.prompt, int(self.start)
        want = len(prompt) - 1 - prompt[::-1].index(start) if start in prompt else -1
        assert self.last_start.tolist() == [want] * self.scene.num_slots


def guards(
    request: pytest.FixtureRequest, tables: DeviceProgram, name: str, sizes: Sizes, *, rival: bool, pinned: bool = False,
    **about: Any,
) -> dict[str, Scene | Budget]:  # fmt: skip
    """The guard in a scene and, if asked for, vLLM's budget over the same buffers; without vLLM, it is left out."""
    kernels = imported(request, "vllm.v1.worker.gpu.sample.thinking_budget", **about) if rival else None
    scene = Scene(tables, PLACES[name], sizes, pinned)
    found: dict[str, Scene | Budget] = {GUARD: scene}
    if kernels is not None:
        found[RIVAL] = Budget(scene, kernels.apply_thinking_budget)
    for one in found.values():
        one.check()  # the first call of vLLM's compiles its kernels
    return found
