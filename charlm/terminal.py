"""A terminal: what it can show, and text that is safe and fits on it."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

COLORS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


def visible(text: str) -> str:
    """Control characters, but newline and tab, as escapes: a terminal would obey them."""
    return text.translate({i: f"\\x{i:02x}" for i in (*range(9), *range(11, 32), *range(127, 160))})


def can_show(characters: str) -> bool:
    """Does stdout's encoding have them?"""
    try:
        characters.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def is_live() -> bool:
    """Is stdout a terminal on which a picture can be drawn over the one before?"""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def has_color() -> bool:
    """Is stdout a terminal that colors are wanted on (no-color.org)?"""
    return is_live() and not os.environ.get("NO_COLOR")


def painted(text: str, color: str, on: bool) -> str:
    """Text in one of COLORS, when colors are on."""
    return f"\x1b[{COLORS[color]}m{text}\x1b[0m" if on and text else text


def width_of(text: str) -> int:
    """Columns that printable text takes: two for a wide character, none for a combining one."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def wrapped(text: str, columns: int) -> list[str]:
    """The lines of a text, long ones broken at the last column; without tabs and control characters."""
    lines = []
    for line in visible(text).expandtabs(4).split("\n"):
        piece, room = "", columns
        for character in line:
            wide = width_of(character)
            if wide > room:
                lines.append(piece)
                piece, room = "", columns
            piece += character
            room -= wide
        lines.append(piece)
    return lines


def side_by_side(items: list[str], columns: int, between: str = "  ") -> list[str]:
    """Words, or other short texts, in lines; broken only where one alone is too long for a line."""
    lines: list[str] = []
    for item in items:
        joined = f"{lines[-1]}{between}{item}" if lines else item
        if width_of(joined) <= columns:
            lines[-1:] = [joined]
        else:
            lines += wrapped(item, columns)
    return lines


@contextmanager
def screen() -> Iterator:
    """A screen of its own, the cursor hidden; yields a function that shows lines on it. The old screen comes
    back afterwards, whatever ends this."""

    def show(lines: list[str]) -> None:
        sys.stdout.write("\x1b[H" + "\x1b[K\r\n".join(lines) + "\x1b[K\x1b[J")
        sys.stdout.flush()

    sys.stdout.write("\x1b[?1049h\x1b[?25l")
    try:
        yield show
    finally:
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()
