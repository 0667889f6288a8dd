"""Text drawn from a model.

generate  the prompt, then one symbol after another; ids to text as it comes
cpu_step  the draw (temperature, top-k, top-p); compiled steps of a single character on a CPU
"""
