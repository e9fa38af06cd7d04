"""The oracle of property tests: with exact transposes ``.grad`` is that of back-propagation, or there is a refusal."""

import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import targetprop as tp
from targetprop.decoders.bank import Bank
from targetprop.decoders.mirror_bank import MirrorBank
from targetprop.decoders.proposal import Proposal

HERE = Path(tp.__file__).parent
Named = dict[str, Tensor | None]


class Exact(MirrorBank):
    """Mirrors that are their weights at any time."""

    def mirror(self, key: str, weight: Tensor) -> Tensor:
        found = super().mirror(key, weight)
        with torch.no_grad():
            return found.copy_(weight)


@dataclass(frozen=True)
class ExactMirrors(tp.WeightMirror):
    """Makes them."""

    def build(self, *args: Any) -> Bank:
        bank = super().build(*args)
        bank.__class__ = Exact
        return bank

    def propose(self, *args: Any) -> Proposal:
        return Proposal()


MIRRORS = tp.method("l-drl", decoder=ExactMirrors())
TRANSPOSES = tp.method("dtp", decoder=tp.Exact(w=0.0, damping=1.0))  # of layers that are made again
EXACT = {"mirrors": MIRRORS, "transposes": TRANSPOSES, "backprop": tp.method("backprop")}


def named(*modules: Any) -> dict[str, nn.Parameter]:
    return {
        f"{i}.{name}": p for i, m in enumerate(modules) if isinstance(m, nn.Module) for name, p in m.named_parameters()
    }


def taken(*modules: Any) -> Named:
    """Take what is in ``.grad``, and leave nothing there."""
    found: Named = {}
    for name, p in named(*modules).items():
        found[name] = None if p.grad is None else p.grad.to_dense().clone()
        p.grad = None
    return found


def alike(found: Named, expected: Named, least: float = 0.999) -> None:
    """Compare directions and sizes; what is rounding in both says nothing."""
    size = max([float(g.norm()) for g in expected.values() if g is not None], default=0.0)
    for name, gradient in expected.items():
        got = found[name]
        assert (got is None) == (gradient is None), f"{name}: {found[name]} where {gradient} is right"
        if got is None or gradient is None:
            continue
        assert got.shape == gradient.shape and got.dtype == gradient.dtype and bool(torch.isfinite(got).all()), name
        a, b = (g.flatten().double() for g in (got, gradient))
        if float(b.norm()) <= 1e-9 * size:
            assert float(a.norm()) <= 1e-7 * size, name
            continue
        assert float(torch.cosine_similarity(a, b, 0, eps=1e-300)) >= least, name
        assert least <= float(a.norm() / b.norm()) <= 1 / least, name


def refusal(act: Callable[[], Any]) -> str | None:
    """Run, and return the sentence of a refusal; a crash of torch is passed on."""
    try:
        act()
    except (ValueError, TypeError, RuntimeError, FloatingPointError) as error:
        ours = HERE in Path(traceback.extract_tb(error.__traceback__)[-1].filename).parents
        if not ours or len(str(error)) < 20:
            raise
        return str(error)
    return None


def buffers_alike(modules: Iterable[Any], others: Iterable[Any]) -> None:
    for one, other in zip(modules, others, strict=True):
        if isinstance(one, nn.Module):
            for (name, a), b in zip(one.named_buffers(), other.buffers(), strict=True):
                torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


def quiet() -> None:
    """Leave out what PyTorch says of its own old names."""
    warnings.filterwarnings("ignore", message=".*deprecated.*")
