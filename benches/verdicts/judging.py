"""Every case against every alternative: right, wrong or cannot, and what was printed.

    python -m benches.verdicts.judging --json FILE [--quick] [--tokenizers DIR] [--only NAME ...]

Right: every run of the case reads as wanted, by `reading` and by `ThinkProgram.explain`. Cannot: it cannot be set up
for one of them, or the output is wrong and the case needs something that the alternative says it does not do. Not installed:
what it needs is missing. Wrong: anything else. vLLM V2's kernels are interpreted where there is no GPU, so this runs in
processes of its own, in the repository's root: `processes` starts them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from benches.alternatives.alternative import MODULES, Alternative, Cannot, loaded, set_up
from benches.alternatives.interpreted import interpret
from benches.measuring import one_thread
from benches.setting import Request, Setting, make_tokenizer
from benches.verdicts.cases import MESSAGE, Case, Run, Settings, make
from benches.verdicts.reading import complaint
from thinkguard.policy import ThinkPolicy

_MOST_STEPS, _PATIENCE = 150, 4
REAL: Final = ("qwen3", "qwen2.5-instruct", "phi-4", "olmo3-think")
"""Real tokenizers that `--tokenizers` has to hold: one with marker tokens, then those whose markers are text."""
_WIDTH: Final = 151_936


def settings_of(folder: Path, tokenizers: Path | None) -> Settings:
    """Real vocabularies where they are given, made ones otherwise; made tokenizers are written into `folder`."""
    width = None if tokenizers is None else _WIDTH
    if tokenizers is None:
        with_tokens = make_tokenizer(folder / "made-tokens", 2048, marker_tokens=True)
        with_text = make_tokenizer(folder / "made-text", 2048, marker_tokens=False)
        names = [with_text]
    else:
        with_tokens, with_text = tokenizers / REAL[0], tokenizers / REAL[1]
        names = [tokenizers / name for name in REAL[1:]]
    tokens = Setting.load(with_tokens, width)
    return Settings(
        tokens=tokens,
        message=replace(tokens, message=MESSAGE),
        blocks=replace(tokens, max_blocks=2),
        text=Setting.load(with_text, width),
        splits=tuple(map(Setting.load, names)),
    )


@one_thread()
def run(settings: Settings, classes: Mapping[str, type[Alternative] | Cannot], *, quick: bool = False) -> dict[str, Any]:
    """Try all. Returns {"cases": {name: wanted}, "alternatives": {...}, "rows": [case x alternative, with every run]}."""
    made: dict[tuple[str, int], Alternative | Cannot] = {}
    rows: list[dict[str, Any]] = []
    cases = {}
    for case in make(settings, quick=quick):
        cases[case.name] = case.wanted
        rows += [_row(case, name, cls, made) for name, cls in classes.items()]
    about = {
        name: {"cannot": str(cls)} if isinstance(cls, Cannot) else {"version": cls.version, "path": cls.path}
        for name, cls in classes.items()
    }
    vocabularies = sorted({setting.folder.name for setting in (settings.tokens, settings.text, *settings.splits)})
    return {"vocabularies": vocabularies, "alternatives": about, "cases": cases, "rows": rows}


def _row(
    case: Case, name: str, cls: type[Alternative] | Cannot, made: dict[tuple[str, int], Alternative | Cannot]
) -> dict[str, Any]:
    if isinstance(cls, Cannot):
        return {"case": case.name, "alternative": name, "verdict": "not installed", "why": str(cls), "runs": []}
    found, impossible = [], []
    for one in case.runs:
        key = (name, id(one.setting))
        if key not in made:
            made[key] = set_up(cls, one.setting)
        alternative = made[key]
        if isinstance(alternative, Cannot):
            impossible.append(str(alternative))
        else:
            found.append(_tried(alternative, case, one))
    right = sum(not one["wrong"] for one in found)
    in_text = any(not one.setting.has_marker_tokens for one in case.runs)
    needs = [*case.needs, *(["text markers"] if in_text and not impossible else [])]
    why = [cls.cannot[need] for need in needs if need in cls.cannot] + impossible[:1]
    verdict = "right" if right == len(case.runs) else "cannot" if why else "wrong"
    of = len(case.runs) if found else 0
    row = {"case": case.name, "alternative": name, "verdict": verdict, "right": right, "of": of, "runs": found}
    return row if verdict != "cannot" else {**row, "why": "; ".join(dict.fromkeys(why))}


def _tried(alternative: Alternative, case: Case, one: Run) -> dict[str, Any]:
    """Generate, judge, and keep what was printed; token ids are kept where something is wrong."""
    ids, edited, said = generate(alternative, one)
    text = one.setting.decode(ids)
    verbatim = one.script.ids if one.verbatim else ()
    plain = complaint(one.setting, one.request, ids, blocks=one.blocks, verbatim=verbatim)
    policy = ThinkPolicy(max_think_blocks=one.blocks, opening="allow")  # structure alone, as for any engine's output
    trace = one.setting.program.explain(one.request.prompt, ids, policy)
    whole = trace.well_formed and trace.finished
    ours = "" if whole else "; ".join(violation.what for violation in trace.violations) or f"ends {trace.phase}"
    wrong = "; ".join(dict.fromkeys(filter(None, (case.also(one, ids, text), plain, ours))))
    told = {"what": one.what, "wrong": wrong, "printed": text, "edited": edited}
    judges = {"by": [name for name, objects in (("reading", plain), ("explain", ours)) if objects], "ids": ids}
    return told | (judges if wrong else {}) | ({"said": said} if said else {})


def generate(alternative: Alternative, one: Run) -> tuple[list[int], list[int], str]:
    """Let the scripted model write. Returns (output ids, positions where it was overruled, what the alternative said)."""
    setting, script = one.setting, one.script
    base = torch.randn(setting.width, generator=torch.Generator().manual_seed(0)) - 20
    base[setting.encode(" so")[0]], base[setting.eos_ids[0]] = 5.0, 1.0
    batch = alternative.start([one.request])
    output: list[int] = []
    overruled: list[int] = []
    at = tries = ends = 0
    sampled: list[int] | None = None
    for _ in range(_MOST_STEPS):
        logits = base[None].clone()
        logits[0, _closing(setting, output)] = 0.0
        wanted = script.ids[min(at, len(script.ids) - 1)]
        logits[0, wanted] = 10.0
        batch.step(sampled, logits)
        token = int(logits[0].argmax())
        output.append(token)
        if token == wanted:
            at, tries = at + 1, 0
        else:
            overruled.append(len(output) - 1)
            tries += 1
            if tries == _PATIENCE:
                at, tries = at + 1, 0
        if token in setting.eos_ids:
            break
        now = setting.decode(output).count(setting.end)
        if now > ends and at < script.answer_at and token != wanted:  # an end that is not the script's own
            at, tries = script.answer_at, 0
        ends = now
        sampled = [token]
        if one.preempt_behind and len(overruled) == one.preempt_behind and overruled[-1] == len(output) - 1:
            batch.resume(0, Request(one.request.prompt, one.request.budget, list(output)))
            sampled = None
    said = getattr(batch, "refused", {})  # grammars say which token they did not take
    return output, overruled, str(said.get(0, ""))[:200]


def _closing(setting: Setting, output: Sequence[int]) -> int:
    """Return the marker's next token: how far the output's end has come in it."""
    end = setting.end_ids
    for length in range(len(end) - 1, 0, -1):
        if list(output[-length:]) == end[:length]:
            return end[length]
    return end[0]


def main() -> None:
    """Judge in this process, which is made for it, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tokenizers", type=Path)
    parser.add_argument("--only", nargs="*", choices=tuple(MODULES), default=tuple(MODULES))
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
        interpret()
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(Path(folder), options.tokenizers)
        found = run(settings, dict(loaded(options.only)), quick=options.quick)
    options.json.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
