"""The commands as users type them: what they print, where errors go, and the exit code."""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import re
import shutil
import signal
import subprocess
import sys
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from helpers import MIXED, ROOT, Terminal, changed, charlm, command, config_file, environment, files_of, small

from charlm import __version__
from charlm.commands import model as model_commands
from charlm.commands.cli import COMMANDS, FIGURES, main
from charlm.config.parse import FIRST, from_dict, to_yaml
from charlm.corpus.prepared import prepare
from charlm.errors import CharlmError, CharlmWarning
from charlm.evaluation.evaluate import figures_of
from charlm.training.loop import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run whose vocabulary spells rare characters in bytes: (config, what `charlm train --json` prints)."""
    config = small(
        tmp_path_factory.mktemp("cli") / "run",
        vocab={"unknown": "bytes", "coverage": 0.9},
        train={"steps": 40},
        evaluate={"lanes": 3, "context": 20},
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main(["train", "--config", str(config_file(config)), "--json"])
    return config, printed.getvalue()


@pytest.fixture(scope="module")
def finished(trained):
    return trained[0]


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    """A run with a closed vocabulary."""
    config = small(tmp_path_factory.mktemp("closed") / "run", train={"steps": 2})
    train(config, quiet=True)
    return config


@pytest.fixture
def run(capsys):
    """Run a command in this process; returns its stdout. Sampling sets one thread; that is undone."""

    def run(*words) -> str:
        threads = torch.get_num_threads()
        try:
            main([str(w) for w in words])
        finally:
            torch.set_num_threads(threads)
        return capsys.readouterr().out

    return run


@pytest.fixture
def failed(run, capsys):
    """Run a command that must fail; returns (exit code, stderr)."""

    def failed(*words) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            run(*words)
        code, printed = ended.value.code, capsys.readouterr().err
        return (1, f"{printed}{code}\n") if isinstance(code, str) else (code, printed)  # Python prints a text

    return failed


@pytest.fixture
def refused(failed):
    """Run a command that must fail with 1 or 2, in one line; returns what follows 'charlm: error: '."""

    def refused(*words) -> str:
        code, printed = failed(*words)
        assert code in (1, 2) and printed.startswith("charlm: error: ") and printed.count("\n") == 1
        return printed.removeprefix("charlm: error: ").removesuffix("\n")

    return refused


# help and usage


def test_help_and_version(run):
    assert run("--version") == f"charlm {__version__}\n"
    assert run() == run("--help") and all(f"  {name} " in run() for name in COMMANDS)


def test_help_imports_nothing_that_takes_long():
    words = [sys.executable, "-X", "importtime", "-m", "charlm", "--help"]
    ran = subprocess.run(words, capture_output=True, encoding="utf-8")
    assert ran.returncode == 0
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in ran.stderr.splitlines()[1:]}
    assert "charlm" in imported
    assert not imported & {"torch", "datasets", "wandb", "accelerate", "numpy", "pyarrow", "jsonargparse"}


def test_a_command_that_is_not_one_is_named_with_those_that_are(refused):
    for wrong, right in (
        ("trian", "train"),
        ("eval", "evaluate"),
        ("generate", "sample"),
        ("resume", "train"),
    ):
        message = refused(wrong)
        assert f"no command '{wrong}'; did you mean {right}? " in message
        assert all(name in message for name in COMMANDS)
    assert "did you mean" not in refused("qqq")


def test_train_without_a_word_says_what_it_does_and_how_else_to_call_it(tmp_path):
    (tmp_path / "runs").write_text("")  # so that it does not train here
    ran = charlm("train", cwd=tmp_path, env=environment(PYTHONPATH=str(ROOT)))
    told = "training on Python's source code; charlm train my.txt or --config NAME takes another text"
    assert ran.stdout.splitlines()[0] == told and "run_dir='runs/default'" in ran.stderr


def test_train_help_shows_what_people_change_first(capsys):
    for word in ("--help", "-h"):
        with pytest.raises(SystemExit):
            main(["train", word])
        shown = capsys.readouterr().out
        options = set(re.findall(r"^  (--[\w.]+)", shown, re.M))
        assert options == {f"--{key}" for key in FIRST} | {"--json", "--config", "--print_config"}
        assert "--help all" in shown and "type:" not in shown


def test_every_command_is_in_one_group(run):
    groups = re.findall(r"^([\w ]+):\n((?:  \w+ .*\n)+)", run(), re.M)
    listed = [(name, title) for title, lines in groups for name in re.findall(r"^  (\w+)", lines, re.M)]
    assert listed == [(name, group) for name, (_, group, _) in COMMANDS.items()]
    assert len({title for title, _ in groups}) == len(groups)  # all of a group are in one place
    assert max(map(len, run().splitlines())) <= 80


def test_train_help_all_shows_what_every_field_is(capsys):
    with pytest.raises(SystemExit) as left:
        main(["train", "--help", "all"])
    assert left.value.code == 0
    message = " ".join(capsys.readouterr().out.split())
    for expected in (
        "--config",
        "--model.hidden_size",
        "Units per recurrent layer.",
        "Lanes over all processes. A lane is one contiguous stream of text: a row of the batch.",
        "Maximum norm of the gradient; null for no clipping.",
        "Weights & Biases. auto: online with an account and a connection",
    ):
        assert expected in message


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    assert f"charlm {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["train", "prepare", "doctor"])
def test_print_config_shows_every_value_and_trains_nothing(capsys, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main([name, "--config", "hello", "--train.steps", "3", "--print_config"])
    assert left.value.code == 0
    tree = yaml.safe_load(capsys.readouterr().out)
    assert from_dict(tree).train.steps == 3  # it can be stored and used with --config
    assert tree["train"]["steps"] == 3 and tree["model"]["hidden_size"] == 3
    assert tree["log"]["project"] == "charlm" and tree["evaluate"]["lanes"] == 32  # defaults too
    assert list(tmp_path.iterdir()) == []


# errors and exit codes


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_ends_with_2_in_one_line(failed, name):
    code, printed = failed(name, "--no_such_option", "3")
    assert code == 2
    assert printed.startswith("charlm: error: ") and printed.count("\n") == 1


def test_a_misspelled_field_gets_the_nearest_one(failed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, printed = failed("train", "--model.hiden_size=3")
    assert code == 2
    assert printed == "charlm: error: unknown option --model.hiden_size; did you mean model.hidden_size?\n"
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_the_user_can_fix_ends_with_1_in_one_line(tmp_path):
    """A real process, in which Python prints it."""
    ran = charlm("train", "--train.steps", "0", cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == "charlm: error: train.steps=0: must be 1 or more\n"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def broken(monkeypatch):
    """A bug in charlm sample."""

    def sample(argv):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(model_commands, "sample", sample)


def test_an_unexpected_error_ends_with_70_and_a_hint(failed, broken):
    assert failed("sample", "runs/any") == (
        70,
        "charlm: unexpected ZeroDivisionError: division; "
        "run it again with --debug, or CHARLM_DEBUG=1, to see the traceback\n",
    )


@pytest.mark.parametrize("words", [("--debug", "sample"), ("sample", "--debug")])
def test_debug_shows_the_traceback(failed, broken, words):
    code, printed = failed(*words)
    assert code == 70
    assert printed.startswith("Traceback") and __file__ in printed
    assert printed.splitlines()[-1] == "charlm: unexpected ZeroDivisionError: division"


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
def test_the_environment_requests_the_traceback_of_any_error(failed, monkeypatch, value, shown):
    monkeypatch.setenv("CHARLM_DEBUG", value)
    code, printed = failed("train", "--train.steps", "0")
    assert code == 1
    assert printed.splitlines()[-1] == "charlm: error: train.steps=0: must be 1 or more"
    assert ("Traceback" in printed and "charlm/config" in printed) == shown


def test_a_stopped_training_ends_with_0_as_one_that_is_done(tmp_path):
    """slurm/train.sh reads in status.json which of the two it was."""
    config = small(tmp_path / "run", train={"max_hours": 1e-9})
    for words in ([], ["--train.max_hours", "null"]):
        assert main(["train", "--config", str(config_file(config)), *words]) is None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_too_little_memory_is_an_error_with_its_fix(tmp_path, error):
    def watch(step, model, loss):
        raise error

    fix = "Raise train.accumulate: the same training in slices; .* there is no checkpoint yet"
    with pytest.raises(CharlmError, match=fix) as caught:
        train(small(tmp_path / "run"), quiet=True, watch=watch)
    assert str(caught.value).startswith(str(error))


@pytest.mark.parametrize("name", ["train", "prepare"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--config", "stdlip"], "did you mean stdlib?"),
        (["--train.bptt=0"], "train.bptt=0: must be 1 or more"),
        (["--train.steps=many"], "train.steps"),
        (["--model.dropout=1"], "model.dropout=1.0: must be at least 0 and below 1"),
        (["--data.source=text", "--data.data_files=/no/such.txt"], "/no/such.txt"),
    ],
)
def test_values_that_cannot_be_are_named(refused, tmp_path, monkeypatch, name, words, expected):
    monkeypatch.chdir(tmp_path)
    message = refused(name, *words)
    assert expected in message
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock" and p.name != ".lock"]


def test_ctrl_c_ends_sampling_with_130_after_what_was_streamed(finished):
    """A real process. What arrives before the signal shows that characters come as they are drawn."""
    words = command("sample", finished.run_dir, "--prompt", "The ", "--length", "100000000")
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(words, env=environment(), **options)
    arrived = process.stdout.read(400)
    assert arrived.startswith(b"The ") and process.poll() is None
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=300)
    assert process.returncode == 130
    assert message == b"charlm: stopped by Ctrl-C\n"


def test_ctrl_c_during_an_import_ends_with_130_whatever_the_import_raises():
    """numpy, interrupted while it is imported, raises RecursionError or ImportError later."""
    program = """
import os, signal, time
from charlm.commands import cli
def importing(words):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(9)
    except KeyboardInterrupt:
        raise ImportError("half imported") from None
cli._function = lambda name: importing
cli.main(["hello"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment(), timeout=60)
    assert (done.returncode, done.stderr) == (130, b"charlm: stopped by Ctrl-C\n")


def test_a_command_runs_in_any_thread(capsys):
    with ThreadPoolExecutor(1) as threads:  # as some notebooks do; Python refuses signal handlers there
        threads.submit(main, ["completion", "bash"]).result()
    assert "complete -o default" in capsys.readouterr().out


def test_a_reader_that_has_enough_is_no_error(finished):
    """charlm sample … | head -c 10"""
    words = command("sample", finished.run_dir, "--length", "20000")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    process.stdout.read(10)
    process.stdout.close()
    message = process.stderr.read()
    process.wait(600)
    assert message == b""


# train and doctor


def test_train_json_is_the_result_and_nothing_else(trained):
    config, printed = trained
    result = json.loads(printed)
    assert (result["status"], result["step"], result["run_dir"]) == ("done", 40, config.run_dir)
    assert result["test"] == json.loads((Path(config.run_dir) / "status.json").read_text())["test"]


def test_doctor_json_holds_every_finding(run, failed, finished, capsys):
    words = ["doctor", "--config", config_file(finished), "--json"]
    result = json.loads(run(*words))
    assert result["ready"] and result["processes"] == 1
    assert {"device", "speed", "disk"} <= {finding["name"] for finding in result["findings"]}
    with pytest.raises(SystemExit) as ended:
        run(*words, "--train.batch_size", "100000")
    result = json.loads(capsys.readouterr().out)
    assert ended.value.code == 1 and not result["ready"]
    assert [finding for finding in result["findings"] if not finding["ok"]]


# prepare


def test_prepare_reports_the_corpus_and_prepares_once(run, tmp_path):
    config = small(tmp_path / "run", vocab={"unknown": "bytes", "coverage": 0.9})
    printed = run("prepare", "--config", config_file(config))
    (folder,) = (p for p in (tmp_path / "data").iterdir() if p.is_dir())
    corpus = prepare(config)
    for expected in (
        str(folder),
        f"symbols      {len(corpus.vocab)}: ",
        f"{corpus.splits['train']['characters']:,}",
        "validation",
        "test",
        "spelled in bytes: ",
        "unigram",
        "-gram, Witten-Bell",
        "xz -9e",
    ):
        assert expected in printed
    total = sum(size["characters"] for size in corpus.splits.values())
    assert total == len(MIXED)
    before = files_of(tmp_path / "data")
    assert run("prepare", "--config", config_file(config)) == printed
    result = json.loads(run("prepare", "--config", config_file(config), "--json"))
    assert Path(result["folder"]) == folder
    assert result["splits"]["train"]["characters"] > result["splits"]["test"]["characters"] > 0
    assert files_of(tmp_path / "data") == before
    assert not (tmp_path / "run").exists()


# evaluate


def evaluated(run, *words) -> dict:
    return json.loads(run("evaluate", *words, "--json"))


def test_a_text_is_the_first_word_of_train_and_its_run_works_without_it(run, refused, tmp_path, monkeypatch):
    """Copied elsewhere with its data.dir, the text gone: evaluate, report and train open its corpus."""
    few = {"train.steps": 3, "train.batch_size": 2, "train.bptt": 8, "model.hidden_size": 6}
    few |= {"evaluate.lanes": 2, "evaluate.context": 0, "sample.every": 0, "log.wandb": "disabled"}
    words = [f"--{name}={value}" for name, value in few.items()]
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "books").mkdir(parents=True)
    monkeypatch.chdir(here)
    Path("books/my text.txt").write_text(MIXED, encoding="utf-8")
    run("train", "books/my text.txt", *words)
    assert json.loads(Path("runs/my-text/status.json").read_text())["status"] == "done"
    scores = run("evaluate", "runs/my-text", "--json")
    monkeypatch.chdir(tmp_path)  # relative paths are those of where it was started, also to prepare it again
    shutil.rmtree(here / "data")
    model = here / "runs" / "my-text" / "model"
    assert "its corpus is not on this disk" in refused("evaluate", model)  # its config may be a stranger's
    assert not (here / "data").exists()
    assert run("evaluate", model, "--trust", "--json") == scores
    assert not (tmp_path / "data").exists()
    here.rename(there)
    shutil.rmtree(there / "books")
    monkeypatch.chdir(there)
    assert run("evaluate", "runs/my-text", "--json") == scores
    assert "not on the page" not in run("report", "runs/my-text")
    words[0] = "--train.steps=4"
    assert "ready to train" in run("doctor", "books/my text.txt", *words)
    run("train", "books/my text.txt", *words, "--sample.prompt=* ")  # no pattern, though it has a star
    assert json.loads(Path("runs/my-text/status.json").read_text())["step"] == 4
    assert "books/my text.txt" in refused("train", "books/my text.txt", "--run_dir=runs/new")
    assert "--config stdlib" in refused("train", "stdlib")
    Path("model.txt").write_text(MIXED, encoding="utf-8")
    run("train", "model.txt", *words)  # a run in a folder of that name
    assert run("evaluate", "runs/model", "--json") == run("evaluate", "runs/model/model", "--json")
    shutil.copytree("runs/model/model", "alone")
    assert "without its run has no corpus; give --text FILE" in refused("evaluate", "alone", "--trust")


def test_evaluate_scores_the_test_split_unless_another_is_named(run, finished):
    test, validation = (evaluated(run, finished.run_dir, *w) for w in ([], ["--split", "validation"]))
    assert test["text"] == "test" and validation["text"] == "validation"
    assert test == evaluated(run, finished.run_dir, "--split", "test")
    assert test["bpc"] != validation["bpc"]


def test_evaluate_prints_what_json_holds(run, finished):
    printed, figures = run("evaluate", finished.run_dir), evaluated(run, finished.run_dir)
    assert printed == (
        f"test: {figures['nats_per_character']:.4f} nats/char, {figures['bpc']:.4f} bpc, "
        f"{figures['bpb']:.4f} bpb, perplexity {figures['perplexity']:.6g}\n"
        f"over {figures['characters']:,} characters, {figures['bytes']:,} bytes "
        f"({figures['lanes']} lanes, {figures['context']} characters of warm-up context)\n"
        f"({FIGURES})\n"
    )


def test_evaluate_of_a_file_is_evaluate_of_the_same_text(run, finished, tmp_path):
    corpus = prepare(finished)
    (tmp_path / "text.txt").write_bytes(corpus.vocab.decode_bytes(corpus["test"]))
    of_file = evaluated(run, finished.run_dir, "--text", tmp_path / "text.txt")
    assert of_file.pop("text") == str(tmp_path / "text.txt")
    assert of_file == {k: v for k, v in evaluated(run, finished.run_dir).items() if k != "text"}


def test_evaluate_of_many_texts_is_a_table_and_a_total_over_all(run, refused, finished, tmp_path):
    """Compressed, in an archive, by a glob, in a folder, twice: each text once; counts are summed once."""
    texts = [MIXED[a:b].encode() for a, b in ((0, 40), (40, 300), (300, 1000), (1000, 1500))]
    folder = tmp_path / ("folder of a long name " * 3)
    folder.mkdir()
    packed = {".gz": gzip, ".bz2": bz2, ".xz": lzma}
    for text, (suffix, by) in zip(texts, packed.items(), strict=False):
        (folder / f"a.txt{suffix}").write_bytes(by.compress(text))
    (folder / "b.txt").touch()
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("deep/c.txt", texts[3])
    paths = [tmp_path / "z.zip", folder, folder / "*.gz"]
    for adapting in ([], ["--dynamic", "--dynamic_rate", "0"]):
        scored = evaluated(run, finished.run_dir, *adapting, "--text", *paths)
        each = {Path(of["text"]).suffix: of for of in scored["texts"]}
        assert [*each] == [".txt", ".bz2", ".gz", ".xz"] and each[".txt"]["text"].endswith(
            "z.zip::deep/c.txt"
        )
        for text, suffix in zip(texts, [".gz", ".bz2", ".xz", ".txt"], strict=True):
            (tmp_path / "one.txt").write_bytes(text)
            alone = evaluated(run, "--text", tmp_path / "one.txt", finished.run_dir, *adapting)
            assert alone | {"text": each[suffix]["text"]} == each[suffix]
        sums = [sum(of[k] for of in scored["texts"]) for k in ("symbols", "characters", "bytes")]
        nats = sum(of["nats_per_character"] * of["characters"] for of in scored["texts"])
        expected = figures_of(nats, *sums)
        assert {k: scored["total"][k] for k in expected} == pytest.approx(expected, rel=1e-12)
        if adapting:  # at rate 0 the weights stay as they are
            assert scored["total"]["dynamic"]["bpb"] == pytest.approx(expected["bpb"], rel=1e-6)
        lines = run("evaluate", finished.run_dir, *adapting, "--text", *paths, "--jsonl").splitlines()
        assert [json.loads(line) for line in lines] == scored["texts"]
        lines = run("evaluate", finished.run_dir, *adapting, "--text", *paths).splitlines()
        assert {len(line) for line in lines[:6]} == {80} and lines[3].split()[0].startswith("…")
        for line, of in zip(lines[1:6], [*scored["texts"], scored["total"]], strict=True):
            parts = [of, of["dynamic"]] if adapting else [of]
            figures = [f"{part[k]:.4f}" for part in parts for k in ("bpc", "bpb")]
            assert line.split()[-1 - len(figures) :] == [f"{of['characters']:,}", *figures]
        assert lines[7].startswith(f"total: {scored['total']['nats_per_character']:.4f} nats/char")
    (folder / "a.txt.xz").write_bytes(lzma.compress(texts[2])[:-20])
    assert "a.txt.xz: cannot be extracted" in refused("evaluate", finished.run_dir, "--text", folder)
    (folder / "a.txt.xz").write_bytes(lzma.compress(b"good \xff bad"))
    message = refused("evaluate", finished.run_dir, "--text", folder)
    assert f"{folder / 'a.txt.xz'}: byte 5 is not UTF-8" in message
    words = [finished.run_dir, "--by_context", "--text", folder]
    assert "--by_context is for one text, not for the 3" in refused("evaluate", *words)


def test_evaluate_says_its_protocol_and_takes_another(run, finished):
    three = evaluated(run, finished.run_dir)
    one = evaluated(run, finished.run_dir, "--lanes", "1")
    cold = evaluated(run, finished.run_dir, "--context", "0")
    assert (three["lanes"], three["context"]) == (3, 20)
    assert (one["lanes"], one["context"]) == (1, 0) and (cold["lanes"], cold["context"]) == (3, 0)
    assert one["characters"] == three["characters"] == cold["characters"]
    assert abs(three["bpc"] - one["bpc"]) < 0.02 * one["bpc"]
    assert len({figures["bpc"] for figures in (one, three, cold)}) == 3


@pytest.mark.parametrize("words", [["evaluate"], ["sample", "--length", "30"]])
def test_a_config_names_its_run(run, finished, words):
    name, *options = words
    by_config = run(name, "--config", config_file(finished), *options)
    assert by_config == run(name, finished.run_dir, *options)


@pytest.mark.parametrize("name", ["evaluate", "sample"])
def test_a_run_or_a_config_and_not_both(refused, finished, name):
    expected = "name a run directory, or --config for its config"
    assert refused(name) == expected
    assert refused(name, finished.run_dir, "--config", config_file(finished)) == expected


def test_the_runs_of_the_folder_runs_are_proposed(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused("sample") == "name a run directory, or --config for its config"
    for name in ("novel", "poems"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "status.json").write_text('{"status": "done"}')
    assert refused("sample").endswith("; runs in runs: novel, poems")
    assert refused("sample", "novel").endswith(f"hub id; did you mean {Path('runs/novel')}?")
    assert refused("watch", "prose").endswith("no such run directory; runs in runs: novel, poems")


@pytest.mark.parametrize("name", ["evaluate", "sample"])
def test_a_run_that_is_not_there_is_named(refused, tmp_path, name):
    missing = tmp_path / "missing"
    assert refused(name, missing) == f"{missing}: no such run directory, model folder or hub id"
    assert "missing" in refused(name, "missing")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{empty}: holds neither a model/ nor a checkpoint" in refused(name, empty)
    never = small(tmp_path / "never")
    assert str(tmp_path / "never") in refused(name, "--config", config_file(never))


def test_what_evaluate_cannot_read_is_named(refused, finished, closed, tmp_path):
    assert "no split 'tset' (it has train, validation, test)" in refused(
        "evaluate", finished.run_dir, "--split", "tset"
    )
    assert "--text='gone.txt': no such file" in refused("evaluate", finished.run_dir, "--text", "gone.txt")
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"good \xff bad")
    message = refused("evaluate", finished.run_dir, "--text", bad)
    assert f"{bad}: byte 5 is not UTF-8" in message
    (tmp_path / "rows.jsonl").write_text('{"text": "the fox"}\n')
    message = refused("evaluate", finished.run_dir, "--text", tmp_path / "rows.jsonl")
    assert "rows.jsonl: holds rows" in message and "data.test" in message
    bad.write_text("The X", encoding="utf-8")
    message = refused("evaluate", closed.run_dir, "--text", bad)
    assert str(bad) in message and "'X' (U+0058 LATIN CAPITAL LETTER X) at position 4" in message
    bad.write_text("")
    assert "the file is empty" in refused("evaluate", finished.run_dir, "--text", bad)
    assert "evaluate.lanes=0" in refused("evaluate", finished.run_dir, "--lanes", "0")


def test_evaluate_dynamic_prints_the_plain_figure_and_beside_it_the_one_of_adapting_weights(run, finished):
    words = (finished.run_dir, "--dynamic", "--dynamic_rate", "0.01")
    weights = files_of(f"{finished.run_dir}/model")
    printed, figures = run("evaluate", *words), evaluated(run, *words)
    adapted, plain = figures.pop("dynamic"), evaluated(run, finished.run_dir, "--lanes", "1")
    assert figures == plain and adapted["nats_per_character"] < plain["nats_per_character"]
    first, protocol, _, second, how = printed.splitlines()
    assert first.startswith(f"test: {plain['nats_per_character']:.4f} nats/char") and "(1 lane, " in protocol
    assert second.startswith(f"dynamic: {adapted['nats_per_character']:.4f} nats/char")
    assert how.startswith("a step at rate 0.01 after every 32 characters, decay 0.001")
    still = evaluated(run, finished.run_dir, "--dynamic", "--dynamic_rate", "0")
    assert still["dynamic"]["bpc"] == pytest.approx(plain["bpc"], rel=1e-6)
    assert files_of(f"{finished.run_dir}/model") == weights


def test_evaluate_dynamic_in_lanes_prints_its_protocol(run, finished):
    words = (finished.run_dir, "--dynamic", "--dynamic_lanes", "3", "--dynamic_window", "8", "--context", "6")
    printed, figures = run("evaluate", *words), evaluated(run, *words)
    adapted = figures.pop("dynamic")
    assert figures == evaluated(run, finished.run_dir, "--lanes", "3", "--context", "6")
    assert (adapted["lanes"], adapted["window"]) == (3, 8)
    protocol, *_, how, shared = printed.splitlines()[1:]
    assert "(3 lanes, 6 characters of warm-up context)" in protocol
    assert how.startswith(f"a step at rate {adapted['rate']:g} after every 8 characters of each of 3 lanes, ")
    assert "the other lanes" in shared


def test_evaluate_by_context_shows_the_rows_that_json_holds(run, finished):
    words = (finished.run_dir, "--by_context", "--max_characters", "100")
    printed, figures = run("evaluate", *words), evaluated(run, *words)
    rows = figures.pop("by_context")
    assert figures == evaluated(run, finished.run_dir, "--max_characters", "100")
    assert figures["symbols"] == 99
    assert [r["characters_from"] for r in rows] == [1, 2, 4, 8, 16, 32]
    assert [line.split()[0] for line in printed.splitlines()[-6:]] == ["1", "2", "4", "8", "16", "32"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--dynamic", "--lanes", "4"], "--dynamic reads the text in one lane"),
        (["--dynamic", "--context", "4"], "without a context, or in --dynamic_lanes N"),
        (["--dynamic", "--dynamic_lanes", "0"], "--dynamic_lanes 0: must be 1 or more"),
        (["--dynamic", "--dynamic_rate", "-1"], "--dynamic_rate -1.0: must be 0 or more, such as "),
        (["--dynamic", "--dynamic_decay", "2"], "--dynamic_decay 2.0: must be from 0 to 1, such as "),
        (["--dynamic_rate", "1e-3"], "--dynamic_rate is for --dynamic: add it"),
        (["--dynamic", "--by_context"], "not allowed with argument --dynamic"),
        (["--max_characters", "1"], "--max_characters 1: must be 2 or more"),
        (["--lanes", "-3"], "evaluate.lanes=-3: must be 1 or more"),
        (["--context", "-1"], "evaluate.context=-1: must be 0 or more"),
    ],
)
def test_options_of_evaluate_that_cannot_be_are_named(refused, finished, words, expected):
    assert expected in refused("evaluate", finished.run_dir, *words)


def test_evaluate_refuses_a_corpus_with_another_vocabulary(refused, finished, tmp_path):
    config = small(finished.run_dir, vocab={"coverage": 0.5, "unknown": "bytes"})
    path = tmp_path / "other.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    message = refused("evaluate", "--config", path)
    ours, theirs = len(prepare(config).vocab), len(prepare(finished).vocab)
    assert f"its vocabulary ({ours} symbols) does not fit the model ({theirs} symbols)" in message


# sample


def test_a_seed_decides_a_sample(run, finished):
    words = ("sample", finished.run_dir, "--prompt", "The quick", "--length", "60")
    first = run(*words, "--seed", "7")
    assert first.startswith("The quick") and first.endswith("\n") and len(first) > 20
    assert run(*words, "--seed", "7") == first != run(*words, "--seed", "8")


def test_a_sample_ends_before_the_first_stop_string(run, refused, finished):
    words = ("sample", finished.run_dir, "--prompt", "The quick", "--length", "60")
    whole = run(*words)
    stop, later = whole[30:32], whole[40:44]
    assert run(*words, "--stop", later, "--stop", stop) == whole[: whole.index(stop, 9)] + "\n"
    assert "sample.stop=['']: give a text or several, none empty" in refused(*words, "--stop", "")


def test_several_samples_have_seeds_one_apart(run, finished):
    words = ("sample", finished.run_dir, "--prompt", "The ", "--length", "25")
    several = run(*words, "--seed", "3", "--num_samples", "3")
    alone = [run(*words, "--seed", str(seed)) for seed in (3, 4, 5)]
    assert several == "".join(f"--- sample {i + 1}, seed {3 + i} ---\n{text}" for i, text in enumerate(alone))
    lines = run(*words, "--seed", "3", "--num_samples", "3", "--json").splitlines()
    samples = [json.loads(line) for line in lines]
    assert [(sample["prompt"], sample["seed"]) for sample in samples] == [
        ("The ", seed) for seed in (3, 4, 5)
    ]
    assert [f"{sample['prompt']}{sample['text']}\n" for sample in samples] == alone


def test_options_not_given_come_from_the_config_of_the_run(run, finished):
    assert run("sample", finished.run_dir) == run(
        "sample",
        finished.run_dir,
        "--prompt",
        "The ",
        "--length",
        "20",
        "--temperature",
        "0.8",
        "--seed",
        "0",
    )


@pytest.mark.parametrize("prompt", ["🦊 🎉", "ß\u0301", "\0", "", "終わり", "a\r\nb"])
def test_any_prompt_works_and_comes_back(run, finished, prompt):
    printed = run("sample", finished.run_dir, "--prompt", prompt, "--length", "5", "--temperature", "0")
    assert printed.startswith(prompt) and printed.endswith("\n")
    printed.encode("utf-8")  # no half of a character


def test_a_prompt_outside_a_closed_vocabulary_is_named_and_nothing_is_printed(refused, closed, capsys):
    message = refused("sample", closed.run_dir, "--prompt", "The 🎉")
    assert message.startswith("'🎉' (U+1F389 PARTY POPPER) at position 4 is not in the closed vocabulary")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--num_samples", "0"], "num_samples=0: must be 1 or more"),
        (["--temperature", "-1"], "sample.temperature=-1.0: must be 0 or more"),
        (["--top_p", "2"], "sample.top_p=2.0"),
        (["--top_k", "0"], "sample.top_k=0: must be 1 or more"),
        (["--length", "0"], "sample.length=0: must be 1 or more"),
        (["--device", "tpu9"], "device tpu9: "),
    ],
)
def test_options_of_sample_that_cannot_be_are_named(refused, finished, words, expected):
    assert expected in refused("sample", finished.run_dir, *words)


def test_a_model_folder_samples_without_its_run(run, finished, tmp_path):
    (tmp_path / "alone").mkdir()
    for path, content in files_of(f"{finished.run_dir}/model").items():
        (tmp_path / "alone" / path).write_bytes(content)
    words = ("--prompt", "The ", "--length", "20", "--temperature", "0.8")
    assert run("sample", tmp_path / "alone", *words) == run("sample", finished.run_dir, *words)


def test_a_run_without_a_model_yet_samples_from_its_checkpoint(run, tmp_path):
    config = small(tmp_path / "run", train={"steps": 5, "max_hours": 1e-9})
    train(config, quiet=True)
    assert not (tmp_path / "run" / "model").exists()
    assert run("sample", config.run_dir, "--prompt", "The ", "--length", "5").startswith("The ")


# precision


@pytest.mark.parametrize("words", [("evaluate", "--max_characters", "99"), ("sample", "--length", "9")])
def test_a_precision_for_gpus_changes_nothing_on_a_cpu_which_says_so(run, finished, tmp_path, words):
    command, *options = *words, "--device", "cpu"
    plain = run(command, finished.run_dir, *options)
    told = "evaluate.precision=bf16 is for NVIDIA GPUs: this CPU computes in fp32"
    with pytest.warns(CharlmWarning, match=told):
        assert run(command, finished.run_dir, *options, "--precision", "bf16") == plain
    other = tmp_path / "other.yaml"
    other.write_text(to_yaml(changed(finished, evaluate={"precision": "bf16"})), encoding="utf-8")
    with pytest.warns(CharlmWarning, match=told):
        assert run(command, "--config", other, *options) == plain
    with warnings.catch_warnings(action="error"):
        assert run(command, "--config", other, *options, "--precision", "fp32") == plain


# report


@pytest.mark.parametrize("most", range(1, 11))
def test_report_reads_the_start_of_a_text_up_to_a_whole_character(run, tmp_path, monkeypatch, most):
    read = []

    def write_page(run, output, text, device):
        read.append(text)
        return tmp_path / "text", []

    monkeypatch.setattr("charlm.commands.model.MOST", most)
    monkeypatch.setattr("charlm.report.page.write_page", write_page)
    (tmp_path / "text").write_text("aé狐🦊", encoding="utf-8")  # 1, 2, 3 and 4 bytes
    run("report", "runs/any", "--text", tmp_path / "text")
    assert "aé狐🦊".startswith(read[0].decode()) and most - 4 <= len(read[0]) <= most


# a text of one's own


def test_a_text_that_is_named_as_a_config_and_parts_that_are_too_small(run, refused, tmp_path):
    books = tmp_path / "books"
    books.mkdir()
    for i in range(8):
        (books / f"{i}.txt").write_text("the fox and the hen " * (2000 if i % 2 else 1), encoding="utf-8")
    message = refused("train", "--config", books / "1.txt")
    assert f"1.txt is a text: charlm train {books}/1.txt; in Python data_files=" in message
    folders = ("--data.dir", tmp_path / "data", "--run_dir", tmp_path / "run")
    sizes = ("--model.hidden_size=8", "--train.batch_size=4", "--train.steps=2", "--sample.every=0")
    said = run("train", books, *folders, *sizes, "--log.wandb=disabled", "--data.seed=1")
    assert "counting reaches" in said and "train longer" in said
    assert re.findall(r"(\w+) holds (\S+) of (\S+) characters", said) == [("test", "20", "160,085")]
    assert said.count("--data.split_by character cuts the text") == 1


# the terminal


def test_a_terminal_of_80_columns_breaks_no_word_and_keeps_the_bar_above_the_last_lines(tmp_path):
    (tmp_path / "my.txt").write_text(MIXED * 40, encoding="utf-8")
    values = {"model.hidden_size": 16, "train.batch_size": 4, "train.bptt": 16, "train.steps": 1_000_000}
    values |= {"sample.every": 0, "log.every": 10}
    words = ["train", "my.txt", *(f"--{name}={value}" for name, value in values.items())]
    terminal = Terminal(*words, cwd=tmp_path, HOME=str(tmp_path), WANDB_API_KEY=None, WANDB_MODE=None)
    terminal.until("bpc  ")
    assert terminal.seen.startswith("loading PyTorch …\r\x1b[K")
    terminal.until("chars/s]")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.ended() == 0
    lines = re.split(r"[\r\n]+", terminal.seen)
    bars = [line for line in lines if "%|" in line]
    assert max(map(len, lines)) <= 80 and max(len(line.rstrip()) for line in bars) <= 80 - len("^C")
    text = " ".join(terminal.seen.split())
    assert "no account found; log.wandb=offline records for a later `wandb sync`)" in text
    last = terminal.seen[terminal.seen.rindex("chars/s]") :]
    assert re.search(r"stopped at step \d+ \(Ctrl-C\); the checkpoint is written", " ".join(last.split()))


def test_ctrl_c_while_it_loads_is_answered_on_a_line_of_its_own(tmp_path):
    terminal = Terminal("train", "--config", "stdlib", cwd=tmp_path)
    terminal.until("loading")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.ended() == 130
    assert terminal.seen.endswith("\r\ncharlm: stopped by Ctrl-C\r\n")


def test_json_stays_whole_on_a_terminal(finished):
    terminal = Terminal("sample", finished.run_dir, "--json", "--length", "300", columns=40)
    assert terminal.ended() == 0
    assert json.loads(terminal.seen.rpartition("\x1b[K")[2])["seed"] == finished.sample.seed
