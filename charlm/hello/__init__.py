"""The classroom's toy: an RNN learns "hello".

    hello    runs configs/hello.yaml and prints what the lecture prints
    drawing  the network with its numbers, as SVG

Imports training.
"""
