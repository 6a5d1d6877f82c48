"""Parts of SGLang's source, from its wheel, loaded without SGLang's dependencies.

`pip install --no-deps sglang` is enough. What is replaced, and nothing else:
- `dill`, where it is not installed, by an empty module: it only (de)serializes processors on their way to the server;
- for the grammar wrapper, the modules it imports names from but does not use in `ReasonerGrammarObject`: by modules whose
  attributes are empty classes. `TokenSequenceMatcher` and the token filter are SGLang's own files;
- functions that stand in files which import the whole engine are compiled alone, from their own text (`function`).

All of it is loaded once, as a server does.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any


@cache
def root() -> Path:
    """Return the folder that holds the package `sglang`. ImportError, if it is not installed."""
    spec = importlib.util.find_spec("sglang")  # which finds it without running it
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("no module named 'sglang': pip install --no-deps sglang")
    return Path(next(iter(spec.submodule_search_locations))).parent


def version() -> str:
    """Return the installed version."""
    return f"{metadata.version('sglang')}" if root() else ""


class _Anything(ModuleType):
    """A module that has every name: as an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextmanager
def _replaced(modules: dict[str, ModuleType]) -> Iterator[None]:
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def load(path: str, name: str, *, stubs: tuple[str, ...] = (), real: dict[str, ModuleType] | None = None) -> ModuleType:
    """Run one file of the wheel as a module of that name."""
    spec = importlib.util.spec_from_file_location(name, root() / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    with _replaced({stub: _Anything(stub) for stub in stubs} | (real or {}) | {name: module}):
        spec.loader.exec_module(module)
    return module


@cache
def function(path: str, name: str, **names: Any) -> Any:
    """Compile one function of a file alone, with the names it reads."""
    tree = ast.parse((root() / path).read_text(encoding="utf-8"))
    (found,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    found.returns, found.decorator_list = None, []
    for argument in found.args.args:
        argument.annotation = None
    scope = dict(names)
    exec(compile(ast.Module([found], []), str(root() / path), "exec"), scope)
    return scope[name]


@cache
def literal(path: str, cls: str, variable: str) -> Any:
    """The value of a literal that a class's `__init__` assigns."""
    tree = ast.parse((root() / path).read_text(encoding="utf-8"))
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls]
    (value,) = [
        node.value for node in ast.walk(found)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == variable
    ]  # fmt: skip
    return ast.literal_eval(value)


@cache
def custom_logit_processor() -> ModuleType:
    """sglang/srt/sampling/custom_logit_processor.py"""
    try:
        import dill  # noqa: F401

        stubs: tuple[str, ...] = ()
    except ImportError:
        stubs = ("dill",)
    try:
        import orjson  # noqa: F401
    except ImportError:
        stubs += ("orjson",)
    return load("sglang/srt/sampling/custom_logit_processor.py", "sglang_custom_logit_processor", stubs=stubs)


@cache
def reasoner_grammar() -> ModuleType:
    """sglang/srt/constrained/reasoner_grammar_backend.py"""
    package = "sglang.srt."
    matcher = load("sglang/srt/utils/token_sequence_matcher.py", "token_sequence_matcher")
    base_stubs = tuple(package + name for name in ("parser.reasoning_parser", "runtime_context", "server_args"))
    path, name = "sglang/srt/constrained/base_grammar_backend.py", package + "constrained.base_grammar_backend"
    base = load(path, name, stubs=base_stubs)
    return load(
        "sglang/srt/constrained/reasoner_grammar_backend.py",
        package + "constrained.reasoner_grammar_backend",
        stubs=tuple(package + name for name in ("environ", "parser.reasoning_parser", "parser.response_template")),
        real={
            package + "utils.token_sequence_matcher": matcher,
            name: base,
        },
    )


@cache
def token_filter() -> Any:
    """set_token_filter_torch of sglang/srt/constrained/torch_ops/token_filter_torch_ops.py"""
    path = "sglang/srt/constrained/torch_ops/token_filter_torch_ops.py"
    return load(path, "sglang_token_filter").set_token_filter_torch


