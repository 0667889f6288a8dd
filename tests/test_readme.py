"""Every command of the READMEs (top, slurm, configs) is run: here, shortened, or in the test named here.

A command is what a reader would type: a line of an indented block, or a span of code that begins with the
name of a program and goes on. It must be in HERE or THERE; an entry that no README shows any more fails too.
"""

import ast
import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import ROOT

from charlm.commands.cli import main

FOLDERS = (".", "slurm", "configs", "scripts/bench", "charlm")
FOLDERS += tuple(f"charlm/{name}" for name in ("corpus", "training", "evaluation", "sharing"))
READMES = [ROOT / name / "README.md" for name in FOLDERS]
PROGRAMS = (
    *(
        "charlm",
        "python",
        "python3",
        "pip",
        "accelerate",
        "torchrun",
        "sbatch",
        "srun",
        "scancel",
        "scontrol",
    ),
    *("scontrol", "bash", "source", "nano", "tail", "wandb", "pytest", "bench.py", "git"),
)


class Short(NamedTuple):
    """How a command is run here: as the README has it, but for these."""

    more: str = ""  # words after it; what comes later wins
    told: str = ""  # part of what it must print
    swap: tuple[str, str] = ("", "")  # a part of the command and what stands here instead of it
    code: int = 0  # its exit code


# Stand-ins for what the READMEs leave to the reader.
NAMES = {"C": "mine.yaml", "RUN": "runs/mine", "FILE": "books/one.txt"}
FEW = "--train.steps 2 --train.batch_size 2 --train.bptt 8 --evaluate.lanes 2 --log.wandb disabled"
TINY = f"{FEW} --model.hidden_size 6 --model.embedding_size 6 --model.num_layers 1 --sample.length 5"
FILES = "--data.source text --data.name '' --data.data_files 'books/*.txt'"
HELD = "--data.validation 0.3 --data.test 0.3"
TINY_STORIES = "charlm train --data.source roneneldan/TinyStories --run_dir runs/stories"
BEST = "charlm train --config shakespeare-best --train.precision bf16"
EXCERPT = "charlm train --config enwik8-4mb --train.precision bf16"
SAMPLE = f"{TINY} {FILES} {HELD} --data.streaming false --run_dir runs/sample"
LOWER = "charlm train --config C --optim.learning_rate 1e-3 --train.allow_change optim.learning_rate"
TUNED = "charlm train letters.txt --train.init_from runs/stdlib --model.recall 8192"
TUNED += " --optim.learning_rate 1e-3"
SEEDS = "charlm compare runs/seed-1 runs/seed-2 runs/seed-3 --json > seeds.json"
DRAW = 'charlm sample RUN --prompt "def " --length 500 --temperature 0.7'
HERE = {
    "charlm train --help all": Short(told="--model.hidden_size"),
    "charlm hello --explain": Short(
        "--debug --figure hello.svg", "predicted string: ello, epoch: 10, loss: 2.020"
    ),
    LOWER: Short("--train.steps 2", "changed here: optim.learning_rate"),
    TUNED: Short(f"{TINY} --model.recall 0", "done: 2 steps", ("stdlib", "mine")),
    "charlm compare RUN RUN": Short(told="mine"),
    "charlm compare": Short("runs/mine runs/mine", "mine"),
    "charlm compare runs/one runs/two --figure curves.svg": Short(told="mine", swap=("one runs/two", "mine")),
    SEEDS: Short(told="mine", swap=("seed-1 runs/seed-2 runs/seed-3 --json > seeds.json", "mine --json")),
    DRAW: Short("--length 5 --prompt the", "the"),
    "charlm evaluate RUN --text my.txt": Short(told="bpc"),
    "charlm train --help": Short(told="--model.size"),
    "charlm prepare --config C": Short(told="unigram"),
    "charlm prepare --config C --verify": Short(told="as it was made"),
    "charlm prepare --config C --shard 0/16": Short("--data.dir shards", swap=("0/16", "0/1")),
    "charlm prepare --config C --merge 16": Short("--data.dir shards", "vocabulary is chosen", ("16", "1")),
    "charlm prepare --config wikipedia-en": Short(f"{FILES} {HELD}", "xz -9e"),
    "charlm prepare --config wikipedia-simple": Short(f"{FILES} {HELD}", "xz -9e"),
    "charlm train --config stdlib": Short(f"{TINY} --data.max_documents 12", "done: 2 steps"),
    "charlm train --config shakespeare": Short(f"{TINY} {FILES} --sample.prompt the", "done: 2 steps"),
    "charlm train --config shakespeare-best": Short(f"{TINY} {FILES} --sample.prompt the", "done: 2 steps"),
    BEST: Short(f"{TINY} {FILES} --sample.prompt the --run_dir runs/best", "done: 2 steps"),
    "charlm train --config enwik8-4mb": Short(f"{TINY} {HELD} --data.data_files FILE", "done: 2 steps"),
    EXCERPT: Short(f"{TINY} {HELD} --data.data_files FILE --run_dir runs/excerpt", "done: 2 steps"),
    "charlm train --config wikipedia-sample": Short(SAMPLE, "done: 2 steps"),
    "charlm train --config text8": Short(f"{TINY} {HELD} --data.data_files FILE", "done: 2 steps"),
    "charlm train my.txt": Short(TINY, "done: 2 steps"),
    "charlm train my.txt --model.size small --train.minutes 10": Short(
        TINY, "done: 2 steps", ("--train.minutes 10", "--run_dir runs/small")
    ),
    "charlm train my.txt --print_config=skip_default": Short(told="data_files:"),
    "charlm train books/ --train.minutes 10": Short(
        f"{TINY} {HELD}", "done: 2 steps", ("--train.minutes 10", "")
    ),
    "charlm train pages.jsonl --data.text_column body": Short(f"{TINY} {HELD}", "done: 2 steps"),
    "charlm train reviews.csv --data.text_column review": Short(f"{TINY} {HELD}", "done: 2 steps"),
    "charlm train 'parts/*.parquet'": Short(f"{TINY} {HELD} --run_dir runs/parts", "done: 2 steps"),
    TINY_STORIES: Short(f"{TINY} {HELD} {FILES}", "done: 2 steps"),
    "charlm watch RUN": Short("--json", '"status": "done"'),
    "charlm watch runs/stdlib": Short("--once", "step 2 of 2", ("stdlib", "mine")),
    "charlm doctor --config C": Short(told="ready to train"),
    "charlm evaluate RUN": Short("--json", '"bpc"'),
    "charlm evaluate RUN --trust": Short("--max_characters 50", " bpc"),
    "charlm evaluate RUN --lanes 1": Short("--json", '"lanes": 1'),
    "charlm evaluate RUN --dynamic": Short("--max_characters 50", "dynamic: "),
    "charlm evaluate RUN --by_context": Short("--max_characters 50", "2 to 3 "),
    "charlm push RUN user/name": Short(told="nothing was sent (HF_HUB_OFFLINE is set)"),
    "charlm push RUN user/name --license mit --language en --dry_run": Short(told="would send"),
    "charlm export RUN model.onnx": Short(told="onnxruntime agrees"),
    "charlm report RUN": Short(told="report.html"),
}
# Cannot be run here: why, and the test that does what can be done, if there is one.
INSTALL = "python3 -m venv .venv && .venv/bin/pip install -e"
LAUNCH = "accelerate launch scripts/train.py --config wikipedia-en --run_dir runs/wiki"
BENCH_PREPARE = "test_bench.py::test_prepare_gives_a_row_for_every_way"
BENCH_SAMPLE = "test_bench.py::test_sample_gives_a_row_for_every_size_and_a_table"
BENCH_EVALUATE = "test_bench.py::test_evaluate_gives_a_row_for_every_size_and_a_table"
BENCH_SCALING = "test_bench.py::test_scaling_measures_one_process_and_two"
BENCH_QUALITY = "test_quality.py::test_every_way_gets_a_row_and_a_line_and_a_failure_stops_no_other"
BENCH_TRAIN = "test_bench.py::test_train_gives_a_row_for_every_size_and_a_table"
LAUNCHED = "training/test_distributed.py::test_accelerate_launch_from_the_folder_of_the_script"
SMOKE = "slurm/test_slurm.py::test_hello_says_that_the_cluster_is_set_up_right"
BENCH = "python scripts/bench.py"
ON_CPU = "--ways scripts/bench/ways/wikipedia_cpu.txt --config wikipedia-sample --seconds 600"
ON_CPU += " --max_characters 200000"
LOCAL = "slurm/test_scripts.py::test_ones_own_lines_and_the_environment_of_the_folder_are_both_used"
SWEEP = "slurm/test_slurm.py::test_a_sweep_trains_every_line_in_a_run_directory_of_its_own"
CPU_BUILD = "python3 -m venv .venv && .venv/bin/pip install"
INDEX = "https://download.pytorch.org/whl/cu128"
CONSTRAINTS = "test_install.py::test_constraints_fit_what_is_declared"
CHAIN = "slurm/test_slurm.py::test_a_chain_prepares_then_trains_then_evaluates"
ONE_GPU = "--gpus-per-node=1 --ntasks-per-node=1"
LARGER = {
    "--gpus-per-node=2 --ntasks-per-node=2": "wikipedia-simple",
    "--nodes=4 --gpus-per-node=2 --ntasks-per-node=2": "wikipedia-en",
    "--nodes=4 --gpus-per-node=8 --ntasks-per-node=8": "wikipedia-en",
}
NODES = "slurm/test_slurm.py::test_two_nodes_train_as_one_process_does"
REQUEUED = "slurm/test_slurm.py::test_usr1_saves_requeues_and_resumes_until_done"
THERE = {
    f"{INSTALL} . && .venv/bin/charlm train --config stdlib": ("network", ""),
    "pip install onnx onnxruntime": ("network", ""),
    "charlm train - --data.source json": (
        "a pipe",
        "corpus/test_corpus.py::test_rows_that_datasets_streams_are_read_from_a_pipe",
    ),
    f"{INSTALL} '.[test]' && .venv/bin/pytest": ("network", ""),
    "pip install 'charlm[report]'": ("network", ""),
    "charlm sample user/name": ("network", "sharing/test_hub.py::test_what_was_pushed_is_what_is_loaded"),
    "source .venv/bin/activate": ("an environment of one's own", ""),
    "python scripts/bench.py NAME": ("minutes", BENCH_PREPARE),
    "bench.py quality": ("minutes", BENCH_QUALITY),
    "pip install -c slurm/constraints.txt …": ("network", CONSTRAINTS),
    "python scripts/bench.py prepare --runs 3": ("minutes", BENCH_PREPARE),
    "python scripts/bench.py train --cells lstm gru": ("minutes", BENCH_TRAIN),
    f"{BENCH} train --sizes 256x16x64 512x64x64 1024x128x128 --rounds 5": ("a GPU", BENCH_TRAIN),
    f"{BENCH} train --layers 2 --sizes 512x128x128 2048x512x128 --rounds 3": ("a GPU", BENCH_TRAIN),
    f"{BENCH} sample --sizes 512x1 2048x1 2048x64 --length 400 --rounds 3": ("a GPU", BENCH_SAMPLE),
    f"{BENCH} evaluate --sizes 512x32 2048x256 --rounds 3": ("a GPU", BENCH_EVALUATE),
    "python scripts/bench.py evaluate --cells lstm gru": ("minutes", BENCH_EVALUATE),
    "python scripts/bench.py sample --cells lstm gru": ("minutes", BENCH_SAMPLE),
    "python scripts/bench.py scaling": ("minutes", BENCH_SCALING),
    f"{BENCH} quality {ON_CPU}": ("half an hour", BENCH_QUALITY),
    LAUNCH: ("a launcher", LAUNCHED),
    "torchrun --nproc_per_node 2 scripts/train.py …": (
        "a launcher",
        "training/test_distributed.py::test_the_launcher_of_torch",
    ),
    "bash slurm/prepare-array.sh 16 --config C": (
        "a cluster",
        "slurm/test_slurm.py::test_an_array_prepares_what_one_process_does",
    ),
    "nano slurm/cluster.local.sh": (
        "an editor",
        "slurm/test_slurm.py::test_as_many_processes_as_gpus_and_lines_of_ones_own",
    ),
    "sbatch slurm/hello.sh": ("a cluster", SMOKE),
    "srun --gpus=1 charlm doctor --config wikipedia-simple": (
        "a GPU",
        "monitor/test_doctor.py::test_all_is_well",
    ),
    "sbatch slurm/train.sh --config wikipedia-simple": ("a cluster", NODES),
    "sbatch slurm/train.sh …": ("a cluster", NODES),
    "sbatch --nodes=4 slurm/train.sh …": ("a cluster", NODES),
    "sbatch --gpus-per-node=0 slurm/hello.sh": ("a cluster", SMOKE),
    **{f"sbatch {o} slurm/train.sh --config {c}": ("a cluster", NODES) for o, c in LARGER.items()},
    "source slurm/cluster.sh": ("a cluster", LOCAL),
    "sbatch --array=0-2 slurm/sweep.sh sweep.txt --config wikipedia-simple": ("a cluster", SWEEP),
    "sbatch slurm/evaluate.sh runs/charlm-sweep-JOBID_1": ("a cluster", CHAIN),
    f"sbatch {ONE_GPU} slurm/train.sh --config runs/charlm-sweep-JOBID_1/config.yaml": ("a cluster", SWEEP),
    "WANDB_MODE=online sbatch slurm/train.sh …": ("a cluster and an account", ""),
    "scancel --signal=USR1 JOBID": ("a cluster", REQUEUED),
    "wandb login": ("an account", ""),
    "pip install -e . -c slurm/constraints.txt": ("network", CONSTRAINTS),
    f"pip install --force-reinstall torch==2.13.0 --index-url {INDEX}": ("network", ""),
    "pip install tensorboard": ("network", ""),
    f"{CPU_BUILD} torch --index-url https://download.pytorch.org/whl/cpu": ("network", ""),
    "charlm compare runs/charlm-sweep-JOBID_*": ("a cluster", SWEEP),
    "srun --gpus=1 nvidia-smi": ("a GPU", ""),
    "wandb sync runs/NAME/wandb/latest-run": ("an account", REQUEUED),
}
# Python of the READMEs runs as it stands, but for these.
SMALLER = {
    ", steps=500": ", steps=2, max_documents=12, lanes=2, wandb='disabled'",
    "length=200": "length=5",
    "runs/stdlib/": "runs/mine/",
}


# reading


def blocks(text: str) -> list[str]:
    """The indented blocks of code, deeper ones below list items included, without their indentation."""
    found: list[list[str]] = []
    blank = True
    for line in text.splitlines():
        if line.startswith("    ") and (blank or found[-1]):
            if blank and not (found and found[-1]):
                found.append([])
            found[-1].append(line)
        elif line.strip():
            found.append([])
        blank = not line.strip()
    return ["\n".join(block) for block in found if block]


def is_python(block: str) -> bool:
    return re.match(r"\s*(from|import) ", block) is not None


def commands(text: str) -> list[str]:
    """What a reader could type, without comments, each once."""
    start = rf"(?:[A-Z_]+=\S+ )*(?:{'|'.join(map(re.escape, PROGRAMS))}) "
    lines = [
        " ".join(re.sub(r"\s# .*", "", line).split())
        for block in blocks(text)
        if not is_python(block)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    prose = re.sub(r"^    .*$", "", text, flags=re.M)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    return list(dict.fromkeys(line for line in [*lines, *spans] if re.match(start, line)))


SHOWN = list(dict.fromkeys(c for path in READMES for c in commands(path.read_text(encoding="utf-8"))))
SNIPPETS = [b for path in READMES for b in blocks(path.read_text(encoding="utf-8")) if is_python(b)]


def test_the_reader_of_this_test_sees_what_a_reader_sees():
    text = """\
Do `charlm  hello` or
`charlm` or `other --x`:

    charlm train \\
      --config C   # now
    --option

* so

        WANDB_MODE=x sbatch a.sh

and

    from a import b
    python b

| `charlm sample
RUN` |
"""
    assert commands(text) == [
        "charlm train --config C",
        "WANDB_MODE=x sbatch a.sh",
        "charlm hello",
        "charlm sample RUN",
    ]


# the two tables


def test_every_command_of_the_readmes_is_run_or_cannot_be():
    unknown = [c for c in SHOWN if c not in HERE and c not in THERE]
    assert not unknown, f"{unknown}: give each an entry in HERE or THERE of tests/test_readme.py"
    assert not HERE.keys() & THERE.keys()


def test_no_entry_is_of_a_command_that_is_gone():
    assert [c for c in [*HERE, *THERE] if c not in SHOWN] == []
    assert [old for old in SMALLER if not any(old in snippet for snippet in SNIPPETS)] == []


@pytest.mark.parametrize("name", sorted({test for _, test in THERE.values() if test}))
def test_a_test_that_is_named_here_is_there(name):
    file, _, function = name.partition("::")
    assert f"def {function}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


# running them


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with books, a config and a finished run, as the READMEs suppose; commands are given in it."""
    desk = tmp_path_factory.mktemp("readme")
    (desk / "books").mkdir()
    for name, words in (("one", "the fox"), ("two", "a dog"), ("three", "the hen and the fox")):
        (desk / "books" / f"{name}.txt").write_text(f"{words} went home " * 40, encoding="utf-8")
    texts = [path.read_text(encoding="utf-8") for path in sorted(desk.glob("books/*.txt"))]
    (desk / "letters.txt").write_text("the fox and the hen " * 60, encoding="utf-8")
    (desk / "book.txt").write_text("*** START OF A *** the fox *** END OF A ***", encoding="utf-8")
    (desk / "my.txt").write_text("".join(texts), encoding="utf-8")
    (desk / "pages.jsonl").write_text(
        "".join(json.dumps({"body": t}) + "\n" for t in texts), encoding="utf-8"
    )
    (desk / "reviews.csv").write_text("\n".join(["review", *texts]) + "\n", encoding="utf-8")
    (desk / "parts").mkdir()
    metadata = [{"language": "en"}] * len(texts)  # as datatrove writes it
    pq.write_table(
        pa.table({"text": texts, "id": ["a", "b", "c"], "metadata": metadata}), desk / "parts/0.parquet"
    )
    (desk / "mine.yaml").write_text("run_dir: runs/mine\ndata: {source: text, data_files: books/*.txt}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk)
        main(["train", "--config", "mine.yaml", *shlex.split(f"{TINY} {HELD}")])
        main(["export", "runs/mine", "model.onnx"])
    (desk / "seeds.json").write_text('[{"test bpc": 1.5}, {"test bpc": 1.6}]')
    (desk / "mine.yaml").write_bytes((desk / "runs" / "mine" / "config.yaml").read_bytes())
    return desk


def words_of(command: str, short: Short) -> list[str]:
    command = command.replace(*short.swap)
    return [NAMES.get(word, word) for word in shlex.split(f"{command} {short.more}")][1:]


@pytest.mark.parametrize("shown", [c for c in SHOWN if c in HERE])
def test_a_command_does_what_it_should(shown, desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    short = HERE[shown]
    code = 0
    try:
        main(words_of(shown, short))
    except SystemExit as left:
        code = left.code or 0
    assert code == short.code
    assert short.told in capsys.readouterr().out


def test_the_python_of_the_readmes_runs(desk, monkeypatch, capsys):
    """One snippet after the other, in one namespace, as a reader would paste them."""
    monkeypatch.chdir(desk)
    assert SNIPPETS
    names: dict = {}
    for snippet in SNIPPETS:
        for old, new in SMALLER.items():
            snippet = snippet.replace(old, new)
        source = "\n".join(line[4:] for line in snippet.splitlines())
        exec(compile(ast.parse(source), "README.md", "exec"), names)
    assert capsys.readouterr().out


# the tree


def test_the_trees_name_every_folder_and_only_files_that_are_there():
    folders = {path.parent.name for path in (ROOT / "charlm").glob("*/__init__.py")}
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## More")[1]
    assert folders <= set(re.findall(r"(\w+)/", tree))
    inside = (ROOT / "charlm" / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:\w+/)+[\w*. …]+\.(?:py|yaml|html))`", inside))
    assert len(named) > 40
    for name in named:
        assert list((ROOT / "charlm").glob(name)) or list(ROOT.glob(name)), f"charlm/README.md: {name}"
    files = {path for path in (ROOT / "charlm").glob("*/*.py") if path.name != "__init__.py"}
    missing = [
        f"{path.parent.name}/{path.name}" for path in files if f"{path.parent.name}/{path.name}" not in inside
    ]
    assert missing == []


def test_every_script_of_slurm_is_in_its_readme():
    told = READMES[1].read_text(encoding="utf-8")
    assert [p.name for p in Path(ROOT / "slurm").glob("*.sh") if f"`{p.name}`" not in told] == []


def test_the_contents_name_every_section_in_order():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (.+)$", text, flags=re.M)
    links = re.findall(r"\(#([\w-]+)\)", text.split("\n## ")[0])
    assert links == [section.lower().replace(" ", "-") for section in sections]
