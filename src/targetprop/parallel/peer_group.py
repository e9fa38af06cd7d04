"""The peers of a process: those that hold other samples of the step, and those that work on other layers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from targetprop.batch import Batch
from targetprop.inversion import Columns, Outcome
from targetprop.parallel.batch_shard import BatchShard
from targetprop.parallel.group import Group
from targetprop.parallel.layer_owners import LayerOwners, Placement, marks, room
from targetprop.parallel.norm_statistics import check_norms
from targetprop.peers import Peers
from targetprop.recipe import Method
from targetprop.step_report import StepReport


def connect(
    group: "dist.ProcessGroup | None", placement: Placement | None, method: Method, device: torch.device
) -> Peers:
    """Make the peers of a process."""
    if placement is None:
        return Peers() if group is None or group.size() == 1 else RowPeers(Group(group, device))
    if not isinstance(placement, Placement):
        raise TypeError(f"the placement must be a Placement; got {type(placement).__name__}")
    if method.propagation not in ("layerwise", "joint") or not method.decoder.local:
        raise ValueError(
            f"method {method.name!r} cannot be spread over processes by layer: its propagation {method.propagation!r}"
            f" with decoder {method.decoder.name!r} needs other layers; choose 'layerwise' or 'joint' and a decoder"
            " that learns from its own layer"
        )
    return LayerPeers(Group(group, device), placement, Group(placement.group, device))


class RowPeers(Peers):
    """Processes that each hold some samples of every step, and all layers.

    Args:
        rows: the processes.
    """

    def __init__(self, rows: Group) -> None:
        """Keep them."""
        self.rows = rows

    def batch(self, rows: int) -> Batch:
        """Ask how many samples each rank holds; see `Peers.batch`."""
        return super().batch(rows) if self.rows.alone else BatchShard.of(self.rows, rows).checked()

    def check_modules(self, modules: Iterable[nn.Module], *, synchronised: bool = False) -> None:
        """Refuse statistics of one rank's own samples; see `Peers.check_modules`."""
        if not self.rows.alone:
            check_norms(modules, synchronised=synchronised)

    def first(self, number: int) -> int:
        """Take a whole number from rank 0; see `Peers.first`."""
        return self.rows.first(number)

    def sum_norms(self, norms: Sequence[Tensor]) -> float:
        """Sum norms over all ranks; see `Peers.sum_norms`."""
        total = torch.zeros((), dtype=torch.double, device=self.rows.device)
        total = total + torch.stack(list(norms)).sum() if norms else total
        self._sum(total)
        return float(total)

    def _sum(self, total: Tensor) -> None:
        self.rows.sum_([total])

    def first_problem(self, found: tuple[int, str] | None) -> str | None:
        """Take the earliest problem, in the order of the ranks; see `Peers.first_problem`."""
        return super().first_problem(self._earliest(found))

    def _earliest(self, found: tuple[int, str] | None) -> tuple[int, str] | None:
        known = [problem for problem in self.rows.collect(found) if problem is not None]
        return min(known, key=lambda problem: problem[0], default=None)

    def sum_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Sum gradients; see `Peers.sum_gradients`."""
        self.rows.sum_(gradients)

    def whole_report(self, report: StepReport, batch: Batch, *, measure: bool) -> StepReport:
        """Put the outcomes of all samples together; see `Peers.whole_report`."""
        if not measure or not isinstance(batch, BatchShard):
            return report
        return replace(report, outcomes={name: _whole(found, batch) for name, found in report.outcomes.items()})

    def start_alike(self, named: Mapping[str, Tensor]) -> None:
        """Copy from rank 0; see `Peers.start_alike`."""
        self.rows.start_alike(named)


class LayerPeers(RowPeers):
    """Processes that each work on some layers, and may each hold some samples too.

    Args:
        rows: processes that work on the same layers.
        placement: who works on which layer.
        layers: processes that work on other layers.
    """

    owners: LayerOwners

    def __init__(self, rows: Group, placement: Placement, layers: Group) -> None:
        """Keep them."""
        super().__init__(rows)
        self.placement, self.layers = placement, layers
        self.columns = Columns(layers.sum_)

    def settle(self, network: Any, example: Any, bank: Any, optimizer: Any) -> None:
        """Find the owners, and which parameters of the decoders' optimiser are this process'; see `Peers.settle`."""
        self.owners = LayerOwners.find(self.placement.owners(network), self.layers.rank, example)
        names = network.names[self.owners.own.start : self.owners.own.stop]
        mine = {id(p) for name in names for part in bank.parts(name) for p in part.parameters()}
        stepped = [] if optimizer is None else [p for group in optimizer.param_groups for p in group["params"]]
        self._stepped = {index for index, p in enumerate(stepped) if id(p) in mine}

    def check_same(self, *batch: Any) -> None:
        """Compare lengths and checksums; see `Peers.check_same`."""
        if self.layers.differs([mark for part in batch if isinstance(part, Tensor) for mark in marks(part)]):
            raise ValueError(
                "the processes of a placement were given different batches; give all of them the same, in the same"
                " order: seed what shuffles and augments the data alike"
            )

    def first(self, number: int) -> int:
        """Take a whole number from the first of all ranks; see `Peers.first`."""
        return self.layers.first(super().first(number))

    def own(self, layers: int) -> range:
        """Give this process' stretch; see `Peers.own`."""
        return self.owners.own

    def depth(self, own: int) -> int:
        """Count all layers; see `Peers.depth`."""
        return len(self.owners.owners)

    def receive_input(self, x: Tensor) -> Tensor:
        """Receive from below; see `Peers.receive_input`."""
        self.owners.check_input(x)
        if self.owners.below is None:
            return x
        found = room(self.owners.lower, len(x))
        self.layers.exchange([], [(found, self.owners.below)])
        return found

    def send_output(self, h: Tensor) -> Tensor:
        """Send up, and receive what the process of the last layer has; see `Peers.send_output`."""
        if self.owners.above is not None:
            self.layers.exchange([(h.to(self.owners.upper.dtype), self.owners.above)], [])
            output = room(self.owners.output, len(h))
        else:
            output = h.to(self.owners.output.dtype).contiguous()
        self.layers.copy_from(self.owners.owners[-1], [output])
        return output

    def receive_change(self, delta: Tensor) -> Tensor:
        """Receive from above; see `Peers.receive_change`."""
        if self.owners.above is None:
            return delta
        found = self.owners.change_of(self.owners.upper, len(delta))
        self.layers.exchange([], [(found, self.owners.above)])
        return found

    def send_change(self, change: Tensor) -> None:
        """Send down; see `Peers.send_change`."""
        assert self.owners.below is not None
        self.layers.exchange([(self._sent(change), self.owners.below)], [])

    def exchange_changes(self, change: Tensor | None, delta: Tensor) -> Tensor:
        """Send down and receive from above; see `Peers.exchange_changes`."""
        below, above = self.owners.below, self.owners.above
        sent = [] if change is None or below is None else [(self._sent(change), below)]
        found = delta if above is None else self.owners.change_of(self.owners.upper, len(delta))
        self.layers.exchange(sent, [] if above is None else [(found, above)])
        return found

    def _sent(self, change: Tensor) -> Tensor:
        return change.to(self.owners.change_of(self.owners.lower, 0).dtype)

    def _sum(self, total: Tensor) -> None:
        super()._sum(total)
        self.layers.sum_([total])

    def _earliest(self, found: tuple[int, str] | None) -> tuple[int, str] | None:
        """Take the earliest problem, in the order of the layers."""
        every = self.layers.collect((self.owners.own.start, super()._earliest(found)))
        known = [(problem[0], start, problem[1]) for start, problem in every if problem is not None]
        return next(((turn, sentence) for turn, _, sentence in sorted(known)), None)

    def whole_report(self, report: StepReport, batch: Batch, *, measure: bool) -> StepReport:
        """Put together what is known of all layers; see `Peers.whole_report`."""
        report = super().whole_report(report, batch, measure=measure)
        loss = torch.zeros(2, dtype=torch.double, device=self.layers.device)
        if report.decoder_loss is not None:
            loss += torch.stack([report.decoder_loss.double(), loss.new_ones(())])
        self.layers.sum_([loss])
        report = replace(report, decoder_loss=loss[0].to(report.output.dtype) if loss[1] > 0 else None)
        if not measure:
            return report
        parts = {name: getattr(report, name) for name in ("outcomes", "delta_norms", "target_norms")}
        return replace(report, **{name: self.merge(found) for name, found in parts.items()})

    def start_alike(self, named: Mapping[str, Tensor]) -> None:
        """Copy from the first of all ranks; see `Peers.start_alike`."""
        super().start_alike(named)
        self.layers.start_alike(named)

    def gather_layers(self, modules: Sequence[Sequence[nn.Module]]) -> None:
        """Copy from the owners; see `Peers.gather_layers`."""
        for owner, parts in zip(self.owners.owners, modules, strict=True):
            self.layers.copy_from(owner, [t for part in parts for t in (*part.parameters(), *part.buffers())])

    def merge(self, mine: dict[str, Any]) -> dict[str, Any]:
        """Collect from all ranks, in the order of the layers; see `Peers.merge`."""
        found = self.layers.collect((self.owners.own.start, _moved(mine, "cpu")))
        whole: dict[str, Any] = {}
        for _, part in sorted(found, key=lambda one: one[0]):
            whole |= part
        return _moved(whole, self.layers.device)

    def merge_optimizer(self, state: dict[str, Any] | None) -> dict[str, Any] | None:
        """Collect what each rank stepped; see `Peers.merge_optimizer`."""
        if state is None:
            return None
        whole = self.merge({index: kept for index, kept in state["state"].items() if index in self._stepped})
        return state | {"state": dict(sorted(whole.items()))}


def _whole(outcome: Outcome, batch: BatchShard) -> Outcome:
    values: dict[str, Any] = {part.name: getattr(outcome, part.name) for part in fields(Outcome)}
    whole: dict[str, Any] = {name: None if found is None else batch.whole(found) for name, found in values.items()}
    return Outcome(**whole)


def _moved(values: Any, device: torch.device | str) -> Any:
    if isinstance(values, Tensor):
        return values.to(device)
    if isinstance(values, Outcome):
        parts: list[Any] = [_moved(getattr(values, part.name), device) for part in fields(Outcome)]
        return Outcome(*parts)
    return {key: _moved(value, device) for key, value in values.items()} if isinstance(values, dict) else values
