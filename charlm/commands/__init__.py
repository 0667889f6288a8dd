"""The command line: one function per command.

    cli          main: the table of commands, exit codes; what the parsers share; completion
    train        train, prepare, doctor, hello
    model        evaluate, sample, push, export
    inspect_run  watch, report

Imports everything, each command what it needs when it runs.
"""
