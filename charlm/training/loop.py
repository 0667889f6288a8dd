"""Training: truncated back-propagation through time, the carry handed from window to window."""

import math
import time
import timeit
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate.utils import broadcast, gather_object
from torch import Tensor

from charlm.config.fields import Config
from charlm.config.parse import load_config
from charlm.corpus.prepared import folder_of
from charlm.evaluation.evaluate import LN2, evaluate
from charlm.files import replace
from charlm.model.char_lm import CharLM
from charlm.model.device import keep_freed_memory, own_rng, peak_memory
from charlm.model.pretrained import read_best
from charlm.training.checkpoint import steps_of
from charlm.training.optimizer import learning_rate, set_learning_rate
from charlm.training.resume import resume_or_start, save_checkpoint, secure_best, state_of
from charlm.training.run import Run, State, Summary
from charlm.training.setup import Setup, set_up
from charlm.training.signals import Left, Stop
from charlm.training.step import Clock
from charlm.training.trained import Trained

Watch = Callable[[int, CharLM, float], None]  # (step, model, loss)
SCORES = "{}: {bpc:.4f} bpc, {bpb:.4f} bpb, {nats_per_character:.4f} nats/char over {characters:,} characters"
MEASURED, SKIPPED = 100, 5  # steps of a process that train.minutes is measured on; of them slower at first


def train(
    config: Config | str | Path | None = None,
    *,
    quiet: bool = False,
    watch: Watch | None = None,
    handler: Stop | None = None,
    **options,
) -> Summary:
    """Train the run of a config; a run that has a checkpoint is resumed from it.

    config: or a YAML file or the name of a shipped config, with the options of load_config. In a notebook
    "interrupt" ends the step, writes a checkpoint and returns. torch's random numbers are left as they were.
    watch(step, model, loss) is called in every step (0 is the first) before the weights change; loss is in
    nats per symbol. handler: of signals, if there is one. Raises CharlmError for what a user can mend."""
    started = time.perf_counter()
    config = load_config(config, **options)
    handled = Stop() if handler is None else nullcontext(handler)
    with handled as stop, Run(config, quiet, stop) as run, keep_freed_memory(run.device), own_rng(run.device):
        try:
            stop.at_once = not steps_of(run.dir)
            if stop.at_once and stop.reason and (config.model.ngrams or not folder_of(config).is_dir()):
                stop.leave()  # before minutes of counting
            setup = set_up(config, run.accelerator, run.say)
            state = resume_or_start(run, setup)
            run.say(f"first step after {time.perf_counter() - started:.1f} s")
            stop.begin_loop(config.train.max_hours)
            measure = Measure(run, setup)
            while (state.steps is None or state.step < state.steps) and not out_of_patience(run):
                norm = train_step(config, setup, state, watch)
                run.count_step()
                fixed = state.steps is None and measure.fix_steps()
                if run.due(config.log.every):
                    log_figures(run, setup, norm)
                if run.due(config.evaluate.every):
                    validate(run, setup)
                if run.due(config.sample.every):
                    draw_sample(run, setup, setup.evaluated)
                reason = run.agree(stop.reason)
                if run.due(config.checkpoint.every) or fixed or reason:
                    save_checkpoint(run, setup, wait=reason is not None)
                if reason:
                    return run.interrupted(reason)
            validate(run, setup)
            save_checkpoint(run, setup, wait=True)
            stop.in_loop = False
            stop.leave()  # the next start finishes
            return finish(run, setup)
        except (Left, RuntimeError):  # of several processes, another one may have left
            if not (stop.at_once and stop.reason):
                raise
            return run.interrupted(stop.reason)


def train_step(config: Config, setup: Setup, state: State, watch: Watch | None = None) -> Tensor:
    """One step of training, which state counts. Returns the norm [] of the gradient before clipping."""
    x, y = setup.lanes.window(state.position)  # int64 [B, T] on the device
    setup.lanes.restart(state.position, state.carry)
    set_learning_rate(setup.optimizer, learning_rate(state.step, config.optim, state.steps))
    loss, norm, carry = setup.step(x, y, state.carry)  # forward, backward, clip; the carry is detached
    if watch is not None:
        watch(state.step, setup.model, loss.item())  # sync
    setup.step.update()
    state.advance(loss, carry, setup.lanes.after(state.position))
    if setup.average is not None:
        setup.average.update(setup.model, state.step)
    return norm


class Measure:
    """For train.minutes: the speed of the first steps of this process, and the number of steps from it."""

    def __init__(self, run: Run, setup: Setup):
        self.run, self.setup = run, setup
        self.first, self.started = run.state.step, time.perf_counter()
        self.mark = (0, 0.0)  # steps done, and seconds of training by then, that the measurement starts from

    def fix_steps(self) -> bool:
        """Set state.steps after MEASURED steps, or a quarter of the minutes; True if it is set. The main
        process decides, at some steps only, because the others wait for it."""
        run, state, limit = self.run, self.run.state, 60 * self.run.config.train.minutes
        done = state.step - self.first
        if done > 10 and done % 10:
            return False
        state.losses[-1].item()  # sync
        seconds = run.clock.seconds()
        used = (time.perf_counter() - self.started) / limit
        ready = done >= MEASURED or (used > 1 / 4 and done >= 10) or (used > 1 / 2 and done > 1)
        if not gather_object([ready])[0]:
            if done in (1, SKIPPED):
                self.mark = (done, seconds)
            return False
        pace = (seconds - self.mark[1]) / (done - self.mark[0])  # seconds per step
        with run.clock.paused():
            every, at_end = self.pauses()
        left = 0.98 * limit - (time.perf_counter() - self.started) - at_end
        steps = state.step + max(int(left / (pace + every)), 0)
        state.steps, pace = gather_object([(steps, pace)])[0]
        run.logger.bar.total = state.steps
        run.logger.figures(state.step, {"steps": state.steps, "seconds_per_step": round(pace, 6)})
        others = f"{at_end + (state.steps - state.step) * every:.0f} s are for evaluations, samples, saving"
        pace = f"{1000 * pace:,.1f} ms per step, so {state.steps:,} steps"
        run.say(f"train.minutes={limit / 60:g}: {pace}; {others}")
        return True

    def pauses(self) -> tuple[float, float]:
        """Seconds per step of evaluations, samples and checkpoints, and of those after the last step. Each is
        tried and its result dropped; of validation only a part is read, in as many lanes."""
        run, setup, config, evaluation = self.run, self.setup, self.run.config, 0.0
        if "validation" in setup.corpus.splits:
            warm = config.evaluate.lanes * config.evaluate.context  # symbols read before those that count
            size = len(setup.corpus["validation"][: config.evaluate.max_characters])
            part = min(size, config.evaluate.lanes * max(config.evaluate.context, config.evaluate.bptt) + 1)
            evaluation = _seconds(lambda: _score(run, setup, setup.evaluated, "validation", part))
            evaluation *= (size + warm) / (part + warm)
        draws = run.main and config.sample.every
        sample = _seconds(lambda: _sample(run, setup, setup.evaluated)) if draws else 0.0
        save = _seconds(lambda: state_of(run, setup))  # the rest is done while training continues
        pairs = ((config.evaluate, evaluation), (config.sample, sample), (config.checkpoint, save))
        return sum(seconds / part.every for part, seconds in pairs if part.every), evaluation + save


def _seconds(work: Callable[[], object]) -> float:
    """Seconds of the second of two calls: the first one warms up."""
    return timeit.repeat(work, repeat=2, number=1)[1]


def log_figures(run: Run, setup: Setup, norm: Tensor) -> None:
    """The figures of the steps since the last line. norm: [] of the last gradient."""
    run.check_finite(setup.model)
    state, train = run.state, run.config.train
    loss = run.accelerator.reduce(torch.stack(state.losses).mean(), "mean").item()  # sync
    check_trend(run, loss, len(state.losses), len(setup.corpus.vocab))
    state.losses.clear()
    size = setup.corpus.splits["train"]
    characters = train.batch_size * train.bptt * size["characters"] / size["symbols"]  # per step
    pace = run.clock.steps / max(run.clock.seconds() - run.clock.before, 1e-9)  # steps per second
    figures = {
        "loss": loss,
        "bpc": loss / LN2 * size["symbols"] / max(size["characters"], 1),
        "bpb": loss / LN2 * size["symbols"] / max(size["bytes"], 1),
        "learning_rate": setup.optimizer.param_groups[0]["lr"],
        "grad_norm": norm.item(),
        "characters_per_second": round(characters * pace, 1),
        "epoch": round(state.position.epoch + state.position.window / setup.lanes.windows, 4),
        "memory_gb": round(peak_memory(run.device) / 1e9, 3),
    }
    if run.clock.checkpoint_seconds:  # that training waited for checkpoints
        figures["checkpoint_seconds"] = round(run.clock.checkpoint_seconds, 3)
    run.logger.training(state.step, figures, state.steps, pace)
    run.clock = Clock(run.clock.seconds())


def check_trend(run: Run, loss: float, steps: int, symbols: int) -> None:
    """Raise Diverged if the mean loss of the last 200 steps or so is far above its lowest one, or above 1.5
    times that of a uniform guess. loss: nats per symbol, mean of the steps; symbols: of the vocabulary."""
    uniform = max(math.log(symbols), 1.0)
    mean, lowest = run.trend or (uniform, uniform)
    mean += (min(loss, 2 * uniform) - mean) * min(steps / 200, 1)  # one line alone decides little
    run.trend = mean, min(mean, lowest)
    if mean > lowest + max(0.75 * (uniform - lowest), 0.5 * uniform):
        before = f"{lowest:.3g} before, {uniform:.3g} for a uniform guess"
        raise run.diverged(f"the loss has diverged: {loss:.3g} nats at step {run.state.step}, {before}")


def validate(run: Run, setup: Setup) -> None:
    """Score validation, once per step; the weights of the best score are written to model/."""
    state = run.state
    if "validation" not in setup.corpus.splits or state.evaluated == state.step:
        return
    state.evaluated = state.step
    with run.clock.paused():
        run.check_finite(setup.model)
        figures = _score(run, setup, setup.evaluated, "validation", run.config.evaluate.max_characters)
        run.logger.figures(state.step, {f"validation/{k}": v for k, v in figures.items()})
        nats = figures["nats_per_character"]
        if 20 * max(math.log(len(setup.corpus.vocab)), 1) < nats < math.inf:
            raise run.diverged(f"the loss has diverged: {nats:.3g} nats on validation at step {state.step}")
        better = math.isfinite(nats) and (state.best is None or nats < state.best["nats_per_character"])
        if better:
            state.best = {"step": state.step} | figures
            run.logger.summary({f"best/{k}": v for k, v in state.best.items()})
            _write_model(run, setup)
        mark = " (best)" if better else ""
        run.say(f"step {state.step}: validation {figures['bpc']:.4f} bpc, {figures['bpb']:.4f} bpb{mark}")


def out_of_patience(run: Run) -> bool:
    """Whether train.patience evaluations in a row were no better: derived, so that a resumed run agrees."""
    patience, best, every = run.config.train.patience, run.state.best, run.config.evaluate.every
    if not patience or best is None or run.state.evaluated - best["step"] < patience * every:
        return False
    run.say(f"stopped early: none of {patience} evaluations was better than that of step {best['step']}")
    return True


def draw_sample(run: Run, setup: Setup, model: CharLM, name: str | None = None) -> str:
    """Draw a sample, print it, write it to samples/. name: of its file, if not that of the step."""
    if not run.main:
        return ""
    step = run.state.step
    with run.clock.paused():
        text = _sample(run, setup, model)
        path = run.dir / "samples" / f"{name or f'step-{step:08d}'}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, text, synced=False)
        run.logger.summary({"sample": text}) if name else run.logger.figures(step, {"sample": text})
        run.say(f"--- sample, {name or f'step {step}'} ---\n{text}\n---")
    return text


def finish(run: Run, setup: Setup) -> Summary:
    """Score the best weights on test, draw a sample from them."""
    secure_best(run, setup)
    if run.state.best is None:  # they are lost
        validate(run, setup)
    if run.state.best is None:
        _write_model(run, setup)
    model = _best_model(run, setup)
    summary = Summary("done", run.state.step, run.dir, run.state.best)
    if "test" in setup.corpus.splits:
        summary.test = _score(run, setup, model, "test")
        run.logger.summary({f"test/{k}": v for k, v in summary.test.items()})
    run.write_card(setup, summary.test)
    if run.config.sample.every:
        summary.sample = draw_sample(run, setup, model, "best")
    run.write_status("done", best=summary.best, test=summary.test)
    run.logger.close_bar()
    for split, figures in (("validation", summary.best), ("test", summary.test)):
        if figures:
            run.say(SCORES.format(split, **figures))
    floor = setup.corpus.info["floors"].get("ngram", {}).get("bpc")
    if floor and summary.best and summary.best["bpc"] > floor:
        other = "" if run.config.model.ngrams else ", or try --model.ngrams 6"
        run.say(f"counting reaches {floor:.4f} bpc on validation: train longer{other}")
    run.say(f"done: {run.state.step} steps; the best weights are in {run.dir / 'model'}")
    return summary


def _sample(run: Run, setup: Setup, model: CharLM) -> str:
    return run.config.sample.prompt + Trained(model, setup.corpus.vocab, run.config).generate()


def _score(run: Run, setup: Setup, model: CharLM, split: str, most: int | None = None) -> dict:
    """The figures of evaluate() on a split, or on its first `most` symbols, over all processes."""
    corpus, config = setup.corpus, run.config.evaluate
    return evaluate(model, corpus.vocab, corpus[split][:most], config, run.accelerator)


def _write_model(run: Run, setup: Setup) -> None:
    """Write the weights of this step to model/."""
    if run.main:
        figures = {"step": run.state.step, "validation": run.state.best}
        setup.evaluated.save_pretrained(run.dir / "model", setup.corpus.vocab, **figures)
        run.write_card(setup)


def _best_model(run: Run, setup: Setup) -> CharLM:
    """The model in model/, whose figures become state.best: read by the main process, sent to the others."""
    vocab = setup.corpus.vocab
    model = CharLM.from_pretrained(run.dir / "model") if run.main else CharLM(run.config.model, len(vocab))
    run.state.best = gather_object([read_best(run.dir, vocab)["validation"] if run.main else None])[0]
    for p in model.to(run.device).eval().parameters():
        broadcast(p.data)
    model.compute_dtype = setup.model.compute_dtype
    return model
