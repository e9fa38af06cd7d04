"""Residual blocks: replay, inversion by the identity at the rate that theory predicts, gradients, training."""

import math

import pytest
import torch
from torch import Tensor, nn

import targetprop as tp
from cases import DTYPE, TRANSPOSE, backprop, gradients, parameters, rand, relative
from targetprop import diagnostics
from targetprop.layers.forward_pass import run_forward
from targetprop.testing import DecoderContract


class Attention(nn.Module):
    """One head of self-attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out((q @ k.mT / math.sqrt(x.shape[-1])).softmax(-1) @ v)


def network(train: bool = True) -> nn.Sequential:
    """Build a residual network with all that a block may hold."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6),
        tp.Residual(nn.LayerNorm(6), nn.Sequential(nn.Linear(6, 8), nn.GELU()), nn.Dropout(0.3), nn.Linear(8, 6)),
        nn.Tanh(),
        tp.Residual(tp.Residual(nn.Tanh(), nn.Linear(6, 6)), nn.BatchNorm1d(6).eval()),
        tp.Residual(nn.Linear(6, 5), nn.ELU(), shortcut=nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.2))),
        nn.Linear(5, 3),
    ).to(DTYPE)  # fmt: skip


def with_batch_norm() -> nn.Sequential:
    model = network()
    model[3].branch[1].train()
    return model


# The chain


@pytest.mark.parametrize("cut", ["post-activation", "pre-activation"])
def test_a_block_is_a_map_of_its_own(cut: str) -> None:
    layers = {layer.name: [type(m).__name__ for m in layer.modules] for layer in tp.build_chain(network(), cut).layers}
    after = ["Tanh", "Residual"] if cut == "pre-activation" else ["Residual"]
    before = ["Residual"] if cut == "pre-activation" else ["Residual", "Tanh"]
    assert layers == {"0": ["Linear"], "1": before, "3": after, "4": ["Residual"], "5": ["Linear"]}


def test_a_block_without_parameters_belongs_to_the_layer_beside_it() -> None:
    model = nn.Sequential(nn.Linear(4, 3), tp.Residual(nn.Tanh()), nn.Linear(3, 2))
    assert tp.build_chain(model).names == ["0", "2"]
    assert len(tp.build_chain(model, "pre-activation").layers[1].modules) == 2


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (nn.ReLU(inplace=True), r"layer 1: ReLU\(inplace=True\) .* set inplace=False"),
        (nn.AlphaDropout(0.1), "layer 1: AlphaDropout draws new random numbers"),
    ],
)
def test_what_a_layer_may_not_hold_a_block_may_not_either(inner: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tp.build_chain([nn.Linear(3, 3), tp.Residual(nn.Linear(3, 3), tp.Residual(inner))])


def test_what_a_block_computes_cannot_be_changed_behind_the_librarys_back() -> None:
    with pytest.raises(TypeError, match="Scaled changes what a Residual computes; derive it from nn.Module"):

        class Scaled(tp.Residual):
            def forward(self, h: Tensor) -> Tensor:
                return h + 0.1 * self.branch(h)


# Replay


@pytest.mark.parametrize("make", [network, with_batch_norm])
def test_masks_and_statistics_inside_a_block_are_repeated(make) -> None:
    model, x = make(), rand(6, 4)
    buffers = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(4)
    expected = model(x)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(buffers)
    torch.manual_seed(4)
    record = run_forward(tp.build_chain(model), x)
    assert torch.allclose(record.output, expected, rtol=1e-13, atol=1e-14)
    for layer in record.layers:
        assert torch.allclose(layer.f(layer.x), layer.h, rtol=1e-12, atol=1e-13)
        few = layer.head(2)
        assert torch.allclose(few.f(few.x), layer.h[:2], rtol=1e-12, atol=1e-13)
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


def test_a_module_that_hides_dropout_in_a_block_is_named() -> None:
    class Opaque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    model = tp.build_chain([nn.Linear(3, 3), tp.Residual(Opaque())])
    with pytest.raises(ValueError, match="layer 1: Opaque holds Dropout, .* in an nn.Sequential or a Residual"):
        run_forward(model, torch.ones(2, 3))


def test_a_module_that_overwrites_its_input_is_named() -> None:
    class Overwrite(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu_()

    for inner in (Overwrite(), tp.Residual(Overwrite())):
        with pytest.raises(ValueError, match="layer 1: Overwrite overwrites its input"), torch.no_grad():
            run_forward(tp.build_chain([nn.Linear(3, 3), inner]), torch.ones(2, 3))


# Inversion


def orthogonal(width: int, gain: float) -> nn.Linear:
    linear = nn.Linear(width, width).to(DTYPE)
    linear.weight.data = gain * torch.linalg.qr(rand(width, width, seed=7))[0]
    return linear


@pytest.mark.parametrize("rho", [0.3, 0.7])
@pytest.mark.parametrize("curved", [False, True])
def test_the_identity_inverts_a_contractive_block_at_the_rate_of_its_branch(rho: float, curved: bool) -> None:
    branch = [orthogonal(5, rho), *([nn.Tanh()] if curved else [])]
    model = [nn.Linear(3, 5).to(DTYPE), tp.Residual(*branch)]
    rule = tp.InputSpace(steps=120, tolerance=0.0)
    engine = tp.TargetPropagation(
        model, nn.MSELoss(), example_input=rand(4, 3), method=tp.Method(decoder=tp.Denoising(), inversion=rule)
    )
    assert engine.bank.kinds() == {"1": "identity"}
    record = run_forward(engine.network, rand(4, 3))
    layer, g = record.layers[1], engine.bank.inverse(record.layers[1])
    wanted = layer.x + 0.5 * rand(4, 5, seed=1)
    with torch.no_grad():
        found = tp.invert(layer.f, g, layer.f(wanted), layer.x, method=rule)
        points = diagnostics.visited(layer.f, g, layer.f(wanted), layer.x, tp.InputSpace(steps=8, tolerance=0.0))
    assert (found.x - wanted).abs().max() < 1e-10
    measured = diagnostics.contraction(points, wanted)
    if curved:
        bound = torch.stack([diagnostics.lipschitz(layer.f, g, p, wanted, points=9) for p in points[:2]])
        assert (measured[:2] <= 1.001 * bound).all() and bound.max() <= rho + 1e-12
        assert measured.mean() > 0.6 * rho
    else:
        assert torch.allclose(measured, torch.full_like(measured, rho), rtol=1e-9)


@pytest.mark.parametrize("style", ["identity", "inverse", "transpose"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: tp.Residual(nn.Linear(4, 4), nn.Tanh()),
        lambda: tp.Residual(nn.Linear(4, 6), shortcut=nn.Linear(4, 6)),
        lambda: tp.Residual(nn.Linear(4, 6), shortcut=nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.3), nn.Tanh())),
        lambda: tp.Residual(nn.Linear(4, 6), shortcut=tp.Residual(nn.Linear(4, 6), shortcut=nn.Linear(4, 6))),
        lambda: tp.Residual(nn.Linear(4, 4), shortcut=nn.BatchNorm1d(4)),
        lambda: tp.Residual(nn.LayerNorm(4), nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 4), correction=True),
        lambda: tp.Residual(nn.Linear(4, 6), nn.Dropout(0.3), shortcut=nn.Linear(4, 6), correction=True),
    ],
)
def test_blocks_keep_the_contract_of_decoders(style, make) -> None:
    class Contract(DecoderContract):
        def module(self) -> nn.Module:
            return make()

    Contract.style = style
    contract = Contract()
    for name in (n for n in dir(contract) if n.startswith("test_")):
        getattr(contract, name)()


def test_a_shortcut_is_decoded_by_the_decoder_of_its_modules() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), tp.Residual(nn.Tanh(), nn.Linear(4, 6), shortcut=nn.Linear(4, 6)))
    engine = tp.TargetPropagation(model, nn.MSELoss(), example_input=rand(4, 3).float(), method="dtp")
    assert engine.bank.kinds() == {"1": "learned"}
    assert [tuple(p.shape) for p in engine.bank.parameters()] == [(4, 6), (4,)]
    record = run_forward(engine.network, rand(4, 3).float())
    V, c = engine.bank.parameters()
    assert torch.allclose(engine.bank.inverse(record.layers[1])(record.output), record.output @ V.T + c)


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


@pytest.mark.parametrize(("width", "shortcut"), [(4, Square()), (1, None)], ids=["unregistered", "broadcasting"])
def test_other_blocks_fall_back(width: int, shortcut: nn.Module | None) -> None:
    model = [nn.Linear(3, width), tp.Residual(nn.Linear(width, 4), shortcut=shortcut)]
    engine = tp.TargetPropagation(model, nn.MSELoss(), example_input=torch.ones(2, 3), method="dtp")
    assert engine.kinds()["1"].startswith("linearised")


# Gradients and training


@pytest.mark.parametrize("cut", ["post-activation", "pre-activation"])
def test_transposes_give_the_gradient_of_a_residual_network(cut: str) -> None:
    model, x, y = network(), rand(5, 4), torch.arange(5) % 3
    loss = nn.CrossEntropyLoss()
    engine = tp.TargetPropagation(model, loss, example_input=x, method=tp.Method(decoder=TRANSPOSE, cut=cut))
    torch.manual_seed(3)
    engine.backward(x, y)
    found = gradients(model)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in parameters(model[:1]))
    for p in parameters(model):
        p.grad = None
    assert relative(found, backprop(model, loss, x, y, seed=3)) < 1e-11


def test_a_correction_starts_at_zero_and_learns_the_transpose_of_the_block() -> None:
    torch.manual_seed(0)
    block = tp.Residual(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4), correction=True)
    objective = tp.DifferenceReconstruction(w=0.0, damping=1.0, activation="transpose", lr=2e-3, updates=600)
    model, x = [nn.Linear(4, 4).to(DTYPE), block.to(DTYPE)], 0.3 * rand(64, 4)
    engine = tp.TargetPropagation(model, nn.MSELoss(), example_input=x, method=tp.Method(decoder=objective), seed=0)
    record = run_forward(engine.network, x)
    layer, g, change = record.layers[1], engine.bank.inverse(record.layers[1]), rand(64, 4, seed=1)
    assert torch.equal(g.difference(layer.h, change), change)
    engine.train_decoders(x)
    J = diagnostics.layer_jacobian(layer)
    exact = (J.mT @ change.unsqueeze(2)).squeeze(2)
    assert relative(change, exact) > 0.2
    assert relative(g.difference(layer.h, change), exact) < 0.05
    assert relative(g(layer.h + change) - g(layer.h), exact) < 0.05


def test_a_correction_that_cannot_be_built_names_the_module() -> None:
    block = tp.Residual(nn.LayerNorm(4), Attention(4), correction=True)
    with pytest.raises(ValueError, match="for every module of its branch, and Attention has none; register one"):
        tp.TargetPropagation([nn.Linear(4, 4), block], nn.MSELoss(), example_input=torch.ones(2, 3, 4), method="dtp")


def transformer(correction: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8),
        tp.Residual(nn.LayerNorm(8), Attention(8)),
        tp.Residual(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8), correction=correction),
        nn.Flatten(),
        nn.Linear(40, 2),
    )


@pytest.mark.parametrize(
    ("method", "correction"), [("iterated", False), ("l-drl", False), ("dtp", False), ("dtp", True)]
)
def test_a_small_transformer_trains(method: str, correction: bool) -> None:
    model, x = transformer(correction), rand(128, 5, 4).float()
    y = (x[:, :, 0].sum(1) * x[:, 0, 1].sign() > 0).long()
    engine = tp.TargetPropagation(model, nn.CrossEntropyLoss(), example_input=x, method=method, seed=0)
    if method == "dtp":
        assert engine.kinds() == {"1": "identity", "2": "learned" if correction else "identity", "4": "learned"}
    else:
        assert engine.kinds() == {"1.branch.1": "mirrored", "2.branch": "mirrored", "4": "mirrored"}
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(40):
        optimizer.zero_grad()
        report = engine.backward(x, y)
        optimizer.step()
    assert report.loss < 0.45, "from 0.70 at the start"
