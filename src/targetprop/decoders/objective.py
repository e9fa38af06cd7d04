"""What decoders are and what they learn: the abstract objective, its training settings, and noise."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from targetprop.decoders.bank import Bank, build_layer_bank
from targetprop.decoders.layer import LayerDecoder
from targetprop.decoders.proposal import BAD_GRADIENT, Proposal, Rehearsal, look_at_decoder
from targetprop.decoders.registry import Style
from targetprop.finite import Look
from targetprop.layers import LayerRecord, Network, Record
from targetprop.layers.graph import leaves_of
from targetprop.settings import check_ranges, check_types

OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
Generators = Mapping[str, torch.Generator]
# Directions of a map's inputs that its last changes were along, by its key: at most so many rows; None if unknown.
Moved = Callable[[str, int, torch.Generator], Tensor | None]


class Noise:
    """White noise of scale ``s`` for one layer; one draw serves its input and its output, whose losses are separate.

    Args:
        record: the forward pass.
        layer: the layer whose activations are perturbed.
        scale: ``s``.
        generator: source of randomness.
    """

    def __init__(self, record: Record, layer: LayerRecord, scale: float, generator: torch.Generator) -> None:
        """Draw once, as wide as what may be perturbed."""
        rows = record.batch.rows  # none, perhaps, where others hold all, who draw as wide
        width = max(
            t.shape[1:].numel() if len(t) == rows else -(-t.numel() // max(1, rows))
            for t in (layer.x, layer.y, record.output)
        )
        self._values = record.batch.noise(max(1, width), scale, generator, layer.x)

    def like(self, values: Tensor) -> Tensor:
        """Cut out noise of a shape."""
        if len(values) == len(self._values):
            return self._values[:, : values.shape[1:].numel()].reshape(values.shape)
        return self._values.flatten()[: values.numel()].reshape(values.shape)


@dataclass(frozen=True, eq=False)
class Signal:
    """What trains one decoder.

    Attributes:
        loss: the value of its loss, a scalar without graph.
        tensor: where autograd starts: the loss itself, or a parameter.
        gradient: the gradient in `tensor`; None if that is the loss.
    """

    loss: Tensor
    tensor: Tensor
    gradient: Tensor | None


@dataclass(frozen=True)
class Objective(ABC):
    """How a network is inverted, and how the decoders get there."""

    name: ClassVar[str]
    local: ClassVar[bool] = True  # whether a decoder learns from its own layer alone
    derivatives: ClassVar[bool] = True  # whether changes go down through the derivatives of layers

    def __post_init__(self) -> None:
        """Check the settings, by a ``ValueError``."""
        check_types(self, "decoder ")

    @abstractmethod
    def build(self, network: Network, example: Record, custom: Mapping[str, nn.Module]) -> Bank:
        """Build the decoders.

        Args:
            network: the layers.
            example: a forward pass on an example, whose layers can be repeated.
            custom: the user's own decoders by layer name.

        Returns:
            The bank.
        """

    def propose(
        self, bank: Bank, record: Record, optimizer: torch.optim.Optimizer | None, generators: Generators, moved: Moved
    ) -> Proposal:
        """Work out what the decoders learn from one batch; by default there is nothing to learn.

        Args:
            bank: the decoders, which are left alone.
            record: the forward pass of the batch.
            optimizer: over the decoders' parameters; None if there are none.
            generators: source of noise of each layer, by name.
            moved: what the update asked of a map in the last steps; see `targetprop.updates.Update.moved`.

        Returns:
            The change and the numbers that must be finite before it is made.
        """
        return Proposal()

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer | None:
        """Make the decoders' optimiser; by default there is nothing to learn.

        Args:
            parameters: the decoders' trainable parameters.

        Returns:
            The optimiser, or None.
        """
        return None


@dataclass(frozen=True)
class Learned(Objective):
    """Settings that learned decoders share.

    Attributes:
        activation: how what has no weights and keeps the shape, such as activations and norms, is decoded: left to the
            affine map ("identity"), by its inverse where that is known ("inverse"), by its "transpose", or, for
            activations, by using them once more, ``g(y) = Ω σ(y) + c`` ("forward").
        noise: scale ``s`` of the perturbations, in units of the activations.
        updates: decoder updates per step, ≥ 0.
        share: share of the batch that trains the decoders, in (0, 1].
        lr: learning rate of the decoders' optimiser.
        optimizer: "adam" or "sgd".
    """

    derivatives: ClassVar[bool] = False
    least_noise: ClassVar[float] = 1e-30  # what is divided by it needs some
    activation: Style = "identity"
    noise: float = 0.1
    updates: int = 1
    share: float = 1.0
    lr: float = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        super().__post_init__()
        check_ranges(
            self, "decoder ",
            noise=(self.noise >= self.least_noise, "a scale > 0" if self.least_noise else "a scale ≥ 0"),
            updates=(self.updates >= 0, "a number of updates ≥ 0"),
            share=(0 < self.share <= 1, "a share of the batch in (0, 1]"),
            lr=(self.lr > 0, "a learning rate > 0"),
        )  # fmt: skip

    def build(self, network: Network, example: Record, custom: Mapping[str, nn.Module]) -> Bank:
        """Build learned decoders; see `Objective.build`."""
        return build_layer_bank(network, example, partial(LayerDecoder, self.activation), custom)

    @abstractmethod
    def layer_loss(self, bank: Bank, layers: Sequence[LayerRecord], record: Record, noise: Noise) -> Tensor:
        """Compute the loss of one decoder, a mean over samples of a sum over units.

        Args:
            bank: the decoders.
            layers: the layer whose decoder learns, and those above it.
            record: the forward pass.
            noise: perturbations.

        Returns:
            A scalar with the graph of that decoder's parameters.
        """

    def signal(self, bank: Bank, layers: Sequence[LayerRecord], record: Record, noise: Noise) -> Signal:
        """Say what trains one decoder: its loss, unless the gradient is known in closed form.

        Args:
            bank: the decoders.
            layers: the layer whose decoder learns, and those above it.
            record: the forward pass.
            noise: perturbations.

        Returns:
            Where autograd starts, and with what.
        """
        loss = self.layer_loss(bank, layers, record, noise)
        return Signal(loss.detach(), loss, None)

    def propose(
        self, bank: Bank, record: Record, optimizer: torch.optim.Optimizer | None, generators: Generators, moved: Moved
    ) -> Proposal:
        """Work out `updates` steps on fresh noise, all or none; see `Objective.propose`."""
        if optimizer is None or self.updates == 0:
            return Proposal()
        record = record.head(max(1, round(self.share * record.batch.total)))
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self.updates == 1:
            loss, gradients, looks = self._look(bank, record, parameters, generators)
            return Proposal(loss, looks, partial(_step, optimizer, gradients))
        rehearsal, loss, seen = Rehearsal(parameters, optimizer), None, ()
        for _ in range(self.updates):
            loss, gradients, looks = self._look(bank, record, parameters, generators)
            seen += looks
            _step(optimizer, gradients)
        rehearsal.take_back()
        return Proposal(loss, seen, rehearsal.repeat)

    def _look(
        self, bank: Bank, record: Record, parameters: list[nn.Parameter], generators: Generators
    ) -> tuple[Tensor | None, dict[nn.Parameter, Tensor], tuple[Look, ...]]:
        """Compute the decoders' losses and gradients on fresh noise."""
        signals: dict[str, Signal] = {}
        for place, layer in enumerate(record.layers):
            if layer in record.inverted and bank.learns(layer.name):
                noise = Noise(record, layer, self.noise, generators[layer.name])
                signals[layer.name] = self.signal(bank, record.layers[place:], record, noise)
        signals = {name: signal for name, signal in signals.items() if signal.tensor.requires_grad}
        if not signals:
            return None, {}, ()
        gradients = _differentiate(list(signals.values()), parameters)
        if record.batch.processes > 1 and not record.batch.rows:  # all average as many
            reached = set(leaves_of(s.tensor for s in signals.values()))
            gradients = {p: gradients.get(p, torch.zeros_like(p)) for p in parameters if p in reached}
        losses = {name: signal.loss for name, signal in signals.items()}
        record.batch.average_([*gradients.values(), *losses.values()])
        looks = (look_at_decoder(name, "loss", loss) for name, loss in losses.items())
        return torch.stack([*losses.values()]).sum(), gradients, (*looks, Look(BAD_GRADIENT, (*gradients.values(),)))

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer | None:
        """Make Adam or SGD; see `Objective.make_optimizer`."""
        if not parameters:
            return None
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=self.lr)
        return torch.optim.Adam(parameters, lr=self.lr, fused=True)


def _differentiate(signals: list[Signal], parameters: list[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
    """Collect the gradients that are known, and ask autograd for the others."""
    made: dict[Tensor, Tensor | None] = {
        s.tensor: s.gradient for s in signals if s.tensor.is_leaf and s.gradient is not None
    }
    rest = [s for s in signals if s.tensor not in made]
    wanted = [p for p in parameters if p not in made]
    if rest:
        tensors, starts = [s.tensor for s in rest], [s.gradient for s in rest]
        made |= zip(wanted, torch.autograd.grad(tensors, wanted, starts, allow_unused=True), strict=True)
    return {p: _laid_out(g, p) for p in parameters if (g := made.get(p)) is not None}


def _laid_out(gradient: Tensor, parameter: nn.Parameter) -> Tensor:
    """Lay a gradient out as its parameter, which fused optimisers rely on, in its type, as autocast rounds some."""
    if gradient.stride() == parameter.stride():
        return gradient.to(parameter.dtype)
    return torch.empty_like(parameter).copy_(gradient)


def _step(optimizer: torch.optim.Optimizer, gradients: Mapping[nn.Parameter, Tensor]) -> None:
    """Let the optimiser take one step, and leave the decoders without ``.grad``."""
    for parameter, gradient in gradients.items():
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad()


def perturbed(layer: LayerRecord, noise: Tensor) -> Tensor:
    """Run a layer on its perturbed input."""
    with torch.no_grad():
        return layer.f(layer.x + noise)
