"""Where the laboratory's models lie, and whether they are those that this checkout makes."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from thinkguard.demo.lab import STORY_MODEL, folder

__all__ = ["BASE", "MODELS", "TEXT", "TOKENS", "folder", "is_made", "load", "missing", "stamp"]

BASE, TEXT, TOKENS = MODELS = ("base", STORY_MODEL, "think-tokens")
"""SmolLM2-135M-Instruct as it is published; taught to think with markers as text; and with each marker as one token."""
REMEDY: Final = "run `make lab`, which takes some minutes"
_HERE: Final = Path(__file__).resolve().parent
_SOURCES: Final = {
    BASE: (_HERE / "fetch.py",),
    TEXT: (
        *(_HERE / name for name in ("fetch.py", "teach.py", "records.py")),
        *sorted((_HERE.parent / "tasks").glob("*.py")),
    ),
}
_SOURCES[TOKENS] = (*_SOURCES[TEXT], _HERE / "tokens.py")


def stamp(name: str) -> str:
    """What a model's stamp says if this checkout made it: a hash of the files that make it."""
    return sha256(b"\0".join(path.read_bytes() for path in _SOURCES[name])).hexdigest()[:16]


def is_made(name: str) -> bool:
    """Whether the model is there, and as this checkout makes it."""
    file = folder() / name / "stamp"
    return file.is_file() and file.read_text(encoding="utf-8").strip() == stamp(name)


def missing(names: Sequence[str] = MODELS) -> str:
    """Say which models are missing, and the remedy; "" if none is. A model of an older checkout is there all the same."""
    absent = [name for name in names if not (folder() / name / "stamp").is_file()]
    return f"no {', '.join(absent)} in {folder()}: {REMEDY}" if absent else ""


def load(name: str) -> tuple[Any, Any]:
    """Return (model in float32, tokenizer that pads on the left); FileNotFoundError says what is missing."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if why := missing((name,)):
        raise FileNotFoundError(why)
    tokenizer = AutoTokenizer.from_pretrained(folder() / name, padding_side="left")
    return AutoModelForCausalLM.from_pretrained(folder() / name).float().eval(), tokenizer
