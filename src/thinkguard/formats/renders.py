"""Chat templates, rendered the way the hosts render them, with sentinels in place of what people say.

A template is foreign code: it runs in jinja2's sandbox, and one that fails is an observation, not an exception.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

USER: Final = "Qu3ry"
SYSTEM: Final = "Syst3m"
RESULT: Final = "R3sult"
REASONING: Final = "Reas0n"
ANSWER: Final = "Answ3r"

SWITCHES: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"enable_thinking": True},
    {"thinking": True},
    {"thinking_mode": "enabled"},
    {"reasoning_effort": "high"},
    {"enable_thinking": False},
    {"thinking": False},
    {"thinking_mode": "disabled"},
    {"reasoning_effort": "none"},
    {"reasoning_effort": "no_think"},
)
"""What is passed to a template to turn thinking on or off; `{}` is its default."""

Switch = dict[str, Any]
TOGGLES: Final[tuple[tuple[Switch, Switch], ...]] = (
    ({"enable_thinking": True}, {"enable_thinking": False}),
    ({"thinking": True}, {"thinking": False}),
    ({"reasoning": True}, {"reasoning": False}),
    ({"thinking_mode": "enabled"}, {"thinking_mode": "disabled"}),
    ({"thinking_mode": "on"}, {"thinking_mode": "off"}),
    ({"reasoning_effort": "high"}, {"reasoning_effort": "none"}),
    ({"reasoning_effort": "high"}, {"reasoning_effort": "no_think"}),
    ({"thinking_budget": -1}, {"thinking_budget": 0}),
)
"""Switches that turn thinking on, each with the one that turns it off."""

ECHO: Final = "Ech0"
"""Passed as a switch's value that no template knows: one that writes it down repeats whatever it is told."""


@dataclass(frozen=True, slots=True)
class Renders:
    """What one template wrote, always behind the last user's words."""

    source: str
    prompts: Mapping[str, str] = field(default_factory=dict)  # switch -> generation prompt, such as "thinking=True"
    turn: str = ""  # a final assistant turn that holds REASONING (if the template keeps it) and ANSWER
    earlier: str = ""  # the same turn with another user turn behind it, up to that user's words
    call: str = ""  # an assistant turn with a tool call
    errors: tuple[str, ...] = ()  # each distinct failure once
    chats: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # situation -> switch -> the whole prompt


def render(source: str, *, bos_token: str = "", eos_token: str = "") -> Renders:
    """Render a template with every switch and with an assistant's turn; failures are in `errors`."""
    try:
        template = compile_template(source)
    except Exception as error:  # jinja2's own, or the parser's: nothing that can be listed
        return Renders(source, errors=(failure(error),))
    errors: list[str] = []

    def attempt(messages: Sequence[Mapping[str, Any]], prompt: bool, switch: Mapping[str, Any]) -> str:
        context = {"tools": None, "documents": None, "bos_token": bos_token, "eos_token": eos_token, **switch}
        try:
            return str(template.render(messages=messages, add_generation_prompt=prompt, **context))
        except Exception as error:  # a template may raise anything that Python can
            if failure(error) not in errors:
                errors.append(failure(error))
            return ""

    user = {"role": "user", "content": USER}
    prompts: dict[str, str] = {}
    for switch in SWITCHES:
        text = attempt([user], True, switch)
        if USER in text:
            prompts[label_of(switch)] = text.rpartition(USER)[2]
    fields = {"reasoning_content": REASONING, "reasoning": REASONING, "thinking": REASONING}
    parts = [{"type": "thinking", "thinking": REASONING}, {"type": "text", "text": ANSWER}]
    shapes: list[dict[str, Any]] = [
        {"role": "assistant", "content": ANSWER, **fields},
        {"role": "assistant", "content": parts},
    ]
    turn = earlier = ""
    for shape in shapes:
        for switch in SWITCHES[:3]:
            text = attempt([user, shape], False, switch)
            if repr(parts) in text or json.dumps(parts) in text:
                continue  # a template that expects a string wrote the list as it stands
            if ANSWER in text and (not turn or (REASONING in text and REASONING not in turn)):
                turn = text.partition(USER)[2]
                text = attempt([user, shape, user], False, switch)
                earlier = text.partition(USER)[2].partition(USER)[0]
        if REASONING in turn:
            break
    call = ""
    asked: list[Mapping[str, Any]] = []
    for arguments in ({"key": "value"}, '{"key": "value"}'):
        function = {"name": "tool", "arguments": arguments}
        calls = [{"id": "call00000", "type": "function", "function": function}]
        if not call:
            asked = [user, {"role": "assistant", "content": "", "tool_calls": calls}]
            call = attempt(asked, False, {})
    seen = tuple(errors)  # what follows passes values that no template need know: its failures say nothing of this one
    result = {"role": "tool", "tool_call_id": "call00000", "name": "tool", "content": RESULT}
    situations: dict[str, tuple[list[Mapping[str, Any]], str]] = {
        "first turn": ([user], USER),
        "system message": ([{"role": "system", "content": SYSTEM}, user], USER),
        "tool result": ([*asked, result], RESULT),
    }
    named = [toggle for toggle in TOGGLES if all(name in source for name in toggle[0])]  # others have no effect
    switches = [{}, *(switch for toggle in named for switch in toggle)]
    switches += [{name: ECHO} for on, _ in named for name, value in on.items() if isinstance(value, str)]
    chats: dict[str, dict[str, str]] = {}
    for situation, (messages, content) in situations.items():
        written = {label_of(switch): attempt(messages, True, switch) for switch in switches}
        chats[situation] = {label: text for label, text in written.items() if content in text}
    return Renders(source, prompts, turn, earlier, call.rpartition(USER)[2], seen, chats=chats)


def label_of(switch: Mapping[str, Any]) -> str:
    """Spell a switch as `Renders.prompts` and `Renders.chats` do."""
    return ", ".join(f"{name}={value}" for name, value in switch.items()) or "by default"


def failure(error: BaseException) -> str:
    """Spell what a template raised, on one line; an import error is spelled for people."""
    if isinstance(error, ImportError):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())[:400]


def compile_template(source: str) -> Any:
    """Compile a chat template in an environment like transformers'; raises what jinja2 raises, and ImportError."""
    try:
        import jinja2
        import jinja2.ext
        import jinja2.nodes
        import jinja2.sandbox
    except ImportError as error:
        raise ImportError("jinja2 is not installed, so the template was read but not rendered") from error

    class Generation(jinja2.ext.Extension):  # type: ignore[misc]
        """`{% generation %}` marks what an assistant wrote; the text in it is kept as it is."""

        tags = {"generation"}  # noqa: RUF012  # an instance variable for jinja2

        def __init__(self, environment: Any) -> None:
            super().__init__(environment)
            environment.extend(written=[], generated=[])

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

        def _same(self, caller: Any) -> str:
            text = str(caller())
            start = sum(map(len, self.environment.written))
            self.environment.generated.append((start, start + len(text)))
            return text

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    extensions: list[Any] = [Generation, "jinja2.ext.loopcontrols"]
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=extensions
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
    return environment.from_string(source)


def generate(template: Any, context: Mapping[str, Any], max_chars: int) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Render a compiled template: the text, and the spans of its `{% generation %}` blocks as transformers counts them.

    Inside a macro or a captured text transformers counts wrongly, and so does this. ValueError above `max_chars`.
    """
    environment = template.environment
    environment.written[:], environment.generated[:] = [], []
    length = 0
    for piece in template.generate(**context):
        environment.written.append(piece)
        length += len(piece)
        if length > max_chars:
            raise ValueError(f"the template wrote more than {max_chars} characters")
    return "".join(environment.written), tuple(environment.generated)
