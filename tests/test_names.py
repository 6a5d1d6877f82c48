"""The header's constants and structs, against their one home in Python."""

from __future__ import annotations

import re
from enum import IntEnum, IntFlag
from pathlib import Path

import pytest

from thinkguard import ThinkPolicy, ThinkProgram, Vocabulary
from thinkguard.core import names
from thinkguard.core._core import CONSTANTS, EVENT, NODE
from thinkguard.core.program import _fields_of
from thinkguard.policy import CHOICES, POLICY_FIELDS

HEADER = (Path(__file__).resolve().parents[1] / "csrc" / "thinkguard.h").read_text(encoding="utf-8")


def fields_of(struct: str) -> list[str]:
    body = re.search(rf"typedef struct \{{([^}}]*)\}} {struct};", HEADER)
    assert body is not None
    return re.findall(r"\b(\w+)(?:\[\w+\])?[,;]", re.sub(r"/\*.*?\*/", "", body[1], flags=re.S))


def test_constants_are_those_of_the_header() -> None:
    values = {name: eval(value) for name, value in re.findall(r"\bTG_(\w+) = ([-\d <]+)", HEADER)}
    assert values == CONSTANTS
    assert len(values) > 80


def test_every_enum_has_its_values_from_the_core() -> None:
    enums = [thing for thing in vars(names).values() if isinstance(thing, type) and issubclass(thing, (IntEnum, IntFlag))]
    enums = [enum for enum in enums if enum not in (IntEnum, IntFlag)]
    assert len(enums) == 15
    source = Path(names.__file__).read_text(encoding="utf-8")
    assert not re.search(r"= -?\d", source), "a number stands in names.py itself"
    used = set(re.findall(r'_C\["(\w+)"\]', source))
    assert used <= set(CONSTANTS)


def test_structs_are_read_in_the_order_of_the_header() -> None:
    assert list(EVENT.names or ()) == fields_of("tg_event")
    assert list(NODE.names or ()) == fields_of("tg_node")
    vocabulary = Vocabulary.from_parts([bytes([b]) for b in range(256)], added={"<eos>": 256}, eos_ids=[256])
    state = ThinkProgram("think", vocabulary).start([])
    assert list(state.as_dict()) == fields_of("tg_state")
    assert list(state.decide().as_dict()) == fields_of("tg_action")


def test_a_policy_reaches_the_core_by_the_names_of_its_fields() -> None:
    own = {"longest_close", "num_eos", "eos", "seq_offset", "tokens", "closes_line", "prefix_space"}
    own |= {"lead", "lead_word", "lead_bytes"}  # what binding adds
    assert set(fields_of("tg_policy")) - own == set(_fields_of(ThinkPolicy())) == set(POLICY_FIELDS) - {
        "close_message",
        "extend_message",
        "answer_prefix",
    }
    for field, choices in CHOICES.items():
        for value, choice in enumerate(choices):
            assert _fields_of(ThinkPolicy(**{field: choice}))[field] == value
    assert _fields_of(ThinkPolicy(max_answer_tokens=7))["max_answer_tokens"] == 7
    assert _fields_of(ThinkPolicy())["max_answer_tokens"] == names.NO_LIMIT


def test_a_sequence_that_is_no_policys_is_refused() -> None:
    vocabulary = Vocabulary.from_parts([bytes([b]) for b in range(256)], added={"<eos>": 256}, eos_ids=[256])
    bound = ThinkProgram("think", vocabulary).bind(ThinkPolicy())
    for seq in (-1, names.Seq.NONE, names.Seq.PROGRAM):
        with pytest.raises(IndexError, match="none of a policy's own"):
            bound.sequence(seq)
