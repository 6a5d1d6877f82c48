"""What a chat template does, read from the texts that it writes and never from its source."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from thinkguard.doctor.template.probes import (
    FIELDS,
    FORMS,
    HISTORY_SWITCHES,
    ON,
    PARTS,
    TAIL,
    TOOLS,
    answer,
    label,
    probes,
    question,
    thought,
)
from thinkguard.doctor.template.sandbox import Rendered, Renderer
from thinkguard.formats import ThinkFormat
from thinkguard.formats.fit import any_of
from thinkguard.formats.renders import SWITCHES

PromptState = Literal["open", "closed", "none"]
DEFAULT: Final = "by default"
_PLAIN: Final = "think"
_LIST: Final = re.compile(r"""['"]type['"]\s*:\s*['"]t(?:ext|hinking)['"]""")
"""A list of parts as Python or JSON prints it."""


@dataclass(frozen=True, slots=True)
class Readings:
    """What one chat template wrote for every probe, and what follows from that.

    A turn's *shape* spells, in order, what came out of it: S a start, E an end, R the reasoning, A the answer, T the tail
    behind a quoted marker. "SRA" has lost its end, "A" its reasoning; a render that failed has the shape "".
    """

    source: str
    format: ThinkFormat  # plain <think>...</think> where the family is not known
    known: bool  # whether the family is known
    renders: Mapping[str, Rendered] = field(repr=False)  # by the names of `probes.probes`
    bos: str = ""
    eos: str = ""
    needs_tools: bool = False  # nothing renders without tools
    prefix: Mapping[str, bool] = field(default_factory=dict)  # "form/switch" -> prompt is a prefix of the text
    prefix_ids: Mapping[str, bool] = field(default_factory=dict)  # the same of the ids; empty without a tokenizer

    def text(self, name: str) -> str:
        """Return what a probe rendered to, "" if it failed."""
        return self.renders[name].text or "" if name in self.renders else ""

    def error(self, name: str) -> str:
        """Return why a probe did not render, "" if it did."""
        return self.renders[name].error if name in self.renders else "not rendered"

    @property
    def tools(self) -> dict[str, Any]:
        """The tools that every probe was given, for a template that needs some."""
        return {"tools": TOOLS} if self.needs_tools else {}

    @property
    def works(self) -> bool:
        """Whether an ordinary conversation renders, as a training text and as a prompt."""
        return answer(1) in self.text("final/plain/by default") and question(1) in self.text("prompt/by default")

    @property
    def errors(self) -> tuple[str, ...]:
        """Each distinct failure once."""
        return tuple(dict.fromkeys(render.error for render in self.renders.values() if render.error))

    @property
    def switches(self) -> dict[str, str]:
        """The switches that change the default prompt, each with the prompt's state under it."""
        default = self.text("prompt/by default")
        found: dict[str, str] = {}
        for switch in map(label, SWITCHES[1:]):
            prompt = self.text(f"prompt/{switch}")
            if prompt and prompt != default:
                found[switch] = self.state(switch)
        return found

    @property
    def prompt_state(self) -> PromptState:
        """Whether the generation prompt, by default, opens the reasoning, closes it, or does neither."""
        return self.state(DEFAULT)

    def state(self, switch: str) -> PromptState:
        """Whether the generation prompt with a switch opens the reasoning, closes it, or does neither."""
        markers = self.opening(switch)
        if not markers.strip():
            return "none"
        last = re.search(rf"({any_of(self.format.starts)})\s*\Z", markers)
        return "open" if last else "closed"

    def opening(self, switch: str = DEFAULT) -> str:
        """Return the markers, with the white space around them, that a generation prompt ends with; "" for none."""
        names = map(any_of, (self.format.starts, self.format.ends, self.format.answer_starts))
        markers = "|".join(names)
        match = re.search(rf"(?:{markers})(?:\s|{markers})*\Z", self.text(f"prompt/{switch}"))
        return match.group() if match else ""

    def shape(self, name: str, n: int = 1) -> str:
        """Spell what came out of the n-th assistant turn of a probe."""
        return shape(self.text(name), self.format, n)

    @property
    def fields_kept(self) -> frozenset[str]:
        """The forms (`probes.FORMS`) in which the final turn's reasoning comes out in the family's markers."""
        return frozenset(form for form, shape in self._finals.items() if kept(shape))

    @property
    def fields_bare(self) -> frozenset[str]:
        """The forms in which the final turn's reasoning comes out, but not in the family's markers."""
        return frozenset(form for form, shape in self._finals.items() if "R" in shape and not kept(shape))

    @property
    def _finals(self) -> dict[str, str]:
        probes = {form: f"final/{form}/{DEFAULT}" for form in FORMS}
        return {form: self.shape(probe) for form, probe in probes.items() if not printed(self.text(probe))}

    @property
    def earlier_kept(self) -> frozenset[str]:
        """The forms in which the reasoning of a turn with another behind it comes out in the family's markers."""
        probes = {form: f"earlier/{form}" for form in FORMS}
        return frozenset(form for form, probe in probes.items() if kept(self.shape(probe)) and not printed(self.text(probe)))

    @property
    def history_switches(self) -> tuple[str, ...]:
        """The switches that keep reasoning of earlier turns that is lost without them."""
        forms = [form for form in ("content", *FIELDS) if form not in self.earlier_kept]
        return tuple(
            switch
            for switch in map(label, HISTORY_SWITCHES)
            if any(kept(self.shape(f"earlier/{form}/{switch}")) for form in forms)
        )

    @property
    def on(self) -> str:
        """The switch to render a training text with reasoning under: the first whose prompt does not close the block."""
        return next((switch for switch in ON if self.state(switch) != "closed"), DEFAULT)

    def called(self, probe: str) -> str:
        """Return the name of a probe with a tool call: with arguments as a dictionary, or as text if only that renders."""
        return next((name for name in (f"{probe}/dict", f"{probe}/text") if self.text(name)), f"{probe}/dict")


def printed(text: str) -> bool:
    """Whether a content of parts was printed as a Python or JSON list, which no template means to do."""
    return _LIST.search(text) is not None


def kept(shape: str) -> bool:
    """Whether a shape has the reasoning between a start and an end, and the answer, if any, behind it."""
    return "SRE" in shape and ("A" not in shape or shape.rindex("A") > shape.index("SRE"))


def shape(text: str, format: ThinkFormat, n: int = 1) -> str:
    """Spell what came out of the n-th assistant turn, as `Readings` describes."""
    _, found, rest = text.partition(question(n))
    if not found:
        return ""
    rest = rest.partition(question(n + 1))[0]
    words = {"R": re.escape(thought(n)), "A": re.escape(answer(n)), "T": re.escape(TAIL)}
    markers = {"S": any_of(format.starts), "E": any_of(format.ends)}
    names = "|".join(f"(?P<{name}>{pattern})" for name, pattern in {**markers, **words}.items())
    letters = "".join(match.lastgroup or "" for match in re.finditer(names, rest))
    shared = format.channel is not None or set(format.ends) & set(format.turn_ends)
    if shared:  # the end marker also ends turns: it counts only behind a start
        letters = re.sub(r"(?<![SRT])E", "", letters)
        letters = re.sub(r"(?<=R)E(?!.)", "E", letters)
    return letters


def read_template(
    renderer: Renderer,
    source: str,
    format: ThinkFormat | None,
    *,
    bos: str = "",
    eos: str = "",
    tokenizer: Any = None,
) -> Readings:
    """Render every probe and read what came out. Without a format the markers are `<think>...</think>`.

    A template that renders nothing without tools is given one. With a tokenizer (`encode(text, add_special_tokens=)`) the
    prompt and the training text are compared as ids, too. Takes a few tenths of a second.
    """
    family = format or ThinkFormat.from_name(_PLAIN)
    tokens: dict[str, Any] = {"bos_token": bos, "eos_token": eos}
    renders = _render(renderer, source, family, tokens)
    needs_tools = False
    stuck = renders["prompt/by default"].error.startswith("took")
    if not renders["prompt/by default"].text and not renders["final/plain/by default"].text and source and not stuck:
        with_tools = _render(renderer, source, family, {**tokens, "tools": TOOLS})
        if with_tools["final/plain/by default"].text:
            renders, needs_tools = with_tools, True
    prefix: dict[str, bool] = {}
    prefix_ids: dict[str, bool] = {}
    for form in ("plain", *FORMS):
        for switch in ON:
            prompt, text = (renders[name].text for name in (f"prompt/{switch}", f"final/{form}/{switch}"))
            if not prompt or not text or (form != "plain" and thought(1) not in text):
                continue
            key = f"{form}/{switch}"
            prefix[key] = text.startswith(prompt)
            if tokenizer is not None and prefix[key]:
                ids, whole = (_encode(tokenizer, part) for part in (prompt, text))
                prefix_ids[key] = whole[: len(ids)] == ids
    return Readings(source, family, format is not None, renders, bos, eos, needs_tools, prefix, prefix_ids)


def _render(renderer: Renderer, source: str, format: ThinkFormat, tokens: Mapping[str, Any]) -> dict[str, Rendered]:
    jobs = probes(format, tokens)
    if not source:
        return dict.fromkeys(jobs, Rendered(None, "no chat template"))
    return dict(zip(jobs, renderer.render(source, list(jobs.values())), strict=True))


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def spelled(forms: Iterable[str]) -> str:
    """Name forms in the order of `probes.FORMS`, for people."""
    names = {"content": "inline", "text part": "inline in a part", PARTS[1]: "thinking part with a list"}
    return ", ".join(names.get(form, form) for form in FORMS if form in frozenset(forms))
