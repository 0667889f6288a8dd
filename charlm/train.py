"""Training: truncated back-propagation through time with the state carried on."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext

from charlm.config import Config
from charlm.finish import finish
from charlm.memory import kept
from charlm.model import CharLM
from charlm.optim import learning_rate, set_learning_rate
from charlm.resume import checkpoint, resume_or_start
from charlm.run import Run
from charlm.state import Summary
from charlm.stop import Stop


def train(
    config: Config,
    *,
    quiet: bool = False,
    watch: Callable[[int, CharLM, float], None] | None = None,
    stop: Stop | None = None,
) -> Summary:
    """Train, or go on with, the run of a config.

    watch(step, model, loss) is called in every step (0 is the first) before the weights change; loss is in
    nats per symbol. stop: one that listens already. Raises CharlmError for what the user can mend.
    """
    started = time.perf_counter()
    listening = Stop() if stop is None else nullcontext(stop)
    with listening as stop, Run(config, quiet) as run, kept(run.accelerator.device):
        stop.max_hours = config.train.max_hours
        state = resume_or_start(run)
        run.say(f"first step after {time.perf_counter() - started:.1f} s")
        stop.in_loop = True
        while state.step < config.train.steps:
            x, y = run.lanes.window(state.position)  # int64 [B, T] on the device
            set_learning_rate(run.optimizer, learning_rate(state.step, config.optim, config.train.steps))
            loss, norm, carry = run.forward_backward(x, y, state.carry)  # carry in, carry out: detached
            if watch is not None:
                watch(state.step, run.model, loss.item())  # sync
            run.update()
            run.advance(loss, carry)
            if run.due(config.log.every):
                run.log(norm)
            if run.due(config.evaluate.every):
                run.evaluate()
            if run.due(config.sample.every):
                run.sample()
            reason = run.agreed(stop.reason)
            if run.due(config.checkpoint.every) or reason:
                checkpoint(run, wait=reason is not None)
            if reason:
                return run.interrupted(reason)
        run.evaluate()
        checkpoint(run, wait=True)
        stop.in_loop = False
        return finish(run)
