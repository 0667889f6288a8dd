"""A run seen from outside.

    progress  what status.json and metrics.jsonl say, while it runs
    history   the same as series
    watch     the picture on a terminal
    braille   curves in characters
    doctor    what a training would get on this machine

Imports training.
"""
