"""A network with a hard-threshold layer: back-propagation gets no gradient below it, target propagation a target.

The threshold starts a layer of its own, so the parameters before it and after it can learn. The decoder of that layer,
trained on noise as wide as the activations, sees the threshold's average slope.

python examples/hard_threshold.py
"""

import torch
from torch import Tensor, nn

import targetprop as tp


class HardThreshold(nn.Module):
    """−1 or 1: autograd says nothing of it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, 1.0, -1.0)


def make_data() -> tuple[Tensor, Tensor]:
    """Draw points and let a random network sort them into five classes."""
    torch.manual_seed(3)
    teacher = nn.Sequential(nn.Linear(30, 8), nn.Tanh(), nn.Linear(8, 5))
    teacher[0].weight.data *= 4
    teacher[2].weight.data *= 4
    x = torch.randn(4000, 30)
    return x, teacher(x).argmax(1)


def accuracy(method: str | tp.Method, x: Tensor, y: Tensor) -> float:
    """Train on the first 3,000 points, test on the rest."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 32), nn.Tanh(), nn.Linear(32, 16), HardThreshold(), nn.Linear(16, 5))
    engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x[:2], method=method, seed=0)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(10):
        for inputs, labels in zip(x[:3000].split(100), y[:3000].split(100), strict=True):
            optimizer.zero_grad()
            engine.backward(inputs, labels)
            optimizer.step()
    return (net(x[3000:]).argmax(1) == y[3000:]).float().mean().item()


x, y = make_data()
without = accuracy("backprop", x, y)
with_targets = accuracy("dtp", x, y)
print(f"test accuracy: back-propagation {without:.1%}, target propagation {with_targets:.1%}")
assert with_targets > without + 0.2
