"""A checkpoint or tokenizer folder as the checks see it: loaded as its users load it, but nothing runs or is fetched."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from thinkguard.doctor.check import Check
from thinkguard.doctor.template.probes import probes
from thinkguard.doctor.tokenizer.files import TOKENIZER_FILES, Folder, read_folder, read_text
from thinkguard.errors import FormatError, InputError, TokenizerError
from thinkguard.formats import ThinkFormat
from thinkguard.formats.fit import bos_and_eos, fit
from thinkguard.formats.renders import Renders
from thinkguard.formats.resolve import detect_format
from thinkguard.vocabulary import Vocabulary

if TYPE_CHECKING:
    from thinkguard.doctor.template.sandbox import Renderer

ASSUMED: Final = "think"
"""The format of a folder that shows none: a model about to be fine-tuned on plain `<think>...</think>`."""
_MAX_ID: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One folder: its tokenizer, its chat template, and what both say about thinking."""

    path: Path
    tokenizer: Any | None  # transformers' fast tokenizer
    vocabulary: Vocabulary | None
    template: str | None
    template_name: str  # "chat_template.jinja", "tokenizer_config.json", "--template FILE"
    bos: str
    eos: str
    config: Mapping[str, Any]  # config.json, or empty
    renders: Renders | None  # what the template writes; None without one
    format: ThinkFormat | None
    folder: Folder
    assumed: bool = False  # nothing shows a format, so it is ASSUMED
    copies: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # default template -> probe -> what it writes


def load_checkpoint(
    path: Path, *, template: Path | None = None, format: str | None = None, renderer: Renderer
) -> tuple[Checkpoint, tuple[Check, ...]]:
    """Load a folder's tokenizer and chat template, and find its thinking format.

    InputError if the path holds nothing of a checkpoint or the template file cannot be read, FormatError if `format` is
    unknown, ImportError without transformers. Whatever else is wrong is in the checks.
    """
    family = None if format is None else ThinkFormat.from_name(format)
    folder = read_folder(path)
    problems: list[str] = list(folder.errors)
    remarks: list[str] = []
    tokenizer, failure, custom = _load_tokenizer(folder)
    if failure:
        (remarks if custom else problems).append(failure)
    vocabulary, failure = _vocabulary(folder, tokenizer)
    if failure:
        (remarks if tokenizer is not None else problems).append(failure)
    source, name = _template(folder, template)
    bos, eos = ("", "") if vocabulary is None else bos_and_eos(vocabulary)
    renders = None if source is None else renderer.renders(source, bos, eos)
    found, assumed, remark = _format(family, _declared(folder) if vocabulary is None else vocabulary, renders)
    checkpoint = Checkpoint(
        path=path,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        template=source,
        template_name=name,
        bos=bos,
        eos=eos,
        config=folder.value("config.json"),
        renders=renders,
        format=found,
        folder=folder,
        assumed=assumed,
        copies=_copy_texts(renderer, folder, found, bos, eos),
    )
    return checkpoint, (_check(checkpoint, problems, [*remarks, *([remark] if remark else [])]),)


def spare_torch() -> None:
    """Let transformers load tokenizers without torch in this process, in a third of the time.

    Call it before transformers is imported, and only in a process that needs no torch: `import torch` then fails there.
    """
    if "torch" not in sys.modules and "transformers" not in sys.modules:
        sys.modules["torch"] = None  # type: ignore[assignment]
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def load_tokenizer(path: Path) -> Any:
    """Load a folder's tokenizer the way AutoTokenizer does, without running its code or fetching anything."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ImportError("loading a tokenizer needs transformers: pip install 'thinkguard[doctor]'") from error
    try:
        return AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # the tokenizers library panics with a BaseException of its own
        text = " ".join(str(error).split())[:300]
        raise TokenizerError(f"AutoTokenizer cannot load it: {type(error).__name__}: {text}") from error


def _load_tokenizer(folder: Folder) -> tuple[Any | None, str, bool]:
    """Return (tokenizer, why there is none, whether the model's design is the reason)."""
    if not folder.has(*TOKENIZER_FILES):
        return None, "", False
    if folder.has("tekken.json") and not folder.has("tokenizer.json"):
        return None, "", False  # read as it is: transformers would need mistral_common for it
    try:
        tokenizer = load_tokenizer(folder.path)
    except TokenizerError as error:
        own_code = "auto_map" in folder.value("tokenizer_config.json") or "auto_map" in folder.value("config.json")
        why = "; the model brings code of its own for it, which the doctor does not run" if own_code else ""
        return None, f"{error}{why}", own_code or not folder.has("tokenizer.json")
    return tokenizer, "", False


def _vocabulary(folder: Folder, tokenizer: Any | None) -> tuple[Vocabulary | None, str]:
    """Return (vocabulary, the first error or ""): read from the tokenizer or else the folder, or else its tokenizer.json."""
    if tokenizer is None and not folder.has("tokenizer.json", "tekken.json"):
        return None, ""
    failure = ""
    for source in (folder.path if tokenizer is None else tokenizer, folder.path / "tokenizer.json"):
        try:
            if source == folder.path / "tokenizer.json":
                import tokenizers

                source = tokenizers.Tokenizer.from_file(str(source))  # alone, without the configuration beside it
            return Vocabulary.from_tokenizer(source), failure
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # what a malformed file makes a library raise cannot be listed
            failure = failure or (str(error) if isinstance(error, TokenizerError) else f"{type(error).__name__}: {error}")
    return None, failure


def _declared(folder: Folder) -> Vocabulary:
    """Return a vocabulary of the added tokens that tokenizer_config.json lists: enough to tell the family."""
    entries = folder.value("tokenizer_config.json").get("added_tokens_decoder")
    found: dict[str, int] = {}
    for token_id, entry in entries.items() if isinstance(entries, dict) else ():
        content = entry.get("content") if isinstance(entry, dict) else None
        if isinstance(content, str) and content and token_id.isdecimal() and int(token_id) < _MAX_ID:
            found[content] = int(token_id)
    return Vocabulary.from_parts([], added=found)


def _template(folder: Folder, path: Path | None) -> tuple[str | None, str]:
    """Return (source, name) of the template: that of --template, or else the copy that transformers takes."""
    if path is not None:
        errors: list[str] = []
        if not path.is_file():
            raise InputError(f"--template {path}: no such file; give a file with a Jinja chat template")
        text = read_text(path, errors)
        if text is None:
            raise InputError(f"--template {errors[0]}")
        return text, f"--template {path}"
    for name in ("default", None):
        for copy in folder.copies:
            if copy.name == name or name is None:
                label = copy.place if copy.name == "default" else f"{copy.place} ({copy.name!r})"
                return copy.source, label
    return None, ""


def _format(
    family: ThinkFormat | None, vocabulary: Vocabulary, renders: Renders | None
) -> tuple[ThinkFormat | None, bool, str]:
    """Return (format, whether it is assumed, what there is to say about that)."""
    renders = Renders("") if renders is None else renders
    if family is not None:
        return fit(family, vocabulary, renders=renders), False, ""
    try:
        return detect_format(vocabulary, renders.source, renders=renders), False, ""
    except FormatError as error:
        if "several pairs" in str(error):
            return None, False, str(error)
        remark = "no reasoning markers in template or vocabulary: judged as plain <think>...</think>; --format overrides"
        return fit(ThinkFormat.from_name(ASSUMED), vocabulary, renders=renders), True, remark


def _copy_texts(
    renderer: Renderer, folder: Folder, format: ThinkFormat | None, bos: str, eos: str
) -> dict[str, dict[str, str]]:
    """Render the folder's default templates if they differ, for `template_copies`: source -> probe -> text."""
    sources = dict.fromkeys(copy.source for copy in folder.copies if copy.name == "default")
    if len(sources) < 2:
        return {}
    jobs = probes(format or ThinkFormat.from_name(ASSUMED), {"bos_token": bos, "eos_token": eos})
    texts: dict[str, dict[str, str]] = {}
    for source in sources:
        renders = renderer.render(source, list(jobs.values()))
        texts[source] = {name: render.text or "" for name, render in zip(jobs, renders, strict=True)}
    return texts


def _check(checkpoint: Checkpoint, problems: list[str], remarks: list[str]) -> Check:
    folder = checkpoint.folder
    kind = type(checkpoint.tokenizer).__name__ if checkpoint.tokenizer is not None else ""
    size = f"{checkpoint.vocabulary.num_tokens} tokens" if checkpoint.vocabulary is not None else "vocabulary not read"
    parts = [f"tokenizer {kind or 'read from its file'}, {size}" if folder.has(*TOKENIZER_FILES) else "no tokenizer"]
    parts.append(f"chat template in {checkpoint.template_name}" if checkpoint.template is not None else "no chat template")
    weights = any(name.endswith(".safetensors") for name in folder.names)
    parts.append("weights" if weights else "no safetensors weights")
    if folder.has("adapter_config.json"):
        base = folder.value("adapter_config.json").get("base_model_name_or_path")
        parts.append(f"an adapter of {base!r}")
    found = ", ".join(parts)
    if problems:
        found = f"{len(problems)} of its parts cannot be read"
        wanted = "every file of the folder can be read"
        return Check("checkpoint", "problem", found, wanted, evidence=tuple(problems))
    if not folder.has(*TOKENIZER_FILES) and not folder.has("adapter_config.json"):
        wanted = "a tokenizer: whoever loads this folder finds none, or takes another one"
        fix = "save it here, tokenizer.save_pretrained(PATH), or give the folder that holds it"
        return Check("checkpoint", "problem", found, wanted, fix, tuple(remarks))
    if checkpoint.vocabulary is None:
        return Check("checkpoint", "could not tell", found, evidence=tuple(remarks))
    return Check("checkpoint", "ok", found, evidence=tuple(remarks))
