"""Plots as SVG that takes its colours from the page around it, so that light and dark both suit it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence

import numpy as np

from charlm.errors import CharlmError
from charlm.monitor.run_files import History, thinned

# What matplotlib draws with, and the CSS variable that each becomes in the page.
INK, MUTED, GRID, FIRST, SECOND = "#010101", "#010102", "#010103", "#010104", "#010105"
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", FIRST: "line-1", SECOND: "line-2"}
_WIDTH, _HEIGHT = 4.4, 2.7  # inches; shown about as wide as a phone, where its letters are still read


def matplotlib():
    """The library, without a screen. Raises CharlmError when it is not installed."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CharlmError(
            "charlm report draws with matplotlib, which is not installed: pip install 'charlm[report]'"
        ) from error
    return matplotlib, Figure


def plot(draw: Callable, title: str) -> str:
    """An <svg> of one pair of axes, which `draw` is called with. title: for those who cannot see it."""
    library, figure_of = matplotlib()
    style = {
        "svg.fonttype": "none",  # letters as text: the page's font, and small
        "svg.hashsalt": title,  # names inside the picture: the same every time, others in every picture
        "font.size": 9,
        "axes.edgecolor": MUTED,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.labelcolor": INK,
        "axes.grid": True,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "lines.linewidth": 1.5,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
    }
    with library.rc_context(style):
        figure = figure_of(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        out = io.StringIO()
        about = {"Creator": None, "Date": None, "Format": None, "Type": None}
        figure.savefig(out, format="svg", transparent=True, metadata=about)
    return _for_page(out.getvalue(), title)


def _for_page(svg: str, title: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r' id="(?!\w*[0-9a-f]{10}")[^"]*"', "", svg)  # figure_1, axes_1: in every picture the same
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for colour, name in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def short_number(value: float) -> str:
    """2,500 as 2.5k, 3,000,000 as 3M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _steps(axes) -> None:
    axes.xaxis.set_major_formatter(lambda value, _: short_number(value))
    axes.xaxis.get_major_locator().set_params(nbins=5)
    axes.set_xlabel("step")
    axes.margins(x=0.02)


def bpc_plot(history: History, floors: dict[str, float]) -> str | None:
    """Bits per character on train and validation, the floors as lines. None when nothing was told yet."""
    train, held_out = history.series("bpc"), history.series("validation/bpc")
    if not len(train[0]) and not len(held_out[0]):
        return None

    def draw(axes) -> None:
        many = len(held_out[0]) > 30
        for (steps, values), label, colour, marker in (
            (train, "train", FIRST, ""),
            (held_out, "validation", SECOND, "" if many else "o"),
        ):
            if len(steps):
                alone = {"marker": "o"} if len(steps) == 1 else {"marker": marker}
                axes.plot(*thinned(steps, values), color=colour, label=label, markersize=3.5, **alone)
        known = [v for _, values in (train, held_out) for v in values if np.isfinite(v)] + [*floors.values()]
        end = [values[-1] for _, values in (train, held_out) if len(values) and np.isfinite(values[-1])]
        if known and end:  # the first steps, which score far worse, may leave the picture
            low, high = min(known), min(max(known), max([*end, *floors.values()]) * 1.6)
            axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low) or None)
        _floors(axes, floors)
        axes.set_ylabel("bits per character")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
        _steps(axes)

    return plot(draw, "bits per character by step, on train and validation")


def _floors(axes, floors: dict[str, float]) -> None:
    """A dashed line for each, named at its right end, no name upon another."""
    low, high = axes.get_ylim()
    least, last = 0.075 * (high - low), -np.inf
    for name, value in sorted(floors.items(), key=lambda floor: floor[1]):
        axes.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        last = max(value, last + least)
        place = {"xycoords": ("axes fraction", "data"), "xytext": (4, 0), "textcoords": "offset points"}
        axes.annotate(name, (1, last), ha="left", va="center", fontsize=8, color=MUTED, **place)


def curve(history: History, name: str, label: str, title: str, spreads: bool = False) -> str | None:
    """One figure by step. None when it was never told. spreads: logarithmic when it spans a lot."""
    steps, values = history.series(name)
    if not np.isfinite(values).any():
        return None

    def draw(axes) -> None:
        marker = {"marker": "o", "markersize": 3.5} if len(steps) == 1 else {}
        axes.plot(*thinned(steps, values), color=FIRST, **marker)
        finite = values[np.isfinite(values)]
        if spreads and 0 < 20 * finite.min() < finite.max():
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(lambda value, _: short_number(round(value, 12)))
        axes.set_ylabel(label)
        _steps(axes)

    return plot(draw, title)


def context_plot(rows: Sequence[dict]) -> str:
    """Bits per character by distance from a reset of the state; rows as by_context returns them."""

    def draw(axes) -> None:
        at = [row["characters_from"] for row in rows]
        for key, label, colour in (
            ("nats_per_character", "since a reset", FIRST),
            ("carried_nats_per_character", "state carried from the start", SECOND),
        ):
            axes.plot(
                at, [row[key] / np.log(2) for row in rows], "o-", color=colour, label=label, markersize=3.5
            )
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_xlabel("characters since the state was reset")
        axes.set_ylabel("bits per character")
        axes.legend(loc="upper right")

    return plot(draw, "bits per character by characters since the state was reset")
