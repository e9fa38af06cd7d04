"""Contracts for parts that you write yourself: derive a class from one, and pytest runs its tests on your part.

>>> import targetprop as tp
>>> class TestHalfSteps(InversionContract):
...     rule = tp.InputSpace(steps=200, alpha=0.5)
>>> class TestScale(DecoderContract):
...     def module(self):
...         return nn.LeakyReLU(0.2)

An inversion rule promises that samples do not influence each other, that one which diverges is reported and harms no
other, that residuals are what they say, and that the answer of an already solved problem is where it started. A
decoder promises shapes, consistent differences and independent samples, and that it leaves the module alone.
"""

import copy
from typing import ClassVar

import torch
from torch import Tensor, nn

from targetprop.decoders import Denoising, Inverse
from targetprop.decoders.registry import Style
from targetprop.engine import TargetPropagation
from targetprop.inversion import Inversion, Solution, Status, invert, sample_norm
from targetprop.layers import LayerRecord
from targetprop.recipe import Method

_LARGE = 1e3


def _rand(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _apply(matrix: Tensor, x: Tensor) -> Tensor:
    """Multiply each sample by a matrix, rounding the same in a batch of any size."""
    return (matrix * x.unsqueeze(-2)).sum(-1)


class InversionContract:
    """What every inversion rule promises; set `rule` in a derived class.

    Attributes:
        rule: the rule under test, with enough steps to converge on a well-conditioned problem.
        differential: whether ``x → x₀`` as ``t → y₀`` with any decoder; false of direct inversion.
        needs_exact: whether only an exact decoder makes it reach the target, as for rules of one call.
        accuracy: largest ``‖t − f(x)‖ / ‖t − y₀‖`` on a problem that it should solve.
    """

    rule: ClassVar[Inversion]
    differential: ClassVar[bool] = True
    needs_exact: ClassVar[bool] = False
    accuracy: ClassVar[float] = 1e-5

    A = torch.eye(4, dtype=torch.float64) + 0.15 * _rand(4, 4, seed=1)
    rough = torch.linalg.inv(A) @ (torch.eye(4, dtype=torch.float64) + 0.1 * _rand(4, 4, seed=2))

    def f(self, x: Tensor) -> Tensor:
        """Map forward; samples further out than a bound overflow."""
        y = _apply(self.A, x) + 0.1
        return torch.where(y.flatten(1).abs().amax(1).view(-1, *[1] * (y.dim() - 1)) > _LARGE, torch.inf, y)

    def g(self, y: Tensor) -> Tensor:
        """Decode roughly, or exactly if the rule needs that."""
        return _apply(torch.linalg.inv(self.A) if self.needs_exact else self.rough, y - 0.1)

    def solve(self, target: Tensor, x0: Tensor) -> Solution:
        """Run the rule on the contract's maps."""
        return invert(self.f, self.g, target, x0, method=self.rule)

    def test_reaches_the_target(self) -> None:
        """The forward residual becomes small."""
        x0, wanted = _rand(6, 4, seed=3), _rand(6, 4, seed=4)
        t = self.f(wanted)
        found = self.solve(t, x0)
        missing, asked = sample_norm(t - self.f(found.x)), sample_norm(t - self.f(x0))
        assert (missing <= self.accuracy * asked).all(), f"left {(missing / asked).max():.2g} of the way to the target"

    def test_residuals_are_what_they_say(self) -> None:
        """``forward_residual`` is measured at the answer."""
        x0 = _rand(6, 4, seed=3)
        t = self.f(x0 + 0.1 * _rand(6, 4, seed=4))
        found = self.solve(t, x0)
        assert found.forward_residual is not None, "measure=True must measure"
        torch.testing.assert_close(found.forward_residual, sample_norm(t - self.f(found.x)), rtol=1e-6, atol=1e-13)

    def test_a_batch_is_its_samples_one_by_one(self) -> None:
        """Samples do not influence each other."""
        x0 = _rand(5, 4, seed=3)
        t = self.f(x0 + _rand(5, 4, seed=4) * torch.tensor([[1e-3], [1e-1], [1.0], [3.0], [0.0]], dtype=x0.dtype))
        together = self.solve(t, x0)
        for i in range(5):
            alone = self.solve(t[i : i + 1], x0[i : i + 1])
            torch.testing.assert_close(together.x[i : i + 1], alone.x, rtol=1e-10, atol=1e-12)
            assert int(together.status[i]) == int(alone.status), f"sample {i} ends otherwise alone"
            assert int(together.steps[i]) == int(alone.steps), f"sample {i} takes other steps alone"

    def test_a_diverging_sample_is_reported_and_harms_no_other(self) -> None:
        """One sample overflows; the others' answers do not change by a bit."""
        x0 = _rand(4, 4, seed=3)
        t = self.f(x0 + 0.1 * _rand(4, 4, seed=4))
        bad = t.clone()
        bad[2] = torch.nan
        harmed, healthy = self.solve(bad, x0), self.solve(t, x0)
        others = torch.tensor([0, 1, 3])
        assert torch.equal(harmed.x[others], healthy.x[others]), "other samples changed"
        assert torch.equal(harmed.status[others], healthy.status[others])
        assert int(harmed.status[2]) == Status.DIVERGED, "a target of NaN must end as DIVERGED"
        assert torch.equal(harmed.x[2], x0[2]), "without any finite estimate the answer is x0"

    def test_a_solved_problem_is_left_alone(self) -> None:
        """``t = y₀`` gives ``x₀`` exactly, or up to rounding for rules that are not differential."""
        x0 = _rand(4, 4, seed=3)
        exact = torch.linalg.inv(self.A)
        g = self.g if self.differential else lambda y: _apply(exact, y - 0.1)
        found = invert(self.f, g, self.f(x0), x0, method=self.rule)
        torch.testing.assert_close(found.x, x0, rtol=0, atol=0 if self.differential else 1e-12)

    def test_any_shape_of_sample_will_do(self) -> None:
        """Samples may have more dimensions than one."""
        x0 = _rand(3, 2, 4, seed=3)
        t = self.f(x0 + 0.1 * _rand(3, 2, 4, seed=4))
        found = self.solve(t, x0)
        assert found.x.shape == x0.shape
        assert found.status.shape == found.steps.shape == (3,)
        assert (sample_norm(t - self.f(found.x)) <= 10 * self.accuracy * sample_norm(t - self.f(x0))).all()


class _Scale(nn.Module):
    """A first layer with a parameter, of any shape, so that the module under test is one to be inverted."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x


class DecoderContract:
    """What decoders of modules promise, the built-in ones and those of `register_decoder`.

    Override `module`, and `example` if its input is not ``(n, 4)``.

    Attributes:
        style: how activations and norms are decoded.
        per_sample: whether the module treats samples one by one in its present mode.
    """

    style: ClassVar[Style] = "inverse"
    per_sample: ClassVar[bool] = True

    def module(self) -> nn.Module:
        """Make the module that your decoder inverts.

        Returns:
            The module.

        Raises:
            NotImplementedError: the derived class does not override it.
        """
        raise NotImplementedError("override module() to return the module that your decoder inverts")

    def example(self) -> Tensor:
        """Make an input of the module, shape ``(n, …)``, ``n ≥ 2``."""
        return _rand(5, 4, seed=3)

    def bound(self, x: Tensor) -> tuple[Inverse, LayerRecord, nn.Module]:
        """Build the decoder, and bind it to a forward pass on ``x``.

        Args:
            x: input of the module.

        Returns:
            The decoder, the record of the module's layer, and the module.
        """
        torch.manual_seed(0)
        module = self.module().to(torch.float64)
        model = {"below": _Scale(), "layer": module}
        engine = TargetPropagation(
            model, nn.MSELoss(), example_input=x, method=Method(decoder=Denoising(activation=self.style)), seed=0
        )
        torch.manual_seed(1)
        record = engine.record(x)
        return engine.bank.inverse(record.layers[1]), record.layers[1], module

    def test_returns_inputs(self) -> None:
        """Outputs are mapped to finite tensors of the input's shape, up to the sizes of values far outside too."""
        g, record, _ = self.bound(self.example())
        for y in (record.h, record.h + 0.1, torch.zeros_like(record.h), 100 * record.h):
            x = g(y)
            assert x.shape == record.x.shape, f"got {tuple(x.shape)} for an input of {tuple(record.x.shape)}"
            assert torch.isfinite(x).all(), "a decoder must return finite values for any finite output"

    def test_differences_are_differences(self) -> None:
        """``difference(y, c)`` is ``g(y + c) − g(y)``, and exactly zero at ``c = 0``."""
        g, record, _ = self.bound(self.example())
        y, change = record.h, 0.1 * _rand(*record.h.shape, seed=5)
        torch.testing.assert_close(g.difference(y, change), g(y + change) - g(y), rtol=1e-9, atol=1e-12)
        assert not g.difference(y, torch.zeros_like(y)).any()

    def test_a_batch_is_its_samples_one_by_one(self) -> None:
        """A change of one sample's output moves no other sample's input."""
        if not self.per_sample:
            return
        g, record, _ = self.bound(self.example())
        change = torch.zeros_like(record.h)
        change[0] = 0.1
        assert not g.difference(record.h, change)[1:].any()

    def test_leaves_the_module_alone(self) -> None:
        """Decoding changes no parameter, buffer or gradient of the module."""
        g, record, module = self.bound(self.example())
        before = copy.deepcopy(module.state_dict())
        g(record.h).sum()
        after = module.state_dict()
        assert list(before) == list(after) and all(torch.equal(before[k], after[k]) for k in before)
        assert all(p.grad is None for p in module.parameters())
