"""Train with layers on several devices: each process works on its own layers, and all get the same batches.

torchrun --nproc-per-node 2 examples/layers_on_several_devices.py     (or without torchrun, on one process)
"""

import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn

import targetprop as tp

placement, rank = None, 0
if "WORLD_SIZE" in os.environ:
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    owners = {"0": 0, "2": 0, "4": ranks - 1}  # of each layer, by name; leave it out for stretches of about equal size
    placement = tp.Placement(dist.group.WORLD, owners if ranks == 2 else None)

torch.manual_seed(0)  # the same on every process: all of them see the same batches
digits = load_digits()
x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
net = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 10))
sweeps = tp.method("learned-inverse", propagation="joint", inversion=tp.InputSpace(steps=3))
engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x[:2], method=sweeps, placement=placement)
optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)  # steps the layers that have a gradient here

for _ in range(6):
    for rows in torch.randperm(1500).split(64):
        optimizer.zero_grad()
        report = engine.backward(x[rows], y[rows])
        optimizer.step()

engine.gather()  # every process now has all layers
accuracy = (net(x[1500:]).argmax(1) == y[1500:]).float().mean().item()
if rank == 0:
    print(f"{report}; test accuracy {accuracy:.2%}")
assert accuracy > 0.88
if placement is not None:
    dist.destroy_process_group()
