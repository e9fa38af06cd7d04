"""Two small GPTs: fused attention with its own loss, and attention written out."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .case import Case, integers, none, token_loss


@dataclass
class GPTConfig:
    """Sizes of a model."""

    block_size: int = 12
    vocab_size: int = 24
    n_layer: int = 2
    n_head: int = 2
    n_embd: int = 16
    dropout: float = 0.1


class FusedAttention(nn.Module):
    """Packed projections, causal fused attention, dropout."""

    def __init__(self, config):
        super().__init__()
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.proj = nn.Linear(config.n_embd, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.n_head, self.dropout = config.n_head, config.dropout

    def forward(self, x):
        n, length, width = x.size()
        heads = (part.view(n, length, self.n_head, -1).transpose(1, 2) for part in self.qkv(x).split(width, dim=2))
        p = self.dropout if self.training else 0
        y = F.scaled_dot_product_attention(*heads, dropout_p=p, is_causal=True)
        y = y.transpose(1, 2).contiguous().view(n, length, width)
        return self.drop(self.proj(y))


class WrittenAttention(nn.Module):
    """Separate projections, a mask in a buffer, softmax."""

    def __init__(self, config):
        super().__init__()
        self.query = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.key = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.value = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.proj = nn.Linear(config.n_embd, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.register_buffer("mask", torch.tril(torch.ones(config.block_size, config.block_size)))
        self.n_head = config.n_head

    def forward(self, x):
        n, length, width = x.shape
        q = self.query(x).view(n, length, self.n_head, -1).transpose(1, 2)
        k = self.key(x).view(n, length, self.n_head, -1).transpose(1, 2)
        v = self.value(x).view(n, length, self.n_head, -1).transpose(1, 2)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
        scores = scores.masked_fill(self.mask[:length, :length] == 0, float("-inf"))
        attention = self.drop(F.softmax(scores, dim=-1))
        return self.proj((attention @ v).transpose(1, 2).reshape(n, length, width))


class Block(nn.Module):
    """Attention and an MLP, each behind a norm and a shortcut."""

    def __init__(self, config, attention):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.n_embd)
        self.attn = attention(config)
        self.norm2 = nn.LayerNorm(config.n_embd)
        self.fc1 = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.fc2 = nn.Linear(4 * config.n_embd, config.n_embd)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.drop(self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class GPT(nn.Module):
    """A GPT that returns its logits and, given targets, its loss."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "tokens": nn.Embedding(config.vocab_size, config.n_embd),
                "positions": nn.Embedding(config.block_size, config.n_embd),
                "drop": nn.Dropout(config.dropout),
                "blocks": nn.ModuleList([Block(config, FusedAttention) for _ in range(config.n_layer)]),
                "norm": nn.LayerNorm(config.n_embd),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.apply(self._init_weights)
        self.transformer.tokens.weight = self.lm_head.weight

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=0.1)

    def forward(self, idx, targets=None):
        pos = torch.arange(idx.size(1), device=idx.device)
        x = self.transformer.drop(self.transformer.tokens(idx) + self.transformer.positions(pos))
        for block in self.transformer.blocks:
            x = block(x)
        x = self.transformer.norm(x)
        if targets is None:
            return self.lm_head(x[:, [-1], :]), None
        logits = self.lm_head(x)
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)


class WrittenGPT(nn.Module):
    """A GPT with attention written out that returns its logits."""

    def __init__(self, config):
        super().__init__()
        self.tok_emb = nn.Embedding(config.vocab_size, config.n_embd)
        self.pos_emb = nn.Parameter(torch.zeros(1, config.block_size, config.n_embd))
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.Sequential(*[Block(config, WrittenAttention) for _ in range(config.n_layer)])
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def forward(self, idx):
        x = self.drop(self.tok_emb(idx) + self.pos_emb[:, : idx.shape[1], :])
        return self.head(self.norm(self.blocks(x)))


def _text(seed):
    """Draw four texts of twelve tokens."""
    return integers(24, 4, 12, seed=seed)


CASES = (
    Case(
        "gpt_fused",
        lambda: GPT(GPTConfig()),
        lambda: (_text(1), _text(2)),
        none,
        lambda output, y: output[1],
        about="computes its own loss, returns (logits, loss); packed qkv, head tied to the embedding",
    ),
    Case(
        "gpt_written",
        lambda: WrittenGPT(GPTConfig()),
        lambda: _text(1),
        lambda: _text(2),
        token_loss,
        about="masked_fill with a buffer and softmax, output (n, T, V)",
    ),
)
