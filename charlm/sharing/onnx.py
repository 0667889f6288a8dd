"""A model as ONNX: the window function with its carry, for serving without torch.

    (ids, h[, c]) → (log_probabilities, next_h[, next_c])

    ids                 int64   [batch, time]
    log_probabilities   float32 [batch, time, V]    ln p of what follows each symbol
    h, c, next_h, next_c  float32 [L, batch, H]     the carry: zeros at the start of a text; c of an lstm only

batch and time are free. What a server hands on from call to call is the carry. The file holds vocab.json and
the model's config too, as its metadata.
"""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError
from charlm.files import replace
from charlm.model.char_lm import Carry, CharLM

OPSET = 17  # of 2022: every runtime of today knows it
WITHIN = 1e-4  # of the model itself


class _Window(nn.Module):
    """CharLM with a carry of separate arguments."""

    def __init__(self, model: CharLM):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, *carry: Tensor) -> tuple[Tensor, ...]:
        logits, carry = self.model(ids, carry)
        return logits.log_softmax(-1), *carry


def export(model: CharLM, vocab: Vocab, path: str | Path) -> float:
    """Write a model, float32 on a CPU, as an ONNX file that was run and compared with the model before.

    Returns the largest difference seen between the two: |a - b| / (1 + |a|), of log-probabilities in nats and
    of the carry. The model is left in evaluation mode. Raises CharlmError when onnx or onnxruntime is
    missing, the file cannot be written, or what it computes is not the model.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise CharlmError(f"ONNX needs a package: {error}; pip install onnx onnxruntime") from error
    window, states = _Window(model).eval(), model.cell.states
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that the exporter is the older one, and what it thinks of batches
        torch.onnx.export(
            window,
            (torch.zeros(2, 3, dtype=torch.long), *model.zeros(2)),
            file,
            dynamo=False,  # the newer one would unroll the recurrent layers: no free length
            opset_version=OPSET,
            input_names=["ids", *states],
            output_names=["log_probabilities", *(f"next_{s}" for s in states)],
            dynamic_axes={
                **{name: {0: "batch", 1: "time"} for name in ("ids", "log_probabilities")},
                **{name: {1: "batch"} for s in states for name in (s, f"next_{s}")},
            },
        )
    graph = onnx.load_from_string(file.getvalue())
    graph.producer_name = "charlm"
    about = {"vocab.json": vocab.to_dict(), "model": vars(model.config)}
    onnx.helper.set_model_props(graph, {k: json.dumps(v, ensure_ascii=False) for k, v in about.items()})
    content = graph.SerializeToString()
    difference = _compare(window, onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]))
    if not difference < WITHIN:  # nan too, of a model that diverged
        raise CharlmError(f"{path}: what onnxruntime computes differs from the model by {difference:g}")
    try:
        replace(path, content)
    except OSError as error:
        raise CharlmError(f"{path}: cannot be written ({error.strerror})") from error
    return difference


@torch.no_grad()
def _compare(window: _Window, session) -> float:
    """The largest difference over several windows of other sizes than the exported ones, carry handed on."""
    names = [i.name for i in session.get_inputs()]
    generator, worst = torch.Generator().manual_seed(0), torch.zeros(())
    for batch in (1, 5):
        ours: Carry = window.model.zeros(batch)
        theirs = [state.numpy() for state in ours]
        for time in (1, 1, 7, 4):
            ids = torch.randint(window.model.vocab_size, (batch, time), generator=generator)
            expected, *ours = window(ids, *ours)
            got, *theirs = session.run(None, dict(zip(names, [ids.numpy(), *theirs], strict=True)))
            for a, b in zip([expected, *ours], [got, *theirs], strict=True):
                worst = torch.maximum(worst, ((a - torch.from_numpy(b)).abs() / (1 + a.abs())).max())
    return worst.item()
