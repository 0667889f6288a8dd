"""What people install, and where: wheel, source distribution, slurm/constraints.txt, other systems."""

import subprocess
import sys
from importlib.metadata import requires

import pytest
from helpers import ROOT, config_file, environment, small
from packaging.requirements import Requirement


def run(*words, cwd, **variables) -> str:
    options = {"capture_output": True, "encoding": "utf-8", "env": environment(**variables)}
    ran = subprocess.run([sys.executable, "-m", *map(str, words)], cwd=cwd, **options)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    run("hatchling", "build", "-d", folder, cwd=ROOT)
    return folder


@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_it_installs_and_says_hello_from_an_empty_folder(built, tmp_path, kind):
    (path,) = built.glob(kind)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "-q", "--target")
    run("pip", "install", *options, tmp_path / "site", path, cwd=tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    place = {"PYTHONPATH": str(tmp_path / "site")}
    found = run("charlm", "train", "--config", "stdlib", "--print_config", cwd=empty, **place)
    assert "run_dir: runs/stdlib" in found
    assert "6.082" in run("charlm", "hello", cwd=empty, **place)


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="they are those of Python 3.11")
def test_constraints_fit_what_is_declared():
    """Of charlm and of all that it needs, here and now."""
    lines = (ROOT / "slurm" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if not line.startswith("#"))
    queue, seen = [("charlm", extra) for extra in ("", "test", "report", "export")], set()
    while queue:
        name, extra = queue.pop()
        for line in requires(name) or ():
            need = Requirement(line)
            pin = need.name.lower().replace("_", "-")
            if need.marker is not None and not need.marker.evaluate({"extra": extra}):
                continue
            if pin == "setuptools":  # is in every environment, and in no list of pip
                continue
            assert pin in pins and need.specifier.contains(pins[pin], prereleases=True), f"{name}: {line}"
            for each in {(pin, ""), *((pin, more) for more in need.extras)} - seen:
                seen.add(each)
                queue.append(each)


ELSEWHERE = """
import mmap, os, shutil, signal, sys
import accelerate, datasets, psutil, torch, wandb

for module, name in ((signal, "SIGUSR1"), (signal, "SIGHUP"), (signal, "pthread_sigmask"), (os, "pwrite")):
    delattr(module, name)
del mmap.MADV_DONTNEED, os.sched_getaffinity
sys.modules["resource"], shutil._use_fd_functions = None, False
os_open = os.open

def open_file(path, *options, **more):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return os_open(path, *options, **more)

os.open = open_file
from charlm.commands.cli import main

main(sys.argv[1:])
"""


def test_it_trains_where_windows_has_less(tmp_path):
    """No folder that can be opened, fewer signals, no pwrite, no resource: simulated, on this system."""
    script = tmp_path / "elsewhere.py"
    script.write_text(ELSEWHERE, encoding="utf-8")
    words = ["train", "--config", config_file(small(tmp_path / "run", train={"steps": 4}))]
    ran = subprocess.run(
        [sys.executable, script, *words], capture_output=True, encoding="utf-8", env=environment()
    )
    assert ran.returncode == 0 and "done: 4 steps" in ran.stdout, ran.stdout + ran.stderr
