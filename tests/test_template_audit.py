"""Chat templates, ours and published ones, against an audit: what is detected, read and mended.

The templates in tests/templates are ours. Each has one construction of the published ones, so what is said of constructions
is proved without them. The published ones are not ours to copy: tests over them are marked `corpus`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from test_formats import BYTES, vocabulary

from thinkguard.doctor.template.fix_template import fix_template
from thinkguard.doctor.template.probes import question
from thinkguard.doctor.template.readings import Readings, kept, read_template
from thinkguard.doctor.template.sandbox import Renderer
from thinkguard.doctor.template.template_checks import template_checks
from thinkguard.errors import FormatError, UnsupportedError
from thinkguard.formats import ThinkFormat
from thinkguard.formats.renders import render
from thinkguard.formats.resolve import detect_format
from thinkguard.vocabulary import Vocabulary

pytest.importorskip("jinja2", reason="templates are rendered with jinja2")

# Published templates: the family that is detected, and what is expected beside the audit's readings

TEMPLATES: dict[str, str | None] = {
    "Apriel-1.6-15b-Thinker-fixed": "apriel_1_6",
    "Bielik-11B-v3.0-Instruct": "bielik_reka_qianfan",
    "ByteDance-Seed-OSS": "seed_oss",
    "CohereForAI-c4ai-command-r-plus-tool_use": None,
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "cohere_command",
    "GLM-4.7-Flash": "glm4_7",
    "GigaChat3-10B-A1.8B": None,
    "HuggingFaceTB-SmolLM3-3B": "smollm3",
    "Kimi-K3": "kimi_k3",
    "LFM2-8B-A1B": None,
    "MiniMax-M2": "minimax_m2",
    "MiniMax-M3": "minimax_m3",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": None,
    "Qwen-QwQ-32B": "qwq",
    "Qwen-Qwen3-0.6B": "qwen3",
    "Qwen3.5-4B": "qwen3_5",
    "Spark2.5": "think",
    "StepFun3.5-Flash": "step3_5",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "deepseek_r1",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "deepseek_r1",
    "deepseek-ai-DeepSeek-V3.2": "deepseek_v3_hybrid",
    "deepseek-ai-DeepSeek-V4": "deepseek_v4",
    "deepseek-ai-DeepSeek-V4-Flash-0731": "deepseek_v4",
    "fireworks-ai-llama-3-firefunction-v2": None,
    "google-gemma-4-31B-it": "gemma4",
    "google-gemma-4-31B-it-interleaved": "gemma4",
    "ibm-granite-granite-4.0": None,
    "ibm-granite-granite-4.1": None,
    "inclusionai-ling-3.0-flash": "ling3",
    "meta-llama-Llama-3.1-8B-Instruct": None,
    "meta-llama-Llama-3.2-3B-Instruct": None,
    "meta-llama-Llama-3.3-70B-Instruct": None,
    "microsoft-Phi-3.5-mini-instruct": None,
    "mistral_common_v11_plain_thinking": "magistral_2506_text",
    "openai-gpt-oss-120b": "gpt_oss_harmony",
    "poolside-Laguna-S-2.1": "poolside_laguna",
    "poolside-Laguna-XS-2.1": "poolside_laguna",
    "poolside-Laguna-XS.2": "poolside_laguna",
    "tencent-Hy3": "hy3",
    "unsloth-Apriel-1.5": "apriel_1_5",
    "unsloth-mistral-Devstral-Small-2507": None,
    "upstage-Solar-Open-100B": "solar_open",
}
AUDIT_SAYS_OTHERWISE = {
    "Apriel-1.6-15b-Thinker-fixed": "its <thinking> pair is for the thoughts before a tool call",
    "unsloth-Apriel-1.5": "its <thinking> pair is for the thoughts before a tool call",
    "Kimi-K3": "its markers are put together by a macro",
    "tencent-Hy3": "its markers carry a suffix",
}
TOOLS = "it raises without tools, as the audit says; the readings go on with one tool, and then it renders"
CLOSED = "the prompt ends in an end marker: enable_thinking and thinking are not defined, and the template tests `not ...`"
EMPTY = "the prompt ends in an empty block, <|channel>thought\\n<channel|>, because enable_thinking is not defined"
CALLED_WITH_TOOLS = {
    "earlier_inline": "kept", "final_inline": "kept", "final_inline_opens": 1, "final_inline_closes": 1,
    "final_reasoning_content": "LOST", "final_thinking": "LOST", "final_reasoning": "LOST", "final_answer_kept": True,
    "prompt_contains_close": False,
}  # fmt: skip
DIFFERENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "needs_tools": (TOOLS, CALLED_WITH_TOOLS),
    "CohereForAI-c4ai-command-r-plus-tool_use": (TOOLS, CALLED_WITH_TOOLS),
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": (TOOLS, CALLED_WITH_TOOLS),
    "Qwen-QwQ-32B": (CLOSED, {"prompt_contains_close": True}),
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": (CLOSED, {"prompt_contains_close": True}),
    "deepseek-ai-DeepSeek-V3.2": (CLOSED, {"prompt_contains_close": True}),
    "deepseek-ai-DeepSeek-V4": (CLOSED, {"prompt_contains_close": True}),
    "deepseek-ai-DeepSeek-V4-Flash-0731": (CLOSED, {"prompt_contains_close": True}),
    "poolside-Laguna-XS-2.1": (CLOSED, {"prompt_contains_close": True}),
    "poolside-Laguna-XS.2": (CLOSED, {"prompt_contains_close": True}),
    "google-gemma-4-31B-it": (EMPTY, {"prompt_contains_close": True}),
    "google-gemma-4-31B-it-interleaved": (EMPTY, {"prompt_contains_close": True}),
}
PROBLEMS = {
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": {"final-reasoning"},
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": {"final-reasoning"},
    "google-gemma-4-31B-it": {"final-reasoning"},
    "google-gemma-4-31B-it-interleaved": {"final-reasoning"},
    "deepseek-ai-DeepSeek-V3.2": {"block-doubled"},
    "deepseek-ai-DeepSeek-V4": {"block-doubled"},
    "deepseek-ai-DeepSeek-V4-Flash-0731": {"block-doubled"},
    "CohereForAI-c4ai-command-r-plus-tool_use": {"prompt-prefix"},
    "fireworks-ai-llama-3-firefunction-v2": {"template-renders"},
}
MENDED: tuple[str, ...] = (
    *("Apriel-1.6-15b-Thinker-fixed", "GLM-4.7-Flash", "Kimi-K3", "MiniMax-M2", "Qwen-QwQ-32B", "Qwen-Qwen3-0.6B"),
    *("Qwen3.5-4B", "Spark2.5", "StepFun3.5-Flash", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "tencent-Hy3"),
    *("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "deepseek-ai-DeepSeek-V3.2", "deepseek-ai-DeepSeek-V4"),
    *("deepseek-ai-DeepSeek-V4-Flash-0731", "google-gemma-4-31B-it", "google-gemma-4-31B-it-interleaved"),
    "poolside-Laguna-S-2.1",
)
"""All that lose inline reasoning in the final or in earlier turns, or put another block in front of it."""
RAISING: tuple[str, ...] = ("openai-gpt-oss-120b", "fireworks-ai-llama-3-firefunction-v2")
"""With inline reasoning these raise an error, and cannot be mended."""
UNMENDED = {
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "behind the answer's own marker",
    "fireworks-ai-llama-3-firefunction-v2": "does not render",
    "openai-gpt-oss-120b": "several messages",
    "upstage-Solar-Open-100B": "several messages",
}

# Our own templates: tests/templates/audit.json tells the same of them, and is added to the tables

OWN = Path(__file__).resolve().parent / "templates"
OWN_AUDIT: dict[str, dict[str, Any]] = {
    file.removesuffix(".jinja"): told for file, told in json.loads((OWN / "audit.json").read_text(encoding="utf-8")).items()
}
"""`mended` is null where nothing happens to inline reasoning; `unmended` is what the doctor says where it cannot mend."""
FAMILIES: dict[str, str | None] = {name: told["family"] for name, told in OWN_AUDIT.items()} | TEMPLATES
PROBLEMS |= {name: set(told["problems"]) for name, told in OWN_AUDIT.items() if told["problems"]}
MENDED = (*(name for name, told in OWN_AUDIT.items() if told["mended"]), *MENDED)
RAISING = (*(name for name, told in OWN_AUDIT.items() if told["mended"] is False), *RAISING)
UNMENDED = {name: told["unmended"] for name, told in OWN_AUDIT.items() if told["unmended"]} | UNMENDED


def cases(names: Iterable[str]) -> list[Any]:
    """Names of templates as a test's parameters; those of published templates need a corpus."""
    return [name if name in OWN_AUDIT else pytest.param(name, marks=pytest.mark.corpus) for name in names]


class Template(NamedTuple):
    """A template's source, and what the audit tells of it."""

    source: str
    told: dict[str, Any]


@pytest.fixture(scope="module")
def load(request: pytest.FixtureRequest) -> Callable[[str], Template]:
    """A template by its name: ours lie beside the tests, published ones in the corpus."""

    def read(name: str) -> Template:
        folder = OWN if name in OWN_AUDIT else request.getfixturevalue("corpus") / "templates"
        audit = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
        return Template((folder / f"{name}.jinja").read_text(encoding="utf-8"), audit[f"{name}.jinja"])

    return read


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with Renderer(limit_s=60) as made:
        yield made


def spoken(source: str) -> Vocabulary:
    """A vocabulary with the tokens that a template names, and with those that one puts together."""
    return vocabulary(source, "<think:opensource>", "</think:opensource>")


@pytest.fixture(scope="module")
def readings_of(renderer: Renderer, load: Callable[[str], Template]) -> Callable[[str], Readings]:
    """What is read with the format that detection finds, each template once."""

    @cache
    def read(name: str) -> Readings:
        source, family = load(name).source, None
        if FAMILIES[name] is not None:
            family = detect_format(spoken(source), renders=renderer.renders(source))
            assert family.name == FAMILIES[name]
        start = time.monotonic()
        readings = read_template(renderer, source, family)
        assert time.monotonic() - start < 20  # a tenth of that, on a machine that does nothing else
        return readings

    return read


def native(markers: list[str] | None) -> ThinkFormat:
    """The audit's markers, in a conversation like the audit's."""
    start, end = markers or ("<think>", "</think>")
    for name in ThinkFormat.names():
        family = ThinkFormat.from_name(name)
        if (family.starts[0], family.ends[0]) == (start, end):
            return family
    plain = ThinkFormat.from_name("think")
    return replace(plain, starts=(start,), ends=(end,), open_text=f"{start}\n", close_text=f"\n{end}\n\n")


def audited(readings: Readings) -> dict[str, Any]:
    """The audit's fields out of the readings."""

    def what(probe: str) -> str:
        if error := readings.error(probe):
            return f"ERR {error.replace('Error: ', 'Error:', 1)}"[:40]
        came = readings.shape(probe)
        return "kept" if kept(came) else "kept as bare text" if "R" in came else "LOST"

    prompt, text = readings.text("prompt/by default"), readings.text("final/content/by default")
    own = text.partition(question(1))[2]
    if own.startswith(readings.format.ends[0]):  # what also ends the user's turn
        own = own[len(readings.format.ends[0]) :]
    return {
        "tail_ends_open": readings.prompt_state == "open",
        "prompt_contains_close": any(end in prompt for end in readings.format.ends) if prompt else None,
        "earlier_inline": what("earlier/content"),
        "final_inline": what("final/content/by default"),
        "final_inline_opens": sum(map(own.count, readings.format.starts)),
        "final_inline_closes": sum(map(own.count, readings.format.ends)),
        "final_reasoning_content": what("final/reasoning_content/by default"),
        "final_thinking": what("final/thinking/by default"),
        "final_reasoning": what("final/reasoning/by default"),
        "final_answer_kept": "A" in readings.shape("final/content/by default"),
    }


@pytest.mark.parametrize("own", [True, pytest.param(False, marks=pytest.mark.corpus)], ids=("own", "published"))
def test_every_template_is_audited(own: bool, request: pytest.FixtureRequest) -> None:
    names, folder = (OWN_AUDIT, OWN) if own else (TEMPLATES, request.getfixturevalue("corpus") / "templates")
    files = sorted(f"{name}.jinja" for name in names)
    assert files == sorted(path.name for path in folder.glob("*.jinja"))
    assert files == sorted(json.loads((folder / "audit.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", cases(FAMILIES))
def test_family_of_a_template(name: str, load: Callable[[str], Template]) -> None:
    source, audit = load(name)
    vocab = spoken(source)
    if FAMILIES[name] is None:
        assert audit["native"] is None
        plain = Vocabulary.from_parts(BYTES, added={t: i for t, i in vocab.added.items() if "think" not in t})
        with pytest.raises(FormatError, match="no reasoning markers found"):
            detect_format(plain, chat_template=source)
        return
    found = detect_format(vocab)
    assert found.name == FAMILIES[name]
    agrees = audit["native"] == [found.starts[0], found.ends[0]]
    assert agrees != (name in AUDIT_SAYS_OTHERWISE), AUDIT_SAYS_OTHERWISE.get(name)
    prompt = render(source).prompts["by default"]
    assert prompt.rstrip().endswith(found.starts[0]) == audit["tail_ends_open"] or not agrees
    if prompt.rstrip().endswith(found.starts[0]):
        assert found.open_text.startswith(prompt[prompt.rindex(found.starts[0]) :])
    if found.off_text is not None and prompt.rstrip().endswith(found.ends[0]):
        assert prompt.endswith(found.off_text)
    assert found.header_text in prompt


@pytest.mark.parametrize("name", cases(FAMILIES))
def test_readings_agree_with_the_audit(
    name: str, load: Callable[[str], Template], renderer: Renderer, readings_of: Callable[[str], Readings]
) -> None:
    source, told = load(name)
    readings, format = readings_of(name), native(told["native"])
    if (readings.format.starts[0], readings.format.ends[0]) != (format.starts[0], format.ends[0]):
        readings = read_template(renderer, source, format)  # the audit looked at other markers
    seen = audited(readings)
    reason, apart = DIFFERENCES.get(name, ("", {}))
    assert {field: value for field, value in seen.items() if value != told[field]} == apart, reason
    assert readings.needs_tools == (reason == TOOLS)
    if reason in (CLOSED, EMPTY):  # argued from the rendered text
        assert readings.prompt_state == "closed"
    if readings.prompt_state == "closed":
        assert readings.text("prompt/by default").rstrip().endswith(readings.format.ends[0])


@pytest.mark.parametrize("name", cases(FAMILIES))
def test_problems_of_a_template(name: str, readings_of: Callable[[str], Readings]) -> None:
    readings = readings_of(name)
    checks = template_checks(readings, None, None)
    assert {check.name for check in checks if check.status == "problem"} == PROBLEMS.get(name, set())
    shapes = {readings.shape(probe)[:4] for probe in ("final/content/by default", "earlier/content")}
    assert (shapes != {"SREA"}) == (name in {*MENDED, *RAISING})


@pytest.mark.parametrize("name", cases(MENDED))
def test_what_loses_reasoning_is_mended(
    name: str, renderer: Renderer, readings_of: Callable[[str], Readings], tmp_path: Path
) -> None:
    readings, out = readings_of(name), tmp_path / "mended.jinja"
    told = fix_template(renderer, readings, out)
    assert any("prompts are the same byte for byte" in line for line in told)
    assert not [line for line in told if line.startswith("not mended")]
    if name in PROBLEMS:
        after = read_template(renderer, out.read_text(encoding="utf-8"), readings.format)
        fixed = {check.name: check.status for check in template_checks(after, None, None)}
        healed = ("final-reasoning", "earlier-reasoning", "reasoning-field", "block-doubled")
        assert [fixed[check] for check in healed] == ["ok"] * len(healed)


@pytest.mark.parametrize("name", cases(UNMENDED))
def test_what_cannot_be_mended_says_why(
    name: str, renderer: Renderer, readings_of: Callable[[str], Readings], tmp_path: Path
) -> None:
    out = tmp_path / "mended.jinja"
    with pytest.raises(UnsupportedError, match=UNMENDED[name]):
        fix_template(renderer, readings_of(name), out)
    assert not out.exists()


@pytest.mark.corpus
def test_own_templates_show_what_published_ones_show(readings_of: Callable[[str], Readings]) -> None:
    """A finding or a shape that only published templates have would be a construction that we lack."""
    probes = ("final/content/by default", "final/reasoning_content/by default", "final/plain/by default", "earlier/content")

    def shown(names: Iterable[str]) -> set[tuple[str, str]]:
        seen: set[tuple[str, str]] = set()
        for readings in map(readings_of, names):
            seen.update((check.name, check.status) for check in template_checks(readings, None, None))
            seen.update((probe, readings.shape(probe)) for probe in probes)
            seen.add(("prompt", readings.prompt_state))
        return seen

    assert shown(TEMPLATES) <= shown(OWN_AUDIT)
