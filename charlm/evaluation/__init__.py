"""The scores of a model on text.

evaluate    bits per character and per byte, in lanes; the bits of every character; the loop over windows
dynamic     evaluation with weights that adapt to the text read so far
by_context  the loss by the distance from a reset of the carry
"""
