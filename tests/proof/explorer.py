"""Explore one policy in one world: walk.c, compiled with the machine's own source, or with one that was changed."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from proof.reader import reader_of
from proof.structure import Shape
from proof.worlds import World

from thinkguard import ThinkPolicy
from thinkguard.core._core import SIZES, STATE_FIELDS
from thinkguard.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
SOURCES = ("machine.c", "decide.c", "edit.c")
FAULTS = {
    1: "there was no memory for it",
    2: "nothing that is legal is left: the row stays as it was",
    3: "tg_allows and tg_apply disagree",
    4: "the text begins nothing that has the right structure",
    5: "the text without special tokens begins nothing that has the right structure",
    6: "plain text reads as an added token of a marker",
    7: "more thinking was sampled than max_thinking_tokens",
    8: "less thinking was sampled than min_thinking_tokens",
    9: "more answer was sampled than max_answer_tokens",
    10: "it ends before the text is whole",
    11: "it ends before the text without special tokens is whole",
    12: "it ends with fewer visible tokens than min_answer_tokens",
    13: "the machine calls an allowed token a violation",
    14: "from here nothing leads to EOS or to the limit",
    15: "a model that likes EOS best goes on for ever",
    16: "a character that could still be finished is cut",
    17: "EOS does not fit any more behind the thinking",
    18: "the proof itself is wrong: states were merged that do not go on alike",
    19: "the proof itself is wrong: the states have no end, a number in them grows that `normal` of walk.c does not cut off",
}
_PATH = 256


class _Wanted(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("shown", "skipped", "flags", "scan", "does", "inside", "followed")),
        *((name, ctypes.c_int32) for name in ("width", "most_thinking", "least_thinking", "most_answer", "least_answer")),
        *((name, ctypes.c_int32) for name in ("must_end", "quotes", "num_walks")),
    ]  # fmt: skip


class _Beginning(ctypes.Structure):
    _fields_ = [
        ("prompt", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("num_prompt", "limit", "shown", "skipped", "scan", "thinking", "visible")),
    ]  # fmt: skip


class _Outcome(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("fault", "beginning", "num_tokens")),
        ("tokens", ctypes.c_int32 * _PATH),
        *((name, ctypes.c_int64) for name in ("pairs", "edges", "ends", "wandered")),
    ]  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """The shortest output that breaks the promise."""

    world: World
    policy: ThinkPolicy
    fault: int
    prompt: tuple[int, ...]
    max_tokens: int | None
    tokens: tuple[int, ...]

    def __str__(self) -> str:
        asked = ", ".join(f"{name}={value!r}" for name, value in asking(self.policy).items())
        pieces = " ".join(repr(self.world.pieces[token].decode(errors="backslashreplace")) for token in self.tokens)
        return (
            f"{FAULTS[self.fault]}: vocabulary {self.world.name!r}, ThinkPolicy({asked}), max_tokens={self.max_tokens}, "
            f"behind {self.world.spelled(self.prompt)!r}: {pieces} ({list(self.tokens)})"
        )


@dataclass(frozen=True)
class Outcome:
    """What was explored of one policy in one world."""

    pairs: int = 0
    edges: int = 0
    ends: int = 0
    wandered: int = 0
    starts: int = 0  # prompts and limits that were taken
    refused: int = 0  # limits that are too small for what is asked
    finding: Finding | None = None


def asking(policy: ThinkPolicy) -> dict:
    """The fields that are not the default's."""
    return {name: value for name in policy.__slots__ if (value := getattr(policy, name)) != getattr(ThinkPolicy(), name)}


def compiled(folder: Path, csrc: Path = CSRC, optimize: str = "-O2") -> Path:
    """Compile walk.c and the machine of a folder into a library."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "walk.so"
    sources = [str(path) for path in (Path(__file__).with_name("walk.c"), *(csrc / name for name in SOURCES))]
    flags = ["-std=c11", optimize, "-fPIC", "-shared", "-Wall", "-Wextra", f"-I{csrc}"]
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # a sanitizer's runtime
    command = [os.environ.get("CC", "cc"), *flags, *sources, "-lm", "-o", str(library)]
    subprocess.run(command, check=True, env=env)
    return library


class Explorer:
    """A compiled walk."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        sizes = (ctypes.c_int32 * 4)()
        self.library.walk_sizes(sizes)
        built = [SIZES["tg_program"], 4 * len(STATE_FIELDS), ctypes.sizeof(_Wanted), ctypes.sizeof(_Beginning)]
        assert list(sizes) == built, f"structs have {list(sizes)} bytes, those of the built extension {built}: build it anew"
        self._programs: dict[str, tuple] = {}

    def _program(self, world: World):
        if world.name not in self._programs:
            tables = world.program.tables
            memory = np.zeros(tables.placed_size, np.int32)
            struct, words = tables.placed(memory.ctypes.data)
            memory[:] = words
            self._programs[world.name] = ctypes.create_string_buffer(struct, len(struct)), memory
        return self._programs[world.name][0]

    def explore(
        self, world: World, policy: ThinkPolicy, limits: Sequence[int | None], *, walks: int = 6, strict: bool = False
    ) -> Outcome:
        """Explore one policy with all of these max_tokens, behind an empty turn and behind the world's prompts."""
        reader = reader_of(world.name, Shape.of(policy), strict)
        bound = world.program.bind(policy)
        begins, kept, refused = [], [], 0
        for prompt, ids in world.turns if policy.opening != "forbid" else world.turns[:1]:
            tables = reader.tables(prompt)
            for limit in allowed_limits(world, bound, prompt, limits):
                begins.append(_Beginning(ids.ctypes.data, len(ids), -1 if limit is None else limit, *tables.begin))
                kept.append((prompt, limit))
            refused += len(limits)
        refused -= len(begins)
        if not begins:
            return Outcome(refused=refused)
        out, wanted = _Outcome(), _wanted(world, policy, tables, walks)
        self.library.walk_all(
            self._program(world), ctypes.c_void_p(bound.block.ctypes.data), ctypes.byref(wanted),
            (_Beginning * len(begins))(*begins), len(begins), ctypes.byref(out),
        )  # fmt: skip
        finding = None
        if out.fault:
            prompt, limit = kept[out.beginning]
            finding = Finding(world, policy, out.fault, prompt, limit, tuple(out.tokens[: out.num_tokens]))
        return Outcome(out.pairs, out.edges, out.ends, out.wandered, len(begins), refused, finding)


def allowed_limits(world: World, bound, prompt: tuple[int, ...], limits: Sequence[int | None]) -> list[int | None]:
    """Those that `start` takes: None, and all from the least that can hold what is asked for."""
    numbers = sorted(limit for limit in limits if limit is not None)
    for at, limit in enumerate(numbers):
        try:
            world.program.start_bound(prompt, bound, limit, 0)
        except InputError:
            continue
        numbers = numbers[at:]
        break
    else:
        numbers = []
    return [None, *numbers] if None in limits else numbers


def _wanted(world: World, policy: ThinkPolicy, tables, walks: int) -> _Wanted:
    def number(value: int | None) -> int:
        return -1 if value is None else value

    quotes = policy.markers_in_answer == "allow"
    counted = not (quotes and policy.opening == "allow")  # else nothing tells a quoted marker from one that is meant
    # Where an answer's opener begins it anew, other logits may write one behind the other and never the least answer.
    again = world.openers and policy.min_answer_tokens > 1
    ends = policy.on_eos == "close" or policy.max_thinking_tokens is not None
    return _Wanted(
        *(getattr(tables, name).ctypes.data for name in ("shown", "skipped", "flags", "scan", "does", "inside", "followed")),
        len(world.pieces),
        number(policy.max_thinking_tokens if counted else None), policy.min_thinking_tokens if counted else 0,
        number(policy.max_answer_tokens if counted and not world.channel else None), policy.min_answer_tokens,
        ends and not (world.channel or again), quotes, walks,
    )  # fmt: skip
