"""Curves in characters: eight dots of braille per character, or one dot where there is no braille."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of U+2800, by row and column


@dataclass
class Curve:
    """Points in ascending order of x. mark: a character at every point, instead of a line through them."""

    points: list[tuple[float, float]]
    mark: str = ""


def plot(curves: list[Curve], columns: int, rows: int, braille: bool = True) -> list[str]:
    """Lines of text, `rows` + 1 of them, at most `columns` wide: the curves, their axes; none for no points.

    What is not finite is left out. The first tenth of a line may lie above the picture: the losses that a run
    begins with would press the rest flat.
    """
    curves = [Curve([p for p in c.points if all(map(math.isfinite, p))], c.mark) for c in curves]
    points = [p for c in curves for p in c.points]
    if not points:
        return []
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = _heights(points, left, right)
    labels = [f"{high + (low - high) * row / max(rows - 1, 1):.3g}" for row in range(rows)]
    margin = max(map(len, labels)) + 2
    columns = max(columns - margin, 1)
    across, down = (2, 4) if braille else (1, 1)
    cells = [[0] * columns for _ in range(rows)]
    marks: dict[tuple[int, int], str] = {}
    for curve in curves:
        scaled = [
            (
                (x - left) / ((right - left) or 1) * (columns * across - 1),
                (1 - (min(y, high) - low) / ((high - low) or 1)) * (rows * down - 1),
            )
            for x, y in curve.points
        ]
        if curve.mark:
            marks |= {(round(y) // down, round(x) // across): curve.mark for x, y in scaled}
            continue
        seen = [point for point, (_, y) in zip(scaled, curve.points, strict=True) if y <= high]
        for x, y in _joined(_averaged(seen)):
            cells[y // down][x // across] |= DOTS[y % down][x % across] if braille else 1
    lines = []
    for row in range(rows):
        text = "".join(
            marks.get((row, column)) or ((chr(0x2800 + dots) if braille else ".") if dots else " ")
            for column, dots in enumerate(cells[row])
        )
        label = labels[row] if row in (0, rows // 2, rows - 1) else ""
        lines.append(f"{label:>{margin - 2}} {'┤' if braille else '|'}{text}".rstrip())
    first, last = f"{left:,.0f}", f"{right:,.0f}"
    gap = max(columns - len(first) - len(last), 1)
    return [*lines, f"{'':{margin}}{first}{'':{gap}}{last}"[: margin + columns]]


def _heights(points: list[tuple[float, float]], left: float, right: float) -> tuple[float, float]:
    later = [y for x, y in points if x >= left + (right - left) / 10]
    low = min(y for _, y in points)
    return low, max(max(later, default=low), low + 1e-9)


def _averaged(points: list[tuple[float, float]]) -> list[tuple[int, float]]:
    """One point per column of dots."""
    heights: dict[int, list[float]] = {}
    for x, y in points:
        heights.setdefault(round(x), []).append(y)
    return [(x, sum(ys) / len(ys)) for x, ys in heights.items()]


def _joined(points: list[tuple[int, float]]) -> list[tuple[int, int]]:
    """The dots of the lines between the points."""
    dots = [(x, round(y)) for x, y in points[:1]]
    for (x0, y0), (x1, y1) in pairwise(points):
        steps = max(x1 - x0, abs(round(y1) - round(y0)), 1)
        dots += [
            (round(x0 + (x1 - x0) * i / steps), round(y0 + (y1 - y0) * i / steps))
            for i in range(1, steps + 1)
        ]
    return dots
