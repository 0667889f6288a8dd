"""The classroom example: an RNN learns "hello".

hello               runs configs/hello.yaml, prints the table of the lecture, draws the network as SVG
drawing.svg.jinja   the template of the drawing; explain.txt.jinja: that of --explain
"""
