"""What decoders are and what they learn: the abstract objective, its training settings, and noise."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from targetprop.chain import Chain
from targetprop.decoders.bank import Bank, build_layer_bank
from targetprop.decoders.registry import Style
from targetprop.forward import LayerRecord, Record
from targetprop.guard import Guard
from targetprop.settings import check_ranges, check_types

_CURE = "lower the decoders' learning rate or noise, or load an earlier checkpoint"
OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class Noise:
    """White noise of scale ``s``; one draw serves all layers, whose losses are separate expectations.

    Every rank draws for the whole batch and keeps its own rows.

    Args:
        record: the forward pass whose activations are perturbed.
        scale: ``s``.
        generator: source of randomness.
    """

    def __init__(self, record: Record, scale: float, generator: torch.Generator) -> None:
        """Draw once, as wide as the widest activation."""
        like = record.output
        width = max(values.shape[1:].numel() for layer in record.layers[1:] for values in (layer.x, layer.y))
        drawn = torch.empty(record.share.total, width, dtype=like.dtype, device=like.device)
        self._values = record.share.keep(drawn.normal_(0.0, scale, generator=generator))

    def like(self, values: Tensor) -> Tensor:
        """Cut out noise of a shape.

        Args:
            values: tensor of shape ``(n, …)``.

        Returns:
            Noise of that shape.
        """
        return self._values[:, : values.shape[1:].numel()].reshape(values.shape)


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
    """How a chain is inverted, and how the decoders get there."""

    name: ClassVar[str]
    local: ClassVar[bool] = True  # whether a decoder learns from its own layer alone

    def __post_init__(self) -> None:
        """Check the settings, by a ``ValueError``."""
        check_types(self, "decoder ")

    @abstractmethod
    def build(
        self, chain: Chain, example: Record, inner: list[tuple[Tensor, ...]], custom: Mapping[str, nn.Module]
    ) -> Bank:
        """Build the decoders.

        Args:
            chain: the layers.
            example: a forward pass on a few samples.
            inner: outputs of the modules inside each layer in that pass.
            custom: the user's own decoders by layer name.

        Returns:
            The bank.
        """

    def train(
        self,
        bank: Bank,
        record: Record,
        optimizer: torch.optim.Optimizer | None,
        generator: torch.Generator,
        guard: Guard,
    ) -> Tensor | None:
        """Train the decoders on one batch; by default there is nothing to learn.

        Args:
            bank: the decoders.
            record: the forward pass of the batch.
            optimizer: over the decoders' parameters; None if there are none.
            generator: source of noise.
            guard: must pass, losses and updates of the decoders included, before anything of them changes.

        Returns:
            The loss before the last update, summed over layers, or None.
        """
        return None

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
        activation: how activations and norms are decoded: left to the affine map ("identity"), "inverse" or
            "transpose".
        noise: scale ``s`` of the perturbations, in units of the activations.
        updates: decoder updates per step, ≥ 0.
        share: share of the batch that trains the decoders, in (0, 1].
        lr: learning rate of the decoders' optimiser.
        optimizer: "adam" or "sgd".
    """

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
            noise=(self.noise > 0, "a scale > 0"),
            updates=(self.updates >= 0, "a number of updates ≥ 0"),
            share=(0 < self.share <= 1, "a share of the batch in (0, 1]"),
            lr=(self.lr > 0, "a learning rate > 0"),
        )  # fmt: skip

    def build(
        self, chain: Chain, example: Record, inner: list[tuple[Tensor, ...]], custom: Mapping[str, nn.Module]
    ) -> Bank:
        """Build learned decoders from the registry; see `Objective.build`."""
        return build_layer_bank(chain, example, inner, self.activation, custom)

    @abstractmethod
    def layer_loss(self, bank: Bank, index: int, record: Record, noise: Noise) -> Tensor:
        """Compute the loss of one decoder, a mean over samples of a sum over units.

        Args:
            bank: the decoders.
            index: the layer to be inverted, ≥ 1.
            record: the forward pass.
            noise: perturbations.

        Returns:
            A scalar with the graph of that decoder's parameters.
        """

    def signal(self, bank: Bank, index: int, record: Record, noise: Noise) -> Signal:
        """Say what trains one decoder: its loss, unless the gradient is known in closed form.

        Args:
            bank: the decoders.
            index: the layer to be inverted, ≥ 1.
            record: the forward pass.
            noise: perturbations.

        Returns:
            Where autograd starts, and with what.
        """
        loss = self.layer_loss(bank, index, record, noise)
        return Signal(loss.detach(), loss, None)

    def train(
        self,
        bank: Bank,
        record: Record,
        optimizer: torch.optim.Optimizer | None,
        generator: torch.Generator,
        guard: Guard,
    ) -> Tensor | None:
        """Take `updates` steps on fresh noise, all or none; see `Objective.train`."""
        if optimizer is None or self.updates == 0:
            return None
        record, total = record.head(max(1, round(self.share * record.share.total))), None
        learned = [index for index in range(1, len(record.layers)) if bank.learns(index)]
        take_back = _remember(optimizer) if self.updates > 1 else optimizer.zero_grad
        for _ in range(self.updates):
            noise = Noise(record, self.noise, generator)
            signals = {i: self.signal(bank, i, record, noise) for i in learned if record.places.owns(i)}
            signals = {index: signal for index, signal in signals.items() if signal.tensor.requires_grad}
            if not signals and record.places.alone:
                return None
            if signals:
                torch.autograd.backward([s.tensor for s in signals.values()], [s.gradient for s in signals.values()])
            losses, gradients = {index: signal.loss for index, signal in signals.items()}, _gradients(optimizer)
            record.share.average_([*gradients, *losses.values()])
            for index in learned:
                own = [losses[index]] if index in losses else []
                guard.watch(failed_decoder(record.layers[index], "loss"), *own)
            guard.watch(f"the decoders' gradient is NaN or infinite; {_CURE}", *gradients)
            if not guard.passes():
                take_back()
                return None
            optimizer.step()
            optimizer.zero_grad()
            total = torch.stack([*losses.values()]).sum() if losses else record.output.new_zeros(())
        return None if total is None else record.places.total(total)

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer | None:
        """Make Adam or SGD; see `Objective.make_optimizer`."""
        if not parameters:
            return None
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=self.lr)
        return torch.optim.Adam(parameters, lr=self.lr, fused=True)


def failed_decoder(layer: LayerRecord, what: str) -> str:
    """Say that a decoder's numbers have left their range.

    Args:
        layer: the layer that it inverts.
        what: the number's name.

    Returns:
        A sentence without its full stop.
    """
    return f"the decoder of layer {layer.layer.name} has a {what} that is NaN or infinite; {_CURE}"


def _remember(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Copy parameters and state, and return what puts them back."""
    parameters = [(p, p.detach().clone()) for group in optimizer.param_groups for p in group["params"]]
    state = deepcopy(optimizer.state_dict())

    @torch.no_grad()
    def take_back() -> None:
        optimizer.zero_grad()
        optimizer.load_state_dict(state)
        for parameter, before in parameters:
            parameter.copy_(before)

    return take_back


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def perturbed(layer: LayerRecord, noise: Tensor) -> Tensor:
    """Run a layer on its perturbed input.

    Args:
        layer: the layer's record.
        noise: shape of the layer's input.

    Returns:
        ``f_l(h_{l-1} + noise)`` without graph.
    """
    with torch.no_grad():
        return layer.f(layer.x + noise)
