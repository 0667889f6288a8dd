"""The HTML page of a run.

page        read_run(): everything a run has left; render(): the page, its tables and samples
plots       line plots as SVG
compare     several runs: a table of what differs, a picture of their curves
probe       what a model predicts and what its cells do while it reads a text; how symbols are displayed
text_facts  simple facts about text, and the correlation of cells with them
html/       template, style sheet, script
"""
