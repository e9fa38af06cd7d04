"""The linear maps of a sequential network during one forward pass, for methods that treat them one by one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from targetprop.experiments.errors import CommandError


@dataclass(frozen=True, eq=False)
class Map:
    """One ``nn.Linear`` with its batch, ``z = [W b] [a; 1]``."""

    linear: nn.Linear
    a: Tensor  # its inputs with a constant 1 where there is a bias, shape ``(n, d)``
    z: Tensor  # its outputs, with their graph, shape ``(n, k)``
    activation: nn.Module | None  # the module after it, unless that is linear again

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Weight, and bias if there is one."""
        return list(self.linear.parameters())

    @property
    def weight(self) -> Tensor:
        """``[W b]``, shape ``(k, d)``, without graph."""
        return torch.cat([p.detach().reshape(len(self.z[0]), -1) for p in self.parameters], dim=1)

    def set_gradient(self, gradient: Tensor) -> None:
        """Write ``.grad``."""
        width = self.linear.in_features
        self.linear.weight.grad = gradient[:, :width].contiguous()
        if self.linear.bias is not None:
            self.linear.bias.grad = gradient[:, width].contiguous()


def in_sequence(network: nn.Module) -> nn.Sequential:
    """Refuse what is not a sequence of linear maps and activations."""
    if isinstance(network, nn.Sequential) and not any(p.dim() > 2 for p in network.parameters()):
        return network
    raise CommandError("this competitor takes linear layers in a sequence alone; leave it out for this problem")


def run_forward(network: nn.Sequential, x: Tensor) -> tuple[Tensor, list[Map]]:
    """Run a network of linear maps and activations."""
    modules, maps = list(network), []
    for module, after in zip(modules, [*modules[1:], None], strict=True):
        y = module(x)
        if isinstance(module, nn.Linear):
            a = x.detach()
            a = a if module.bias is None else torch.cat([a, torch.ones_like(a[:, :1])], dim=1)
            maps.append(Map(module, a, y, None if isinstance(after, nn.Linear) else after))
        x = y
    return x, maps


def output_gradients(loss: Tensor, maps: Sequence[Map], *, keep_graph: bool = False) -> list[Tensor]:
    """Compute every sample's own gradient at the output of every map."""
    gradients = torch.autograd.grad(loss, [m.z for m in maps], retain_graph=keep_graph)
    return [len(g) * g for g in gradients]
