"""Checkpoints: the whole state of a run, written atomically, verified when read, nothing in them executable.

runs/<name>/checkpoints/step-00001000/
    manifest.json           size and sha256 of every other file
    facts.json              step, position, best figures, wandb id, config, …
    model.safetensors  optimizer.safetensors  carry.safetensors  random.safetensors  losses.safetensors
    average.safetensors     with optim.average: the averaged weights
    vocab.json
"""

import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from charlm.checked import Count, parse, read, size_of
from charlm.config.parse import from_dict
from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError, CharlmWarning
from charlm.files import sync_folder, write_synced
from charlm.model.char_lm import CharLM
from charlm.model.pretrained import model_of

FORMAT = {"format": "charlm checkpoint", "version": 2}
UNSAVED = ".no-checkpoint-yet"  # a file in the run directory, from its start to the first checkpoint
ENTRY = {"bytes": Count, "sha256": str}  # of a file in manifest.json
NEEDED = {"facts.json", "vocab.json", "model.safetensors"}
Tensors = dict[str, dict[str, Tensor]]  # file, without .safetensors → name → tensor


class DamagedCheckpoint(CharlmError):
    """A checkpoint with a file missing, truncated or changed."""


def folder_of(run_dir: str | Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return Path(run_dir) / "checkpoints" / f"step-{step:08d}"


def steps_of(run_dir: str | Path) -> list[int]:
    """Steps of the checkpoints in a run directory, oldest first."""
    names = [path.name[5:] for path in (Path(run_dir) / "checkpoints").glob("step-*")]
    return sorted(int(name) for name in names if name.isdigit())


def write_checkpoint(
    run_dir: str | Path, facts: dict, tensors: Tensors, vocab: Vocab, keep: int, say=print, again: tuple = ()
) -> Path:
    """Write the checkpoint of facts["step"], then delete old ones: all but the newest `keep` and the best.
    When it cannot be written, says so and tries again after these seconds, then raises CharlmError; earlier
    ones are untouched."""
    step, best = facts["step"], facts["best"]
    folder = folder_of(run_dir, step)
    partial, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("partial", "old"))
    try:
        for left_over in folder.parent.glob(".step-*"):  # of a process that was killed
            shutil.rmtree(left_over, ignore_errors=True)
        partial.mkdir(parents=True)
        files = {f"{name}.safetensors": save(group) for name, group in tensors.items()}
        files["facts.json"] = json.dumps(facts, indent=2).encode()
        files["vocab.json"] = json.dumps(vocab.to_dict(), ensure_ascii=False).encode()
        listed = {n: {"bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in files.items()}
        for name, content in files.items():
            write_synced(partial / name, content)
        write_synced(partial / "manifest.json", json.dumps(FORMAT | {"files": listed}, indent=2))
        sync_folder(partial)
        if folder.exists():  # a damaged one of the same step, or one written again
            os.rename(folder, old)
        os.rename(partial, folder)
        (Path(run_dir) / UNSAVED).unlink(missing_ok=True)
        sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        steps = steps_of(run_dir)
        safe = f"{folder_of(run_dir, steps[-1])} is safe" if steps else "there is none before"
        problem = f"{folder}: cannot be written ({error.strerror or error}); {safe}"
        if not again:
            raise CharlmError(problem) from error
        say(f"warning: {problem}; it is tried again in {again[0]} s")
        time.sleep(again[0])
        return write_checkpoint(run_dir, facts, tensors, vocab, keep, say, again[1:])
    # A later step can only be a damaged checkpoint that was skipped: it is not counted, nor deleted.
    for other in [s for s in steps_of(run_dir) if s <= step][:-keep]:
        if best is None or other != best["step"]:
            hidden = folder_of(run_dir, other).with_name(f".step-{other:08d}.old")
            os.rename(folder_of(run_dir, other), hidden)  # a kill while deleting leaves no half of it behind
            shutil.rmtree(hidden, ignore_errors=True)
    return folder


def refuse_lost(run_dir: Path) -> None:
    """Raise CharlmError for a run whose checkpoints are gone: training would overwrite what is left."""
    left = [name for name in ("model", "metrics.jsonl") if (run_dir / name).exists()]
    if left and not steps_of(run_dir) and not (run_dir / UNSAVED).exists():
        problem = f"holds {' and '.join(left)} of a run, but no checkpoint; training would overwrite that"
        advice = f"name another run_dir, with train.init_from={run_dir / 'model'} to start from its weights"
        raise CharlmError(f"run_dir={str(run_dir)!r}: {problem}; {advice}")


def load_checkpoint(folder: Path) -> tuple[dict, Tensors, Vocab]:
    """(facts, tensors, vocabulary) of a checkpoint, every file compared with its sha256. Raises, naming the
    file, DamagedCheckpoint, or OSError where it cannot be read now."""
    try:
        kind = FORMAT | {"files": dict[str, ENTRY]}
        manifest = read(folder / "manifest.json", kind, "not a checkpoint of this version of charlm")
    except CharlmError as error:
        if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
            raise error.__cause__ from None
        raise DamagedCheckpoint(str(error)) from error
    listed, files = manifest["files"], {}
    if elsewhere := [name for name in listed if Path(name).name != name]:
        raise DamagedCheckpoint(f"{folder / 'manifest.json'}: {elsewhere[0]!r} is not a name in this folder")
    if unlisted := ({p.name for p in folder.iterdir()} | NEEDED) - {"manifest.json", *listed}:
        raise DamagedCheckpoint(f"{folder / 'manifest.json'}: does not list {', '.join(sorted(unlisted))}")
    for name, entry in listed.items():
        try:
            if (found := size_of(folder / name)) != entry["bytes"]:
                raise ValueError(f"{found} bytes, should be {entry['bytes']}")
            files[name] = (folder / name).read_bytes()
        except (FileNotFoundError, ValueError) as error:  # another error of the disk does not show a damage
            reason = getattr(error, "strerror", None) or error
            raise DamagedCheckpoint(f"{folder / name}: {reason}") from error
        if hashlib.sha256(files[name]).hexdigest() != entry["sha256"]:
            raise DamagedCheckpoint(f"{folder / name}: its sha256 is not the one in manifest.json")
    try:
        tensors = {Path(n).stem: load(b) for n, b in files.items() if n.endswith(".safetensors")}
        facts, vocab = parse(files["facts.json"], {"step": Count}), parse(files["vocab.json"])
        return facts, tensors, Vocab.from_dict(vocab)
    except (ValueError, SafetensorError) as error:
        raise DamagedCheckpoint(f"{folder}: {error}") from error


def load_newest(
    run_dir: str | Path, gather: Callable[[list], list] = list, here: str = ""
) -> tuple[dict, Tensors, Vocab] | None:
    """The newest undamaged checkpoint of a run, or None when it has none.

    A damaged one is skipped with a warning. Raises CharlmError when all are damaged: whether to start again
    is for the user to decide.
    gather: joins the lists of several processes that load the same one, the main process first. They try the
    steps that the main process sees, and skip one that is damaged for any. here: names this process.
    """
    steps = gather([steps_of(run_dir)])[0]
    for step in reversed(steps):
        loaded, damage = None, []
        try:
            loaded = load_checkpoint(folder_of(run_dir, step))
        except DamagedCheckpoint as error:
            damage = [f"{error}{here}"]
        if not (damage := gather(damage)):
            return loaded
        warnings.warn(f"damaged checkpoint skipped: {damage[0]}", CharlmWarning, stacklevel=2)
    if steps:
        advice = f"delete {run_dir} to start again, or name another run_dir"
        advice += "; all processes must see the same folder" if here else ""
        raise CharlmError(f"{run_dir}: none of its {len(steps)} checkpoint(s) is undamaged; {advice}")
    return None


def evaluated_model(facts: dict, tensors: Tensors, vocab: Vocab) -> CharLM:
    """The model of a checkpoint, with averaged weights if it has them. Draws random numbers of torch."""
    weights, where = tensors["model"] | tensors.get("average", {}), f"the checkpoint of step {facts['step']}"
    return model_of(CharLM, from_dict(facts.get("config")).model, len(vocab), weights, where)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as '<parameter>/<key>' → tensor, copied to the CPU."""
    return {
        f"{name}/{key}": value.detach().to("cpu", copy=True).contiguous()
        for name, p in model.named_parameters()
        for key, value in optimizer.state.get(p, {}).items()
    }


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of optimizer_tensors. Raises CharlmError when the parameters are others."""
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        parameter, _, key = name.rpartition("/")
        if parameter not in parameters:
            raise CharlmError(f"the checkpoint's optimizer has a parameter {parameter}, the model has not")
        p = parameters[parameter]
        optimizer.state[p][key] = value.to(p.device)
