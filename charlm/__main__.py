"""python -m charlm: the same as the console command."""

from charlm.cli import main

main()
