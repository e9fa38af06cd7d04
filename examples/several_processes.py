"""Train data-parallel in a loop of one's own: each process has its own rows of every batch, and all make the same step.

torchrun --nproc-per-node 2 examples/several_processes.py     (or python examples/several_processes.py, on one process)
"""

import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import targetprop as tp

group, rank, ranks = None, 0, 1
if "WORLD_SIZE" in os.environ:
    dist.init_process_group("gloo")
    group, rank, ranks = dist.group.WORLD, dist.get_rank(), dist.get_world_size()

torch.manual_seed(0)
digits = load_digits()
x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
rows = TensorDataset(x[:1500], y[:1500])
sampler = DistributedSampler(rows, num_replicas=ranks, rank=rank, seed=0)
loader = DataLoader(rows, batch_size=64 // ranks, sampler=sampler)
net = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 10))
engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x[:2], process_group=group)
optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)

for epoch in range(10):
    sampler.set_epoch(epoch)
    for inputs, labels in loader:
        optimizer.zero_grad()
        report = engine.backward(inputs, labels)  # the same .grad on every process
        optimizer.step()

accuracy = (net(x[1500:]).argmax(1) == y[1500:]).float().mean().item()
if rank == 0:
    print(f"{report}; test accuracy {accuracy:.2%} on {ranks} processes")
assert accuracy > 0.9
if group is not None:
    dist.destroy_process_group()
