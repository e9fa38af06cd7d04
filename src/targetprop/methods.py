"""The published methods as named compositions of the same parts (see the table in docs/methods.md).

A `Method` is frozen settings; `dataclasses.replace` or the keyword arguments of `method` make variants of it:

>>> import targetprop as tp
>>> dtp = tp.method("dtp")
>>> dtp.decoder.name, dtp.inversion.name, dtp.update.name
('denoising', 'difference', 'gradient')
>>> tp.method("dtp", inversion=tp.InputSpace(steps=3)).inversion.steps
3
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from targetprop.decoders import (
    Denoising,
    DifferenceReconstruction,
    DirectFeedback,
    Exact,
    Fixed,
    GlobalReconstruction,
    NoDecoder,
    WeightInverse,
    WeightMirror,
)
from targetprop.influence import Influence
from targetprop.inversion import Direct, InputSpace, Krylov, OutputSpace, Regularised
from targetprop.output_target import GradientStep, LabelTarget
from targetprop.recipe import Method
from targetprop.updates import DeltaRule, Kronecker, LeastSquares


def _mirrors() -> WeightMirror:
    """Mirrors take turns: for layers of a few hundred units a step costs as much as its probes take to be launched."""
    return WeightMirror(every=4, warmup=4.0)


def _iterated() -> Method:
    """Bengio 2020, arXiv:2007.15139: local inverses, iterated in input space for all layers, influence-normalised.

    ``ĥ_l ← ĥ_l + g_{l+1}(ĥ_{l+1}) − g_{l+1}(f_{l+1}(ĥ_l))`` in two sweeps from the top down, then
    ``Δ_l ← Δ_l ‖Δ_L‖²/‖Δ_l‖²``. Of the paper's body only what others took over was at hand; the form of the decoders,
    their damping and the limit are this project's. The delta rule for layers cut before their activations, which the
    paper's derivation wants: ``cut="pre-activation"``, ``update=DeltaRule(pullback="transpose")``, and SGD at 2. It
    suits layers in a row; convolutions with pooling, and blocks that branch, it trains badly (docs/methods.md).

    Returns:
        The recipe.
    """
    return Method(
        decoder=WeightInverse(damping=3.0, every=8, warmup=4.0),
        inversion=InputSpace(steps=2, tolerance=1e-3),
        propagation="top-down",
        influence=Influence(normalise=True, limit=10.0),
    )


def _autoencoder() -> Method:
    """The literal reading of Bengio 2020: auto-encoders ``g(y) = Ω σ(y) + c`` per layer, in ten joint sweeps.

    They learn to rebuild ``h`` from ``f(h)``, by gradient. It trains badly, as ``g∘f − id`` does not become a
    contraction: ``targetprop inspect`` shows by how much, docs/methods.md the figures.

    Returns:
        The recipe.
    """
    return Method(
        cut="pre-activation",
        decoder=Denoising(noise=0.1, activation="forward", lr=5e-3),
        inversion=InputSpace(steps=10, tolerance=1e-3),
        propagation="top-down",
        influence=Influence(normalise=True, limit=10.0),
        update=DeltaRule(pullback="transpose"),
    )


def _krylov() -> Method:
    """This project's own: mirrored transposes, made damped inverses of each sample's Jacobian by two Krylov steps."""
    return Method(
        decoder=_mirrors(),
        inversion=Krylov(steps=2, damping=0.3),
        influence=Influence(normalise=True, limit=10.0),
    )


def _learned_inverse() -> Method:
    """This project's own: decoders that learn the damped inverse by gradient, ``ℓ(1, λ)``, and a step of iteration."""
    return Method(
        decoder=DifferenceReconstruction(w=1.0, damping=3.0, relative=True, activation="transpose", share=0.5, lr=5e-3),
        inversion=OutputSpace(steps=1, tolerance=1e-3),
        influence=Influence(normalise=True, limit=10.0),
    )


def _tp() -> Method:
    """Bengio 2014, arXiv:1407.7906: targets by direct decoding; β is large, to outweigh the error of reconstruction."""
    return Method(output_target=GradientStep(beta=5.0), decoder=Denoising(lr=5e-3), inversion=Direct())


def _difference_decoders() -> Denoising:
    """Wide noise keeps the linear fit close to the average slope, and a quarter of the batch is enough to track it."""
    return Denoising(noise=2.0, activation="transpose", share=0.25, lr=5e-3)


def _dtp() -> Method:
    """Lee 2015, arXiv:1412.7525: difference target propagation."""
    return Method(decoder=_difference_decoders())


def _sdtp() -> Method:
    """Bartunov 2018, arXiv:1807.04587: the top hidden layer's target comes from the one-hot label."""
    return Method(output_target=LabelTarget(), decoder=_difference_decoders())


def _drl() -> Method:
    """Meulemans 2020, arXiv:2006.14331: decoders trained by global difference reconstruction."""
    return Method(decoder=GlobalReconstruction())


def _ddtp() -> Method:
    """Meulemans 2020, arXiv:2006.14331: one affine map from the output to each layer (DDTP-linear)."""
    return Method(decoder=DirectFeedback(), propagation="composite")


def _l_drl() -> Method:
    """Ernoult 2022, arXiv:2201.13415: decoders learn the transposed Jacobian, so targets follow back-propagation."""
    # The original learns by DifferenceReconstruction(w=0, damping=1), many updates a batch; mirrors have its minimum.
    return Method(decoder=_mirrors())


def _least_squares() -> Method:
    """The local regression solved instead of stepped: targets of `l-drl`, each layer moved towards its own at once.

    With ``Δz_l`` scaled to a root mean square of 1/L over the batch, L the number of maps,
    ``.grad = −(Σ Δz aᵀ/n)(A + μ I)⁻¹``, ``A`` the running mean of ``a aᵀ``: the learning rate is how far all layers
    together move. Take SGD at 0.25, momentum 0.5, a warm-up and a decay, as the command does if nothing else is said;
    see docs/optimiser.md. Beyond `l-drl`, a step of a layer of ``d`` inputs and ``k`` outputs on a batch of ``n`` costs
    ``n d² + n d k + d² k + d³/15`` multiplications, and ``2 d²`` numbers of memory.

    Returns:
        The recipe.
    """
    return Method(decoder=_mirrors(), update=LeastSquares(damping=0.003, shrinkage=0.1))


def _kronecker() -> Method:
    """This project's own: the regression of `least-squares` with a factor for each side, and a trust region.

    Targets of `l-drl`, and labels drawn from the network's own belief brought down by the same mirrors, which give each
    layer its block of the Fisher matrix. Take SGD at rate 1 without momentum, a warm-up over the first 5 % of the steps
    and a linear decay to zero, as the command does if nothing else is said; docs/optimiser.md tells what it costs.

    Returns:
        The recipe.
    """
    return Method(decoder=_mirrors(), update=Kronecker())


def _gauss_newton() -> Method:
    """This project's own: Gauss-Newton-like targets of `krylov` without normalisation, and each regression solved.

    Two Krylov steps at ``λ = 3``, then the update of `least-squares` at ``μ = 1``, which overfits less than at its
    0.003. Take SGD at 0.1, momentum 0.5, a warm-up over the first 5 % of the steps and a linear decay to zero, as the
    command does if nothing else is said; a step costs what one of `least-squares` and one of `krylov` do together.

    Returns:
        The recipe.
    """
    return Method(
        decoder=_mirrors(),
        inversion=Krylov(steps=2, damping=3.0),
        update=LeastSquares(damping=1.0, shrinkage=0.1),
    )


def _fw_dtp() -> Method:
    """Shibuya 2023: fixed random decoders."""
    return Method(decoder=Fixed())


def _gait() -> Method:
    """After Ahmad 2020 (GAIT-prop), for invertible networks: exact inverses, scaled by squared influence, small β."""
    return Method(
        output_target=GradientStep(beta=1e-3),
        decoder=Exact(w=1.0, damping=0.0),
        inversion=Direct(),
        influence=Influence(normalise=True),
    )


def _regularised() -> Method:
    """After Roulet & Harchaoui 2021: a few solver steps on the regularised inversion problem, no decoder."""
    return Method(decoder=NoDecoder(), inversion=Regularised(steps=5, alpha=0.15, damping=1.0))


def _backprop() -> Method:
    """The matched baseline: autograd carries the signal, everything else in the loop stays the same."""
    return Method(decoder=NoDecoder(), propagation="backprop")


METHODS: dict[str, Callable[[], Method]] = {
    "l-drl": _l_drl,
    "iterated": _iterated,
    "autoencoder": _autoencoder,
    "krylov": _krylov,
    "gauss-newton": _gauss_newton,
    "learned-inverse": _learned_inverse,
    "least-squares": _least_squares,
    "kronecker": _kronecker,
    "tp": _tp,
    "dtp": _dtp,
    "sdtp": _sdtp,
    "drl": _drl,
    "ddtp-linear": _ddtp,
    "fw-dtp": _fw_dtp,
    "gait": _gait,
    "regularised": _regularised,
    "backprop": _backprop,
}


def method(name: str, **changes: Any) -> Method:
    """Look a method up by name.

    Args:
        name: one of `METHODS`.
        **changes: parts to replace.

    Returns:
        The method.

    Raises:
        ValueError: the name is unknown, or the parts do not fit each other.

    >>> print(method("fw-dtp"))
    fw-dtp
      cut            post-activation
      output_target  gradient                   beta=0.1
      decoder        fixed                      activation=identity
      inversion      difference
      propagation    layerwise
      influence                                 normalise=False, limit=inf
      update         gradient
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; the methods are {', '.join(METHODS)}")
    return replace(METHODS[name](), name=name, **changes)
