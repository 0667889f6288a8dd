"""Recurrent cells: CELLS lists them by the name that model.cell selects. A new cell is an entry there.

Shapes: B lanes, T window, E input, H hidden, L layers, G gates. Any float dtype.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.backends.cudnn import rnn
from torch.func import functional_call

from charlm.checked import choice_advice
from charlm.config.fields import ModelConfig
from charlm.model.layers import Cast, bernoulli_mask

Carry = tuple[Tensor, ...]


@dataclass(frozen=True)
class Cell:
    """A recurrent cell. To add one, write a layer as an nn.Module and set CELLS["name"] = Cell(...).

    ONNX needs a loop over time for windows of any length: put the loop into a function, and call it compiled
    by torch.jit.script while torch.jit.is_tracing(). Not in training: its last bits change with warm-up.
    """

    title: str
    """Name in texts, such as LSTM."""
    layer: Callable[[int, ModelConfig], nn.Module]
    """(E, config) → a layer, whose forward(x [B, T, E], state) returns (out [B, T, H], state). A state is a
    tuple of [1, B, H], one for each name in `states`. Only the layer's parameters are saved."""
    states: tuple[str, ...] = ("h",)
    """Names of the tensors that a layer carries to the next window."""
    gates: int = 1
    """Values that a unit computes per character, each from the input and the state: the work of a layer."""
    input_weight: str | None = None
    """Name of the layer's parameter [G·H, E] whose columns belong to symbols if the input is one-hot; without
    it such a model cannot start from another vocabulary's weights."""
    recurrent_weight: str | None = None
    """Name of the layer's parameter that model.weight_drop masks."""

    in_one_call = False  # several layers in one call of window()

    def window(
        self, layers: list[nn.Module], x: Tensor, state: Carry, dtype: torch.dtype, drop: float = 0.0
    ) -> tuple[Tensor, Carry]:
        """Layers over a window: x [B, T, E], state [len(layers), B, H] each → (out [B, T, H], state).

        dtype: to compute in; gradients reach the float32 weights. drop: share of recurrent weights to mask.
        """
        (layer,) = layers
        x, state = x.to(dtype), tuple(s.to(dtype) for s in state)
        if dtype == torch.float32 and not drop:
            return layer(x, state)
        weights = dict(layer.named_parameters())
        if drop:
            weight = weights[self.recurrent_weight]
            weights[self.recurrent_weight] = weight * bernoulli_mask(weight, drop)
        return functional_call(layer, {name: w.to(dtype) for name, w in weights.items()}, (x, state))

    def step(self, layer: nn.Module, x: Tensor, state: Carry) -> tuple[Tensor, Carry]:
        """A layer over one symbol, float32: x [B, E], state [B, H] each → (out [B, H], state)."""
        out, state = layer(x[:, None], tuple(s[None] for s in state))
        return out[:, 0], tuple(s[0] for s in state)


class TorchCell(Cell):
    """A cell of torch.nn, computed by cuDNN on a GPU. Its layers are nn.LSTM, nn.GRU or nn.RNN."""

    in_one_call = True

    def window(self, layers, x, state, dtype, drop=0.0):
        first, exact = layers[0], dtype == torch.float32
        mask = bernoulli_mask(first.weight_hh_l0, drop) if drop else None
        weights = [w for layer in layers for w in layer._flat_weights]
        if mask is not None or not exact:  # autocast would run cuDNN's recurrent layers in fp16 always
            weights = [*Cast.apply(dtype, mask, *weights)]
        traced = torch.jit.is_tracing()  # ONNX requires a layer as one node
        if exact and len(layers) == 1 and first.mode == "GRU" and x.device.type == "cpu" and not traced:
            out, h = GruWindow.apply(x, state[0][0], *weights)
            return out, (h[None],)
        if exact and len(layers) == 1 and mask is None:  # by the module, so that its hooks run
            out, new = first(x, state if len(state) == 2 else state[0])
            return out, new if isinstance(new, tuple) else (new,)
        state = tuple(s.to(x.dtype) for s in state)
        kernel = getattr(torch._VF, first.mode.lower())
        options = (True, len(layers), 0.0, first.training, False, True)
        out, *new = kernel(x, state if len(state) == 2 else state[0], weights, *options)
        return out, tuple(new)

    def step(self, layer, x, state):
        kernel = getattr(torch, f"{layer.mode.lower()}_cell")
        new = kernel(x, state if len(state) == 2 else state[0], *layer._flat_weights)
        new = new if isinstance(new, tuple) else (new,)
        return new[0], new


def flatten_weights(layers: nn.ModuleList, hidden_size: int) -> None:
    """Move the weights of a TorchCell's layers to one buffer, which one call of cuDNN for all requires."""
    weights = [w for layer in layers for w in layer._flat_weights]
    if torch.backends.cudnn.is_acceptable(weights[0]) and torch._use_cudnn_rnn_flatten_weight():
        sizes = (layers[0].input_size, rnn.get_cudnn_mode(layers[0].mode), hidden_size, 0, len(layers))
        with torch.no_grad(), torch.cuda.device_of(weights[0]):
            torch._cudnn_rnn_flatten_weight(weights, 4, *sizes, True, False)


def _lstm(input_size: int, config: ModelConfig) -> nn.LSTM:
    size = config.hidden_size
    layer = nn.LSTM(input_size, size, batch_first=True)
    with torch.no_grad():  # gates in the order input, forget, cell, output
        layer.bias_ih_l0[size : 2 * size] = config.forget_bias
        layer.bias_hh_l0[size : 2 * size] = 0
    return layer


def _gru(input_size: int, config: ModelConfig) -> nn.GRU:
    return nn.GRU(input_size, config.hidden_size, batch_first=True)


def _rnn(input_size: int, config: ModelConfig) -> nn.RNN:
    return nn.RNN(input_size, config.hidden_size, batch_first=True, nonlinearity=config.nonlinearity)


WEIGHTS = {"input_weight": "weight_ih_l0", "recurrent_weight": "weight_hh_l0"}
CELLS: dict[str, Cell] = {
    "lstm": TorchCell("LSTM", _lstm, ("h", "c"), gates=4, **WEIGHTS),
    "gru": TorchCell("GRU", _gru, gates=3, **WEIGHTS),
    "rnn": TorchCell("RNN", _rnn, **WEIGHTS),
}


def cell_of(config: ModelConfig) -> Cell:
    """The cell named model.cell. Raises CharlmError for an unknown name, or an option it does not support."""
    cell = CELLS.get(config.cell)
    config.require(cell, "cell", choice_advice(config.cell, list(CELLS)))
    allowed = not config.weight_drop or cell.recurrent_weight
    config.require(allowed, "weight_drop", f"not for cell {config.cell}; set it to 0")
    return cell


class GruWindow(torch.autograd.Function):
    """A GRU layer over a window on a CPU; torch's own runs a dozen small kernels per step.

    The equations are nn.GRU's (biases b_i of the input, b_h of the hidden state; gates in the order r, z, n):

        r, z = sigmoid(x W_i + b_i + h W_h + b_h)        a_n = h W_hn + b_hn
        n    = tanh(x W_in + b_in + r · a_n)             h'  = n + z · (h - n)

    What depends on x alone is one product over the window, and so is every gradient of a weight. Per step
    remain one product and four small kernels forward, one product and three backward: with g the gradient at
    h', those at the pre-activations are g times factors that are computed for all steps at once.
    """

    @staticmethod
    def forward(ctx, x, h, w_i, w_h, b_i, b_h):
        """x [B, T, E], h [B, H], weights as in nn.GRU → out [B, T, H], the last h [B, H]."""
        size, lanes, steps = h.shape[1], len(x), x.shape[1]
        x = x.transpose(0, 1).contiguous()  # [T, B, E]
        gates = torch.addmm(b_i, x.flatten(0, 1), w_i.t()).view(steps, lanes, 3 * size)
        n = gates[:, :, 2 * size :].clone()
        gates[:, :, : 2 * size] += b_h[: 2 * size]
        gates[:, :, 2 * size :] = b_h[2 * size :]
        states = h.new_empty(steps + 1, lanes, size)
        states[0] = h
        r, z, a_n = (part.unbind() for part in gates.split(size, 2))
        r_z, w, h = gates[:, :, : 2 * size].unbind(), w_h.t(), states.unbind()
        for t, (gate, new) in enumerate(zip(gates.unbind(), n.unbind(), strict=True)):
            gate.addmm_(h[t], w)
            r_z[t].sigmoid_()
            new.addcmul_(r[t], a_n[t]).tanh_()
            torch.lerp(new, h[t], z[t], out=h[t + 1])
        ctx.save_for_backward(x, w_i, w_h, gates, n, states)
        return states[1:].transpose(0, 1), states[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, grad_h):
        x, w_i, w_h, gates, n, states = ctx.saved_tensors
        size = n.shape[2]
        r, z, a_n = gates.split(size, 2)
        at_n = (1 - z) * (1 - n * n)
        factors = torch.empty_like(gates)
        of_r, of_z, of_a = factors.split(size, 2)
        torch.mul(at_n, r, out=of_a)
        torch.mul(of_a, a_n * (1 - r), out=of_r)
        torch.mul(z * (1 - z), states[:-1] - n, out=of_z)
        g = grad_out.transpose(0, 1).clone(memory_format=torch.contiguous_format)  # becomes that at every h'
        by_gate, before = factors.unflatten(2, (3, size)), grad_h
        views = zip(*(v.unbind() for v in (g, z, by_gate, factors)), strict=True)
        for at_h, update, of_gates, factor in reversed(list(views)):
            at_h += before
            of_gates *= at_h[:, None]
            before = torch.addmm(at_h * update, factor, w_h)
        at_gates = factors.flatten(0, 1)  # by now the gradients at r, z, a_n
        grad_w_h, grad_b_h = at_gates.t() @ states[:-1].flatten(0, 1), at_gates.sum(0)
        torch.mul(g, at_n, out=of_a)  # the pre-activation of n, from the input's side
        grad_x = (at_gates @ w_i).view_as(x).transpose(0, 1) if ctx.needs_input_grad[0] else None
        return grad_x, before, at_gates.t() @ x.flatten(0, 1), grad_w_h, at_gates.sum(0), grad_b_h
