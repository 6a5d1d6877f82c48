"""Scripted runs: what a model wants to write, under which budget, and in plain words what the output must then be.

The scripted model knows a list of tokens. At each step its next token has the highest logit, a filler word the second, EOS
the third, the marker's next token the fourth. What it writes is the largest logit behind the alternative's edits. Where it
is overruled it tries again, and gives a token up after four refusals; once an end marker stands in its text it goes on with
its answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Final

from benches.setting import Request, Setting
from thinkguard.doctor.tokenizer.splits import LEFT, RIGHT, covering

QUESTION: Final = "What is 2+2?"
ANSWER: Final = "The answer is four" + ", which is twice two" * 5 + "."
SHORT_ANSWER: Final = "The answer is four, and that is all."
ENDLESS: Final = "\nLet me add two and two once more." + " Let me add two and two once more." * 12
MESSAGE: Final = "Time is up, so I answer now.\n"
SPLITS: Final = "every split of the end"
"""What the case is called that each vocabulary with markers as text has, before the vocabulary's name."""


@dataclass
class Script:
    """Tokens a model wants, and where its answer begins."""

    ids: list[int]
    answer_at: int


@dataclass
class Run:
    """One generation of a case."""

    setting: Setting
    request: Request
    script: Script
    preempt_behind: int = 0  # preempted right behind so many refused tokens; 0: never
    verbatim: bool = False  # nothing has to be edited: the output is to be the script
    blocks: int = 1
    what: str = ""


@dataclass
class Case:
    """What is tried, and what has to come of it."""

    name: str
    wanted: str  # in plain words
    runs: list[Run]
    needs: tuple[str, ...] = ("budget",)
    also: Callable[[Run, list[int], str], str] = field(default=lambda run, ids, text: "")  # complaint beside the common ones


def chat(setting: Setting, tail: str) -> list[int]:
    """A question in the model's own template, and how the assistant's turn begins."""
    text = setting.tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], tokenize=False, add_generation_prompt=True
    )
    return setting.encode(re.sub(r"<think>\s*$", "", text) + tail)


def endless(setting: Setting, thinking: str = ENDLESS, answer: str = ANSWER) -> Script:
    """A thinking that never closes by itself."""
    ids = setting.encode(thinking)
    return Script([*ids, *setting.encode(answer), setting.tokenizer.eos_token_id], len(ids))


def natural(setting: Setting, thinking: str, answer: str = ANSWER, between: str = "\n\n") -> tuple[Script, int]:
    """Return (a script that closes by itself, how many of its tokens lie wholly in the thinking)."""
    ids = setting.encode(thinking + setting.end + between + answer)
    answer_at = before = 0
    for n in range(1, len(ids) + 1):
        text = setting.decode(ids[:n])
        if len(text) <= len(thinking):
            before = n
        if setting.end in text and text.strip() == (thinking + setting.end).strip():
            answer_at = n
    answer_at = answer_at or next(n for n in range(len(ids)) if setting.end in setting.decode(ids[: n + 1])) + 1
    return Script([*ids, setting.tokenizer.eos_token_id], answer_at), before


@dataclass(frozen=True)
class Settings:
    """The vocabularies that the cases need."""

    tokens: Setting  # each marker is a token
    message: Setting  # the same, with a close message
    blocks: Setting  # the same, with two blocks allowed
    text: Setting  # markers are text, whose last byte may stand in a longer token
    splits: tuple[Setting, ...]  # more vocabularies with markers as text


def make(settings: Settings, *, quick: bool = False) -> Iterator[Case]:
    """All cases; with `quick` a few splits of the end marker instead of all of them."""
    yield from _plain(settings.tokens, settings.text)
    yield from _other_tokens(settings.tokens, settings.text)
    yield from _preempted(settings.text, settings.message)
    yield from _unwanted(settings.tokens, settings.text)
    yield from _second_block(settings.tokens, settings.blocks)
    yield from _zero(settings.tokens, settings.text)
    for setting in settings.splits:
        yield _every_split(setting, 3 if quick else None)


def _plain(tokens: Setting, text: Setting) -> Iterator[Case]:
    for name, setting in (("tokens", tokens), ("text", text)):
        yield Case(
            f"endless thinking, markers as {name}",
            "the prompt opens the thinking, which never ends: closed once within a budget of 12, then the answer",
            [Run(setting, Request(chat(setting, "<think>"), 12), endless(setting))],
        )
    script, _ = natural(tokens, "\nTwo and two.")
    yield Case(
        "closed in time by itself",
        "the model closes with its marker token, below the budget, and answers with more tokens than that: left as it is",
        [Run(tokens, Request(chat(tokens, "<think>"), 20), script, verbatim=True)],
    )


def _other_tokens(tokens: Setting, text: Setting) -> Iterator[Case]:
    """Markers in other tokens than those that the tokenizer writes for the marker alone."""
    yield Case(
        "prompt opened by a longer token",
        "the prompt ends in `<think>\\n`, whose last token is `>\\n`; endless thinking, a budget of 20: closed once",
        [Run(text, Request(chat(text, "<think>\n"), 20), endless(text, ENDLESS[1:]))],
    )
    script, _ = natural(text, "\nTwo and two, that is clear.")
    yield Case(
        "end in other tokens",
        "the model ends its thinking with `.</` `think` `>\\n\\n`, far below a budget of 20: left as it is",
        [Run(text, Request(chat(text, "<think>"), 20), script, verbatim=True)],
    )
    for kind, thinking in (("its own", "\nTwo and two is what is asked"), ("other", "\nTwo and two is what is asked.")):
        script, before = natural(text, thinking)
        shown = " ".join(repr(text.decode([token])) for token in script.ids[before : script.answer_at])
        requests = [(over, Request(chat(text, "<think>"), before + over)) for over in (-1, 0, 1, 2)]
        yield Case(
            f"end begun at the cap, in {kind} tokens",
            f"the budget is reached before, at, or between the tokens of the end that the model writes ({shown}): one whole "
            "end, nothing doubled",
            [Run(text, request, script, what=f"cap {over:+d}") for over, request in requests],
        )
    spelled = [token for piece in ("</", "think", ">\n\n") for token in tokens.encode(piece)]
    thought = tokens.encode("\nTwo and two")
    ids = [*thought, *spelled, *tokens.encode(ANSWER), tokens.eos_ids[0]]
    yield Case(
        "the end spelled out",
        "where `</think>` is one token the model writes it in plain tokens; readers of text and of tokens must see one end",
        [Run(tokens, Request(chat(tokens, "<think>"), 24), Script(ids, len(thought) + len(spelled)))],
        ("budget", "spelled end"),
    )


def _preempted(text: Setting, message: Setting) -> Iterator[Case]:
    yield Case(
        "forced end preempted",
        "preempted behind the first forced token of an end marker that is text: the end is completed, once",
        [Run(text, Request(chat(text, "<think>"), 12), endless(text), preempt_behind=1)],
    )

    def said_once(run: Run, ids: list[int], text: str) -> str:
        whole = MESSAGE.strip() + "\n" + run.setting.end in text.replace("\n\n", "\n")
        count = text.count(MESSAGE[:10])
        return "" if whole and count == 1 else f"the message stands there {count} times, or not whole before the end"

    yield Case(
        "forced message preempted",
        "preempted behind the second forced token of a close message: the message is said once and whole, then the end",
        [Run(message, Request(chat(message, "<think>\n"), 12), endless(message, ENDLESS[1:]), preempt_behind=2)],
        ("budget", "message"),
        said_once,
    )


def _unwanted(tokens: Setting, text: Setting) -> Iterator[Case]:
    """What is no matter of a budget, but breaks an output as surely."""
    runs = []
    for setting in (tokens, text):
        thought, rest = setting.encode("\nTwo and two. Let me"), setting.encode(" see, two and two.")
        close, eos = [*setting.end_ids, *setting.encode("\n\n")], setting.eos_ids[0]
        ids = [*thought, eos, *rest, *close, *setting.encode(ANSWER), eos]
        script = Script(ids, len(thought) + 1 + len(rest) + len(close))
        what = "markers as tokens" if setting is tokens else "markers as text"
        runs.append(Run(setting, Request(chat(setting, "<think>"), 60), script, what=what))
    yield Case("EOS in the thinking", "the model wants to stop in its thinking: it closes and answers", runs, ("ban EOS",))
    thinking = "Let me see: " + "🧮🦑🪿" * 8
    yield Case(
        "a cut inside a character",
        "thinking in characters of several tokens each: the cap cuts none of them",
        [
            Run(tokens, Request(chat(tokens, "<think>\n"), cap), endless(tokens, thinking), what=f"cap {cap}")
            for cap in (9, 10, 11, 12)
        ],
        ("utf-8",),
    )


def _second_block(tokens: Setting, blocks: Setting) -> Iterator[Case]:
    script, _ = natural(tokens, "\nTwo and two.", "Four, I say.")
    again = tokens.encode("<think>\nOr is it five? No, it is four.</think>\n\nFour it is.")
    reopened = Script([*script.ids[:-1], *again, script.ids[-1]], script.answer_at)
    yield Case(
        "a block reopened",
        "behind its answer the model opens a second block, where one is allowed: no second block",
        [Run(tokens, Request(chat(tokens, "<think>"), 30), reopened)],
        ("one block",),
    )
    script, _ = natural(blocks, "\nTwo and two.", "Four, I say.")
    again = [*blocks.encode("<think>" + ENDLESS), *blocks.encode("Four it is.")]
    reopened = Script([*script.ids[:-1], *again, script.ids[-1]], script.answer_at)
    yield Case(
        "a second block capped",
        "two blocks are allowed, the second never ends: closed within the budget (of the block or the turn), and answered",
        [Run(blocks, Request(chat(blocks, "<think>"), 16), reopened, blocks=2)],
        ("budget", "second block"),
    )


def _zero(tokens: Setting, text: Setting) -> Iterator[Case]:
    yield Case(
        "budget 0",
        "no thinking at all: the block that the prompt opened is closed at once",
        [
            Run(tokens, Request(chat(tokens, "<think>\n"), 0), endless(tokens, ENDLESS[1:]), what="markers as tokens"),
            Run(text, Request(chat(text, "<think>"), 0), endless(text), what="markers as text"),
        ],
    )
    yield Case(
        "budget 0, not opened",
        "the prompt leaves it to the model to open: at most an empty block, then the answer",
        [Run(tokens, Request(chat(tokens, ""), 0), endless(tokens, "<think>" + ENDLESS))],
        ("budget", "unopened"),
    )


def _every_split(setting: Setting, most: int | None) -> Case:
    runs = []
    for left, right, span in _splits(setting):
        script, before = natural(setting, "\nTwo and two" + left, right + SHORT_ANSWER, "")
        shown = " ".join(repr(setting.decode([token])) for token in span)
        runs.append(Run(setting, Request(chat(setting, "<think>"), before + 6), script, verbatim=True, what=shown))
    return Case(
        f"{SPLITS}, {setting.folder.name}",
        "the model ends its thinking in time, in each way in which its tokenizer splits the end: left as it is",
        runs[:most],
    )


def _splits(setting: Setting) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """One (text before, text behind, tokens that cover the end marker) for each distinct split."""
    seen = set()
    for left, right in product(LEFT, RIGHT):
        span = covering(setting.program.vocabulary, "\nTwo and two" + left, setting.end, right + "The answer")
        if span not in seen:
            seen.add(span)
            yield left, right, span
