"""The same as `charlm sample`."""

import sys

from charlm.commands.cli import main

if __name__ == "__main__":
    main(["sample", *sys.argv[1:]])
