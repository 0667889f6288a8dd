"""The state of a run, to a checkpoint and back: on the same number of ranks, or on another."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor

from charlm.checkpoint import load_newest, load_optimizer, optimizer_tensors, save_checkpoint
from charlm.config import CharlmError, flatten, from_dict, to_yaml
from charlm.files import replace
from charlm.lanes import Position
from charlm.model import load_weights, weights_of
from charlm.run import Run, State
from charlm.vocab import Vocab

# What may differ between a checkpoint and the config that goes on from it: what does not change the training
# but its length.
MAY_CHANGE = (
    "run_dir",
    "data.dir",
    "train.steps",
    "train.max_hours",
    "train.accumulate",
    "evaluate.",
    "sample.",
    "checkpoint.",
    "log.",
)


def checkpoint(run: Run) -> None:
    """Write the whole state, unless this step's is written already."""
    state = run.state
    if state.saved == state.step:
        return
    with run.clock.paused():
        run.check_finite()
        carry = state.carry or run.model.zeros(len(run.lanes.lanes))
        lanes_first = [run.accelerator.gather(c.transpose(0, 1).contiguous()) for c in carry]
        random = _random_states(run)
        losses = torch.stack(state.losses) if state.losses else torch.zeros(0, device=run.accelerator.device)
        losses = run.accelerator.reduce(losses, "mean")
        if run.main:
            scaler = run.accelerator.scaler
            facts = {
                "step": state.step,
                "position": list(state.position),
                "evaluated": state.evaluated,
                "best": state.best,
                "run_id": state.run_id,
                "ranks": run.accelerator.num_processes,
                "scaler": scaler.state_dict() if scaler is not None else None,
                "text_sha256": run.corpus.splits["train"]["sha256"],
                "config": asdict(run.config),
            }
            tensors = {
                "model": weights_of(run.model),
                "optimizer": optimizer_tensors(run.model, run.bare_optimizer),
                "carry": {str(i): c.transpose(0, 1).contiguous().cpu() for i, c in enumerate(lanes_first)}
                | {"losses": losses.cpu()},
                "random": random,
            }
            save_checkpoint(
                run.dir,
                state.step,
                facts,
                tensors,
                run.corpus.vocab,
                keep=run.config.checkpoint.keep,
                best_step=state.best["step"] if state.best else None,
            )
        run.accelerator.wait_for_everyone()
    state.saved = state.step
    run.tell_status("running")


def _random_states(run: Run) -> dict[str, Tensor]:
    """torch's random states of all ranks: uint8 [ranks, n] each."""
    device = run.accelerator.device
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {name: run.accelerator.gather(s.to(device)[None]).cpu() for name, s in states.items()}


def resume_or_start(run: Run) -> State:
    """Load the newest whole checkpoint of the run directory, if there is one, and open the report.

    Raises CharlmError when the checkpoint is of another config, text or vocabulary, naming what differs.
    """
    loaded = load_newest(run.dir)
    if loaded is not None:
        facts, tensors, vocab = loaded
        _check_same(run, facts, vocab)
        _restore(run, facts, tensors)
    if run.main:
        replace(run.dir / "config.yaml", to_yaml(run.config))
    run.begin()
    if loaded is not None:
        run.say(f"resumed {run.dir} at step {run.state.step}")
    return run.state


def _restore(run: Run, facts: dict, tensors: dict[str, dict[str, Tensor]]) -> None:
    device, rank = run.accelerator.device, run.accelerator.process_index
    load_weights(run.model, tensors["model"], f"the checkpoint of step {facts['step']}")
    load_optimizer(run.model, run.bare_optimizer, tensors["optimizer"])
    state = run.state
    state.step = state.saved = facts["step"]
    state.position = Position(*facts["position"])
    state.evaluated, state.best, state.run_id = facts["evaluated"], facts["best"], facts["run_id"]
    if state.position.window:  # else a new epoch begins, with a carry of zeros
        mine = slice(run.lanes.lanes.start, run.lanes.lanes.stop)
        carry = tensors["carry"]
        names = sorted(name for name in carry if name != "losses")
        state.carry = tuple(carry[name][:, mine].contiguous().to(device) for name in names)
    state.losses = list(tensors["carry"]["losses"].to(device))
    if facts["ranks"] == run.accelerator.num_processes:
        torch.set_rng_state(tensors["random"]["cpu"][rank])
        if device.type == "cuda" and "cuda" in tensors["random"]:
            torch.cuda.set_rng_state(tensors["random"]["cuda"][rank], device)
    if run.accelerator.scaler is not None and facts["scaler"]:
        run.accelerator.scaler.load_state_dict(facts["scaler"])


def _check_same(run: Run, facts: dict, vocab: Vocab) -> None:
    then, now = flatten(from_dict(facts["config"])), flatten(run.config)
    differ = [key for key in now if now[key] != then[key] and not key.startswith(MAY_CHANGE)]
    if differ:
        told = ", ".join(f"{key} is {now[key]!r}, was {then[key]!r}" for key in differ)
        raise CharlmError(
            f"run_dir={str(run.dir)!r} holds a run of another config: {told}. "
            f"Name another run_dir, or take those values back"
        )
    if vocab != run.corpus.vocab:
        raise CharlmError(
            f"run_dir={str(run.dir)!r}: its vocabulary ({len(vocab)} symbols) is not the one of "
            f"{run.corpus.folder} ({len(run.corpus.vocab)} symbols); name another run_dir"
        )
    if facts["text_sha256"] != run.corpus.splits["train"]["sha256"]:
        raise CharlmError(
            f"run_dir={str(run.dir)!r} was trained on another text than {run.corpus.folder} holds now; "
            f"name another run_dir"
        )
