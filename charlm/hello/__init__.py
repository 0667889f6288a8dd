"""The classroom example: an RNN learns "hello".

    hello               runs configs/hello.yaml and prints the table of the lecture
    drawing             the network with its numbers, as SVG
    drawing.svg.jinja   the template of the drawing

Imports training and the folders below it.
"""
