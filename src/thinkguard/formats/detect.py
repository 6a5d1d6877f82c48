"""Which format a tokenizer and its chat template agree on.

Three kinds of evidence, the stronger deciding: what the template *writes*, what its source mentions, and which markers
the vocabulary has as tokens of their own. Families that share their markers differ in white space and headers, and
those are taken from what the template writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from thinkguard.errors import FormatError
from thinkguard.formats.fit import Found, pairs_of, read, renders_of, respelled, spelled, surrounded
from thinkguard.formats.format import ThinkFormat, prompt_of
from thinkguard.formats.renders import Renders
from thinkguard.formats.silence import with_silence
from thinkguard.vocabulary import Vocabulary

_CHATML: Final = "<|im_start|>assistant\n"
_RENDERED, _MENTIONED, _TOKENS = 3, 2, 1
_HOW: Final = {
    _RENDERED: "the chat template writes them",
    _MENTIONED: "the chat template's source mentions them",
    _TOKENS: "they are tokens of their own, and no chat template says otherwise",
}


def detect(
    vocabulary: Vocabulary, chat_template: str | None = None, *, renders: Renders | None = None
) -> ThinkFormat:
    """Return the format; FormatError if there are no markers, or several pairs that nothing decides between.

    With `renders` nothing is rendered here: they are what the template wrote elsewhere.
    """
    renders = renders_of(vocabulary, chat_template) if renders is None else renders
    families = [ThinkFormat.from_name(name) for name in ThinkFormat.names()]
    pairs: dict[tuple[str, ...], list[ThinkFormat]] = {}
    for family in families:
        if all(piece in vocabulary.added for piece in family.controls):
            pairs.setdefault(family.starts + family.ends, []).append(family)
    ranked = {key: _rank(group[0], vocabulary.added, renders) for key, group in pairs.items()}
    best = max(ranked.values(), default=0)
    if not best:
        raise _no_markers(renders)
    chosen = _narrow([key for key in pairs if ranked[key] == best], pairs, renders)
    if len(chosen) > 1:
        raise _ambiguous([pairs[key] for key in chosen], best)
    group = pairs[chosen[0]]
    found = read(group[0], renders)
    family, agreed, same = _most_specific(group, found, renders)
    evidence = [f"markers {found.start or family.starts[0]!r}, {found.end or family.ends[0]!r}: {_HOW[best]}", *agreed]
    if same:
        evidence.append(f"written alike: {', '.join(same)}")
    if renders.errors and not renders.prompts:
        evidence.append(f"the chat template could not be rendered: {renders.errors[0]}")
    fitted = surrounded(spelled(family, found, vocabulary.added), found.header, vocabulary, renders)
    return with_silence(replace(fitted, evidence=tuple(evidence)), renders, vocabulary.added)


def _rank(family: ThinkFormat, added: Mapping[str, int], renders: Renders) -> int:
    """Say how strong the evidence for a pair of markers is, 0 for none."""
    ends = () if family.channel else family.ends  # a channel family's end marker is other families' turn end
    written = (*renders.prompts.values(), renders.turn)
    if any(marker in text for marker in family.starts + ends for text in written):
        return _RENDERED
    if any(marker in renders.source for marker in family.starts + ends):
        return _MENTIONED
    whole = any(start in added and end in added for start, end in pairs_of(family))
    opening = {piece for piece in family.controls if piece in family.starts[0]}
    closing = {piece for piece in family.controls if piece in family.ends[0]}
    return _TOKENS if whole or (opening and closing and opening != closing) else 0


def _narrow(
    keys: list[tuple[str, ...]], pairs: Mapping[tuple[str, ...], list[ThinkFormat]], renders: Renders
) -> list[tuple[str, ...]]:
    """Drop pairs that only add spellings to another one, then those whose template begins a turn otherwise."""
    keys = [key for key in keys if not any(set(other) < set(key) for other in keys)]
    if len(keys) > 1:
        prompts = tuple(renders.prompts.values())
        own = [key for key in keys if any(_begins(prompts, family.name) for family in pairs[key])]
        keys = own or keys
    return keys


def _begins(prompts: Iterable[str], name: str) -> bool:
    header, _ = prompt_of(name)
    return header is not None and any(header in prompt for prompt in prompts)


def _most_specific(
    group: Sequence[ThinkFormat], found: Found, renders: Renders
) -> tuple[ThinkFormat, list[str], list[str]]:
    """Return the family that agrees most, on what, and the names of those that agree as much.

    The beginning of the turn has to agree. Without such a family it is the group's first, "think" for plain tags.
    """
    scores: list[tuple[int, ThinkFormat, list[str]]] = []
    for family in group:
        header, opens = prompt_of(family.name)
        if found.header is not None and (header is None or not found.header.rstrip().endswith(header.rstrip())):
            continue
        alternatives = dict(pairs_of(family))
        own = respelled(family, found.start if found.start in alternatives else family.starts[0], alternatives)
        shown = {field: getattr(found, field) for field in ("open_text", "close_text", "off_text")}
        shown = {field: text for field, text in shown.items() if text is not None}
        agreed = [f"{field} {text!r}" for field, text in shown.items() if text == getattr(own, field)]
        missed = {field for field, text in shown.items() if getattr(own, field) not in (None, text)}
        if header == _CHATML and missed & {"open_text", "close_text"}:
            continue  # a header that dozens of families share makes no family of other white space
        if found.header is not None:
            agreed.append(f"the assistant's turn begins with {header!r}")
        score = len(agreed) - len(missed) - ("off_text" in missed)
        score -= family.off_text is not None and "off_text" not in shown
        score += 2 * any(opener in renders.call for opener in family.implicit_ends)
        score += found.header is not None and header is not None and found.header.endswith(header)
        score += opens is not None and opens == found.opens
        scores.append((score, family, agreed))
    best = max((score for score, _, _ in scores), default=0)
    top = [(family, agreed) for score, family, agreed in scores if score == best and agreed]
    if not top:
        return group[0], [], []
    return top[0][0], top[0][1], [family.name for family, _ in top[1:]]


def _no_markers(renders: Renders) -> FormatError:
    common = ", ".join(repr(name) for name in ("gpt_oss_harmony", "mistral_think_tokens", "gemma4", "granite_3_2_text"))
    why = "its chat template writes none and no marker is a token of its own" if renders.source else "no chat template"
    if renders.errors and not renders.prompts:
        why = f"its chat template could not be rendered ({renders.errors[0]}) and no marker is a token of its own"
    return FormatError(
        f"no reasoning markers found in this tokenizer: {why}. If the model reasons all the same, name its format: "
        f'format="think" is plain <think>...</think>; others are {common}; `thinkguard formats` lists all of them'
    )


def _ambiguous(groups: Sequence[Sequence[ThinkFormat]], rank: int) -> FormatError:
    listed = "; ".join(f"{g[0].starts[0]!r}...{g[0].ends[0]!r} (format={g[0].name!r})" for g in groups)
    return FormatError(
        f"several pairs of reasoning markers are possible, {_HOW[rank]}: {listed}. Name the one that the model was "
        f"trained on, such as format={groups[0][0].name!r}"
    )
