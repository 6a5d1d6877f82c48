"""Where markers stand in token ids: the assistant's stretches of an example, and the markers in them however they are split.

A training example is judged as the model meets it, by the compiled automaton; `encode("</think>")` would miss every
marker that shares a token with its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from thinkguard.core.names import Kind, Phase, TokenInfo
from thinkguard.core.program import ThinkProgram
from thinkguard.formats.renders import ANSWER, REASONING
from thinkguard.vocabulary import Vocabulary

IGNORED: Final = -100  # the label of a token that is read, but not learnt
_WORDS: Final = ("alpha", "3")  # two users' words; what their prompts end with alike is the template's
Marker = Literal["start", "end", "turn_end"]
MARKERS: Final[tuple[Marker, ...]] = ("start", "end", "turn_end")


@dataclass(frozen=True, slots=True)
class Example:
    """One row of training data, without its padding."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]  # of `ids`, IGNORED where nothing is learnt


@dataclass(frozen=True, slots=True)
class Place:
    """A marker in an example: its first token, and the one behind its last."""

    marker: Marker
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Turns:
    """How the chat template surrounds an assistant's turn; nothing is known without a template."""

    header: tuple[int, ...] = ()  # what stands in front of every assistant's turn, without white space behind it
    tail: tuple[int, ...] = ()  # what a generation prompt writes behind the header
    turn_end: int | None = None  # the token that the template puts behind a final answer
    opens: bool = False  # the generation prompt opens the thinking
    closes: bool = False  # the generation prompt closes it
    keeps: bool | None = None  # a training render keeps the final turn's block; None: could not be seen


def render(tokenizer: Any, messages: Sequence[Mapping[str, Any]], prompt: bool, kwargs: Mapping[str, Any]) -> str | None:
    """Render a chat the way a trainer does; None without a template, or if it refuses this chat."""
    source = getattr(tokenizer, "chat_template", None)
    if not source:
        return None
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt, **kwargs)
    except Exception:  # a template may raise anything that Python can; then nothing is known of it
        return None
    return text if isinstance(text, str) else None


def encode(tokenizer: Any, vocabulary: Vocabulary, text: str) -> list[int]:
    """Spell a rendered chat, whose special tokens are in the text already, as the tokenizer does."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    if not callable(inner):
        return vocabulary.encode(text)
    return [int(token_id) for token_id in inner(text, add_special_tokens=False)["input_ids"]]


def turns_of(program: ThinkProgram, tokenizer: Any, kwargs: Mapping[str, Any]) -> Turns:
    """Learn header, tail and turn end from what the template writes."""
    vocabulary, eos = program.vocabulary, program.eos_token_ids
    texts = [render(tokenizer, [{"role": "user", "content": word}], True, kwargs) for word in _WORDS]
    if texts[0] is None or texts[1] is None:
        return Turns()
    first, other = (encode(tokenizer, vocabulary, text) for text in texts if text is not None)
    same = 0
    while same < min(len(first), len(other)) and first[-1 - same] == other[-1 - same]:
        same += 1
    begin, raw = program.turn(first)
    state = program.start(first)
    header = [] if raw else first[len(first) - same : begin]
    behind_user = {*eos, *(vocabulary.added.get(end, -1) for end in program.format.ends)}
    while header and (header[0] in behind_user or not vocabulary.token_bytes(header[0]).strip()):
        header = header[1:]
    while header and not vocabulary.token_bytes(header[-1]).strip():
        header = header[:-1]
        begin -= 1
    full = _training_text(program, tokenizer, kwargs)
    behind = encode(tokenizer, vocabulary, full.rpartition(ANSWER)[2])
    return Turns(
        header=tuple(header),
        tail=tuple(first[begin:]) if header else (),
        turn_end=next((token_id for token_id in behind if token_id in eos), None),
        opens=state.phase == Phase.THINKING,
        closes=state.closed_by != 0,
        keeps=REASONING in full if full else None,
    )


def _training_text(program: ThinkProgram, tokenizer: Any, kwargs: Mapping[str, Any]) -> str:
    """Render a final turn with its reasoning inline or, if the template refuses that, in a field; "" if it refuses both."""
    block = program.format.open_text + REASONING + program.format.close_text
    fields = {"reasoning_content": REASONING, "reasoning": REASONING, "thinking": REASONING}
    for turn in ({"content": block + ANSWER}, {"content": ANSWER, **fields}):
        chat = [{"role": "user", "content": _WORDS[0]}, {"role": "assistant", **turn}]
        text = render(tokenizer, chat, False, kwargs)
        if text and ANSWER in text:
            return text
    return ""


def stretches(program: ThinkProgram, turns: Turns, example: Example) -> list[tuple[int, int]]:
    """Return the assistant's turns of an example, each as (first token behind the header, the one behind its turn end).

    Without a known header, a turn is every stretch between two boundaries in which something is learnt.
    """
    info, ids = program.tables.arrays["info"], example.ids
    limits = [i for i, token_id in enumerate(ids) if token_id < len(info) and info[token_id] & TokenInfo.BOUNDARY]
    found: list[tuple[int, int]] = []
    size = len(turns.header)
    if size:
        begins = [i + size for i in range(len(ids) - size + 1) if ids[i : i + size] == turns.header]
    else:
        begins = [0, *(i + 1 for i in limits)]
    for begin in begins:
        end = next((i for i in limits if i >= begin), len(ids))
        eos = next((i + 1 for i in range(begin, len(ids)) if ids[i] in program.eos_token_ids), len(ids))
        end = eos if eos <= end + 1 else end
        if size or any(label != IGNORED for label in example.labels[begin:end]):
            found.append((begin, end))
    return found


def places(program: ThinkProgram, ids: Sequence[int], begin: int, end: int) -> list[Place]:
    """Return the markers of one stretch in order. A token that holds a marker and other text counts as the marker's.

    In a channel format the end marker also ends messages of other kinds, so it only counts behind a start.
    """
    events, vocabulary = program.tables.arrays["events"], program.vocabulary
    lengths = [len(vocabulary.token_bytes(t)) if t < vocabulary.num_tokens else 0 for t in ids[begin:end]]
    found: list[Place] = []
    node = pair = 0
    for i in range(begin, end):
        node, number = program.tables.step(node, ids[i], pair)
        event = events[number]
        pair = int(event["pair"]) if event["starts"] else pair
        kind = int(event["last"])
        opened = program.format.channel is None or any(place.marker == "start" for place in found)
        if kind & Kind.START or (kind & Kind.END and opened):
            first, left = i, int(event["marker_bytes"]) + int(event["tail_bytes"]) - lengths[i - begin]
            while left > 0 and first > begin:
                first -= 1
                left -= lengths[first - begin]
            found.append(Place("start" if kind & Kind.START else "end", first, i + 1))
        if ids[i] in program.eos_token_ids:
            found.append(Place("turn_end", i, i + 1))
    return found
