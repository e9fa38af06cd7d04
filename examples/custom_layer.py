"""Teach the library a layer of your own, two ways: register a decoder, or let it fall back on damped least squares.

python examples/custom_layer.py
"""

import torch
from torch import nn

import targetprop as tp


class Rotate(nn.Module):
    """A learned gain after a fixed rotation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.linalg.qr(torch.randn(width, width))[0])
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * (x @ self.matrix)


def train(net: nn.Module, engine: tp.TargetPropagation, x: torch.Tensor, y: torch.Tensor) -> float:
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        report = engine.backward(x, y)
        optimizer.step()
    return report.loss.item()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), Rotate(16), nn.Tanh(), nn.Linear(16, 2))


torch.manual_seed(1)
x = torch.randn(256, 8)
y = (x[:, 0] * x[:, 1] > 0).long()

# 1. Unknown layers are inverted by damped least squares through their own JVP and VJP: nothing to write.
net = network()
engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x[:2], seed=0)
print(engine)
fallback = train(net, engine, x, y)


# 2. A decoder of your own: any module from the layer's output to its input. It is trained with the others.
@tp.register_decoder(Rotate)
def rotate_decoder(module: nn.Module, x: torch.Tensor, y: torch.Tensor, style: str) -> nn.Module:
    return nn.Linear(y.shape[1], x.shape[1])


net = network()
engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x[:2], seed=0)
print(engine)
learned = train(net, engine, x, y)
print(f"loss after 60 steps: fallback {fallback:.3f}, learned decoder {learned:.3f}")
assert max(fallback, learned) < 0.6
