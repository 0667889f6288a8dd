"""The state of a run, to a checkpoint and back: on the same number of ranks, or on another."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path
from socket import gethostname

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from torch import Tensor

from charlm.config.fields import WITHOUT_EFFECT, ModelConfig
from charlm.config.parse import flatten, from_dict, to_yaml
from charlm.corpus.vocabulary import Vocab, name_of
from charlm.errors import CharlmError, CharlmWarning
from charlm.files import replace
from charlm.model.char_lm import CharLM
from charlm.model.pretrained import load_weights, read_best, weights_of
from charlm.training.checkpoint import (
    DamagedCheckpoint,
    folder_of,
    load_checkpoint,
    load_newest,
    load_optimizer,
    optimizer_tensors,
)
from charlm.training.lanes import Position
from charlm.training.run import Run, State
from charlm.training.trained import open_trained

# What may differ between a checkpoint and the config that resumes it: what has no effect on the training but
# its length, and what only reads it.
MAY_CHANGE = (*WITHOUT_EFFECT, "train.steps", "evaluate.", "sample.", "checkpoint.", "log.")


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


def secure_best(run: Run) -> None:
    """See to it that model/ holds the best weights; where those are lost, the next evaluation decides.

    Those of a later step were told by a process that was killed: its steps will be done again.
    """
    figures, safe = run.state.best, True
    if figures is None:
        return
    step, folder = figures["step"], run.dir / "model"
    if run.main:
        there = read_best(run.dir, run.corpus.vocab)
        if there is None or there["step"] != step:
            safe = mend(run.dir, figures)
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


def mend(run_dir: Path, figures: dict) -> bool:
    """Write model/ from the checkpoint of the step in the figures; False where that is gone or damaged."""
    try:
        facts, tensors, vocab = load_checkpoint(folder_of(run_dir, figures["step"]))
    except DamagedCheckpoint:
        return False
    with torch.random.fork_rng(devices=[]):  # the run's random state has been restored by now
        model = CharLM(ModelConfig(**facts["config"]["model"]), len(vocab))
    load_weights(model, tensors.get("average", tensors["model"]), f"the checkpoint of step {facts['step']}")
    model.save_pretrained(run_dir / "model", vocab, step=facts["step"], validation=figures)
    return True


SAME = (
    "cell",
    "nonlinearity",
    "embedding_size",
    "hidden_size",
    "num_layers",
    "tie_weights",
    "norm",
    "residual",
)


def warm_start(model: CharLM, vocab: Vocab, where: str) -> str:
    """Copy the weights of a trained model into a fresh one; returns what was done, for people.

    where: a run directory, a model folder or a hub id. Rows of embedding and output (or columns of the first
    layer, when the input is one-hot) go to the symbol that spells the same bytes: a character, or the byte
    symbol of a bytes-only vocabulary. Symbols the other model does not know keep their fresh rows.
    Raises CharlmError when sizes differ, naming them, or no symbol is common.
    """
    other, known, _ = open_trained(where, "cpu")
    ours, theirs = flatten(model.config), flatten(other.config)
    differ = [
        f"model.{key} is {ours[key]!r}, there {theirs[key]!r}" for key in SAME if ours[key] != theirs[key]
    ]
    if differ:
        raise CharlmError(
            f"train.init_from={where}: its weights do not fit: {', '.join(differ)}; take those values"
        )
    place = {spelled: index for index, spelled in enumerate(known.spelling)}
    pairs = [(i, place[s]) for i, s in enumerate(vocab.spelling) if s in place]
    if not any(vocab.spelling[i] for i, _ in pairs):
        raise CharlmError(
            f"train.init_from={where}: its vocabulary ({known}) has no character of ours ({vocab})"
        )
    to, source = (torch.tensor(index) for index in zip(*pairs, strict=True))
    rows = {"input.weight", "output.weight", "output.bias"}
    weights = dict(other.named_parameters())
    with torch.no_grad():
        for name, p in model.named_parameters():
            theirs = weights[name].to(p.device)
            if name in rows:
                p[to.to(p.device)] = theirs[source.to(p.device)]
            elif name == f"layers.0.{model.cell.input_weight}" and not model.config.embedding_size:
                p[:, to.to(p.device)] = theirs[:, source.to(p.device)]
            else:
                p.copy_(theirs)
    new = [i for i in range(len(vocab)) if i not in set(to.tolist())]
    lost = [i for i in range(len(known)) if i not in set(source.tolist())]
    return (
        f"warm start from {where}: {len(pairs)} of {len(vocab)} symbols have its rows; "
        f"{len(new)} new, with fresh rows{_named(vocab, new)}; "
        f"{len(lost)} of its own dropped{_named(known, lost)}"
    )


def _named(vocab: Vocab, ids: list[int], most: int = 10) -> str:
    """The first few of some symbols, as people know them."""

    def name(i: int) -> str:
        if i < len(vocab.characters):
            return name_of(vocab.characters[i])
        return "the end of a document" if i == vocab.end else f"byte {vocab.spelling[i].hex()}"

    names = [name(i) for i in ids[:most]] + (["…"] if len(ids) > most else [])
    return f" ({', '.join(names)})" if names else ""
