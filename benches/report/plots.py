"""The figures as pictures: the cost of a step against the length of the thinking, and right answers against that length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benches.quality import counting
from benches.report.results import Results

_COLOURS: Final = ("#9a9a9a", "#c58b1b", "#1b7f79", "#8a4fa3", "#4a72b8", "#b8564a", "#6b8e23", "#d36ba6")
_OURS: Final = "#111111"


def draw(results: Results, quality: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write both pictures as SVG; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_step(results.rows("test_step"), folder / "step.svg"), _quality(quality, folder / "quality.svg")]


def _style() -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"font.size": 9, "svg.hashsalt": "thinkguard", "svg.fonttype": "none"})


def _plain(axes: Any, title: str, x: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def _saved(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot

    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def _step(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Time against length, both logarithmic; the shade is the quartiles."""
    place = {"kind": "thinking", "batch": 32, "vocab_size": 151_936}
    rows = [row for row in rows if place.items() <= row.items()]
    from matplotlib import pyplot

    _style()
    figure, axes = pyplot.subplots(figsize=(7.6, 4.0), layout="constrained")
    _plain(axes, "A step of 32 sequences in their thinking, on the host", "thinking tokens so far")
    axes.set_ylabel("microseconds per step")
    columns = (("length", 1), ("median", 1e6), ("low", 1e6), ("high", 1e6))
    names = list(dict.fromkeys(row["alternative"] for row in rows))
    for name, colour in zip(names, _COLOURS * 2, strict=False):
        own = sorted((row for row in rows if row["alternative"] == name), key=lambda row: row["length"])
        x, y, low, high = ([row[key] * scale for row in own] for key, scale in columns)
        if name == "thinkguard":
            colour = _OURS
        axes.plot(x, y, marker="o", markersize=4, label=name, color=colour, linewidth=2.4 if colour == _OURS else 1.4)
        axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    lengths = sorted({row["length"] for row in rows})
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return _saved(figure, path)


def _quality(found: Mapping[str, Any], path: Path) -> Path:
    """A panel per model: right answers against thinking tokens, a line per way of closing over its caps."""
    from matplotlib import pyplot

    _style()
    rows = counting.summed(found["rows"])
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, panels = pyplot.subplots(
        1, len(models), figsize=(4.3 * len(models), 3.9), layout="constrained", sharey=True, squeeze=False
    )
    for axes, model in zip(panels[0], models, strict=True):
        own = [row for row in rows if row["model"] == model]
        _plain(axes, f"{model}, {own[0]['num']} outputs", "thinking tokens, mean")
        names = list(dict.fromkeys(row["way"].partition(":")[0] for row in own))
        for name, colour in zip(names, (_OURS, *_COLOURS[1:]), strict=False):
            line = [row for row in own if row["way"].partition(":")[0] == name]
            places = sorted((row["thinking_tokens"], 100 * row["right"] / row["num"]) for row in line)
            mark = "*" if name == "alone" else "o"
            axes.plot(*zip(*places, strict=True), marker=mark, markersize=10 if mark == "*" else 4, color=colour, label=name)
        axes.set_ylim(bottom=0)
    panels[0][0].set_ylabel("right answers, %")
    panels[0][-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return _saved(figure, path)
