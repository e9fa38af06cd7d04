"""Recurrent nets: torch's LSTM and GRU, their cells in a loop, and a cell of one's own."""

import torch
import torch.nn.functional as F
from torch import nn

from .case import Case, floats, integers


class LSTMClassifier(nn.Module):
    """Embed tokens, run an LSTM, classify its last step."""

    def __init__(self, vocab=20, embed=8, hidden=12, num_classes=3):
        super().__init__()
        self.embedding = nn.Embedding(vocab, embed)
        self.lstm = nn.LSTM(embed, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, x):
        out, _ = self.lstm(self.embedding(x))
        return self.fc(out[:, -1, :])


class BiGRU(nn.Module):
    """A two-layer bidirectional GRU with dropout; the last states of both directions are classified."""

    def __init__(self, hidden=8, num_classes=3):
        super().__init__()
        self.gru = nn.GRU(5, hidden, num_layers=2, batch_first=True, bidirectional=True, dropout=0.2)
        self.fc = nn.Linear(2 * hidden, num_classes)

    def forward(self, x):
        _, h = self.gru(x)
        return self.fc(torch.cat([h[-2], h[-1]], dim=1))


class LSTMCellNet(nn.Module):
    """An LSTM cell in a loop over time, a label for each step."""

    def __init__(self, hidden=10, num_classes=3):
        super().__init__()
        self.hidden = hidden
        self.cell = nn.LSTMCell(5, hidden)
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, x):
        h = torch.zeros(x.size(0), self.hidden, dtype=x.dtype, device=x.device)
        c = torch.zeros_like(h)
        outputs = []
        for t in range(x.size(1)):
            h, c = self.cell(x[:, t], (h, c))
            outputs.append(self.fc(h))
        return torch.stack(outputs, dim=1)


class GRUCellNet(nn.Module):
    """A GRU cell in a loop over time, the last state classified."""

    def __init__(self, hidden=10, num_classes=3):
        super().__init__()
        self.cell = nn.GRUCell(5, hidden)
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, x):
        h = None
        for step in x.unbind(dim=1):
            h = self.cell(step, h)
        return self.fc(h)


class Cell(nn.Module):
    """One step of a plain recurrent net."""

    def __init__(self, inputs, hidden):
        super().__init__()
        self.i2h = nn.Linear(inputs, hidden)
        self.h2h = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x, h):
        return torch.tanh(self.i2h(x) + self.h2h(h))


class OwnRNN(nn.Module):
    """The same cell at each step, from a learned first state."""

    def __init__(self, hidden=10, num_classes=3):
        super().__init__()
        self.h0 = nn.Parameter(torch.zeros(1, hidden))
        self.cell = Cell(5, hidden)
        self.readout = nn.Linear(hidden, num_classes)

    def forward(self, x):
        h = self.h0.expand(x.shape[0], -1)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t, :], h)
        return self.readout(h)


def _case(name, make, about, labels=lambda: integers(3, 6), loss=F.cross_entropy):
    """Classify six sequences of seven vectors of length five."""
    return Case(name, make, lambda: floats(6, 7, 5), labels, loss, about=about)


CASES = (
    Case(
        "lstm",
        LSTMClassifier,
        lambda: integers(20, 6, 9, seed=3),
        lambda: integers(3, 6),
        F.cross_entropy,
        about="nn.LSTM over nn.Embedding, last step",
    ),
    _case("gru_bidirectional", BiGRU, "nn.GRU of two layers and directions with dropout, last states"),
    _case(
        "lstm_cell",
        LSTMCellNet,
        "nn.LSTMCell called in a loop with a pair of states, output (n, classes, T) to the loss",
        lambda: integers(3, 6, 7),
        lambda out, y: F.cross_entropy(out.transpose(1, 2), y),
    ),
    _case("gru_cell", GRUCellNet, "nn.GRUCell called in a loop, first without a state"),
    _case("rnn_own_cell", OwnRNN, "own cell with the same nn.Linear at each step, learned first state"),
)
