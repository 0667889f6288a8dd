"""One HTML page about a run.

    page        the page
    known       what there is of a run
    tables      its words and numbers
    plots       its curves as SVG
    looking     the cells while they read a text
    findings    what the cells follow
    text_facts  simple facts about text that a cell might follow
    marks       how a symbol looks on the page
    html/       template, style, script

Imports monitor and training.
"""
