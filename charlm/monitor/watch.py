"""The picture of a run on a terminal: progress, curve of the loss, figures, latest sample."""

import math
import os
import re
import shutil
import signal
import statistics
import sys
from collections import defaultdict
from itertools import groupby, pairwise

from tqdm import tqdm

from charlm.monitor.run_files import ENDED, History, runs_near
from charlm.terminal import colored, is_live, keys, screen, side_by_side, wrapped

SECONDS = 1.0  # between two pictures
PLOT_ROWS = 12
STATE_COLORS = {"running": "cyan", "done": "green", "failed": "red", "interrupted": "yellow"}
TRAINING = (
    "loss {loss:.3f}  bpc {bpc:.3f}  lr {learning_rate:.2g}  grad {grad_norm:.2g}  "
    "{characters_per_second:,.0f} chars/s  epoch {epoch:.2f}"
)
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # bits of a braille character by row, column


def show(run: History, live: bool) -> None:
    """Print the picture of a run; live: draw it every second until the run ends, then print the last one."""

    def lines(rows: int = 40) -> list[str]:
        columns = shutil.get_terminal_size().columns
        braille = (sys.stdout.encoding or "").lower().startswith(("utf", "gb18030"))  # all of Unicode
        color = is_live() and not os.environ.get("NO_COLOR")  # no-color.org
        return picture(run, columns, rows, braille=braille, color=color)

    if not live or run.state in ENDED:
        print("\n".join(lines()))
        return
    handler = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with screen() as draw, keys() as wait:
            pressed = ""
            while run.state not in ENDED and pressed != "q":
                size = shutil.get_terminal_size()
                shown = lines(size.lines)
                if run.state == "waiting":
                    text = f"waiting for it to begin; q ends this{runs_near(run.dir)}"
                    shown += wrapped(text, size.columns)
                draw(shown)
                pressed = wait(SECONDS)
                run.refresh()
    finally:
        signal.signal(signal.SIGTERM, handler)
        print("\n".join(lines()))


def picture(run: History, columns: int, rows: int, braille: bool = True, color: bool = False) -> list[str]:
    """At most `rows` lines of at most `columns`; little room shortens the sample first, then the curve.
    braille: draw the curve with braille characters, else in ASCII. color: add escape sequences."""
    if run.state == "waiting":
        status = "has not begun yet" if run.dir.exists() else "does not exist yet"
        return wrapped(f"{run.dir} {status}", columns)[:rows]
    head, figures, sample = _head(run, columns), _figures(run, columns), []
    if last := run.latest("sample"):
        sample = [colored(f"sample at step {last['step']:,}:"[:columns], "dim")]
        sample += wrapped(last["sample"].rstrip("\n"), columns, drop_whitespace=False)
    room = rows - len(head) - len(figures)
    height = min(PLOT_ROWS, room - 2 - min(len(sample), 6))
    curve = _curve(run, columns, height) if height >= 3 else []
    if not braille:
        curve = [re.sub("[\u2801-\u28ff]", ".", line).replace("┤", "|") for line in curve]
    lines = [*head, *curve, *figures, *sample[: max(room - len(curve), 0)]][:rows]
    return lines if color else [re.sub("\x1b\\[\\d+m", "", line) for line in lines]


def _head(run: History, columns: int) -> list[str]:
    """Run directory, state, progress, and what is wrong."""
    of = f" of {run.steps:,}  {min(run.last_step / run.steps, 1):.0%}" if run.steps else ""
    items, notes = [str(run.dir), run.state, f"step {run.last_step:,}{of}"], []
    if run.state == "running" and (left := run.seconds_left()) is not None:
        items.append(f"{tqdm.format_interval(left)} left")
    if silent := run.seconds_silent():
        notes.append(f"no figures for {tqdm.format_interval(silent)}; if killed, the same command resumes it")
    if run.status.get("error"):
        notes.append(run.status["error"])
    if run.status.get("reason"):
        notes.append(f"{run.status['reason']}; the same command resumes the run")
    lines = side_by_side(items, columns) + [line for note in notes for line in wrapped(note, columns)]
    color = "yellow" if silent else STATE_COLORS.get(run.state, "bold")
    return [colored(line, color) for line in lines]


def _curve(run: History, columns: int, rows: int) -> list[str]:
    train, validation = run.points("bpc"), run.points("validation/bpc")
    legend = "line: train" + (", o: validation" if validation else "") + "; bits per character (bpc) by step"
    lines = [colored(line, "cyan") for line in plot(train, validation, columns, rows)]
    lines = [line.replace("o", f"{colored('o', 'yellow')}\x1b[36m") for line in lines]
    return [*lines, colored(legend[:columns], "dim")] if lines else []


def _figures(run: History, columns: int) -> list[str]:
    last, evaluations = run.latest("bpc"), run.evaluations
    items = TRAINING.format_map(defaultdict(lambda: math.nan, last)).split("  ") if last else []
    if evaluations:
        scores = {"validation": evaluations[-1], "best": run.best}
        items += [f"{name} {of['bpc']:.3f} at {of['step']:,}" for name, of in scores.items()]
    if run.status.get("test"):
        items.append(f"test {run.status['test']['bpc']:.3f}")
    return side_by_side(items or ["no figures yet"], columns)


def plot(line: list, marks: list, columns: int, rows: int) -> list[str]:
    """A line through points and an `o` at others, in `rows` + 1 lines of text at most `columns` wide.

    Points are (x, y), x ascending. Those that are not finite are left out; without points there are no lines.
    The first tenth of the line may lie above the plot: the first losses of a run would flatten the rest.
    """
    line, marks = ([point for point in points if math.isfinite(point[1])] for points in (line, marks))
    points = line + marks
    if not points:
        return []
    left, right = min(points)[0], max(points)[0]
    low, high = min(y for _, y in points), max(y for x, y in points if x >= left + (right - left) / 10)
    labels = {row: f"{high - (high - low) * row / max(rows - 1, 1):.3g}" for row in (0, rows // 2, rows - 1)}
    margin = max(map(len, labels.values())) + 2
    columns = max(columns - margin, 1)

    def dot(x: float, y: float) -> tuple[float, float]:
        across, down = (x - left) / (right - left or 1), (high - min(y, high)) / (high - low or 1)
        return across * (2 * columns - 1), down * (4 * rows - 1)

    dots = groupby((dot(*point) for point in line if point[1] <= high), key=lambda point: round(point[0]))
    means = [(x, statistics.fmean(y for _, y in column)) for x, column in dots]
    cells = [[0] * columns for _ in range(rows)]
    for (x0, y0), (x1, y1) in pairwise(means[:1] + means):
        steps = max(x1 - x0, math.ceil(abs(y1 - y0)), 1)
        for i in range(steps + 1):
            x, y = round(x0 + (x1 - x0) * i / steps), round(y0 + (y1 - y0) * i / steps)
            cells[y // 4][x // 2] |= DOTS[y % 4][x % 2]
    text = [[chr(0x2800 + bits) if bits else " " for bits in row] for row in cells]
    for x, y in (dot(*point) for point in marks):
        text[round(y) // 4][round(x) // 2] = "o"
    lines = [f"{labels.get(row, ''):>{margin - 2}} ┤{''.join(text[row])}".rstrip() for row in range(rows)]
    first, last = f"{left:,.0f}", f"{right:,.0f}"
    return [*lines, f"{'':{margin}}{first} {last:>{max(columns - len(first) - 1, 0)}}"[: margin + columns]]
