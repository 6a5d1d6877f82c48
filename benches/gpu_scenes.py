"""Requests that all stand at the same place, as a runner's buffers hold them, for the guard and for vLLM's own budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from gpu_common import WIDTH, Host, NotMeasured, chat, differences, edit_in_c, started

from thinkguard import ThinkPolicy
from thinkguard.core.names import ActionKind
from thinkguard.device.tables import DeviceProgram

BUDGET = 2**29


@dataclass(frozen=True)
class Sizes:
    """How much is measured; tests have little of everything."""

    rows: int = 256
    width: int = WIDTH
    launches: int = 20  # of a round; the device's queue holds about a thousand entries, and each takes up to 30
    rounds: int = 8
    long: int = 8_192
    prompt: int = 100_000
    device: str = "cuda"


@dataclass(frozen=True)
class Setting:
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
SETTINGS = {
    "thinking": Setting(),
    "thinking, 3 drafts each": Setting(drafts=3),
    "answering, nothing to edit": Setting("free", "text", chat("text") + ANSWER),
    "answering, markers banned": Setting(head=chat("tokens") + ANSWER),
    "all forced": Setting("force", budget=0),
    "one long resume": Setting(is_long_output=True),
    "one long prompt, a chat": Setting(is_long_prompt=True),
    "one long prompt, no chat": Setting(head="words without a chat", is_long_prompt=True),
}


class Scene:
    """Requests that all stand at the same place, and what one step of them is."""

    def __init__(self, tables: DeviceProgram, setting: Setting, sizes: Sizes, pinned: bool = False) -> None:
        self.tables, self.setting, self.anew, self.drafts = tables, setting, setting.is_one, setting.drafts
        self.num_slots = 1 if self.anew else sizes.rows
        rng, head = np.random.default_rng(0), tables.program.vocabulary.encode(setting.head)
        filler = sizes.prompt if setting.is_long_prompt else 0
        output = sizes.long if setting.is_long_output else 4
        steps = 0 if self.anew else sizes.launches * (sizes.rounds * 4 + 16)
        capacity = filler + len(head) + output + steps
        self.host = Host(tables, self.num_slots, capacity, pinned=pinned)
        self.host.committed[:] = words = rng.integers(300, sizes.width - 16, (self.num_slots, capacity), np.int32)
        policy = ThinkPolicy(max_thinking_tokens=setting.budget)
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
        self.new_states = self.host.slots.states.clone()
        if pinned:  # as UvaBackedTensor keeps it
            self.host.prompt = self.host.prompt.cpu().pin_memory()

    def begin(self) -> None:
        """What happens before a launch: a token was committed, or the requests are new; the logits come from a model."""
        self.logits.index_copy_(1, self.edited, self.values)
        if self.anew:
            self.host.slots.states.copy_(self.new_states)
        else:
            self.host.total.add_(1)

    def apply(self) -> None:
        host = self.host
        host.slots.apply(self.logits, self.rows, self.offsets, self.inputs, host.tokens, host.total, host.prompt)

    def check(self) -> None:
        """States and logits of some slots must be those of the C core."""
        where = self.host.device
        fresh = torch.randn(self.logits.shape, device=where, generator=torch.Generator(where).manual_seed(1))
        self.logits.copy_(fresh)
        if self.anew:
            self.host.slots.states.copy_(self.new_states)
        self.apply()
        prompt, lengths, each = len(self.sequence.prompt), self.host.total.tolist(), 1 + self.drafts
        assert max(lengths) <= self.host.committed.shape[1], "more steps than tokens"
        for slot in {0, self.num_slots // 2, self.num_slots - 1}:
            ids = self.host.committed[slot].copy()
            ids[:prompt] = self.sequence.prompt
            walk = self.sequence.row.copy()
            walk.advance_all(ids[prompt : lengths[slot]].astype(np.int64))
            state = self.host.state(slot)
            assert state == walk.as_dict(), f"slot {slot}: state {state}, C has {walk.as_dict()}"
            action = ActionKind(walk.decide().kind).name.lower()
            assert action == self.setting.action, f"slot {slot}: {action}"
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

    def __init__(self, scene: Scene) -> None:
        try:
            from vllm.v1.worker.gpu.sample.thinking_budget import apply_thinking_budget
        except ImportError as error:
            raise NotMeasured(f"no vLLM with kernels for thinking budgets: {error}") from None
        self.kernels, self.scene, where = apply_thinking_budget, scene, scene.host.device
        added = scene.tables.program.vocabulary.added
        if "<think>" not in added:
            raise NotMeasured("vLLM's budget is timed where markers are single tokens")

        def each(value: int) -> torch.Tensor:
            return torch.full((scene.num_slots,), value, dtype=torch.int32, device=where)

        self.requests, self.budget = torch.arange(scene.num_slots, device=where), each(BUDGET)
        if scene.host.tokens.is_pinned():
            self.budget = self.budget.cpu().pin_memory()
        self.last_start, self.last_end, self.scanned = each(-1), each(-1), each(0)
        markers = (added["<think>"], added["</think>"])
        self.start, self.end = (torch.tensor([marker], dtype=torch.int32, device=where) for marker in markers)

    def begin(self) -> None:
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
        self.begin()
        self.apply()
        assert torch.equal(before, self.scene.logits)
        assert torch.equal(self.scanned, self.scene.host.total)
        prompt, start = self.scene.sequence.prompt, int(self.start)
        want = len(prompt) - 1 - prompt[::-1].index(start) if start in prompt else -1
        assert self.last_start.tolist() == [want] * self.scene.num_slots
