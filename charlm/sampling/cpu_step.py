"""CharLM.step on a CPU without what torch pays per call: for sampling, one symbol per lane at a time.

One lane is one compiled call per symbol, whose time goes into reading the weights; several lanes share the
reading through torch's matrix products. Weights lie transposed, [in, out], so that both read them in order.
The first layer multiplies nothing by its input: every symbol has its row of the products, made beforehand.

Shapes: N lanes, V vocabulary, H hidden, L layers, G·H the gates of a layer in torch's order (LSTM: input,
forget, cell, output; GRU: reset, update, new). All arrays are float32, C-contiguous.
"""

from __future__ import annotations

import numba
import numpy as np
import torch

from charlm.corpus.kernels import compiled
from charlm.model.cells import TorchCell
from charlm.model.char_lm import Carry, CharLM

# No check for division by zero, and products and sums may be fused: with the one no loop becomes vectors.
_quick = numba.njit(error_model="numpy", fastmath={"contract"})
RNN_TANH, RNN_RELU, GRU, LSTM = range(4)

# exp(v) = 2^k · exp(r), |r| ≤ ln 2 / 2: ln 2 in two parts, so that k · _LN2_HIGH is exact, and 1/n! for the
# series of exp(r), whose rest is below 1e-8.
_LOG2E, _LN2_HIGH, _HALF, _1, _2 = (np.float32(v) for v in (1 / np.log(2), 355 / 512, 0.5, 1, 2))
_LN2_LOW = np.float32(np.log(2) - 355 / 512)
_C2, _C3, _C4, _C5, _C6, _C7 = (np.float32(1 / v) for v in (2, 6, 24, 120, 720, 5040))
_MOST, _BIAS, _MANTISSA = np.float32(87), np.float32(127), np.float32(1 << 23)  # exp(±87) is a float32


@_quick
def _sigmoid(x, bits):
    """x[n] becomes 1 / (1 + exp(-x)), within 1e-7. bits: int32[n], overwritten.

    In loops that vector units run, which calls of the C library's exp would not be. NaN stays NaN.
    """
    for i in range(len(x)):
        v = -x[i]
        if v > _MOST:
            v = _MOST
        if v < -_MOST:
            v = -_MOST
        k = np.floor(v * _LOG2E + _HALF)
        r = v - k * _LN2_HIGH - k * _LN2_LOW
        x[i] = _1 + r * (_1 + r * (_C2 + r * (_C3 + r * (_C4 + r * (_C5 + r * (_C6 + r * _C7))))))
        bits[i] = np.int32((k + _BIAS) * _MANTISSA)  # of the float32 2^k
    power = bits.view(np.float32)
    for i in range(len(x)):
        x[i] = _1 / (_1 + x[i] * power[i])


@_quick
def _cell(mode, x, y, h, c, bits):
    """One lane of one layer. x[G·H]: from the input, y[G·H]: from h, biases added to both; overwritten.

    h[H] and, of an LSTM, c[H] move on. tanh(v) is 2 · sigmoid(2 v) - 1.
    """
    size = len(h)
    for i in range(4 * size if mode == LSTM else 2 * size if mode == GRU else size):
        x[i] += y[i]
    if mode == RNN_RELU:
        for i in range(size):
            h[i] = np.float32(0) if x[i] < 0 else x[i]
        return
    if mode == LSTM:
        for i in range(2 * size, 3 * size):
            x[i] *= _2
        squashed = 4 * size
    elif mode == GRU:
        squashed = 2 * size
    else:
        for i in range(size):
            x[i] *= _2
        squashed = size
    _sigmoid(x[:squashed], bits)
    if mode == RNN_TANH:
        for i in range(size):
            h[i] = _2 * x[i] - _1
        return
    if mode == LSTM:
        for i in range(size):
            c[i] = x[size + i] * c[i] + x[i] * (_2 * x[2 * size + i] - _1)
            y[i] = _2 * c[i]
    else:
        for i in range(size):
            y[i] = _2 * (x[2 * size + i] + x[i] * y[2 * size + i])
    _sigmoid(y[:size], bits)
    for i in range(size):
        new = _2 * y[i] - _1  # tanh
        if mode == LSTM:
            h[i] = x[3 * size + i] * new
        else:
            h[i] = new + x[size + i] * (h[i] - new)


@_quick
def _add_product(x, weight, y):
    """y[out] += x[in] · weight[in, out]; eight rows at once, so that y is read and written less often."""
    whole = len(x) // 8 * 8
    for k in range(0, whole, 8):
        a, b, c, d = x[k], x[k + 1], x[k + 2], x[k + 3]
        e, f, g, h = x[k + 4], x[k + 5], x[k + 6], x[k + 7]
        for i in range(len(y)):
            low = weight[k, i] * a + weight[k + 1, i] * b + weight[k + 2, i] * c + weight[k + 3, i] * d
            high = weight[k + 4, i] * e + weight[k + 5, i] * f + weight[k + 6, i] * g + weight[k + 7, i] * h
            y[i] += low + high
    for k in range(whole, len(x)):
        for i in range(len(y)):
            y[i] += weight[k, i] * x[k]


@compiled
def _step_alone(mode, symbol, table, w_in, b_in, w_hidden, b_hidden, w_out, b_out, h, c, x, y, bits, out):
    """A whole step of one lane. w_in[L-1, H, G·H], b_in: of the layers but the first; out[V]: the logits."""
    for layer in range(len(w_hidden)):
        if layer == 0:
            x[:] = table[symbol]
        else:
            x[:] = b_in[layer - 1]
            _add_product(h[layer - 1], w_in[layer - 1], x)
        y[:] = b_hidden[layer]
        _add_product(h[layer], w_hidden[layer], y)
        _cell(mode, x, y, h[layer], c[layer], bits)
    out[:] = b_out
    _add_product(h[-1], w_out, out)


@compiled
def _cells(mode, x, y, h, c, bits):
    """One layer of several lanes: x, y [N, G·H]; h, c [N, H]."""
    for lane in range(len(x)):
        _cell(mode, x[lane], y[lane], h[lane], c[lane], bits)


def steppable(model: CharLM) -> bool:
    """Whether Stepper computes the model: on a CPU, a cell of torch, nothing between the layers."""
    plain = model.config.norm == "none" and not model.config.residual
    return model.device.type == "cpu" and isinstance(model.cell, TorchCell) and plain


class Stepper:
    """A steppable model and its carry, moving on one symbol per lane at a time.

    The weights are those of the moment it is made. model: float32, on a CPU. carry: [L, N, H] each, copied.
    """

    def __init__(self, model: CharLM, carry: Carry):
        _, lanes, size = carry[0].shape
        self.mode = {"RNN_TANH": RNN_TANH, "RNN_RELU": RNN_RELU, "GRU": GRU, "LSTM": LSTM}[
            model.layers[0].mode
        ]
        first, *others = model.layers

        def packed(tensors: list[torch.Tensor], *shape: int) -> torch.Tensor:
            return torch.stack([t.detach() for t in tensors]) if tensors else torch.zeros(0, *shape)

        gates = len(first.bias_ih_l0)
        symbols = torch.arange(model.vocab_size)
        self.table = torch.nn.functional.linear(model.input(symbols), first.weight_ih_l0, first.bias_ih_l0)
        self.table = self.table.detach().contiguous()  # [V, G·H]
        self.w_in = packed([o.weight_ih_l0.t() for o in others], size, gates)
        self.b_in = packed([o.bias_ih_l0 for o in others], gates)
        self.w_hidden = packed([o.weight_hh_l0.t() for o in model.layers])  # [L, H, G·H]
        self.b_hidden = packed([o.bias_hh_l0 for o in model.layers])
        self.w_out = model.output.weight.detach().t().contiguous()  # [H, V]
        self.b_out = model.output.bias.detach().clone()
        self.h = carry[0].clone(memory_format=torch.contiguous_format)
        self.c = carry[-1].clone(memory_format=torch.contiguous_format)  # of no use but to an LSTM
        self.x, self.y = torch.empty(lanes, gates), torch.empty(lanes, gates)
        self.logits = torch.empty(lanes, model.vocab_size)
        self._bits = np.empty(gates, np.int32)
        self._alone = self._arguments() if lanes == 1 else None
        self._views = [
            tuple(v.numpy() for v in (self.x, self.y, h, c)) for h, c in zip(self.h, self.c, strict=True)
        ]

    def _arguments(self) -> tuple[np.ndarray, ...]:
        """What _step_alone takes after the symbol: views of the tensors, made once."""
        weights = (self.table, self.w_in, self.b_in, self.w_hidden, self.b_hidden, self.w_out, self.b_out)
        state = (self.h[:, 0], self.c[:, 0], self.x[0], self.y[0])
        return (*(t.numpy() for t in (*weights, *state)), self._bits, self.logits[0].numpy())

    def step(self, ids: np.ndarray) -> np.ndarray:
        """Read one symbol per lane, int64[N]; returns logits float32[N, V], overwritten by the next step."""
        if self._alone is not None:
            _step_alone(self.mode, ids[0], *self._alone)
            return self.logits.numpy()
        torch.index_select(self.table, 0, torch.from_numpy(ids), out=self.x)
        for i, views in enumerate(self._views):
            if i:
                torch.addmm(self.b_in[i - 1], self.h[i - 1], self.w_in[i - 1], out=self.x)
            torch.addmm(self.b_hidden[i], self.h[i], self.w_hidden[i], out=self.y)
            _cells(self.mode, *views, self._bits)
        torch.addmm(self.b_out, self.h[-1], self.w_out, out=self.logits)
        return self.logits.numpy()
