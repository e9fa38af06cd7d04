"""Every loss of `torch.nn`, in every reduction, with what else it takes."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compatibility.case import SAMPLES, WIDTH, Case, Plain, classes


def _values() -> Tensor:
    return torch.randn(SAMPLES, 3)


def _shares() -> Tensor:
    return torch.rand(SAMPLES, 3)


def _soft() -> Tensor:
    return torch.randn(SAMPLES, 3).softmax(1)


def _signs() -> Tensor:
    return torch.randn(SAMPLES, 3).sign()


def _sign() -> Tensor:
    return torch.randn(SAMPLES).sign()


def _some() -> Tensor:
    return torch.tensor([0, -100, 2, 1, -100])


def _per_step() -> Tensor:
    return torch.randint(0, 3, (SAMPLES, 2))


def _sets() -> Tensor:
    return torch.tensor([[0, 2, -1], [1, -1, -1], [2, 1, 0], [0, -1, -1], [2, -1, -1]])


def _sequences() -> Tensor:
    return torch.randint(1, 3, (SAMPLES, 2))


def _rated() -> tuple[Tensor, Tensor]:
    return torch.randn(SAMPLES, 3), torch.rand(SAMPLES, 3) + 0.5


def _log(h: Tensor) -> Tensor:
    return h.log_softmax(1)


def _halves(loss: Any, h: Tensor, y: Tensor) -> Tensor:
    return loss(h[:, 0], h[:, 1], y)


def _thirds(loss: Any, h: Tensor, y: Any) -> Tensor:
    return loss(h[:, 0], h[:, 1], h[:, 2])


def _columns(loss: Any, h: Tensor, y: Tensor) -> Tensor:
    return loss(h[:, 0, 0], h[:, 1, 0], y)


def _variance(loss: Any, h: Tensor, y: Tensor) -> Tensor:
    return loss(h[:, 0], y, h[:, 1].exp())


def _ctc(loss: Any, h: Tensor, y: Tensor) -> Tensor:
    lengths = torch.full((len(h),), h.shape[1]), torch.full((len(h),), y.shape[1])
    return loss(h.transpose(0, 1), y, *lengths)


def _adaptive(loss: Any, h: Tensor, y: Tensor) -> Tensor:
    return loss(h, y).loss


class Wrapped(nn.Module):
    """A loss that is given what it takes from an output and labels, and says as little as a function.

    Args:
        loss: the loss of torch.
        use: calls it.
    """

    def __init__(self, loss: nn.Module, use: Callable[[Any, Any, Any], Tensor]) -> None:
        """Keep both."""
        super().__init__()
        self.inner, self.use = loss, use

    def forward(self, output: Any, y: Any) -> Tensor:
        """Call the loss."""
        return self.use(self.inner, output, y)


# The class, labels, shape of a sample of the output, what finishes it, and how the loss is called if not by (h, y).
_LOSSES: dict[str, tuple[Callable[[], Any], tuple[int, ...], Any, Any]] = {
    "L1Loss": (_values, (3,), None, None),
    "MSELoss": (_values, (3,), None, None),
    "SmoothL1Loss": (_values, (3,), None, None),
    "HuberLoss": (_values, (3,), None, None),
    "CrossEntropyLoss": (classes, (3,), None, None),
    "NLLLoss": (classes, (3,), _log, None),
    "NLLLoss2d": (_per_step, (3, 2), _log, None),
    "PoissonNLLLoss": (_shares, (3,), None, None),
    "GaussianNLLLoss": (_values, (2, 3), None, _variance),
    "KLDivLoss": (_soft, (3,), _log, None),
    "BCELoss": (_shares, (3,), torch.sigmoid, None),
    "BCEWithLogitsLoss": (_shares, (3,), None, None),
    "SoftMarginLoss": (_signs, (3,), None, None),
    "HingeEmbeddingLoss": (_signs, (3,), None, None),
    "MultiMarginLoss": (classes, (3,), None, None),
    "MultiLabelMarginLoss": (_sets, (3,), None, None),
    "MultiLabelSoftMarginLoss": (_shares, (3,), None, None),
    "MarginRankingLoss": (_sign, (2, 1), None, _columns),
    "CosineEmbeddingLoss": (_sign, (2, 3), None, _halves),
    "TripletMarginLoss": (classes, (3, 4), None, _thirds),
    "TripletMarginWithDistanceLoss": (classes, (3, 4), None, _thirds),
    "CTCLoss": (_sequences, (4, 3), lambda h: h.log_softmax(2), _ctc),
}


def _row(
    name: str, setting: str, make: Callable[[], Any], *, labels: Any = None, shape: Any = None, **changes: Any
) -> Case:
    found, size, finish, use = _LOSSES[name]
    size, labels = shape or size, labels or found
    loss = make if use is None else lambda: Wrapped(make(), use)
    case = Case(f"{name}; {setting}", "Losses", lambda: Plain(size, finish), loss, labels=labels)
    return replace(case, **changes)


def _reductions() -> Iterator[Case]:
    for name in _LOSSES:
        kinds = ["mean", "sum", "none", *(["batchmean"] if name == "KLDivLoss" else [])]
        for kind in kinds:
            yield _row(name, kind, lambda n=name, k=kind: getattr(nn, n)(reduction=k))


def _settings() -> Iterator[Case]:
    weight = torch.tensor([0.2, 1.0, 3.0])
    for kind in ("mean", "sum"):
        cross = partial(nn.CrossEntropyLoss, reduction=kind)
        yield _row("CrossEntropyLoss", f"weight, {kind}", lambda c=cross: c(weight))
        yield _row("CrossEntropyLoss", f"ignore_index, {kind}", cross, labels=_some)
        yield _row("CrossEntropyLoss", f"label_smoothing, {kind}", lambda c=cross: c(label_smoothing=0.1))
        yield _row("CrossEntropyLoss", f"soft labels, {kind}", cross, labels=_soft)
        yield _row("CrossEntropyLoss", f"(N, C, T), {kind}", cross, labels=_per_step, shape=(3, 2))
        yield _row("NLLLoss", f"weight, {kind}", lambda k=kind: nn.NLLLoss(weight, reduction=k))
        yield _row("NLLLoss", f"ignore_index, {kind}", lambda k=kind: nn.NLLLoss(reduction=k), labels=_some)
        yield _row("BCELoss", f"weight, {kind}", lambda k=kind: nn.BCELoss(weight, reduction=k))
        yield _row(
            "BCEWithLogitsLoss",
            f"pos_weight, {kind}",
            lambda k=kind: nn.BCEWithLogitsLoss(pos_weight=weight, reduction=k),
        )
        yield _row(
            "MultiMarginLoss", f"weight, {kind}", lambda k=kind: nn.MultiMarginLoss(weight=weight.double(), reduction=k)
        )
        yield _row(
            "KLDivLoss",
            f"log_target, {kind}",
            lambda k=kind: nn.KLDivLoss(log_target=True, reduction=k),
            labels=lambda: _soft().log(),
        )
    yield _row(
        "CrossEntropyLoss",
        "weight, ignore_index, label_smoothing",
        lambda: nn.CrossEntropyLoss(weight, label_smoothing=0.1),
        labels=_some,
    )
    yield _row(
        "CrossEntropyLoss", "every label ignored", nn.CrossEntropyLoss, labels=lambda: torch.full((SAMPLES,), -100)
    )
    yield _row("PoissonNLLLoss", "log_input=False", lambda: nn.PoissonNLLLoss(log_input=False), labels=_shares)
    yield _row("CTCLoss", "zero_infinity", lambda: nn.CTCLoss(zero_infinity=True))
    yield _row(
        "MSELoss", "one number per sample against a row", nn.MSELoss, labels=lambda: torch.randn(SAMPLES), shape=(1,)
    )


def _with_parameters() -> Iterator[Case]:
    yield Case(
        "AdaptiveLogSoftmaxWithLoss; as the loss",
        "Losses",
        lambda: Plain((WIDTH,)),
        lambda: Wrapped(nn.AdaptiveLogSoftmaxWithLoss(WIDTH, 4, [2]), _adaptive),
        labels=lambda: torch.randint(0, 4, (SAMPLES,)),
    )
    yield Case(
        "AdaptiveLogSoftmaxWithLoss; in the model",
        "Losses",
        Adaptive,
        lambda: _own,
        inputs=lambda: {"x": torch.randn(SAMPLES, 4), "labels": torch.randint(0, 4, (SAMPLES,))},
        labels=lambda: None,
    )
    for kind in ("mean", "sum", "none"):
        yield Case(
            f"LinearCrossEntropyLoss; {kind}",
            "Losses",
            lambda: Plain((WIDTH,)),
            lambda kind=kind: nn.LinearCrossEntropyLoss(WIDTH, 4, reduction=kind),
            labels=lambda: torch.randint(0, 4, (SAMPLES,)),
        )


class Adaptive(nn.Module):
    """A model that ends with an adaptive softmax and computes its own loss."""

    def __init__(self) -> None:
        """Make the parts."""
        super().__init__()
        self.body, self.crit = Plain((WIDTH,)), nn.AdaptiveLogSoftmaxWithLoss(WIDTH, 4, [2])

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Run it."""
        out, loss = self.crit(self.body(x), labels)
        return {"logits": out, "loss": loss}


def _own(output: Any, y: Any) -> Tensor:
    return output["loss"]


def _functions() -> Iterator[Case]:
    yield Case("F.cross_entropy; function", "Losses", Plain, lambda: functional.cross_entropy)
    yield Case(
        "F.cross_entropy; partial, sum", "Losses", Plain, lambda: partial(functional.cross_entropy, reduction="sum")
    )
    yield Case(
        "F.mse_loss; lambda, half the sum",
        "Losses",
        Plain,
        lambda: lambda h, y: 0.5 * (h - y).square().sum(),
        labels=_values,
    )
    yield Case(
        "F.mse_loss; reduction='none' by a partial",
        "Losses",
        Plain,
        lambda: partial(functional.mse_loss, reduction="none"),
        labels=_values,
    )


def rows() -> list[Case]:
    """List the rows; the name of each is the loss and its setting."""
    return sorted(
        [*_reductions(), *_settings(), *_with_parameters(), *_functions()], key=lambda case: case.name.split(";")[0]
    )
