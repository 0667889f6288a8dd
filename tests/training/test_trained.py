"""charlm.load: a run, a folder, a hub id, and what one does with it from Python."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import MIXED, changed, small

import charlm
from charlm.config.fields import EvaluateConfig
from charlm.config.parse import to_yaml
from charlm.errors import CharlmError, CharlmWarning
from charlm.evaluation.evaluate import evaluate
from charlm.training.loop import train


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run whose model spells rare characters in bytes."""
    config = small(
        tmp_path_factory.mktemp("trained") / "run",
        vocab={"unknown": "bytes", "coverage": 0.9},
        train={"steps": 20},
        sample={"every": 0, "prompt": "The ", "length": 30, "top_k": 9},
    )
    train(config, quiet=True)
    return Path(config.run_dir)


@pytest.fixture(scope="module")
def trained(run) -> charlm.Trained:
    return charlm.load(run)


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, charlm; charlm.__version__; assert not {'torch', 'numpy'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_and_its_model_folder_are_the_same(run, trained):
    other = charlm.load(str(run / "model"), device="cpu")
    assert other.generate() == trained.generate()
    assert other.vocab == trained.vocab and other.config == trained.config
    assert not trained.model.training
    assert repr(trained) == f"Trained(lstm, 1 layer(s) of 12 units, {len(trained.vocab)} symbols)"


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_cpu_says_that_it_computes_in_fp32(run, trained, precision):
    told = f"^evaluate.precision={precision} is for NVIDIA GPUs: this CPU computes in fp32$"
    with pytest.warns(CharlmWarning, match=told) as warned:
        other = charlm.load(run, "cpu", precision)
    assert len(warned) == 1 and warned[0].filename == __file__
    assert other.config.evaluate.precision == precision
    assert other.score("The quick").bpc == trained.score("The quick").bpc
    assert other.generate() == trained.generate()


def test_the_precision_is_that_of_the_config_if_none_is_given(run, trained, tmp_path, recwarn):
    shutil.copytree(run, tmp_path / "run")
    config = changed(trained.config, evaluate={"precision": "bf16"})
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert charlm.load(tmp_path / "run", "cpu", "fp32").config.evaluate.precision == "fp32"
    assert not recwarn.list
    with pytest.warns(CharlmWarning, match="evaluate.precision=bf16 is for NVIDIA GPUs"):
        charlm.load(tmp_path / "run", "cpu")


def test_a_precision_that_cannot_be_is_named(run):
    with pytest.raises(CharlmError, match=r"evaluate\.precision='fp61'"):
        charlm.load(run, "cpu", "fp61")


def test_what_is_not_given_comes_from_the_run(trained):
    drawn = trained.generate(prompt="The ", length=30, temperature=0.8, top_k=9, top_p=None, seed=0)
    assert trained.generate() == drawn
    assert trained.generate(top_k=None) != drawn
    assert trained.generate(seed=1) != drawn
    assert trained.generate(prompt="") != drawn


def test_several_samples_are_those_of_the_seeds_one_apart(trained):
    alone = [trained.generate(seed=4 + i) for i in range(3)]
    assert trained.generate(seed=4, num_samples=3) == alone
    assert trained.generate(seed=4, num_samples=1) == alone[:1]


def test_a_sample_without_a_prompt_begins_as_a_line_and_is_always_text(trained):
    drawn = trained.generate(prompt="", num_samples=40, length=50, temperature=2.0, top_k=None)
    text = trained.config.data.text
    begins = {sample.encode()[0] for sample in drawn}
    assert len(begins) > 4 and begins <= {line.encode()[0] for line in text.splitlines()}
    assert "\ufffd" not in "".join(drawn)
    own, spelled = {*trained.vocab.characters}, {*"".join({*text} - {*trained.vocab.characters}).encode()}
    assert spelled and {*"".join({*"".join(drawn)} - own).encode()} <= spelled  # bytes of the training text


def test_a_sample_ends_before_a_stop_string(trained):
    whole = trained.generate(length=60, top_k=None, temperature=1.5)
    stop = whole[20:22]
    for given in (stop, [stop, "no such text"]):
        options = {"length": 60, "top_k": None, "temperature": 1.5, "stop": given}
        assert trained.generate(**options) == "".join(trained.stream(**options)) == whole[: whole.index(stop)]


@pytest.mark.parametrize("length", [1, 2, 60])
def test_a_stream_joined_is_the_sample(trained, length):
    options = {"length": length, "temperature": 1.5, "top_k": None, "seed": 2}
    pieces = list(trained.stream(**options))
    assert "".join(pieces) == trained.generate(**options)
    assert all(pieces)
    if length == 60:  # a character of several bytes comes as one piece, so there are fewer than symbols
        assert any(len(p.encode()) > 1 for p in pieces) and 1 < len(pieces) < length


def test_a_stream_may_be_left_and_two_may_alternate(trained):
    whole = trained.generate(seed=3)
    one, two = trained.stream(seed=3), trained.stream(seed=3)
    assert [next(one), next(two), next(one), next(two)] == [
        p for p in list(trained.stream(seed=3))[:2] for _ in "ab"
    ]
    one.close()
    assert whole.endswith("".join(two))


def test_a_score_is_that_of_the_evaluation(trained):
    text = " " + MIXED
    evaluated = evaluate(trained.model, trained.vocab, trained.vocab.encode(text), EvaluateConfig(lanes=1))
    told = trained.score(text)
    assert (told.bpc, told.bpb) == pytest.approx((evaluated["bpc"], evaluated["bpb"]), rel=1e-6)
    assert (told.characters, told.bytes) == (evaluated["characters"], evaluated["bytes"])
    assert trained.score(text[50:], context=text[:50]).bits == pytest.approx(told.bits[50:], rel=1e-4)


def test_errors_name_what_is_wrong(run, trained, tmp_path, monkeypatch):
    for options, said in (
        ({"temperature": -1}, "temperature=-1"),
        ({"length": 0}, "length=0"),
        ({"top_p": 0}, "top_p=0"),
        ({"top_k": 0}, "top_k=0"),
        ({"stop": ["a", ""]}, r"stop=\['a', ''\]: give a text or several, none empty"),
    ):
        with pytest.raises(CharlmError, match=said):
            trained.generate(**options)
        with pytest.raises(CharlmError, match=said):
            trained.stream(**options)
    with pytest.raises(CharlmError, match="num_samples=0"):
        trained.generate(num_samples=0)
    with pytest.raises(TypeError, match="heat"):
        trained.generate(heat=1)
    with pytest.raises(CharlmError, match="no such run directory, model folder or hub id"):
        charlm.load("nowhere")
    monkeypatch.chdir(run.parent.parent)
    slip = f"{run.parent.name}/rum"
    with pytest.raises(CharlmError, match=f"{slip}: no such .* hub id; did you mean {slip[:-1]}n"):
        charlm.load(slip)
    with pytest.raises(CharlmError, match="neither a model/ nor a checkpoint"):
        charlm.load(tmp_path)
    with pytest.raises(CharlmError, match=r"someone/something: .*Hub"):
        charlm.load("someone/something")
    with pytest.raises(CharlmError, match="device tpu9: "):
        charlm.load(tmp_path, device="tpu9")
