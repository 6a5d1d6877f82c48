"""Whether encode and decode give a text back unchanged, or lose white space, or put blanks beside the markers."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from thinkguard.doctor.check import LOST, Check
from thinkguard.doctor.tokenizer.checkpoint import Checkpoint
from thinkguard.doctor.tokenizer.files import sections
from thinkguard.doctor.tokenizer.markers import markers_of
from thinkguard.formats import ThinkFormat

_PLAIN: Final = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes of transformers that are tokenizer.json and nothing else."""
_MISTRAL: Final = "MistralCommonBackend"  # vLLM decodes it in a way of its own
_STEPS: Final = ("normalizer", "pre_tokenizer", "decoder")
_MAX_SHOWN: Final = 100  # characters of a text in the evidence


class Try(NamedTuple):
    """One text, and what came back."""

    text: str
    ids: list[int]
    back: str

    @property
    def lost(self) -> bool:
        """Whether the text changed in other ways than by added blanks."""
        return not _only_blanks(self.text, self.back)

    def excerpt(self) -> str:
        """Say how the text went in and came back; pieces that were lost or added stand between ⟦ and ⟧."""
        left, right = LOST
        parts: list[list[str]] = [[], []]
        matcher = difflib.SequenceMatcher(None, self.text, self.back, autojunk=False)
        for kind, a, b, c, d in matcher.get_opcodes():
            for part, piece in zip(parts, (self.text[a:b], self.back[c:d]), strict=True):
                spelled = repr(piece)[1:-1]
                part.append(f"{left}{spelled}{right}" if kind != "equal" and spelled else spelled)
        text, back = ("".join(part)[:_MAX_SHOWN] for part in parts)
        return f"'{text}' comes back as '{back}'"


def white_space(checkpoint: Checkpoint) -> tuple[Check, Check]:
    """Check F15 and F16, round-trip and decode-spacing: they look at the same texts."""
    format, tokenizer = checkpoint.format, checkpoint.tokenizer
    raw = _raw(checkpoint)
    if format is None or (tokenizer is None and raw is None):
        why = "no tokenizer that can be run (see checkpoint)" if format is not None else "no format is known: give --format"
        return Check("round-trip", "could not tell", why), Check("decode-spacing", "could not tell", why)
    live = _through_transformers(tokenizer) if tokenizer is not None else None
    file = _through_file(raw) if raw is not None else None
    way = live or file
    assert way is not None
    tries = [way(text) for text in probes(format)]
    lost = [attempt for attempt in tries if attempt.lost]
    backend = raw if tokenizer is None else getattr(tokenizer, "backend_tokenizer", None)
    if lost and backend is not None and backend.decoder is None:
        return _no_decoder(lost[0])
    if lost:
        return (
            _lost(checkpoint, lost, raw, file),
            Check("decode-spacing", "skipped", "texts do not come back as they went in (see round-trip)"),
        )
    return _alike(checkpoint, tries, file), _spacing(checkpoint, tries)


def probes(format: ThinkFormat) -> list[str]:
    """Return texts with white space of every kind beside the markers; no text begins with white space."""
    start, end = format.starts[0], format.ends[0]
    return [
        f"a b\n{format.open_text}words in it: x = 1{format.close_text}Answer here .",
        f"a b\n{start}words{end}answer",
        f"a b {start}\n  indented\n\n\tf( x ) , y  z\n{end}\n\nAnswer here.",
        f"a\n{start} so {end} it is.",
    ]


def _lost(checkpoint: Checkpoint, lost: list[Try], raw: Any, file: Callable[[str], Try] | None) -> Check:
    """Name the cause: the class, a marker that eats white space, or the file itself."""
    wanted = "decode(encode(text)) is the text, with every blank and newline around the markers"
    evidence = tuple(attempt.excerpt() for attempt in lost[:2])
    if file is not None and checkpoint.tokenizer is not None and not any(file(attempt.text).lost for attempt in lost):
        kind = type(checkpoint.tokenizer).__name__
        live, kinds = _kinds(checkpoint.tokenizer.backend_tokenizer), _kinds(raw)
        declared = checkpoint.folder.value("tokenizer_config.json").get("tokenizer_class")
        found = f"loaded as {kind} ({live}), the file is {kinds}: white space is lost that tokenizer.json itself keeps"
        fix = (
            f'in tokenizer_config.json write "tokenizer_class": "PreTrainedTokenizerFast" in place of {declared!r}, '
            "or load with a transformers that reads this model's class right"
        )
        return Check("round-trip", "problem", found, wanted, fix, evidence)
    eaters = _eaters(checkpoint, raw)
    if eaters:
        found = f"{' and '.join(eaters)} eats the white space beside it"
        names = ", ".join(eaters)
        fix = f"set lstrip and rstrip of {names} to false in tokenizer.json and tokenizer_config.json"
        return Check("round-trip", "problem", found, wanted, fix, evidence)
    found = "encode and decode change the text around the markers"
    fix = "look at the tokenizer's normalizer, pre-tokenizer and decoder: one of them drops what the others cannot restore"
    return Check("round-trip", "problem", found, wanted, fix, evidence)


def _no_decoder(attempt: Try) -> tuple[Check, Check]:
    found = "tokenizer.json has no decoder, so decode() puts a blank between any two tokens"
    wanted = "the decoder that belongs to the pre-tokenizer"
    fix = 'in tokenizer.json write "decoder": {"type": "ByteLevel"}, or what else the pre-tokenizer is, and save it again'
    return (
        Check("round-trip", "skipped", "texts come back with blanks (see decode-spacing)"),
        Check("decode-spacing", "problem", found, wanted, fix, (attempt.excerpt(),)),
    )


def _alike(checkpoint: Checkpoint, tries: list[Try], file: Callable[[str], Try] | None) -> Check:
    """Judge texts that lost nothing: does the class of transformers split them as tokenizer.json says?"""
    if any(attempt.back != attempt.text for attempt in tries):
        return Check("round-trip", "skipped", "nothing is lost, but blanks are put in (see decode-spacing)")
    if file is not None and checkpoint.tokenizer is not None:
        for attempt, ids in zip(tries, [file(attempt.text).ids for attempt in tries], strict=True):
            if ids != attempt.ids:
                kind = type(checkpoint.tokenizer).__name__
                found = f"transformers' {kind} splits otherwise than tokenizer.json itself, which some servers read"
                fix = 'if the file is right, write "tokenizer_class": "PreTrainedTokenizerFast" into tokenizer_config.json'
                numbers = f"{len(attempt.ids)} tokens by {kind}, {len(ids)} by tokenizer.json"
                evidence = (f"{attempt.text!r}"[:_MAX_SHOWN] + f": {numbers}",)
                return Check("round-trip", "note", found, fix=fix, evidence=evidence)
    return Check("round-trip", "ok", f"{len(tries)} texts come back as they went in")


def _spacing(checkpoint: Checkpoint, tries: list[Try]) -> Check:
    """Judge texts that lost nothing: a blank inside a marker hides the marker, and one beside it has to be stripped."""
    format, tokenizer = checkpoint.format, checkpoint.tokenizer
    assert format is not None
    changed = [attempt for attempt in tries if attempt.back != attempt.text]
    markers = (format.starts[0], format.ends[0])
    torn = [attempt for attempt in changed if any(attempt.back.count(m) < attempt.text.count(m) for m in markers)]
    if torn:
        found = "decode(encode(text)) has blanks inside a marker, so that no reader finds it"
        wanted = f"{markers[0]!r} and {markers[1]!r} come back whole"
        return Check("decode-spacing", "problem", found, wanted, evidence=tuple(attempt.excerpt() for attempt in torn[:2]))
    if changed:
        found = "blanks come in beside the markers, in training texts as in answers"
        return Check("decode-spacing", "note", found, evidence=tuple(attempt.excerpt() for attempt in changed[:2]))
    added = not isinstance(spelled := markers_of(checkpoint), str) and any(marker.kind != "text" for marker in spelled)
    if added and getattr(tokenizer, "is_fast", None) is False and type(tokenizer).__name__ != _MISTRAL:
        found = f"{type(tokenizer).__name__} is no fast tokenizer: vLLM puts blanks around its added tokens by default"
        return Check("decode-spacing", "note", found, fix="ask for spaces_between_special_tokens=False")
    if tokenizer is not None:
        tidied = [attempt._replace(back=str(tokenizer.decode(attempt.ids))) for attempt in tries]
        excerpts = tuple(attempt.excerpt() for attempt in tidied if attempt.back != attempt.text)
        if excerpts:
            found = "decode() tidies blanks before punctuation away, in reasoning and answer alike"
            fix = 'in tokenizer_config.json write "clean_up_tokenization_spaces": false'
            return Check("decode-spacing", "note", found, fix=fix, evidence=excerpts[:1])
    return Check("decode-spacing", "ok", "no blanks come in beside or inside the markers")


def _through_transformers(tokenizer: Any) -> Callable[[str], Try]:
    def attempt(text: str) -> Try:
        ids = list(tokenizer.encode(text, add_special_tokens=False))
        return Try(text, ids, str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)))

    return attempt


def _through_file(raw: Any) -> Callable[[str], Try]:
    def attempt(text: str) -> Try:
        ids = list(raw.encode(text, add_special_tokens=False).ids)
        return Try(text, ids, str(raw.decode(ids, skip_special_tokens=False)))

    return attempt


def _raw(checkpoint: Checkpoint) -> Any | None:
    """Load tokenizer.json on its own; None if the tokenizer has the file's own steps anyway: loading is slow."""
    if not checkpoint.folder.has("tokenizer.json") or type(checkpoint.tokenizer).__name__ in _PLAIN:
        return None
    backend = getattr(checkpoint.tokenizer, "backend_tokenizer", None)
    if backend is not None:
        file = sections(checkpoint.path / "tokenizer.json", *_STEPS)
        if all(name in file and _same_step(file[name], getattr(backend, name)) for name in _STEPS):
            return None
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_file(str(checkpoint.path / "tokenizer.json"))
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException:  # broken, or of a newer version: the library panics; the check "checkpoint" says so
        return None


def _same_step(written: Any, step: Any) -> bool:
    """Whether a step does to texts what tokenizer.json says; `trim_offsets` does not matter."""
    state = None if step is None else json.loads(step.__getstate__())
    return bool(_without_offsets(state) == _without_offsets(written))


def _without_offsets(state: Any) -> Any:
    if isinstance(state, dict):
        return {name: _without_offsets(value) for name, value in state.items() if name != "trim_offsets"}
    return [_without_offsets(value) for value in state] if isinstance(state, list) else state


def _kinds(backend: Any) -> str:
    """Name the step that decides about white space: the pre-tokenizer, or without one the normalizer."""
    for step in (backend.pre_tokenizer, backend.normalizer):
        if step is not None:
            return " + ".join(_types(json.loads(step.__getstate__())))
    return "neither pre-tokenizer nor normalizer"


def _types(state: dict[str, Any]) -> Iterator[str]:
    inner = state.get("pretokenizers") or state.get("normalizers")
    for step in inner or ():
        yield from _types(step)
    if not inner:
        yield str(state["type"])


def _eaters(checkpoint: Checkpoint, raw: Any) -> list[str]:
    """Name the markers' added tokens that strip the white space beside them."""
    format = checkpoint.format
    assert format is not None
    backend = raw if checkpoint.tokenizer is None else getattr(checkpoint.tokenizer, "backend_tokenizer", None)
    if backend is None:
        return []
    texts = format.starts[0] + format.ends[0]
    tokens = backend.get_added_tokens_decoder().values()
    return [repr(token.content) for token in tokens if token.content in texts and (token.lstrip or token.rstrip)]


def _only_blanks(text: str, back: str) -> bool:
    """Whether `back` is `text` with nothing but blanks added."""
    at = 0
    for character in back:
        if at < len(text) and character == text[at]:
            at += 1
        elif character != " ":
            return False
    return at == len(text)
