"""The table of formats, what it refuses, and what detection makes of real tokenizers and chat templates."""

from __future__ import annotations

import ast
import importlib.util
import json
import pickle
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

from thinkguard.doctor.judges.tags import Markers
from thinkguard.doctor.serving.reply import whole
from thinkguard.doctor.serving.verdict import parser_for
from thinkguard.doctor.tokenizer.splits import marker_tokens
from thinkguard.errors import FormatError
from thinkguard.formats import DEFAULT_INNER, ChannelGrammar, FamilyFacts, ThinkFormat, describe, facts_of
from thinkguard.formats import format as format_module
from thinkguard.formats.fit import views_of
from thinkguard.formats.marks import Marks
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
    sources = [re.fullmatch(r"(.+) \((.+)\)", listed) for listed in fact["implicit_end"]]
    assert list(family.implicit_ends) == [source[1] for source in sources if source]


# What the table says otherwise of markers' tokens and of other tools, and why.
OTHER_VLLM = {
    "magistral_2506_text": "no parser is exact",
    "granite_3_3": "no parser is exact: granite's is for 3.2",
    "minimax_m1": "another family's, which nobody has tried",
    "nemotron_llama": "another family's, which nobody has tried",
}
OTHER_SGLANG = {"plamo3": "SGLang 0.5.23 has no parser of that name"}
OTHER_TEMPLATES = {
    "qwq": "those of other families are used, it has none",
    "qwen3": "qwen3_nothink knows no reasoning",
    "qwen3_5_small": "qwen3_5_nothink knows no reasoning",
    "youtu_llm": "youtu_vl knows no reasoning",
}
TOKENS_IN_WORDS = {
    "added": r"one added token|one token per tag|(single )?vocab entr|added tokens$",
    "special": r"special|control tokens|3 tokens per marker \(special",
    "text": r"(?i)text|plain text|natural-language|multi-token",
}


def names_in(fact: str | None) -> list[str]:
    """The names in a fact such as `glm4_moe / glm4_5v`; a template that is plain knows no reasoning."""
    parts = re.split(r" ?[/|] ?| or ", fact or "")
    return [part.partition(" (")[0] for part in parts if part not in ("", "none") and "(plain)" not in part]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "think"])
def test_what_tools_are_told_agrees_with_the_facts(name: str, families: dict[str, dict[str, Any]]) -> None:
    told, fact = facts_of(name), families[name]
    assert (list(told.vllm_parsers) == names_in(fact["vllm_reasoning_parser"])) != (name in OTHER_VLLM)
    assert list(told.vllm_tool_parsers) == names_in(fact["vllm_tool_parser"])
    assert (list(told.sglang_parsers) == names_in(fact["sglang_reasoning_parser"])) != (name in OTHER_SGLANG)
    assert (list(told.llamafactory_templates) == names_in(fact["llamafactory_template"])) != (name in OTHER_TEMPLATES)
    assert told.tokens == next((kind for kind, words in TOKENS_IN_WORDS.items() if re.match(words, fact["tokens"])), None)
    controls = ThinkFormat.from_name(name).controls
    assert bool(controls) == (told.tokens == "special") or name == "apertus"  # whose added tokens are its controls


def test_no_entry_lends_what_tools_are_told() -> None:
    assert facts_of("think").vllm_parsers
    assert TABLE["formats"]["minimax_m1"]["like"] == "think"
    assert facts_of("minimax_m1") == facts_of("a format of your own") == FamilyFacts()


@pytest.mark.parametrize(
    ("package", "file", "field"),
    [
        ("vllm", "reasoning/__init__.py", "vllm_parsers"),
        ("vllm", "tool_parsers/__init__.py", "vllm_tool_parsers"),
        ("sglang", "srt/parser/reasoning_parser.py", "sglang_parsers"),
    ],
)
def test_parsers_are_there_by_these_names(package: str, file: str, field: str) -> None:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    source = (Path(spec.origin).parent / file).read_text(encoding="utf-8")  # read, for importing it takes seconds
    assert [name for family in NAMES for name in getattr(facts_of(family), field) if f'"{name}": ' not in source] == []


def test_families_stand_in_the_table_alone() -> None:
    told = [facts_of(name) for name in NAMES]
    known = {*NAMES, *ThinkFormat.refused()} - {"think"}
    known |= {name for facts in told for name in facts.vllm_parsers + facts.sglang_parsers + facts.llamafactory_templates}
    known |= {name for facts in told for name in facts.vllm_tool_parsers} - {"openai"}  # which is the client's name too
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] not in ("formats", "bench"):  # examples in an error; what is compared
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            assert not known & {node.value for node in nodes if isinstance(node, ast.Constant)}, path


def test_a_new_family_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["<think>", "</think>"]
    entry = {
        "like": "think",
        "header": "<|novel|>",
        "models": ["Novel"],
        "tokens": "added",
        "parsers": {"vllm": ["novel1"]},
        "llamafactory": {"templates": ["novel"], "thought_words": words},
    }
    schema = json.loads((PACKAGE / "formats" / "table.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate({**TABLE, "formats": {**TABLE["formats"], "novel": entry}})
    monkeypatch.setitem(format_module._TABLE["formats"], "novel", entry)
    family = ThinkFormat.from_name("novel")
    assert facts_of("novel").tokens == "added"
    assert facts_of("novel").llamafactory_templates == ("novel",)
    assert named_parser("<think>", "Hi<|novel|>") == "novel1"
    assert Markers.of(family, trainer="llamafactory").form == ("", "", "")
    assert Markers.of(ThinkFormat.from_name("think"), trainer="llamafactory").form == ("\n", "\n", "\n\n")


def named_parser(start: str, prompt: str, *tokens: str) -> str:
    logprobs = {"content": [{"token": token} for token in tokens]}
    choice = {"message": {"content": ""}, "logprobs": logprobs, "finish_reason": "stop"}
    family = next(family for family in map(ThinkFormat.from_name, NAMES) if start in family.starts)
    return parser_for(Marks(family.starts, family.ends), whole({"choices": [choice], "prompt_text": prompt}, "a server"))


@pytest.mark.parametrize(
    ("start", "prompt", "tokens", "parser"),
    [
        ("[THINK]", "", (), "mistral"),
        ("<|START_THINKING|>", "", (), "cohere_command3, or cohere_command4: the model's card says which"),
        ("<think:opensource>", "", (), "hy_v3, or hy_v4: the model's card says which"),
        ("<thought>", "", (), "NAME, the one that the model's card names"),
        ("<think>", "", (), "deepseek_r1, or qwen3: the model's card says which"),
        ("<think>", "Hi<|im_start|>assistant\n", (), "deepseek_r1, or qwen3: the model's card says which"),  # dozens do so
        ("<think>", "Hi<|im_assistant|>assistant<|im_middle|>", (), "kimi_k2"),
        ("<think>", "Hi<|im_assistant|>assistant<|im_middle|><think>\n", ("<think>",), "kimi_k2"),
        ("<think>", "", ("<", "think", ">"), "olmo3, which reads markers spelled in several tokens"),
        ("[THINK]", "", ("[", "THINK", "]"), "mistral"),
    ],
)
def test_parser_for_a_server(start: str, prompt: str, tokens: tuple[str, ...], parser: str) -> None:
    assert named_parser(start, prompt, *tokens) == parser


@pytest.mark.parametrize(
    ("name", "design"),
    [
        ("qwen3", "qwen3 has tokens of its own for them, this vocabulary has not"),
        ("cohere_command", "cohere_command has tokens of its own for them, this vocabulary has not"),
        ("s1", "markers are special tokens and ordinary text in this family"),
        ("seed_oss", "markers are ordinary text in this family"),
        ("hermes4", "whether hermes4 has tokens of its own for them is not known"),
    ],
)
def test_what_the_markers_are_in_published_models(name: str, design: str) -> None:
    pieces = Vocabulary.from_parts([*BYTES, b"kx"], added={"<|im_start|>": 257})  # so that `think` and `thinkx` differ
    checkpoint: Any = SimpleNamespace(vocabulary=pieces, format=ThinkFormat.from_name(name), assumed=False)
    assert marker_tokens(checkpoint).found.endswith(f"; {design}")


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
        ({"paired": 1}, "paired", "is neither True nor False"),
        ({"paired": True, "ends": ("</a>", "</b>")}, "paired", "needs as many ends as starts, and there are 2 for 1"),
        (
            {
                "paired": True,
                "channel": ChannelGrammar(
                    header="x", tool_headers=(), body="y", message_end="</a>", call_end=None, recipient=None
                ),
            },
            "paired",
            "does not go with a channel",
        ),
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


def test_openers_of_tool_calls_are_the_family_s_and_the_template_s() -> None:
    """A template that mentions no opener had taken it away, and then calls were cut in the middle."""
    plain = detect_format(vocabulary(CHATML, "[THINK]", "[/THINK]"))
    assert plain.implicit_ends == ThinkFormat.from_name("mistral_think_tokens").implicit_ends == ("[TOOL_CALLS]",)
    tools = (ROOT / "tests" / "templates" / "chatml_tools.jinja").read_text(encoding="utf-8")
    own = detect_format(vocabulary(tools, "[THINK]", "[/THINK]"))
    assert own.implicit_ends == ("[TOOL_CALLS]", "<tool_call>"), "the template's own, too"
    assert resolve_format("think", vocabulary(tools)).implicit_ends == ("<tool_call>",)
    assert resolve_format("think", vocabulary(CHATML)).implicit_ends == ()
    assert resolve_format("minimax_m3", vocabulary(tools)).implicit_ends == ("]<]minimax[>[<tool_call>",), "one holds it"


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


def test_pairs_stay_together_where_the_vocabulary_has_another_one() -> None:
    fitted = resolve_format("k2_horizon", vocabulary(None, "<ifm|think_fast>", "</ifm|think_fast>"))
    assert fitted.starts == ("<ifm|think_fast>", "<ifm|think>", "<ifm|think_faster>")
    assert fitted.ends == ("</ifm|think_fast>", "</ifm|think>", "</ifm|think_faster>")
    assert fitted.paired
    assert [(view.starts[0], view.close_text) for view in views_of(fitted)] == list(
        zip(fitted.starts, fitted.ends, strict=True)
    )
    assert views_of(ThinkFormat.from_name("granite_3_2_text")) == (ThinkFormat.from_name("granite_3_2_text"),)


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
