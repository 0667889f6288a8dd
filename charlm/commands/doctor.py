"""charlm doctor: what a training would get on this machine."""

from __future__ import annotations

import json
import sys

from charlm.commands.words import Words
from charlm.config.parse import parse
from charlm.errors import CharlmError


def run(argv: list[str]) -> None:
    """charlm doctor."""
    parser = Words("charlm doctor", add_help=False)
    parser.add_argument("--hours", type=float)
    parser.add_argument("--json", action="store_true")
    args, words = parser.parse_known_args(argv)
    about = "Beside the fields of a config: --hours H, a limit to end within; --json, the findings as JSON."
    config = parse(words, "charlm doctor", description=about)
    if args.hours is not None and not args.hours > 0:
        raise CharlmError(f"--hours {args.hours:g}: must be above 0")
    from charlm.monitor.doctor import Doctor

    doctor = Doctor(config, args.hours, quiet=args.json)
    ready = doctor.examine()
    if args.json and doctor.parts.main:
        findings = [{"name": name, "ok": ok, "text": text} for name, text, ok in doctor.findings]
        print(json.dumps({"ready": ready, "processes": doctor.parts.world, "findings": findings}))
    if not ready:
        sys.exit(1)
