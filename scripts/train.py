"""The same as `charlm train`, for `accelerate launch`."""

import sys

from charlm.commands.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
