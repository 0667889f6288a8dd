"""The network: ids of a window and a carry in, a loss or logits and the next carry out.

    char_lm     CharLM: input, recurrent layers, logits
    layers      dropout, norm, low-precision weights, a GRU window for CPUs
    loss        cross-entropy without all logits at once
    pretrained  a model folder: config.json, model.safetensors, vocab.json
    device      float32 precision, CUDA graphs, memory

Imports corpus (the vocabulary).
"""
