"""Export to ONNX: the model as a function of ids and carry, for serving without torch.

    (ids, h[, c][, last][, recent]) → (log_probabilities, next_h[, next_c][, next_last][, next_recent])

    ids                 int64   [batch, time]
    log_probabilities   float32 [batch, time, V]    ln p of what follows each symbol
    h, c, next_h, next_c  float32 [L, batch, H]     the carry (recurrent state), zeros at the start; c: lstm
    last, next_last     float32 [1, batch, n - 1]   with model.ngrams=n: the last symbols, each plus 1
    recent, next_recent  float32 [1, batch, ·]      with model.recall: its memory

batch and time are free; a server passes the carry on. The metadata holds vocab.json and the model's config.
"""

import io
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError
from charlm.files import replace, writing
from charlm.model.char_lm import CharLM

OPSET = 17  # of 2022: every current runtime supports it
TOLERANCE = 1e-4  # of the comparison with the model


class _Window(nn.Module):
    """CharLM with its carry as separate arguments."""

    def __init__(self, model: CharLM):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, *carry: Tensor) -> tuple[Tensor, ...]:
        logits, carry = self.model(ids, carry)
        return logits.log_softmax(-1), *carry


def export(model: CharLM, vocab: Vocab, path: str | Path) -> float:
    """Write a model, float32 on a CPU, as an ONNX file, after running it and comparing it with the model.

    Returns the largest difference |a - b| / (1 + |a|) of log-probabilities in nats and of the carry. Leaves
    the model in evaluation mode. Raises CharlmError when onnx or onnxruntime is missing, the file cannot be
    written, or it does not compute what the model does.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise CharlmError(f"ONNX needs a package: {error}; pip install onnx onnxruntime") from error
    window, file = _Window(model).eval(), io.BytesIO()
    example = (torch.zeros(2, 3, dtype=torch.long), *model.zeros(2))
    inputs = ["ids", *model.states]
    outputs = ["log_probabilities", *(f"next_{state}" for state in model.states)]
    axes = {name: {1: "batch"} for name in inputs + outputs}
    axes |= {name: {0: "batch", 1: "time"} for name in ("ids", "log_probabilities")}
    options = {"input_names": inputs, "output_names": outputs, "dynamic_axes": axes, "opset_version": OPSET}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # about the older exporter, and about batches
        # The newer exporter unrolls recurrent layers: time would not be free.
        torch.onnx.export(window, example, file, dynamo=False, **options)
    graph = onnx.load_from_string(file.getvalue())
    graph.producer_name = "charlm"
    about = {"vocab.json": vocab.to_dict(), "model": vars(model.config)}
    onnx.helper.set_model_props(graph, {k: json.dumps(v, ensure_ascii=False) for k, v in about.items()})
    content = graph.SerializeToString()
    difference = _compare(window, onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]))
    if not difference < TOLERANCE:  # nan too, of a model that diverged
        raise CharlmError(f"{path}: onnxruntime's output differs from the model by {difference:g}")
    with writing(path):
        replace(path, content)
    return difference


@torch.no_grad()
def _compare(window: _Window, session) -> float:
    """The largest difference over windows of other sizes than the exported one, with the carry passed on."""
    names = [i.name for i in session.get_inputs()]
    generator, largest = torch.Generator().manual_seed(0), torch.zeros(())
    for batch in (1, 5):
        carry = window.model.zeros(batch)
        onnx_carry = [state.numpy() for state in carry]
        for time in (1, 1, 7, 4):
            ids = torch.randint(window.model.vocab_size, (batch, time), generator=generator)
            expected, *carry = window(ids, *carry)
            output, *onnx_carry = session.run(None, dict(zip(names, [ids.numpy(), *onnx_carry], strict=True)))
            for a, b in zip([expected, *carry], [output, *onnx_carry], strict=True):
                largest = torch.maximum(largest, ((a - torch.from_numpy(b)).abs() / (1 + a.abs())).max())
    return largest.item()
