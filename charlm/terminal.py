"""Text for a terminal: safe to print, wrapped to its width, in color."""

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from select import select

COLORS = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "cyan": 36}


def visible(text: str) -> str:
    """Replace by escapes what a terminal would execute: control characters except newline and tab, and those
    that reverse the order of what is shown. JSON stays the same JSON."""
    beyond = (*range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    escapes = {i: f"\\x{i:02x}" for i in (*range(9), *range(11, 32))} | {i: f"\\u{i:04x}" for i in beyond}
    return text.translate(escapes)


def shown(text: str, stream, indent: int = 0) -> str:
    """Text as it is printed on a stream: made visible and, on a terminal, broken between words; a word longer
    than a line stays whole, as it may be a path. indent: of all lines but the first."""
    if not stream.isatty():
        return visible(text)
    options = {"break_long_words": False, "subsequent_indent": " " * indent}
    return "\n".join(wrapped(text, shutil.get_terminal_size().columns, **options))


def say(text: str, *, indent: int = 0, file=None, **options) -> None:
    """Print text that may hold names, settings and messages of others. options: of print."""
    file = file or sys.stdout
    print(shown(text, file, indent), file=file, **options)


def stopped() -> str:
    """The last line after Ctrl-C, below the bar or the prompt in which a terminal shows ^C."""
    return "\n" * sys.stderr.isatty() + "charlm: stopped by Ctrl-C"


@contextmanager
def loading() -> Iterator[None]:
    """Show on a terminal that something is going on, while torch is imported: it takes seconds."""
    terminal = sys.stderr.isatty()
    print("loading PyTorch …" * terminal, end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print("\r\x1b[K" * terminal, end="", file=sys.stderr, flush=True)


def shows_bars() -> bool:
    """Whether stderr is a terminal or a notebook, where a progress bar may move."""
    return sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel")


def moving_bar(**options):
    """A bar of tqdm, narrower than the terminal by what ^C takes: in a full line the bar would stay twice."""
    from tqdm.auto import tqdm

    bar = tqdm(ncols=shutil.get_terminal_size().columns - 3, **options)
    bar.dynamic_ncols = lambda file: (shutil.get_terminal_size().columns - 3, None)  # before each drawing
    return bar


def is_live() -> bool:
    """Whether stdout is a terminal that can draw one picture over another."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def colored(text: str, color: str) -> str:
    """Text in one of COLORS."""
    return f"\x1b[{COLORS[color]}m{text}\x1b[0m"


def wrapped(text: str, columns: int, **options) -> list[str]:
    """The lines of a text, made visible, each at most `columns` wide. options: for wcwidth.wrap."""
    import wcwidth  # here, because training imports this file too

    options = {"break_on_hyphens": False, "tabsize": 4} | options
    lines = visible(text).split("\n")
    return [part for line in lines for part in wcwidth.wrap(line, columns, **options) or [""]]


def side_by_side(items: list[str], columns: int) -> list[str]:
    """Short texts in lines; one is broken only if it alone is too long for a line."""
    text = "  ".join(item.replace(" ", "\xa0") for item in items)
    return [line.replace("\xa0", " ") for line in wrapped(text, columns)]


def titled(title: str, values: list[str]) -> str:
    """A line of a report, broken between values where it would be longer than 80 columns."""
    line = ", ".join(value.replace(" ", "\xa0") for value in values)
    return textwrap.fill(f"  {title:<13}{line}", 80, subsequent_indent=" " * 15).replace("\xa0", " ")


@contextmanager
def keys() -> Iterator:
    """Read keys without Enter; yields wait(seconds), which returns the key pressed meanwhile, or ''. Where
    there is no terminal to read from (a pipe, the background, Windows) none is ever pressed."""
    readable = sys.stdin.isatty() and find_spec("termios") is not None
    with suppress(OSError):  # a terminal that controls nothing
        readable = readable and os.tcgetpgrp(0) == os.getpgrp()
    if not readable:
        yield lambda seconds: time.sleep(seconds) or ""
        return
    import termios
    import tty

    before = termios.tcgetattr(0)
    tty.setcbreak(0)
    try:
        yield lambda seconds: os.read(0, 1).decode("latin-1") if select([0], [], [], seconds)[0] else ""
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextmanager
def screen() -> Iterator:
    """Switch to the alternate screen, hide the cursor, and back; yields a function that shows lines there."""
    print("\x1b[?1049h\x1b[?25l", end="")
    try:
        yield lambda lines: print("\x1b[H" + "\x1b[K\r\n".join(lines) + "\x1b[K\x1b[J", end="", flush=True)
    finally:
        print("\x1b[?25h\x1b[?1049l", end="", flush=True)
