"""charlm hello: the classroom's toy."""

from __future__ import annotations

from charlm.words import Words


def run(argv: list[str]) -> None:
    """charlm hello."""
    parser = Words("charlm hello", description='An RNN learns "hello" in ten steps.')
    parser.add_argument(
        "--explain", action="store_true", help="show vocabulary, one-hot matrix, weights, model"
    )
    parser.add_argument("--debug", action="store_true", help="show the shapes at every stage")
    args = parser.parse_args(argv)
    from charlm.hello import hello

    hello(args.explain, args.debug)
