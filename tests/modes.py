"""Failure modes as cases: what to examine so that exactly one check fires, and its clean twin."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import thinkguard.demo

HEALTHY = Path(thinkguard.demo.__file__).with_name("models") / "healthy"

# A template that does everything right: keeps reasoning in every turn, inline or in a field, opens nothing in the prompt,
# takes parts, null and tool calls, and has one switch.
CLEAN_TEMPLATE = """\
{%- macro text(content) -%}
    {%- if content is string -%}{{ content }}
    {%- elif content -%}
        {%- for part in content -%}
            {%- if part.type == 'thinking' -%}{{ '<think>\\n' + part.thinking + '\\n</think>\\n\\n' }}
            {%- elif part.type == 'text' -%}{{ part.text }}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}
        {%- set reasoning = message.reasoning_content or message.reasoning or message.thinking %}
        {%- if reasoning %}{{- '<think>\\n' + reasoning + '\\n</think>\\n\\n' }}{%- endif %}
        {{- text(message.content) }}
        {%- for call in message.tool_calls or [] %}
            {{- '<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
        {%- endgeneration %}
    {%- else %}
        {{- text(message.content) + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""


@dataclass(frozen=True)
class Inputs:
    """The arguments of `thinkguard.doctor.examine.examine`; `None` and `()` are its defaults."""

    path: Path | None = None
    data: tuple[Path, ...] = ()
    against: Path | None = None
    template: Path | None = None
    trainer: str | None = None
    cutoff_len: int | None = None


@dataclass(frozen=True)
class Case:
    """One failure mode: `make(folder, broken)` writes what to examine; only `check` may fire, and only if broken."""

    mode: str  # "F17"; "" for a check without a mode
    check: str
    make: Callable[[Path, bool], Inputs]

    def __str__(self) -> str:
        return f"{self.mode or 'extra'}-{self.check}"


def checkpoint(folder: Path, template: str = CLEAN_TEMPLATE, name: str = "model") -> Path:
    """Write a whole small checkpoint: ChatML, `<think>` and `</think>` added and not special, trained rows."""
    target = folder / name
    shutil.copytree(HEALTHY, target)
    (target / "chat_template.jinja").write_text(template, encoding="utf-8")
    return target


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON file in place."""
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """Write one record per line."""
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def chat(user: str, content: Any, **fields: Any) -> dict[str, Any]:
    """One record of two messages."""
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": content, **fields}]}


def good_records(num: int = 8) -> list[dict[str, Any]]:
    """Records that nothing is wrong with, their reasoning inline."""
    return [chat(f"What is {n} + 1?", f"<think>\n{n} and one more is {n + 1}.\n</think>\n\n{n + 1}.") for n in range(num)]
