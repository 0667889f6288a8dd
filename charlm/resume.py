"""The state of a run, to a checkpoint and back: on the same number of ranks, or on another."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from socket import gethostname

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from torch import Tensor

from charlm.checkpoint import load_newest, load_optimizer, optimizer_tensors
from charlm.config import CharlmError, CharlmWarning, flatten, from_dict, to_yaml
from charlm.files import replace
from charlm.finish import secure_best
from charlm.lanes import Position
from charlm.model import load_weights, weights_of
from charlm.run import Run
from charlm.state import State
from charlm.vocab import Vocab
from charlm.warm import warm_start

# What may differ between a checkpoint and the config that goes on from it: what does not change the training
# but its length.
MAY_CHANGE = (
    "run_dir",
    "data.dir",
    "model.size",  # what it stood for is compared
    "train.steps",
    "train.max_hours",
    "train.accumulate",
    "train.threads",
    "train.cuda_graph",
    "evaluate.",
    "sample.",
    "checkpoint.",
    "log.",
)


def checkpoint(run: Run, *, wait: bool = False) -> None:
    """Write the whole state, unless this step's is written already.

    It is written while training goes on; with wait, it is on the disk when this returns.
    """
    before = run.clock.lost
    with run.clock.paused():
        if run.state.saved != run.state.step:
            run.state.saved = run.state.step
            _save(run)
            run.tell_status("running")
        if wait:
            run.saver.wait()
            run.accelerator.wait_for_everyone()
    run.clock.saving += run.clock.lost - before


def _save(run: Run) -> None:
    state = run.state
    run.check_finite()
    run.report.sync()  # no checkpoint without the figures that lead to it
    carry = state.carry or run.model.zeros(len(run.lanes.lanes))
    carry = [_all_lanes(run, c) for c in carry]
    random = _random_states(run)
    losses = torch.zeros(run.world, 0)  # [ranks, steps since the last line]; gathering none fails on GPUs
    if state.losses:
        losses = run.accelerator.gather(torch.stack(state.losses)[None]).cpu()
    if not run.main:
        return
    scaler = run.accelerator.scaler
    facts = {
        "step": state.step,
        "position": list(state.position),
        "evaluated": state.evaluated,
        "best": state.best,
        "run_id": state.run_id,
        "ranks": run.world,
        "lanes_at_once": -(-most_lanes(run) // run.slices),
        "scaler": scaler.state_dict() if scaler is not None else None,
        "text_sha256": run.corpus.splits["train"]["sha256"],
        "config": asdict(run.config),
    }
    tensors = {
        "model": weights_of(run.model),
        "optimizer": optimizer_tensors(run.model, run.bare_optimizer),
        "carry": {str(i): c for i, c in enumerate(carry)},
        "losses": {"losses": losses},
        "random": random,
    }
    if run.average is not None:
        tensors["average"] = weights_of(run.average.model)
    run.saver.save(
        run.dir,
        state.step,
        facts,
        tensors,
        run.corpus.vocab,
        keep=run.config.checkpoint.keep,
        best_step=state.best["step"] if state.best else None,
    )


def most_lanes(run: Run) -> int:
    """Lanes of the rank that has most."""
    return -(-run.config.train.batch_size // run.world)


def _all_lanes(run: Run, carry: Tensor) -> Tensor:
    """[L, all lanes, H] on the CPU, of [L, lanes of this rank, H] on every rank."""
    most, total = most_lanes(run), run.config.train.batch_size
    padded = F.pad(carry, (0, 0, 0, most - carry.shape[1])).transpose(0, 1).contiguous()  # ranks send alike
    blocks = run.accelerator.gather(padded).split(most)  # [most, L, H] of every rank
    starts = [rank * total // run.world for rank in range(run.world + 1)]
    blocks = [b[: stop - start] for b, start, stop in zip(blocks, starts, starts[1:], strict=False)]
    return torch.cat(blocks).transpose(0, 1).contiguous().cpu()


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
    here = (
        f" (as process {run.accelerator.process_index} on {gethostname()} sees it)" if run.world > 1 else ""
    )
    with warnings.catch_warnings():
        if not run.main:  # the main process warns for all
            warnings.simplefilter("ignore", CharlmWarning)
        loaded = load_newest(run.dir, gather_object, here)
    if loaded is not None:
        facts, tensors, vocab = loaded
        _check_same(run, facts, vocab)
        _restore(run, facts, tensors)
        _fit(run, facts)
        secure_best(run)
    elif run.config.train.init_from:
        run.say(warm_start(run.model, run.corpus.vocab, run.config.train.init_from))
        if run.average is not None:
            run.average.begin(run.model)
    if run.main:
        replace(run.dir / "config.yaml", to_yaml(run.config))
    run.begin()
    if loaded is not None:
        run.say(f"resumed {run.dir} at step {run.state.step}")
    return run.state


def _restore(run: Run, facts: dict, tensors: dict[str, dict[str, Tensor]]) -> None:
    device, rank = run.accelerator.device, run.accelerator.process_index
    load_weights(run.model, tensors["model"], f"the checkpoint of step {facts['step']}")
    if run.average is not None:
        load_weights(run.average.model, tensors["average"], f"the average of step {facts['step']}")
    load_optimizer(run.model, run.bare_optimizer, tensors["optimizer"])
    state = run.state
    state.step = state.saved = facts["step"]
    state.position = Position(*facts["position"])
    state.evaluated, state.best, state.run_id = facts["evaluated"], facts["best"], facts["run_id"]
    if state.position.window:  # else a new epoch begins, with a carry of zeros
        mine = slice(run.lanes.lanes.start, run.lanes.lanes.stop)
        carry = tensors["carry"]
        state.carry = tuple(carry[name][:, mine].contiguous().to(device) for name in sorted(carry))
    losses = tensors["losses"]["losses"]
    state.losses = list((losses[rank] if len(losses) == run.world else losses.mean(0)).to(device))
    if facts["ranks"] == run.world:  # clones, for torch reads a state from the start of its storage
        torch.set_rng_state(tensors["random"]["cpu"][rank].clone())
        if device.type == "cuda" and "cuda" in tensors["random"]:
            torch.cuda.set_rng_state(tensors["random"]["cuda"][rank].clone(), device)
    if run.accelerator.scaler is not None and facts["scaler"]:
        run.accelerator.scaler.load_state_dict(facts["scaler"])


def _fit(run: Run, facts: dict) -> None:
    """Take the lanes of a rank in more slices where there are more of them than a device held before.

    Not when train.accumulate was changed: the user decides then.
    """
    lanes = most_lanes(run)
    slices = -(-lanes // facts.get("lanes_at_once", lanes))
    if run.config.train.accumulate == facts["config"]["train"]["accumulate"] and slices > run.slices:
        run.slices = slices
        run.say(
            f"{lanes} lanes per process where there were {facts['lanes_at_once']} at once: worked off in "
            f"{slices} slices (train.accumulate={slices} or another number decides otherwise)"
        )


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
