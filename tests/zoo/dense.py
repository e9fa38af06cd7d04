"""Feed-forward nets without convolution: functional, mixed, gated, bilinear, raw weights, own norms and activations."""

import torch
import torch.nn.functional as F
from torch import nn

from .case import Case, floats, integers


class FunctionalMLP(nn.Module):
    """Images as vectors, all but the linear layers functional."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 32)
        self.fc2 = nn.Linear(32, 16)
        self.fc3 = nn.Linear(16, 4)

    def forward(self, x):
        x = x.view(-1, 64)
        x = F.relu(self.fc1(x))
        x = F.dropout(x, p=0.5, training=self.training)
        x = F.relu(self.fc2(x))
        x = F.dropout(x, training=self.training)
        return self.fc3(x)


class MixerBlock(nn.Module):
    """An MLP over the patches, then one over the channels."""

    def __init__(self, tokens, dim):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.token_mix = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
        self.channel_mix = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x):
        y = self.norm1(x).transpose(1, 2)
        x = x + self.token_mix(y).transpose(1, 2)
        return x + self.channel_mix(self.norm2(x))


class MLPMixer(nn.Module):
    """Patches by a convolution, two blocks, a mean over patches."""

    def __init__(self, dim=12):
        super().__init__()
        self.patch = nn.Conv2d(1, dim, kernel_size=2, stride=2)
        self.blocks = nn.ModuleList(MixerBlock(16, dim) for _ in range(2))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 4)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))


class BilinearNet(nn.Module):
    """A product of two halves of the input."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 8), nn.Linear(6, 7)
        self.bilinear = nn.Bilinear(8, 7, 10)
        self.fc = nn.Linear(10, 4)

    def forward(self, x):
        a, b = x.chunk(2, dim=1)
        h = self.bilinear(torch.tanh(self.left(a)), torch.tanh(self.right(b)))
        return self.fc(F.leaky_relu(h, 0.1))


class GLUNet(nn.Module):
    """Gated linear units: one half of the features gates the other."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(12, 20), nn.Linear(10, 20), nn.Linear(10, 4)

    def forward(self, x):
        x = F.glu(self.fc1(x), dim=-1)
        x = F.glu(self.fc2(x))
        return self.fc3(x)


class Highway(nn.Module):
    """A gate between a layer and its own input."""

    def __init__(self, size=12, layers=3):
        super().__init__()
        self.plain = nn.ModuleList([nn.Linear(size, size) for _ in range(layers)])
        self.gate = nn.ModuleList([nn.Linear(size, size) for _ in range(layers)])
        self.out = nn.Linear(size, 4)

    def forward(self, x):
        for plain, gate in zip(self.plain, self.gate, strict=True):
            t = torch.sigmoid(gate(x))
            x = t * F.relu(plain(x)) + (1 - t) * x
        return self.out(x)


class RawParameters(nn.Module):
    """Weights without modules, in three spellings of the product."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 10) * 0.3)
        self.bias = nn.Parameter(torch.zeros(10))
        self.w2 = nn.Parameter(torch.empty(10, 8))
        nn.init.xavier_uniform_(self.w2)
        self.w3, self.b3 = nn.Parameter(torch.randn(8, 4) * 0.3), nn.Parameter(torch.zeros(4))

    def forward(self, x):
        h = torch.relu(x @ self.weight + self.bias)
        h = torch.matmul(h, self.w2).tanh()
        return torch.addmm(self.b3, h, self.w3)


class GatedResidual(nn.Module):
    """A branch times a learned number, added to its input."""

    def __init__(self, dim=12):
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))
        self.alpha = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return x + self.alpha * self.branch(x)


class RMSNorm(nn.Module):
    """Divide by the root mean square, times a learned gain."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class SquaredReLU(nn.ReLU):
    """A ReLU by type, its square by value."""

    def forward(self, x):
        return super().forward(x).square()


class Stack(nn.Module):
    """Two linear layers around a module under test, with a head."""

    def __init__(self, *middle):
        super().__init__()
        self.fc1 = nn.Linear(12, 12)
        self.middle = nn.Sequential(*middle)
        self.fc2 = nn.Linear(12, 10)
        self.head = nn.Linear(10, 4)

    def forward(self, x):
        x = self.middle(self.fc1(x))
        return self.head(torch.sigmoid(self.fc2(x)))


def _case(name, make, about, shape=(12,)):
    """Put six inputs into four classes."""
    return Case(name, make, lambda: floats(6, *shape), lambda: integers(4, 6), F.cross_entropy, about=about)


CASES = (
    _case("mlp_functional", FunctionalMLP, "view, F.relu, F.dropout(training=self.training)", (1, 8, 8)),
    _case("mlp_mixer", MLPMixer, "transpose between two MLPs", (1, 8, 8)),
    _case("bilinear", BilinearNet, "nn.Bilinear on two halves of the features"),
    _case("glu", GLUNet, "F.glu"),
    _case("highway", Highway, "sigmoid gate between a layer and its input"),
    _case("raw_parameters", RawParameters, "x @ weight, torch.matmul, torch.addmm without modules"),
    _case("scalar_gate", lambda: Stack(GatedResidual(), GatedResidual()), "residual branch times a 0-d parameter"),
    _case("rmsnorm", lambda: Stack(RMSNorm(12), nn.ReLU()), "norm by hand with a gain parameter"),
    _case("prelu", lambda: Stack(nn.PReLU(12, init=-0.3)), "PReLU with negative slopes, one a channel"),
    _case("squared_relu", lambda: Stack(SquaredReLU()), "subclass of nn.ReLU with another forward"),
)
