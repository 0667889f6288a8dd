"""The command line.

    cli                sends words to commands, turns errors into exit codes
    words              what the parsers of commands share
    completion_script  the scripts of charlm completion
    completion, doctor, evaluate, export, hello, prepare, push, report, sample, train, watch   a command each

Imports everything, each command when it runs.
"""
