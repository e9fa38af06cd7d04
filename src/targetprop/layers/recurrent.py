"""Recurrent layers of torch written out: the same values, and every linear map a call that can be seen.

``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` and their cells run in one torch call, in which what each step asks of a map cannot
be seen. Written out they take a call of ``linear`` for all inputs, and one for each step:

    z = W x + b + U h + c    rnn    h ← φ(z)
                             lstm   c ← σ(z_f) c + σ(z_i) tanh(z_g),  h ← [P] σ(z_o) tanh(c)
                             gru    n = tanh(W_n x + b_n + σ(z_r) (U_n h + c_n)),  h ← n + σ(z_z) (h − n)

>>> import torch
>>> from torch import nn
>>> layer, x = nn.GRU(3, 2, num_layers=2, bidirectional=True), torch.randn(5, 4, 3)
>>> h = torch.zeros(4, 4, 2)
>>> out, end = write_out("gru")(x, h, list(layer.parameters()), True, 2, 0.0, False, True, False)
>>> bool(torch.allclose(out, layer(x, h)[0], atol=1e-6))
True
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State, Tensor, Tensor | None], State]


def _simple(activation: Callable[[Tensor], Tensor]) -> Cell:
    def cell(given: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
        return (activation(given + functional.linear(state[0], weight, bias)),)

    return cell


def _lstm(given: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
    taken, kept, new, shown = (given + functional.linear(state[0], weight, bias)).chunk(4, -1)
    c = torch.sigmoid(kept) * state[1] + torch.sigmoid(taken) * torch.tanh(new)
    return torch.sigmoid(shown) * torch.tanh(c), c


def _gru(given: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
    of_x, of_h = given.chunk(3, -1), functional.linear(state[0], weight, bias).chunk(3, -1)
    reset, kept = torch.sigmoid(of_x[0] + of_h[0]), torch.sigmoid(of_x[1] + of_h[1])
    new = torch.tanh(of_x[2] + reset * of_h[2])
    return (new + kept * (state[0] - new),)


_CELLS: dict[str, Cell] = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _simple(torch.tanh), "rnn_relu": _simple(torch.relu)}


def write_out(name: str) -> Callable[..., Any]:
    """Give what computes the same as a recurrent function of torch.

    Args:
        name: the function's name, such as ``"lstm"`` or ``"gru_cell"``; see `is_recurrent`.

    Returns:
        The function; it takes what torch's takes, and returns what it returns.
    """
    cell = _CELLS[name.removesuffix("_cell")]
    return partial(_one_step if name.endswith("_cell") else _all_steps, cell)


def is_recurrent(name: str, args: Sequence[Any]) -> bool:
    """Say whether a call is one that `write_out` knows; one of packed sequences is none."""
    known = name.removesuffix("_cell") in _CELLS and len(args) > 1
    return known and not (isinstance(args[1], Tensor) and not args[1].is_floating_point())


def _one_step(
    cell: Cell, x: Tensor, state: Tensor | State, w_x: Tensor, w_h: Tensor, b_x: Tensor | None = None,
    b_h: Tensor | None = None,
) -> Tensor | State:  # fmt: skip
    states = state if isinstance(state, tuple) else (state,)
    h, *rest = cell(functional.linear(x, w_x, b_x), states, w_h, b_h)
    return (h, *rest) if rest else h


def _all_steps(
    cell: Cell, x: Tensor, start: Tensor | State, weights: Sequence[Tensor], biased: bool, layers: int, dropout: float,
    training: bool, bidirectional: bool, batch_first: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    starts = start if isinstance(start, tuple | list) else (start,)
    runs, ends = layers * (1 + bidirectional), []
    own, time = len(weights) // runs, int(batch_first)  # samples stay on their axis, where layers may end
    for layer in range(layers):
        outs = []
        for run in range(layer * (1 + bidirectional), (layer + 1) * (1 + bidirectional)):
            backwards = bidirectional and run % 2 == 1
            held = weights[run * own : (run + 1) * own]
            out, end = _direction(cell, x, tuple(s[run] for s in starts), held, biased, backwards, time)
            outs.append(out)
            ends.append(end)
        x = torch.cat(outs, -1) if bidirectional else outs[0]
        if dropout and training and layer < layers - 1:  # in torch's order, so that the random numbers are the same
            x = functional.dropout(x.transpose(0, time).contiguous(), dropout).transpose(0, time)
    return (x, *(torch.stack(states) for states in zip(*ends, strict=True)))


def _direction(
    cell: Cell, x: Tensor, state: State, weights: Sequence[Tensor], biased: bool, backwards: bool, time: int
) -> tuple[Tensor, State]:
    b_x, b_h = weights[2:4] if biased else (None, None)
    projection = weights[-1] if len(weights) > (4 if biased else 2) else None
    outs, steps = [], functional.linear(x, weights[0], b_x).unbind(time)
    for given in reversed(steps) if backwards else steps:
        state = cell(given, state, weights[1], b_h)
        if projection is not None:
            state = (functional.linear(state[0], projection), *state[1:])
        outs.append(state[0])
    return torch.stack(outs[::-1] if backwards else outs, time), state
