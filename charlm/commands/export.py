"""charlm export: a model as ONNX."""

from __future__ import annotations

from pathlib import Path

from charlm.commands.words import Words
from charlm.errors import CharlmError


def run(argv: list[str]) -> None:
    """charlm export."""
    about = "Write a model as ONNX: (ids, carry) to (log-probabilities, carry). Needs onnx and onnxruntime."
    parser = Words("charlm export", description=about)
    parser.add_argument("run", help="run directory, model folder or hub id")
    parser.add_argument("file", type=Path, help="file to write, such as model.onnx")
    args = parser.parse_args(argv)
    if not args.file.parent.is_dir():
        raise CharlmError(f"{args.file}: there is no folder {args.file.parent}")
    from charlm.sharing.onnx import export
    from charlm.training.trained import load

    model, vocab, _ = load(args.run, "cpu")
    difference = export(model, vocab, args.file)
    print(
        f"{args.file}: {args.file.stat().st_size:,} bytes, {len(vocab)} symbols; "
        f"onnxruntime agrees with the model within {difference:.1g}"
    )
