"""CharLM: one-hot or embedding → recurrent layers → logits.

Shapes: B lanes on this rank, T window, V vocabulary, E embedding (V when one-hot), H hidden, L layers.
The *carry* is the recurrent state handed from one window to the next: a tuple of [L, B, H] tensors, (h,) for
rnn and gru, (h, c) for lstm; None stands for zeros. With model.ngrams, [1, B, n - 1] follows, the symbols
that the n-grams of the next window begin with; with model.recall, [1, B, ·], the memory of Recall.

Windows are time-first in memory, as the kernels of the recurrent layers read them: [B, T, ·] below is a view.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charlm.config.fields import ModelConfig
from charlm.corpus.vocabulary import Vocab
from charlm.model.cells import Carry, cell_of, flatten_weights
from charlm.model.evidence import Evidence, NGrams, Recall
from charlm.model.layers import LockedDropout, RMSNorm, activation_penalty, cross_entropy
from charlm.model.pretrained import load_model, save_model


def one_hot(vocab_size: int, ids: Tensor) -> Tensor:
    """ids [B, T] → float32 [B, T, V]."""
    return F.one_hot(ids, vocab_size).float()


def _corrected(log_p: Tensor, evidence: list, h: Tensor) -> Tensor:
    """The network's ln p after all evidence, as Evidence.combine gives it."""
    for module, found in evidence:
        log_p = module.combine(log_p, found, h)
    return log_p


class CharLM(nn.Module):
    """A recurrent language model over the symbols of a vocabulary."""

    def __init__(self, config: ModelConfig, vocab_size: int):
        super().__init__()
        self.config, self.vocab_size, self.cell = config, vocab_size, cell_of(config)
        self.vocab: Vocab | None = None  # set by from_pretrained
        self.compute_dtype = torch.float32  # if lower: copies of the weights in it, made in the graph
        E, H = config.embedding_size or vocab_size, config.hidden_size
        self.input = nn.Embedding(vocab_size, E) if config.embedding_size else partial(one_hot, vocab_size)
        # One module per layer, dropout outside: cuDNN's own dropout has a random state that cannot be saved.
        self.layers = nn.ModuleList(self.cell.layer(H if i else E, config) for i in range(config.num_layers))
        self.output = nn.Linear(H, vocab_size)
        self.ngrams = NGrams(config.ngrams, config.ngram_lines, vocab_size, H) if config.ngrams else None
        self.recall = Recall(config.recall, vocab_size, H) if config.recall else None
        kind = LockedDropout if config.locked_dropout else nn.Dropout
        rates = (config.input_dropout, config.output_dropout, config.dropout)
        dropouts = [kind(config.dropout if p is None else p) for p in rates]
        self.input_dropout, self.output_dropout, self.between = dropouts
        if config.norm != "none":
            kind = {"layer": nn.LayerNorm, "rms": RMSNorm}[config.norm]
            self.norms = nn.ModuleList(kind(H, eps=1e-5) for _ in self.layers[1:])
        if config.tie_weights:
            nn.init.normal_(self.input.weight, std=H**-0.5)  # N(0, 1) would start with huge logits
            self.output.weight = self.input.weight

    save_pretrained = save_model
    from_pretrained = classmethod(load_model)

    @property
    def device(self) -> torch.device:
        return self.output.weight.device

    @property
    def num_parameters(self) -> int:
        """The numbers that are trained; counts of n-grams are not."""
        return sum(p.numel() for p in self.parameters() if p.is_floating_point())

    @property
    def in_one_call(self) -> bool:
        """Whether a GPU computes all layers in one call."""
        return self.cell.in_one_call and self.config.in_one_call

    def _apply(self, fn, recurse: bool = True) -> "CharLM":
        """Move or convert; the weights of one call must then share one buffer."""
        super()._apply(fn, recurse)
        if self.in_one_call:
            flatten_weights(self.layers, self.config.hidden_size)
        return self

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode within the block; afterwards the mode from before, also after an error."""
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)

    @property
    def states(self) -> tuple[str, ...]:
        """Names of the tensors of the carry."""
        return (*self.cell.states, *self.evidence)

    @property
    def evidence(self) -> dict[str, Evidence]:
        """What corrects the network's prediction, by the name of its tensor of the carry."""
        each = {"last": self.ngrams, "recent": self.recall}
        return {name: module for name, module in each.items() if module is not None}

    def zeros(self, lanes: int) -> Carry:
        """The carry at the start of a text: float32 [L, B, H] each."""
        shapes = {name: (1, lanes, module.carried) for name, module in self.evidence.items()}
        usual = (self.config.num_layers, lanes, self.config.hidden_size)
        return tuple(torch.zeros(shapes.get(name, usual), device=self.device) for name in self.states)

    def forward(
        self,
        ids: Tensor,
        carry: Carry | None = None,
        targets: Tensor | None = None,
        reduction: str = "mean",
        depth: int = 0,
    ) -> tuple[Tensor, Carry]:
        """Read a window.

        ids: int64[B, T]. carry: from the window before, or None. Returns (logits [B, T, V], carry). With
        model.ngrams or recall these are logarithms of probabilities; training keeps the logits of a window.
        With targets, int64[B, T], returns the cross-entropy in nats instead of the logits (reduction as in
        torch: mean, sum or none [B, T]; computed in float32), and a carry cut off from the graph. In training
        the gradient of the mean includes that of activation_reg and temporal_reg.
        With depth, only so many layers compute: returns the output of the last, [B, T, H], and their carry.
        """
        carry = carry or self.zeros(len(ids))
        carry, memories = carry[: len(self.cell.states)], carry[len(self.cell.states) :]
        x = self.input_dropout(self.input(ids.t()).transpose(0, 1).to(self.compute_dtype))
        drop = self.config.weight_drop if self.training else 0.0
        states, calls = [], [[layer] for layer in self.layers[: depth or None]]
        if self.in_one_call and x.is_cuda and not depth:
            calls = [list(self.layers)]
        for layers in calls:
            i = len(states)
            inputs = self.between(self._normed(i, x)) if i else x
            state = tuple(c[i : i + len(layers)].contiguous() for c in carry)
            out, state = self.cell.window(layers, inputs, state, self.compute_dtype, drop)
            x = self._joined(x, out)  # [B, T, H]
            states.append(state)
        joined = states[0] if len(states) == 1 else map(torch.cat, zip(*states, strict=True))
        carry = tuple(c.to(torch.float32) for c in joined)
        if depth:
            return x, carry
        evidence, memories = self._evidence(ids.t(), memories, None if targets is None else targets.t())
        carry += memories
        h, x = x, self.output_dropout(x)
        weight, bias = self.output.weight, self.output.bias
        if targets is None:
            # By the module where that computes the same, so that its hooks run.
            same = x.dtype == weight.dtype
            logits = self.output(x) if same else F.linear(x, weight.to(x.dtype), bias.to(x.dtype))
            if evidence:
                log_p = logits.float().log_softmax(-1).transpose(0, 1)
                logits = _corrected(log_p, evidence, h.transpose(0, 1)).transpose(0, 1)
            return logits, carry  # [B, T, V]
        flat = x.transpose(0, 1).flatten(0, 1)  # time-first, as in memory: no copy
        targets = targets.t()
        each = "none" if evidence else reduction
        loss = cross_entropy(flat, weight, bias, targets.flatten(), each)
        if evidence:
            loss = -_corrected(-loss.view(targets.shape), evidence, h.transpose(0, 1)) * (targets >= 0)
            if reduction != "none":
                loss = loss.sum() / ((targets >= 0).sum() if reduction == "mean" else 1)
        ar, tar = self.config.activation_reg, self.config.temporal_reg
        if self.training and (ar or tar) and reduction == "mean":
            loss = loss + activation_penalty(h, x, ar, tar)
        if reduction == "none":
            loss = loss.view(targets.shape).t()
        return loss, tuple(c.detach() for c in carry)

    def step(self, ids: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """One symbol per lane, for sampling: ids int64[B], carry [L, B, H] → (logits [B, V], carry).

        The same as forward on a window of one, in the dtype of the weights, without its set-up costs.
        """
        carry, memories = carry[: len(self.cell.states)], carry[len(self.cell.states) :]
        x, states = self.input(ids).to(self.output.weight.dtype), []  # [B, E]
        for i, layer in enumerate(self.layers):
            inputs = self._normed(i, x) if i else x
            out, state = self.cell.step(layer, inputs, tuple(c[i] for c in carry))
            states.append(state)
            x = self._joined(x, out)
        logits, carry = self.output(x), tuple(torch.stack(parts) for parts in zip(*states, strict=True))
        evidence, memories = self._evidence(ids[None], memories)
        if evidence:
            logits = _corrected(logits.float().log_softmax(-1)[None], evidence, x[None])[0]
        return logits, carry + memories

    def _evidence(self, ids: Tensor, memories: Carry, targets: Tensor | None = None) -> tuple[list, Carry]:
        """Of a window, time first: pairs (module, what it found) and their part of the next carry."""
        modules = self.evidence.values()
        read = [module(ids, memory[0], targets) for module, memory in zip(modules, memories, strict=True)]
        evidence = [(module, found) for module, (found, _) in zip(modules, read, strict=True)]
        return evidence, tuple(memory[None] for _, memory in read)

    def _normed(self, i: int, x: Tensor) -> Tensor:
        """The input of a layer but the first: x, normalised in the dtype of the norm's weights."""
        norm = None if self.config.norm == "none" else self.norms[i - 1]
        return x if norm is None else norm(x.to(norm.weight.dtype)).to(x.dtype)

    def _joined(self, x: Tensor, out: Tensor) -> Tensor:
        """A layer's output, with its input added where the widths are equal (residual)."""
        return out + x if self.config.residual and x.shape[-1] == out.shape[-1] else out
