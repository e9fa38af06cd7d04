"""A layer of your own with a method that learns decoders: nothing to write, or a decoder that you register.

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


def train(x: torch.Tensor, y: torch.Tensor) -> float:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), Rotate(16), nn.Tanh(), nn.Linear(16, 2))
    print(tp.check(net, x[:2], "dtp"))
    engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x[:2], method="dtp", seed=0)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        report = engine.backward(x, y)
        optimizer.step()
    return report.loss.item()


torch.manual_seed(1)
x = torch.randn(256, 8)
y = (x[:, 0] * x[:, 1] > 0).long()

# 1. Nothing to write: the rotation belongs to the layer of the map before it, and is undone by its transpose.
derived = train(x, y)


# 2. A decoder of your own: any module from the layer's output to its input. It is trained with the others. A module
#    that has one and parameters is a layer by itself.
@tp.register_decoder(Rotate)
def rotate_decoder(module: nn.Module, x: torch.Tensor, y: torch.Tensor, style: str) -> nn.Module:
    return nn.Linear(y.shape[1], x.shape[1])


learned = train(x, y)
print(f"loss after 60 steps: nothing registered {derived:.3f}, learned decoder {learned:.3f}")
assert max(derived, learned) < 0.6
