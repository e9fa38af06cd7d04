"""A layer above a first one, its decoder bound to one pass, and what decoders are measured by."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import targetprop as tp
from cases import DTYPE, rand
from targetprop.decoders import Inverse, Objective, Style
from targetprop.decoders.maps import LinearDecoder, MapDecoder
from targetprop.decoders.objective import Noise
from targetprop.layers import LayerRecord, Record

IMAGE, SERIES = (4, 7, 6), (4, 9)
CONVS = {
    "convolution": (lambda: nn.Conv2d(4, 5, 3), IMAGE),
    "stride 2": (lambda: nn.Conv2d(4, 5, 3, stride=2, padding=1), IMAGE),
    "stride 3, rest 2": (lambda: nn.Conv2d(4, 5, (2, 1), stride=3, bias=False), IMAGE),
    "two of everything": (lambda: nn.Conv2d(4, 6, (3, 2), (1, 2), (0, 1), (2, 1), groups=2), IMAGE),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), IMAGE),
    "same": (lambda: nn.Conv2d(4, 5, 3, padding="same", dilation=2), IMAGE),
    "same, even kernel": (lambda: nn.Conv2d(4, 5, (4, 2), padding="same"), IMAGE),
    "reflect": (lambda: nn.Conv2d(4, 5, 3, padding=(2, 1), padding_mode="reflect"), IMAGE),
    "circular": (lambda: nn.Conv2d(4, 5, 3, padding=1, stride=2, padding_mode="circular"), IMAGE),
    "one axis": (lambda: nn.Conv1d(4, 5, 3, stride=2), SERIES),
    "three axes": (lambda: nn.Conv3d(2, 3, 2, stride=2, padding=1), (2, 3, 4, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2), IMAGE),
    "transposed, dilation": (lambda: nn.ConvTranspose2d(4, 5, 3, 2, 1, 2, dilation=3, bias=False), IMAGE),
    "transposed, three axes": (lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 2, 3, 2)),
}


class Below(nn.Module):
    """The identity with a parameter, for inputs of any shape."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones((), dtype=DTYPE))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x


class Function(nn.Module):
    """A function of a tensor and of modules, as a module."""

    def __init__(self, function: Callable[..., Tensor], *inner: nn.Module) -> None:
        super().__init__()
        self.function, self.inner = function, nn.ModuleList(inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.inner)


class Attention(nn.Module):
    """One head of self-attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out((q @ k.mT / math.sqrt(x.shape[-1])).softmax(-1) @ v)


@dataclass(frozen=True, eq=False)
class OneLayer:
    """A module as the second and last layer of a model, after a pass on some input."""

    engine: tp.TargetPropagation
    record: Record

    @property
    def layer(self) -> LayerRecord:
        return self.record.layers[1]

    @property
    def g(self) -> Inverse:
        return self.engine.bank.inverse(self.layer)

    @property
    def given(self) -> tuple:
        """What objectives take, but for the noise."""
        return self.engine.bank, self.record.layers[1:], self.record

    def noise(self, generator: torch.Generator | int = 0) -> Noise:
        """The noise that the objective would draw."""
        generator = torch.Generator().manual_seed(generator) if isinstance(generator, int) else generator
        return Noise(self.record, self.layer, self.engine.method.decoder.noise, generator)

    @torch.no_grad()
    def read_weights(self) -> None:
        """Give the learned maps the weights of the forward pass."""
        maps = [module for module in self.engine.bank.modules() if isinstance(module, MapDecoder)]
        for learned, use in zip(maps, self.layer.maps, strict=True):
            turned = isinstance(learned, LinearDecoder) and use.site.kind == "linear"
            learned.weight.copy_(use.weight.T if turned else use.weight)

    def learn(self, steps: int, rate: float) -> None:
        """Train the decoder on the input of the pass, by a rate that falls to a hundredth."""
        optimizer = self.engine.decoder_optimizer
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate * 0.01 ** (step / steps)
            self.engine.train_decoders(self.record.layers[0].x)


def bind(module: nn.Module, x: Tensor, decoder: Style | Objective = "identity") -> OneLayer:
    """Build the decoder of a module; its pass draws from seed 1."""
    objective = tp.Denoising(activation=decoder) if isinstance(decoder, str) else decoder
    model, method = {"below": Below(), "layer": module.to(DTYPE)}, tp.Method(decoder=objective)
    engine = tp.TargetPropagation(model, nn.MSELoss(), example_input=x, method=method, seed=0)
    torch.manual_seed(1)
    return OneLayer(engine, engine.record(x))


def pulled(module: nn.Module, x: Tensor, change: Tensor) -> Tensor:
    """``Jᵀ change`` by autograd, where the module draws from seed 1."""
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    return torch.autograd.grad(module(x * 1), x, change)[0]


class EvenNoise:
    """Noise of scale ``s`` whose second moments are exactly ``s² I``: each axis in turn."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def like(self, values: Tensor) -> Tensor:
        n, width = len(values), values[0].numel()
        assert n % width == 0
        return (self.scale * width**0.5 * torch.eye(width, dtype=DTYPE)).repeat(n // width, 1).view(values.shape)


def rough(module: nn.Module) -> nn.Module:
    """Give norms gains, biases and statistics that matter."""
    module = module.to(DTYPE)
    for seed, t in enumerate((*module.parameters(), *module.buffers())):
        if t.is_floating_point():
            t.data.add_(0.5 * rand(*t.shape, seed=seed).abs())
    return module
