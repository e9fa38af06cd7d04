"""Affine decoders of what has no other: their form, where they start, and where learning ends."""

import pytest
import torch
from torch import Tensor, nn

import targetprop as tp
from cases import DTYPE, rand, relative
from one_layer import IMAGE, Attention, Function, bind


def scaled(function, *inner: nn.Module) -> nn.Module:
    """A branch beside a factor: one piece, whatever the shapes are."""
    return Function(lambda x, *inner: function(x, *inner).sin() * x.square().mean(), *inner)


def down_sampling() -> nn.Module:
    branch = nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.Tanh()
    return tp.Residual(*branch, shortcut=nn.Conv2d(4, 6, 1, 2))


def to_vector() -> nn.Module:
    return scaled(lambda x, linear: linear(x.mean(1)), nn.Linear(4, 5))


def to_sequence() -> nn.Module:
    return scaled(lambda x, linear: linear(x).unflatten(1, (3, 5)), nn.Linear(4, 15))


def to_fewer_rows() -> nn.Module:
    return scaled(lambda x, linear: linear(x.view(-1, 8)), nn.Linear(8, 5))


def to_more_rows() -> nn.Module:
    return scaled(lambda x, linear: linear(x).view(-1, 3), nn.Linear(4, 6))


# The module, the shape of six samples, and, where shapes differ, what a position of the input sees of the output.
CASES = {
    "residual block": (lambda: tp.Residual(nn.LayerNorm(4), nn.Linear(4, 7), nn.GELU(), nn.Linear(7, 4)), (6, 4), None),
    "block in a block": (lambda: tp.Residual(tp.Residual(nn.Tanh()), nn.Linear(4, 4)), (6, 4), None),
    "attention": (lambda: tp.Residual(Attention(4)), (6, 3, 4), None),
    "images": (lambda: tp.Residual(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()), (6, *IMAGE), None),
    "down-sampling": (down_sampling, (6, *IMAGE), lambda y: y[:, :, [0, 0, 1, 1, 2, 2, 3]][..., [0, 0, 1, 1, 2, 2]]),
    "sequence to vector": (to_vector, (6, 3, 4), lambda y: y.unsqueeze(1).expand(-1, 3, -1)),
    "vector to sequence": (to_sequence, (6, 4), lambda y: y.mean(1)),
    "rows together": (to_fewer_rows, (6, 4), lambda y: y.repeat_interleave(2, 0)),
    "rows apart": (to_more_rows, (6, 4), lambda y: y.view(-1, 2, 3).mean(1)),
}


def rows(t: Tensor, name: str) -> Tensor:
    """Put features last and everything else into rows."""
    t = t.movedim(1, -1) if name in ("images", "down-sampling") else t
    return t.flatten(0, -2)


@pytest.mark.parametrize("name", CASES)
def test_the_decoder_is_a_map_per_position_on_top_of_the_identity_where_shapes_agree(name: str) -> None:
    make, shape, see = CASES[name]
    found, same = bind(make(), rand(*shape)), see is None
    (V, c), g = found.engine.bank.parameters(), found.g
    y, change = found.layer.h, rand(*found.layer.h.shape, seed=1)
    if same:
        assert torch.equal(g(y), y) and torch.equal(g.difference(y, change), change)
        nn.init.normal_(V)
        nn.init.normal_(c)
    seen, moved = (rows(t if same else see(t), name) for t in (y, change))
    both = V.detach() + same * torch.eye(*V.shape, dtype=DTYPE)
    assert g(y).shape == found.layer.x.shape
    assert relative(rows(g(y), name), seen @ both.T + c.detach()) < 1e-14
    assert relative(rows(g.difference(y, change), name), moved @ both.T) < 1e-14
    assert found.engine.kinds() == {"layer": f"affine{' on the identity' if same else ''}, learned"}


@pytest.mark.parametrize("name", CASES)
def test_ridge_solves_the_regression_and_denoising_has_no_gradient_there(name: str) -> None:
    make, shape, see = CASES[name]
    torch.manual_seed(0)
    module, x, drawn = make(), rand(48, *shape[1:]), torch.Generator()
    ridge = bind(module, x, tp.Ridge(damping=0.0, noise=0.3, decay=0.0, every=1))
    drawn.set_state(ridge.engine.state_dict()["generators"]["layer"])
    ridge.engine.train_decoders(x)
    found = bind(module, x, tp.Denoising(noise=0.3))
    found.engine.bank.load_state_dict(ridge.engine.bank.state_dict(), strict=False)
    noise = found.noise(drawn)
    clean = found.layer.x + noise.like(found.layer.x)
    seen = found.layer.f(clean).detach()
    given, missed = rows(seen if see is None else see(seen), name), rows(clean - found.g(seen), name).detach()
    given = torch.cat([given, torch.ones_like(given[:, :1])], dim=1)
    scale = 1e-9 * float(given.norm() * missed.norm())
    assert (given.T @ missed).norm() < scale, "the normal equations"
    signal = found.engine.method.decoder.signal(*found.given, noise)
    assert torch.allclose(signal.loss, missed.square().sum() / len(found.record.output), rtol=1e-12)
    gradients = torch.autograd.grad(signal.tensor, [*found.engine.bank.parameters()], signal.gradient)
    assert all(g.norm() < scale for g in gradients)


def test_a_small_transformer_trains() -> None:
    torch.manual_seed(0)
    feed = tp.Residual(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    attend = tp.Residual(nn.LayerNorm(8), Attention(8))
    model, x = nn.Sequential(nn.Linear(4, 8), attend, feed, nn.Flatten(), nn.Linear(40, 2)), rand(128, 5, 4).float()
    y = (x[:, :, 0].sum(1) * x[:, 0, 1].sign() > 0).long()
    engine = tp.TargetPropagation(model, nn.CrossEntropyLoss(), example_input=x, method="dtp", seed=0)
    beside = "affine on the identity, learned"
    assert engine.kinds() == {"1.branch.1": beside, "2.branch": beside, "4": "learned"}
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(40):
        optimizer.zero_grad()
        report = engine.backward(x, y)
        optimizer.step()
    assert report.loss < 0.45, "from 0.70 at the start"
