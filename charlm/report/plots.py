"""Line plots as SVG. Their colours are CSS variables of the page, so they follow its light or dark theme."""

import io
import re
from collections.abc import Callable

import numpy as np

from charlm.corpus.prepared import baseline_title
from charlm.errors import CharlmError
from charlm.monitor.run_files import History

Series = tuple[np.ndarray, np.ndarray]  # x, y

INK, MUTED, GRID, FIRST, SECOND = "#010101", "#010102", "#010103", "#010104", "#010105"
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", FIRST: "line-1", SECOND: "line-2"}
_SIZE = 4.4, 2.7  # inches; at the width of a phone the letters are still readable
_STYLE = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), MUTED),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("axes.linewidth", "grid.linewidth"), 0.6),
    "axes.grid": True,
    "grid.color": GRID,
    "lines.linewidth": 1.5,
    "lines.markersize": 3.5,
    "font.size": 9,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",  # text stays text: the page's font, and a small file
}
# figure of metrics.jsonl, label of the axis, caption of a plot by step
CURVES = [
    ("loss", "loss", "Loss, nats per symbol"),
    ("learning_rate", "learning rate", "Learning rate"),
    ("grad_norm", "norm", "Gradient norm, before clipping"),
    ("characters_per_second", "characters/s", "Throughput, characters per second"),
]


def import_matplotlib():
    """The package, with its Figure. Raises CharlmError when it is not installed."""
    try:
        import matplotlib.figure
    except ImportError as error:
        raise CharlmError("matplotlib is not installed: pip install 'charlm[report]'") from error
    return matplotlib


def series(history: History, name: str, most: int = 600) -> Series:
    """(steps int64[n], values float64[n]) of one figure; of more than `most`, the means of neighbours."""
    steps, values = np.array(history.points(name), np.float64).reshape(-1, 2).T
    if len(steps) > most:
        edges = np.linspace(0, len(steps), most + 1).astype(int)
        steps, values = steps[edges[1:] - 1], np.add.reduceat(values, edges[:-1]) / np.diff(edges)
    return steps.astype(np.int64), values


def training_plots(history: History, baselines: dict) -> list[tuple[str, str]]:
    """(caption, <svg>) of every figure of training that has finite values. baselines: as in corpus.json."""
    # "6-gram, Witten-Bell" is too long for the margin
    levels = {baseline_title(key, row).split(",")[0]: row["bpc"] for key, row in baselines.items()}
    bpc = _bpc_plot(series(history, "bpc"), series(history, "validation/bpc"), levels)
    plots = [("Bits per character", bpc)]
    for name, label, caption in CURVES:
        plots.append((caption, _curve(*series(history, name), label, caption, log=name == "grad_norm")))
    return [(caption, svg) for caption, svg in plots if svg]


def context_plot(rows: list[dict]) -> str:
    """Bits per character by distance from a reset of the state; rows as by_context returns them."""

    def finish(axes) -> None:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set(xlabel="characters since the state was reset", ylabel="bits per character")
        axes.legend(loc="upper right")

    distances, lines = np.array([row["characters_from"] for row in rows]), {}
    for label, kind in (("since a reset", ""), ("state carried from the start", "carried_")):
        lines[label] = distances, np.array([row[f"{kind}nats_per_character"] for row in rows]) / np.log(2)
    return _plot("bits per character by characters since the state was reset", lines, [*lines], finish)


def _plot(title: str, lines: dict[str, Series], marked: list[str], finish: Callable) -> str | None:
    """An <svg> of one pair of axes, or None when no line has a finite value. title: for screen readers.
    marked: labels of the lines with marked points. finish(axes): sets the rest."""
    if not any(np.isfinite(y).any() for _, y in lines.values()):
        return None
    matplotlib = import_matplotlib()
    # the salt makes ids inside the picture unique in the page, and the same in every run
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": title}):
        figure = matplotlib.figure.Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        for colour, (label, (x, y)) in zip((FIRST, SECOND), lines.items(), strict=False):
            if len(x):
                marker = "o" if label in marked or len(x) == 1 else ""
                axes.plot(x, y, color=colour, label=label, marker=marker)
        finish(axes)
        out = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=no_metadata)
    return _inline_svg(out.getvalue(), title)


def _inline_svg(svg: str, title: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' id="(?!\w*[0-9a-f]{10}")[^"]*"', "", svg)  # figure_1, axes_1: the same in every picture
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for colour, name in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def _short_number(value: float, _=None) -> str:
    """2,500 as 2.5k, 3,000,000 as 3M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _label_axes(axes, unit: str) -> None:
    """Steps along x, unit along y."""
    axes.xaxis.set_major_formatter(_short_number)
    axes.xaxis.get_major_locator().set_params(nbins=5)
    axes.set(xlabel="step", ylabel=unit)
    axes.margins(x=0.02)


def _bpc_plot(train: Series, validation: Series, levels: dict[str, float]) -> str | None:
    """levels: title of a baseline → its bits per character, drawn as a horizontal line."""

    def finish(axes) -> None:
        values = [v for _, y in (train, validation) for v in y if np.isfinite(v)] + [*levels.values()]
        last = [y[-1] for _, y in (train, validation) if len(y) and np.isfinite(y[-1])]
        if last:  # the first steps score far worse and may lie above the plot
            low, high = min(values), min(max(values), max([*last, *levels.values()]) * 1.6)
            axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low) or None)
        _draw_levels(axes, levels)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
        _label_axes(axes, "bits per character")

    marked = ["validation"] if len(validation[0]) <= 30 else []
    lines = {"train": train, "validation": validation}
    return _plot("bits per character by step, on train and validation", lines, marked, finish)


def _draw_levels(axes, levels: dict[str, float]) -> None:
    """Dashed lines, each labelled at its right end; labels do not overlap."""
    low, high = axes.get_ylim()
    spacing, last = 0.075 * (high - low), -np.inf
    for title, value in sorted(levels.items(), key=lambda level: level[1]):
        axes.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        last = max(value, last + spacing)
        place = {"xycoords": ("axes fraction", "data"), "xytext": (4, 0), "textcoords": "offset points"}
        axes.annotate(title, (1, last), ha="left", va="center", fontsize=8, color=MUTED, **place)


def _curve(steps: np.ndarray, values: np.ndarray, label: str, caption: str, log: bool) -> str | None:
    """One figure by step. log: on a logarithmic axis if it is positive and spans more than a factor of 20."""

    def finish(axes) -> None:
        finite = values[np.isfinite(values)]
        if log and 0 < 20 * finite.min() < finite.max():
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(lambda value, _: _short_number(round(value, 12)))
        _label_axes(axes, label)

    return _plot(f"{caption}, by step", {label: (steps, values)}, [], finish)
