"""Truncated back-propagation through time with the carry handed on, and everything that keeps a run safe.

    loop         train(): the loop itself
    setup        accelerator, corpus, lanes, model, optimizer
    distributed  how several processes average gradients
    step         a step that a GPU records once and replays
    lanes        contiguous streams of text, read window by window
    optimizer    learning rate, AdamW, average of the weights
    run          run directory, state, what the loop does every so often
    checkpoint   the files of a checkpoint, written atomically, verified when read
    resume       the state of a run to a checkpoint and back; warm starts
    logger       metrics.jsonl, Weights & Biases, the progress bar
    signals      SIGTERM, SIGUSR1, Ctrl-C and the limit of hours
    trained      opens what training left

Imports model, evaluation, sampling and sharing.
"""
