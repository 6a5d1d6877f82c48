"""Every question that a server was asked, and what came back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from thinkguard.doctor.check import Check
from thinkguard.doctor.serving.client import RefusedError, ServerError
from thinkguard.doctor.serving.reply import Reply, Thought
from thinkguard.formats.marks import Marks

FLAG: Final = "vllm serve MODEL --logits-processors thinkguard.vllm:ThinkLogitsProcessor"

Outcome = tuple[Reply, Thought] | ServerError | None  # None: not asked


@dataclass(frozen=True, slots=True)
class Asked:
    """The plain question first; the others are the same one with something added."""

    plain: Reply
    marks: Marks | None
    thought: Thought
    switched: bool  # thinks only when the chat template's switch is on
    limit: int  # max_tokens of every request but the roomy one
    budget: int
    room: int
    stream: Reply | ServerError
    misspelt: Outcome
    capped: Outcome
    native: Outcome  # asked for by vLLM's own thinking_token_budget
    zero: Outcome
    roomy: Outcome  # with max_tokens=room
    quoting: Outcome  # streamed, with markers in the question
    formatted: Outcome  # as JSON

    @property
    def caps(self) -> bool:
        """Whether the answer with the small budget kept to it."""
        return isinstance(self.capped, tuple) and self.kept(self.capped[1])

    def kept(self, thought: Thought) -> bool:
        """Whether thinking stayed within the small budget and is shorter than the plain answer's."""
        return within(thought, self.budget) and thought.num_tokens < self.thought.num_tokens

    @property
    def reads_policy(self) -> bool:
        """Whether the refusal of the misspelt field names the right one: so thinkguard reads the policy."""
        return isinstance(self.misspelt, RefusedError) and "max_thinking_tokens" in self.misspelt.message

    def answers(self, thought: Thought) -> bool:
        """Whether an answer followed the thinking; one that the plain reply lacks too is not the limit's fault."""
        lost = self.thought.closed and not self.thought.answer
        return bool(thought.answer) or (lost and thought.closed)


def within(thought: Thought, budget: int) -> bool:
    """Whether thinking kept to a budget, as far as it could be counted."""
    return thought.num_tokens <= budget + thought.slack


def quoted(text: str) -> str:
    """Return text as evidence; the middle of a long one is left out."""
    return repr(text if len(text) <= 80 else f"{text[:50]} ... {text[-25:]}")


def skipped(name: str, why: str) -> Check:
    """Return a skipped check; `why` says why, or names the check that stands for it."""
    return Check(name, "skipped", why)
