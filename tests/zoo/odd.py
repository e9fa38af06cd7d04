"""Odd ones: sparse gradients, bags, sequences of any length, noise of one's own, graphs."""

import torch
import torch.nn.functional as F
from torch import nn

from .case import Case, floats, integers, token_loss


class BagOfWords(nn.Module):
    """Sum the embeddings of a sentence, whose gradient is sparse."""

    def __init__(self, vocab=30, dim=8):
        super().__init__()
        self.embed = nn.Embedding(vocab, dim, sparse=True)
        self.mlp = nn.Sequential(nn.Linear(dim, 10), nn.ReLU(), nn.Linear(10, 4))

    def forward(self, tokens):
        return self.mlp(self.embed(tokens).sum(dim=1))


class TextClassifier(nn.Module):
    """Sentences of several lengths, end to end, with their offsets."""

    def __init__(self, vocab=30, dim=8):
        super().__init__()
        self.embedding = nn.EmbeddingBag(vocab, dim)
        self.fc1 = nn.Linear(dim, 10)
        self.fc2 = nn.Linear(10, 4)

    def forward(self, text, offsets):
        return self.fc2(F.relu(self.fc1(self.embedding(text, offsets))))


class SequenceCNN(nn.Module):
    """Convolutions over time and a pool to a fixed length."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv1d(5, 8, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(8, 8, kernel_size=3, stride=2, dilation=2)
        self.pool = nn.AdaptiveMaxPool1d(2)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        return self.fc(self.pool(x).flatten(start_dim=1))


class GaussianNoise(nn.Module):
    """Add noise while training."""

    def __init__(self, std=0.3):
        super().__init__()
        self.std = std

    def forward(self, x):
        if self.training:
            return x + self.std * torch.randn_like(x)
        return x


class Drop(nn.Module):
    """Dropout of one's own around torch's function."""

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        return F.dropout(x, self.p, self.training)


class NoisyMLP(nn.Module):
    """A module that draws random numbers after each layer."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise
        self.fc1, self.fc2, self.fc3 = nn.Linear(12, 16), nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, x):
        x = F.relu(self.noise(self.fc1(x)))
        x = self.noise(F.relu(self.fc2(x)))
        return self.fc3(x)


class GraphConv(nn.Module):
    """Mix the features of each node, then those of its neighbours."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x, adj):
        return torch.matmul(adj, x @ self.weight) + self.bias


class GCN(nn.Module):
    """Two graph convolutions over one ring of nodes with a chord, a class for each node."""

    def __init__(self, nodes=7, hidden=10, num_classes=3):
        super().__init__()
        ring = torch.eye(nodes).roll(1, dims=0)
        adj = ring + ring.t() + torch.eye(nodes)
        adj[0, 3] = adj[3, 0] = 1
        scale = adj.sum(1).rsqrt()
        self.register_buffer("adj", scale[:, None] * adj * scale[None, :])
        self.gc1, self.gc2 = GraphConv(5, hidden), GraphConv(hidden, num_classes)

    def forward(self, x):
        x = F.relu(self.gc1(x, self.adj))
        x = F.dropout(x, 0.2, training=self.training)
        return self.gc2(x, self.adj)


def _case(name, make, inputs, about, labels=lambda: integers(4, 6), loss=F.cross_entropy):
    """Put six inputs into four classes."""
    return Case(name, make, inputs, labels, loss, about=about)


CASES = (
    _case("embedding_sparse", BagOfWords, lambda: integers(30, 6, 5, seed=3), "sparse gradient of the embedding"),
    _case(
        "embedding_bag",
        TextClassifier,
        lambda: (integers(30, 20, seed=3), torch.tensor([0, 4, 5, 9, 11, 17])),
        "20 tokens of 6 sentences with offsets: the first axis is not the batch",
    ),
    _case("conv1d_short", SequenceCNN, lambda: floats(6, 5, 9), "adaptive pool over a short sequence"),
    _case("conv1d_long", SequenceCNN, lambda: floats(6, 5, 23), "the same model, a longer sequence"),
    _case("gaussian_noise", lambda: NoisyMLP(GaussianNoise()), lambda: floats(6, 12), "torch.randn_like in training"),
    _case("own_dropout", lambda: NoisyMLP(Drop(0.3)), lambda: floats(6, 12), "own module around F.dropout"),
    _case(
        "gcn",
        GCN,
        lambda: floats(4, 7, 5),
        "adjacency buffer times a batch of graphs (n, nodes, features)",
        lambda: integers(3, 4, 7),
        token_loss,
    ),
)
