"""The same as `charlm hello`."""

import sys

from charlm.commands.cli import main

if __name__ == "__main__":
    main(["hello", *sys.argv[1:]])
