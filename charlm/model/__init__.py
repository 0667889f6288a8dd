"""The network: ids of a window and a carry in, a loss or logits and the next carry out.

char_lm     CharLM: input, recurrent layers, logits
cells       recurrent cells, and how each computes a window and a step: a new cell is added there
layers      dropout, norm, activation penalty, low-precision weights, cross-entropy in slices
evidence    what followed the same symbols in the training text, and in this text, which corrects a prediction
pretrained  a model folder: config.json, model.safetensors, vocab.json
device      float32 precision, CUDA graphs, memory
"""
