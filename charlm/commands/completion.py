"""charlm completion: a script by which bash or zsh completes charlm's words."""

from __future__ import annotations

import argparse

from charlm.commands.words import Words

INSTALL = """\
once, and again after an update of charlm; from then on in every new shell:
  bash  charlm completion bash > ~/.local/share/bash-completion/completions/charlm
        (without the package bash-completion: source that file in ~/.bashrc)
  zsh   charlm completion zsh > FOLDER/_charlm, for a FOLDER in $fpath, before compinit
"""


def run(argv: list[str]) -> None:
    """charlm completion."""
    kind = argparse.RawDescriptionHelpFormatter
    parser = Words("charlm completion", description=INSTALL, formatter_class=kind)
    parser.add_argument("shell", choices=("bash", "zsh"))
    args = parser.parse_args(argv)
    from charlm.commands import completion_script as completion

    print(getattr(completion, args.shell)(completion.known()), end="")
