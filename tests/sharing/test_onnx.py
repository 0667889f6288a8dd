"""ONNX files in onnxruntime, against the model they were made from."""

import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch

from charlm.config.fields import ModelConfig
from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError
from charlm.model.char_lm import CharLM
from charlm.sharing.onnx import export

FALLBACK = Vocab("ab cé", end_of_document=True)

MODELS = {
    "lstm": {"cell": "lstm", "layers": 1},
    "lstm, 3 layers, tied, dropout": {
        "cell": "lstm",
        "layers": 3,
        "embedding": 5,
        "tie_weights": True,
        "dropout": 0.5,
    },
    "gru, one-hot, 2 layers": {"cell": "gru", "layers": 2, "embedding": 0},
    "gru": {"cell": "gru", "layers": 1},
    "gru, rms norm, residual": {
        "cell": "gru",
        "layers": 3,
        "norm": "rms",
        "residual": True,
        "weight_drop": 0.5,
        "locked_dropout": True,
        "dropout": 0.5,
    },
    "lstm, layer norm": {"cell": "lstm", "layers": 2, "norm": "layer"},
    "rnn, 2 layers": {"cell": "rnn", "layers": 2},
    "rnn, relu, one-hot": {"cell": "rnn", "layers": 1, "embedding": 0, "nonlinearity": "relu"},
}


def make(vocab, cell="lstm", layers=2, embedding=3, **options) -> CharLM:
    torch.manual_seed(0)
    sizes = {"embedding_size": embedding, "hidden_size": 5, "num_layers": layers}
    return CharLM(ModelConfig(cell=cell, **sizes, **options), len(vocab))


def opened(path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_it_computes_what_the_model_does_for_any_batch_and_length(options, tmp_path):
    model = make(FALLBACK, **options).train()
    assert export(model, FALLBACK, tmp_path / "m.onnx") < 1e-5
    session = opened(tmp_path / "m.onnx")
    names = [i.name for i in session.get_inputs()]
    assert names == ["ids", *("hc" if options["cell"] == "lstm" else "h")]
    assert [o.name for o in session.get_outputs()] == ["log_probabilities", *(f"next_{n}" for n in names[1:])]
    for batch in (1, 4):
        carry = tuple(torch.randn_like(c) for c in model.zeros(batch))
        theirs = [c.numpy() for c in carry]
        for time in (1, 6, 2, 1):
            ids = torch.randint(len(FALLBACK), (batch, time))
            with torch.no_grad():
                logits, carry = model(ids, carry)
            output, *theirs = session.run(None, dict(zip(names, [ids.numpy(), *theirs], strict=True)))
            assert output.shape == (batch, time, len(FALLBACK))
            for ours, other in zip([logits.log_softmax(-1), *carry], [output, *theirs], strict=True):
                torch.testing.assert_close(torch.from_numpy(other), ours, rtol=0, atol=2e-6)


def test_the_file_holds_its_vocabulary_and_the_sizes_of_the_model(tmp_path):
    export(make(FALLBACK), FALLBACK, tmp_path / "m.onnx")
    about = opened(tmp_path / "m.onnx").get_modelmeta().custom_metadata_map
    assert Vocab.from_dict(json.loads(about["vocab.json"])) == FALLBACK
    assert json.loads(about["model"])["hidden_size"] == 5


def test_it_is_read_without_torch(tmp_path):
    export(make(FALLBACK), FALLBACK, tmp_path / "m.onnx")
    code = (
        "import sys, numpy as np, onnxruntime; from charlm.corpus.vocabulary import Vocab\n"
        "assert 'torch' not in sys.modules\n"
        "s = onnxruntime.InferenceSession(sys.argv[1]); z = np.zeros((2, 1, 5), np.float32)\n"
        "print(s.run(None, {'ids': np.array([[0, 1]]), 'h': z, 'c': z})[0].shape)"
    )
    ran = subprocess.run([sys.executable, "-c", code, tmp_path / "m.onnx"], capture_output=True, text=True)
    assert ran.stdout == f"(1, 2, {len(FALLBACK)})\n", ran.stderr


def test_a_file_that_computes_something_else_is_not_written(tmp_path):
    model = make(FALLBACK)
    with torch.no_grad():
        model.output.bias[0] = torch.nan
    with pytest.raises(CharlmError, match="differs from the model by nan"):
        export(model, FALLBACK, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(CharlmError, match=r"no/m.onnx: cannot be written \(No such file"):
        export(make(FALLBACK), FALLBACK, tmp_path / "no" / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(CharlmError, match=r"onnxruntime.*; pip install onnx onnxruntime"):
        export(make(FALLBACK), FALLBACK, tmp_path / "m.onnx")


def test_it_prints_nothing_and_warns_of_nothing(tmp_path, recwarn, capfd):
    export(make(FALLBACK, "gru"), FALLBACK, tmp_path / "m.onnx")
    assert not [w for w in recwarn if "onnx" in str(w.message).lower()] and capfd.readouterr() == ("", "")
    assert np.isfinite(
        opened(tmp_path / "m.onnx").run(None, {"ids": np.array([[1]]), "h": np.zeros((2, 1, 5), np.float32)})[
            0
        ]
    ).all()
