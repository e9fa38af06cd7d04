"""Every optimiser of `torch.optim`: three steps beside three of back-propagation, the mirrors set to the weights."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler, swa_utils

from compatibility.case import SAMPLES, Case, Plain


class Looked(nn.Module):
    """Sparse embeddings alone, and what is done with them."""

    def __init__(self) -> None:
        """Make two tables."""
        super().__init__()
        self.words, self.kinds = nn.Embedding(7, 3, sparse=True), nn.Embedding(7, 3, sparse=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Look up, and take what is alike."""
        return torch.tanh(self.words(tokens).sum(1)) * self.kinds(tokens).mean(1)


class Matrices(nn.Module):
    """Linear maps without biases: Muon takes matrices alone."""

    def __init__(self) -> None:
        """Make the maps."""
        super().__init__()
        self.stem, self.below, self.head = (nn.Linear(a, b, bias=False) for a, b in ((4, 6), (6, 6), (6, 3)))

    def forward(self, x: Tensor) -> Tensor:
        """Run them."""
        return self.head(torch.tanh(self.below(torch.tanh(self.stem(x)))))


def _tokens() -> Tensor:
    return torch.randint(0, 7, (SAMPLES, 4))


def _made(make: Callable[..., Any], **settings: Any) -> Callable[[nn.Module], Any]:
    return lambda model: make(model.parameters(), **settings)


def public() -> list[str]:
    """Name every public optimiser class of `torch.optim`."""
    kinds = {n: c for n, c in vars(torch.optim).items() if isinstance(c, type) and issubclass(c, torch.optim.Optimizer)}
    return sorted(name for name in kinds if name != "Optimizer")


def _plain() -> Iterator[Case]:
    for name in public():
        model: Callable[[], nn.Module] = {"SparseAdam": Looked, "Muon": Matrices}.get(name, Plain)
        changes: dict[str, Any] = {"inputs": _tokens} if name == "SparseAdam" else {}
        yield Case(name, "Optimisers", model, optimizer=_made(getattr(torch.optim, name), lr=0.05), **changes)
    for name, settings in {
        "SGD, momentum, nesterov, weight_decay": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        "SGD, maximize": {"maximize": True},
        "Adam, amsgrad, foreach": {"amsgrad": True, "foreach": True},
        "AdamW, fused": {"fused": True},
        "LBFGS, strong_wolfe": {"line_search_fn": "strong_wolfe"},
    }.items():
        yield Case(
            name, "Optimisers", Plain, optimizer=_made(getattr(torch.optim, name.split(",")[0]), lr=0.05, **settings)
        )


class Scheduled(torch.optim.SGD):
    """SGD with a schedule, and a moving average of the model.

    Args:
        model: the model.
        make: makes the schedule.
    """

    def __init__(self, model: nn.Module, make: Callable[[Any], Any] | None = None) -> None:
        """Make both."""
        super().__init__(model.parameters(), 0.1, momentum=0.9)
        self.schedule = None if make is None else make(self)
        self.average = None if make is not None else swa_utils.AveragedModel(model)
        self.model = model

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a step of all three."""
        super().step()
        if self.schedule is not None:
            self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
            with torch.no_grad():  # what is trained on is compared, and that is the average now
                for p, mean in zip(self.model.parameters(), self.average.module.parameters(), strict=True):
                    p.copy_(mean)


def _around() -> Iterator[Case]:
    for name, make in {
        "lr_scheduler.StepLR": lambda o: lr_scheduler.StepLR(o, 1, 0.5),
        "lr_scheduler.CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 3),
        "lr_scheduler.OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=9),
        "swa_utils.SWALR": lambda o: swa_utils.SWALR(o, 0.01),
    }.items():
        yield Case(name, "Around optimisers", Plain, optimizer=lambda m, make=make: Scheduled(m, make))
    yield Case("swa_utils.AveragedModel, beside the model", "Around optimisers", Plain, optimizer=Scheduled)
    yield Case("swa_utils.AveragedModel, as the model", "Around optimisers", lambda: swa_utils.AveragedModel(Plain()))


def rows() -> list[Case]:
    """List the rows."""
    return [*_plain(), *_around()]
