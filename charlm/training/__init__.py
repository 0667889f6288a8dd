"""Truncated back-propagation through time with the carry handed on, and what keeps a run safe.

loop        train(): the loop, a step of it, and what it does every so often
setup       corpus, lanes, model, optimizer and step of a config
step        forward, backward, clipping, update: plain, in slices or recorded; the clock
lanes       contiguous streams of text, read window by window
optimizer   learning rate, AdamW, average of the weights
run         run directory, state, status
checkpoint  the files of a checkpoint, written atomically, verified when read
resume      the state of a run to a checkpoint and back
logger      metrics.jsonl, Weights & Biases, the progress bar
signals     SIGTERM, SIGUSR1, SIGHUP, Ctrl-C and the limit of hours
trained     opens what training left; warm starts
"""
