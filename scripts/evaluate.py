"""The same as `charlm evaluate`."""

import sys

from charlm.commands.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
