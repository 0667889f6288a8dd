"""The same as `charlm prepare`."""

import sys

from charlm.commands.cli import main

if __name__ == "__main__":
    main(["prepare", *sys.argv[1:]])
