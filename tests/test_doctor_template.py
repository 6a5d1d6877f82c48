"""What the doctor reads in a chat template, what it makes of it beside data and a trainer, and how it mends one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from modes import CLEAN_TEMPLATE, HEALTHY, chat, jsonl
from modes_template import ANSWER_ALONE, FIELDS, OPENING, SAID, SOURCES, changed, said

from thinkguard.doctor.catalogue import entries
from thinkguard.doctor.check import Check
from thinkguard.doctor.examine import examine
from thinkguard.doctor.judges.tags import Markers, look
from thinkguard.doctor.records.record import (
    EARLIER_REASONING,
    HALF_OPEN,
    IN_FIELD,
    INLINE,
    LITERAL,
    MISSPELLED,
    NO_CONTENT,
    PARTS,
    TOOL_REASONING,
    WITH_REASONING,
    WITHOUT_REASONING,
    Record,
    Turn,
)
from thinkguard.doctor.template.fix_template import fix_template
from thinkguard.doctor.template.probes import probes
from thinkguard.doctor.template.readings import Readings, read_template
from thinkguard.doctor.template.sandbox import Job, Renderer
from thinkguard.doctor.template.template_checks import differs_checks, template_checks
from thinkguard.doctor.template.unread import description
from thinkguard.errors import InputError, UnsupportedError
from thinkguard.formats import ThinkFormat

pytest.importorskip("jinja2", reason="templates are rendered with jinja2")

THINK = ThinkFormat.from_name("think")
DAMAGED = (HEALTHY.parent / "damaged" / "chat_template.jinja").read_text(encoding="utf-8")
NAMES = [name for name, entry in entries().items() if entry.part == "template" and name != "template-differs"]


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with Renderer() as made:
        yield made


@pytest.fixture(scope="module")
def clean(renderer: Renderer) -> Readings:
    return read_template(renderer, CLEAN_TEMPLATE, THINK)


def checks(readings: Readings, facts: dict[str, int] | None = None, trainer: str | None = None) -> dict[str, Check]:
    made = template_checks(readings, None if facts is None else Counter(facts), trainer)
    assert [check.name for check in made] == NAMES
    for check in made:
        assert all(len(text) <= 200 + len("generated: ") and "\n" not in text for text in check.evidence)
    return {check.name: check for check in made}


def fired(made: dict[str, Check]) -> dict[str, str]:
    return {name: check.status for name, check in made.items() if check.fired}


def test_what_a_clean_template_reads(clean: Readings) -> None:
    assert clean.works
    assert clean.prompt_state == "none"
    assert clean.switches == {"enable_thinking=False": "closed"}
    assert clean.fields_kept == {
        "content", "reasoning_content", "reasoning", "thinking", "thinking part", "text part"
    }  # fmt: skip
    assert clean.earlier_kept == clean.fields_kept
    assert fired(checks(clean)) == {}
    everything = dict.fromkeys((WITH_REASONING, WITHOUT_REASONING, EARLIER_REASONING, TOOL_REASONING, INLINE, PARTS), 9)
    everything |= {NO_CONTENT: 9, LITERAL: 9, HALF_OPEN: 9, IN_FIELD + "reasoning_content": 9}
    assert fired(checks(clean, everything)) == {}


@pytest.mark.parametrize("mode", SOURCES, ids=map("-".join, SOURCES))
def test_a_mode_fires_its_check_alone(mode: tuple[str, str], renderer: Renderer) -> None:
    assert set(fired(checks(read_template(renderer, SOURCES[mode], THINK)))) == {mode[1]}


MET = [
    ("F18", "earlier-reasoning", {EARLIER_REASONING: 7, INLINE: 9, WITH_REASONING: 9}),
    ("F19", "reasoning-field", {IN_FIELD + "reasoning": 7, WITH_REASONING: 7}),
    ("F20", "block-doubled", {INLINE: 7, WITH_REASONING: 7}),
    ("F21", "empty-block", {WITHOUT_REASONING: 7}),
    ("F24", "half-open-turn", {HALF_OPEN: 7, INLINE: 9, WITH_REASONING: 9}),
    ("F6", "content-none", {NO_CONTENT: 7}),
    ("F25", "content-parts", {PARTS: 7}),
    ("F7", "tool-turn", {TOOL_REASONING: 7, INLINE: 9, WITH_REASONING: 9}),
    ("F8", "literal-marker", {LITERAL: 7}),
]


@pytest.mark.parametrize(("mode", "name", "facts"), MET, ids=[mode for mode, _, _ in MET])
def test_a_hazard_that_the_data_meet_is_a_problem(mode: str, name: str, facts: dict[str, int], renderer: Renderer) -> None:
    readings = read_template(renderer, SOURCES[mode, name], THINK)
    found = checks(readings, facts)[name]
    assert (found.status, "7 records" in found.found) == ("problem", True)
    assert checks(readings, {WITH_REASONING: 0})[name].status in ("note", "ok")
    own = checks(readings, facts, "llamafactory")[name]
    assert own.status == "note"
    assert "LLaMA-Factory writes training texts with templates of its own" in own.found


def test_the_lost_part_is_shown_in_its_place(renderer: Renderer) -> None:
    found = checks(read_template(renderer, DAMAGED, THINK))
    problem = found["final-reasoning"]
    assert problem.status == "problem"
    assert problem.evidence == (
        r"QUESTION<|im_end|>\n<|im_start|>assistant\n⟦<think>\nREASONING\n</think>⟧\n\nANSWER<|im_end|>\n",
    )
    assert "--fix-template" in problem.fix
    assert "open-r1 #515" in problem.entry.references
    assert "learns never to think" in problem.entry.why
    follows = ("earlier-reasoning", "reasoning-field", "tool-turn", "literal-marker", "history")
    assert {found[name].found for name in follows} == {"final-reasoning stands for it"}


def test_no_marker_is_cut_in_two_where_something_is_lost(renderer: Renderer) -> None:
    source = (
        "{% for m in messages %}{{ '<｜User｜>' if m.role == 'user' else '<｜Assistant｜>' }}"
        "{{ m.content.split('</think>')[-1] }}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
    )
    found = checks(read_template(renderer, source, THINK))["final-reasoning"]
    assert found.evidence == (r"QUESTION<｜Assistant｜>⟦<think>\nREASONING\n</think>⟧\n\nANSWER",)


def test_reasoning_that_survives_in_a_field_alone(renderer: Renderer) -> None:
    source = changed(*said(ANSWER_ALONE))
    readings = read_template(renderer, source, THINK)
    assert fired(checks(readings)) == {"final-reasoning": "note"}
    assert fired(checks(readings, {INLINE: 3, WITH_REASONING: 3})) == {"final-reasoning": "problem"}
    assert fired(checks(readings, {IN_FIELD + "reasoning": 3, WITH_REASONING: 3})) == {"final-reasoning": "note"}


REFUSING = changed((SAID, "{%- if '<think>' in text(message.content) %}{{ raise_exception('tags') }}{% endif %}\n" + SAID))


def test_markers_of_another_family_are_not_this_template_s_problem(renderer: Renderer) -> None:
    readings = read_template(renderer, REFUSING, THINK)
    only = {MISSPELLED + "look-alike": 7, WITH_REASONING: 7, EARLIER_REASONING: 2, TOOL_REASONING: 2}
    found = checks(readings, only)
    assert "problem" not in fired(found).values()
    final = found["final-reasoning"]
    assert final.status == "skipped"
    assert final.found == (
        "look-alike stands for it: the data do not write the family's own markers; with those, inline reasoning raises an "
        "error; kept: reasoning_content, reasoning, thinking"
    )
    assert final.fix.startswith("Hand reasoning over as reasoning")
    assert checks(readings, {WITH_REASONING: 7})["final-reasoning"].status == "note"
    some = checks(readings, {**only, INLINE: 3})["final-reasoning"]
    assert (some.status, "raises an error (3 records)" in some.found) == ("problem", True)


@pytest.mark.parametrize(
    ("said", "problems"),
    [
        ("<think>\n{n} and 1.\n</think>\n\n{m}.", {"look-alike"}),
        ("&lt;|channel|&gt;analysis&lt;|message|&gt;{n} and 1.&lt;|end|&gt;{m}.", {"html-escaped"}),
        ("<|channel|>analysis<|message|>{n} and 1.<|end|>{m}.", {"final-reasoning"}),
    ],
    ids=("another's", "escaped", "its own"),
)
def test_one_cause_of_harmony_s_is_one_problem(
    said: str, problems: set[str], tokenizer_dirs: dict[str, Path], renderer: Renderer, tmp_path: Path
) -> None:
    pytest.importorskip("transformers", reason="the tokenizer is loaded with transformers")
    template = tokenizer_dirs["gpt-oss"] / "chat_template.jinja"  # with a small tokenizer: its own takes long to load
    data = jsonl(tmp_path / "d.jsonl", [chat(f"What is {n} + 1?", said.format(n=n, m=n + 1)) for n in range(4)])
    report = examine(HEALTHY, data=[data], template=template, format="gpt_oss_harmony", num_processes=1, renderer=renderer)
    assert {check.name for check in report.problems if check.entry.part != "tokenizer"} == problems
    final = next(check for check in report.checks if check.name == "final-reasoning")
    if final.status != "problem":
        (problem,) = problems
        assert (final.status, final.fix) == ("skipped", "Hand reasoning over as thinking")
        assert final.found.startswith(f"{problem} stands for it: ")


def test_inline_reasoning_is_counted_by_its_markers() -> None:
    def facts(*said: str) -> set[str]:
        turns = [turn for text in said for turn in (Turn("user", "q"), Turn("assistant", text))]
        return set(look(Record(turns), Markers.of(THINK)).facts) & {INLINE, HALF_OPEN, *misspelled}

    misspelled = MISSPELLED + "look-alike", MISSPELLED + "html-escaped"
    own, another, escaped = "<think>\nr\n</think>\n\na", "<reasoning>r</reasoning>a", "&lt;think&gt;r&lt;/think&gt;a"
    assert facts(own) == {INLINE}
    assert facts(another) == {misspelled[0]}
    assert facts(own, another, escaped) == {INLINE, *misspelled}
    assert facts("<think>\nr") == {INLINE, HALF_OPEN}
    assert facts("<reasoning>r") == {misspelled[0]}


def test_what_the_template_does_to_every_record_stays_its_problem(renderer: Renderer) -> None:
    facts = {MISSPELLED + "look-alike": 7, WITH_REASONING: 7}
    assert fired(checks(read_template(renderer, DAMAGED, THINK), facts))["final-reasoning"] == "problem"


PRINTING = changed(
    (SAID, "        {{- message.content if message.content is not none }}\n"),
    (OPENING, OPENING + "    {%- if enable_thinking is not defined or enable_thinking %}{{- '<think>\\n' }}{%- endif %}\n"),
)


def test_a_list_that_is_printed_is_told_once(renderer: Renderer) -> None:
    readings = read_template(renderer, PRINTING, THINK)
    assert readings.fields_kept == {"content", "reasoning_content", "reasoning", "thinking"}
    assert readings.earlier_kept == readings.fields_kept
    assert not readings.fields_bare
    assert fired(checks(readings)) == {"content-parts": "note", "reward-anchor": "note"}
    inline = fired(checks(readings, {PARTS: 7, INLINE: 7, WITH_REASONING: 7}))
    assert [name for name, status in inline.items() if status == "problem"] == ["content-parts"]
    in_part = checks(readings, {PARTS: 7, IN_FIELD + "thinking part": 7, WITH_REASONING: 7})
    assert [name for name, status in fired(in_part).items() if status == "problem"] == ["content-parts"]
    assert in_part["reasoning-field"].found.startswith("content-parts stands for it")
    assert in_part["content-parts"].fix.endswith("hand its thinking over as inline, reasoning_content, reasoning, thinking")
    unread = read_template(renderer, PRINTING.replace(FIELDS, "message.thinking"), THINK)
    other = {PARTS: 7, IN_FIELD + "thinking part": 7, IN_FIELD + "reasoning": 3, WITH_REASONING: 9}
    assert "; 3 records have it in reasoning" in checks(unread, other)["reasoning-field"].found


def test_a_moved_reasoning_is_lost(renderer: Renderer) -> None:
    source = (
        "{% for m in messages %}[{{ m.role }}]{{ (m.content.split('</think>') | reverse | join('</think>')) }}{% endfor %}"
    )
    found = checks(read_template(renderer, source + "{% if add_generation_prompt %}[assistant]{% endif %}", THINK))
    assert found["final-reasoning"].status == "problem"
    assert "moved behind the answer" in found["final-reasoning"].found


REFUSED = {
    "{% if messages | length > 3 %}{{ raise_exception('too long') }}{% endif %}": (
        "on two questions and two answers, on a tool's answer",
        {"earlier-reasoning": "too long", "tool-turn": "too long"},
    ),
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('only two roles') }}{% endif %}{% endfor %}": (
        "on a tool's answer",
        {"tool-turn": "only two roles", "content-none": "only two roles"},
    ),
}


@pytest.mark.parametrize("before", REFUSED, ids=("long", "roles"))
def test_a_conversation_that_is_refused_tells_nothing_else(before: str, renderer: Renderer) -> None:
    met = {EARLIER_REASONING: 7, TOOL_REASONING: 7, INLINE: 7, NO_CONTENT: 7, WITH_REASONING: 7}
    found = checks(read_template(renderer, before + CLEAN_TEMPLATE, THINK), met)
    where, unknown = REFUSED[before]
    assert fired(found) == {"template-renders": "note"}
    assert where in found["template-renders"].found
    assert {name for name, check in found.items() if check.status == "could not tell"} == unknown.keys()
    assert all(why in found[name].found for name, why in unknown.items())


def test_a_conversation_that_never_ends_is_told_once(tmp_path: Path) -> None:
    loop = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    before = f"{{% if messages | length > 3 %}}{loop}{{% endif %}}"
    with Renderer(limit_s=1.5) as slow:
        readings = read_template(slow, before + CLEAN_TEMPLATE, THINK)
        with pytest.raises(UnsupportedError, match=r"because it took more than 1\.5 s of CPU time on two questions"):
            fix_template(slow, readings, tmp_path / "mended.jinja")
        found = checks(readings, {EARLIER_REASONING: 7, INLINE: 7})
    assert fired(found) == {"template-renders": "note"}
    late = "took more than 1.5 s of CPU time on two questions and two answers; "
    assert found["template-renders"].found.startswith(late)
    unknown = {"earlier-reasoning", "history", "tool-turn", "literal-marker", "prefill", "content-none", "content-parts"}
    assert unknown <= {name for name, check in found.items() if check.status == "could not tell"}


def test_a_conversation_that_never_ends_is_told_in_words() -> None:
    loop = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    before = f"{{% for m in messages %}}{{% if m.tool_calls %}}{loop}{{% endif %}}{{% endfor %}}"
    with Renderer(limit_s=1.5) as slow:
        found = checks(read_template(slow, before + CLEAN_TEMPLATE, THINK))["template-renders"]
    late = r"took more than 1\.5 s of CPU time on a conversation with a tool call; \d+ of 154 conversations are not rendered"
    assert re.fullmatch(late, found.found)


def test_every_probe_has_words() -> None:
    told = {name: description(name) for name in probes(THINK, {})}
    assert not [name for name, words in told.items() if "/" in words or "None" in words]
    assert told["prompt/enable_thinking=False"] == "a question, with enable_thinking=False"
    assert told["final/content/by default"] == "a question and an answer, reasoning given as inline"
    assert told["history/thinking"] == "a second question, reasoning given as thinking"
    assert len(set(told.values())) > 90  # how a tool's arguments came, and little else, is not told


def test_reasoning_behind_the_tool_call_is_moved(renderer: Renderer) -> None:
    source = (
        "{% for m in messages %}[{{ m.role }}]{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}"
        "{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    readings = read_template(renderer, source, THINK)
    found = checks(readings)["tool-turn"]
    assert (found.status, found.found.startswith("moved behind the call")) == ("note", True)
    assert "⟦REASONING⟧" in found.evidence[0]
    assert checks(readings, {INLINE: 7, TOOL_REASONING: 7, WITH_REASONING: 7})["tool-turn"].status == "problem"


def test_no_chat_template(renderer: Renderer) -> None:
    found = checks(read_template(renderer, "", THINK))
    assert found["template-renders"].status == "not applicable"
    assert "--template FILE" in found["template-renders"].found
    assert {check.status for name, check in found.items() if name != "template-renders"} == {"skipped"}


class Merging:
    """Ids of two characters each, so that a prompt of odd length ends inside a token."""

    def encode(self, text: str, add_special_tokens: bool) -> list[str]:
        assert not add_special_tokens
        return [text[at : at + 2] for at in range(0, len(text), 2)]


def test_a_prefix_as_text_that_is_none_as_ids(renderer: Renderer, clean: Readings) -> None:
    odd = len(clean.text("prompt/by default")) % 2
    source = CLEAN_TEMPLATE if odd else "." + CLEAN_TEMPLATE
    found = checks(read_template(renderer, source, THINK, tokenizer=Merging()))
    assert fired(found) == {"prompt-prefix": "note"}
    assert "a token crosses the border" in found["prompt-prefix"].found
    even = read_template(renderer, "." + source, THINK, tokenizer=Merging())
    assert checks(even)["prompt-prefix"].found == "the prompt begins the training text as text and as ids"


def test_two_templates(renderer: Renderer, clean: Readings) -> None:
    def compare(source: str) -> Check:
        (found,) = differs_checks(clean, read_template(renderer, source, THINK), ("mine", "served"))
        return found

    assert compare(CLEAN_TEMPLATE).found == "mine and served are the same"
    assert compare("{# another comment #}" + CLEAN_TEMPLATE).status == "ok"
    another = compare("Hello." + CLEAN_TEMPLATE)
    assert (another.status, "the generation prompt" in another.found) == ("problem", True)
    assert another.evidence[1].startswith("served: ⟦Hello.⟧<|im_start|>user")
    stripped = compare(SOURCES["F17", "final-reasoning"])
    assert (stripped.status, "the final turn" in stripped.found) == ("problem", True)
    literal = compare(SOURCES["F8", "literal-marker"])
    assert literal.status == "note"
    assert compare("").status == "could not tell"


MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "<think>\nadd\n</think>\n\n4"},
    {"role": "user", "content": "3 + 3?"},
    {"role": "assistant", "content": "6", "reasoning_content": "add again"},
]
KEPT = (
    "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n<think>\nadd\n</think>\n\n4<|im_end|>\n"
    "<|im_start|>user\n3 + 3?<|im_end|>\n<|im_start|>assistant\n<think>\nadd again\n</think>\n\n6<|im_end|>\n"
)


def mended(renderer: Renderer, source: str, folder: Path, format: ThinkFormat = THINK) -> tuple[str, list[str]]:
    out = folder / "mended.jinja"
    told = fix_template(renderer, read_template(renderer, source, format), out)
    return out.read_text(encoding="utf-8"), told


def test_the_damaged_template_is_mended_in_transformers_itself(renderer: Renderer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="rendered by transformers' apply_chat_template")
    tokenizer = transformers.AutoTokenizer.from_pretrained(HEALTHY, local_files_only=True)
    source, told = mended(renderer, DAMAGED, tmp_path)
    assert "markers are hidden from the old body in every turn" in told[0]
    render = tokenizer.apply_chat_template
    assert render(MESSAGES, chat_template=source, tokenize=False) == KEPT
    for num in (1, 3):
        asked = {"tokenize": False, "add_generation_prompt": True}
        prompt = render(MESSAGES[:num], chat_template=source, **asked)
        assert prompt == render(MESSAGES[:num], chat_template=DAMAGED, **asked)
    begun = [MESSAGES[0], {"role": "assistant", "content": "<think>\nhm"}]
    going_on = render(begun, chat_template=source, tokenize=False, continue_final_message=True)
    assert going_on.endswith("<|im_start|>assistant\n<think>\nhm")
    left = fired(checks(read_template(renderer, source, THINK)))
    assert left == {"content-parts": "note", "history": "note"}  # prompts are as they were


def test_marks_of_generated_text_stay_in_place(renderer: Renderer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="masks are made by transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(HEALTHY, local_files_only=True)
    source, _ = mended(renderer, SOURCES["F17", "final-reasoning"], tmp_path)
    made = tokenizer.apply_chat_template(MESSAGES, chat_template=source, return_dict=True, return_assistant_tokens_mask=True)
    pairs = list(zip(made["input_ids"], made["assistant_masks"], strict=True))
    assert tokenizer.decode([token_id for token_id, _ in pairs]) == KEPT
    learned = tokenizer.decode([token_id for token_id, masked in pairs if masked])
    assert learned == "<think>\nadd\n</think>\n\n4<|im_end|>\n<think>\nadd again\n</think>\n\n6<|im_end|>\n"


def test_an_inserted_block_is_left_out_in_front_of_reasoning_alone(renderer: Renderer, tmp_path: Path) -> None:
    source = (
        "{%- for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{{ '<think>\\n\\n</think>\\n\\n' }}"
        "{{ m.content.split('</think>')[-1].strip() }}{% else %}{{ m.content }}{% endif %}<end>\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}\n"
    )
    new, told = mended(renderer, source, tmp_path)
    assert r"'<think>\n\n</think>\n\n' left out in front of reasoning" in told[0]
    plain = [MESSAGES[0], {"role": "assistant", "content": "4 </think> is quoted"}]
    texts = [made.text for made in renderer.render(new, [Job(MESSAGES, False), Job(plain, False)])]
    assert texts[0] == (
        "[user]2 + 2?<end>\n[assistant]<think>\nadd\n</think>\n\n4<end>\n"
        "[user]3 + 3?<end>\n[assistant]<think>\nadd again\n</think>\n\n6<end>\n"
    )
    assert texts[1] == "[user]2 + 2?<end>\n[assistant]<think>\n\n</think>\n\n4 </think> is quoted<end>\n"


def test_white_space_at_the_borders_of_the_old_body_stays(renderer: Renderer, tmp_path: Path) -> None:
    loop = "{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1] }}\n{% endfor %}"
    for source in (f"\n \n{loop}  \n\n", f"  {loop}   ", f"x{loop}\r\n"):
        out = tmp_path / f"{len(source)}.jinja"
        new = mended(renderer, source, tmp_path)[0]
        (tmp_path / "mended.jinja").rename(out)
        plain = [Job([{**turn, "content": "a"} for turn in MESSAGES[:2]], prompt) for prompt in (True, False)]
        assert renderer.render(new, plain) == renderer.render(source, plain)


def test_parts_tools_and_quotes_go_through_a_mended_template(renderer: Renderer, tmp_path: Path) -> None:
    odd = replace(THINK, starts=("<it's>",), ends=("</it\\s>",), open_text="<it's>\n", close_text="\n</it\\s>\n\n")
    source = (
        CLEAN_TEMPLATE.replace("<think>", "<it\\'s>")
        .replace("</think>", "</it\\\\s>")
        .replace("message.reasoning_content or message.reasoning or message.thinking", "none")
    )
    assert not fired(checks(read_template(renderer, source, odd))).keys() - {"reasoning-field"}
    new, _ = mended(renderer, source.replace("{%- elif content -%}", "{%- elif content and false -%}"), tmp_path, odd)
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}], "reasoning": "r"}
    (made,) = renderer.render(new, [Job([MESSAGES[0], call], False)])
    assert (made.text or "").endswith('<it\'s>\nr\n</it\\s>\n\n<tool_call>\n{"name": "f"}\n</tool_call><|im_end|>\n')


def test_what_is_not_mended(renderer: Renderer, tmp_path: Path) -> None:
    out = tmp_path / "mended.jinja"
    with pytest.raises(InputError, match="nothing to mend"):
        fix_template(renderer, read_template(renderer, CLEAN_TEMPLATE, THINK), out)
    with pytest.raises(UnsupportedError, match="does not render: TemplateError: no"):
        fix_template(renderer, read_template(renderer, "{{ raise_exception('no') }}", THINK), out)
    refusing = CLEAN_TEMPLATE.replace(
        "{%- set reasoning = ",
        "{%- if message.content != 'Answ3r1' %}{{ raise_exception('unheard of') }}{% endif %}{%- set reasoning = none and ",
    )
    with pytest.raises(UnsupportedError, match=r"Tried: .*unheard of"):
        fix_template(renderer, read_template(renderer, refusing, THINK), out)
    assert not out.exists()
    with pytest.raises(InputError, match="does not exist"):
        fix_template(renderer, read_template(renderer, DAMAGED, THINK), tmp_path / "no" / "out.jinja")
    out.write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="exists"):
        fix_template(renderer, read_template(renderer, DAMAGED, THINK), out)
    assert out.read_text(encoding="utf-8") == "mine"
