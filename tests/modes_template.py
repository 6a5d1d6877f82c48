"""The failure modes of a chat template: each a change to the clean one of `modes.py`."""

from __future__ import annotations

from pathlib import Path

from modes import CLEAN_TEMPLATE, Case, Inputs, checkpoint

SAID = "        {{- text(message.content) }}\n"  # the assistant's content
FIELDS = "message.reasoning_content or message.reasoning or message.thinking"
EMPTY = "{{- '<think>\\n\\n</think>\\n\\n' }}"
OPENING = "    {{- '<|im_start|>assistant\\n' }}\n"
LAST_USER = """\
{%- set ns = namespace(last=0) -%}
{%- for message in messages -%}{%- if message.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
"""
TEXT = "text(message.content)"
ANSWER_ALONE = f"{TEXT}.split('</think>')[-1]"
CLOSE = "'\\n</think>\\n\\n'"


def changed(*changes: tuple[str, str], before: str = "") -> str:
    """The clean template with each text replaced by another, which has to be in it."""
    source = CLEAN_TEMPLATE
    for old, new in changes:
        assert old in source, f"the clean template has no {old!r}"
        source = source.replace(old, new)
    return before + source


def said(expression: str, fields: str = FIELDS) -> tuple[tuple[str, str], tuple[str, str]]:
    """Another expression for the assistant's content, and for the reasoning beside it."""
    return (SAID, f"        {{{{- {expression} }}}}\n"), (FIELDS, fields)


def in_front(condition: str, text: str = EMPTY) -> tuple[str, str]:
    """Something written in front of the assistant's content."""
    return SAID, f"        {{%- if {condition} %}}{text}{{%- endif %}}\n{SAID}"


SOURCES: dict[tuple[str, str], str] = {
    ("", "template-renders"): changed(before="{{ raise_exception('this template is broken') }}"),
    ("F17", "final-reasoning"): changed(*said(ANSWER_ALONE, "none")),
    ("F18", "earlier-reasoning"): changed(
        *said(f"{TEXT} if loop.index0 > ns.last else {ANSWER_ALONE}", f"loop.index0 > ns.last and ({FIELDS})"),
        before=LAST_USER,
    ),
    ("F19", "reasoning-field"): changed((FIELDS, "none")),
    ("F20", "block-doubled"): changed(in_front(f"'</think>' in {TEXT}")),
    ("F21", "empty-block"): changed(in_front(f"not reasoning and '<think>' not in {TEXT}")),
    ("F22", "prompt-prefix"): changed((OPENING, OPENING.replace("\\n", "\\n\\n"))),
    ("F24", "half-open-turn"): changed(in_front(f"'<think>' in {TEXT} and '</think>' not in {TEXT}")),
    ("F6", "content-none"): changed(*said(f"message.content if message.content is none else {TEXT}")),
    ("F25", "content-parts"): changed(("{{ part.text }}", "")),
    ("F7", "tool-turn"): changed(*said(f"'' if message.tool_calls else {TEXT}", f"not message.tool_calls and ({FIELDS})")),
    ("F8", "literal-marker"): changed(
        in_front(f"'</think>' in {TEXT}", "{{- " + TEXT + ".split('</think>')[0] + '</think>' }}"),
        (SAID, f"        {{{{- {ANSWER_ALONE} }}}}\n"),
    ),
    ("F28", "thinking-switch"): changed(("enable_thinking", "thinking")),
    ("F45", "prefill"): changed(*said(f"'' if {TEXT}.startswith('<think>') and '</think>' not in {TEXT} else {TEXT}")),
    ("F34", "history"): changed(
        *said(f"{TEXT} | replace({CLOSE}, '</think>') if add_generation_prompt else {TEXT}"),
        (f"{CLOSE} }}}}{{%- endif %}}", f"('</think>' if add_generation_prompt else {CLOSE}) }}}}{{%- endif %}}"),
    ),
    ("F49", "history"): changed(
        *said(f"{ANSWER_ALONE} if add_generation_prompt else {TEXT}", f"not add_generation_prompt and ({FIELDS})")
    ),
    ("F33", "reward-anchor"): changed(
        (OPENING, OPENING + "    {%- if enable_thinking | default(true) %}{{- '<think>\\n' }}{%- endif %}\n")
    ),
}


def _case(mode: str, check: str, source: str) -> Case:
    def make(folder: Path, broken: bool) -> Inputs:
        return Inputs(path=checkpoint(folder, source if broken else CLEAN_TEMPLATE))

    return Case(mode, check, make)


def _differs(folder: Path, broken: bool) -> Inputs:
    served = SOURCES["F33", "reward-anchor"] if broken else CLEAN_TEMPLATE
    return Inputs(path=checkpoint(folder), against=checkpoint(folder, served, name="served"))


CASES: list[Case] = [
    *(_case(mode, check, source) for (mode, check), source in SOURCES.items()),
    Case("F26", "template-differs", _differs),
]
