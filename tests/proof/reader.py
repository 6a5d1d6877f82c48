"""The independent reader: what a decoded output has to be, as tables over tokens.

It shares nothing with the package: what a world's tokens spell, what its markers are and what a policy asks for are all it
knows. Three readers go along with a sequence:

* `shown` reads the text as decode(skip_special_tokens=False) gives it, by the regular expression of the policy's structure.
* `skipped` reads the same language without the special tokens that are no markers.
* `scan` finds the markers in the text from left to right, to say which tokens think, answer or are visible, and which of
  them complete the plain spelling of an added token, with or without what skip_special_tokens drops.

That what has been written *begins* a text with the right structure is no second expression: it is a state of the automaton
from which a whole text can be reached.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from proof.regular import Automaton
from proof.scan import Place, Scan, read_bytes
from proof.structure import Shape, structure
from proof.worlds import WORLDS, World

# What a token does, as walk.c knows it.
THINKS, ANSWERS, IS_VISIBLE, CLOSES, RESTARTS, MISREADS, ENDS, CUTS, LEAVES = (
    1, 2, 4, 8, 16, 32, 64, 128, 256
)  # fmt: skip
WHOLE, LOST = 1, 2  # of a state of the structure


@dataclass(frozen=True)
class Tables:
    """A reader's automata over tokens, [states, tokens], and what a sequence begins with."""

    shown: np.ndarray
    skipped: np.ndarray
    flags: np.ndarray  # WHOLE, LOST of a state of both
    scan: np.ndarray
    does: np.ndarray
    inside: np.ndarray  # of each place of the scan, whether it is in reasoning that EOS has to fit behind
    followed: np.ndarray  # of each token, 0 where another one stands for it
    begin: tuple[int, int, int, int, int]  # states of shown, skipped and scan, thinking and visible tokens behind a prompt


@dataclass(frozen=True)
class Reader:
    """Of one world and shape.

    Who skips special tokens may see a half of plain text go on behind any of them; the rules promise only that it does not
    behind one that is a marker by itself. A `strict` reader asks for all of them.
    """

    world: World
    shape: Shape
    strict: bool = False

    @cached_property
    def automaton(self) -> Automaton:
        return Automaton(structure(self.world, self.shape), b"".join(self.world.pieces))

    @cached_property
    def controls(self) -> dict[str, int]:
        """Added tokens that markers are written with."""
        texts = self.world.markers
        if self.world.channel:
            return {name: token for name, token in self.world.token_of.items() if name not in self.world.eos[:1]}
        return {name: token for name, token in self.world.token_of.items() if any(name in one for one in texts)}

    def tables(self, prompt: tuple[int, ...] = ()) -> Tables:
        """The tables, begun behind the assistant's own part of a prompt."""
        shown, skipped, scan, does, inside = self._whole
        at, thinking, visible = [0, 0, 0], 0, 0
        for token in prompt:
            what = int(does[at[2], token])
            thinking += bool(what & THINKS)
            visible = visible * (not what & (CLOSES | RESTARTS)) + bool(what & IS_VISIBLE)
            at = [int(table[state, token]) for table, state in zip((shown, skipped, scan), at, strict=True)]
        return Tables(shown, skipped, self._flags, scan, does, inside, self._followed, (*at, thinking, visible))

    @cached_property
    def _flags(self) -> np.ndarray:
        pairs = zip(self.automaton.whole, self.automaton.lost, strict=True)
        return np.array([WHOLE * whole | LOST * lost for whole, lost in pairs], np.int32)

    @cached_property
    def _followed(self) -> np.ndarray:
        return np.array([piece not in self.world.alike for piece in self.world.pieces], np.int32)

    @cached_property
    def _whole(self) -> tuple:
        world, automaton = self.world, self.automaton
        left_out = world.dropped - set(self.controls.values())
        shown = [[automaton.walk(state, piece) for piece in world.pieces] for state in range(len(automaton.steps))]
        skipped = [[q if t in left_out else to for t, to in enumerate(row)] for q, row in enumerate(shown)]
        if self.shape.markers == "allow":
            skipped = shown
        anything = self.shape.markers == "allow" and self.shape.opening == "allow"
        first = Place("answer") if anything else Place()  # nothing tells a quoted marker from one that is meant
        places, scan, does = _explored((first, Place(), Place(), (b"", True)), self._step, self._followed)
        inside = [place[0].within == "reasoning" and self.shape.opening != "forbid" for place in places]
        return tuple(np.array(table, np.int32) for table in (shown, skipped, scan, does, inside))

    @cached_property
    def _scans(self) -> tuple[Scan, Scan, Scan]:
        world = self.world
        openers = (*world.openers, world.channel.body) if world.channel else tuple(world.openers)
        spelled = tuple(self.controls)
        dropped = tuple(name for name, token in self.controls.items() if token in world.dropped)
        texts = Scan(
            world.starts, world.ends, openers, tuple(world.implicit), self.shape.markers == "allow", bool(world.channel)
        )
        return texts, Scan(openers=spelled), Scan(openers=dropped)

    def _step(self, places: tuple, token: int) -> tuple[tuple, int]:
        """(places behind a token, what it does)."""
        world, piece = self.world, self.world.pieces[token]
        texts, controls, dropped = self._scans
        was = places[0]
        place, found, visible = texts.read(was, piece, world.space)
        control, spelled, _ = controls.read(places[1], piece, "")
        rest, misread = places[2], []
        if token not in world.dropped:
            rest, misread, _ = dropped.read(rest, piece, "")
        elif token in self.controls.values():
            rest = rest if self.strict or piece.decode() in world.markers else Place()
        else:
            visible = False
        does = 0
        if found:
            closes = any(one in texts.ends for one in found)
            does |= CLOSES * closes | ENDS * (closes and was.within == "reasoning")
            does |= RESTARTS if found[-1] in texts.openers else 0
            does |= IS_VISIBLE if visible and place.within == "answer" else 0
        elif was.within == "reasoning":
            whole_space = was.space is not None and piece and place.space is not None
            does |= 0 if whole_space else THINKS
            place = place._replace(space=place.space if whole_space else None)
        else:
            does |= ANSWERS if was.within == "answer" else 0
            does |= IS_VISIBLE if visible else 0
        wrong = [one for one in spelled if self.controls[one] != token] + misread
        if wrong and not (texts.quotes and was.within == "answer"):
            does |= MISREADS
        begun, follows, cuts = read_bytes(*places[3], piece)
        does |= LEAVES * (bool(begun) and follows) | CUTS * cuts
        follows = follows and not (self.shape.loops and not piece)
        return (place, control, rest, (begun, follows)), does


def _explored(begin: Hashable, step: Callable, followed: np.ndarray) -> tuple[list, list, list]:
    """Of all places that are reached, where tokens lead and what they do; zeros for tokens that are not followed."""
    number, order = {begin: 0}, [begin]
    nexts, does = [], []
    for place in order:  # grows while it is walked
        row = [step(place, token) if follow else (begin, 0) for token, follow in enumerate(followed)]
        for to, _ in row:
            if to not in number:
                number[to] = len(order)
                order.append(to)
        nexts.append([number[to] for to, _ in row])
        does.append([what for _, what in row])
    return order, nexts, does


@cache
def reader_of(world: str, shape: Shape, strict: bool = False) -> Reader:
    return Reader(WORLDS[world], shape, strict)
