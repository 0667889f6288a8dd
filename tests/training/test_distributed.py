"""Several real processes: the same training as one does, and each number goes on where another stopped."""

import re
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from helpers import (
    ROOT,
    assert_same_state,
    changed,
    charlm,
    config_file,
    environment,
    launched,
    losses,
    newest,
    ranks_of,
    records,
    small,
    start,
    status,
    torchrun,
    train_on,
)

from charlm.corpus.prepared import prepare
from charlm.errors import CharlmError
from charlm.training.checkpoint import folder_of, load_checkpoint, steps_of
from charlm.training.loop import train

CHANGES = {"two, then one": (2, 1), "one, then two": (1, 2), "four, then two": (4, 2)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same 16 steps by one process, and by others that change in number after 10.

    Returns the config of the whole run, and for each change (config, what was printed first, and then).
    Six lanes: four processes have one or two each.
    """
    root = tmp_path_factory.mktemp("ranks")
    options = {
        "model": {"num_layers": 2},
        "optim": {"average": 0.7},
        "train": {"steps": 16, "batch_size": 6},
        "evaluate": {"every": 8, "lanes": 5, "context": 8},
        "checkpoint": {"every": 10, "keep": 9},
    }
    whole = small(root / "whole", **options)
    train(whole, quiet=True)
    ran = {}
    for change, (first, then) in CHANGES.items():
        config = small(root / change.replace(", ", "_").replace(" ", "_"), **options)
        ran[change] = (config, train_on(first, changed(config, train={"steps": 10})), train_on(then, config))
    return whole, ran


def checkpoint_at(config, step):
    facts, tensors, _ = load_checkpoint(folder_of(config.run_dir, step))
    return facts, tensors


def assert_close(tensors, others) -> None:
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert tensor.shape == others[name].shape
        assert torch.allclose(tensor, others[name], atol=1e-5), name


@pytest.mark.parametrize("change", ["two, then one", "four, then two"])
def test_several_processes_train_as_one_does(runs, change):
    whole, ran = runs
    config, told, _ = ran[change]
    by_one, by_many = losses(whole.run_dir)[:10], losses(config.run_dir)[:10]
    assert [step for step, _ in by_many] == list(range(1, 11))
    assert [v for _, v in by_many] == pytest.approx([v for _, v in by_one], abs=1e-5)
    (facts, tensors), (facts1, tensors1) = checkpoint_at(config, 10), checkpoint_at(whole, 10)
    assert (facts["ranks"], facts1["ranks"]) == (CHANGES[change][0], 1)
    assert facts["position"] == facts1["position"]
    assert_close(tensors["model"], tensors1["model"])
    assert_close(tensors["average"], tensors1["average"])
    assert_close(tensors["optimizer"], tensors1["optimizer"])
    assert told.count("wandb: disabled") == 1  # only the main process speaks
    assert told.count("step 8: validation") == told.count("done: 10 steps") == 1


@pytest.mark.parametrize("change", ["two, then one", "four, then two"])
def test_the_checkpoint_of_several_holds_the_carry_of_all_lanes_in_order(runs, change):
    whole, ran = runs
    (_, tensors), (_, tensors1) = checkpoint_at(ran[change][0], 10), checkpoint_at(whole, 10)
    assert [tensors["carry"][name].shape for name in "01"] == [(2, 6, 12)] * 2  # layers, lanes, hidden
    assert_close(tensors["carry"], tensors1["carry"])
    h = tensors1["carry"]["0"]
    for lane in range(6):  # another order would show
        others = [other for other in range(6) if other != lane]
        assert (h[:, others] - h[:, lane : lane + 1]).abs().amax((0, 2)).min() > 0.01


@pytest.mark.parametrize("change", CHANGES)
def test_another_number_of_processes_goes_on_with_the_same_training(runs, change):
    whole, ran = runs
    config, _, told = ran[change]
    assert status(config.run_dir)["status"] == "done" and steps_of(config.run_dir) == [10, 16]
    assert [step for step, _ in losses(config.run_dir)] == list(range(1, 17))
    expected = [v for _, v in losses(whole.run_dir)]
    assert [v for _, v in losses(config.run_dir)] == pytest.approx(expected, abs=1e-5)
    for group in ("model", "carry"):
        assert_close(checkpoint_at(config, 16)[1][group], checkpoint_at(whole, 16)[1][group])
    assert f"resumed {config.run_dir} at step 10" in told


def test_lanes_beyond_what_a_process_held_before_are_worked_off_in_slices(runs):
    """Half the processes, twice the lanes on each: no more of them at once than fitted before."""
    _, ran = runs
    assert "6 lanes per process, where 3 were computed at once before" in ran["two, then one"][2]
    assert "3 lanes per process, where 2 were computed at once before" in ran["four, then two"][2]
    assert "slices" not in ran["one, then two"][2]
    assert checkpoint_at(ran["two, then one"][0], 16)[0]["lanes_at_once"] == 3


def test_the_user_decides_on_the_slices(tmp_path):
    config = small(tmp_path / "run", train={"steps": 2, "batch_size": 6})
    train_on(2, config)
    train(changed(config, train={"steps": 4, "accumulate": 3}), quiet=True)
    assert newest(config.run_dir)[0]["lanes_at_once"] == 2


def test_on_the_same_number_of_processes_a_stopped_run_goes_on_to_the_same_bits(tmp_path):
    """With dropout, whose random states differ by process; three, for a sum of two has no order."""
    options = {"model": {"num_layers": 2, "dropout": 0.3}, "train": {"steps": 12, "batch_size": 4}}
    stopped, whole = small(tmp_path / "stopped", **options), small(tmp_path / "whole", **options)
    told = train_on(3, changed(stopped, train={"max_hours": 1e-9}))
    assert "stopped at step 1 (train.max_hours is over)" in told
    assert "resumed" in train_on(3, stopped)
    train_on(3, whole)
    assert_same_state(stopped.run_dir, whole.run_dir)
    assert losses(stopped.run_dir) == losses(whole.run_dir)


@pytest.mark.parametrize("change", CHANGES)
def test_evaluation_over_several_processes_counts_every_character_once(runs, change):
    whole, ran = runs

    def scores(config):
        return {r["step"]: r for r in records(config.run_dir) if "validation/bpc" in r}

    expected, told = scores(whole), scores(ran[change][0])
    for step in (8, 16):
        for name in ("characters", "bytes", "symbols", "lanes", "context"):
            assert told[step][f"validation/{name}"] == expected[step][f"validation/{name}"]
        assert told[step]["validation/bpc"] == pytest.approx(expected[step]["validation/bpc"], abs=1e-5)
    tests = [status(config.run_dir)["test"]["bpc"] for config in (whole, ran[change][0])]
    assert tests[0] == pytest.approx(tests[1], abs=1e-5)


def test_more_processes_than_lanes_are_refused(tmp_path):
    config = small(tmp_path / "run", train={"batch_size": 1})
    assert "train.batch_size=1: too few lanes for 2 processes" in train_on(2, config, code=1)
    assert not steps_of(config.run_dir)


@pytest.fixture(scope="module")
def two_views(tmp_path_factory):
    """A run of two processes with checkpoints at 4, 8 and 12, and its whole continuation to 16."""
    root = tmp_path_factory.mktemp("views")
    config = small(root / "run", checkpoint={"every": 4, "keep": 9})
    train_on(2, config)
    shutil.copytree(config.run_dir, root / "whole")
    whole = small(root / "whole", train={"steps": 16}, checkpoint={"every": 4, "keep": 9})
    train_on(2, whole)
    return config, whole


EXCHANGE = """
import torch
from charlm.config.parse import from_dict
from charlm.model.char_lm import CharLM
from charlm.training.optimizer import make_optimizer
from charlm.training.setup import make_accelerator
from charlm.training.step import Step

accelerator = make_accelerator(from_dict({}))
rank, world = accelerator.process_index, accelerator.num_processes
x, y = torch.randint(9, (2, 6, 7), generator=torch.Generator().manual_seed(0))
lanes = [slice(r * 6 // world, (r + 1) * 6 // world) for r in range(world)]

def made(seed, **train):
    config = from_dict({"model": {"hidden_size": 8, "num_layers": 2}, "train": {"batch_size": 6, **train}})
    torch.manual_seed(seed)
    model = CharLM(config.model, 9)
    model.unused = torch.nn.Parameter(torch.ones(3))
    return model, Step(config, accelerator, model, make_optimizer(model, config.optim))

for sent_as in ("fp32", "bf16"):
    for slices in (1, 2):
        model, step = made(rank, gradients=sent_as, accumulate=slices)  # the seeds differ: the first counts
        reference, _ = made(0)
        parts = []
        for some in lanes:
            loss, _ = reference(x[some], None, y[some])
            (loss * (len(x[some]) * world / 6)).backward()
            parts.append({n: p.grad for n, p in reference.named_parameters() if p.grad is not None})
            reference.zero_grad()
        dtype = torch.bfloat16 if sent_as == "bf16" else torch.float32
        expected = {n: sum((part[n] / world).to(dtype).float() for part in parts) for n in parts[0]}
        near = {"rtol": 1e-5, "atol": 1e-7} if sent_as == "fp32" else {"rtol": 2e-2, "atol": 2e-4}
        _, norm, _ = step(x[lanes[rank]], y[lanes[rank]], None)
        torch.testing.assert_close(norm, torch.nn.utils.get_total_norm(expected.values()), **near)
        scale = min(1.0, 1.0 / (norm.item() + 1e-6))
        for name, p in model.named_parameters():
            if name == "unused":
                assert p.grad is None
                continue
            torch.testing.assert_close(p.grad, expected[name] * scale, **near)
            if sent_as == "bf16" and scale == 1.0:
                assert torch.equal(p.grad, p.grad.to(dtype).float())
        step.update()
        assert torch.equal(model.unused, torch.ones(3))

# In fp16, a gradient that overflows in one process keeps all from their update.
accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
model, step = made(0)
before = [p.clone() for p in model.parameters()]
overflows = model.output.weight.register_hook(lambda g: g * (float("inf") if rank == 1 else 1.0))
step(x[lanes[rank]], y[lanes[rank]], None)
step.update()
assert all(map(torch.equal, model.parameters(), before)) and accelerator.scaler.get_scale() == 512.0
overflows.remove()
step(x[lanes[rank]], y[lanes[rank]], None)
step.update()
assert not torch.equal(model.output.weight, before[-1]) and accelerator.scaler.get_scale() == 512.0
print("equal")
"""


@pytest.mark.parametrize("processes", [2, 4])
def test_gradients_are_averaged_over_all_lanes(tmp_path, processes):
    """In fp32 and bf16, six lanes, slices, a parameter without a gradient; in fp16 an overflow."""
    script = tmp_path / "exchange.py"
    script.write_text(EXCHANGE, encoding="utf-8")
    options = ["--standalone", "--nproc_per_node", str(processes)]
    assert launched(["torch.distributed.run", *options], script).count("equal") == processes


@pytest.mark.parametrize("options", [{"gradients": "bf16"}, {"cuda_graph": True, "accumulate": 2}])
def test_variants_resume_to_the_same_bits(tmp_path, options):
    """Gradients sent in bf16; steps as they are recorded. Three, for a sum of two has no order."""
    model, train = {"num_layers": 2, "dropout": 0.3}, {"steps": 12, "batch_size": 4, **options}
    stopped, whole = (small(tmp_path / name, model=model, train=train) for name in ("stopped", "whole"))
    train_on(3, changed(stopped, train={"max_hours": 1e-9}))
    train_on(3, stopped)
    train_on(3, whole)
    assert_same_state(stopped.run_dir, whole.run_dir)
    plain = small(tmp_path / "plain", model=model, train=train | {"gradients": "fp32", "cuda_graph": None})
    train_on(3, plain)
    by_plain, by_variant = ([loss for _, loss in losses(c.run_dir)] for c in (plain, whole))
    assert by_variant == (pytest.approx(by_plain, abs=1e-3) if "gradients" in options else by_plain)


def test_all_go_on_from_one_checkpoint_though_one_sees_the_newest_torn(two_views, tmp_path):
    """The processes see different folders, as nodes may whose disk is not what it should be."""
    first, whole = two_views
    config = small(tmp_path / "run", train={"steps": 16}, checkpoint={"every": 4, "keep": 9})
    for folder in ("run", "view"):
        shutil.copytree(first.run_dir, tmp_path / folder)
    (tmp_path / "view/checkpoints/step-00000012/carry.safetensors").write_bytes(b"torn")
    told = train_on(2, config, last=f"--run_dir {tmp_path / 'view'}")
    assert told.count("damaged checkpoint skipped") == 1
    assert "view/checkpoints/step-00000012/carry.safetensors: 4 bytes, should be" in told
    assert "(as process 1 on " in told and f"resumed {config.run_dir} at step 8" in told
    assert_same_state(config.run_dir, whole.run_dir)


def test_a_process_that_sees_no_checkpoint_lets_none_start_anew(two_views, tmp_path):
    first, _ = two_views
    config = small(tmp_path / "run", train={"steps": 16})
    shutil.copytree(first.run_dir, config.run_dir)
    told = train_on(2, config, last=f"--run_dir {tmp_path / 'elsewhere'}", code=1)
    assert (
        "none of its 3 checkpoint(s) is undamaged" in told
        and "all processes must see the same folder" in told
    )
    assert newest(config.run_dir)[0]["step"] == 12


def test_the_launcher_of_torch(tmp_path):
    config = small(tmp_path / "run", train={"steps": 2})
    assert "done: 2 steps" in torchrun(2, config)


def test_accelerate_launch_from_the_folder_of_the_script(tmp_path):
    """Paths are relative to where the user is, and --config to there too. A default config of accelerate's
    changes nothing of the training."""
    settings = "{compute_environment: LOCAL_MACHINE, distributed_type: 'NO', use_cpu: true, num_processes: 1,"
    settings += " mixed_precision: bf16, dynamo_config: {dynamo_backend: INDUCTOR}}"
    default = tmp_path / "default_config.yaml"
    default.write_text(settings, encoding="utf-8")
    launcher = ["accelerate.commands.launch", "--config_file", str(default)]
    words = ["train.py", "--config", "../configs/hello.yaml"]
    before = {path.name for path in (ROOT / "scripts").iterdir()}
    words += ["--run_dir", tmp_path / "run", "--data.dir", tmp_path / "data"]
    variables = environment(ACCELERATE_GRADIENT_ACCUMULATION_STEPS="4")
    told = launched(launcher, *words, cwd=ROOT / "scripts", env=variables)
    assert "done: 10 steps" in told
    assert f"{4 * losses(tmp_path / 'run')[0][1]:.3f}" == "6.082"
    assert {path.name for path in (ROOT / "scripts").iterdir()} - before <= {"__pycache__"}
    for line in ("GRADIENT_ACCUMULATION_STEPS=4", "MIXED_PRECISION=bf16", "DYNAMO_BACKEND=INDUCTOR"):
        assert f"ACCELERATE_{line} has no effect: train." in told
    own = charlm("train", "--config", "hello", "--run_dir", tmp_path / "own", "--data.dir", tmp_path / "data")
    assert own.returncode == 0 and losses(tmp_path / "own") == losses(tmp_path / "run")


@pytest.mark.parametrize("plugin", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_plugins_that_split_the_model_are_refused(tmp_path, plugin):
    ran = start(small(tmp_path / "run"), **{f"ACCELERATE_USE_{plugin}": "true"})
    said, _ = ran.communicate()
    assert ran.returncode == 1 and f"ACCELERATE_USE_{plugin}=true: each process of charlm holds" in said


# processes that are lost without a word: three seconds here, ten minutes by default


def stalling(folder, **train):
    train = {"steps": 1_000_000, "stall_minutes": 0.05} | train
    return small(
        folder / "run", train=train, checkpoint={"every": 50}, log={"every": 10, "wandb": "disabled"}
    )


def until_trained(config) -> None:
    for _ in range(600):
        if steps_of(config.run_dir):
            return
        time.sleep(0.1)
    raise AssertionError("no checkpoint in a minute")


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_process_that_is_stopped_ends_the_others(tmp_path, stopped):
    """Also the first one, which holds the store and writes the status."""
    config = stalling(tmp_path)
    ranks = ranks_of(config)
    until_trained(config)
    ranks[stopped].send_signal(signal.SIGSTOP)
    try:
        said, _ = ranks[1 - stopped].communicate(timeout=60)
    finally:
        ranks[stopped].kill()
    assert ranks[1 - stopped].returncode == 1
    host = socket.gethostname()
    problem = f"process {1 - stopped} on {host}: process {stopped} on {host} has not responded for "
    assert problem in said and "the last checkpoint is of step" in said
    assert status(config.run_dir)["status"] == "failed" and problem in status(config.run_dir)["error"]
    last = steps_of(config.run_dir)[-1]
    assert f"resumed {config.run_dir} at step {last}" in train_on(
        2, changed(config, train={"steps": last + 2})
    )


def test_a_step_that_hangs_ends_all(tmp_path):
    """All processes respond, but one waits for something in a step."""
    config = stalling(tmp_path)
    hang = "from charlm.training.step import Step; import time; Step.update = lambda self: time.sleep(600)"
    ranks = ranks_of(config, before=("", hang))
    said = [rank.communicate(timeout=60)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 1] and "Traceback" not in "".join(said)
    assert re.search(r"no step for \d s, though all processes respond", "".join(said))
    assert status(config.run_dir)["status"] == "failed"


@pytest.mark.slow
def test_what_takes_long_beside_steps_is_waited_for(tmp_path):
    """The main process draws a sample for longer than a step may take."""
    config = changed(stalling(tmp_path, steps=4), sample={"every": 3})
    slow = "import time; import charlm.training.loop as l; l._sample = lambda *a: time.sleep(5) or 'slow'"
    ranks = ranks_of(config, before=(slow, ""))
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert status(config.run_dir)["status"] == "done"


@pytest.mark.parametrize("present, missing", [(0, "missing: process 1"), (1, "missing: process 0, for 127.")])
def test_a_process_that_never_started_is_named(tmp_path, present, missing):
    config = stalling(tmp_path)
    train(changed(config, train={"steps": 2}), quiet=True)
    ranks = ranks_of(config)
    ranks[1 - present].kill()
    said, _ = ranks[present].communicate(timeout=60)
    assert ranks[present].returncode == 1
    problem = f"process {present} on {socket.gethostname()}: not all 2 processes started in 0.05 minutes"
    assert f"{problem} (train.stall_minutes); {missing}" in said
    failed = status(config.run_dir)
    assert (failed["status"], failed["step"]) == ("failed", 2) and problem in failed["error"]


def test_one_that_fails_before_they_connect_ends_the_others(tmp_path):
    """Its node lacks a GPU, say, or has another config of accelerate's. No launcher ends the others."""
    fails = "import charlm.training.run as r; r.make_accelerator = lambda *_, **__: 1 / 0"
    ranks = ranks_of(stalling(tmp_path), before=("", fails))
    said = [rank.communicate(timeout=60)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 70], said
    assert f"process 1 on {socket.gethostname()} has not responded for " in said[0]


@pytest.mark.parametrize("asked, code, missing", [("SIGINT", 130, ""), ("SIGTERM", 1, "missing: process 0")])
def test_one_that_waits_for_the_first_heeds_a_signal(tmp_path, asked, code, missing):
    ranks = ranks_of(stalling(tmp_path, stall_minutes=10.0))
    ranks[0].kill()
    time.sleep(3.0)
    for _ in range(20):  # it comes while Python still imports, or while the process waits
        ranks[1].send_signal(signal.Signals[asked])
        time.sleep(1.0)
        if ranks[1].poll() is not None:
            break
    assert ranks[1].returncode == code and missing in ranks[1].communicate()[0]


def test_a_second_run_on_the_same_port_leaves_the_status_of_the_first(tmp_path):
    config = small(tmp_path / "run", train={"steps": 2, "stall_minutes": 0.05})
    train(config, quiet=True)
    before = status(config.run_dir)
    lock = FileLock(tmp_path / "run" / ".lock")
    with lock.acquire(timeout=0):  # as a run that is under way does
        ranks = ranks_of(config)
        ranks[1].kill()
        assert "missing: process 1" in ranks[0].communicate(timeout=60)[0]
    assert status(config.run_dir) == before
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": "0"}
        said, _ = start(config, LOCAL_RANK="0", **place).communicate(timeout=60)
    assert f"MASTER_PORT={port}: is in use on " in said and status(config.run_dir) == before


def test_ids_are_copied_to_a_disk_of_the_node_and_read_there(tmp_path, monkeypatch):
    config = changed(small(tmp_path / "run"), data={"scratch": "$OWN_DISK/ids"})
    with pytest.raises(CharlmError, match=r"data.scratch='\$OWN_DISK/ids': this variable is not set"):
        train(config, quiet=True)
    monkeypatch.setenv("OWN_DISK", str(tmp_path / "disk"))
    train_on(2, config)
    train(small(tmp_path / "shared"), quiet=True)
    assert [v for _, v in losses(tmp_path / "run")] == pytest.approx(
        [v for _, v in losses(tmp_path / "shared")]
    )
    corpus = prepare(config)
    corpus.copy_ids("$OWN_DISK/ids", here=False)
    assert Path(corpus["train"].filename).is_relative_to(tmp_path / "disk" / "ids")


def test_two_runs_of_one_node_copy_the_ids_at_once(tmp_path, monkeypatch):
    corpus, other = (prepare(small(tmp_path / "run")) for _ in range(2))
    copy = shutil.copyfile

    def slow(source, target):
        monkeypatch.setattr(shutil, "copyfile", copy)
        copy(source, target)
        other.copy_ids(str(tmp_path / "disk"), here=True)

    monkeypatch.setattr(shutil, "copyfile", slow)
    corpus.copy_ids(str(tmp_path / "disk"), here=True)
    corpus.verify()
    assert len(list((tmp_path / "disk").rglob("*"))) == 1 + len(corpus.splits)


def test_the_first_one_killed_while_it_prepares_ends_the_others(tmp_path):
    """No launcher ends them, and they have no connection to it but the store."""
    config = stalling(tmp_path, stall_minutes=10.0)
    slow = "import charlm.training.setup as s, os, time; os.chdir({!r}); "
    slow += "s.prepare = lambda _: open('on', 'w') and time.sleep(600)"
    ranks = ranks_of(config, before=(slow.format(str(tmp_path)), ""))
    while not (tmp_path / "on").exists():
        assert all(rank.poll(0.1) is None for rank in ranks)
    ranks[0].kill()
    said, _ = ranks[1].communicate(timeout=120)
    assert ranks[1].returncode == 1 and "process 0, or the launcher, has ended" in said


TWICE = """
import sys
from charlm.config.parse import load_config
from charlm.training.loop import train

for name in ("one", "two"):
    summary = train(load_config(sys.argv[1], f"run_dir={sys.argv[2]}/{name}"))
    print(name, summary.status)
"""


@pytest.mark.slow
def test_one_script_trains_twice(tmp_path):
    script = tmp_path / "twice.py"
    script.write_text(TWICE, encoding="utf-8")
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    told = launched(launcher, script, config_file(small(tmp_path / "run")), tmp_path)
    assert told.count("one done") == told.count("two done") == 2
    assert losses(tmp_path / "one") == losses(tmp_path / "two") != []


def test_two_runs_with_one_port_are_kept_apart(tmp_path):
    """Of the second run only process 1 comes: it would take the place of the first run's."""
    config = stalling(tmp_path, stall_minutes=10.0)
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    first = start(config, RANK="0", LOCAL_RANK="0", **place)
    place |= {"RANK": "1", "LOCAL_RANK": "1"}
    ranks = [first, start(config, **place)]
    until_trained(config)
    said, _ = start(small(tmp_path / "other"), **place).communicate(timeout=60)
    for rank in ranks:
        rank.kill()
    assert f"process 1 is here already: MASTER_PORT={place['MASTER_PORT']}: is in use on " in said
    said, _ = start(small(tmp_path / "other"), **place | {"WORLD_SIZE": "two"}).communicate(timeout=60)
    assert "charlm: error: WORLD_SIZE=two: must be a whole number" in said


CAUGHT = """
import sys, time
from charlm.config.parse import load_config
from charlm.training.loop import train
from charlm.training.run import Diverged

try:
    train(load_config(sys.argv[1], "optim.learning_rate=1e38", "optim.clip=null", "log.every=1"))
except Diverged:
    time.sleep(8)
    print("does something else")
"""


@pytest.mark.slow
def test_an_error_that_is_caught_ends_the_watch(tmp_path):
    """For three seconds without a step would end the process."""
    script = tmp_path / "caught.py"
    script.write_text(CAUGHT, encoding="utf-8")
    told = launched(
        ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
        script,
        config_file(stalling(tmp_path)),
    )
    assert told.count("does something else") == 2


def test_a_place_to_meet_is_asked_for(tmp_path):
    for place in ({}, {"MASTER_ADDR": "127.0.0.1"}):
        said, _ = start(
            small(tmp_path / "run"), WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", **place
        ).communicate()
        assert "WORLD_SIZE=2: MASTER_ADDR and MASTER_PORT must name the host" in said
