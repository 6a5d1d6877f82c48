"""The bounded proof, its first minute: every state that tiny vocabularies reach under policies drawn from the grid.

`make proof` explores the whole grid (docs/proof.md). What is shown here besides: that the independent reader reads as the
regular expressions of promise.py do, and that errors put into the machine are found.
"""

from __future__ import annotations

import random
import re
from itertools import cycle, islice
from pathlib import Path

import pytest
from promise import Reading
from proof.explorer import Explorer, compiled
from proof.grid import drawn, limits_of
from proof.mutations import MUTATIONS
from proof.page import is_current
from proof.reader import LOST, WHOLE, reader_of
from proof.structure import Shape
from proof.worlds import WORLDS

from thinkguard import ThinkPolicy

POLICIES = 600  # of each world, and of those whose states are many
SLOW = {"channels": 120, "wide": 300}
TEXTS = 4000


@pytest.fixture(scope="module")
def explorer(tmp_path_factory: pytest.TempPathFactory) -> Explorer:
    return Explorer(compiled(tmp_path_factory.mktemp("walk")))


@pytest.mark.parametrize("world", WORLDS.values(), ids=lambda world: world.name)
def test_no_reachable_state_breaks_the_promise(explorer, world):
    pairs = 0
    for policy in drawn(world, SLOW.get(world.name, POLICIES)):
        outcome = explorer.explore(world, policy, limits_of(world))
        assert outcome.finding is None, str(outcome.finding)
        assert min(outcome.starts, outcome.ends) > 0, f"nothing was explored of {policy}"
        pairs += outcome.pairs
    assert pairs > 50_000


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_errors_in_the_machine_are_found(mutation, tmp_path: Path):
    explorer = Explorer(compiled(tmp_path, mutation.write(tmp_path), "-O1"))
    drawings = cycle([(world, drawn(world, 20)) for world in WORLDS.values()])
    for world, policies in islice(drawings, 20 * len(WORLDS)):
        found = explorer.explore(world, next(policies), limits_of(world)).finding
        if found is not None:
            assert found.fault in mutation.faults, str(found)
            return
    pytest.fail("nothing was found")


@pytest.mark.parametrize("world", [world for world in WORLDS.values() if not world.channel], ids=lambda world: world.name)
def test_the_reader_reads_as_the_promise_does(world):
    """On texts that are made of halves and wholes of structures: the two expressions agree about every one of them."""
    rng = random.Random(world.name)
    chunks = [piece.decode() for piece in world.pieces if piece.isascii()]
    chunks += 4 * [world.start, world.end, f"{world.start}{world.space}", f"{world.start}a{world.end}", "a"]
    chunks += 4 * [world.off] if world.off else []
    chunks += 4 * [f"{start}a{end}" for start, end in world.others]
    off = re.escape(world.off) if world.off else rf"{re.escape(world.start)}\s*{re.escape(world.end)}"
    reading = Reading(world.starts, world.ends, tuple(world.openers), tuple(world.implicit), off, paired=world.paired)
    seen = set()
    for _ in range(TEXTS):
        opening, blocks = rng.choice(["force", "allow", "forbid"]), rng.choice([1, 2])
        policy = ThinkPolicy(opening=opening, max_think_blocks=1 if opening == "forbid" else blocks, min_answer_tokens=0)
        reader = reader_of(world.name, Shape.of(policy))
        text = "".join(rng.choices(chunks, k=rng.randrange(7)))
        state = reader.automaton.walk(0, text.encode())
        wanted = reading.complaint(text, policy, whole=True) == ""
        assert reader.automaton.whole[state] == wanted, (text, policy)
        seen.add((opening, wanted, reader.automaton.lost[state]))
    assert len(seen) == 9, "whole texts, beginnings and lost ones, each of them with every opening"


def test_the_flags_of_a_reader_are_those_of_its_automaton():
    reader = reader_of("tokens", Shape("force", 1, "ban"))
    flags = reader.tables().flags
    assert flags[reader.automaton.walk(0, b"<think>a</think>")] == WHOLE
    assert flags[reader.automaton.walk(0, b"a")] == LOST
    assert flags[reader.automaton.walk(0, b"<thi")] == 0


def test_the_page_shows_the_figures_that_are_kept():
    assert is_current(), "run make proof, or python -m proof.page where only the page was changed"


def test_what_is_not_promised_of_a_control_token_that_only_begins_a_marker(explorer):
    """Who skips special tokens reads `<|`, the control `<|c>`, `c>` as `<|c>`, which no model meant to be one.

    A node of the automaton cannot remember both halves. A strict reader finds it, which docs/proof.md says.
    """
    finding = explorer.explore(WORLDS["mixed"], ThinkPolicy(opening="allow"), [None], strict=True).finding
    assert finding is not None
    assert finding.fault == 6, str(finding)
    assert [WORLDS["mixed"].pieces[token] for token in finding.tokens][::2] == [b"<|", b"c>"]
