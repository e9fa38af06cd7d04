"""Train a network on scikit-learn's digits: one line of an ordinary loop changes.

python examples/train.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import targetprop as tp

torch.manual_seed(0)
digits = load_digits()
x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
net = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 10))
engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x[:2])
optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)

for _ in range(6):
    for batch in torch.randperm(1500).split(64):
        optimizer.zero_grad()
        report = engine.backward(x[batch], y[batch])  # instead of loss.backward()
        optimizer.step()

accuracy = (net(x[1500:]).argmax(1) == y[1500:]).float().mean().item()
print(f"{report}; test accuracy {accuracy:.1%}")
assert accuracy > 0.9
