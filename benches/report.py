"""What the figures say in README.md and docs/benchmarks.md: every number from a result file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from thinkguard.bench.machine import PACKAGES
from thinkguard.bench.table import markdown, tables

ROOT = Path(__file__).resolve().parents[1]
RESULTS, README, PAGE = ROOT / "benches" / "results", ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def write(figures: dict[str, Any]) -> None:
    """Rewrite what both pages say between their marks."""
    for path, text in ((README, readme(figures)), (PAGE, page(figures))):
        old = path.read_text(encoding="utf-8")
        begin, end = old.index(BEGIN) + len(BEGIN), old.index(END)
        path.write_text(f"{old[:begin]}\n{text}\n{old[end:]}", encoding="utf-8")


def readme(figures: dict[str, Any]) -> str:
    """The README's part: what the guard does beside the alternatives, and what it costs."""
    made = tables(figures)
    return "\n\n".join(
        [
            "What comes of each case (`right`, `wrong`, or `cannot` be asked of it; n/m runs), all run by `make bench`:",
            made["correctness"],
            "What a step costs on the host's CPU, behind logits that were just written: the lowest in bold, `~` where the "
            "spread is wide. Where logits lie on a GPU, writing or copying whole rows costs something else. More batches, "
            "vocabularies, memory, instructions and quality under a budget are in [docs/benchmarks.md](docs/benchmarks.md):",
            tables({"step": {"rows": [row for row in figures["step"]["rows"] if _in_readme(row)]}})["step"],
            "What else is watched here, from the lower to the upper quartile:",
            costs_table(figures),
            _about(figures),
        ]
    )


def page(figures: dict[str, Any]) -> str:
    """The part of docs/benchmarks.md that is measured."""
    made = tables(figures)
    cases = "\n".join(f"- **{name}**: {wanted}" for name, wanted in figures["correctness"]["cases"].items())
    paths = [
        [name, told.get("version", ""), f"`{told['path']}`" if "path" in told else f"cannot: {told['cannot']}"]
        for name, told in figures["correctness"]["alternatives"].items()
    ]
    sections = {
        "The alternatives, and where their hosts call them": markdown(["", "version", "called as in"], paths),
        "Correctness": f"{made['correctness']}\n\n{cases}",
        "Cost of a step": f"{made['step']}\n\n![Time of a step against the length of the thinking](plots/step.svg)",
        "Instructions of a step": made["instructions"],
        "Cost of starting": f"{made['start']}\n\n{made['memory']}",
        "Tokens a second of `generate()`": made["generate"],
        "Tokens a second of vLLM's V1 engine on the CPU": made["serve"],
        "Quality under a budget": f"{made['quality']}\n\n![Right answers and well-formed outputs](plots/quality.svg)",
        "On a GPU": gpu_section(figures),
        "A second run": agreement_table(figures),
    }
    return "\n\n".join([_about(figures), *(f"## {title}\n\n{text}" for title, text in sections.items())])


def _about(figures: dict[str, Any]) -> str:
    where = figures["machine"]
    versions = ", ".join(f"{name} {where[name]}" for name in PACKAGES[1:] if name in where)
    return f"*{where['cpu']}, {where['cores']} cores, Python {where['python']}; {versions}; `{figures['command']}`*"


def _in_readme(row: dict[str, Any]) -> bool:
    return row.get("length") in (128, 1024, 32_768) and row["batch"] == 32 and row["vocab_size"] == 151_936


def costs_table(figures: dict[str, Any]) -> str:
    """What the project watches over itself, every number from the JSON."""
    core, costs, audit = figures["core"], figures["costs"], figures["audit"]
    compile_, call = costs["compile"], costs["hf_call"]

    def spread(entry: dict[str, Any], digits: int = 0) -> str:
        return f"{entry['low']:.{digits}f} .. {entry['high']:.{digits}f} {entry['unit']}"

    def ms(entry: dict[str, Any]) -> str:
        return f"{entry['low']:.0f} .. {entry['high']:.0f} ms"

    served, cold = (figures["vllm_v1"][state]["1024"] for state in ("warm", "cold"))
    longer = figures["vllm_v1"]["long_over_short"]["median"]
    rows = [
        ("empty step (answer, nothing to edit), step after step", spread(core["empty"], 1)),
        ("quiet step (thinking: EOS moved, start banned), step after step", spread(core["quiet"], 1)),
        ("... the scalar memory accesses of it alone", spread(core["scalar_writes"], 1)),
        ("... after 32,768 thinking tokens, against none", f"{core['long_over_short']['median']:.2f} times"),
        ("`ThinkLogitsProcessor`, attached, batch 1", spread(call["guarded"], 1)),
        ("... a processor that returns its scores", spread(call["returns"], 1)),
        ("vLLM V1, 32 requests with 1,024 thinking tokens each, step after step", spread(served["thinkguard"], 1)),
        ("... vLLM's own thinking budget, same process", f"{spread(served['vllm'])}: {served['ratio']:.0f} times ours"),
        ("... ours, where other work took the caches before each step", spread(cold["thinkguard"], 1)),
        ("... vLLM's own there", f"{spread(cold['vllm'])}: {cold['ratio']:.0f} times ours"),
        ("... ours with 32,768 tokens each, against 128", f"{longer:.2f} times"),
        ("compile, 151,936 tokens, markers as tokens", ms(compile_["token markers"])),
        ("... markers as text", ms(compile_["text markers"])),
        ("a new policy with a message", spread(compile_["new policy"])),
        ("a program's tables, 151,936 tokens", f"{compile_['token markers']['program_bytes'] / 1e6:.1f} MB"),
        ("`import thinkguard`", ms(costs["import"]["package"])),
        ("`from thinkguard import *`", ms(costs["import"]["all names"])),
        ("... numpy's own import alone", ms(costs["import"]["numpy alone"])),
        *_rates(figures),
        *_audited(audit),
    ]
    return markdown(["what", "cost"], rows)


def _rates(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Rows of what users get: tokens a second guarded against not."""
    for part, what in (("generate", "`generate()`"), ("serve", "vLLM's V1 engine")):
        for row in figures[part].get("rows", []):
            ratio, model = row["ratio"], row.get("model", "embedded model")
            shown = f"{ratio['median']:.3f} times ({ratio['low']:.3f} .. {ratio['high']:.3f})"
            yield f"{what}, {model}, batch {row['batch']}: tokens a second, guarded against not", shown
    yield "vLLM V2 and `generate()` on a GPU", "docs/benchmarks.md" if _gpu_runs() else "not measured: no GPU here"


def _audited(audit: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of `thinkguard audit`: records of 2 KB a second, on two processes, their start included."""
    names = {"plain": "`thinkguard audit`, records of 2 KB", "tokens": "... with their tokens counted"}
    return [(what, f"{audit[key]['by_the_clock']['median']:,.0f} a second on two cores") for key, what in names.items()]


def gpu_section(figures: dict[str, Any]) -> str:
    """What was measured on GPUs; else why nothing was."""
    return "\n\n".join(gpu_table(run) for run in _gpu_runs() or [figures["gpu"]])


def _gpu_runs() -> list[dict[str, Any]]:
    """The runs on GPUs that the result files hold."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    found = [told.get("gpu", told) for told in files]  # a part of a file, or the whole of one that `make bench-gpu` wrote
    return [told for told in found if "gpu" in told.get("machine", {})]


def gpu_table(found: dict[str, Any]) -> str:
    """Every row of `benches/gpu.py`: its figures, or why there are none."""
    rows = [[row["what"], "; ".join(_gpu_figures(row))] for row in found["rows"]]
    return f"{found['machine'].get('gpu', 'No GPU')}; `make bench-gpu`\n\n{markdown(['what', 'figures'], rows)}"


def _gpu_figures(row: dict[str, Any]) -> Iterator[str]:
    for name, value in row.items():
        if name in ("failed", "not measured"):
            yield f"{name}: {value}"
        elif isinstance(value, dict) and "median" in value:
            yield f"{name} {value['median']:.4g} {value.get('unit', '')}".strip()
        elif name not in ("what", "seconds"):
            yield f"{name} {value}"


def agreement_table(figures: dict[str, Any]) -> str:
    """How many figures of the last two runs agree, and which do not."""
    found = figures["agreement"]
    rows = [(part, f"{told['within']} of {told['figures']}", f"{told['widened']:.1%}") for part, told in found.items()]
    outside = [
        f"- {part} {name}: {_shown(one)} before, {_shown(two)} now"
        for part, told in found.items()
        for name, (one, two) in told["outside"].items()
    ]
    rows = [row for row in rows if not row[1].endswith(" of 0")]
    head = ["part", "figures that agree with the run before", "spreads widened by"]
    return "\n\n".join([markdown(head, rows), "\n".join(outside)]).strip()


def _shown(figure: Any) -> str:
    return " .. ".join(f"{value:.4g}" for value in figure) if isinstance(figure, list) else str(figure)
