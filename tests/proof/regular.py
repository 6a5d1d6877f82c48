"""Regular expressions with complement, and their automata by derivatives.

A language is a value that `Language` makes; what may still follow behind a byte is its derivative, and an automaton is made
of all of them. Every reader of the proof is made here. Nothing of the package is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, reduce


@dataclass(frozen=True)
class Language:
    """What a text may be: `op` says of which parts."""

    op: str  # "one of" the bytes in parts, "cat" of two, "or" of a set, "not", "star", or "empty": the empty text
    parts: tuple | frozenset = ()

    def __add__(self, other: Language) -> Language:
        if NOTHING in (self, other):
            return NOTHING
        if self == EMPTY:
            return other
        if self.op == "cat":  # to the right, so that equal languages are equal values more often
            return self.parts[0] + (self.parts[1] + other)
        return self if other == EMPTY else Language("cat", (self, other))

    def __or__(self, other: Language) -> Language:
        parts = frozenset().union(*(one.parts if one.op == "or" else {one} for one in (self, other)))
        if ANYTHING in parts:
            return ANYTHING
        return next(iter(parts)) if len(parts) == 1 else Language("or", parts)

    def __invert__(self) -> Language:
        return self.parts[0] if self.op == "not" else Language("not", (self,))

    def star(self) -> Language:
        return Language("star", (self,))

    def times(self, least: int, most: int) -> Language:
        """This, repeated."""
        once = any_of([EMPTY, *(power(self, i) for i in range(1, most - least + 1))])
        return power(self, least) + once

    @property
    def is_whole(self) -> bool:
        """Whether the empty text belongs to it."""
        return _is_whole(self)

    def behind(self, byte: int) -> Language:
        """What may follow behind a byte."""
        return _behind(self, byte)


NOTHING = Language("or", frozenset())
EMPTY = Language("empty")
ANYTHING = Language("not", (NOTHING,))
ANY_BYTE = Language("one of", frozenset(range(256)))


def text(*choices: str | bytes) -> Language:
    """One of these texts."""
    spelled = [choice.encode() if isinstance(choice, str) else choice for choice in choices]
    letters = [[Language("one of", frozenset({byte})) for byte in one] for one in spelled]
    return any_of(reduce(lambda behind, letter: letter + behind, reversed(one), EMPTY) for one in letters)


def one_of(letters: bytes) -> Language:
    """One byte."""
    return Language("one of", frozenset(letters))


def any_of(languages: Iterable[Language]) -> Language:
    return reduce(lambda one, other: one | other, languages, NOTHING)


def power(language: Language, exponent: int) -> Language:
    return reduce(lambda one, other: one + other, [language] * exponent, EMPTY)


def without(*forbidden: str) -> Language:
    """Any text in which none of these stands."""
    return ~(ANYTHING + text(*forbidden) + ANYTHING) if forbidden else ANYTHING


@cache
def _is_whole(language: Language) -> bool:
    op, parts = language.op, language.parts
    if op in ("empty", "star"):
        return True
    if op == "not":
        return not parts[0].is_whole
    return any(one.is_whole for one in parts) if op == "or" else op == "cat" and all(one.is_whole for one in parts)


@cache
def _behind(language: Language, byte: int) -> Language:
    op, parts = language.op, language.parts
    if op == "one of":
        return EMPTY if byte in parts else NOTHING
    if op == "or":
        return any_of(one.behind(byte) for one in parts)
    if op == "not":
        return ~parts[0].behind(byte)
    if op == "star":
        return parts[0].behind(byte) + language
    if op == "cat":
        first, rest = parts
        found = first.behind(byte) + rest
        return found | rest.behind(byte) if first.is_whole else found
    return NOTHING


class Automaton:
    """All derivatives of a language by the bytes of an alphabet, in which one byte stands for those that nothing names."""

    def __init__(self, language: Language, alphabet: Iterable[int]) -> None:
        named = set(alphabet) | _bytes_named(language)
        self.alphabet = sorted(named | {min(set(range(256)) - named)})
        self.states = {language: 0}
        self.steps: list[dict[int, int]] = []
        waiting = [language]
        for one in waiting:  # grows while it is walked
            step = {}
            for byte in self.alphabet:
                follows = one.behind(byte)
                if follows not in self.states:
                    self.states[follows] = len(waiting)
                    waiting.append(follows)
                step[byte] = self.states[follows]
            self.steps.append(step)
        self.whole = [one.is_whole for one in waiting]
        self.lost = self._lost()

    def _lost(self) -> list[bool]:
        """Of each state, whether nothing that follows makes the text whole."""
        hopes = list(self.whole)
        while True:
            found = [hopes[i] or any(hopes[to] for to in step.values()) for i, step in enumerate(self.steps)]
            if found == hopes:
                return [not hope for hope in hopes]
            hopes = found

    def walk(self, state: int, data: bytes) -> int:
        """Where a text leads."""
        return reduce(lambda at, byte: self.steps[at][byte], data, state)


@cache
def _bytes_named(language: Language) -> frozenset[int]:
    if language.op == "one of":
        return language.parts if len(language.parts) < 256 else frozenset()
    return frozenset().union(*(_bytes_named(one) for one in language.parts)) if language.op != "empty" else frozenset()
