"""The networks by name: parameters counted by hand, blocks that add up, and a sentence where images do not fit."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import targetprop as tp
from cases import DTYPE, TRANSPOSE, backprop, gradients, rand, relative
from targetprop import diagnostics
from targetprop.decoders import LayerBank
from targetprop.decoders.maps import BoundMap
from targetprop.experiments.errors import CommandError
from targetprop.experiments.main import main
from targetprop.experiments.networks import ACTIVATIONS, NETWORKS, LeNet, Network, ResNet, Vgg, ViT
from targetprop.experiments.networks.vit import AttentionCore, MeanPool
from targetprop.layers import record_layers

# settings, parameters for images 3×32×32 and 10 classes, counted by hand
COUNTED = [
    (LeNet(), (75 * 32 + 32) + (800 * 64 + 64) + (4096 * 512 + 512) + 5130),
    (LeNet([2, 3], hidden=5), (75 * 2 + 2) + (50 * 3 + 3) + (3 * 64 * 5 + 5) + 60),
    (
        Vgg(),
        3584 + (128 * 9 * 128 + 128) + (128 * 9 * 256 + 256) + (256 * 9 * 256 + 256) + (256 * 9 * 512 + 512) + 5130,
    ),
    (Vgg([2, 3]), (27 * 2 + 2) + (18 * 3 + 3) + (3 * 64 * 10 + 10)),
    # stem; block of 4 channels: 2 norms, 2 convolutions; block to 8 channels: the same and the shortcut; norm; head
    (ResNet(4, [1, 1]), 108 + (8 + 8 + 144 + 144) + (8 + 16 + 288 + 576 + 32) + 16 + 90),
    (ResNet(4, [2], norm="none"), 108 + 4 * 144 + 50),
    # patches; positions; attention: norm, in, out; MLP: norm, in, out; norm; head
    (ViT(8, 1, 2, 8), (192 * 8 + 8) + 16 * 8 + (16 + 216 + 72) + (16 + 144 + 136) + 16 + 90),
]
SMALL = {
    "dense": "--network.widths 8",
    "lenet": "--network.channels 4 8 --network.hidden 16",
    "vgg": "--network.channels 4 8",
    "resnet": "--network.width 4 --network.blocks 1 1 --network.norm batch",
    "vit": "--network.dim 8 --network.depth 1 --network.heads 2",
}


@pytest.mark.parametrize(("network", "count"), COUNTED, ids=lambda value: str(value))
def test_parameters_are_those_counted_by_hand(network: Network, count: int):
    model = network.build((3, 32, 32), 10)
    assert sum(p.numel() for p in model.parameters()) == count
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 12, 20)])
@pytest.mark.parametrize("network", [LeNet(), Vgg([4, 4, 4]), ResNet(8), ViT(16, 2)], ids=lambda n: n.name)
def test_images_of_many_shapes_fit_and_layers_compose_to_the_model(network: Network, shape):
    model = network.build(shape, 7).double().eval()
    x, other = rand(3, *shape), rand(3, *shape, seed=1)
    for cut in ("post-activation", "pre-activation"):
        h = other
        for layer in record_layers(model, x, cut).layers:
            h = layer.f(h)
        assert h.shape == (3, 7)
        torch.testing.assert_close(h, model(other), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (LeNet(), (1, 3, 8), "'lenet' needs images of 4×4 pixels or more for its 2 poolings.*have 3×8 pixels; give"),
        (Vgg(), (1, 8, 8), "'vgg' needs images of 32×32 pixels or more for its 5 poolings.*fewer --network.channels"),
        (ResNet(8, [1, 1, 1, 1]), (1, 8, 7), "'resnet' needs images of 8×8 pixels or more for its 4 stages.*blocks"),
        (ViT(patch=3), (1, 8, 8), "'vit' needs images of a height and width that --network.patch 3 divides"),
    ],
)
def test_images_that_do_not_fit_end_with_a_sentence(network: Network, shape, message):
    with pytest.raises(CommandError, match=message):
        network.build(shape, 10)


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_a_block_adds_its_branch_to_its_shortcut(norm):
    model = ResNet(8, [1, 1], norm=norm).build((3, 8, 8), 10).double().eval()
    keep, halve = (m for m in model if isinstance(m, tp.Residual))
    h = torch.randn(4, 8, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    enter, act, first, enter2, act2, second = keep.branch
    torch.testing.assert_close(keep(h), h + second(act2(enter2(first(act(enter(h)))))), rtol=0, atol=0)
    assert isinstance(halve.shortcut, nn.Conv2d)
    weight = halve.shortcut.weight[:, :, 0, 0]
    expected = torch.einsum("oc,nchw->nohw", weight, h[:, :, ::2, ::2]) + halve.branch(h)
    torch.testing.assert_close(halve(h), expected)


def test_attention_is_pytorch_s_own_and_has_a_forward_derivative():
    torch.manual_seed(0)
    block = next(module for module in ViT(12, 1, 3).build((1, 8, 8), 5) if isinstance(module, tp.Residual))
    mine, theirs = block.branch[1:].double(), nn.MultiheadAttention(12, 3, batch_first=True).double()
    assert isinstance(mine[1], AttentionCore) and not list(mine[1].parameters())
    state = {"in_proj_weight": mine[0].weight, "in_proj_bias": mine[0].bias}
    theirs.load_state_dict(state | {f"out_proj.{name}": value for name, value in mine[2].named_parameters()})
    h, v = torch.randn(2, 2, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(mine(h), theirs(h, h, h, need_weights=True)[0])
    forward = torch.func.jvp(mine, (h,), (v,))
    torch.testing.assert_close(forward[1], (mine(h + 1e-6 * v) - mine(h - 1e-6 * v)) / 2e-6, rtol=1e-6, atol=1e-8)


def test_a_transformer_keeps_the_order_of_its_patches():
    network = ViT(dim=4, depth=1, heads=1, patch=2)
    model = network.build((1, 4, 6), 3)
    patches, tokens, positions = model[0], model[1], model[2]
    x = torch.rand(2, 1, 4, 6)
    h = tokens(patches(x))
    assert h.shape == (2, 6, 4)
    torch.testing.assert_close(h[:, 4], patches(x[:, :, 2:4, 2:4])[:, :, 0, 0])  # second row, second column
    torch.testing.assert_close(positions(h) - h, dict(positions.named_parameters())["vectors"].expand(2, 6, 4))
    torch.testing.assert_close(model[-3](h), h.sum(1) / 6)


# Networks under target propagation; what transposes lead to is known.
PLAIN = {
    "lenet": (LeNet([3, 4], hidden=8), (2, 8, 8)),
    "vgg": (Vgg([3, 4], activation="elu"), (2, 8, 8)),
}
RESIDUAL = {
    "vit": (ViT(8, 2, 2, 2), (2, 4, 6)),
    "vit, tanh": (ViT(8, 1, 4, 2, activation="tanh"), (2, 4, 4)),
    "resnet": (ResNet(4, [1, 2]), (2, 7, 6)),
    "resnet, batch norm in eval": (ResNet(4, [2, 1], norm="batch", activation="elu"), (2, 8, 8)),
    "resnet, no norm": (ResNet(4, [1, 1], norm="none", activation="tanh"), (2, 5, 6)),
}


def built(name: str, seed: int = 0) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """Build one of them with gains and biases that matter, a batch and its labels."""
    network, shape = (PLAIN | RESIDUAL)[name]
    torch.manual_seed(seed)
    model = network.build(shape, 3).to(DTYPE).train("eval" not in name)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model, rand(5, *shape), torch.arange(5) % 3


@torch.no_grad()
def transpose_every_map(engine: tp.TargetPropagation, x: torch.Tensor, sign: float = 1.0) -> None:
    """Copy the forward weights into the decoders' maps, or the mirrors, and see to it that none is left out."""
    done, record = 0, engine.record(x)
    if isinstance(engine.bank, LayerBank):
        for layer in record.inverted:
            (use,) = layer.maps
            (learned,) = (part for part in engine.bank.decoder(layer.name).parts(layer) if isinstance(part, BoundMap))
            learned.weight.copy_(sign * (use.weight.T if use.site.kind == "linear" else use.weight))
            done += 1
    else:
        for use in record.uses():
            if use.site.needed:
                engine.bank.mirror(use.site.key, use.base).copy_(sign * use.base)
                done += 1
    assert done == sum(parameter.dim() > 1 for parameter in engine.bank.parameters())


TRANSPOSES = {
    "learned": tp.DifferenceReconstruction(w=0.0, damping=1.0, activation="transpose", updates=0),
    "mirrored": tp.WeightMirror(updates=0),
}


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in PLAIN for kind in TRANSPOSES] + [(n, "mirrored") for n in RESIDUAL]
)
def test_transposed_maps_give_the_gradient_of_back_propagation(name, kind):
    model, x, y = built(name)
    loss = nn.CrossEntropyLoss()
    wanted = backprop(model, loss, x, y)
    for beta in (1e-6, 0.1):  # at any size: between one layer's output and its input, every decoder is affine
        method = tp.method("l-drl", decoder=TRANSPOSES[kind], output_target=tp.GradientStep(beta))
        engine = tp.TargetPropagation(model, loss, example_input=x, method=method, seed=0)
        assert set(engine.kinds().values()) == {kind}
        transpose_every_map(engine, x)
        model.zero_grad()
        engine.backward(x, y)
        assert relative(gradients(model), wanted) < 1e-13
    transpose_every_map(engine, x, sign=-1.0)
    model.zero_grad()
    engine.backward(x, y)
    assert relative(gradients(model), wanted) > 0.1


@pytest.mark.parametrize("name", RESIDUAL)
def test_transposes_of_whole_layers_give_the_gradient_of_back_propagation(name):
    model, x, y = built(name)
    wanted = backprop(model, nn.CrossEntropyLoss(), x, y)
    method = tp.method("dtp", decoder=TRANSPOSE)
    tp.TargetPropagation(model, nn.CrossEntropyLoss(), example_input=x, method=method).backward(x, y)
    assert relative(gradients(model), wanted) < 1e-11


@pytest.mark.parametrize("style", ["identity", "inverse", "transpose"])
@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_blocks_are_inverted_by_an_affine_map_beside_the_identity(name, style):
    model, x, y = built(name)
    chosen = tp.method("dtp", decoder=tp.Denoising(activation=style))
    engine = tp.TargetPropagation(model, nn.CrossEntropyLoss(), example_input=x, method=chosen, seed=0)
    same = {str(i): isinstance(m.shortcut, nn.Identity) for i, m in enumerate(model) if isinstance(m, tp.Residual)}
    kinds = {name.split(".")[0]: kind for name, kind in engine.kinds().items()}
    assert {i: kinds[i] for i in same} == {i: f"affine{' on the identity' * s}, learned" for i, s in same.items()}
    first = float(engine.train_decoders(x))
    for _ in range(60):
        last = float(engine.train_decoders(x))
    assert last < 0.9 * first
    engine.backward(x, y)
    found = [p.grad.clone() for p in model.parameters()]
    assert all(gradient.any() for gradient in found)
    model.zero_grad()
    nn.CrossEntropyLoss()(model(x), y).backward()
    torch.testing.assert_close(found[-2:], [p.grad for p in model[-1].parameters()], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("style", ["identity", "inverse", "transpose"])
def test_the_mean_over_a_sequence_is_decoded_by_its_transpose_or_pseudo_inverse(style):
    layers, x = [nn.Linear(3, 3).to(DTYPE), MeanPool()], rand(4, 5, 3)
    method = tp.Method(decoder=tp.Denoising(activation=style))
    engine = tp.TargetPropagation(layers, nn.MSELoss(), example_input=x, method=method)
    layer = (record := engine.record(x)).layers[1]
    J, g = diagnostics.layer_jacobian(layer), engine.bank.inverse(record.layers[1])
    change = rand(4, 3, seed=1)
    wanted = (J.mT if style == "transpose" else torch.linalg.pinv(J)) @ change.unsqueeze(2)
    torch.testing.assert_close(g.difference(layer.h, change), wanted.view(x.shape), rtol=1e-12, atol=1e-13)
    assert torch.allclose(layer.f(g(layer.h)), layer.h) == (style != "transpose")


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_learns_the_digits_by_back_propagation(tmp_path, capsys, name):
    words = (
        f"train --method backprop --network.name {name} {SMALL[name]} --optimizer.lr 0.01 --batch_size 16 --epochs 1"
    )
    assert main([*words.split(), "--device", "cpu", "--out", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["test_accuracy"] > 0.3
    assert f"name: {name}" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("network", ["lenet", "vgg", "resnet", "vit"])
def test_activation_is_the_one_asked_for(network, activation):
    model = NETWORKS[network](activation=activation).build((1, 32, 32), 10)  # pyright: ignore[reportCallIssue]
    wanted = type(ACTIVATIONS[activation]())
    kinds = {type(module) for module in model.modules()}
    assert wanted in kinds and not kinds & ({type(make()) for make in ACTIVATIONS.values()} - {wanted, nn.Identity})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("lenet --network.channels 8 0", "network.channels must be one or more whole numbers ≥ 1; got [8, 0]"),
        ("lenet --network.hidden 0", "network.hidden must be a whole number ≥ 1; got 0"),
        ("lenet --network.activation rely", "did you mean 'relu'?"),
        ("lenet --network.widths 8", "network 'lenet' has no option --network.widths"),
        ("vgg", "needs images of 32×32 pixels or more for its 5 poolings and the data's have 8×8 pixels; give fewer"),
        ("resnet --network.norm layer", "--network.norm must be one of group, batch, none; got 'layer'"),
        ("resnet --network.blocks []", "network.blocks must be one or more whole numbers ≥ 1; got []"),
        ("vit --network.heads 3", "network.heads must divide network.dim; got 3 and 64"),
        ("vit --network.patch 3", "that --network.patch 3 divides"),
        ("lenett", "did you mean 'lenet'?"),
    ],
)
def test_bad_options_give_one_sentence(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--method", "backprop", "--network.name", *options.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "examples" / "configs").glob("*.yaml")), ids=str)
def test_example_configurations_are_read_and_say_nothing_that_is_ignored(capsys, path):
    assert main(["train", "--config", str(path), "--print_config"]) == 0
    complete, written = yaml.safe_load(capsys.readouterr().out), yaml.safe_load(path.read_text())
    for name, value in written.items():
        assert value.items() <= complete[name].items() if isinstance(value, dict) else complete[name] == value
