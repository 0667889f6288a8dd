"""charlm hello: the classroom's toy."""

from __future__ import annotations

from charlm.commands.words import Words
from charlm.errors import CharlmError


def run(argv: list[str]) -> None:
    """charlm hello."""
    parser = Words("charlm hello", description='An RNN learns "hello" in ten steps.')
    parser.add_argument(
        "--explain", action="store_true", help="show vocabulary, one-hot matrix, weights, model"
    )
    parser.add_argument("--debug", action="store_true", help="show the shapes at every stage")
    parser.add_argument("--figure", metavar="FILE", help="draw the model before and after training (SVG)")
    args = parser.parse_args(argv)
    if args.figure is not None and not args.figure.endswith(".svg"):
        raise CharlmError(f"--figure {args.figure}: it is an SVG, so name it .svg")
    from charlm.hello.hello import hello

    hello(args.explain, args.debug, args.figure)
