"""Records of every shape as turns: what each data set, log and trainer calls question, reasoning and answer."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thinkguard.doctor.judges.tags import Markers, judge
from thinkguard.doctor.records.dataset_info import Columns, columns_from, columns_of
from thinkguard.doctor.records.record import Record, Turn
from thinkguard.doctor.records.shapes import RecordReader, reader_of
from thinkguard.doctor.records.trainers import TRAINERS, trainer_of
from thinkguard.errors import InputError

ASKED = {"role": "user", "content": "q"}
INLINE = "<think>\nr\n</think>\n\na"
CHAT = [ASKED, {"role": "assistant", "content": INLINE}]


def said(content: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [ASKED, {"role": "assistant", "content": content, **fields}]}


def read(value: dict[str, Any], trainer: str | None = None, columns: Columns | None = None) -> Record:
    record = reader_of([value], trainer=trainer, columns=columns).read(value)
    assert isinstance(record, Record), record
    assert record.raw is value
    return record


def error_of(value: dict[str, Any], trainer: str | None = None, columns: Columns | None = None) -> str:
    error = reader_of([], trainer=trainer, columns=columns).read(value)
    assert isinstance(error, str)
    return error


def last(value: dict[str, Any], trainer: str | None = None) -> tuple[str, str | None, str]:
    """(content, reasoning, place) of the last turn, which is the assistant's."""
    turn = read(value, trainer).turns[-1]
    assert turn.role == "assistant"
    return turn.content, turn.reasoning, turn.place


ANSWERS: dict[str, tuple[dict[str, Any], tuple[str, str | None, str]]] = {
    "messages, inline": ({"messages": CHAT}, (INLINE, None, "")),
    "messages, reasoning_content": (said("a", reasoning_content="r"), ("a", "r", "reasoning_content")),
    "messages, reasoning": (said("a", reasoning="r"), ("a", "r", "reasoning")),
    "messages, thinking": (said("a", thinking="r"), ("a", "r", "thinking")),
    "messages, null reasoning": (said("a", reasoning_content=None, thinking=""), ("a", None, "")),
    "messages, details": (
        said("a", reasoning_details=[{"type": "reasoning.text", "text": "r"}]),
        ("a", "r", "reasoning_details"),
    ),
    "messages, info": (said("a", info={"think_content": "r"}), ("a", "r", "info.think_content")),
    "messages, info told twice": (said(INLINE, info={"think_content": "r"}), (INLINE, None, "")),
    "messages as JSON": ({"messages": json.dumps(CHAT)}, (INLINE, None, "")),
    "parts, Anthropic": (
        said([{"type": "thinking", "thinking": "r", "signature": "s"}, {"type": "text", "text": "a"}]),
        ("a", "r", "thinking part"),
    ),
    "parts, Mistral": (
        said([{"type": "thinking", "thinking": [{"type": "text", "text": "r"}]}, {"type": "text", "text": "a"}]),
        ("a", "r", "thinking part"),
    ),
    "parts, LLaMA-Factory v1": (
        said([{"type": "reasoning", "value": "r"}, {"type": "text", "value": "a"}]),
        ("a", "r", "reasoning part"),
    ),
    "role reasoning": (
        {"messages": [ASKED, {"role": "reasoning", "content": "r"}, {"role": "answer", "content": "a"}]},
        ("a", "r", "role reasoning"),
    ),
    "sharegpt": ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": INLINE}]}, (INLINE, None, "")),
    "sharegpt, user and assistant": (
        {
            "system": "s",
            "conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "<|begin_of_thought|>"}],
        },
        ("<|begin_of_thought|>", None, ""),
    ),
    "pairs with inner_thought": (
        {"conversations": [{"user": "q", "inner_thought": "r", "assistant": "a"}]},
        ("a", "r", "inner_thought"),
    ),
    "texts in turn": ({"conversations": ["q", "a"]}, ("a", None, "")),
    "alpaca": ({"instruction": "q", "input": "", "output": INLINE}, (INLINE, None, "")),
    "alpaca with think": ({"instruction": "q", "output": "a", "think": "r"}, ("a", "r", "column think")),
    "prompt and completion": ({"prompt": "q", "completion": INLINE}, (INLINE, None, "")),
    "prompt and completion, messages": ({"prompt": CHAT[:1], "completion": CHAT[1:]}, (INLINE, None, "")),
    "Complex_CoT": ({"Question": "q", "Complex_CoT": "r", "Response": "a"}, ("a", "r", "column Complex_CoT")),
    "reasoning_content column": (
        {"input": "q", "reasoning_content": "r", "content": "a", "score": 9, "prompt_len": 1},
        ("a", "r", "column reasoning_content"),
    ),
    "deepseek_reasoning": (
        {"problem": "q", "deepseek_reasoning": "r", "deepseek_solution": "a", "ground_truth_solution": "g", "domain": "d"},
        ("a", "r", "column deepseek_reasoning"),
    ),
    "thinking_trajectories": (
        {"question": "q", "solution": "s", "cot": None, "thinking_trajectories": ["r"], "attempt": "a"},
        ("a", "r", "column thinking_trajectories"),
    ),
    "deepseek_thinking_trajectory": (
        {"question": "q", "solution": "s", "gemini_attempt": "x", "gemini_thinking_trajectory": "y"}
        | {"deepseek_thinking_trajectory": "r", "deepseek_attempt": "a"},
        ("a", "r", "column deepseek_thinking_trajectory"),
    ),
    "model_reasoning": (
        {"question": "q", "reference_answer": "4", "model_answer": "a", "model_reasoning": "r"},
        ("a", "r", "column model_reasoning"),
    ),
    "prompts with columns": ({"messages": CHAT[:1], "reasoning": "r", "answer": "a"}, ("a", "r", "column reasoning")),
    "analysis beside messages": (
        {"user": "q", "analysis": "r", "final": "a", **said("a", thinking="r")},
        ("a", "r", "thinking"),
    ),
    "thought and solution": (
        {"question": "q", "combined": {"thought": "r", "solution": "a"}},
        ("a", "r", "column combined.thought"),
    ),
    "generations": ({"problem": "q", "generations": [INLINE, "x"], "finish_reasons": None}, (INLINE, None, "")),
    "generations beside messages": ({"problem": "q", "generations": ["x"], "messages": CHAT}, (INLINE, None, "")),
    "a row of the Hub's viewer": ({"row_idx": 0, "row": {"prompt": "q", "completion": "a"}}, ("a", None, "")),
    "chosen and rejected": ({"prompt": "q", "chosen": INLINE, "rejected": "<think>"}, (INLINE, None, "")),
    "chosen and rejected, conversations": ({"chosen": CHAT, "rejected": CHAT[:1]}, (INLINE, None, "")),
    "chosen and rejected, sharegpt": (
        {"conversations": [{"from": "human", "value": "q"}]}
        | {"chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
        ("a", None, ""),
    ),
    "KTO": ({"prompt": "q", "completion": "a", "label": False}, ("a", None, "")),
    "ChatML text": (
        {"text": f"<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n{INLINE}<|im_end|>\n"},
        (INLINE, None, ""),
    ),
    "DeepSeek text": (
        {"text": f"<｜begin▁of▁sentence｜><｜User｜>q<｜Assistant｜>{INLINE}<｜end▁of▁sentence｜>"},
        (INLINE, None, ""),
    ),
    "plain text": ({"text": INLINE}, (INLINE, None, "")),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_every_shape_gives_its_question_reasoning_and_answer(name: str) -> None:
    value, wanted = ANSWERS[name]
    record = read(value)
    assert (record.kind, last(value)) == ("training", wanted)
    if name != "plain text":
        assert [turn.content for turn in record.turns if turn.role == "user"] == ["q"]
    assert reader_of([value], trainer=None, columns=None).shape != "nothing"


OUTPUTS: dict[str, tuple[dict[str, Any], tuple[str, str | None, str], str | None]] = {
    "chat completion": (
        {"choices": [{"message": {"role": "assistant", "content": "a", "reasoning_content": "r"}, "finish_reason": "stop"}]},
        ("a", "r", "reasoning_content"),
        "stop",
    ),
    "vLLM's field": (
        {"choices": [{"message": {"role": "assistant", "content": "a", "reasoning": "r"}, "finish_reason": "length"}]},
        ("a", "r", "reasoning"),
        "length",
    ),
    "tool call": (
        {
            "choices": [
                {"message": {"role": "assistant", "content": None, "tool_calls": [{}]}, "finish_reason": "tool_calls"}
            ]
        },
        ("", None, ""),
        "tool_calls",
    ),
    "completion": ({"choices": [{"text": INLINE, "finish_reason": "stop"}]}, (INLINE, None, ""), "stop"),
    "batch": ({"custom_id": "1", "response": {"body": {"choices": [{"text": "a"}]}}}, ("a", None, ""), None),
    "request and response": (
        {
            "request": {"messages": CHAT[:1]},
            "response": {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]},
        },
        ("a", None, ""),
        "stop",
    ),
    "Responses": (
        {"object": "response", "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
        | {"output": [{"type": "reasoning", "summary": [{"text": "r"}]}, {"type": "message", "content": [{"text": "a"}]}]},
        ("a", "r", "reasoning item"),
        "length",
    ),
    "Anthropic": (
        {"type": "message", "role": "assistant", "stop_reason": "end_turn"}
        | {"content": [{"type": "thinking", "thinking": "r"}, {"type": "text", "text": "a"}]},
        ("a", "r", "thinking part"),
        "stop",
    ),
    "Gemini": (
        {
            "candidates": [
                {"content": {"parts": [{"text": "r", "thought": True}, {"text": "a"}]}, "finishReason": "MAX_TOKENS"}
            ]
        },
        ("a", "r", "thinking part"),
        "length",
    ),
    "Ollama": (
        {"model": "m", "message": {"role": "assistant", "content": "a", "thinking": "r"}, "done_reason": "stop"},
        ("a", "r", "thinking"),
        "stop",
    ),
    "vLLM outputs": ({"prompt": "q", "outputs": [{"text": "a", "finish_reason": "length"}]}, ("a", None, ""), "length"),
    "SGLang": (
        {"text": "a", "finish_reason": {"type": "length", "length": 9}, "generated_text": "a"},
        ("a", None, ""),
        "length",
    ),
    "prompt and output": ({"prompt": "q", "output": INLINE, "finish_reason": "stop"}, (INLINE, None, ""), "stop"),
    "prompt and text": ({"prompt": "q", "text": INLINE, "stop_reason": "eos"}, (INLINE, None, ""), "stop"),
    "messages and finish": ({**said("a", reasoning="r"), "finish_reason": "stop"}, ("a", "r", "reasoning"), "stop"),
    "lm-eval": ({"doc": {}, "arguments": [["p"]], "resps": [["a"]]}, ("a", None, ""), None),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_logs_are_outputs(name: str) -> None:
    value, wanted, finish = OUTPUTS[name]
    record = read(value)
    assert (record.kind, last(value), record.finish) == ("output", wanted, finish)


def test_a_rendered_prompt_is_kept_apart_from_a_question() -> None:
    rendered = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n"
    record = read({"prompt": rendered, "completion": "r\n</think>\n\na", "finish_reason": "stop"})
    assert (record.prompt, [turn.role for turn in record.turns]) == (rendered, ["assistant"])
    record = read({"prompt": "q", "completion": "a", "finish_reason": "stop"})
    assert (record.prompt, [turn.content for turn in record.turns]) == ("", ["q", "a"])


def test_all_answers_can_be_had() -> None:
    values = [
        {"problem": "q", "generations": ["a", "b"]},
        {"prompt": "q", "outputs": [{"text": "a"}, {"text": "b"}]},
        {"choices": [{"text": "a"}, {"text": "b"}]},
    ]
    for value in values:
        found = reader_of([value], trainer=None, columns=None).read_all(value)
        assert [record.turns[-1].content for record in found if isinstance(record, Record)] == ["a", "b"]
    assert RecordReader().read_all({"x": 1}) == [RecordReader().read({"x": 1})]


def test_tokenised_rows_are_handed_on() -> None:
    value = {"input_ids": [1, 2], "labels": [-100, 2], "position_ids": [0, 1]}
    assert read(value) == Record([], "tokenized", raw=value)


@pytest.mark.parametrize(
    ("value", "thinks", "switch"),
    [
        ({"messages": CHAT, "reasoning": "on"}, True, "column reasoning=on"),
        ({"messages": CHAT, "reasoning": "off"}, False, "column reasoning=off"),
        (
            {"messages": CHAT, "chat_template_kwargs": {"enable_thinking": False}},
            False,
            "chat_template_kwargs enable_thinking=False",
        ),
        ({"messages": [{"role": "system", "content": "detailed thinking on"}, *CHAT]}, True, "detailed thinking on"),
        ({"messages": CHAT, "system": "Be brief. detailed thinking off"}, False, "detailed thinking off"),
        ({"messages": [{"role": "user", "content": "q /no_think"}, CHAT[1]], "reasoning": "on"}, False, "/no_think"),
        ({"messages": [{"role": "user", "content": "/no_think q /think"}, CHAT[1]]}, True, "/think"),
        ({"messages": [{"role": "system", "content": "/no_think"}, *CHAT]}, False, "/no_think"),
        ({"messages": [{"role": "user", "content": "what is </think>, and https://x.org/think?"}, CHAT[1]]}, None, ""),
        ({"messages": CHAT, "reasoning": "a long text of reasoning"}, None, ""),
        ({"input": "q", "output": INLINE, "system_prompt": "detailed thinking off"}, False, "detailed thinking off"),
    ],
)
def test_switches(value: dict[str, Any], thinks: bool | None, switch: str) -> None:
    record = read(value)
    assert (record.thinks, record.switch) == (thinks, switch)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({"foo": 1, "bar": 2}, "of no known shape, it has foo, bar: wanted are messages"),
        ({}, "it has no keys"),
        ({"messages": []}, "the list of messages is empty"),
        ({"messages": 5}, "no list of messages: 5"),
        ({"messages": "[{"}, "no list of messages but a text"),
        ({"messages": [ASKED, 5]}, "message 2: it is 5: wanted is an object"),
        ({"messages": [{"role": "alien", "content": "x"}]}, "message 1: its role is 'alien'"),
        ({"messages": [{"role": None, "content": "x"}]}, "message 1 has neither a role nor a question"),
        ({"messages": [{"role": "user", "content": 5}]}, "message 1: the content of a user message is 5"),
        ({"messages": [{"role": "user", "content": [5]}]}, "a content part of a user message is 5"),
        ({"chosen": None, "rejected": None}, "chosen is None: wanted is a text"),
        ({"question": "q", "answer": 5}, "it has question, answer"),
    ],
)
def test_what_cannot_be_read_is_said_with_what_was_seen(value: dict[str, Any], error: str) -> None:
    assert error in error_of(value)


def test_a_file_of_several_shapes_is_read() -> None:
    reader = reader_of([{"messages": CHAT}] * 3 + [{"prompt": "q", "completion": "a"}], trainer=None, columns=None)
    assert reader.shape == "messages"
    assert isinstance(reader.read({"prompt": "q", "completion": "a"}), Record)


@pytest.mark.parametrize("place", ["reasoning_content", "reasoning", "thinking"])
def test_trainers_read_what_their_sources_say(place: str) -> None:
    reads = {name: read(said("a", **{place: "r"}), name).turns[-1].read for name in TRAINERS}
    assert reads == {"llamafactory": False, "trl": True, "ms-swift": False, "axolotl": True, "openai": False}


def test_no_trainer_reads_columns_of_its_own_accord() -> None:
    value = {"Question": "q", "Complex_CoT": "r", "Response": "a"}
    assert [read(value, name).turns[-1].read for name in TRAINERS] == [False] * 5
    assert read(value).turns[-1].read  # none is named, so everything counts as read


def test_trainers_are_described_and_the_nearest_is_named() -> None:
    cutoffs = {"llamafactory": 2048, "trl": 1024, "ms-swift": None, "axolotl": 512, "openai": 65_536}
    assert {name: trainer.cutoff for name, trainer in TRAINERS.items()} == cutoffs
    assert [name for name, trainer in TRAINERS.items() if trainer.replaces_tool_turns] == ["llamafactory"]
    assert trainer_of("trl").reads("thinking part")
    with pytest.raises(InputError, match=r"'swift' is unknown: did you mean 'ms-swift'\?"):
        trainer_of("swift")
    with pytest.raises(InputError, match=r"did you mean 'llamafactory'\?"):
        trainer_of("LLaMA-Factory")
    with pytest.raises(InputError, match="known are llamafactory"):
        reader_of([], trainer="?", columns=None)


def test_llamafactory_leaves_out_what_does_not_take_turns() -> None:
    tool = {"role": "tool", "content": "1"}
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {}}]}
    assert "message 2 is of role user" in error_of({"messages": [ASKED, ASKED, CHAT[1]]}, "llamafactory")
    assert "ends with message 1, which has no answer" in error_of({"messages": [ASKED]}, "llamafactory")
    assert "is of role assistant, where user is due" in error_of({"messages": CHAT[1:]}, "llamafactory")
    assert len(read({"messages": [ASKED, call, tool, tool, CHAT[1]]}, "llamafactory").turns) == 5
    assert len(read({"messages": [ASKED, ASKED, CHAT[1]]}, "trl").turns) == 3


def info(folder: Path, **entries: Any) -> None:
    (folder / "dataset_info.json").write_text(json.dumps(entries), encoding="utf-8")


def test_dataset_info_names_the_columns(tmp_path: Path) -> None:
    tags = {"role_tag": "who", "content_tag": "what", "user_tag": "u", "assistant_tag": "m"}
    info(
        tmp_path,
        mine={"file_name": "sub/a.json", "columns": {"prompt": "Question", "response": "Response"}},
        chat={
            "file_name": "chats",
            "formatting": "sharegpt",
            "columns": {"messages": "turns", "system": "sys"},
            "tags": tags,
        },
        hub={"hf_hub_url": "x/y"},
    )
    mine, chat = columns_of(tmp_path / "sub" / "a.json"), columns_of(tmp_path / "chats" / "b.jsonl")
    assert columns_of(tmp_path / "other.json") is None
    assert mine is not None
    assert chat is not None
    assert (mine.prompt, mine.query, mine.response, mine.history) == ("Question", None, "Response", None)
    value: dict[str, Any] = {"Question": "q", "Complex_CoT": "r", "Response": "a"}
    assert read(value, "llamafactory", mine).turns == [
        Turn("user", "q"),
        Turn("assistant", "a", "r", "column Complex_CoT", read=False),
    ]
    value = {"turns": [{"who": "u", "what": "q"}, {"who": "m", "what": "a", "reasoning": "r"}], "sys": "s"}
    turns = read(value, "llamafactory", chat).turns
    assert [turn.role for turn in turns] == ["system", "user", "assistant"]
    assert (turns[-1].place, turns[-1].read) == ("reasoning", False)
    assert "takes 'prompt' of 'mine' from column 'Question', the record has x" in error_of({"x": 1}, "llamafactory", mine)
    assert "has who 'z'" in error_of({"turns": [{"who": "z", "what": "q"}]}, "llamafactory", chat)
    assert "has no 'what', but who, text" in error_of({"turns": [{"who": "u", "text": "q"}]}, "llamafactory", chat)
    assert read({"messages": CHAT}, "trl", mine).turns[-1].content == INLINE  # no other trainer looks there


def test_alpaca_with_everything() -> None:
    columns = columns_from("x", {"columns": {"prompt": "i", "query": "x", "response": "o", "system": "s", "history": "h"}})
    value = {"i": "q", "x": "more", "o": "a", "s": "be brief", "h": [["q0", "a0"]]}
    assert [(turn.role, turn.content) for turn in read(value, "llamafactory", columns).turns] == [
        *(("system", "be brief"), ("user", "q0"), ("assistant", "a0"), ("user", "q\nmore"), ("assistant", "a"))
    ]
    ranked = columns_from("x", {"ranking": True, "columns": {"prompt": "i", "chosen": "c", "rejected": "r"}})
    assert read({"i": "q", "c": "yes", "r": "no"}, "llamafactory", ranked).turns[-1].content == "yes"


def test_the_openai_converter_switches_thinking_off() -> None:
    columns = columns_from("x", {"formatting": "openai", "columns": {"messages": "messages", "tools": "tools"}})
    record = read({"messages": CHAT}, "llamafactory", columns)
    assert (record.thinks, record.switch.split(" (")[0]) == (False, "detailed thinking off")
    assert read({"messages": CHAT, "tools": [{"type": "function"}]}, "llamafactory", columns).thinks is None
    on = [{"role": "system", "content": "detailed thinking on"}, *CHAT]
    assert read({"messages": on}, "llamafactory", columns).thinks is True
    call = {"role": "assistant", "content": INLINE, "tool_calls": [{"function": {}}]}
    turn = read({"messages": [ASKED, call]}, "llamafactory", columns).turns[-1]
    assert (turn.calls, turn.calls_beside) == (1, True)


@pytest.mark.parametrize("columns", [None, columns_from("x", {"formatting": "openai", "columns": {"messages": "messages"}})])
def test_a_message_of_nothing_but_calls_has_them_counted(columns: Columns | None) -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {}}, {"function": {}}]}
    value = {"messages": [ASKED, call, {"role": "tool", "content": "1"}, CHAT[1]]}
    turn = read(value, "llamafactory", columns).turns[1]
    assert (turn.content, turn.shape, turn.calls, turn.calls_beside) == ("", "none", 2, True)
    assert {hit.kind for hit in judge(read(value), Markers.of(None))} == {"null"}  # and not: no tool call
    alone = read({"messages": [ASKED, {"role": "tool_calls", "tool_calls": [{}]}, ASKED]}, "trl").turns[1]
    assert (alone.role, alone.calls) == ("assistant", 1)


def test_a_message_of_nothing_but_reasoning_has_it_read() -> None:
    turn = read({"messages": [ASKED, {"role": "assistant", "reasoning_content": "r"}]}).turns[-1]
    assert (turn.reasoning, turn.shape) == ("r", "none")
    sharegpt = columns_from("x", {"formatting": "sharegpt", "tags": {"role_tag": "role", "user_tag": "user"}})
    call = {"role": "gpt", "tool_calls": [{}]}
    assert "has no 'value'" in error_of({"conversations": [{"role": "user", "value": "q"}, call]}, "llamafactory", sharegpt)


@pytest.mark.parametrize("columns", [None, columns_from("x", {"formatting": "sharegpt"})])
def test_a_call_that_is_the_content_is_not_replaced(columns: Columns | None) -> None:
    call = '<think>\nR\n</think>\n\n{"name": "f", "arguments": {}}'
    said = [("human", "Q?"), ("function_call", call), ("observation", "3"), ("gpt", INLINE)]
    record = read({"conversations": [{"from": name, "value": text} for name, text in said]}, "llamafactory", columns)
    assert (record.turns[1].calls, record.turns[1].calls_beside) == (1, False)
    assert judge(record, Markers.of(None, trainer="llamafactory")) == []


def test_a_dataset_info_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"dataset_info\.json cannot be read"):
        columns_of(tmp_path / "a.json")
    with pytest.raises(InputError, match="formatting 'chatml'"):
        columns_from("x", {"formatting": "chatml"})
    other = tmp_path / "saved"
    other.mkdir()
    (other / "dataset_info.json").write_text(json.dumps({"features": {"a": {}}, "splits": {"train": {"name": "train"}}}))
    (tmp_path / "dataset_info.json").unlink()
    assert columns_of(other / "data.arrow") is None


def test_a_reader_is_picklable() -> None:
    columns = columns_from("x", {"formatting": "openai"})
    reader = reader_of([{"conversations": CHAT}], trainer="llamafactory", columns=columns)
    assert pickle.loads(pickle.dumps(reader)) == reader
    assert reader.shape == "openai, by dataset_info.json"


WORDS = """
    messages conversations role from content value reasoning choices message prompt chosen output outputs text type
    instruction generations tool_calls history system info row input_ids finish_reason chat_template_kwargs response resps
    thinking user assistant candidates body completion
"""
KEYS = WORDS.split()
ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(["", "user", "assistant", "on", "thinking", "text", "/think", "[1]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
@given(
    value=st.dictionaries(st.sampled_from(KEYS), ANY, max_size=5),
    trainer=st.sampled_from([None, *TRAINERS]),
    mapped=st.booleans(),
)
def test_whatever_a_record_holds_it_is_read_or_refused(value: dict[str, Any], trainer: str | None, mapped: bool) -> None:
    columns = columns_from("x", {"formatting": "openai", "columns": {"messages": "messages"}}) if mapped else None
    reader = reader_of([value], trainer=trainer, columns=columns)
    for record in (reader.read(value), *reader.read_all(value)):
        if isinstance(record, str):
            assert record
            continue
        assert record.kind == "tokenized" or record.turns
        for turn in record.turns:
            assert isinstance(turn.content, str)
            assert turn.reasoning is None or (isinstance(turn.reasoning, str) and turn.place)
