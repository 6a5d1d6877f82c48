"""The readings of 42 published chat templates against an independent audit of them, and which of them can be mended."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED
from test_formats import TEMPLATES, vocabulary

from thinkguard.doctor.template.checks import template_checks
from thinkguard.doctor.template.fix import fix_template
from thinkguard.doctor.template.probes import question
from thinkguard.doctor.template.readings import Readings, kept, read_template
from thinkguard.doctor.template.sandbox import Renderer
from thinkguard.errors import UnsupportedError
from thinkguard.formats import ThinkFormat

pytest.importorskip("jinja2", reason="templates are rendered with jinja2")

FOLDER = SHARED / "templates"
TOOLS = "it raises without tools, as the audit says; the readings go on with one tool, and then it renders"
CLOSED = "the prompt ends in an end marker: enable_thinking and thinking are not defined, and the template tests `not ...`"
EMPTY = "the prompt ends in an empty block, <|channel>thought\\n<channel|>, because enable_thinking is not defined"
CALLED_WITH_TOOLS = {
    "earlier_inline": "kept", "final_inline": "kept", "final_inline_opens": 1, "final_inline_closes": 1,
    "final_reasoning_content": "LOST", "final_thinking": "LOST", "final_reasoning": "LOST", "final_answer_kept": True,
    "prompt_contains_close": False,
}  # fmt: skip
DIFFERENCES: dict[str, tuple[str, dict[str, Any]]] = {
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
MENDED = (
    *("Apriel-1.6-15b-Thinker-fixed", "GLM-4.7-Flash", "Kimi-K3", "MiniMax-M2", "Qwen-QwQ-32B", "Qwen-Qwen3-0.6B"),
    *("Qwen3.5-4B", "Spark2.5", "StepFun3.5-Flash", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "tencent-Hy3"),
    *("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "deepseek-ai-DeepSeek-V3.2", "deepseek-ai-DeepSeek-V4"),
    *("deepseek-ai-DeepSeek-V4-Flash-0731", "google-gemma-4-31B-it", "google-gemma-4-31B-it-interleaved"),
    "poolside-Laguna-S-2.1",
)
"""All that lose inline reasoning in the final or in earlier turns, or put another block in front of it."""
UNMENDED = {
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "behind the answer's own marker",
    "fireworks-ai-llama-3-firefunction-v2": "does not render",
    "openai-gpt-oss-120b": "several messages",
    "upstage-Solar-Open-100B": "several messages",
}


@pytest.fixture(scope="module")
def audit() -> dict[str, dict[str, Any]]:
    if not (FOLDER / "audit.json").is_file():
        reason = f"no real templates: {FOLDER} is absent"
        if os.environ.get("CI"):
            pytest.fail(f"{reason}, and CI must not skip them")
        pytest.skip(reason)
    found: dict[str, dict[str, Any]] = json.loads((FOLDER / "audit.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with Renderer(limit_s=60) as made:
        yield made


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


def source_of(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def readings_of(renderer: Renderer, audit: dict[str, dict[str, Any]]) -> Callable[[str], Readings]:
    """What is read with the format that detection finds, each template once."""

    @cache
    def read(name: str) -> Readings:
        source, family = source_of(name), None
        if TEMPLATES[name] is not None:
            vocab = vocabulary(source, "<think:opensource>", "</think:opensource>")
            family = ThinkFormat.from_tokenizer(vocab, renders=renderer.renders(source))
            assert family.name == TEMPLATES[name]
        start = time.monotonic()
        readings = read_template(renderer, source, family)
        assert time.monotonic() - start < 20  # a tenth of that, on a machine that does nothing else
        return readings

    return read


@pytest.mark.parametrize("name", TEMPLATES)
def test_readings_agree_with_the_audit(
    name: str, audit: dict[str, dict[str, Any]], renderer: Renderer, readings_of: Callable[[str], Readings]
) -> None:
    told = audit[f"{name}.jinja"]
    readings, format = readings_of(name), native(told["native"])
    if (readings.format.starts[0], readings.format.ends[0]) != (format.starts[0], format.ends[0]):
        readings = read_template(renderer, source_of(name), format)  # the audit looked at other markers
    seen = audited(readings)
    reason, apart = DIFFERENCES.get(name, ("", {}))
    assert {field: value for field, value in seen.items() if value != told[field]} == apart, reason
    assert readings.needs_tools == (reason == TOOLS)
    if reason in (CLOSED, EMPTY):  # argued from the rendered text
        assert readings.prompt_state == "closed"
        assert readings.text("prompt/by default").rstrip().endswith(readings.format.ends[0])


@pytest.mark.parametrize("name", TEMPLATES)
def test_problems_of_real_templates(name: str, readings_of: Callable[[str], Readings]) -> None:
    readings = readings_of(name)
    checks = template_checks(readings, None, None)
    assert {check.name for check in checks if check.status == "problem"} == PROBLEMS.get(name, set())
    shapes = {readings.shape(probe)[:4] for probe in ("final/content/by default", "earlier/content")}
    assert (shapes != {"SREA"}) == (name in {*MENDED, "openai-gpt-oss-120b", "fireworks-ai-llama-3-firefunction-v2"})


@pytest.mark.parametrize("name", MENDED)
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


@pytest.mark.parametrize("name", UNMENDED)
def test_what_cannot_be_mended_says_why(
    name: str, renderer: Renderer, readings_of: Callable[[str], Readings], tmp_path: Path
) -> None:
    out = tmp_path / "mended.jinja"
    with pytest.raises(UnsupportedError, match=UNMENDED[name]):
        fix_template(renderer, readings_of(name), out)
    assert not out.exists()


def test_every_template_is_audited(audit: dict[str, dict[str, Any]]) -> None:
    assert sorted(audit) == sorted(f"{name}.jinja" for name in TEMPLATES)
