"""A character-level transformer on the text of Python's own library: about 0.8 million parameters, end to end.

The text is the ``.py`` files of the standard library in alphabetical order, ASCII alone; its last tenth is for testing.
"""

import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from targetprop.bench.losses import SoftmaxCrossEntropy
from targetprop.bench.problems.problem import Problem, Task, accuracy
from targetprop.layers import forked_random_states
from targetprop.settings import check_ranges

CHARACTERS = 128  # of ASCII


class Block(nn.Module):
    """Attention and a perceptron, each on top of the identity."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        """Make the maps."""
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.fc, self.out = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        """Apply the block to ``(n, T, width)``."""
        n, length, width = h.shape
        q, k, v = self.qkv(self.norm1(h)).split(width, dim=2)
        q, k, v = (t.view(n, length, self.heads, -1).transpose(1, 2) for t in (q, k, v))
        dropped = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropped, is_causal=True)
        h = h + functional.dropout(self.proj(mixed.transpose(1, 2).reshape(h.shape)), self.dropout, self.training)
        raised = functional.gelu(self.fc(self.norm2(h)))
        return h + functional.dropout(self.out(raised), self.dropout, self.training)


class Gpt(nn.Module):
    """A decoder-only transformer over characters."""

    def __init__(self, characters: int, length: int, width: int, layers: int, heads: int, dropout: float) -> None:
        """Make it, with initial values as GPT-2's."""
        super().__init__()
        self.token, self.position = nn.Embedding(characters, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``(n, T)`` characters to logits ``(n, T, characters)``."""
        h = self.token(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


@dataclass(frozen=True)
class Characters(Problem):
    """A transformer that predicts the next character of Python's own library.

    Attributes:
        length: characters of a sample.
        width: units of a position.
        layers: blocks of attention and perceptron.
        heads: heads of the attention.
        size: characters of text.
    """

    batch: int = 32
    length: int = 64
    width: int = 128
    layers: int = 4
    heads: int = 4
    size: int = 1_000_000
    name: ClassVar[str] = "characters"

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        super().__post_init__()
        check_ranges(
            self,
            length=(self.length >= 1, "a whole number ≥ 1"),
            layers=(self.layers >= 1, "a whole number ≥ 1"),
            heads=(self.heads >= 1, "a whole number ≥ 1"),
            width=(self.width >= 1 and self.width % max(1, self.heads) == 0, "a multiple of heads"),
            size=(self.size >= 20 * (self.length + 1), "at least 20 (length + 1)"),
        )  # fmt: skip

    def network(self, seed: int) -> nn.Module:
        """Build the transformer; see `Problem.network`."""
        with forked_random_states(seed):
            return Gpt(CHARACTERS, self.length, self.width, self.layers, self.heads, 0.0)

    def load(self) -> Task:
        """Cut the text into windows; see `Problem.load`."""
        text = library_text(self.size)
        codes = torch.frombuffer(bytearray(text.encode("ascii")), dtype=torch.uint8).long()
        windows = codes[: len(codes) // (self.length + 1) * (self.length + 1)].view(-1, self.length + 1)
        kept = len(windows) * 9 // 10
        (x, y), (test_x, test_y) = ((w[:, :-1], w[:, 1:]) for w in (windows[:kept], windows[kept:]))
        return Task(x, y, test_x, test_y, SoftmaxCrossEntropy(), {"accuracy": accuracy})


def library_text(size: int) -> str:
    """Read Python's own library, up to some characters."""
    text, folder = "", Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(folder.glob("*.py")):
        text += file.read_bytes().decode("ascii", "ignore")
        if len(text) >= size:
            break
    return text[:size]
