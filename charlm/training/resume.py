"""The state of a run to a checkpoint and back: on the same number of processes, or on another."""

import os
import warnings
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from socket import gethostname

import torch
from accelerate.utils import gather_object

from charlm.checked import FIGURES, Count, mismatch
from charlm.config.checks import LENGTH, Positive, may_change
from charlm.config.fields import WITHOUT_EFFECT, TrainConfig
from charlm.config.parse import flatten, from_dict, public
from charlm.corpus.prepared import Corpus
from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError, CharlmWarning
from charlm.files import replace
from charlm.model.pretrained import load_weights, read_best, weights_of
from charlm.training import checkpoint
from charlm.training.lanes import Position
from charlm.training.optimizer import averaged, learning_rate
from charlm.training.run import Run, State
from charlm.training.setup import Setup
from charlm.training.trained import record, warm_start

# Fields that may differ between a checkpoint and the config that resumes it: those without effect on what a
# step computes, the length of the training, and what only reads the training.
MAY_CHANGE = (*WITHOUT_EFFECT, *(f"train.{name}" for name in LENGTH))
MAY_CHANGE += ("evaluate.", "sample.", "checkpoint.", "log.")
FACTS = {  # what a resume needs of facts.json
    **{"steps?": (Count, None), "evaluated": int, "position": tuple[Count, Count], "scaler": (dict, None)},
    **{"best": (FIGURES | {"step": Count}, None), "config": {"train": dict}, "run_id": str},
    **{"ranks": Positive, "lanes_at_once?": Positive, "text_sha256": str},
}


def save_checkpoint(run: Run, setup: Setup, *, wait: bool = False) -> None:
    """Write the whole state, unless that of this step is written already. It is written while training
    continues; with wait, it is on the disk when this returns."""
    before = run.clock.paused_seconds
    with run.clock.paused():
        if run.state.saved != run.state.step:
            run.state.saved = run.state.step
            run.check_finite(setup.model)
            run.logger.sync()  # no checkpoint without the figures that lead to it
            content = (*state_of(run, setup), setup.corpus.vocab, run.config.checkpoint.keep)
            if run.main:
                if not (run.dir / "config.yaml").exists():  # the folder was removed
                    record(run.config, setup.corpus)
                run.write_in_background(checkpoint.write_checkpoint, run.dir, *content, run.say, (1, 4))
            run.write_status("running")
        if wait:
            run.wait_for_writes()
            run.accelerator.wait_for_everyone()
    run.clock.checkpoint_seconds += run.clock.paused_seconds - before


def state_of(run: Run, setup: Setup) -> tuple[dict, checkpoint.Tensors]:
    """(facts, tensors) of a checkpoint: copies, the same in all processes."""
    state, accelerator = run.state, run.accelerator
    carry = state.carry or setup.model.zeros(len(setup.lanes.lanes))
    losses = torch.stack(state.losses).cpu() if state.losses else torch.zeros(0)  # since the last log line
    random, kind = {"cpu": torch.get_rng_state()}, run.device.type
    if kind != "cpu":
        random[kind] = torch.get_device_module(run.device).get_rng_state()
    tensors = {
        "model": weights_of(setup.model),
        "optimizer": checkpoint.optimizer_tensors(setup.model, setup.optimizer),
        "carry": {str(i): torch.cat(gather_object([c.cpu()]), 1) for i, c in enumerate(carry)},
        "losses": {"losses": torch.stack(gather_object([losses]))},
        "random": {name: torch.stack(gather_object([r])) for name, r in random.items()},
    }
    if setup.average is not None:
        names = averaged(setup.average.model)
        tensors["average"] = {n: w for n, w in weights_of(setup.average.model).items() if n in names}
    facts = {
        "step": state.step,
        "steps": state.steps,
        "position": list(state.position),
        "evaluated": state.evaluated,
        "best": state.best,
        "run_id": state.run_id,
        "ranks": run.world,
        "lanes_at_once": -(-run.config.train.batch_size // (run.world * setup.step.slices)),  # at most
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        "text_sha256": setup.corpus.splits["train"]["sha256"],
        "config": asdict(public(run.config)),
    }
    return facts, tensors


def resume_or_start(run: Run, setup: Setup) -> State:
    """Load the newest undamaged checkpoint of the run directory, if there is one, and open the log. Raises
    CharlmError when the checkpoint is of another config, text or vocabulary, naming what differs."""
    rank = run.accelerator.process_index
    here = f" (as process {rank} on {gethostname()} sees it)" if run.world > 1 else ""
    with warnings.catch_warnings():
        if not run.main:  # the main process warns for all
            warnings.simplefilter("ignore", CharlmWarning)
        loaded = checkpoint.load_newest(run.dir, gather_object, here)
    run.state.steps, changes = setup.steps, ""
    run.state.run_id = os.environ.get("WANDB_RUN_ID") or run.state.run_id  # a checkpoint's replaces it
    if loaded is not None:
        facts, tensors, vocab = loaded
        changes = _check_same(run, setup.corpus, facts, vocab)
        try:
            _restore(run, setup, facts, tensors)
        except (LookupError, TypeError, RuntimeError) as error:
            if "memory" in str(error):
                raise
            problem = f"its checkpoint is not of such a run ({' '.join(str(error).split())[:200]})"
            raise CharlmError(f"{run.dir}: {problem}; name another run_dir") from error
        _fit_slices(run, setup, facts)
        if setup.steps is None:
            run.state.steps = fixed_steps(run.config.train, facts)
        secure_best(run, setup)
    elif run.config.train.init_from:
        run.say(warm_start(setup.model, setup.corpus.vocab, run.config.train.init_from))
        if setup.average is not None:
            load_weights(setup.average.model, weights_of(setup.model), "the average")
    if loaded is None and setup.model.ngrams is not None:  # every process: none waits for another
        run.say(f"counting n-grams in {len(setup.corpus['train']):,} symbols")
        setup.model.ngrams.count(setup.corpus["train"])
    if run.main:
        if loaded is None:
            replace(run.dir / checkpoint.UNSAVED, "")  # before the log
        left_overs = (*run.dir.glob(".*.partial"), *run.dir.glob("[ms]*/.*.partial"))
        for left_over in filter(Path.is_file, left_overs):
            left_over.unlink()  # by a process that was killed
        record(run.config, setup.corpus)
    run.begin(setup)
    if loaded is not None:
        last = ", the last; more train.steps or minutes train on" if run.state.step == run.state.steps else ""
        run.say(f"resumed {run.dir} at step {run.state.step}{last}{changes and f'; changed here: {changes}'}")
        optim, step, was, end = run.config.optim, run.state.step, facts.get("steps"), run.state.steps
        before = learning_rate(step - 1, from_dict(facts["config"]).optim, was)
        if was and end and was < end and (now := learning_rate(step, optim, end)) > 1.01 * before:
            rises = f"the learning rate rises from {before:.3g} to {now:.3g}"
            run.say(
                f"the {optim.schedule} schedule ends at step {end} now, not {was}: {rises}. To keep it low: "
                f"--optim.schedule constant --optim.learning_rate {before:.3g} "
                "--train.allow_change optim.schedule,optim.learning_rate"
            )
    if changes and run.logger.last.get("changed") != changes:  # once, though the job is killed and requeued
        run.logger.figures(run.state.step, {"changed": changes})
    return run.state


def fixed_steps(train: TrainConfig, facts: dict) -> int | None:
    """The steps that train.minutes were when they were measured; in proportion, if it was changed since."""
    steps = facts.get("steps")
    minutes = steps and facts["config"]["train"]["minutes"]
    return max(round(steps * train.minutes / minutes), 1) if minutes else None


def _restore(run: Run, setup: Setup, facts: dict, tensors: checkpoint.Tensors) -> None:
    state, rank = run.state, run.accelerator.process_index
    where = f"the checkpoint of step {facts['step']}"
    load_weights(setup.model, tensors["model"], where)
    if setup.average is not None:
        weights = tensors["model"] | tensors.get("average", {})  # optim.average may have been 0
        load_weights(setup.average.model, weights, f"the average in {where}")
    checkpoint.load_optimizer(setup.model, setup.optimizer, tensors["optimizer"])
    state.step = state.saved = facts["step"]
    state.position = Position(*facts["position"])
    state.evaluated, state.best, state.run_id = facts["evaluated"], facts["best"], facts["run_id"]
    if state.position.window:  # otherwise an epoch starts, with a carry of zeros
        mine = slice(setup.lanes.lanes.start, setup.lanes.lanes.stop)
        carry = tensors["carry"]
        state.carry = tuple(carry[name][:, mine].contiguous().to(run.device) for name in sorted(carry))
    losses = tensors["losses"]["losses"]
    state.losses = list((losses[rank] if len(losses) == run.world else losses.mean(0)).to(run.device))
    if facts["ranks"] == run.world:  # clones, because torch reads a state from the start of its storage
        torch.set_rng_state(tensors["random"]["cpu"][rank].clone())
        if (kind := run.device.type) != "cpu" and kind in tensors["random"]:
            torch.get_device_module(run.device).set_rng_state(tensors["random"][kind][rank].clone())
    if run.accelerator.scaler is not None and facts["scaler"]:
        run.accelerator.scaler.load_state_dict(facts["scaler"])


def _fit_slices(run: Run, setup: Setup, facts: dict) -> None:
    """Compute the lanes of a process in more slices where it has more of them than a device held before. Not
    when train.accumulate was changed: then that value counts."""
    lanes = -(-run.config.train.batch_size // run.world)  # of the process that has most
    slices = -(-lanes // facts.get("lanes_at_once", lanes))
    if run.config.train.accumulate == facts["config"]["train"]["accumulate"] and slices > setup.step.slices:
        setup.step.slices = slices
        before = f"where {facts['lanes_at_once']} were computed at once before"
        advice = "set train.accumulate to choose another number"
        run.say(f"{lanes} lanes per process, {before}: computed in {slices} slices ({advice})")


def _check_same(run: Run, corpus: Corpus, facts: dict, vocab: Vocab) -> str:
    """The changes that train.allow_change allows, in words. Raises CharlmError for any other."""
    if found := mismatch(facts, FACTS):
        raise CharlmError(f"{run.dir}: its checkpoint cannot be resumed: {found}; name another run_dir")
    before, now = (flatten(public(config)) for config in (from_dict(facts["config"]), run.config))
    differ = [key for key in now if now[key] != before[key] and not key.startswith(MAY_CHANGE)]
    where = f"run_dir={str(run.dir)!r}"
    start = f"; there, --train.init_from {run.dir} starts from its weights"
    if {*differ} - {*run.config.train.allow_change}:
        named = [key for key in now if now[key] != before[key] and key in (*differ, "model.size")]
        other = ", ".join(f"{key} is {now[key]!r}, was {before[key]!r}" for key in named)
        allow = f"allow it (--train.allow_change {','.join(differ)}), " if may_change(differ) else ""
        fits = all(may_change([key]) for key in differ if key.startswith("model."))
        advice = f"Take those values back, {allow}or name another run_dir{start if fits else ''}"
        raise CharlmError(f"{where} holds a run of another config: {other}. {advice}")
    what = "vocabulary" if vocab != corpus.vocab else "text"
    if what == "vocabulary" or facts["text_sha256"] != corpus.splits["train"]["sha256"]:
        another = f"another {what} than {corpus.folder} holds now"
        raise CharlmError(f"{where} was trained on {another}; name another run_dir{start}")
    return ", ".join(f"{key} {before[key]} → {now[key]}" for key in differ)


def secure_best(run: Run, setup: Setup) -> None:
    """Make sure that model/ holds the best weights; where they are lost, the next evaluation chooses again.
    model/ may hold those of a later step, of a process that was killed: its steps will be repeated."""
    best, safe = run.state.best, True
    if best is None:
        return
    step, folder = best["step"], run.dir / "model"
    if run.main:
        held = read_best(run.dir, setup.corpus.vocab)
        if held is None or held["step"] != step:
            safe = held is not None and held["step"] > step
            with suppress(checkpoint.DamagedCheckpoint):
                loaded = checkpoint.load_checkpoint(checkpoint.folder_of(run.dir, step))
                with torch.random.fork_rng(devices=[]):  # the run's random state has been restored by now
                    model = checkpoint.evaluated_model(*loaded)
                model.save_pretrained(folder, loaded[-1], step=step, validation=best)
                run.write_card(setup)
                run.say(f"{folder}: written again from the checkpoint of step {step}")
                safe = True
    if not gather_object([safe])[0]:
        run.state.best, run.state.evaluated = None, -1
        if run.main:
            lost = f"{folder}: the best weights, of step {step}, are damaged or missing"
            advice = "and no checkpoint has them; the next evaluation chooses again"
            warnings.warn(f"{lost}, {advice}", CharlmWarning, stacklevel=2)
