"""The end of a run: the best weights, checked, scored on test, and a last sample drawn from them."""

from __future__ import annotations

import warnings

from accelerate.utils import broadcast, gather_object

from charlm import best
from charlm.config import CharlmWarning
from charlm.model import CharLM
from charlm.run import Run
from charlm.state import Summary


def secure_best(run: Run) -> None:
    """See to it that model/ holds the best weights; where those are lost, the next evaluation decides.

    Those of a later step were told by a process that was killed: its steps will be done again.
    """
    figures, safe = run.state.best, True
    if figures is None:
        return
    step, folder = figures["step"], run.dir / "model"
    if run.main:
        there = best.held(run.dir, run.corpus.vocab)
        if there is None or there["step"] != step:
            safe = best.mend(run.dir, figures)
            if safe:
                run.describe()
                run.say(f"{folder}: written again from the checkpoint of step {step}")
            safe = safe or (there is not None and there["step"] > step)
    if not gather_object([safe])[0]:
        run.state.best, run.state.evaluated = None, -1
        if run.main:
            lost = f"{folder}: the best weights, of step {step}, are damaged or missing"
            told = f"{lost}, and no checkpoint has them; the next evaluation chooses anew"
            warnings.warn(told, CharlmWarning, stacklevel=2)


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
        run.state.best = best.held(run.dir, run.corpus.vocab)["validation"]
    run.state.best = gather_object([run.state.best])[0]
    run.model = run.model.to(run.accelerator.device).eval()
    for p in run.model.parameters():
        broadcast(p.data)
    run.model.compute_dtype, run.average = dtype, None  # averaged already
