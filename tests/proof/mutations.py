"""Small errors put into the machine's source, each of which the exploration has to find."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from proof.explorer import CSRC


@dataclass(frozen=True)
class Mutation:
    """One piece of text of a file of csrc/, replaced."""

    what: str
    file: str
    text: str  # stands once in the file
    instead: str
    faults: tuple[int, ...]  # of which one is found; numbers of explorer.FAULTS

    def write(self, folder: Path) -> Path:
        """A copy of csrc/ with the error in it."""
        source = (CSRC / self.file).read_text(encoding="utf-8")
        count = source.count(self.text)
        assert count == 1, (
            f"the mutation {self.what!r} replaces {self.text!r}, which stands {count} times in csrc/{self.file} instead of "
            "once: write it anew for what stands there now"
        )
        shutil.copytree(CSRC, folder / "csrc")
        (folder / "csrc" / self.file).write_text(source.replace(self.text, self.instead), encoding="utf-8")
        return folder / "csrc"


MUTATIONS = (
    Mutation(
        "the budget is one token larger", "machine.h",
        "left = policy->max_thinking_tokens - thought(policy, state);",
        "left = policy->max_thinking_tokens - thought(policy, state) + 1;", (7,),
    ),
    Mutation(
        "thinking stops one token too late for the limit", "machine.h",
        "int32_t room = room_of(state) - close_room(program, policy);",
        "int32_t room = room_of(state) - close_room(program, policy) + 1;", (17,),
    ),
    Mutation(
        "one block too many", "machine.h",
        "state->blocks >= policy->max_think_blocks", "state->blocks > policy->max_think_blocks", (4, 13),
    ),
    Mutation(
        "a start is allowed in the thinking", "decide.c",
        "action->forbidden |= TG_START | TG_ANSWER | TG_TOOL", "action->forbidden |= TG_ANSWER | TG_TOOL", (4,),
    ),
    Mutation(
        "an end is allowed below the minimum", "decide.c",
        "int32_t ends = TG_END | TG_GROWS_END | TG_IMPLICIT", "int32_t ends = TG_GROWS_END | TG_IMPLICIT", (8,),
    ),
    Mutation(
        "the end of another start closes", "machine.c",
        "if (event->starts) begin_pair(state, event->pair);", ";", (4, 10, 13),
    ),
    Mutation(
        "the end that is forced is that of the first start", "machine.h",
        "policy += pair;", "(void)pair;", (4, 14),
    ),
    Mutation(
        "EOS is allowed in the thinking", "decide.c",
        "policy->on_eos == TG_EOS_CLOSE ? TG_MOVE_EOS : TG_BAN_EOS;", "policy->on_eos == TG_EOS_CLOSE ? TG_MOVE_EOS : 0;",
        (10,),
    ),
    Mutation(
        "EOS is moved to the beginning of an end that is half written", "decide.c",
        "action->token = node->plan;", "action->token = program->nodes[0].plan;", (15,),
    ),
    Mutation(
        "plain spellings are allowed", "decide.c",
        "action->forbidden = TG_SPELLED | TG_MULTI;", "action->forbidden = TG_MULTI;", (4, 6),
    ),
    Mutation(
        "special tokens are allowed in a half-written marker", "decide.c",
        "if (state->node && action->forbidden) action->flags |= TG_BAN_INERT;", ";", (5, 11),
    ),
    Mutation(
        "the least answer begins one token too late for the limit", "decide.c",
        "left <= missing) action->flags |= TG_BAN_BLANK;", "left < missing) action->flags |= TG_BAN_BLANK;", (9, 12),
    ),
    Mutation(
        "white space counts as visible", "machine.c",
        "if (visible) count(&state->visible);", "count(&state->visible);", (12,),
    ),
    Mutation(
        "the longest answer is one token longer", "decide.c",
        "state->answer >= policy->max_answer_tokens &&", "state->answer > policy->max_answer_tokens &&", (9,),
    ),
    Mutation(
        "the cap may cut a character", "decide.c",
        "action->cut = left > 3 ? 0 : left > 1 ? left : 1;", "action->cut = 0;", (16,),
    ),
)  # fmt: skip
