"""The matched baseline: autograd carries the signal, and everything else is as in target propagation."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from targetprop.checks import check_batch, check_state, first_tensor
from targetprop.engine_state import VERSION
from targetprop.finite import BAD_GRADIENT, BAD_INPUT, BAD_LOSS, BAD_OUTPUT, Look, RunningStatistics, not_finite
from targetprop.layers import Model, Reduction, check_given, check_whereabouts, evaluate_loss, explained
from targetprop.layers.graph import leaves_of
from targetprop.layers.inputs import call
from targetprop.layers.sites import tensors_in
from targetprop.output_target import Loss, loss_gradient
from targetprop.peers import Peers
from targetprop.precision import warn_if_unscaled
from targetprop.recipe import Method
from targetprop.step_report import StepReport, settle
from targetprop.updates import LocalGradients


class BackPropagation:
    """Fills ``.grad`` by back-propagation, with the interface of `targetprop.TargetPropagation`.

    Args:
        model: any module, or modules in order.
        loss: the user's loss.
        method: the method's name and settings.
        on_divergence: "raise" or "skip".
        peers: the processes that take a step together.
    """

    def __init__(self, model: Model, loss: Loss, method: Method, on_divergence: str, peers: Peers) -> None:
        """Start as the first process has the model."""
        modules = model.values() if isinstance(model, Mapping) else model
        self.model = modules if isinstance(modules, nn.Module) else nn.Sequential(*modules)
        check_given(self.model)
        self.loss, self.method, self.on_divergence, self.peers = loss, method, on_divergence, peers
        peers.check_modules([self.model], synchronised=True)
        self._reduction = Reduction(loss)
        peers.start_alike({**dict(self.model.named_parameters()), **dict(self.model.named_buffers())})

    def backward(self, x: Any, y: Any, *, measure: bool = False) -> StepReport:
        """Do what ``loss(model(x), y).backward()`` does, if all is finite; see `targetprop.TargetPropagation`.

        Args:
            x: input, shape ``(n, …)``, or several as a tuple or a dictionary.
            y: what the loss compares the output with.
            measure: there is nothing to measure.

        Returns:
            The report.

        Raises:
            RuntimeError: gradients are disabled.
            ValueError: nothing is to be trained, or the model or the loss do not accept the batch.
        """
        if not torch.is_grad_enabled():
            raise RuntimeError("backward fills .grad, and gradients are disabled; call it outside torch.no_grad()")
        statistics = RunningStatistics(self.model.modules()) if self.on_divergence == "skip" else None
        self.peers.check_modules([self.model], synchronised=True)
        given, first = first_tensor(x, "the batch"), next(self.model.parameters(), None)
        if first is None:
            raise ValueError("the model has no trainable parameter; give it layers to train")
        check_batch(given, may_be_empty=True)
        batch, now = self.peers.batch(len(given)), (first.device, first.dtype)
        check_whereabouts(given, now, now)
        warn_if_unscaled(given)
        with explained(given, now):
            output = call(self.model, tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, x))
        named = {p: name for name, p in self.model.named_parameters() if p.requires_grad}
        if not (named and any(t.requires_grad for t in tensors_in(output))):
            raise ValueError("the model has no trainable parameter; call requires_grad_(True) on those to train")
        if isinstance(output, Tensor):
            summed = self._reduction.summed(output, y)
            at_output = loss_gradient(output, y, self.loss)
            value, start = batch.loss(at_output.value, at_output.output, output.detach(), y, self.loss, summed=summed)
            found = _differentiate(output, list(named), start)
            part = 1.0 if summed else batch.rows / batch.total
            own = {p: g * part for p, g in at_output.beside.items()}
        else:  # a loss that picks from what the model returns, taken as a mean over the samples
            whole = evaluate_loss(self.loss, output, y)
            start = whole.new_tensor(batch.rows / batch.total)
            others = [leaf for leaf in leaves_of([whole]) if leaf not in named]
            found = _differentiate(whole, [*named, *others], start)
            own = {p: g for p, g in zip(others, found[len(named) :], strict=True) if g is not None}
            found = found[: len(named)]
            value = batch.mean(whole.detach().expand(batch.rows))
        gradients = LocalGradients()
        gradients.note("the network", list(named), found)
        gradients.note("the loss", list(own), list(own.values()))
        self.peers.sum_gradients(list(gradients.values.values()))
        looks = [
            Look(BAD_INPUT, tuple(tensors_in(x))),
            Look(BAD_OUTPUT, tuple(tensors_in(output)), "the network"),
            Look(BAD_LOSS, (value, start, *own.values())),
            *(Look(BAD_GRADIENT, (g,), name) for name, g in zip(named.values(), found, strict=True) if g is not None),
        ]
        problem = not_finite(looks, self.peers)
        if problem is None:
            gradients.add_to_grad()
        shown = next(tensors_in(output)).detach()
        return settle(StepReport(value, shown, skipped=problem), statistics)

    def train_decoders(self, x: Any) -> None:
        """Do nothing but look at the batch: there are no decoders."""
        given = first_tensor(x, "the batch")
        check_batch(given, may_be_empty=True)
        self.peers.batch(len(given))

    def gather(self) -> None:
        """Do nothing: every process has the whole model."""

    def state_dict(self) -> dict[str, Any]:
        """Name the method; see `targetprop.TargetPropagation.state_dict`."""
        return {"version": VERSION, "method": self.method.name}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that a state is of this method; see `targetprop.TargetPropagation.load_state_dict`."""
        check_state(state, VERSION, self.method.name)

    def __str__(self) -> str:
        """Print the method."""
        return str(self.method)


def _differentiate(end: Tensor, parameters: list[Tensor], start: Tensor) -> tuple[Tensor | None, ...]:
    try:
        return torch.autograd.grad(end, parameters, start, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # such as values that were overwritten
        raise ValueError(f"the model has no backward pass: {error}") from error
