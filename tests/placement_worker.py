"""What every process of the tests of layers on several devices runs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import targetprop as tp
from cases import LOSSES, NETWORKS, parameters, rand
from targetprop.layers import record_layers

# Where the layers are cut in two, and the ranks below and above.
OWNERS = {"halves": (2, 0, 1), "first alone": (1, 0, 1), "upside down": (2, 1, 0)}


class Two(nn.Module):
    """Two layers in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh())


def cases() -> dict[str, tuple[str, Any, str, str]]:
    """List what is compared: name → network, method, loss, owners."""
    apart = [name for name in tp.METHODS if tp.method(name).propagation in ("layerwise", "joint")]
    local = [name for name in apart if tp.method(name).decoder.local]
    every = {name: ("tanh", tp.method(name), "cross-entropy", "halves") for name in local}
    mirror = {"decoder": tp.WeightMirror(probes=5)}
    sweeps = {"propagation": "joint", "influence": tp.Influence(normalise=True)}
    for owners in OWNERS:
        every[f"joint, {owners}"] = (
            "tanh",
            tp.method("learned-inverse", inversion=tp.InputSpace(steps=9), **sweeps),
            "squared error",
            owners,
        )
        every[f"convolutions, {owners}"] = ("convolutions", tp.method("krylov", **mirror), "squared error", owners)
    mixed = tp.InputSpace(steps=9, anderson=3, alpha=0.5)
    return every | {
        "joint, Anderson": ("tanh", tp.method("l-drl", inversion=mixed, **sweeps), "squared error", "first alone"),
        "joint, weight inverses": (
            "tanh", tp.method("iterated", propagation="joint", inversion=tp.InputSpace(steps=9)), "squared error",
            "first alone",
        ),
        "two updates": (
            "tanh", tp.method("dtp", decoder=tp.Denoising(updates=2)), "cross-entropy", "first alone",
        ),
        "warm mirrors": (
            "sequences", tp.method("least-squares", decoder=tp.WeightMirror(probes=5, warmup=3)), "squared error",
            "halves",
        ),
        "ridge": ("tanh", tp.method("dtp", decoder=tp.Ridge()), "cross-entropy", "halves"),
        "kronecker": ("tanh", tp.method("kronecker"), "cross-entropy", "halves"),
        "list": ("list", tp.method("dtp"), "cross-entropy", "halves"),
        "delta rule": ("tanh", tp.method("gait", update=tp.DeltaRule()), "squared error", "upside down"),
    }  # fmt: skip


def placed(model: Any, owners: str, group: Any, network: str = "tanh") -> Any:
    """Map the layers of a model to ranks; None for one process alone."""
    if group is None:
        return None
    x = NETWORKS[network].batch().to(parameters(model)[0].dtype)
    names = [layer.name for layer in record_layers(model, x).layers]
    cut, below, above = OWNERS[owners]
    return tp.Placement(group, {name: below if index < cut else above for index, name in enumerate(names)})


def steps(case: tuple[str, Any, str, str], group: Any, rank: int = 0, data: Any = None) -> dict[str, Any]:
    """Train on some batches, and keep all that must not depend on where the layers are."""
    network, method, loss = NETWORKS[case[0]], case[1], LOSSES[case[2]]
    model = network.build(seed=rank)
    engine = tp.TargetPropagation(
        model, loss.loss, example_input=network.batch(), method=method, seed=7 + rank,
        placement=placed(model, case[3], group, case[0]), process_group=data,
    )  # fmt: skip
    optimizer, found = torch.optim.Adam(parameters(model), lr=0.01), []
    mine, all_ = (0, 1) if data is None else (dist.get_rank(data), dist.get_world_size(data))
    for step in range(3):
        x, y = network.batch(8, seed=30 + step), loss.labels(8)
        optimizer.zero_grad()
        report = engine.backward(x[mine::all_], y[mine::all_], measure=True)
        own = [None if p.grad is None else p.grad.clone() for p in parameters(model)]
        optimizer.step()
        outcomes = {name: (o.status, o.steps, o.forward_residual) for name, o in report.outcomes.items()}
        found.append(
            {
                "loss": report.loss,
                "output": report.output,
                "decoder loss": report.decoder_loss,
                "norms": report.delta_norms,
                "asked": report.target_norms,
                "outcomes": outcomes,
                "own gradients": own,
            }
        )
    trained = engine.train_decoders(network.batch(8, seed=50)[mine::all_])
    state = engine.state_dict()
    return {
        "steps": found,
        "trained": trained,
        "weights": [p.detach() for p in parameters(model)],
        "state": {key: state[key] for key in ("decoders", "decoder_optimizer", "update", "generators")},
    }


def run_two(rank: int, size: int, folder: str) -> None:
    """Write what every case gives on this rank, and what is refused."""
    group = dist.group.WORLD
    found = {name: steps(case, group, rank) for name, case in cases().items()}
    torch.save(
        (found, resumed(group), refusals(rank), spoilt(group, rank), rounded(group)), Path(folder) / f"two{rank}.pt"
    )


def run_four(rank: int, size: int, folder: str) -> None:
    """Spread layers over two processes and the batch over two such pairs."""
    layers = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    rows = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    found = {
        name: steps(grid_case(name), layers[rank // 2], rank, rows[rank % 2])
        for name in ("dtp", "least-squares", "joint")
    }
    torch.save(found, Path(folder) / f"four{rank}.pt")


def grid_case(name: str) -> tuple[str, Any, str, str]:
    """Give a case by a shorter name."""
    return cases()["joint, first alone" if name == "joint" else name]


def resumed(group: Any) -> list[Any]:
    """Go on from the state of another engine, and return the weights."""
    case, network = cases()["dtp"], NETWORKS["tanh"]
    model = network.build()
    make = partial(tp.TargetPropagation, model, nn.MSELoss(), example_input=network.batch(), method=case[1])
    first = make(placement=placed(model, "halves", group), seed=1)
    first.backward(network.batch(8), rand(8, 3))
    second = make(placement=placed(model, "upside down", group), seed=2)
    second.load_state_dict(first.state_dict())
    second.backward(network.batch(8, seed=5), rand(8, 3))
    return [second.state_dict()["decoders"], second.state_dict()["decoder_optimizer"]]


def rounded(group: Any, precision: torch.dtype = torch.bfloat16) -> dict[str, list[Any]]:
    """Take a step under autocast, and return what reaches each layer's parameters here."""
    found, network = {}, NETWORKS["tanh"]
    for name, method in (("joint", cases()["joint, first alone"][1]), ("krylov", tp.method("krylov"))):
        model = network.build().float()
        engine = tp.TargetPropagation(
            model, nn.MSELoss(), example_input=network.batch().float(), method=method, seed=3,
            placement=placed(model, "first alone", group),
        )  # fmt: skip
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            engine.backward(network.batch(8).float(), rand(8, 3).float(), measure=True)
        found[name] = [p.grad for p in parameters(model)]
    return found


def spoilt(group: Any, rank: int = 0) -> tuple[Any, Any]:
    """Take a step in which a weight of the last layer is not a number, then a good one."""
    network = NETWORKS["tanh"]
    model = network.build()
    engine = tp.TargetPropagation(
        model, nn.MSELoss(), example_input=network.batch(), method="dtp", seed=3, on_divergence="skip",
        placement=placed(model, "halves", group),
    )  # fmt: skip
    weight, reasons = parameters(model)[-2], []
    for bad in (True, False):
        before = weight.detach().clone()
        with torch.no_grad():
            weight[0, 0] = float("nan") if bad else weight[0, 0]
        reasons.append(engine.backward(network.batch(6), rand(6, 3)).skipped)
        with torch.no_grad():
            weight.copy_(before)
    return reasons, engine.state_dict()["decoders"]


def refusals(rank: int) -> dict[str, str]:
    """Collect the messages of what a placement cannot do."""
    found, x, group = {}, rand(6, 4), dist.group.WORLD
    assert group is not None
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    make = partial(tp.TargetPropagation, model, nn.MSELoss(), example_input=x)

    def note(name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except (ValueError, TypeError) as error:
            found[name] = str(error)

    for method in ("drl", "ddtp-linear", "backprop"):
        note(method, lambda m=method: make(method=m, placement=tp.Placement(group)))
    note("names", lambda: make(placement=tp.Placement(group, {"0": 0, "7": 1})))
    note("missing", lambda: make(placement=tp.Placement(group, {"0": 0})))
    deep = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))).double()
    turn = tp.Placement(group, {"0": 0, "1": 1, "2": 0})
    note("turn", lambda: tp.TargetPropagation(deep, nn.MSELoss(), example_input=x, placement=turn))
    two = nn.Sequential(nn.Linear(4, 4), Two()).double()
    note("whole", lambda: tp.TargetPropagation(two, nn.MSELoss(), example_input=x, placement=tp.Placement(group)))
    note("idle", lambda: make(placement=tp.Placement(group, {"0": 0, "2": 0})))
    note("kind", lambda: make(placement=group))
    engine = make(method="dtp", placement=tp.Placement(group))
    for name, batch in (("length", (x[rank:], rand(6 - rank, 3))), ("order", (x.roll(rank, 0), rand(6, 3)))):
        note(name, lambda b=batch: engine.backward(*b))
    note("shape", lambda: engine.backward(torch.cat([x, x], 1), rand(6, 3)))
    note("decoders", lambda: engine.train_decoders(x + rank))
    assert all(p.grad is None for p in parameters(model))
    return found
