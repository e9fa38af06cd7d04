"""What one step of the engine reports: tensors that are already there, nothing computed until it is looked at."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from targetprop.batch import Batch
from targetprop.finite import RunningStatistics
from targetprop.inversion import Outcome, Status
from targetprop.joint import Targets
from targetprop.layers import Record


@dataclass(frozen=True, eq=False)
class StepReport:
    """Report of one `TargetPropagation.backward`.

    Attributes:
        loss: the user's loss before the step, a scalar without graph; of several ranks, the whole batch's.
        output: the network's output, shape ``(n, …)``, without graph; of several ranks, this one's.
        decoder_loss: loss of the decoders before their last update, summed over layers; None if nothing was trained.
        delta_norms: root mean square over samples of ``‖Δ_l‖`` as the updates used it, by layer name; empty unless
            measured.
        outcomes: how the inversion of each layer ended, by layer name; joint sweeps have one, named ``"all"``. Empty
            where one backward pass goes through all layers, unless measured. Of several ranks, the whole batch's where
            it was measured, else this one's.
        target_norms: root mean square over samples of ``‖t − y₀‖``, what each inversion was asked for, by layer name;
            empty unless measured.
        skipped: why nothing was changed, a sentence that names the layer; None for a step that was taken.
    """

    loss: Tensor
    output: Tensor
    decoder_loss: Tensor | None = None
    delta_norms: dict[str, Tensor] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    target_norms: dict[str, Tensor] = field(default_factory=dict)
    skipped: str | None = None

    def residuals(self) -> dict[str, float]:
        """Relative forward residuals, ``‖t − f(x)‖ / ‖t − y₀‖``, root mean squares over samples.

        Returns:
            One number per inversion that was measured and was asked for a change: 0 is a perfect inverse, 1 no
            progress. Samples whose residual is not known are left out.
        """
        found = {}
        for name, outcome in self.outcomes.items():
            if outcome.forward_residual is not None and name in self.target_norms:
                asked = float(self.target_norms[name])
                if asked > 0:
                    found[name] = float(outcome.forward_residual.square().nanmean().sqrt()) / asked
        return found

    def shares(self, status: Status) -> dict[str, float]:
        """Share of the samples whose inversion ended with a status.

        Args:
            status: the status to count.

        Returns:
            One number in [0, 1] per inversion.
        """
        return {name: float((s.status == status).double().mean()) for name, s in self.outcomes.items()}

    def __str__(self) -> str:
        """Print loss and residuals in one line."""
        text = f"loss {float(self.loss):.4g}"
        if self.decoder_loss is not None:
            text += f", decoder loss {float(self.decoder_loss):.4g}"
        if residuals := self.residuals():
            text += f", residual {sum(residuals.values()) / len(residuals):.3g}"
        return text if self.skipped is None else f"{text}, skipped: {self.skipped}"


def root_mean_square(values: Tensor, batch: Batch | None = None) -> Tensor:
    """Root mean square over the samples of a step, by default those given, of each sample's norm, a scalar."""
    batch = Batch(len(values)) if batch is None else batch
    square = torch.linalg.vector_norm(values).double().square()
    batch.sum_([square])
    return (square / batch.total).sqrt().to(values.dtype)


def report_changes(
    report: StepReport,
    record: Record,
    decoder_loss: Tensor | None,
    targets: Targets,
    deltas: list[Tensor],
    delta_out: Tensor,
    *,
    measure: bool,
) -> StepReport:
    """Add to a report what was asked of the layers and how it was found."""
    report = replace(report, decoder_loss=decoder_loss, outcomes=targets.outcomes)
    if not measure:
        return report

    def norms(changes: list[Tensor]) -> dict[str, Tensor]:
        found = zip(record.layers, changes, strict=True)
        return {layer.name: root_mean_square(change, record.batch) for layer, change in found} | {"all": whole}

    whole = root_mean_square(delta_out, record.batch)
    asked = [delta_out] * len(deltas) if targets.from_output else targets.deltas
    return replace(report, delta_norms=norms(deltas), target_norms=norms(asked))


def settle(report: StepReport, statistics: RunningStatistics | None) -> StepReport:
    """End a step: put running statistics back if it was skipped, or raise if it must not be."""
    if report.skipped is not None:
        if statistics is None:
            raise FloatingPointError(report.skipped)
        statistics.restore()
    return report
