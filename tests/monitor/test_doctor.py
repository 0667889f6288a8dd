"""charlm doctor: what it finds out before a job is queued, and the exit code that tells."""

import os
import re
import subprocess

import pytest
from helpers import MIXED, changed, config_file, files_of, small, train_on

from charlm.commands.cli import main
from charlm.commands.train import doctor as doctor_command
from charlm.config.parse import to_yaml
from charlm.corpus.prepared import folder_of, prepare
from charlm.errors import CharlmError
from charlm.monitor.doctor import cudnn_kernels
from charlm.training.lanes import Lanes
from charlm.training.loop import train


@pytest.fixture
def doctor(capsys):
    """Examine a config in this process: (exit code, stdout)."""

    def doctor(config, *words) -> tuple[int, str]:
        code = 0
        try:
            main(["doctor", "--config", str(config_file(config)), *words])
        except SystemExit as left:
            code = left.code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out

    return doctor


@pytest.fixture
def config(tmp_path):
    config = small(tmp_path / "runs" / "run")
    (tmp_path / "runs").mkdir()
    prepare(config)
    return config


def test_all_is_well(doctor, config, tmp_path):
    before = files_of(tmp_path)
    code, told = doctor(config, "--hours", "1")
    assert code == 0, told
    lines = told.splitlines()
    found = {line.split()[1]: line for line in lines[:-1]}
    assert all(line.startswith("ok ") for line in lines[:-1])
    assert lines[-1] == "1 process(es): ready to train"
    assert "1 process(es) on cpu, 1 thread(s) each" in found["device"]
    assert "4 in all, 4 per process" in found["lanes"]
    assert str(folder_of(config)) in found["corpus"]
    assert "recurrent layers compute in float32" in found["precision"]
    assert "characters/s" in found["speed"] and "GB at most" in found["memory"]
    assert "12 of 12 steps take 0.00 h" in found["time"] and "a limit of 1 h is enough" in found["time"]
    assert "GB free at" in found["disk"] and "disabled (log.wandb)" in found["wandb"]
    assert found["hub"].endswith("offline (HF_HUB_OFFLINE, HF_DATASETS_OFFLINE)")
    after = files_of(tmp_path)
    assert after == before | {"runs/run.yaml": to_yaml(config).encode()}  # it leaves nothing behind


def assert_bad(ran: tuple[int, str], name: str, told: str) -> None:
    code, out = ran
    assert code == 1, out
    (bad,) = [line for line in out.splitlines() if line.startswith("BAD")]
    assert bad.split()[1] == name and told in bad
    assert f"needs attention: {name}" in out


def test_a_corpus_that_is_not_prepared(doctor, tmp_path):
    config = small(tmp_path / "run")
    assert_bad(doctor(config), "corpus", f"{folder_of(config)} is not prepared yet: charlm prepare")
    assert not folder_of(config).exists()


def test_a_time_limit_that_is_too_short(doctor, config):
    assert_bad(doctor(config, "--hours=0.0000001"), "time", "a limit of 1e-07 h is too short")


def test_a_time_limit_that_makes_no_sense(config):
    with pytest.raises(CharlmError, match="--hours -1: must be above 0"):
        doctor_command(["--config", str(config_file(config)), "--hours=-1"])


def test_a_batch_that_the_text_is_too_short_for(doctor, config):
    ran = doctor(config, "--train.batch_size=100", "--train.bptt=100")
    assert_bad(ran, "config", "train.batch_size=100 lanes × train.bptt=100 need 10,001")


def test_a_disk_without_room_for_the_checkpoints(doctor, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a file system")
    try:
        config = small(disk / "run", data={"dir": str(tmp_path / "data")}, model={"hidden_size": 100})
        prepare(config)
        assert_bad(doctor(config), "disk", f"GB free at {disk}")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_precision_on_a_cpu_is_told_as_it_is(doctor, config):
    code, told = doctor(config, "--train.precision=bf16")
    assert code == 0
    assert "train.precision=bf16 is for NVIDIA GPUs: this CPU computes in fp32" in told
    assert "train.precision=bf16: recurrent layers compute in float32" in told


@pytest.mark.parametrize(
    ("model", "precision", "lanes", "kernels"),
    [
        ({"hidden_size": 1024, "embedding_size": 128, "num_layers": 2}, "fp16", 64, ["STANDARD"] * 2),
        (
            {"hidden_size": 1024, "embedding_size": 128, "num_layers": 2, "dropout": 0.1},
            "fp16",
            64,
            ["PERSIST_STATIC"] * 2,
        ),
        (
            {"hidden_size": 1024, "embedding_size": 64, "num_layers": 2, "dropout": 0.1},
            "fp16",
            64,
            ["STANDARD", "PERSIST_STATIC"],
        ),
        ({"hidden_size": 1024, "embedding_size": 128}, "bf16", 64, ["STANDARD"]),
        ({"hidden_size": 1024, "embedding_size": 128, "cell": "gru"}, "fp16", 64, ["STANDARD"]),
        ({"hidden_size": 1024, "embedding_size": 128}, "fp16", 136, ["STANDARD"]),
        ({"hidden_size": 128, "cell": "gru"}, "fp32", 3, ["PERSIST_SMALL_H"]),
        ({"hidden_size": 192}, "fp32", 3, ["PERSIST_SMALL_H (forward only)"]),
        ({"hidden_size": 128, "cell": "rnn"}, "fp32", 3, ["STANDARD"]),
    ],
)
def test_which_kernels_of_cudnn_are_told(tmp_path, model, precision, lanes, kernels):
    config = small(tmp_path / "run", model=model, train={"precision": precision})
    assert cudnn_kernels(config, lanes) == kernels


def test_the_hub_is_told_as_the_environment_has_it(doctor, config, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("HF_DATASETS_OFFLINE")
    assert "online, if it can be reached" in doctor(config)[1]


def test_wandb_is_told_unused_where_it_is_no_tracker(doctor, config, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "shared")  # which training would refuse
    config.log.trackers = []
    code, told = doctor(config)
    assert code == 0 and "disabled (log.trackers)" in told


def test_two_processes_are_examined_together(tmp_path):
    config = small(tmp_path / "run", train={"batch_size": 5})
    prepare(config)
    told = train_on(2, config, name="doctor")
    assert "5 in all, 2 or 3 per process" in told
    assert told.rstrip().endswith("2 process(es): ready to train")
    assert told.count("versions") == 1  # only the main process speaks


def test_a_file_that_changed_is_another_corpus(doctor, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(MIXED, encoding="utf-8")
    config = small(tmp_path / "run", data={"source": "text", "data_files": str(path)})
    prepare(config)
    assert doctor(config)[0] == 0
    os.utime(path, (1, 1))
    assert doctor(config)[0] == 0
    path.write_text(MIXED[::-1], encoding="utf-8")
    assert_bad(doctor(config), "corpus", "is not prepared yet")


def test_steps_minutes_and_epochs_are_converted(doctor, config):
    per_epoch = Lanes(prepare(config)["train"], 4, 7).windows
    told = doctor(config)[1]
    assert re.search(rf"h \([\d.]+ minutes\).*; 12 steps are {12 / per_epoch:.2f} epochs", told)
    told = doctor(config, "--train.epochs", "2")[1]
    assert f"{2 * per_epoch} of {2 * per_epoch} steps take" in told and "steps are 2.00 epochs" in told
    told = doctor(config, "--train.minutes", "600")[1]
    (steps,) = re.findall(r"train\.minutes=600: about ([\d,]+) steps on this machine", told)
    assert f"{steps} of {steps} steps take" in told and re.search(r"\((599\.\d|600\.0) minutes\)", told)


def test_minutes_that_were_measured_are_not_estimated_again(doctor, config):
    config = changed(config, train={"steps": 1000, "minutes": 1e-6})
    assert train(config, quiet=True).step == 2
    assert "train.minutes=1e-06: about 2 steps" in doctor(config)[1]


def test_a_run_that_is_under_way_needs_less_time(doctor, config):
    train(changed(config, train={"steps": 5}), quiet=True)
    assert "7 of 12 steps take" in doctor(config)[1]
