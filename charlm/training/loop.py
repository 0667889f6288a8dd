"""Training: truncated back-propagation through time with the state carried on."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext

from accelerate.utils import broadcast, gather_object

from charlm.config.fields import Config
from charlm.model.char_lm import CharLM
from charlm.model.device import keep_freed_memory
from charlm.model.pretrained import read_best
from charlm.training.optimizer import learning_rate, set_learning_rate
from charlm.training.resume import checkpoint, resume_or_start, secure_best
from charlm.training.run import Run, Summary
from charlm.training.signals import Stop


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
    with listening as stop, Run(config, quiet) as run, keep_freed_memory(run.accelerator.device):
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


def finish(run: Run) -> Summary:
    """Load the best weights, score them on test, draw a sample."""
    secure_best(run)
    if run.state.best is None:
        run.evaluate()
    if run.state.best is None:
        run.export()
    _take_best(run)
    summary = Summary("done", run.state.step, run.dir, run.state.best)
    if "test" in run.corpus.splits:
        summary.test = run.score("test")
        if run.main:
            run.describe(summary.test)
        run.report.summary({f"test/{k}": v for k, v in summary.test.items()})
    if run.config.sample.every:
        summary.sample = run.sample("best")
    run.tell_status("done", best=summary.best, test=summary.test)
    for split, figures in (("validation", summary.best), ("test", summary.test)):
        if figures:
            run.say(
                f"{split}: {figures['bpc']:.4f} bpc, {figures['bpb']:.4f} bpb, "
                f"{figures['nats_per_character']:.4f} nats/char over {figures['characters']:,} characters"
            )
    run.say(f"done: {run.state.step} steps; the best weights are in {run.dir / 'model'}")
    return summary


def _take_best(run: Run) -> None:
    """The weights in model/ and their figures: read by the main process, sent to the others."""
    dtype, run.model = run.model.compute_dtype, CharLM(run.config.model, len(run.corpus.vocab))
    if run.main:
        run.model = CharLM.from_pretrained(run.dir / "model")
        run.state.best = read_best(run.dir, run.corpus.vocab)["validation"]
    run.state.best = gather_object([run.state.best])[0]
    run.model = run.model.to(run.accelerator.device).eval()
    for p in run.model.parameters():
        broadcast(p.data)
    run.model.compute_dtype, run.average = dtype, None  # averaged already
