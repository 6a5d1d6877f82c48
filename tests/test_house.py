"""The house: which wing of the package may import which, no circles between files, nothing heavy at `import thinkguard`."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "thinkguard"
GROUND = {"", "errors"}  # the version, and what everybody raises
FORMS = {"policy", "vocabulary", "formats"}
MAY_IMPORT = {
    "policy": set(), "vocabulary": set(), "formats": {"vocabulary"}, "requests": {"policy"},
    "core": FORMS, "device": {*FORMS, "core"}, "hf": {*FORMS, "core", "device"},
    "vllm": {*FORMS, "core", "device", "requests"}, "doctor": {"vocabulary", "formats"}, "training": {*FORMS, "core"},
    "demo": {*FORMS, "core", "hf", "training", "doctor"}, "bench": {*FORMS, "core", "hf"},
}  # fmt: skip
"""Wing -> the others that it may use; what stands above all wings (the command line) may use any."""

MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
           for path in (*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyi"))}  # fmt: skip


def imported(path: Path) -> Iterator[str]:
    """The package's modules that a file imports, at its top or in a function, but for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    left_out = {inner for node in typing for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if node not in left_out and isinstance(node, ast.ImportFrom) and (node.module or "").startswith("thinkguard"):
            home = (node.module or "").removeprefix("thinkguard").removeprefix(".")
            names = [f"{home}.{alias.name}".removeprefix(".") for alias in node.names]
            yield from (name if name in MODULES else home for name in names)


def test_wings_import_one_way() -> None:
    wings = {name.partition(".")[0] for name in MODULES if "." in name} | {"policy"}
    assert wings == set(MAY_IMPORT)
    TopologicalSorter(MAY_IMPORT).prepare()  # CycleError if the wings themselves went round
    for name, path in MODULES.items():
        wing = name.partition(".")[0]
        if wing in wings:
            used = {other.partition(".")[0] for other in imported(path)} - {wing} - GROUND
            assert used <= MAY_IMPORT[wing], f"{name} imports from {used - MAY_IMPORT[wing]}, which {wing} may not"


def test_no_file_imports_itself_by_a_detour() -> None:
    TopologicalSorter({name: set(imported(path)) - {name} for name, path in MODULES.items()}).prepare()


def test_file_names_are_unique_within_a_wing() -> None:
    for wing in MAY_IMPORT:
        names = [path.name for name, path in MODULES.items() if name.startswith(f"{wing}.") and path.stem != "__init__"]
        assert len(names) == len(set(names)), wing


def test_no_file_needs_triton() -> None:
    """The kernels are the C of csrc/, compiled when the package is built."""
    for name, path in MODULES.items():
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        froms = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        assert not {other for other in froms | plain if other.partition(".")[0] == "triton"}, name


def test_import_is_light() -> None:
    hosts = {"torch", "transformers", "triton", "vllm", "jinja2", "tokenizers"}
    code = f"import sys; from thinkguard import *; print(sorted({hosts} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_declared_for_types_and_loads() -> None:
    import thinkguard

    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    declared = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    declared -= {"annotations", "import_module", "TYPE_CHECKING", "Any"}
    assert declared == set(thinkguard.__all__) - {"__version__"}
    assert all(getattr(thinkguard, name) is not None for name in thinkguard.__all__)
    with pytest.raises(AttributeError, match="no attribute 'ThinkGuard'"):
        thinkguard.ThinkGuard  # noqa: B018
