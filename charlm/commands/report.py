"""charlm report: one HTML page of a run."""

from __future__ import annotations

from pathlib import Path

from charlm.commands.words import named, run_parser
from charlm.errors import CharlmError

MOST = 8_000_000  # bytes of a text that are read: far more than a page looks at


def run(argv: list[str]) -> None:
    """charlm report."""
    parser = run_parser("report", "One HTML page of a run: curves, samples, surprises, cells, corpus.")
    parser.add_argument("--output", metavar="FILE", help="where to write it (default: RUN/report.html)")
    parser.add_argument("--text", metavar="FILE", help="text for the model to read, instead of held-out text")
    args = parser.parse_args(argv)
    text = None if args.text is None else _start_of(Path(args.text))
    where, _ = named(args)
    from charlm.report.page import write_page

    path, missing = write_page(where, args.output, text, args.device)
    for line in missing:
        print(f"not on the page: {line}")
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser")


def _start_of(path: Path) -> bytes:
    """The start of a file, cut where a character ends."""
    try:
        with open(path, "rb") as file:
            text = file.read(MOST)
    except OSError as error:
        raise CharlmError(f"--text {path}: {error.strerror}") from error
    if not text:
        raise CharlmError(f"--text {path}: the file is empty")
    cut = len(text)
    while len(text) == MOST and cut > MOST - 4 and 0x80 <= text[cut - 1] < 0xC0:
        cut -= 1
    return text if cut == len(text) else text[: cut - 1]
