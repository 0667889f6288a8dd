"""The scripts of slurm/ where there is no slurm: what they source, and what they refuse."""

import shutil
import subprocess

import pytest
from helpers import ROOT, environment


@pytest.fixture
def shell(tmp_path):
    """Runs a line of bash in a folder with the repository's slurm/; no charlm is in the PATH."""
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm", ignore=shutil.ignore_patterns("*.local.sh"))
    bash = shutil.which("bash")

    def run(line: str) -> subprocess.CompletedProcess:
        env = environment(PATH="/usr/bin:/bin", SBATCH_ACCOUNT=None, SBATCH_PARTITION=None, SLURM_JOB_ID=None)
        return subprocess.run([bash, "-c", line], cwd=tmp_path, env=env, capture_output=True, text=True)

    return run


def test_ones_own_lines_and_the_environment_of_the_folder_are_both_used(shell, tmp_path):
    show = 'source slurm/cluster.sh; echo "$(command -v charlm) $SLURM_ACCOUNT/$SLURM_PARTITION"'
    assert "no charlm in .venv" in shell(show).stderr
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "charlm").write_text("")
    (tmp_path / ".venv" / "bin" / "charlm").chmod(0o755)
    (tmp_path / ".venv" / "bin" / "activate").write_text("PATH=$PWD/.venv/bin:$PATH\n")
    here = f"{tmp_path}/.venv/bin/charlm"
    assert (shell(show).stdout, shell(show).stderr) == (f"{here} /\n", "")
    local = tmp_path / "slurm" / "cluster.local.sh"
    local.write_text("export SBATCH_ACCOUNT=mine SBATCH_PARTITION=gpu A=$NOT_SET\n")
    assert (shell(show).stdout, shell(show).stderr) == (f"{here} mine/gpu\n", "")
    assert shell(f"SLURM_JOB_ID=1; {show}").stdout == f"{here} /\n"
    local.write_text("mkdir -p own; touch own/charlm; chmod +x own/charlm; PATH=$PWD/own:$PATH\n")
    assert shell(show).stdout == f"{tmp_path}/own/charlm /\n"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("bash slurm/train.sh --config hello", "submit this, do not run it: sbatch slurm/train.sh"),
        ("bash slurm/hello.sh", "submit this, do not run it: sbatch slurm/hello.sh"),
        ("bash slurm/prepare-array.sh", "a number of shards first"),
        ("bash slurm/prepare-array.sh --config hello", "a number of shards first"),
    ],
)
def test_a_script_that_is_called_wrongly_says_how(shell, line, told):
    done = shell(line)
    assert done.returncode and told in done.stderr, done


def test_a_sweep_with_more_lines_than_tasks_says_so(shell, tmp_path):
    """The training itself is replaced: without slurm it cannot start."""
    (tmp_path / "slurm" / "train.sh").write_text('printf "%s|" "$@"\n')
    (tmp_path / "sweep.txt").write_text("--a 1\n# not this\n\n--b 'x y'\n--c 3\n")
    variables = "SLURM_SUBMIT_DIR=. SLURM_JOB_NAME=s SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=1"
    enough = shell(f"{variables} SLURM_ARRAY_TASK_MAX=2 bash slurm/sweep.sh sweep.txt --config c").stdout
    assert enough == "--config|c|--run_dir|runs/s-7_1|--b|x y|"
    fewer = shell(f"{variables} SLURM_ARRAY_TASK_MAX=1 bash slurm/sweep.sh sweep.txt --config c").stdout
    assert "has 3 lines of options, but --array ends at 1" in fewer and fewer.endswith(enough)
