"""What a method does with a row: exact, approximate or refused, or a fault, by comparison with back-propagation."""

import random
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import targetprop as tp
from compatibility.case import Case, nothing
from targetprop.decoders.affine import AffineDecoder
from targetprop.decoders.layer import LayerDecoder
from targetprop.decoders.proposal import Proposal
from targetprop.layers.inputs import call
from targetprop.layers.undone import ForwardState

METHODS = ("l-drl", "least-squares", "dtp")
STEPS = 3
ALIKE = 0.999
TINY = 1e-12  # share of the largest gradient below which a gradient counts as zero


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Attributes:
        word: "exact", "approximate", "refused", "torch" where torch itself refuses, or "FAULT".
        why: the reason or the sentence.
    """

    word: str
    why: str = ""


@dataclass(frozen=True)
class Still(tp.WeightMirror):
    """Mirrors that do not learn."""

    def propose(self, *args: Any) -> Proposal:
        """Propose nothing."""
        return Proposal()


class Side:
    """One of the two that are compared: a model with its loss and data, from the same random state.

    Args:
        case: the row.
    """

    def __init__(self, case: Case) -> None:
        """Make the model, and do to it what the row asks for."""
        self.case = case
        torch.manual_seed(0)
        random.seed(0)
        model, self.loss, self.x, self.y = case.model(), case.loss(), case.inputs(), case.labels()
        if case.double:
            model, self.x, self.y = model.double(), tree_map(_double, self.x), tree_map(_double, self.y)
            self.loss = self.loss.double() if isinstance(self.loss, nn.Module) else self.loss
        self.model = model.train() if not model.__dict__.get("evaluated") else model
        self.case.before(self.model)
        self.optimizer = None if case.optimizer is None else case.optimizer(self.model)

    def parameters(self) -> dict[str, Tensor]:
        """Name the parameters of the model, and of its loss."""
        own = dict(self.loss.named_parameters(prefix="loss")) if isinstance(self.loss, nn.Module) else {}
        return dict(self.model.named_parameters()) | own

    def train(self, backward: Callable[[], Any], steps: int) -> None:
        """Take steps, each from a random state of its own."""
        for step in range(steps):

            def again(step: int = step) -> Any:
                torch.manual_seed(step + 1)
                random.seed(step + 1)
                if step or self.optimizer is not None:
                    for p in self.parameters().values():
                        p.grad = None
                value = backward()
                self.case.after(self.model)
                return value

            if self.optimizer is not None:
                self.optimizer.step(again) if isinstance(self.optimizer, torch.optim.LBFGS) else (
                    again(),
                    self.optimizer.step(),
                )
            else:
                again()

    def plain(self) -> Any:
        """Do one pass of back-propagation."""
        value = self.loss(call(self.model, self.x), self.y)
        value.backward()
        return value.detach()

    def outcome(self) -> dict[str, Tensor]:
        """Collect what is compared: gradients, or what an optimiser made of the parameters."""
        if self.optimizer is not None:
            return {name: p.detach().clone() for name, p in self.parameters().items()}
        return {n: p.grad.detach().to_dense().clone() for n, p in self.parameters().items() if p.grad is not None}


def judge(case: Case, method: str) -> Verdict:
    """Measure one cell of the page.

    Args:
        case: the row.
        method: the column.

    Returns:
        What was found.
    """
    with quiet():
        steps = STEPS if case.optimizer is not None else 1
        start, reference = Side(case).outcome(), Side(case)
        torch_says = None
        try:
            reference.train(reference.plain, steps)
        except Exception as error:  # whatever torch says
            torch_says = error
        side = Side(case)
        try:
            checked = tp.check(Side(case).model, side.x, method)
        except Exception as error:  # `check` is to answer
            return Verdict("FAULT", f"check raises {type(error).__name__}: {one_line(error)}")
        try:
            engine = trained(side, method, steps)
        except Exception as error:  # whatever comes, it is to be judged
            return refused(error, torch_says, checked)
        if torch_says is not None:
            return Verdict("FAULT", f"accepted, and torch says: {torch_says}")
        if not checked.supported:
            return Verdict("FAULT", f"the engine accepts it, and check says: {checked.refusal}")
        verdict = compared(case, method, side, reference, start, engine)
        return verdict if verdict.word == "FAULT" else goes_on(side, engine, verdict)


def trained(side: Side, method: str, steps: int) -> tp.TargetPropagation:
    """Train by an engine; mirrors are the weights at every step."""
    recipe: Any = tp.method(method)
    if method != "dtp":
        recipe = tp.method(method, decoder=Still())
    engine = tp.TargetPropagation(side.model, side.loss, example_input=side.x, method=recipe, seed=0)

    def backward() -> Any:
        if method != "dtp":
            make_exact(engine, side)
        return engine.backward(side.x, side.y).loss

    side.train(backward, steps)
    return engine


def make_exact(engine: tp.TargetPropagation, side: Side) -> None:
    """Set the mirrors to the weights; the model is left as it was."""
    before = ForwardState(side.model.modules(), contents=True)
    for use in engine._forward(side.x, side.y).uses():  # those of the loss as well
        mirror = engine.bank.mirror(use.site.key, use.base)
        if mirror is not None:
            mirror.copy_(use.base.detach())
    before.restore()


def refused(error: Exception, torch_says: Exception | None, checked: tp.Check) -> Verdict:
    """Judge a refusal: it must be a sentence of the library's, and `check` must refuse too where it can know."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    where, said = Path(last.filename), (last.line or "").startswith("raise ")
    ours = said and "targetprop" in where.parts and isinstance(error, ValueError | TypeError | FloatingPointError)
    if torch_says is not None and (error.__cause__ is not None or type(error) is type(torch_says)):
        return Verdict("torch", one_line(torch_says))
    if not ours or error.__cause__ is not None:
        return Verdict("FAULT", f"{type(error).__name__} at {where.name}: {one_line(error)}")
    values = isinstance(error, FloatingPointError)  # `check` looks at no values, and is not told the loss
    if checked.supported and not values and "loss" not in str(error):
        return Verdict("FAULT", f"check accepts it, and the engine says: {one_line(error)}")
    return Verdict("refused", one_line(error))


def compared(case: Case, method: str, side: Side, reference: Side, start: Any, engine: Any) -> Verdict:
    """Judge what a method has made of the parameters beside what back-propagation has."""
    for (name, buffer), other in zip(side.model.named_buffers(), reference.model.buffers(), strict=True):
        if not torch.allclose(buffer.to_dense(), other.to_dense(), equal_nan=True):
            return Verdict("FAULT", f"buffer {name} is not what one ordinary pass makes of it")
    found, expected = side.outcome(), reference.outcome()
    if case.optimizer is not None:
        found, expected = ({n: t - start_of(case, n) for n, t in many.items()} for many in (found, expected))
    if missing := expected.keys() - found.keys():
        return Verdict("FAULT", f"no gradient for {', '.join(sorted(missing))}")
    if method != "dtp" and (extra := {name for name in found.keys() - expected.keys() if bool(found[name].any())}):
        return Verdict("FAULT", f"a gradient for {', '.join(sorted(extra))}, which back-propagation gives none")
    if bad := [name for name, t in found.items() if not bool(torch.isfinite(t).all())]:
        return Verdict("FAULT", f"not finite: {', '.join(bad)}")
    size = max((float(t.norm()) for t in expected.values()), default=0.0)
    if size == 0:
        return Verdict("FAULT", "back-propagation moves nothing; the row compares nothing")
    stepped = [name for name, t in expected.items() if alike(found[name], t, size)]
    other = [name for name in expected if name not in stepped]
    if case.after is not nothing and method != "l-drl":  # what is done to gradients depends on their size
        other = []
    return JUDGES[method](case, found, expected, other, stepped, engine)


def goes_on(side: Side, engine: Any, verdict: Verdict) -> Verdict:
    """Take more steps, and see that they stay finite; a batch that is not is answered by an error."""
    optimizer = torch.optim.SGD([p for p in side.parameters().values() if p.requires_grad], lr=0.01)
    for _ in range(STEPS - 1):
        optimizer.zero_grad()
        try:
            engine.backward(side.x, side.y)
        except Exception as error:  # whatever comes
            return Verdict("FAULT", f"a later step: {type(error).__name__}: {one_line(error)}")
        optimizer.step()
    return verdict


def start_of(case: Case, name: str) -> Tensor:
    """Give a parameter as it was before the first step."""
    return Side(case).parameters()[name].detach()


def alike(found: Tensor, expected: Tensor, size: float) -> bool:
    """Whether two gradients have one direction and one size."""
    a, b = float(found.norm()), float(expected.norm())
    if b <= TINY * size or a <= TINY * size:
        return a <= 1e3 * TINY * size and b <= 1e3 * TINY * size
    cosine = float((found.conj() * expected).sum().real) / (a * b)
    return cosine >= ALIKE and ALIKE <= a / b <= 1 / ALIKE


def by_transposes(case: Case, found: Any, expected: Any, other: list[str], stepped: Any, engine: Any) -> Verdict:
    """Every gradient is back-propagation's."""
    if other:
        return Verdict("FAULT", f"not the gradient of back-propagation: {', '.join(other)}")
    return Verdict("exact")


def by_least_squares(
    case: Case, found: Any, expected: Any, other: list[str], stepped: list[str], engine: Any
) -> Verdict:
    """A gradient is back-propagation's or, where a regression is solved, goes down with it."""
    if case.optimizer is None:
        down: dict[str, float] = {}  # a weight and its bias are solved for together
        for name in other:
            owner = name.rpartition(".")[0]
            down[owner] = down.get(owner, 0.0) + float((found[name].conj() * expected[name]).sum().real)
        if up := [owner for owner, product in down.items() if product <= 0]:
            return Verdict("FAULT", f"goes up: {', '.join(up)}")
        if not other and case.after is nothing:
            return Verdict("approximate", "gradient steps, nothing is solved for")
    if case.middle and any(name.startswith("middle.") for name in stepped):
        kept = [n for n in other if n.startswith("middle.")]
        return Verdict("approximate", "some take a gradient step" if kept else "gradient step")
    return Verdict("exact")


def by_learned_inverses(case: Case, found: Any, expected: Any, other: list[str], stepped: Any, engine: Any) -> Verdict:
    """The head's gradient is back-propagation's; what undoes the middle says the rest."""
    if case.optimizer is None and (wrong := [name for name in other if name.startswith(("head.", "loss."))]):
        return Verdict("FAULT", f"the head does not have its gradient: {', '.join(wrong)}")
    if not case.middle:
        return Verdict("exact") if case.group == "Losses" else Verdict("approximate", "learned inverses")
    made = [m for m in engine.bank.modules() if isinstance(m, LayerDecoder)]
    learned = {key: part for decoder in made for key, part in decoder.learned.items()}
    parts = [part for key, part in learned.items() if not key.startswith(("stem:", "below:", "head:"))]
    if expected.keys() != found.keys():
        return Verdict("approximate", "black box, as the identity" if not parts else "black box, affine map")
    if not parts:
        return Verdict("exact")
    return Verdict("approximate", "affine map" if any(isinstance(p, AffineDecoder) for p in parts) else "learned map")


JUDGES: dict[str, Callable[..., Verdict]] = {
    "l-drl": by_transposes,
    "least-squares": by_least_squares,
    "dtp": by_learned_inverses,
}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the random state of the process, and say nothing of what torch warns of."""
    before = torch.get_rng_state(), random.getstate()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])


def one_line(error: Exception) -> str:
    """Bring a message into one line."""
    return " ".join(str(error).split())


def _double(t: Any) -> Any:
    return t.double() if isinstance(t, Tensor) and t.is_floating_point() else t
