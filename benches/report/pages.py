"""What the figures say in README.md and docs/benchmarks.md: every number from a result file."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Any

from benches.quality.lab import place
from benches.quality.ways import ALONE, MEANINGS, Way
from benches.report import tables
from benches.report.results import RESULTS, Results
from benches.report.tables import markdown, ratio, spread
from thinkguard.bench.machine import PACKAGES
from thinkguard.policy import POLICY_DEFAULTS

ROOT = RESULTS.parents[1]
README, PAGE = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
STEP_PLOT = "![Time of a step against the length of the thinking](plots/step.svg)"
QUALITY_PLOT = "![Right answers against thinking tokens](plots/quality.svg)"
MARKS = ("<!-- {}: begin -->", "<!-- {}: end -->")
GUARDED = "sentence:32"  # the way whose outputs the README shows beside those of the model alone


def outputs(name: str) -> dict[str, Any]:
    """What `make verdicts` or `make quality` wrote: "verdicts" or "quality"."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def write(results: Results) -> None:
    """Rewrite what both pages say between their marks."""
    for (path, name), text in written(results).items():
        old, (first, last) = path.read_text(encoding="utf-8"), (mark.format(name) for mark in MARKS)
        begin, end = old.index(first) + len(first), old.index(last)
        path.write_text(f"{old[:begin]}\n{text}\n{old[end:]}", encoding="utf-8")


def written(results: Results) -> dict[tuple[Path, str], str]:
    """Each part of a page that comes from result files: (page, name of its marks) -> text."""
    return {
        (README, "output"): side_by_side(outputs("quality")),
        (README, "measured"): readme(results),
        (PAGE, "measured"): page(results),
    }


def side_by_side(found: dict[str, Any]) -> str:
    """One question, answered by a model of the laboratory alone and guarded: the first one that it alone never answers."""
    arms = {
        arm["way"]: arm["outputs"]
        for arm in found["outputs"]
        if (arm["model"], arm["sampling"]) == (place.TEXT, "greedy")
    }
    pairs = zip(found["tasks"], arms[ALONE], arms[GUARDED], strict=True)
    task, alone, guarded = next(pair for pair in pairs if not pair[1]["ends_in_answer"] and pair[2]["right"])
    policy = Way.parse(GUARDED).policy
    fields = ", ".join(f"{name}={value!r}" for name, value in asdict(policy).items() if value != POLICY_DEFAULTS[name])
    left = alone["text"].splitlines()
    right = ["", *guarded["text"].splitlines()]
    cut = len(right) - 1
    left = ["", *left[: cut - 1], f"... ({len(left) - cut} more lines like these, and no answer)"]
    heads = [("the model alone", "the same model, guarded")]
    lines = [f"{one:46}{other}".rstrip() for one, other in [*heads, *zip_longest(left, right, fillvalue="")]]
    shown = "\n".join(["```", task["question"], "", *lines, "```"])
    return f"{shown}\n\n*SmolLM2-135M, taught to think in text tags by `make lab`; `{fields}`*"


def readme(results: Results) -> str:
    """The README's part: what comes of the cases that budgets meet, in numbers, and what the guard costs."""
    return "\n\n".join(
        [
            tables.verdict_counts(outputs("verdicts")),
            markdown(["", "thinkguard", "beside it"], costs(results)),
            _about(results),
        ]
    )


def costs(results: Results) -> list[tuple[str, str, str]]:
    """Five rows of cost."""
    place = {"kind": "thinking", "batch": 32, "length": 1024, "vocab_size": 151_936}
    steps = {name: results.row("test_step", alternative=name, **place) for name in ("thinkguard", "plain torch")}
    served = results.row("test_v1_step", cache="warm", length=1024)
    admitted = {
        name: results.row("test_admission", alternative=name, length=100_000) for name in ("thinkguard", "plain torch")
    }
    held = {row["alternative"]: row["bytes"]["request"] for row in results.rows("test_memory")}
    return [
        (
            "a step behind fresh logits, 32 sequences of 1,024 thinking tokens, 151,936 logits",
            f"{steps['thinkguard']['median'] * 1e6:.0f} us",
            f"{steps['plain torch']['median'] * 1e6:.0f} us for the obvious processor in torch",
        ),
        (
            "the same in vLLM's V1 runner, step after step",
            f"{served['median'] * 1e6:.0f} us",
            f"{median(served['pairs']['vLLM']) * 1e6:,.0f} us for vLLM's own thinking budget",
        ),
        (
            "a request behind 100,000 prompt tokens admitted",
            f"{admitted['thinkguard']['median'] * 1e6:.0f} us, {held['thinkguard']:.0f} bytes",
            f"{admitted['plain torch']['median'] * 1e6:,.0f} us in torch, {held['vLLM V1 budget']:,.0f} bytes in vLLM",
        ),
        (
            "tokens a second of `generate()`, the embedded model, batch 8: guarded over alone",
            ratio(results.row("test_generate", model="embedded model", batch=8), inverse=True),
            "a step of that model takes milliseconds",
        ),
        (
            "tokens a second of vLLM's V1 engine on the CPU, batch 8: guarded over alone",
            ratio(results.row("test_serve"), inverse=True),
            "on a GPU: " + ("docs/benchmarks.md" if _on_gpus() else "not measured, no GPU here"),
        ),
    ]  # fmt: skip


def page(results: Results) -> str:
    """The part of docs/benchmarks.md that is measured."""
    found = outputs("verdicts")
    cases = "\n".join(f"- **{name}**: {wanted}" for name, wanted in found["cases"].items())
    paths = [
        [name, about.get("version", ""), f"`{about['path']}`" if "path" in about else f"cannot: {about['cannot']}"]
        for name, about in found["alternatives"].items()
    ]
    sections = {
        "The alternatives, and where their hosts call them": markdown(["", "version", "called as in"], paths),
        "Correctness": f"{tables.verdicts(found)}\n\n{cases}",
        "Cost of a step": f"{tables.step(results)}\n\n{STEP_PLOT}\n\n{tables.beside(results)}",
        "Instructions of a step": tables.instructions(results),
        "Cost of starting": f"{tables.start(results)}\n\n{tables.memory(results)}",
        "What else is watched": markdown(["what", "from the lower to the upper quartile"], watched(results)),
        "Tokens a second of `generate()`": tables.rates(results, "test_generate"),
        "Tokens a second of vLLM's V1 engine on the CPU": tables.rates(results, "test_serve"),
        "Outputs of real models": quality(outputs("quality")),
        "On a GPU": "\n\n".join(gpu_table(one) for one in _on_gpus() or [results]),
    }
    return "\n\n".join([_about(results), *(f"## {title}\n\n{text}" for title, text in sections.items())])


def quality(found: dict[str, Any]) -> str:
    """How guarded outputs of the laboratory's models read, beside those of the models alone."""
    where, num = found["machine"], len(found["tasks"])
    meant = "\n".join(f"- **{name}**: {what}" for name, what in MEANINGS.items())
    about = (
        f"SmolLM2-135M-Instruct, taught by `make lab` to think in text tags ({place.TEXT}), with each tag as one token "
        f"({place.TOKENS}), and as it comes ({place.BASE}), which never learnt to think; {num} held-out "
        "questions, greedy and sampled at T = 0.7 with noise that all policies share. Look-alikes and dangling pieces: "
        "outputs that hold one."
    )
    made = (
        f"*{where['cpu']}, {where['cores']} cores, torch {where['torch']}; commit {found['commit']}; `{found['command']}`*"
    )
    return "\n\n".join([about, tables.quality(found), _what_looks_alike(found), meant, QUALITY_PLOT, made])


def _what_looks_alike(found: dict[str, Any]) -> str:
    """The look-alikes of each model's guarded outputs by name, those of most outputs first."""
    told = []
    for model in dict.fromkeys(arm["model"] for arm in found["outputs"]):
        arms = [arm for arm in found["outputs"] if arm["model"] == model and arm["way"] != ALONE]
        outputs = [one for arm in arms for one in arm["outputs"]]
        for where in ("in_answer", "in_thinking"):
            first = (re.match(r"\W*[\w:-]*", one[where][0]) for one in outputs if one.get(where))
            names = Counter(name[0] for name in first if name)
            listed = ", ".join(f"`{name}` ({num})" for name, num in names.most_common(5))
            if names:
                told.append(f"- {model}, {where.replace('_', ' the ')}, {names.total()} of {len(outputs)}: {listed}")
    return "\n".join(["What the look-alikes of guarded outputs are, by the first of each output:", "", *told])


def watched(results: Results) -> Iterator[tuple[str, str]]:
    """What the project watches over itself."""
    core = {row["walk"]: row for row in results.rows("test_core_step")}
    for name, what in (("empty", "empty step (answer, nothing to edit)"), ("quiet", "quiet step (EOS moved, start banned)")):
        yield f"the core's {what}, step after step", spread(core[name], 1e9 / core[name]["rows"], "ns per row")
    yield "... with markers as text", spread(core["quiet, text markers"], 1e9 / core["quiet"]["rows"], "ns per row")
    yield "... over the scalar memory accesses of it alone", ratio(results.row("test_core_step_scalars"))
    yield "... behind 32,768 thinking tokens over none", ratio(results.row("test_core_step_long"))
    for row in results.rows("test_launch"):
        yield f"what the host pays for a {row['what']} on a GPU, its driver's time aside", spread(row, 1e6, "us")
    for row in results.rows("test_v1_step"):
        theirs = 1 / row["ratio"]["median"]
        what = f"vLLM V1, 32 requests of {row['length']:,} thinking tokens, caches {row['cache']}"
        yield what, f"{spread(row, 1e6, 'us a step')}, {theirs:,.0f} times less than vLLM's own budget"
    yield "... ours behind 32,768 tokens over 128", ratio(results.row("test_v1_step_long"))
    call = results.row("test_processor_call")
    yield "`ThinkLogitsProcessor`, attached, batch 1", spread(call, 1e6 / call["calls"], "us a call")
    yield "... over a processor that returns its scores", ratio(call)
    yield "admission behind 100,000 prompt tokens over 1,000", ratio(results.row("test_admission_is_flat"))
    for row in results.rows("test_compile"):
        yield f"compile, {row['vocab_size']:,} tokens, markers as {row['markers']}", spread(row, 1e3, "ms")
    yield "... the program's tables", f"{results.row('test_compile', markers='tokens')['bytes']['program'] / 1e6:.1f} MB"
    yield "a new policy with a message", spread(results.row("test_new_policy"), 1e6, "us", 0)
    imports = {"package": "`import thinkguard`", "all names": "`from thinkguard import *`", "numpy alone": "... of it numpy"}
    for names, what in imports.items():
        yield what, spread(results.row("test_import", names=names), 1e3, "ms", 0)
    for row in results.rows("test_audit"):
        rate = row["records"] / row["median"]
        yield f"`thinkguard audit` on two processes, records of 2 KB, {row['kind']}", f"{rate:,.0f} records a second"


def _about(results: Results) -> str:
    where = results.machine
    versions = ", ".join(f"{name} {where[name]}" for name in PACKAGES[1:] if name in where)
    return f"*{where['cpu']}, {where['cores']} cores, Python {where['python']}; {versions}; `make bench`*"


def _on_gpus() -> list[Results]:
    """The result files with figures of a GPU."""
    files = [path for path in sorted(RESULTS.glob("*.json")) if "benchmarks" in json.loads(path.read_text(encoding="utf-8"))]
    found = map(Results.read, files)
    return [one for one in found if any(benchmark["group"] == "gpu" for benchmark in one.benchmarks)]


def gpu_table(results: Results) -> str:
    """Every benchmark of the group `gpu`: its figures, or why there are none."""
    rows = []
    for one in results.benchmarks:
        if one["group"] == "gpu":
            about = one["extra_info"]
            shown = [f"{one['stats']['median'] * 1e6:.4g} us"]
            shown += [f"{key} {value}" for key, value in about.items() if isinstance(value, str | int)]
            shown += [f"ratio {ratio(about)}"] if "ratio" in about else []
            rows.append([one["name"].removeprefix("test_"), "; ".join(shown)])
    left_out = Counter(
        (one["name"].removeprefix("test_").partition("[")[0], one["cannot"])
        for one in results.left_out if one["group"] == "gpu"
    )  # fmt: skip
    rows += [[f"{name}, {num} of them", f"not measured: {why}"] for (name, why), num in left_out.items()]
    return f"{results.machine.get('gpu', 'No GPU')}; `make bench-gpu`\n\n{markdown(['what', 'figures'], rows)}"
