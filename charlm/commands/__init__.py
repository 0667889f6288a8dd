"""The command line: one function per command.

cli    main: the table of commands, exit codes; what the parsers share; completion
train  train, prepare, watch, compare, doctor, hello
model  evaluate, sample, report, push, export
"""
