"""What every process of the tests of several ranks runs, and what forks these processes."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn

import new_process
import targetprop as tp
from cases import LOSSES, NETWORKS, Network, gradients, parameters, rand
from targetprop.influence import Influence
from targetprop.updates import kronecker

# Samples of each step: two ranks hold as many, one more on the first, and none on the second.
STEPS = (12, 7, 1, 9)


class Recurrent(nn.Module):
    """Uses two of its three maps at every step of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.state, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 5)
        for row in x.unbind(1):
            h = torch.tanh(self.read(row) + self.state(h))
        return self.last(h)


class Lstm(nn.Module):
    """Has its recurrent maps inside of a layer of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x)[0].mean(1))


ALL = NETWORKS | {"recurrent": Network(Recurrent, (3, 4)), "lstm": Network(Lstm, (3, 4))}


def cases() -> dict[str, tuple[str, Any, str]]:
    """List what is compared: name → network, method, loss."""
    every = {name: ("tanh", tp.method(name), "cross-entropy") for name in tp.METHODS}
    mirror = {"decoder": tp.WeightMirror(probes=5)}
    return every | {
        "convolutions": ("convolutions", tp.method("krylov", **mirror), "squared error"),
        "sequences": ("sequences", tp.method("krylov", **mirror), "squared error, sum"),
        "max pool": ("max pool", tp.method("learned-inverse"), "squared error"),
        "share": ("convolutions", tp.method("dtp"), "cross-entropy, weights"),
        "least squares of sequences": ("sequences", tp.method("least-squares", **mirror), "squared error"),
        "least squares, unbounded": (
            "tanh", tp.method("l-drl", update=tp.LeastSquares(bounded=False, unit_scale=False)), "a function",
        ),
        "delta rule": ("tanh", tp.method("gait", update=tp.DeltaRule()), "binary cross-entropy"),
        "ridge": ("tanh", tp.method("dtp", decoder=tp.Ridge()), "cross-entropy, smoothed"),
        "joint": (
            "tanh", tp.method("dtp", inversion=tp.InputSpace(steps=9), propagation="joint"), "squared error",
        ),
        "kronecker, wide sides": (
            "tanh", tp.method("kronecker", update=tp.Kronecker(most=4, leading=0.5)), "cross-entropy",
        ),
        "kronecker of convolutions": ("convolutions", tp.method("kronecker"), "squared error"),
        "kronecker of sequences": ("sequences", tp.method("kronecker"), "squared error"),
        "kronecker of a recurrent network": ("recurrent", tp.method("kronecker"), "cross-entropy"),
        "least squares of a recurrent network": ("recurrent", tp.method("least-squares"), "cross-entropy"),
        "kronecker of an LSTM": ("lstm", tp.method("kronecker"), "cross-entropy"),
        "Gauss-Newton": ("tanh", tp.method("drl", output_target=tp.GaussNewtonStep()), "cross-entropy"),
        "backprop of convolutions": ("convolutions", tp.method("backprop"), "cross-entropy, weights"),
    }  # fmt: skip


@patch.object(kronecker, "_FEWEST", 1)
@patch.object(kronecker, "_SETTLED", 1)  # in the first step a product is formed, in later ones rows are cheaper
def steps(case: tuple[str, Any, str], group: Any, rank: int = 0, size: int = 1) -> list[dict[str, Any]]:
    """Train on this rank's share of some batches, and keep all that must not depend on the number of ranks.

    Only rank 0 knows the seed: the others have to be told.
    """
    network, method, loss = ALL[case[0]], case[1], LOSSES[case[2]]
    model = network.build(seed=rank)
    example = network.batch()
    engine = tp.TargetPropagation(
        model, loss.loss, example_input=example, method=method, seed=7 + rank, process_group=group
    )
    optimizer = torch.optim.SGD(parameters(model), lr=0.05)
    found = []
    for step, n in enumerate(STEPS):
        x, y = network.batch(n, seed=30 + step), loss.labels(n)
        if step != 1:  # the second step adds to the gradients of the first
            optimizer.zero_grad()
        report = engine.backward(x[rank::size], y[rank::size], measure=True)
        if step != 0:
            optimizer.step()
        found.append(
            {
                "loss": report.loss,
                "decoder loss": report.decoder_loss,
                "gradients": gradients(model),
                "residuals": report.residuals(),
                "norms": report.delta_norms,
                "status": {name: outcome.status for name, outcome in report.outcomes.items()},
            }
        )
    if engine.train_decoders(network.batch(8)[rank::size]) is not None:
        found[-1]["decoders"] = dict(engine.bank.state_dict())
    found[-1]["weights"] = [p.detach() for p in parameters(model)]
    return found


def run_all(rank: int, size: int, folder: str) -> None:
    """Write what every case gives on this rank, and what is refused."""
    found = {name: steps(case, dist.group.WORLD, rank, size) for name, case in cases().items()}
    results = found, refusals(rank), skips(dist.group.WORLD, rank, size), measured(rank, size)
    torch.save(results, Path(folder) / f"{rank}.pt")


SPOILT = {
    ("backprop", "input"): "the input holds NaN",
    ("backprop", "gradient"): "the gradient of 0.weight is NaN",
    ("dtp", "input"): "the input holds NaN",
    ("dtp", "decoder"): "the decoders' gradient is NaN",
    ("dtp", "gradient"): "the gradient of layer 0 is NaN",
    ("least-squares", "input"): "the input holds NaN",
    ("least-squares", "labels"): "the loss or its gradient is NaN",
    ("least-squares", "targets"): "the target of layer 0 is NaN",
}


class Spoiler(Influence):
    """Makes targets that are not numbers, on the rank where it is told to."""

    spoilt: ClassVar[Tensor] = torch.tensor(False)

    def __call__(self, deltas: list[Tensor], delta_out: Tensor) -> list[Tensor]:
        return [torch.where(self.spoilt, torch.nan, delta) for delta in deltas]


def skips(group: Any, rank: int = 0, size: int = 1) -> dict[tuple[str, str], tuple[list[str | None], Any]]:
    """Take a good step, one that the last rank spoils, and a good one; why each was skipped, and what all end with."""
    found = {}
    for name, what in SPOILT:
        network, spoilt, last = NETWORKS["tanh"], torch.tensor(False), rank == size - 1
        model, method = network.build(), tp.method(name, influence=Spoiler()) if what == "targets" else name
        engine = tp.TargetPropagation(
            model, nn.MSELoss(), example_input=network.batch(), method=method, seed=3, on_divergence="skip",
            process_group=group,
        )  # fmt: skip
        if what in ("decoder", "gradient") and last:
            parameter = next(engine.bank.parameters()) if what == "decoder" else parameters(model)[0]
            parameter.register_hook(lambda grad, spoilt=spoilt: torch.where(spoilt, torch.nan, grad))
        reasons = []
        for bad in (False, True, False):
            x, y = network.batch(6, seed=50), rand(6, 3, seed=51)
            (x if what == "input" else y)[5] += float("nan") if bad and what in ("input", "labels") else 0.0
            spoilt.fill_(bad)
            Spoiler.spoilt.fill_(bad and last)
            reasons.append(engine.backward(x[rank::size], y[rank::size]).skipped)
        state = engine.state_dict()
        found[name, what] = reasons, (gradients(model), state.get("decoders"), state.get("update"))
    return found


class TimeFirst(nn.Module):
    """Has time on the first axis where its layers end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.second(torch.tanh(self.first(x.transpose(0, 1)))))
        return self.last(h).mean(0)


def measured(rank: int, size: int) -> int:
    """Count the residuals that a rank reports of a layer with three times first; rank 1 has as many samples."""
    model, x, y = TimeFirst().double(), rand(7, 3, 4, seed=1), rand(7, 3, seed=2)
    group = dist.group.WORLD
    engine = tp.TargetPropagation(model, nn.MSELoss(), example_input=x, method="krylov", process_group=group)
    residual = engine.backward(x[rank::size], y[rank::size], measure=True).outcomes["second"].forward_residual
    assert residual is not None
    return len(residual)


def refusals(rank: int) -> dict[str, str]:
    """Collect the messages of what goes wrong on several ranks, and check that nothing was changed by it."""
    found, x = {}, rand(6, 4, seed=rank)
    make = partial(tp.TargetPropagation, example_input=x, process_group=dist.group.WORLD)

    def note(name: str, kind: type[Exception], action: Callable[[], object]) -> None:
        try:
            action()
        except kind as error:
            found[name] = str(error)

    norm = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    for method in ("backprop", "krylov"):
        note(f"batch norm, {method}", ValueError, lambda m=method: make(norm, nn.MSELoss(), method=m))
        engine = make(norm.eval(), nn.MSELoss(), method=method)
        norm.train()
        note(f"later batch norm, {method}", ValueError, lambda e=engine: e.backward(x, rand(6, 3)))
    wider = nn.Sequential(nn.Linear(4, 3 + rank)).double()
    note("other model", ValueError, lambda: make(wider, nn.MSELoss()))
    model = NETWORKS["tanh"].build()
    for method in ("backprop", "dtp"):
        engine = make(model, nn.MSELoss(), method=method)
        before = str(engine.state_dict())
        for name, values in (("data", x.clone()), ("labels", x)):
            y = rand(6, 3)
            (values if name == "data" else y)[3] = float("nan") if rank == 1 else 0.0
            note(f"{name}, {method}", FloatingPointError, lambda e=engine, v=values, y=y: e.backward(v, y))
        note(f"no samples, {method}", ValueError, lambda e=engine: e.backward(x[:0], rand(6, 3)[:0]))
        assert str(engine.state_dict()) == before and not gradients(model).any()
    return found


def start(folder: Path, *jobs: tuple[Callable[[int, int, str], None], int]) -> None:
    """Run functions on several ranks each, one after the other, and wait for them; a new process forks the ranks."""
    code, said = new_process.run(_play_all, folder, jobs)
    assert code == 0, said[-5000:]


def _play_all(folder: Path, jobs: tuple[tuple[Callable[[int, int, str], None], int], ...]) -> None:
    for work, size in jobs:
        _play(folder, work, size)


def _play(folder: Path, work: Callable[[int, int, str], None], size: int) -> None:
    ranks = [_fork(rank, work, size, folder) for rank in range(size)]
    while ranks:
        child, code = os.wait()
        ranks.remove(child)
        if code:  # the others would wait for it
            for rank in ranks:
                os.kill(rank, signal.SIGKILL)
            sys.exit(f"{work.__module__}.{work.__name__} failed on a rank")


def _fork(rank: int, work: Callable[[int, int, str], None], size: int, folder: Path) -> int:
    """Fork a rank; returns its process id."""
    child = os.fork()
    if child:
        return child
    status, meeting = 1, f"file://{folder}/{work.__name__}"
    try:
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size, timeout=timedelta(seconds=240))
        work(rank, size, str(folder))
        dist.destroy_process_group()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)
