"""Draw a report's histograms as SVG elements that take their colours and fonts from the page around them."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

from thinkguard.doctor.check import Plot
from thinkguard.errors import InputError

_WIDTH, _AXES_HEIGHT, _LANE = 420, 190, 15  # in points, which a page takes for pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 8, 44
_FONT = 11.0
_GAP: Final = 6.0  # between two labels
# matplotlib knows no variables, so it draws with colours that nothing else has.
_COLOURS: Final = {
    "#010103": "var(--muted)",
    "#010105": "var(--line)",
    "#010107": "var(--bar)",
    "#010109": "var(--problem)",
}
_MUTED, _LINE, _BAR, _CUT = _COLOURS
_PERCENTILE: Final = re.compile(r"p\d|median|mean", re.I)


def svg_of(plot: Plot, key: str) -> str:
    """Return one `<svg>` element, its text as text; `key` keeps its ids apart from those of other plots.

    Bars are equally wide, so bins that grow read as a logarithmic axis, which may start at 0. "" if no bar has a height.
    """
    edges, heights = _bins(plot)
    if not heights:
        return ""
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"plots need matplotlib ({error}): pip install 'thinkguard[doctor]'") from error
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": key, "font.size": _FONT}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has the glyph; only widths are guessed
        figure = Figure(figsize=(1, 1), dpi=72)
        FigureCanvasSVG(figure)
        _draw(figure, plot, edges, heights)
        target = io.StringIO()
        figure.savefig(target, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _embedded(target.getvalue(), key)


def _bins(plot: Plot) -> tuple[list[float], list[float]]:
    """Return the edges, one more than bars, without empty bins at either end that no mark stands in."""
    if len(plot.x) != len(plot.y) or any(b <= a for a, b in pairwise(plot.x)):
        raise InputError(f"plot {plot.title!r}: wanted rising left edges, as many as heights ({len(plot.x)}, {len(plot.y)})")
    kept = [i for i, height in enumerate(plot.y) if height > 0]
    if not kept:
        return [], []
    edges = [*plot.x, _next(plot.x)]
    marked = [i for i in range(len(plot.x)) for at, _ in plot.marks if edges[i] <= at < edges[i + 1]]
    first, last = min(kept + marked), max(kept + marked) + 1
    return edges[first : last + 1], list(plot.y[first:last])


def _next(x: Sequence[float]) -> float:
    """Guess where the last bar ends."""
    if len(x) < 2:
        return x[0] + 1
    width = x[-1] - x[-2]
    before = x[-2] - x[-3] if len(x) > 2 else width
    return x[-1] + width * (width / before)


def _draw(figure: Any, plot: Plot, edges: list[float], heights: list[float]) -> None:
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, len(heights))
    axes.set_ylim(0, max(heights) * 1.04)
    inner = _WIDTH - _LEFT - _RIGHT
    scale = inner / len(heights)
    axes.bar(range(len(heights)), heights, width=0.92 if scale > 4 else 1.0, align="edge", color=_BAR, linewidth=0)
    labels = [axes.text(0, 0, _plain(_label(at, text)), fontsize=_FONT, gid="mark") for at, text in plot.marks]
    places = [_place(at, edges) for at, _ in plot.marks]
    for label, (at, _), place in zip(labels, plot.marks, places, strict=True):
        label.set_parse_math(False)
        if place is None:
            label.set_text(f"← {label.get_text()}" if at < edges[0] else f"{label.get_text()} →")
    widths = [label.get_window_extent().width for label in labels]
    spots = [(0.0 if at < edges[0] else inner) if place is None else place * scale
             for (at, _), place in zip(plot.marks, places, strict=True)]  # fmt: skip
    starts, lanes = _lanes(spots, widths, inner)
    above = _TOP + _LANE * (max(lanes, default=-1) + 1)
    height = above + _AXES_HEIGHT + _BOTTOM
    figure.set_size_inches(_WIDTH / 72, height / 72)
    axes.set_position((_LEFT / _WIDTH, _BOTTOM / height, inner / _WIDTH, _AXES_HEIGHT / height))
    for label, (_, text), spot, start, lane, place in zip(labels, plot.marks, spots, starts, lanes, places, strict=True):
        colour = _MUTED if _PERCENTILE.match(text) else _CUT
        top = 1 + (lane * _LANE + 3) / _AXES_HEIGHT
        label.set(position=(start / inner, top), transform=axes.transAxes, color=colour, va="bottom", ha="left")
        if place is not None:
            x = [spot / inner] * 2
            axes.plot(x, [0, top + 4 / _AXES_HEIGHT], transform=axes.transAxes, color=colour, clip_on=False, linewidth=0.9)
    _axes(axes, plot, edges, scale)


def _label(at: float, text: str) -> str:
    """Spell a mark with its value, unless the text holds the value already."""
    value = f"{at:,.0f}"
    return text if value in text else f"{text} {value}"


def _place(at: float, edges: list[float]) -> float | None:
    """Return where `at` stands, in bars from the left; `None` if outside."""
    for i, (low, high) in enumerate(pairwise(edges)):
        if low <= at <= high:
            return i + (at - low) / (high - low)
    return None


def _lanes(spots: list[float], widths: list[float], inner: float) -> tuple[list[float], list[int]]:
    """Give each label its left end and its lane, so that none overlaps another: the right ones below."""
    starts = [max(0.0, min(spot + 3, inner + _RIGHT - width)) for spot, width in zip(spots, widths, strict=True)]
    lanes = [0] * len(spots)
    done: list[int] = []
    for i in sorted(range(len(spots)), key=lambda i: (-spots[i], i)):
        end = starts[i] + widths[i] + _GAP
        beside = [lanes[j] for j in done if starts[j] < end and starts[i] < starts[j] + widths[j] + _GAP]
        lanes[i] = max(beside, default=-1) + 1
        done.append(i)
    return starts, lanes


def _axes(axes: Any, plot: Plot, edges: list[float], scale: float) -> None:
    ticks = _ticks(edges, scale)
    axes.set_xticks([place for _, place in ticks], [_short(value) for value, _ in ticks])
    axes.set_xlabel(_plain(plot.x_label), color=_MUTED, parse_math=False)
    axes.set_ylabel(_plain(plot.y_label), color=_MUTED, parse_math=False)
    axes.yaxis.set_major_locator(_locator(4))
    axes.yaxis.set_major_formatter(lambda value, _: _short(value))
    axes.tick_params(colors=_MUTED, length=0, pad=5)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=_LINE, linewidth=0.8)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(_MUTED)


def _locator(num: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(num, steps=[1, 2, 2.5, 5, 10], integer=True)


def _ticks(edges: list[float], scale: float) -> list[tuple[float, float]]:
    """Choose round values, as many as have room, each with where it stands."""
    low, high = edges[0], edges[-1]
    if edges[-1] - edges[-2] < 4 * (edges[1] - edges[0]):
        return _placed(list(map(float, _locator(6).tick_values(low, high))), edges)
    powers = [10.0**power for power in range(math.floor(math.log10(edges[1])), math.ceil(math.log10(high)) + 1)]
    placed = []
    for steps in ((1, 2, 5), (1, 3), (1,)):
        values = [step * power for power in powers for step in steps]
        placed = _placed([low] * (low == 0) + [value for value in values if value == low or value >= edges[1]], edges)
        if len(placed) > 1 and all(_apart(*pair, scale) for pair in pairwise(placed)):
            return placed
    kept = placed[:1]
    for tick in placed[1:]:
        kept += [tick] if _apart(kept[-1], tick, scale) else []
    return kept


def _apart(left: tuple[float, float], right: tuple[float, float], scale: float) -> bool:
    """Tell whether the labels of two ticks have room side by side."""
    chars = len(_short(left[0])) + len(_short(right[0]))
    return (right[1] - left[1]) * scale >= chars / 2 * 0.62 * _FONT + 2 * _GAP


def _placed(values: list[float], edges: list[float]) -> list[tuple[float, float]]:
    places = [(value, _place(value, edges)) for value in values]
    return [(value, place) for value, place in places if place is not None]


def _short(value: float) -> str:
    """Spell a number for an axis: 950, 2k, 1.5M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _plain(text: str) -> str:
    """Leave out what XML cannot hold."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _embedded(svg: str, key: str) -> str:
    """Turn a file into an element: no prolog, ids of its own, the page's colours."""
    head, body = svg[svg.index("<svg") :].split(">", 1)
    (box,) = re.findall(r'viewBox="[^"]*"', head)
    svg = f"<svg {box}>{re.sub(r'<(metadata|style).*?</[^>]*>', '', body, flags=re.S)}"
    svg = re.sub(r'<g id="mark">', '<g class="mark">', svg)
    svg = re.sub(r'<g id="[^"]*"(/?)>', r"<g\1>", svg)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{key}-", svg)
    svg = re.sub(r" font-family: [^;]*;", "", svg)
    for drawn, meant in _COLOURS.items():
        svg = svg.replace(drawn, meant)
    return svg.strip()
