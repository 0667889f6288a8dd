"""python -m charlm: the same as the console command."""

from charlm.commands.cli import main

main()
