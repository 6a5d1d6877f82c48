"""What a chat template does, read from what it wrote: never from its source."""

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
    """What one chat template made of every probe; the rest is derived from that.

    A turn's *shape* spells, in order, what came out of it: S a start, E an end, R the reasoning, A the answer, T what
    stands behind a quoted marker. "SRA" has lost its end, "A" its reasoning, "" stands for a render that failed.
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
        """What a probe rendered to, "" if it failed."""
        return self.renders[name].text or "" if name in self.renders else ""

    def error(self, name: str) -> str:
        """Why a probe did not render, "" if it did."""
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
        return tuple(dict.fromkeys(made.error for made in self.renders.values() if made.error))

    @property
    def switches(self) -> dict[str, str]:
        """The switches that change the default prompt, and what each makes of it."""
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
        own = self.opening(switch)
        if not own.strip():
            return "none"
        last = re.search(rf"({any_of(self.format.starts)})\s*\Z", own)
        return "open" if last else "closed"

    def opening(self, switch: str = DEFAULT) -> str:
        """The markers, and the white space around them, that a generation prompt ends with."""
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
        return frozenset(form for form, shown in self._finals.items() if kept(shown))

    @property
    def fields_bare(self) -> frozenset[str]:
        """The forms in which the final turn's reasoning comes out, but not in the family's markers."""
        return frozenset(form for form, shown in self._finals.items() if "R" in shown and not kept(shown))

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
        """The switches that keep the reasoning of earlier turns where it is lost without them."""
        forms = [form for form in ("content", *FIELDS) if form not in self.earlier_kept]
        return tuple(
            switch
            for switch in map(label, HISTORY_SWITCHES)
            if any(kept(self.shape(f"earlier/{form}/{switch}")) for form in forms)
        )

    @property
    def on(self) -> str:
        """The switch under which a training text with reasoning should be rendered: the first that closes nothing."""
        return next((switch for switch in ON if self.state(switch) != "closed"), DEFAULT)

    def called(self, probe: str) -> str:
        """The name of a probe with a tool call: its arguments as a dictionary, or as text where only that renders."""
        return next((name for name in (f"{probe}/dict", f"{probe}/text") if self.text(name)), f"{probe}/dict")


def printed(text: str) -> bool:
    """Whether a list of parts was written as the list that it is, which no template means to do."""
    return _LIST.search(text) is not None


def kept(shown: str) -> bool:
    """Whether a shape has the reasoning between a start and an end, and the answer, if any, behind it."""
    return "SRE" in shown and ("A" not in shown or shown.rindex("A") > shown.index("SRE"))


def shape(text: str, format: ThinkFormat, n: int = 1) -> str:
    """Spell what came out of the n-th assistant turn, as `Readings` describes."""
    _, found, own = text.partition(question(n))
    if not found:
        return ""
    own = own.partition(question(n + 1))[0]
    words = {"R": re.escape(thought(n)), "A": re.escape(answer(n)), "T": re.escape(TAIL)}
    markers = {"S": any_of(format.starts), "E": any_of(format.ends)}
    names = "|".join(f"(?P<{name}>{pattern})" for name, pattern in {**markers, **words}.items())
    shown = "".join(match.lastgroup or "" for match in re.finditer(names, own))
    shared = format.channel is not None or set(format.ends) & set(format.turn_ends)
    if shared:  # the end marker also ends turns: it is one only behind a start
        shown = re.sub(r"(?<![SRT])E", "", shown)
        shown = re.sub(r"(?<=R)E(?!.)", "E", shown)
    return shown


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
    prompt is compared with the training text as ids, too. Takes a few tenths of a second.
    """
    family = format or ThinkFormat.from_name(_PLAIN)
    tokens: dict[str, Any] = {"bos_token": bos, "eos_token": eos}
    made = _render(renderer, source, family, tokens)
    needs_tools = False
    stuck = made["prompt/by default"].error.startswith("took")
    if not made["prompt/by default"].text and not made["final/plain/by default"].text and source and not stuck:
        with_tools = _render(renderer, source, family, {**tokens, "tools": TOOLS})
        if with_tools["final/plain/by default"].text:
            made, needs_tools = with_tools, True
    prefix: dict[str, bool] = {}
    prefix_ids: dict[str, bool] = {}
    for form in ("plain", *FORMS):
        for switch in ON:
            prompt, text = (made[name].text for name in (f"prompt/{switch}", f"final/{form}/{switch}"))
            if not prompt or not text or (form != "plain" and thought(1) not in text):
                continue
            key = f"{form}/{switch}"
            prefix[key] = text.startswith(prompt)
            if tokenizer is not None and prefix[key]:
                ids, whole = (_encode(tokenizer, part) for part in (prompt, text))
                prefix_ids[key] = whole[: len(ids)] == ids
    return Readings(source, family, format is not None, made, bos, eos, needs_tools, prefix, prefix_ids)


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
