"""Recurrent layers of torch written out: against torch's own kernels, and against layers that are written by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import targetprop as tp
from cases import DTYPE, rand
from targetprop.layers.recurrent import is_recurrent, write_out

NAMES = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN, "rnn_relu": nn.RNN}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first, both ways": {"batch_first": True, "bidirectional": True},
    "two without bias": {"num_layers": 2, "bias": False},
    "three with dropout": {"num_layers": 3, "dropout": 0.5},
    "two with dropout, batch first": {"num_layers": 2, "dropout": 0.5, "batch_first": True},
    "two, both ways": {"num_layers": 2, "bidirectional": True},
}
PROJECTED: dict[str, dict[str, Any]] = {
    "projected": {"proj_size": 2},
    "two projected, both ways": {"num_layers": 2, "proj_size": 2, "bidirectional": True},
    "projected without bias": {"proj_size": 2, "bias": False},
}
CASES = {f"{name}, {kind}": (name, options) for name in NAMES for kind, options in OPTIONS.items()}
CASES |= {f"lstm, {kind}": ("lstm", options) for kind, options in PROJECTED.items()}


def same(found: list[Tensor], wanted: list[Tensor], given: list[Tensor]) -> None:
    """Compare results, and the gradients of a function of them."""
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)
    gradients = [
        torch.autograd.grad(sum((t.sin().sum() for t in ts), torch.zeros(())), given) for ts in (found, wanted)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_out_is_what_torch_computes(case: str) -> None:
    name, options = CASES[case]
    more = {"nonlinearity": name.removeprefix("rnn_")} if name.startswith("rnn") else {}
    layer = NAMES[name](3, 4, **options, **more).to(DTYPE)
    runs = layer.num_layers * (2 if layer.bidirectional else 1)
    x, h, c = rand(5, 6, 3), rand(runs, 5 if layer.batch_first else 6, layer.proj_size or 4), rand(runs, 6, 4, seed=1)
    c = c[:, : h.shape[1]].contiguous()
    start = (h, c) if name == "lstm" else h
    given = [t.requires_grad_() for t in (x, *(start if isinstance(start, tuple) else (start,)), *layer.parameters())]
    torch.manual_seed(5)
    out, end = layer(x, start)
    torch.manual_seed(5)
    found = write_out(name)(
        x, start, list(layer.parameters()), layer.bias, layer.num_layers, layer.dropout, True, layer.bidirectional,
        layer.batch_first,
    )  # fmt: skip
    same(list(found), [out, *(end if isinstance(end, tuple) else (end,))], given)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_cells_are_what_torch_computes(name: str, bias: bool) -> None:
    kind = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}.get(name, nn.RNNCell)
    more = {"nonlinearity": name.removeprefix("rnn_")} if name.startswith("rnn") else {}
    cell, x, state = kind(3, 4, bias=bias, **more).to(DTYPE), rand(5, 3), (rand(5, 4), rand(5, 4, seed=1))
    start = state if name == "lstm" else state[0]
    given = [t.requires_grad_() for t in (x, *state[: len(start) if name == "lstm" else 1], *cell.parameters())]
    found, wanted = write_out(f"{name}_cell")(x, start, *cell.parameters()), cell(x, start)
    same(*([t] if isinstance(t, Tensor) else list(t) for t in (found, wanted)), given)


class Fused(nn.Module):
    """Reads a sequence with a layer of torch."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.layer, self.last = kind(2, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x)[0].sum(1))


class OfCells(Fused):
    """Reads it with a cell."""

    def forward(self, x: Tensor) -> Tensor:
        state, outs = None, []
        for row in x.unbind(1):
            state = self.layer(row, state)
            outs.append(state[0] if isinstance(state, tuple) else state)
        return self.last(torch.stack(outs, 1).sum(1))


class ByHand(nn.Module):
    """Reads it with two linear maps, one for all inputs and one for the state of each step, or both at each step."""

    def __init__(self, name: str, *, each: bool = False) -> None:
        super().__init__()
        gates = {"lstm": 16, "gru": 12}.get(name, 4)
        self.of_x, self.of_h, self.last, self.name = nn.Linear(2, gates), nn.Linear(4, gates), nn.Linear(4, 3), name
        self.each = each

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(len(x), 4, dtype=x.dtype)  # as torch's layers make it: no use of a map on data
        outs = []
        for given in x.unbind(1) if self.each else self.of_x(x).unbind(1):
            one, other = self.of_x(given) if self.each else given, self.of_h(h)
            if self.name == "lstm":
                i, f, g, o = (one + other).chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
            elif self.name == "gru":
                (r, z, n), (r_h, z_h, n_h) = one.chunk(3, 1), other.chunk(3, 1)
                z = (z + z_h).sigmoid()
                h = (1 - z) * (n + (r + r_h).sigmoid() * n_h).tanh() + z * h
            else:
                h = (one + other).tanh()
            outs.append(h)
        return self.last(torch.stack(outs, 1).sum(1))


LAYERS = {"lstm": (nn.LSTM, nn.LSTMCell), "gru": (nn.GRU, nn.GRUCell), "rnn": (nn.RNN, nn.RNNCell)}
UPDATES = {"least-squares": tp.LeastSquares(), "kronecker": tp.Kronecker(observe=2, every=2)}


def train(net: nn.Module, update: Any) -> list[Tensor]:
    """Take steps from the same start, and give all parameters."""
    in_order = sorted(net.to(DTYPE).parameters(), key=lambda p: (p.shape[0] == 3, -p.dim(), p.shape[-1]))
    for number, p in enumerate(in_order):
        p.data = (rand(p.numel(), seed=number) / 2).view(p.shape)
    x, y = rand(12, 5, 2), torch.arange(12) % 3
    method = tp.method("kronecker", decoder=tp.Exact(w=0.0, damping=1.0), update=update)
    engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x, method=method, seed=0)
    optimiser = torch.optim.SGD(net.parameters(), 1.0)
    for _ in range(4):
        optimiser.zero_grad()
        engine.backward(x, y)
        optimiser.step()
    return [*(p.detach() for p in net.parameters())]


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_torch_take_the_steps_of_those_written_by_hand(name: str, update: str) -> None:
    fused, cells = LAYERS[name]
    found, wanted = train(Fused(fused), UPDATES[update]), train(ByHand(name), UPDATES[update])
    in_order = [found[i] for i in (0, 2, 1, 3, 4, 5)]
    torch.testing.assert_close(in_order, wanted, rtol=1e-8, atol=1e-10)
    found = train(OfCells(lambda *sizes, batch_first: cells(*sizes)), UPDATES[update])
    in_order = [found[i] for i in (0, 2, 1, 3, 4, 5)]
    torch.testing.assert_close(in_order, train(ByHand(name, each=True), UPDATES[update]), rtol=1e-8, atol=1e-10)


def test_only_updates_that_solve_for_maps_have_layers_written_out() -> None:
    for method, names in (("l-drl", {"lstm"}), ("kronecker", set())):
        net = Fused(nn.LSTM)
        engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=rand(2, 5, 2).float(), method=method)
        plan = engine.network.plan(rand(2, 5, 2).float(), labelled=False)
        assert {action.name for action in plan.actions.values()} & {"lstm"} == names


class Packed(Fused):
    """Reads sequences of several lengths."""

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, torch.arange(len(x)) % 5 + 1, batch_first=True, enforce_sorted=False)
        return self.last(self.layer(packed)[1][0][-1])


def test_packed_sequences_are_left_to_torch() -> None:
    torch.manual_seed(0)
    net, x, y = Packed(nn.LSTM), rand(12, 5, 2).float(), torch.arange(12) % 3
    engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x, method="kronecker", seed=0)
    optimiser, losses = torch.optim.SGD(net.parameters(), 1.0), []
    for _ in range(30):
        optimiser.zero_grad()
        losses.append(float(engine.backward(x, y).loss))
        optimiser.step()
    assert losses[-1] < 0.8 * losses[0]


def test_calls_that_are_not_known_are_left_alone() -> None:
    x, state = rand(5, 6, 3).float(), (rand(1, 6, 4).float(), rand(1, 6, 4).float())
    assert is_recurrent("lstm", (x, state)) and not is_recurrent("linear", (x, state))
    assert is_recurrent("gru", (x, state[0])) and not is_recurrent("gru", (x[0], torch.tensor([3, 2, 1])))
