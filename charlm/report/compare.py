"""Runs side by side: what differs in their configs, their figures, and their curves in one picture."""

import math
import shutil
from collections.abc import Sequence
from textwrap import shorten

from charlm.config.parse import flatten, read_run_config
from charlm.errors import CharlmError
from charlm.monitor.run_files import History
from charlm.report.plots import import_matplotlib, series


def rows(run_dirs: Sequence[str], figure: str | None = None) -> list[dict]:
    """Of each run, the best on validation first: its folder, fields that differ between the runs, figures.
    figure: a .svg, .png or .pdf to draw the curves in. Raises CharlmError for a folder that is not a run's, a
    picture that cannot be written, and without matplotlib."""
    runs = [History(run_dir) for run_dir in run_dirs]
    for run in runs:
        run.refresh(must_exist=True)
    runs.sort(key=lambda run: run.best["bpc"] if run.best else math.inf)
    configs, found = [flatten(read_run_config(run.dir)) for run in runs], []
    differ = [k for k in configs[0] if k != "run_dir" and any(c[k] != configs[0][k] for c in configs)]
    for run, config in zip(runs, configs, strict=True):
        of = run.figures()
        row = {"run": of["run"]} | {key: config[key] for key in differ}
        row |= {"status": of["status"], "step": of["step"]}
        row |= {f"{name} bpc": (of[name] or {}).get("bpc") for name in ("train", "best", "test")}
        row["test bpb"] = (of["test"] or {}).get("bpb")
        changes = [f"{step}: {text}" for step, text in run.points("changed")]
        found.append(row | {"changed at": "; ".join(changes) or None})
    if figure is not None:
        _draw(runs, figure)
    return found


def table(rows: list[dict]) -> str:
    """Rows as text: a line per run, or where that is too wide, a column per run."""
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    texts = [[_cell(row[name]) for name in names] for row in rows]
    for cells in ([names, *texts], [*zip(names, *texts, strict=True)]):
        widths = [max(map(len, column)) + 2 for column in zip(*cells, strict=True)]
        if sum(widths) <= shutil.get_terminal_size().columns:
            break
    return "\n".join("".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def _cell(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else shorten(str(value), 70, placeholder="…")


def _draw(runs: list[History], path: str) -> None:
    figure = import_matplotlib().figure.Figure(figsize=(10, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("bpc", "validation/bpc"), strict=True):
        for run in runs:
            axes.plot(*series(run, name), label=str(run.dir), marker="." if name != "bpc" else "")
        axes.set(xlabel="step", ylabel=name.replace("/", " "))
    axes.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:  # ValueError: an unknown suffix
        reason = getattr(error, "strerror", error)
        raise CharlmError(f"--figure {path}: cannot be written ({reason})") from error
