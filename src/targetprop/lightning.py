"""Target propagation under a Lightning ``Trainer`` (the extra ``lightning``): the user's model, loss and optimiser.

The engine fills ``.grad`` and the module takes the step (manual optimisation), so callbacks, loggers, checkpoints and
learning-rate schedules of Lightning serve as they do elsewhere.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from targetprop.decoders import OptimizerFactory
from targetprop.engine import TargetPropagation
from targetprop.layers import Model
from targetprop.output_target import Loss
from targetprop.recipe import Method
from targetprop.step_report import StepReport

try:
    from lightning.pytorch import LightningModule
    from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("targetprop.lightning needs Lightning: pip install 'targetprop[lightning]'") from error

PRECISIONS = ("32-true", "64-true", "bf16-mixed")
_STATE = "targetprop"  # where a checkpoint keeps the engine's state


class TargetPropagationModule(LightningModule):
    """Trains a model by target propagation under a ``Trainer``; batches are pairs ``(x, y)``.

    Logged: ``train_loss``, ``decoder_loss`` where decoders learn, and ``residual`` at the batches that
    ``Trainer(log_every_n_steps=…)`` writes down; ``val_loss`` and ``test_loss``, with ``val_accuracy`` and
    ``test_accuracy`` where the labels are classes. Checkpoints hold the engine's state, so that a resumed run
    continues with its decoders.

    What ``Trainer(gradient_clip_val=…, accumulate_grad_batches=…)`` would do are arguments here, as Lightning refuses
    them to modules that step by themselves. Under the strategy "ddp" the engine averages over the processes. Precisions
    are "32-true", "64-true" and "bf16-mixed".

    Args:
        model: what `TargetPropagation` takes.
        loss: ``loss(output, y)``, a scalar.
        method: a name from `METHODS` or a `Method`.
        optimizer: makes the optimiser from the model's parameters, such as ``lambda p: torch.optim.Adam(p, lr=1e-3)``.
        scheduler: makes a learning-rate schedule from the optimiser. ``ReduceLROnPlateau`` follows ``val_loss``.
        every_step: whether the schedule moves after every step, not after every epoch.
        example_input: an input of shape ``(n, …)``, so that misfits show before training; the first batch if None.
        accumulate: batches whose gradients are averaged for one step; the last step of an epoch takes what is left.
        clip: largest norm of the gradient, over all parameters.
        measure: whether residuals are measured where the logger writes; a batch that is measured costs more.
        decoders: see `TargetPropagation`.
        decoder_optimizer: see `TargetPropagation`.
        seed: see `TargetPropagation`.

    Raises:
        ValueError: a setting is out of its range.
    """

    def __init__(
        self,
        model: Model,
        loss: Loss,
        *,
        method: str | Method = "l-drl",
        optimizer: OptimizerFactory,
        scheduler: Callable[[torch.optim.Optimizer], LRScheduler | ReduceLROnPlateau] | None = None,
        every_step: bool = False,
        example_input: Tensor | None = None,
        accumulate: int = 1,
        clip: float | None = None,
        measure: bool = True,
        decoders: Mapping[str, nn.Module] | None = None,
        decoder_optimizer: OptimizerFactory | None = None,
        seed: int | None = None,
    ) -> None:
        """Keep the parts; the engine is built when training starts, on the device where it then is."""
        super().__init__()
        if not accumulate >= 1:
            raise ValueError(f"accumulate is a number of batches ≥ 1; got {accumulate}")
        if clip is not None and not clip > 0:
            raise ValueError(f"clip must be > 0; got {clip}")
        self.automatic_optimization = False
        modules = model.values() if isinstance(model, Mapping) else model
        self.model = modules if isinstance(modules, nn.Module) else nn.Sequential(*modules)
        self.loss, self.make_optimizer, self.make_scheduler = loss, optimizer, scheduler
        self.every_step, self.example_input, self.measure = every_step, example_input, measure
        self.accumulate, self.clip = accumulate, clip
        self.options = {"model": model, "method": method, "decoder_optimizer": decoder_optimizer, "seed": seed}
        self.decoders = dict(decoders or {})
        self.engine: TargetPropagation | None = None
        self._stored: dict[str, Any] | None = None
        self._gathered = 0

    def setup(self, stage: str) -> None:
        """Refuse a trainer that would do something else than asked.

        Args:
            stage: "fit", "validate", "test" or "predict".

        Raises:
            ValueError: its strategy or precision is not supported.
        """
        if stage != "fit":
            return
        strategy, precision = self.trainer.strategy, self.trainer.precision
        if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
            kind = type(strategy).__name__
            raise ValueError(f"target propagation runs on one device or by strategy='ddp'; got {kind}")
        if precision not in PRECISIONS:
            raise ValueError(f"target propagation needs precision {', '.join(PRECISIONS)}; got {precision!r}")

    def configure_optimizers(self) -> Any:
        """Make the optimiser of all trainable parameters, and its schedule.

        Returns:
            What Lightning expects.
        """
        optimizer = self.make_optimizer([p for p in self.model.parameters() if p.requires_grad])
        if self.make_scheduler is None:
            return optimizer
        schedule = {"scheduler": self.make_scheduler(optimizer), "interval": "step" if self.every_step else "epoch"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_fit_start(self) -> None:
        """Build the engine where the model is now; one from an earlier fit hands its state on."""
        if self.engine is not None and self._stored is None:
            self._stored = self.engine.state_dict()
        self.engine = None
        if self.example_input is not None:
            example, like = self.example_input.to(self.device), next(self.model.parameters())
            self._engine(example.to(like.dtype) if example.is_floating_point() else example)

    def on_train_epoch_start(self) -> None:
        """Start a new gradient."""
        self._gathered = 0

    def split(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Take a batch apart; override it for batches of another form.

        Args:
            batch: what the data loader yields.

        Returns:
            Inputs and labels.

        Raises:
            TypeError: it is no pair.
        """
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise TypeError(f"a batch must be a pair (x, y), and is a {type(batch).__name__}; override split(batch)")
        return batch[0], batch[1]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the model.

        Args:
            x: input, shape ``(n, …)``.

        Returns:
            Its output.
        """
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Fill ``.grad`` by target propagation, and step once enough batches are gathered.

        Args:
            batch: inputs and labels.
            batch_idx: its number in the epoch.

        Returns:
            The loss, without graph.
        """
        x, y = self.split(batch)
        optimizer: Any = self.optimizers()
        if self._gathered == 0:
            optimizer.zero_grad()
        every = getattr(self.trainer, "log_every_n_steps", 0) if self.measure else 0
        measure = every > 0 and (self.trainer.fit_loop.epoch_loop.total_batch_idx + 1) % every == 0
        report = self._engine(x).backward(x, y, measure=measure)
        self._log_report(report, len(x))
        self._gathered += 1
        if self._gathered == self.accumulate or self.trainer.is_last_batch:
            self._step(optimizer, x, y, report.loss)
        return report.loss

    def on_train_epoch_end(self) -> None:
        """Move a schedule that counts epochs."""
        if not self.every_step:
            self._move_schedule()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log ``val_loss`` and ``val_accuracy``; see `training_step` for the arguments."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log ``test_loss`` and ``test_accuracy``; see `training_step` for the arguments."""
        self._evaluate(batch, "test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the engine's state.

        Args:
            checkpoint: what will be stored.
        """
        state = self._stored if self.engine is None else self.engine.state_dict()
        if state is not None:
            checkpoint[_STATE] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the engine's state until the engine is built.

        Args:
            checkpoint: what was stored.
        """
        self._stored = checkpoint.get(_STATE)

    def _engine(self, x: Tensor) -> TargetPropagation:
        if self.engine is None:
            options: dict[str, Any] = dict(self.options)
            options["decoders"] = {name: decoder.to(x.device) for name, decoder in self.decoders.items()}
            if self.trainer.world_size > 1:
                options["process_group"] = torch.distributed.group.WORLD
                seed = torch.initial_seed() if options["seed"] is None else options["seed"]
                options["seed"] = self.trainer.strategy.broadcast(seed)  # all processes start with the same decoders
            self.engine = TargetPropagation(loss=self.loss, example_input=x, **options)
            if self._stored is not None:
                self.engine.load_state_dict(self._stored)
                self._stored = None
        return self.engine

    def _step(self, optimizer: Any, x: Any, y: Any, loss: Tensor) -> None:
        parameters, gathered = list(self.model.parameters()), self._gathered
        if gathered > 1:
            for gradient in (p.grad for p in parameters if p.grad is not None):
                gradient /= gathered
        self._clip(parameters)
        filled = [_version(p) for p in parameters]

        def closure() -> Tensor:
            if [_version(p) for p in parameters] == filled:  # the gradient that is asked for is there
                return loss
            if gathered > 1:
                raise ValueError("an optimiser that evaluates the loss anew, such as L-BFGS, needs accumulate=1")
            optimizer.zero_grad()
            again = self._engine(x).backward(x, y).loss
            self._clip(parameters)
            return again

        optimizer.step(closure)
        self._gathered = 0
        if self.every_step:
            self._move_schedule()

    def _clip(self, parameters: list[nn.Parameter]) -> None:
        if self.clip is not None:
            nn.utils.clip_grad_norm_(parameters, self.clip)

    def _move_schedule(self) -> None:
        schedule: Any = self.lr_schedulers()
        if isinstance(schedule, ReduceLROnPlateau):
            if "val_loss" not in self.trainer.callback_metrics:
                raise ValueError("ReduceLROnPlateau follows val_loss, and there is none; give fit validation data")
            schedule.step(self.trainer.callback_metrics["val_loss"])
        elif schedule is not None:
            schedule.step()

    def _log_report(self, report: StepReport, n: int) -> None:
        found = {"train_loss": report.loss}
        if report.decoder_loss is not None:
            found["decoder_loss"] = report.decoder_loss
        if report.target_norms:  # not the residuals, which may be missing in one process and not in another
            residuals = report.residuals().values()
            found["residual"] = report.loss.new_tensor(sum(residuals) / max(1, len(residuals)))
        self.log_dict(found, prog_bar=True, batch_size=n, sync_dist=True)

    def _evaluate(self, batch: Any, stage: str) -> None:
        x, y = self.split(batch)
        output = self.model(x)
        found = {f"{stage}_loss": self.loss(output, y)}
        if not y.is_floating_point() and output.dim() == y.dim() + 1:
            found[f"{stage}_accuracy"] = (output.argmax(1) == y).float().mean()
        self.log_dict(found, prog_bar=True, batch_size=len(x), sync_dist=True)


def _version(p: nn.Parameter) -> tuple[int, ...]:
    """Tell whether a parameter or its gradient has been written to since."""
    return (p._version,) if p.grad is None else (p._version, id(p.grad), p.grad._version)
