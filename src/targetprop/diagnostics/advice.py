r"""One plain sentence per layer: that it is fine, with the numbers that say so, or what is bad and what to change.

A layer is bad where a run iterates an inverse that does not converge, or where its target, or the change of its
weights, points nowhere near back-propagation's or Gauss-Newton's. The contraction factor matters to those who iterate:
transposes (L-DRL) follow back-propagation although iterating them would diverge. The remedies are those that helped
when they were tried, one by one, on runs made bad on purpose.

>>> from targetprop.methods import method
>>> advise(LayerInspection("0", 8, influence=2.0, angle_backprop=31.0, angle_gauss_newton=44.0), method("dtp"))
'layer 0: fine: its target points 31° away from back-propagation, 44° from Gauss-Newton'
>>> advise(LayerInspection("0", 8, influence=0.2, angle_backprop=81.0, angle_gauss_newton=80.0), method("tp"))
'layer 0: its target points 81° away from back-propagation, 80° from Gauss-Newton: set inversion.rule to difference'
"""

from math import isinf

from targetprop.decoders import (
    DifferenceReconstruction,
    Exact,
    Fixed,
    GlobalReconstruction,
    Learned,
    Ridge,
    WeightInverse,
    WeightMirror,
)
from targetprop.diagnostics.inspection import LayerInspection
from targetprop.diagnostics.inverse_quality import EXTRA_STEPS, InverseQuality
from targetprop.inversion import Direct, InputSpace, Iteration, Krylov
from targetprop.recipe import Method

MOST_DIVERGED = 0.05  # share of samples
MOST_NORM = 1.05  # contraction factor; what exceeds 1 by less is noise of learned decoders
LEAST_PROGRESS = 0.05  # share of the residual that further steps must remove where the contraction factor exceeds 1
LOST_ANGLE = 70.0  # degrees; in wide layers, directions that know nothing of each other are 90° apart
ASCENT_ANGLE = 90.0  # degrees; a longer way round, and a step raises the loss
AMPLIFIED = 2.0  # influence ‖Δ_L‖ / ‖Δ_l‖ below which a lost target is put down to amplified directions of no effect
DAMPING_FACTOR, LEAST_DAMPING, UPDATES_FACTOR = 10, 0.1, 4


def advise(layer: LayerInspection, method: Method) -> str:
    """Say what to change about a layer, if anything.

    Args:
        layer: what was measured of it.
        method: the method of the run.

    Returns:
        A sentence that names the layer, the number that is bad and what to set, or that the layer is fine.
    """
    inverse = layer.inverse
    if inverse is not None and _iterates(method) and _fails(inverse):
        said = f"{_failure(inverse, method)}: {_steady(inverse, method)}"
    elif layer.influence is None:
        said = "these samples ask for no change; inspect others"
    elif isinf(layer.influence):
        said = f"its target does not move, since an inverse above returns no change: {_redirect(layer, method)}"
    elif (layer.angle_gradient or 0.0) > ASCENT_ANGLE:
        angle = f"{layer.angle_gradient:.0f}° away from back-propagation's"
        said = f"the change of its weights points {angle}: {_redirect(layer, method)}"
    elif _nearest(layer) > LOST_ANGLE:
        said = f"{_direction(layer)}: {_redirect(layer, method)}"
    else:
        parts = [_inversion(inverse, method) if inverse is not None else "", _direction(layer)]
        said = f"fine: {'; '.join(part for part in parts if part) or 'nothing speaks against it'}"
    return f"layer {layer.name}: {said}"


def _iterates(method: Method) -> bool:
    rule = method.inversion
    return isinstance(rule, Iteration) and rule.steps > isinstance(rule, InputSpace)  # its first step is difference


def _fails(inverse: InverseQuality) -> bool:
    return (inverse.diverged or 0.0) > MOST_DIVERGED or (_exceeds(inverse) and not _progresses(inverse))


def _exceeds(inverse: InverseQuality) -> bool:
    return inverse.contraction is not None and inverse.contraction > MOST_NORM


def _progresses(inverse: InverseQuality) -> bool:
    before, after = inverse.residual, inverse.residual_iterated
    return before is not None and after is not None and after <= (1 - LEAST_PROGRESS) * before


def _nearest(layer: LayerInspection) -> float:
    return min((a for a in (layer.angle_backprop, layer.angle_gauss_newton) if a is not None), default=0.0)


def _norm(inverse: InverseQuality, method: Method) -> str:
    alpha = method.inversion.alpha if isinstance(method.inversion, Iteration) else 1.0
    both = "f∘g" if inverse.space == "output" else "g∘f"
    what = f"{both} − id" if alpha == 1 else f"id − {alpha:g} {both}"
    return f"{what if method.inversion.needs_decoder else 'a step of the iteration'} has norm {inverse.contraction:.3g}"


def _failure(inverse: InverseQuality, method: Method) -> str:
    said = [f"{_norm(inverse, method)} > 1"] if _exceeds(inverse) else []
    if (inverse.diverged or 0.0) > MOST_DIVERGED:
        return " and ".join([*said, f"iterating diverges for {inverse.diverged:.0%} of the samples"])
    return " and ".join([*said, "iterating does not lower the residual"])


def _inversion(inverse: InverseQuality, method: Method) -> str:
    if inverse.residual is None or inverse.residual_iterated is None:
        return ""
    said, norm = f"residual {inverse.residual:.2g}", f"{_norm(inverse, method)} > 1" if _exceeds(inverse) else ""
    if not _iterates(method) and not isinstance(method.inversion, Krylov):
        return said + (f", not to be iterated since {norm}" if norm else "")
    although = f" although {norm}" if norm and _iterates(method) else ""
    return f"{said}, {inverse.residual_iterated:.2g} after {EXTRA_STEPS} more steps{although}"


def _direction(layer: LayerInspection) -> str:
    angles = {"away from back-propagation": layer.angle_backprop, "from Gauss-Newton": layer.angle_gauss_newton}
    if all(angle is not None and round(angle) == 0 for angle in angles.values()):
        return "its target points where back-propagation and Gauss-Newton do"
    said = ", ".join(f"{angle:.0f}° {what}" for what, angle in angles.items() if angle is not None)
    return f"its target points {said}" if said else ""


def _steady(inverse: InverseQuality, method: Method) -> str:
    """What makes an iteration converge."""
    decoder, rule = method.decoder, method.inversion
    assert isinstance(rule, Iteration)
    if isinstance(decoder, Fixed):
        return "set inversion.rule to difference or learn the decoders (choose another decoder.objective)"
    transposes = isinstance(decoder, DifferenceReconstruction | Exact) and decoder.w == 0
    mirrored = isinstance(decoder, WeightMirror) and not isinstance(decoder, WeightInverse)
    if rule.needs_decoder and (transposes or mirrored):
        return "set inversion.rule to difference, since transposes are no inverses to iterate"
    if isinstance(decoder, GlobalReconstruction) and method.propagation == "layerwise":
        return "set propagation to composite, since these decoders learn to invert all layers above in one piece"
    if rule.needs_decoder and getattr(decoder, "activation", None) == "inverse":
        return "set decoder.activation to transpose, since inverse slopes are large where units saturate"
    half = inverse.contraction_half
    if half is not None and half <= MOST_NORM:
        return _either([f"{_halve(rule)} (norm {half:.3g})", *(_train(method) if rule.needs_decoder else [])])
    return _either([*_train(method), *_damp(method)] if rule.needs_decoder else [_halve(rule)])


def _redirect(layer: LayerInspection, method: Method) -> str:
    """What turns a target back."""
    decoder, rule = method.decoder, method.inversion
    if isinstance(rule, Direct) and isinstance(decoder, Fixed | Learned | Ridge):  # others have g(y₀) = x₀ anyway
        return "set inversion.rule to difference"
    if isinstance(rule, Iteration) and not rule.needs_decoder:
        return _halve(rule)
    if getattr(decoder, "activation", None) == "inverse":
        return "set decoder.activation to transpose"
    damping = _damp(method)
    if not damping or layer.influence is None or layer.influence > AMPLIFIED:
        return _either(_train(method) or damping)
    if isinstance(rule, Iteration | Krylov) and rule.steps > 1:
        return f"{damping[0]} and lower inversion.steps from {rule.steps} to 1"
    return damping[0]


def _halve(rule: Iteration) -> str:
    return f"lower inversion.alpha from {rule.alpha:g} to {rule.alpha / 2:g}"


def _train(method: Method) -> list[str]:
    decoder = method.decoder
    if isinstance(decoder, Fixed):
        return ["learn the decoders (choose another decoder.objective)"]
    if not isinstance(decoder, Learned | WeightMirror):
        return []
    return [f"raise decoder.updates from {decoder.updates} to {max(1, UPDATES_FACTOR * decoder.updates)}"]


def _damp(method: Method) -> list[str]:
    rule, decoder = method.inversion, method.decoder
    if isinstance(rule, Krylov):
        more = max(LEAST_DAMPING, DAMPING_FACTOR * rule.damping)
        return [f"raise inversion.damping from {rule.damping:g} to {more:g}"]
    damping, w = getattr(decoder, "damping", None), getattr(decoder, "w", 1.0)
    if damping is None or w == 0:
        return []
    return [f"raise decoder.damping from {damping:g} to {max(LEAST_DAMPING, DAMPING_FACTOR * damping):g}"]


def _either(remedies: list[str]) -> str:
    return " or ".join(remedies) or "choose another decoder.objective"
