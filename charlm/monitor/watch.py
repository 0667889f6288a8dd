"""The picture of a run on a terminal: how far it is, its curve, its figures, what it writes by now."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from pathlib import Path

from charlm.monitor.braille import Curve, plot
from charlm.monitor.progress import ENDED, Progress
from charlm.terminal import can_show, has_color, painted, screen, side_by_side, visible, wrapped

SECONDS = 1.0  # between two pictures
PLOT_ROWS = 12
STATUS_COLORS = {"running": "cyan", "done": "green", "failed": "red", "interrupted": "yellow"}


def show(run: Progress, live: bool) -> None:
    """Print the picture of a run; live: draw it again and again until the run ends, then print the last."""

    def lines(rows: int = 40) -> list[str]:
        columns = shutil.get_terminal_size().columns
        return picture(run, columns, rows, braille=can_show("\u28ff┤"), color=has_color())

    if not live or run.status in ENDED:
        print("\n".join(lines()))
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with screen() as draw:
            while run.status not in ENDED:
                size = shutil.get_terminal_size()
                shown = lines(size.lines)
                if run.status == "waiting":
                    text = f"waiting for it to begin; Ctrl-C leaves{other_runs(run.dir)}"
                    shown += sentence(text, size.columns)
                draw(shown)
                time.sleep(SECONDS)
                run.refresh()
    finally:
        signal.signal(signal.SIGTERM, before)
        print("\n".join(lines()))


def other_runs(folder: Path) -> str:
    """For messages: the runs in the folder in which one was expected."""
    if folder.exists() or not folder.parent.is_dir():
        return ""
    names = [path.name for path in sorted(folder.parent.iterdir()) if Progress.holds_run(path)]
    return f"; in {folder.parent} there are: {', '.join(names)}" if names else ""


def duration(seconds: float) -> str:
    """45 s, 12 min, 3 h 05 min, 2 d 07 h."""
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if minutes < 2:
        return f"{seconds:.0f} s"
    if hours < 2:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60:02} min" if hours < 48 else f"{hours // 24} d {hours % 24:02} h"


def picture(
    run: Progress, columns: int = 80, rows: int = 40, *, braille: bool = True, color: bool = False
) -> list[str]:
    """The lines to show, at most `rows` of at most `columns`; less of the sample, then of the curve, where
    there is little room."""
    head = _head(run, columns, color)
    if run.status == "waiting":
        return head[:rows]
    figures = _figures(run, columns)
    sample = _sample(run, columns, color)
    room = rows - len(head) - len(figures)
    height = min(PLOT_ROWS, room - 2 - min(len(sample), 6))
    curve = []
    if height >= 3 and (run.train or run.validation):
        curve = _curve(run, columns, height, braille, color)
    return [*head, *curve, *figures, *sample[: max(room - len(curve), 0)]][:rows]


def sentence(text: str, columns: int) -> list[str]:
    """Its lines, broken between words."""
    return side_by_side(visible(text).split(), columns, " ")


def _head(run: Progress, columns: int, color: bool) -> list[str]:
    """Which run, its status, how far, how long."""
    if run.status == "waiting":
        what = "has not begun yet" if run.dir.exists() else "is not there yet"
        return sentence(f"{run.dir} {what}", columns)
    status = painted(run.status, STATUS_COLORS.get(run.status, "bold"), color)
    of = f" of {run.steps:,}" if run.steps else ""
    items = [str(run.dir), run.status, f"step {run.step:,}{of}"]
    if run.steps:
        items.append(f"{min(run.step / run.steps, 1):.0%}")
    left = run.seconds_left()
    if left is not None and run.status == "running":
        items.append(f"{duration(left)} left")
    lines = [line.replace(run.status, status, 1) if color else line for line in side_by_side(items, columns)]
    if run.silent():
        text = (
            f"no figures for {duration(run.silent())}: was it killed? its command goes on from a checkpoint"
        )
        lines += [painted(line, "yellow", color) for line in sentence(text, columns)]
    if run.told.get("error"):
        lines += [painted(line, "red", color) for line in sentence(run.told["error"], columns)]
    if run.told.get("reason"):
        lines += sentence(f"{run.told['reason']}; the same command goes on from there", columns)
    return lines


def _curve(run: Progress, columns: int, rows: int, braille: bool, color: bool) -> list[str]:
    mark = "o"
    lines = plot([Curve(run.train), Curve(run.validation, mark)], columns, rows, braille)
    if color:
        lines = [painted(line, "cyan", True).replace(mark, f"\x1b[33m{mark}\x1b[36m") for line in lines]
    legend = f"bpc by step: line train{f', {mark} validation' if run.validation else ''}"
    return [*lines, painted(legend[:columns], "dim", color)]


def _figures(run: Progress, columns: int) -> list[str]:
    last, items = run.last, []
    if last:
        items += [f"loss {last['loss']:.3f}", f"bpc {last['bpc']:.3f}"]
        items += [f"lr {last['learning_rate']:.2g}", f"grad {last['grad_norm']:.2g}"]
        items += [f"{last['characters_per_second'] / 1000:.1f}k chars/s", f"epoch {last['epoch']:.2f}"]
    if run.validation:
        step, bpc = run.validation[-1]
        items.append(f"validation {bpc:.3f} at {step:,}")
        step, bpc = run.best
        items.append(f"best {bpc:.3f} at {step:,}")
    if run.told.get("test"):
        items.append(f"test {run.told['test']['bpc']:.3f}")
    return side_by_side(items or ["no figures yet"], columns)


def _sample(run: Progress, columns: int, color: bool) -> list[str]:
    if run.sample is None:
        return []
    step, text = run.sample
    return [
        painted(f"sample at step {step:,}:"[:columns], "dim", color),
        *wrapped(text.rstrip("\n"), columns),
    ]
