"""charlm push: a model to the Hugging Face Hub."""

from __future__ import annotations

from charlm.commands.words import Words


def run(argv: list[str]) -> None:
    """charlm push."""
    about = "Put a model on the Hugging Face Hub, with its card. Offline it says what it would do."
    parser = Words("charlm push", description=about)
    parser.add_argument("run", help="run directory or model folder")
    parser.add_argument("name", help="where to: user/name or organization/name")
    parser.add_argument(
        "--license", help="of the weights, as the Hub names it: mit, apache-2.0, cc-by-4.0, …"
    )
    parser.add_argument(
        "--language", action="append", default=[], help="of the text: en, de, …; may be repeated"
    )
    parser.add_argument(
        "--private", action="store_true", help="if it is new there, only for those who may see it"
    )
    parser.add_argument("--message", help="of the commit")
    parser.add_argument("--dry_run", action="store_true", help="write the card, send nothing")
    args = parser.parse_args(argv)
    from huggingface_hub import constants

    from charlm.model.pretrained import FILES
    from charlm.sharing.hub import CARD, ready, upload

    folder = ready(args.run, args.name, args.license, args.language)
    offline = constants.HF_HUB_OFFLINE
    would = "would send" if args.dry_run or offline else "sending"
    print(f"{would} {folder} to {args.name}{', private' if args.private else ''}:")
    for file in (CARD, *FILES):
        print(f"  {(folder / file).stat().st_size:>13,} bytes  {file}")
    if args.dry_run or offline:
        why = "--dry_run" if args.dry_run else "HF_HUB_OFFLINE is set"
        print(f"nothing was sent ({why}); the card to read before it is: {folder / CARD}")
    else:
        print(upload(folder, args.name, args.private, args.message), flush=True)
