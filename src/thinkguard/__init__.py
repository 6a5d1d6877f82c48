"""thinkguard: hold a reasoning model to think, close its thinking, and answer.

The names below are loaded when they are first used, so that `import thinkguard` costs next to nothing (numpy's own import
takes most of what the rest would).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thinkguard.core.program import ThinkProgram as ThinkProgram
    from thinkguard.core.trace import ThinkTrace as ThinkTrace
    from thinkguard.errors import FormatError as FormatError
    from thinkguard.errors import InputError as InputError
    from thinkguard.errors import PolicyError as PolicyError
    from thinkguard.errors import ThinkGuardError as ThinkGuardError
    from thinkguard.errors import TokenizerError as TokenizerError
    from thinkguard.errors import TokenizerTypeError as TokenizerTypeError
    from thinkguard.errors import UnsupportedError as UnsupportedError
    from thinkguard.formats import ChannelGrammar as ChannelGrammar
    from thinkguard.formats import ThinkFormat as ThinkFormat
    from thinkguard.formats.resolve import detect_format as detect_format
    from thinkguard.formats.resolve import resolve_format as resolve_format
    from thinkguard.policy import ThinkPolicy as ThinkPolicy
    from thinkguard.vocabulary import TokenFlag as TokenFlag
    from thinkguard.vocabulary import Vocabulary as Vocabulary

__version__ = "0.1.0"

_HOMES = {
    "errors": (
        *("FormatError", "InputError", "PolicyError", "ThinkGuardError", "TokenizerError", "TokenizerTypeError"),
        "UnsupportedError",
    ),
    "policy": ("ThinkPolicy",),
    "vocabulary": ("TokenFlag", "Vocabulary"),
    "formats": ("ChannelGrammar", "ThinkFormat"),
    "formats.resolve": ("detect_format", "resolve_format"),
    "core.program": ("ThinkProgram",),
    "core.trace": ("ThinkTrace",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'thinkguard' has no attribute {name!r}")
    value = getattr(import_module(f"thinkguard.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
