"""Text drawn from a model.

    generate  the prompt, then one symbol after another
    choose    a symbol from logits: temperature, top-k, top-p
    cpu_step  compiled steps of a single character on a CPU

Imports model.
"""
