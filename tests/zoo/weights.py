"""Weights that are not plain leaves used once: tied, normalised, low-rank, quantised, frozen."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from .case import Case, floats, integers, squared_error


class TiedAutoencoder(nn.Module):
    """A decoder with the encoder's weights, transposed."""

    def __init__(self):
        super().__init__()
        self.enc = nn.Linear(12, 8)
        self.enc2 = nn.Linear(8, 4)
        self.bias2, self.bias = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(12))

    def forward(self, x):
        z = torch.tanh(self.enc2(torch.tanh(self.enc(x))))
        h = torch.tanh(F.linear(z, self.enc2.weight.t(), self.bias2))
        return F.linear(h, self.enc.weight.t()) + self.bias


class WeightNormMLP(nn.Module):
    """A middle layer whose weight is a length times a direction."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(12, 10)
        self.fc2 = weight_norm(nn.Linear(10, 10))
        self.fc3 = nn.Linear(10, 4)

    def forward(self, x):
        x = F.elu(self.fc1(x))
        x = F.elu(self.fc2(x))
        return self.fc3(x)


class LoRALinear(nn.Module):
    """A frozen linear layer plus a low-rank one, merged before the product or not."""

    def __init__(self, inputs, outputs, rank=2, alpha=4, merge=True):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.linear.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, inputs) / inputs**0.5)
        self.B = nn.Parameter(torch.randn(outputs, rank) * 0.1)  # as after some steps: at zero A has no gradient
        self.scaling, self.merge = alpha / rank, merge

    def forward(self, x):
        if self.merge:
            return F.linear(x, self.linear.weight + self.scaling * (self.B @ self.A), self.linear.bias)
        return self.linear(x) + (x @ self.A.T @ self.B.T) * self.scaling


class LoRANet(nn.Module):
    """Three adapted layers; nothing else trains."""

    def __init__(self, merge):
        super().__init__()
        self.fc1 = LoRALinear(12, 10, merge=merge)
        self.fc2 = LoRALinear(10, 10, merge=merge)
        self.fc3 = LoRALinear(10, 4, merge=merge)

    def forward(self, x):
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(x)))))


class SignFunction(torch.autograd.Function):
    """The sign, whose gradient passes where the input is small."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * (x.abs() <= 1).to(grad_output.dtype)


def sign_by_detach(x):
    """Return the sign with the gradient of the identity."""
    return (x.sign() - x).detach() + x


class BinaryNet(nn.Module):
    """Linear layers with binary activations."""

    def __init__(self, binarise):
        super().__init__()
        self.binarise = binarise
        self.fc1, self.fc2, self.fc3 = nn.Linear(12, 16), nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, x):
        x = self.binarise(self.fc1(x))
        x = self.binarise(self.fc2(x))
        return self.fc3(x)


class FineTuned(nn.Module):
    """A frozen first half, a trainable second."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10), nn.ReLU())
        for p in self.backbone.parameters():
            p.requires_grad_(False)
        self.head = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x):
        return self.head(self.backbone(x))


def _batch():
    """Draw six vectors of length twelve."""
    return floats(6, 12)


def _case(name, make, about):
    """Put six vectors into four classes."""
    return Case(name, make, _batch, lambda: integers(4, 6), F.cross_entropy, about=about)


CASES = (
    Case("autoencoder_tied", TiedAutoencoder, _batch, _batch, squared_error, about="F.linear(h, self.enc.weight.t())"),
    _case("weight_norm", WeightNormMLP, "parametrised weight of a middle layer"),
    _case("lora_merged", lambda: LoRANet(True), "effective weight W + B @ A with W frozen"),
    _case("lora_split", lambda: LoRANet(False), "frozen layer plus x @ A.T @ B.T"),
    _case("sign_detach", lambda: BinaryNet(sign_by_detach), "straight-through sign by detach"),
    _case("sign_function", lambda: BinaryNet(SignFunction.apply), "straight-through sign by autograd.Function"),
    _case("frozen_half", FineTuned, "the first half needs no gradient"),
)
