"""A model of the user's own as a network of ``targetprop train``."""

from dataclasses import dataclass

import torch
from torch import nn

from targetprop.experiments.errors import CommandError
from targetprop.experiments.networks.network import Network
from targetprop.experiments.own_model import load_model, split_source
from targetprop.layers import forked_random_states

_SAMPLES = 3


@dataclass(frozen=True)
class OwnModel(Network):
    """A model of a Python file, imported where the network is built.

    Attributes:
        name: FILE:NAME; NAME is an nn.Module, or a class or function that returns one and may take shape and classes.
        layers: names of modules, after each of which a layer ends; null to cut by the method's rule.
    """

    name: str  # pyright: ignore[reportIncompatibleVariableOverride]
    layers: list[str] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        """Name the file so that it is found from any folder."""
        super().__post_init__()
        file, name = split_source(self.name)
        object.__setattr__(self, "name", f"{file.resolve()}:{name}")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Import or make the model, and try it; see `Network.build`."""
        model = load_model(self.name, shape=shape, classes=classes)
        if not isinstance(model, nn.Module):
            raise CommandError(f"network {self.name} is a {type(model).__name__}; make it an nn.Module, such as"
                               " nn.Sequential(*modules)")  # fmt: skip
        parameters = list(model.parameters())
        if not any(p.requires_grad for p in parameters):
            raise CommandError(f"network {self.name} has no trainable parameter; call requires_grad_(True) on some")
        if any(p.is_meta for p in parameters):
            raise CommandError(f"network {self.name} is on the meta device and holds no numbers; build it on the CPU")
        self._try(model, shape, classes)
        return model

    def _try(self, model: nn.Module, shape: tuple[int, ...], classes: int) -> None:
        """Refuse a model that does not fit the data, and let lazy modules find their sizes."""
        first = next(model.parameters())
        x = torch.zeros(_SAMPLES, *shape, dtype=first.dtype, device=first.device)
        modes = {module: module.training for module in model.modules()}
        size = "×".join(map(str, shape))
        try:
            with torch.no_grad(), forked_random_states():
                output = model.eval()(x)
        except Exception as error:
            raise CommandError(f"network {self.name} does not accept {_SAMPLES} samples of shape {size}, the data's"
                               f" ({type(error).__name__}: {error}); let its forward take one tensor of shape"
                               f" (n, {', '.join(map(str, shape))})") from error  # fmt: skip
        finally:
            for module, training in modes.items():
                module.training = training
        found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        if found != (_SAMPLES, classes):
            what = f"shape {found}" if isinstance(output, torch.Tensor) else found
            raise CommandError(f"network {self.name} returns {what} for {_SAMPLES} samples; let it return a tensor of"
                               f" shape (n, {classes}), a number for each of the data's classes")  # fmt: skip
