"""Saved outputs, judged one at a time: raw text as an engine returns it, and messages as a chat API answers them."""

from __future__ import annotations

import pytest
from modes import HEALTHY

from thinkguard.doctor.catalogue import entries
from thinkguard.doctor.judges.outputs import judge
from thinkguard.doctor.judges.tags import Markers
from thinkguard.doctor.records.record import Record, Turn
from thinkguard.formats import ThinkFormat
from thinkguard.vocabulary import Vocabulary

THINK = Markers.of(None)
OPENS = Markers.of(None, prompt_opens=True)
MAGISTRAL = Markers.of(ThinkFormat.from_name("mistral_think_tokens"))
HARMONY = Markers.of(ThinkFormat.from_name("gpt_oss_harmony"))
LONG = "Ones: 3 + 6 is 9. Tens: 2 + 5 is 7. Hundreds: 1 + 4 is 5. So it is 579."


def raw(text, *, prompt="", finish="stop", thinks=None, question="What is 123 + 456?", **fields):
    turns = [Turn("user", question), Turn("assistant", text)]
    return Record(turns, kind="output", prompt=prompt, finish=finish, thinks=thinks, raw={"output": text, **fields})


def chat(content, reasoning=None, *, finish="stop", thinks=None, place="reasoning", calls=0, usage=None, **fields):
    """What a chat API answered."""
    message = {"role": "assistant", "content": content, place: reasoning, **fields.pop("message", {})}
    answer = {"choices": [{"message": message, "finish_reason": finish, **fields.pop("choice", {})}], **fields}
    turn = Turn("assistant", content or "", reasoning, place if reasoning else "", calls=calls)
    return Record([turn], kind="output", finish=finish, thinks=thinks, raw=answer | ({"usage": usage} if usage else {}))


def found(record, markers=THINK, vocabulary=None):
    """{check: kind} of one record."""
    hits = judge(record, markers, vocabulary)
    assert all(entries()[hit.check].part == "outputs" for hit in hits)
    assert all(len(hit.excerpt) <= 200 and "\n" not in hit.excerpt for hit in hits)
    return {hit.check: hit.kind for hit in hits}


FINE = {
    "one block and an answer": raw(f"<think>\n{LONG}\n</think>\n\n579."),
    "no thinking at all": raw("579."),
    "the prompt opened it": raw(f"{LONG}\n</think>\n\n579.", prompt="<|im_start|>assistant\n<think>\n"),
    "the prompt is not known": raw(f"{LONG}\n</think>\n\n579."),
    "the prompt closed it": raw("579.", prompt="<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    "switched off": raw("<think>\n\n</think>\n\n579.", question="What is 123 + 456? /no_think"),
    "said to be off": raw("<think>\n\n</think>\n\n579.", thinks=False),
    "a marker in quotation marks": raw(f"<think>\n{LONG}\n</think>\n\nWrite `</think>` behind it."),
    "cut in the answer": raw(f"<think>\n{LONG}\n</think>\n\n57", finish="length"),
    "a word about tool calls": raw("<think>\nShould I emit a <tool_call> here? No.\n</think>\n\n579."),
    "a tool call behind it": raw(
        '<think>A tool.</think>\n\n<tool_call>\n{"name": "add"}\n</tool_call>', finish="tool_calls"
    ),
    "in a field of its own": chat("579.", LONG),
    "a call and no content": chat(None, LONG, finish="tool_calls", calls=1),
    "not thinking, by a chat": chat("579."),
    "reasoning tokens and reasoning": chat("579.", LONG, usage={"completion_tokens_details": {"reasoning_tokens": 30}}),
    "the same in both fields": chat("579.", LONG, message={"reasoning_content": LONG}),
    "an extracted answer": raw(f"<think>\n{LONG}\n</think>\n\n579.", extracted_answer="579", filtered_resps=["579"]),
    "friendly, but no reasoning": raw("Okay, here is the sum: 579."),
}

BAD = {
    "a start without an end": (raw(f"<think>\n{LONG}", finish=None), "output-structure", "a start without an end"),
    "two blocks": (raw("<think>a</think>b<think>c</think>d"), "output-structure", "several blocks in one turn"),
    "a start inside": (raw("<think>a<think>b</think>c"), "output-structure", "a start inside a block"),
    "two ends": (raw("<think>a</think>b</think>c"), "output-structure", "a second end"),
    "text before": (raw("Sure! <think>a</think>b"), "output-structure", "text before the block"),
    "nothing inside": (raw("<think>\n\n</think>\n\n579."), "output-structure", "an empty block"),
    "nothing behind": (raw(f"<think>\n{LONG}\n</think>\n\n"), "output-structure", "no answer behind the block"),
    "a start after the prompt's": (
        raw("<think>a</think>b", prompt="<think>\n"), "output-structure", "a start, though the prompt opens the block"
    ),
    "reasoning alone": (chat(None, LONG, finish=None), "output-structure", "reasoning without an answer"),
    "stopped": (raw(f"<think>\n{LONG}"), "output-stopped", "finish_reason stop"),
    "stopped, opened by the prompt": (raw(LONG, prompt="<think>"), "output-stopped", "finish_reason stop"),
    "stopped, by a chat": (chat(None, LONG), "output-stopped", "finish_reason stop"),
    "stopped, not separated": (chat(f"<think>\n{LONG}"), "output-stopped", "finish_reason stop"),
    "cut": (raw(f"<think>\n{LONG}", finish="length"), "output-cut", "inside the reasoning"),
    "cut, by a chat": (chat("", LONG, finish="length"), "output-cut", "inside the reasoning"),
    "cut behind the end": (raw(f"<think>\n{LONG}\n</think>\n", finish="length"), "output-cut", "right behind the end"),
    "not separated": (chat(f"<think>\n{LONG}\n</think>\n\n579."), "output-parsed", "reasoning in the content"),
    "its end alone": (chat(f"{LONG}\n</think>\n\n579."), "output-parsed", "reasoning in the content"),
    "left in the content": (chat("</think>\n\n579.", LONG), "output-parsed", "a marker in the content"),
    "left in the reasoning": (chat("579.", f"<think>{LONG}"), "output-parsed", "a marker in reasoning"),
    "of another family": (chat("579.[/THINK]", LONG), "output-parsed", "a marker in the content"),
    "the answer as reasoning": (chat(None, "579.", thinks=False), "output-parsed", "the answer in the reasoning"),
    "a start that was not printed": (
        raw(f"{LONG}\n</think>\n\n579.", prompt="<|im_start|>assistant\n"),
        "output-marker-dropped", "only the end, and the prompt opens nothing",
    ),
    "by its logprobs": (
        chat(LONG + "579.", choice={"logprobs": {"content": [{"token": t} for t in ("<think>", LONG, "</think>", "579.")]}}),
        "output-marker-dropped", "in the tokens, not in the text",
    ),
    "by its words": (
        raw("Okay, so 123 + 456. Wait, let me check: 3 + 6 is 9. The answer is 579."),
        "output-marker-dropped", "reads like reasoning",
    ),
    "in Chinese": (
        raw("好的，用户问的是加法。等等，再算一次。答案是579。"), "output-marker-dropped", "reads like reasoning"
    ),
    "a call inside": (
        raw('<think>\nI will add.\n<tool_call>\n{"name": "add"}\n</tool_call>\n</think>\n\n579.'),
        "output-tool-call", "a tool call inside the reasoning",
    ),
    "a call instead of the end": (
        raw('<think>\nI will add.\n<tool_call>\n{"name": "add"}\n</tool_call>'),
        "output-tool-call", "a tool call inside the reasoning",
    ),
    "a call in the field": (
        chat(None, 'I will add.<tool_call>\n{"name": "add"}'), "output-tool-call", "a tool call inside the reasoning"
    ),
    "counted and gone": (
        chat("579.", usage={"completion_tokens_details": {"reasoning_tokens": 30}}), "output-field", "counted but not saved"
    ),
    "two fields, two texts": (
        chat("579.", LONG, message={"reasoning_content": "other"}), "output-field", "reasoning and reasoning_content differ"
    ),
    "markers extracted": (
        raw(f"<think>{LONG}</think>579.", extracted_answer="</think>579."), "output-answer", "markers in the answer"
    ),
    "reasoning extracted": (
        raw(f"<think>{LONG}</think>579.", filtered_resps=[f"{LONG} 579."]), "output-answer", "reasoning in the answer"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FINE)
def test_what_is_right_is_left_alone(name):
    assert found(FINE[name]) == {}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named_once(name):
    record, check, kind = BAD[name]
    assert found(record) == {check: kind}


def test_a_known_template_says_whether_an_end_alone_is_right():
    vocabulary = Vocabulary.from_tokenizer(HEALTHY)
    text = f"{LONG}\n</think>\n\n579."
    assert found(raw(text), THINK, vocabulary) == {"output-structure": "an end without a start"}
    assert found(raw(text), OPENS, vocabulary) == {}
    assert found(raw(LONG), OPENS, vocabulary) == {"output-stopped": "finish_reason stop"}


def test_saved_token_ids_tell_what_the_text_lacks():
    vocabulary = Vocabulary.from_tokenizer(HEALTHY)
    ids = vocabulary.encode("<think>\nOnes: 3+6=9.\n</think>\n\n579")
    for record in (raw("Ones: 3+6=9.\n\n579", token_ids=ids), raw("Ones: 3+6=9.\n\n579", output_token_ids=ids)):
        assert found(record, THINK, vocabulary) == {"output-marker-dropped": "in the tokens, not in the text"}
        assert found(record) == {}, "without a vocabulary ids say nothing"


def test_special_markers_explain_an_end_that_is_missing():
    pieces = [bytes([i]) for i in range(256)]
    added = {"[THINK]": 256, "[/THINK]": 257}
    special = Vocabulary.from_parts(pieces, added=added, special=[256, 257])
    plain = Vocabulary.from_parts(pieces, added=added)
    record = raw(f"{LONG}579.", prompt="[INST]What is 123 + 456?[/INST][THINK]")
    assert found(record, MAGISTRAL, special) == {"output-marker-dropped": "[/THINK] is a special token"}
    assert found(record, MAGISTRAL, plain) == {"output-stopped": "finish_reason stop"}


def test_families_of_their_own():
    text = "<|channel|>analysis<|message|>Ones.<|end|><|start|>assistant<|channel|>final<|message|>579.<|return|>"
    assert found(raw(text), HARMONY) == {}
    assert found(raw("<|channel|>analysis<|message|>Ones: 3+6"), HARMONY) == {"output-stopped": "finish_reason stop"}
    assert found(raw("[THINK]Ones.[/THINK]579."), MAGISTRAL) == {}
    assert found(raw("[THINK]Ones."), MAGISTRAL) == {"output-stopped": "finish_reason stop"}


def test_batches_and_lists_of_messages_are_chats_too():
    inner = {"choices": [{"message": {"role": "assistant", "content": f"<think>{LONG}</think>579."}}]}
    turn = Turn("assistant", f"<think>{LONG}</think>579.")
    batch = Record([turn], kind="output", finish="stop", raw={"custom_id": "1", "response": {"body": inner}})
    assert found(batch) == {"output-parsed": "reasoning in the content"}
    messages = {"messages": [{"role": "assistant", "content": turn.content, "reasoning_content": None}]}
    assert found(Record([turn], kind="output", raw=messages)) == {"output-parsed": "reasoning in the content"}
    completion = {"choices": [{"text": turn.content, "finish_reason": "stop"}]}
    assert found(Record([turn], kind="output", finish="stop", raw=completion)) == {}
    assert judge(Record([Turn("user", "?")], kind="output"), THINK, None) == []


def test_strange_values_are_no_error():
    for fields in ({"choices": 3}, {"choices": [None]}, {"usage": "x", "messages": "y"}, {"token_ids": ["a", -1, 10**9]}):
        assert found(raw("579.", **fields), THINK, Vocabulary.from_tokenizer(HEALTHY)) == {}
    half = raw("<think>\ud800\x00</think>579.")
    assert found(half) == {}


def test_each_of_several_answers_is_judged_by_its_own_tokens():
    vocabulary = Vocabulary.from_tokenizer(HEALTHY)
    texts = [f"<think>\n{LONG}\n</think>\n\n579.", "579."]
    choices = [{"text": text, "token_ids": vocabulary.encode(text), "finish_reason": "stop"} for text in texts]
    for name in ("choices", "outputs"):
        for text in texts:
            record = Record([Turn("assistant", text)], kind="output", finish="stop", raw={name: choices})
            assert found(record, THINK, vocabulary) == {}


def test_what_other_servers_answer():
    """Ollama's message, and parts as Anthropic and the Responses API give them."""
    turn = Turn("assistant", f"<think>{LONG}</think>579.")
    ollama = {"model": "tiny", "message": {"role": "assistant", "content": turn.content}, "done_reason": "stop"}
    assert found(Record([turn], kind="output", finish="stop", raw=ollama)) == {"output-parsed": "reasoning in the content"}
    parts = Turn("assistant", "579.", LONG, "thinking part", shape="parts")
    assert found(Record([parts], kind="output", finish="stop", raw={"type": "message", "content": []})) == {}
    parts.content = ""
    found_there = found(Record([parts], kind="output", finish="length", raw={"type": "message", "content": []}))
    assert found_there == {"output-cut": "inside the reasoning"}
