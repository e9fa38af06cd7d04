r"""Target propagation "may turn out a stronger optimiser" than back-propagation (Bengio 2020, arXiv:2007.15139).

Targets by exact decoders ``J_fᵀ (J_f J_fᵀ + λ I)⁻¹``, ``λ`` relative to the mean diagonal of ``J_f J_fᵀ``: ``∞`` stands
for the transpose, back-propagation's targets, and ``λ → 0`` for Gauss-Newton's. Each ``λ`` with each update rule is a
contender. Measured is the loss on all training digits; every contender tries as many learning rates with Adam and with
SGD at momentum 0.9, on another start and order of the data than those reported. Nothing is promised: no bounds.
"""

from collections.abc import Sequence
from math import inf, isfinite
from typing import Any

from targetprop.claims.altered import Alter, unaltered
from targetprop.claims.claim import Claim, Number, Table, format_number
from targetprop.claims.measure.race import BACKPROP, RULES, Best, contest, damping_name

SHARES = (0.25, 0.5, 1.0)


def optimiser(
    seed: int = 0,
    *,
    widths: Sequence[int] = (32, 16),
    steps: int = 200,
    dampings: Sequence[float] = (inf, 10.0, 1.0, 0.1, 0.01),
    rates: Sequence[float] = (1.0, 3.0, 10.0, 30.0),
    alter: Alter = unaltered,
) -> Claim:
    """Train every contender at its best learning rate."""
    found, labels = contest(seed, widths, steps, dampings, rates, alter), [damping_name(d) for d in dampings]
    reference = min(found[BACKPROP, "adam"], found[BACKPROP, "sgd"], key=lambda best: best.final)
    champions = {rule: min((found[rule, label] for label in labels), key=lambda best: best.final) for rule in RULES}
    return Claim(
        name="optimiser",
        statement="Target propagation “may turn out a stronger optimiser” than back-propagation",
        prediction="none: reported as it comes out",
        measured=(
            Number("training loss, back-propagation with Adam", (found[BACKPROP, "adam"].final,)),
            Number("back-propagation with SGD", (found[BACKPROP, "sgd"].final,)),
            *(Number(f"targets, {rule}, best λ", (best.final,)) for rule, best in champions.items()),
            *(
                Number(f"{rule}: steps to back-propagation's final loss, in units of its", (_ratio(best, reference),))
                for rule, best in champions.items()
            ),
        ),
        stops=_stops(reference, champions, found, labels),
        limits=tuple(
            Number(f"training loss, {rule}, λ = {label}", (found[rule, label].final,))
            for rule in RULES
            for label in labels
        ),
        tables=(_table(found, reference, len(rates)),),
        data=_data(found, labels),
        seeds=(seed,),
    )


def _stops(reference: Best, champions: dict[str, Best], found: dict[tuple[str, str], Best], labels: list[str]) -> str:
    # With transposes the gradient update is back-propagation itself, and differs from it by rounding.
    faster = [best for rule, best in champions.items() if (rule, best.label) != ("gradient", "∞")]
    faster = [best for best in faster if best.beats(reference)]
    bound = f"back-propagation with its better optimiser ({format_number(reference.final)})"
    texts = [
        f"{best.rule} at λ = {best.label} ({format_number(best.final)}, for"
        f" {format_number(best.seconds / reference.seconds)} times the time per step)"
        for best in faster
    ]
    text = f"Lower loss than {bound}" if faster else f"No rule beats {bound}"
    text += f" on both starts{': ' if texts else ''}{', '.join(texts)}"
    end = ", ".join(f"{rule} {format_number(found[rule, labels[-1]].final)}" for rule in champions)
    return (
        f"{text}. At λ = {labels[-1]}, towards Gauss-Newton: {end}. One small network, 1,437 digits, exact inverses by"
        " dense algebra."
    )


def _ratio(best: Best, reference: Best) -> float:
    return best.steps_to(reference.final) / max(reference.steps_to(reference.final), 1)


def _table(found: dict[tuple[str, str], Best], reference: Best, tried: int) -> Table:
    rows = [
        (
            best.rule if best.rule == BACKPROP else f"{best.rule}, λ = {best.label}",
            best.optimizer,
            f"{best.rate:.2g}{'' if best.inside else ' (edge)'}",
            *(best.at(share) for share in SHARES),
            best.tuned,
            _ratio(best, reference),
            best.seconds / reference.seconds,
        )
        for best in found.values()
    ]
    losses = ("loss, ¼ of the steps", "½", "all", "all, tuning start")
    title = (
        f"Training loss, best of {tried} rates with each optimiser (SGD: momentum 0.9); steps to the final loss of"
        " back-propagation's better optimiser and time per step, both in units of its own; edge: the best rate is the"
        " lowest or the highest tried"
    )
    return Table(title, ("contender", "optimiser", "rate", *losses, "steps", "time"), tuple(rows))


def _data(found: dict[tuple[str, str], Best], labels: Sequence[str]) -> dict[str, Any]:
    def plain(best: Best) -> list[float | None]:
        return [value if isfinite(value) else None for value in best.losses]

    return {
        "steps": found[BACKPROP, "adam"].steps,
        "dampings": list(labels),
        "backprop": {name: plain(found[BACKPROP, name]) for name in ("adam", "sgd")},
        "targets": {rule: {label: plain(found[rule, label]) for label in labels} for rule in RULES},
    }
