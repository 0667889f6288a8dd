"""What a model scores on text.

    evaluate    nats, bits per character and per byte of a text, in lanes with the carry handed on
    surprisal   the bits of every character
    dynamic     evaluation with weights that adapt to the text read so far
    by_context  the loss by the distance from a reset of the carry

Imports model.
"""
