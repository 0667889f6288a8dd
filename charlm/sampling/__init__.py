"""Text drawn from a model.

    generate  the prompt, then one symbol after another: temperature, top-k, top-p; ids to text as it comes
    cpu_step  compiled steps of a single character on a CPU

Imports model.
"""
