"""The table of formats, what it refuses, and what detection makes of real tokenizers and chat templates."""

from __future__ import annotations

import importlib.util
import json
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from thinkguard.errors import FormatError
from thinkguard.formats import DEFAULT_INNER, ChannelGrammar, ThinkFormat, describe
from thinkguard.formats.resolve import detect_format, resolve_format
from thinkguard.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "thinkguard"
TABLE = json.loads((PACKAGE / "formats" / "table.json").read_text(encoding="utf-8"))
NAMES = ThinkFormat.names()
BYTES = [bytes([value]) for value in range(256)]
TOKENS = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|<\uff5c[^<>\s]{1,40}\uff5c>|</?(?:seed:|mm:)?(?:think|bos|eos)>|</?(?:seed:)?tool_call>"
    r"|\[/?(?:INST|THINK|TOOL_CALLS)\]|\[e~\[|\]~b\]|<\|(?:turn|channel|tool_response)>|<(?:turn|channel|tool_response)\|>"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vocabulary(template: str | None = None, *tokens: str, eos: str | None = None) -> Vocabulary:
    """256 bytes and some added tokens, by default those that the template's source names."""
    contents = list(dict.fromkeys((*tokens, *TOKENS.findall(template or ""), *([eos] if eos else []))))
    added = {content: 256 + index for index, content in enumerate(contents)}
    return Vocabulary.from_parts(BYTES, added=added, eos_ids=[added[eos]] if eos else [], chat_template=template)


# The table


def test_table_satisfies_its_schema() -> None:
    schema = json.loads((PACKAGE / "formats" / "table.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(TABLE)


def test_schema_refuses_a_misspelt_field() -> None:
    schema = json.loads((PACKAGE / "formats" / "table.schema.json").read_text(encoding="utf-8"))
    bad = {**TABLE, "formats": {**TABLE["formats"], "new": {"like": "think", "models": ["x"], "start": ["<a>"]}}}
    with pytest.raises(jsonschema.ValidationError, match="start"):
        jsonschema.Draft202012Validator(schema).validate(bad)


def test_every_known_family_is_there_once(families: dict[str, dict[str, Any]]) -> None:
    assert len(families) == 88
    assert sorted([*NAMES, *ThinkFormat.refused()]) == sorted([*families, "think"])
    must = ("r1", "qwen", "glm", "kimi", "minimax", "nemotron", "magistral", "granite", "olmo", "phi", "oss", "gemma")
    assert not [name for name in ThinkFormat.refused() if any(part in name for part in must)]


@pytest.mark.parametrize("name", NAMES)
def test_family(name: str) -> None:
    family = ThinkFormat.from_name(name)
    assert family.name == name
    assert family is ThinkFormat.from_name(name)
    assert pickle.loads(pickle.dumps(family)) == family
    assert isinstance(hash(family), int)
    assert family.header_text == "" or not family.assistant_headers
    own = {*family.starts, *family.ends, *family.answer_starts, *family.turn_ends, *(family.boundaries or ())}
    assert not own & DEFAULT_INNER
    assert not own & set(family.inner)
    assert not set(family.ends) & set(family.turn_ends)  # an end marker that stops the host cannot be guarded
    lines = describe(family).splitlines()
    assert lines[0].split() == ["name", name]
    assert len({line.index(line.split()[1]) for line in lines if not line.startswith(" ")}) == 1


# What the table says otherwise than the collected facts, and why.
OTHER_MARKERS = {
    "gemma4": "the newline is white space behind the marker: models/readers start at <|channel>thought",
    "apriel_1_5": "the newline is white space behind the marker",
    "apriel_1_6": "the newline is white space behind the marker",
    "hy3": "{suffix} is spelled out",
    "solar_open": "the prompt ends with <|begin|>assistant, so the marker is what follows it",
    "granite_3_2_text": "the second spelling comes from the regular expression",
}
OTHER_WHITE_SPACE = {
    "minimax_m3": "its template writes <mm:think>R</mm:think>A",
    "seed_oss": "its template writes </seed:think>, newline, answer",
    "step3_5": "its template writes one newline behind </think>",
    "ling3": "its template writes <think>R</think>A",
    "bielik_reka_qianfan": "its template writes one newline behind </think>",
    "grpo_answer_style": "the closing holds the answer's opener",
    "bespoke_sky": "the closing holds the answer's opener",
}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "think"])
def test_family_agrees_with_the_facts(name: str, families: dict[str, dict[str, Any]]) -> None:
    family, fact = ThinkFormat.from_name(name), families[name]
    assert (list(family.starts) == fact["open"] and list(family.ends) == fact["close"]) != (name in OTHER_MARKERS)
    canonical = fact["canonical"]
    if canonical:
        agree = (family.open_text, family.close_text) == (canonical["open"], canonical["close"])
        assert agree != (name in OTHER_WHITE_SPACE)
    stated = fact["thinking_off_prompt_text"] or ""
    if family.off_text is not None and stated and name not in ("deepseek_v3_hybrid", "solar_open"):
        assert family.off_text in stated
    assert family.models == tuple(fact["models"])
    for opener in family.answer_starts:
        assert any(opener in listed for listed in fact["answer_open"] + fact["implicit_end"])


# Refusals

GOOD = {"name": "mine", "starts": ("<a>",), "ends": ("</a>",), "open_text": "<a>\n", "close_text": "\n</a>\n"}


@pytest.mark.parametrize(
    ("changes", "field", "rule"),
    [
        ({"name": ""}, "name", "not a string with something in it"),
        ({"starts": ()}, "starts", "is empty"),
        ({"ends": ()}, "ends", "is empty"),
        ({"starts": ("<a>", "")}, "starts", "holds an empty string"),
        ({"turn_ends": ("",)}, "turn_ends", "holds an empty string"),
        ({"ends": "</a>"}, "ends", "not a tuple of strings"),
        ({"boundaries": ["x"]}, "boundaries", "not a tuple of strings"),
        ({"inner": (1,)}, "inner", "not a tuple of strings"),
        ({"starts": ("<a>", "<a>")}, "starts", "repeats '<a>'"),
        ({"answer_starts": ("</a>",)}, "answer_starts", "already in ends"),
        ({"implicit_ends": ("x<a>",)}, "implicit_ends", "overlaps '<a>' in starts"),
        ({"ends": ("</a>", "/a")}, "ends", "one contains the other"),
        ({"starts": ("<a>", "<\ud800>")}, "starts", "surrogate"),
        ({"open_text": ""}, "open_text", "not a string with something in it"),
        ({"open_text": "\n<a>"}, "open_text", "is not starts[0] followed by"),
        ({"open_text": "<a>go"}, "open_text", "is not starts[0] followed by"),
        ({"open_text": "<a>\n\n\n\n\n"}, "open_text", "at most 4 bytes"),
        ({"open_text": "<a>\u00a0"}, "open_text", "ASCII white space"),
        ({"close_text": "\n"}, "close_text", "exactly once"),
        ({"close_text": "</a></a>"}, "close_text", "exactly once"),
        ({"close_text": "so</a>"}, "close_text", "other text before ends[0]"),
        ({"close_text": "</a><b>"}, "close_text", "neither white space nor one of answer_starts"),
        ({"off_text": "<a>"}, "off_text", "no end and no answer opener"),
        ({"header_text": "assistant\n"}, "header_text", "ends in white space"),
        ({"assistant_headers": ("x",)}, "assistant_headers", "needs boundaries"),
        (
            {
                "channel": ChannelGrammar(
                    header="x", tool_headers=(), body="y", message_end="z", call_end=None, recipient=None
                )
            },
            "channel",
            "message_end",
        ),
    ],
)
def test_contradiction_is_refused(changes: dict[str, Any], field: str, rule: str) -> None:
    with pytest.raises(FormatError) as caught:
        ThinkFormat(**{**GOOD, **changes})
    message = str(caught.value)
    assert f"{field}={changes[field]!r}" in message
    assert rule in message
    assert "; " in message  # the remedy


def test_what_is_allowed() -> None:
    ThinkFormat(**GOOD)
    opened = ThinkFormat(**{**GOOD, "close_text": "\n</a>\n<b>\n", "answer_starts": ("<b>",), "off_text": "<b>"})
    assert opened.close_text.endswith("<b>\n")


def test_unknown_names_get_the_nearest_ones() -> None:
    with pytest.raises(FormatError, match="did you mean 'gpt_oss_harmony'"):
        ThinkFormat.from_name("gpt-oss")
    with pytest.raises(FormatError, match="did you mean 'qwen3'"):
        ThinkFormat.from_name("Qwen3.0")
    with pytest.raises(FormatError, match=r"did you mean 'deepseek_r1', 'deepseek_r1_distill'\?"):
        ThinkFormat.from_name("R1")
    with pytest.raises(FormatError, match=r"did you mean 'think'\?"):
        ThinkFormat.from_name("thnk")
    for nothing in ("0123456789", "foo", "bar", "x", ""):
        with pytest.raises(FormatError, match=r"'think' is plain .*; `thinkguard formats` lists all"):
            ThinkFormat.from_name(nothing)
    with pytest.raises(FormatError, match="is no name"):
        ThinkFormat.from_name(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(ThinkFormat.refused()))
def test_refused_families_say_why(name: str) -> None:
    with pytest.raises(FormatError, match="cannot be guarded") as caught:
        ThinkFormat.from_name(name)
    assert ThinkFormat.refused()[name] in str(caught.value)


# Detection

DEEPSEEK_EOS = "<\uff5cend\u2581of\u2581sentence\uff5c>"
THINK = ("<think>\n", "\n</think>\n\n")
TOKENIZERS: dict[str, tuple[str, str, str, str | None, str, tuple[str, ...]] | None] = {
    "qwen3": ("qwen3", *THINK, "<think>\n\n</think>\n\n", "assistant", ("<|im_end|>", "<|endoftext|>")),
    "r1-distill-qwen": ("deepseek_r1", *THINK, None, "", (DEEPSEEK_EOS,)),
    "deepseek-v3-r1": ("deepseek_r1", *THINK, None, "", (DEEPSEEK_EOS,)),
    "olmo3-think": ("olmo3_think", "<think>", "</think>", None, "assistant", ("<|im_end|>", "<|endoftext|>")),
    "magistral-2507": ("mistral_think_tokens", "[THINK]", "[/THINK]", None, "", ("</s>",)),
    "gpt-oss": (
        "gpt_oss_harmony",
        "<|channel|>analysis<|message|>",
        "<|end|>",
        "<|channel|>final<|message|>",
        "",
        ("<|return|>", "<|call|>"),
    ),
    "qwen2.5-instruct": None,
    "phi-4": None,
    "mistral-v1-spm": None,
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_real_tokenizer(name: str, tokenizer_dirs: dict[str, Path]) -> None:
    expected = TOKENIZERS[name]
    if expected is None:
        with pytest.raises(FormatError, match="no reasoning markers found") as caught:
            detect_format(tokenizer_dirs[name])
        assert 'format="think"' in str(caught.value)
        return
    found = detect_format(tokenizer_dirs[name])
    assert (found.name, found.open_text, found.close_text, found.off_text) == expected[:4]
    assert (found.header_text, found.turn_ends) == expected[4:]
    assert "the chat template writes them" in found.evidence[0]
    assert found == resolve_format(None, tokenizer_dirs[name])


@pytest.mark.parametrize(
    ("name", "header_text", "turn_ends"),
    [
        ("qwen2.5-instruct", "assistant", ("<|im_end|>",)),
        ("phi-4", "", ("<|im_end|>",)),
        ("mistral-v1-spm", "", ("</s>",)),
        ("olmo3-think", "assistant", ("<|im_end|>", "<|endoftext|>")),
        ("deepseek-v3-r1", "", (DEEPSEEK_EOS,)),
    ],
)
def test_named_format_is_fitted(
    name: str, header_text: str, turn_ends: tuple[str, ...], tokenizer_dirs: dict[str, Path]
) -> None:
    fitted = resolve_format("think", tokenizer_dirs[name])
    assert (fitted.open_text, fitted.close_text) == THINK  # as named, whatever the template writes
    assert (fitted.header_text, fitted.turn_ends) == (header_text, turn_ends)


def test_tokens_decide_where_no_template_does() -> None:
    assert detect_format(vocabulary(None, "<think>", "</think>")).name == "think"
    assert detect_format(vocabulary(CHATML, "[THINK]", "[/THINK]")).name == "mistral_think_tokens"
    harmony = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>")
    found = detect_format(vocabulary(None, *harmony))
    assert found.name == "gpt_oss_harmony"
    assert found.channel == ThinkFormat.from_name("gpt_oss_harmony").channel
    assert "tokens of their own" in found.evidence[0]


def test_two_pairs_of_tokens_are_ambiguous() -> None:
    with pytest.raises(FormatError, match="several pairs") as caught:
        detect_format(vocabulary(None, "<think>", "</think>", "[THINK]", "[/THINK]"))
    assert "format='think'" in str(caught.value)
    assert "format='mistral_think_tokens'" in str(caught.value)
    decided = vocabulary(CHATML + "{% if add_generation_prompt %}<think>\n{% endif %}", "[THINK]", "[/THINK]")
    assert detect_format(decided).starts == ("<think>",)


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no') }}",
        "{% for %}",
        "{{ undefined.field }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
    ],
)
def test_failing_template_is_evidence(source: str) -> None:
    found = detect_format(vocabulary(source, "<think>", "</think>"))
    assert found.name == "think"
    assert "could not be rendered" in found.evidence[-1]
    with pytest.raises(FormatError, match="could not be rendered"):
        detect_format(vocabulary(source))


def test_template_is_read_without_jinja2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    found = detect_format(vocabulary(CHATML + "{# <think> </think> #}"))
    assert found.name == "think"
    assert "jinja2 is not installed" in found.evidence[-1]


def test_template_that_marks_generations_and_breaks() -> None:
    source = (
        "{% for m in messages %}{% if loop.index > 3 %}{% break %}{% endif %}<|im_start|>{{ m.role }}\n"
        "{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>\n{% endfor %}{{ strftime_now('%Y')[:0] }}"
        "{{ {'a': '<'} | tojson }}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    found = detect_format(vocabulary(source))
    assert (found.open_text, found.header_text) == ("<think>\n", "assistant")


def test_white_space_of_an_unknown_family_is_rendered() -> None:
    source = (
        "{% for m in messages %}@{{ m.role }}@ {% if m.reasoning_content %}<think> {{ m.reasoning_content }}</think> "
        "{% endif %}{{ m.content }}<eot>{% endfor %}{% if add_generation_prompt %}@assistant@ {% endif %}"
    )
    found = detect_format(vocabulary(source, "<eot>"))
    assert (found.name, found.open_text, found.close_text) == ("think", "<think> ", "</think> ")
    assert (found.turn_ends, found.header_text) == (("<eot>",), "@assistant@")
    plain = detect_format(vocabulary(source))  # no role token at all: the role's text is the boundary
    assert (plain.boundaries, plain.header_text) == (("<eot>@assistant@",), "")


def test_eos_is_not_needed_as_a_turn_end_but_found() -> None:
    source = CHATML.replace("<|im_end|>\n{% endfor %}", "{{ eos_token }}{% endfor %}")
    fitted = resolve_format("think", vocabulary(source, "<|im_start|>", eos="<|end_of_text|>"))
    assert fitted.turn_ends == ("<|end_of_text|>",)


def test_white_space_tokens_are_no_header() -> None:
    fitted = resolve_format("think", vocabulary(CHATML, "\n", "  "))
    assert fitted.header_text == "assistant"


def test_spelling_follows_the_vocabulary() -> None:
    fitted = resolve_format("hy3", vocabulary(None, "<think:opensource>", "</think:opensource>"))
    assert fitted.starts == ("<think:opensource>", "<think>")
    assert (fitted.open_text, fitted.close_text) == ("<think:opensource>", "</think:opensource>")
    assert fitted.off_text == "<think:opensource></think:opensource>"


def test_resolve() -> None:
    mine = ThinkFormat(**GOOD)
    assert resolve_format(mine, object()) is mine
    with pytest.raises(FormatError, match="is no name"):
        resolve_format(3, vocabulary())  # type: ignore[arg-type]
    with pytest.raises(FormatError, match="no chat template"):
        resolve_format(None, vocabulary())


def test_page_is_up_to_date() -> None:
    path = ROOT / "tools" / "write_formats_doc.py"
    spec = importlib.util.spec_from_file_location("write_formats_doc", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.DOC.read_text(encoding="utf-8") == module.document(), "run tools/write_formats_doc.py"
