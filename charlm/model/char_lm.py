"""CharLM: one-hot or embedding → recurrent layers → logits.

Shapes: B lanes on this rank, T window, V vocabulary, E embedding (V when one-hot), H hidden, L layers.
The *carry* is the recurrent state handed from one window to the next: a tuple of [L, B, H] tensors, (h,) for
rnn and gru, (h, c) for lstm; None stands for zeros.

Windows lie in memory time first, as the kernels of the recurrent layers read them: [B, T, ·] below is a view.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.backends.cudnn import rnn

from charlm.config.fields import ModelConfig
from charlm.corpus.vocabulary import Vocab
from charlm.model.layers import LockedDropout, RMSNorm, activation_penalty, cast, drawn, gru_window
from charlm.model.loss import cross_entropy

Carry = tuple[Tensor, ...]


class OneHot(nn.Module):
    """ids [B, T] → float32 [B, T, V]."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.vocab_size = vocab_size

    def forward(self, ids: Tensor) -> Tensor:
        return F.one_hot(ids, self.vocab_size).float()

    def extra_repr(self) -> str:
        return str(self.vocab_size)


class CharLM(nn.Module):
    """A recurrent language model over the symbols of a vocabulary."""

    def __init__(self, config: ModelConfig, vocab_size: int):
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.vocab: Vocab | None = None  # set by from_pretrained
        self.compute_dtype = torch.float32  # bfloat16: low-precision copies of the weights, made in the graph
        E, H = config.embedding_size or vocab_size, config.hidden_size
        self.input = nn.Embedding(vocab_size, E) if config.embedding_size else OneHot(vocab_size)
        cell = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[config.cell]
        options = {"nonlinearity": config.nonlinearity} if config.cell == "rnn" else {}
        # One module per layer, dropout outside: cuDNN's own dropout has a random state that cannot be saved.
        self.layers = nn.ModuleList(
            cell(E if i == 0 else H, H, batch_first=True, **options) for i in range(config.num_layers)
        )
        self.output = nn.Linear(H, vocab_size)

        def dropout(p: float | None) -> nn.Dropout:
            kind = LockedDropout if config.locked_dropout else nn.Dropout
            return kind(config.dropout if p is None else p)

        self.input_dropout, self.output_dropout = (
            dropout(config.input_dropout),
            dropout(config.output_dropout),
        )
        self.between = dropout(config.dropout)
        if config.norm != "none":
            kind = {"layer": nn.LayerNorm, "rms": RMSNorm}[config.norm]
            self.norms = nn.ModuleList(kind(H, eps=1e-5) for _ in self.layers[1:])
        if config.cell == "lstm":
            for layer in self.layers:
                with torch.no_grad():  # gates lie in the order input, forget, cell, output
                    layer.bias_ih_l0[H : 2 * H] = config.forget_bias
                    layer.bias_hh_l0[H : 2 * H] = 0
        if config.tie_weights:
            nn.init.normal_(self.input.weight, std=H**-0.5)  # N(0, 1) would start with huge logits
            self.output.weight = self.input.weight

    @property
    def device(self) -> torch.device:
        return self.output.weight.device

    def _apply(self, fn, recurse: bool = True) -> CharLM:
        """Move or convert: as cuDNN wants the weights of one call, which is one buffer."""
        super()._apply(fn, recurse)
        weights = [w for layer in self.layers for w in layer._flat_weights]
        flat = torch.backends.cudnn.is_acceptable(weights[0]) and torch._use_cudnn_rnn_flatten_weight()
        if self.config.in_one_call and flat:
            first, size = self.layers[0], self.config.hidden_size
            mode = rnn.get_cudnn_mode(first.mode)
            with torch.no_grad(), torch.cuda.device_of(weights[0]):
                torch._cudnn_rnn_flatten_weight(
                    weights, 4, first.input_size, mode, size, 0, len(self.layers), True, False
                )
        return self

    def zeros(self, lanes: int) -> Carry:
        """The carry at the start of a text: float32 [L, B, H] each."""
        shape = (self.config.num_layers, lanes, self.config.hidden_size)
        states = 2 if self.config.cell == "lstm" else 1
        return tuple(torch.zeros(shape, device=self.device) for _ in range(states))

    def forward(
        self, ids: Tensor, carry: Carry | None = None, targets: Tensor | None = None, reduction: str = "mean"
    ) -> tuple[Tensor, Carry]:
        """Read a window.

        ids: int64[B, T]. carry: from the window before, or None. Returns (logits [B, T, V], carry).
        With targets, int64[B, T], returns the cross-entropy in nats instead of the logits (reduction as in
        torch: mean, sum or none [B, T]; computed in float32), and a carry cut off from the graph. In training
        the gradient of the mean is also that of activation_reg and temporal_reg.
        """
        if carry is None:
            carry = self.zeros(len(ids))
        x = self.input(ids.t()).transpose(0, 1)  # [B, T, E]
        x = self.input_dropout(x.to(self.compute_dtype))
        states, calls = [], [[layer] for layer in self.layers]
        if self.config.in_one_call and x.is_cuda:
            calls = [list(self.layers)]
        for layers in calls:
            i = len(states)
            read = self.between(self._normed(i, x)) if i else x
            state = tuple(c[i : i + len(layers)].contiguous() for c in carry)
            out, state = self._recur(layers, read, state)
            x = self._joined(x, out)  # [B, T, H]
            states.append(state)
        joined = states[0] if len(states) == 1 else map(torch.cat, zip(*states, strict=True))
        carry = tuple(c.to(torch.float32) for c in joined)
        h, x = x, self.output_dropout(x)
        weight, bias = self.output.weight, self.output.bias
        if targets is None and x.dtype == weight.dtype:
            return self.output(x), carry  # [B, T, V]
        if targets is None:
            return F.linear(x, weight.to(x.dtype), bias.to(x.dtype)), carry
        flat = x.transpose(0, 1).flatten(0, 1)  # as they lie in memory
        loss = cross_entropy(flat, weight, bias, targets.t().flatten(), reduction)
        ar, tar = self.config.activation_reg, self.config.temporal_reg
        if self.training and (ar or tar) and reduction == "mean":
            loss = loss + activation_penalty(h, x, ar, tar)
        if reduction == "none":
            loss = loss.view(targets.t().shape).t()
        return loss, tuple(c.detach() for c in carry)

    def _normed(self, i: int, x: Tensor) -> Tensor:
        """What a layer but the first reads: x, normalised in float32."""
        return x if self.config.norm == "none" else self.norms[i - 1](x.float()).to(x.dtype)

    def _joined(self, x: Tensor, out: Tensor) -> Tensor:
        """What a layer gives, with what reached it added where the widths are equal."""
        return out + x if self.config.residual and x.shape[-1] == out.shape[-1] else out

    def _recur(self, layers: list[nn.RNNBase], x: Tensor, state: Carry) -> tuple[Tensor, Carry]:
        """Some layers over a window: x [B, T, E or H], state [layers, B, H] each. Several have no masks."""
        first, p, exact = layers[0], self.config.weight_drop, self.compute_dtype == torch.float32
        mask = drawn(first.weight_hh_l0, p) if self.training and p else None
        weights = [w for layer in layers for w in layer._flat_weights]
        # Autocast would run cuDNN's recurrent layers in fp16, whatever it was asked for: cast by hand, in the
        # graph, so that gradients reach the float32 weights.
        if mask is not None or not exact:
            weights = cast(weights, self.compute_dtype, mask)
        on_cpu = x.device.type == "cpu" and not torch.jit.is_tracing()  # which wants a layer as one node
        if exact and len(layers) == 1 and first.mode == "GRU" and on_cpu:
            out, new = gru_window(first, x, state[0], weights)
            return out, (new,)
        if exact and len(layers) == 1 and mask is None:
            out, new = first(x, state if len(state) == 2 else state[0])
            return out, new if isinstance(new, tuple) else (new,)
        state = tuple(s.to(x.dtype) for s in state)
        kernel = getattr(torch._VF, first.mode.lower())
        options = (True, len(layers), 0.0, first.training, False, True)
        out, *new = kernel(x, state if len(state) == 2 else state[0], weights, *options)
        return out, tuple(new)

    def step(self, ids: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """One symbol per lane, for sampling: ids int64[B], carry [L, B, H] → (logits [B, V], carry).

        The same as forward on a window of one, in float32 and without what a whole window pays to set up.
        """
        x = self.input(ids)  # [B, E]
        states = []
        for i, layer in enumerate(self.layers):
            read = self._normed(i, x) if i else x
            weights = (layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0)
            state = tuple(c[i] for c in carry)
            cell = getattr(torch, f"{layer.mode.lower()}_cell")
            new = cell(read, state if len(state) == 2 else state[0], *weights)
            states.append(new if isinstance(new, tuple) else (new,))
            x = self._joined(x, states[-1][0])
        return self.output(x), tuple(torch.stack(parts) for parts in zip(*states, strict=True))

    def save_pretrained(self, folder: str | Path, vocab: Vocab, **about) -> None:
        """Write config.json, model.safetensors and vocab.json; see charlm.model.pretrained.save_model."""
        from charlm.model.pretrained import save_model

        save_model(self, folder, vocab, **about)

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str | torch.device = "cpu", **hub) -> CharLM:
        """Load what save_pretrained wrote, or a model on the Hub; see charlm.model.pretrained.load_model."""
        from charlm.model.pretrained import load_model

        return load_model(name, device, **hub)
