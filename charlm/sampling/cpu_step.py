"""Compiled sampling on a CPU: CharLM.step without torch's costs per call, and the draw from its logits.

One lane is one compiled call per symbol, whose time goes into reading the weights; several lanes share the
reading through torch's matrix products. Weights are transposed, [in, out], so that both read them in order.
The first layer has no product with its input: a table holds the product for every symbol.

Shapes: N lanes, V vocabulary, H hidden, L layers, G·H the gates of a layer in torch's order (LSTM: input,
forget, cell, output; GRU: reset, update, new). All arrays are float32, C-contiguous.
"""

import numba
import numpy as np
import torch
import torch.nn.functional as F

from charlm.corpus.kernels import compiled
from charlm.model.cells import TorchCell
from charlm.model.char_lm import Carry, CharLM

# Division by zero is not checked, which would prevent vector instructions; products and sums may be fused.
_quick = numba.njit(error_model="numpy", fastmath={"contract"})
RNN_TANH, RNN_RELU, GRU, LSTM = range(4)

# exp(v) = 2^k · exp(r), |r| ≤ ln 2 / 2: ln 2 in two parts, so that k · _LN2_HIGH is exact, and 1/n! for the
# series of exp(r), with an error below 1e-8.
_LOG2E, _LN2_HIGH, _HALF, _1, _2 = (np.float32(v) for v in (1 / np.log(2), 355 / 512, 0.5, 1, 2))
_LN2_LOW = np.float32(np.log(2) - 355 / 512)
_C2, _C3, _C4, _C5, _C6, _C7 = (np.float32(1 / v) for v in (2, 6, 24, 120, 720, 5040))
_MOST, _BIAS, _MANTISSA = np.float32(87), np.float32(127), np.float32(1 << 23)  # exp(±87) is a float32


@_quick
def _sigmoid(x, bits):
    """x[n] becomes 1 / (1 + exp(-x)), within 1e-7. bits: int32[n], overwritten. In loops of vector
    instructions, unlike calls of the C library's exp. NaN stays NaN."""
    for i in range(len(x)):
        v = _MOST if -x[i] > _MOST else -_MOST if -x[i] < -_MOST else -x[i]
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
    Updates h[H] and, of an LSTM, c[H]. tanh(v) is 2 · sigmoid(2 v) - 1."""
    size = len(h)
    summed = 4 * size if mode == LSTM else 2 * size if mode == GRU else size
    for i in range(summed):
        x[i] += y[i]
    if mode == RNN_RELU:
        for i in range(size):
            h[i] = np.float32(0) if x[i] < 0 else x[i]
        return
    if mode != GRU:
        low = 2 * size if mode == LSTM else 0
        for i in range(low, low + size):
            x[i] *= _2
    _sigmoid(x[:summed], bits)
    if mode == RNN_TANH:
        for i in range(size):
            h[i] = _2 * x[i] - _1
        return
    for i in range(size):
        if mode == LSTM:
            c[i] = x[size + i] * c[i] + x[i] * (_2 * x[2 * size + i] - _1)
            y[i] = _2 * c[i]
        else:
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
def _step_alone(mode, ids, table, w_i, b_i, w_h, b_h, w_out, b_out, h, c, x, y, bits, out):
    """A whole step of one lane. w_i[L-1, H, G·H], b_i: of the layers but the first; out[V]: the logits."""
    x[:] = table[ids[0]]
    for layer in range(len(w_h)):
        if layer:
            x[:] = b_i[layer - 1]
            _add_product(h[layer - 1], w_i[layer - 1], x)
        y[:] = b_h[layer]
        _add_product(h[layer], w_h[layer], y)
        _cell(mode, x, y, h[layer], c[layer], bits)
    out[:] = b_out
    _add_product(h[-1], w_out, out)


@compiled
def _cells(mode, x, y, h, c, bits):
    """One layer of several lanes: x, y [N, G·H]; h, c [N, H]."""
    for lane in range(len(x)):
        _cell(mode, x[lane], y[lane], h[lane], c[lane], bits)


def steppable(model: CharLM) -> bool:
    """Whether Stepper computes the model: on a CPU, a cell of torch, no norms between layers, no evidence."""
    plain = model.config.norm == "none" and not model.config.residual and not model.evidence
    return model.device.type == "cpu" and isinstance(model.cell, TorchCell) and plain


class Stepper:
    """A steppable model and its carry, advanced by one symbol per lane at a time.

    model: float32, on a CPU; weights are copied. carry: [L, N, H] each, copied.
    """

    @torch.no_grad()
    def __init__(self, model: CharLM, carry: Carry):
        layers, lanes, size = carry[0].shape
        first, gates = model.layers[0], len(model.layers[0].bias_ih_l0)
        self.mode = ("RNN_TANH", "RNN_RELU", "GRU", "LSTM").index(first.mode)
        symbols = model.input(torch.arange(model.vocab_size))  # [V, E]
        self.table = F.linear(symbols, first.weight_ih_l0, first.bias_ih_l0)  # [V, G·H]
        self.w_i, self.b_i = torch.empty(layers - 1, size, gates), torch.empty(layers - 1, gates)
        self.w_h, self.b_h = torch.empty(layers, size, gates), torch.empty(layers, gates)
        for i, layer in enumerate(model.layers):
            self.w_h[i], self.b_h[i] = layer.weight_hh_l0.t(), layer.bias_hh_l0
            if i:
                self.w_i[i - 1], self.b_i[i - 1] = layer.weight_ih_l0.t(), layer.bias_ih_l0
        self.b_out = model.output.bias.clone()
        copied = (model.output.weight.t(), carry[0], carry[len(model.cell.states) - 1])
        self.w_out, self.h, self.c = (t.clone(memory_format=torch.contiguous_format) for t in copied)
        self.x, self.y = torch.empty(lanes, gates), torch.empty(lanes, gates)
        self.logits, bits = torch.empty(lanes, model.vocab_size), np.empty(gates, np.int32)
        weights = (self.table, self.w_i, self.b_i, self.w_h, self.b_h, self.w_out, self.b_out)
        x, y, h, c, out = (t.numpy() for t in (self.x, self.y, self.h, self.c, self.logits))
        self._alone = (*(w.numpy() for w in weights), h[:, 0], c[:, 0], x[0], y[0], bits, out[0])
        self._layers = [(x, y, h[i], c[i], bits) for i in range(layers)]

    def step(self, ids: np.ndarray) -> np.ndarray:
        """Read one symbol per lane, int64[N]; returns logits float32[N, V], overwritten by the next step."""
        if len(ids) == 1:
            _step_alone(self.mode, ids, *self._alone)
            return self.logits.numpy()
        torch.index_select(self.table, 0, torch.from_numpy(ids), out=self.x)
        for i, views in enumerate(self._layers):
            if i:
                torch.addmm(self.b_i[i - 1], self.h[i - 1], self.w_i[i - 1], out=self.x)
            torch.addmm(self.b_h[i], self.h[i], self.w_h[i], out=self.y)
            _cells(self.mode, *views)
        torch.addmm(self.b_out, self.h[-1], self.w_out, out=self.logits)
        return self.logits.numpy()


@numba.njit
def _draw(logits, order, temperature, top_k, top_p, uniform, sums):
    """(symbol, another uniform number), from logits float32[V]. order: int64[n], see draw_symbols."""
    best = order[0]
    for i in order:
        if logits[i] > logits[best]:
            best = i
    if temperature == 0.0:
        return best, uniform
    total = 0.0
    top_k = min(top_k, len(order))
    for k in range(top_k):  # the likeliest has exp(0): a temperature near 0 does not overflow
        total += np.exp((np.float64(logits[order[k]]) - np.float64(logits[best])) / temperature)
        sums[k] = total
    kept = 1
    while kept < top_k and sums[kept - 1] < top_p * total:
        kept += 1
    point, below = uniform * sums[kept - 1], 0.0
    for k in range(kept):
        if sums[k] > point:
            return order[k], (point - below) / (sums[k] - below)  # uniform within the share of the symbol
        below = sums[k]
    return best, uniform


@compiled
def draw_symbols(logits, order, temperature, top_k, top_p, uniform, sums, following, states, ids):
    """ids[N] from logits float32[N, V] and uniform float64[N]. False: a logit is not finite.

    order: int64[N, V], the symbols to draw from, for top_k and top_p the likeliest first. sums: float64[V],
    overwritten. following: int8[S, V], the state after each symbol in each state, below 0 where it may not
    be drawn; states: int64[N], updated. Only where such a symbol is drawn, another one is, from the others.
    Compiled, because calls of numpy would take longer than the work on a row.
    """
    for row in range(len(logits)):
        for i in range(logits.shape[1]):
            if not np.isfinite(logits[row, i]):
                return False
        after = following[states[row]]
        ids[row], rest = _draw(logits[row], order[row], temperature, top_k, top_p, uniform[row], sums)
        if after[ids[row]] < 0:
            allowed = order[row][after[order[row]] >= 0]
            ids[row], rest = _draw(logits[row], allowed, temperature, top_k, top_p, rest, sums)
        states[row] = after[ids[row]]
    return True
