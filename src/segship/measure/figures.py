"""The report's plots: matplotlib to inline SVG that takes its colours and fonts from the page.

Every plot is drawn twice, wide and narrow, with letters of one size; the page shows the one that fits. Colours
are placeholders that become CSS variables, so that a plot follows the page into dark mode.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from segship.errors import UsageError

# placeholder -> CSS; drawn nowhere else, so that replacing the text is safe
INK, SOFT, LINE, ACCENT, WARM = "#010203", "#020304", "#030405", "#040506", "#050607"
_CSS = {INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)", ACCENT: "var(--accent)", WARM: "var(--warm)"}
_LOOKS = ((ACCENT, "-"), (WARM, (0, (5, 2))), (SOFT, (0, (1, 1.5))), (INK, (0, (6, 2, 1, 2))))
_SIZES = {"wide": (7.4, 3.5), "half": (3.6, 2.7), "narrow": (3.5, 3.1)}  # inches of 96 pixels


@dataclass(frozen=True, kw_only=True)
class Point:
    """One variant in the plot of accuracy against speed."""

    name: str
    speed: float
    value: float
    low: float | None = None
    high: float | None = None
    """bounds of the value, where an interval of the drop is known"""


def speed_plot(
    points: Sequence[Point], *, metric: str, speed_label: str, higher_is_better: bool = True
) -> dict[str, str]:
    """Accuracy against speed with the Pareto front: {'wide': svg, 'narrow': svg}. Needs at least one point."""
    front = pareto(points, higher_is_better)
    best = ", ".join(point.name for point in front)
    text = "; ".join(f"{p.name}: {metric} {p.value:.4f} at {p.speed:.1f} images per second" for p in points)
    title = f"{metric} against {speed_label}. {text}. On the Pareto front: {best}."

    def draw(axes: Any, size: str) -> None:
        axes.plot([p.speed for p in front], [p.value for p in front], color=ACCENT, lw=1.2, ls=(0, (4, 3)), zorder=1)
        for point in points:
            shown = ACCENT if point in front else SOFT
            if point.low is not None and point.high is not None:
                axes.plot([point.speed] * 2, [point.low, point.high], color=shown, lw=1.4, alpha=0.55, zorder=2)
            axes.plot(point.speed, point.value, "o", ms=7, color=shown, zorder=3, clip_on=False)
        axes.set_xlim(0, max(p.speed for p in points) * 1.18)
        _pad_values(axes, [v for p in points for v in (p.value, p.low, p.high) if v is not None])
        axes.set_xlabel(speed_label)
        axes.set_title(metric, loc="left")
        _label_points(axes, points, higher_is_better)

    return {size: _svg(draw, size, title) for size in ("wide", "narrow")}


def pareto(points: Sequence[Point], higher_is_better: bool = True) -> list[Point]:
    """The points that no other beats in both speed and value, slowest first."""
    sign = 1 if higher_is_better else -1
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.speed, -sign * p.value)):
        if not front or sign * point.value > sign * front[-1].value:
            front.append(point)
    return front[::-1]


def score_histogram(scores: Sequence[float], *, metric: str, higher_is_better: bool = True) -> dict[str, str]:
    """How one precision's per-case scores are spread: over 0..1, errors over 0 to the largest."""
    values = np.asarray(scores)
    low, high = min(0.0, float(values.min())), max(1.0 if higher_is_better else 1e-6, float(values.max()))
    counts, edges = np.histogram(values, bins=20, range=(low, high))
    title = (
        f"Histogram of {metric} over {len(values)} cases: least {values.min():.3f}, median {np.median(values):.3f}, "
        f"greatest {values.max():.3f}."
    )

    def draw(axes: Any, size: str) -> None:
        axes.bar(edges[:-1], counts, width=np.diff(edges) * 0.86, align="edge", color=ACCENT)
        median = float(np.median(values))
        axes.axvline(median, color=INK, lw=1)
        left = median > (low + high) / 2  # on the side with more room
        axes.annotate(
            f"median {median:.3f}", (median, 1), (-6 if left else 6, 0), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="right" if left else "left", va="top", color=SOFT,
        )  # fmt: skip
        axes.set_ylim(0, counts.max() * 1.14)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel(f"{metric} of a case")
        axes.set_title("cases", loc="left")
        axes.set_xlim(low, high)

    return {size: _svg(draw, size, title) for size in ("half", "narrow")}


def drop_plot(drops: Sequence[float], *, metric: str, precision: str, higher_is_better: bool = True) -> dict[str, str]:
    """What each case lost from fp32 to ``precision``, sorted: gains left, losses right. Of an error: what it added."""
    values = np.sort(np.asarray(drops))
    what = "lost" if higher_is_better else "added"
    title = (
        f"{metric} {what} per case from fp32 to {precision}, sorted: from {values[0]:+.4f} to {values[-1]:+.4f} over "
        f"{len(values)} cases, mean {values.mean():+.4f}."
    )

    def draw(axes: Any, size: str) -> None:
        places = np.arange(1, len(values) + 1)
        for chosen, color in ((values > 0, WARM), (values <= 0, ACCENT)):
            axes.vlines(places[chosen], 0, values[chosen], color=color, lw=max(0.8, min(4.0, 150 / len(values))))
        axes.axhline(0, color=SOFT, lw=0.8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel(f"cases, sorted by what {precision} changes")
        axes.set_title(f"{metric} {what}", loc="left")
        axes.set_xlim(0, len(values) + 1)

    return {size: _svg(draw, size, title) for size in ("half", "narrow")}


def curve_plots(by_name: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """{'pr': …, 'f': …}: precision over recall, and F over thresholds with its maximum; the first name stands out.

    Each value holds arrays ``precision``, ``recall`` and ``F`` by threshold 0..255.
    """
    names = list(by_name)
    looks = {name: _LOOKS[min(place, len(_LOOKS) - 1)] for place, name in enumerate(names)}
    peaks = {name: int(np.argmax(found["F"])) for name, found in by_name.items()}
    best = "; ".join(f"{name}: max F {by_name[name]['F'][i]:.4f} at threshold {i}" for name, i in peaks.items())

    def draw(axes: Any, over: Callable[[str], Any], name_of: Callable[[str], str], key: str) -> None:
        for place, name in enumerate(names):
            color, dash = looks[name]
            line = {"color": color, "ls": dash, "lw": 1.6, "zorder": len(names) - place}
            axes.plot(over(name), by_name[name][key], label=name_of(name), **line)
        axes.set_ylim(0, 1.02)
        axes.legend(loc="best", frameon=False, labelcolor=SOFT)

    def precision_recall(axes: Any, size: str) -> None:
        draw(axes, lambda name: by_name[name]["recall"], str, "precision")
        axes.set(xlim=(0, 1), xlabel="recall")
        axes.set_title("precision", loc="left")

    def f_curve(axes: Any, size: str) -> None:
        def peak(name: str) -> str:
            return f"{name}, {by_name[name]['F'][peaks[name]]:.4f} at {peaks[name]}"

        draw(axes, lambda name: np.arange(len(by_name[name]["F"])), peak, "F")
        axes.plot(
            peaks[names[0]], by_name[names[0]]["F"][peaks[names[0]]], "o", ms=5, color=looks[names[0]][0], zorder=9
        )
        axes.set(xlim=(0, 255), xlabel="threshold on the map, 0 to 255")
        axes.set_title("F (β² = 0.3)", loc="left")

    texts = {
        "pr": f"Precision over recall of {', '.join(names)}, each averaged over the images.",
        "f": f"F measure over thresholds of {', '.join(names)}. {best}.",
    }
    draws = {"pr": precision_recall, "f": f_curve}
    return {kind: {size: _svg(draws[kind], size, texts[kind]) for size in ("half", "narrow")} for kind in texts}


# ------------------------------------------------------------------------------------------------ drawing


def _svg(draw: Callable[[Any, str], None], size: str, title: str) -> str:
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("the report needs matplotlib and jinja2; type: pip install 'segship[report]'") from None
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "segship",  # equal plots are equal text
        "font.size": 9,
        "axes.edgecolor": LINE,
        "axes.labelcolor": SOFT,
        "axes.titlecolor": SOFT,
        "axes.titlesize": 9,
        "axes.linewidth": 0.9,
        "axes.grid": True,
        "grid.color": LINE,
        "grid.linewidth": 0.7,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": SOFT,
        "ytick.labelcolor": SOFT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.axisbelow": True,
        "axes.formatter.useoffset": False,
    }
    with rc_context(style):
        figure = Figure(figsize=_SIZES[size], layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.grid(False, axis="x")
        axes.tick_params(axis="both", length=0, pad=5)
        draw(axes, size)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _embed(text.getvalue(), size, title)


def _embed(svg: str, size: str, title: str) -> str:
    """Without prolog and fixed size; named for readers who hear the page; in the page's colours and fonts."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    head, rest = svg.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head, count=2)
    svg = f'{head} class="plot {size}" role="img" aria-label="{escape(title)}">{rest}'
    for placeholder, variable in _CSS.items():
        svg = svg.replace(placeholder, variable)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.S)  # it would hold for the whole page
    prefix = hashlib.sha256(f"{title}{size}".encode()).hexdigest()[:8]  # ids of two plots on one page must differ
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    return re.sub(r"font-family: [^;\"]*;? ?", "", svg)


def _pad_values(axes: Any, values: Sequence[float]) -> None:
    low, high = min(values), max(values)
    room = max(high - low, 0.002) * 0.35
    axes.set_ylim(low - room, high + room)


def _label_points(axes: Any, points: Sequence[Point], higher_is_better: bool = True) -> None:
    """Names to the right of the points and clear of the front: above where it falls, below where it rises; moved on
    where two would touch, to the left of a point whose neighbour is in the way, under it where the edge is near."""
    width, height = (size * 72 * share for size, share in zip(axes.figure.get_size_inches(), (0.85, 0.75), strict=True))
    low, high = axes.get_ylim()
    up = 1 if higher_is_better else -1
    per_point = (high - low) / height * up  # value units per typographic point
    across = (axes.get_xlim()[1] - axes.get_xlim()[0]) / width
    near = 0.16 * width * across
    placed: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: p.value / per_point):
        own = point.value / per_point
        beside = [q for q in points if 0 < q.speed - point.speed < near and abs(q.value / per_point - own - 8) < 10]
        left = bool(beside) and point.speed > (7 * len(point.name) + 7) * across
        place = point.speed - near if left else point.speed
        level = own - 10 if beside and not left else own + 8
        for speed, other in placed:
            if abs(speed - place) < near and level < other + 12:
                level = other + 12
        placed.append((place, level))
        axes.annotate(
            point.name, (point.speed, point.value), (-7 if left else 7, (level - own) * up),
            textcoords="offset points", va="center", ha="right" if left else "left", color=INK,
        )  # fmt: skip
