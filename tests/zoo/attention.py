"""Attention in five spellings: fused, nn.TransformerEncoder, nn.MultiheadAttention, einsum, pooling."""

import torch
import torch.nn.functional as F
from torch import nn

from .case import Case, floats, integers


class Attention(nn.Module):
    """Packed projections around the fused attention."""

    def __init__(self, dim, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        n, tokens, dim = x.shape
        packed = self.qkv(x).view(n, tokens, 3, self.heads, dim // self.heads)
        q, k, v = packed.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.proj(mixed.transpose(1, 2).reshape(n, tokens, dim))


class Block(nn.Module):
    """Attention and an MLP, each behind a norm and a shortcut."""

    def __init__(self, dim, heads, dropout):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, dropout)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * dim, dim))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches, a class token and positions, then blocks; the class token is classified."""

    def __init__(self, dim=24, depth=2, heads=4, num_classes=10, dropout=0.1):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, kernel_size=4, stride=4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, dim) * 0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*[Block(dim, heads, dropout) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = self.blocks(self.dropout(x + self.pos_embed))
        return self.head(self.norm(x)[:, 0])


class EncoderClassifier(nn.Module):
    """nn.TransformerEncoder over embedded tokens; token 0 is padding and masked."""

    def __init__(self, vocab=20, dim=16, num_classes=3):
        super().__init__()
        self.embed = nn.Embedding(vocab, dim, padding_idx=0)
        self.pos = nn.Parameter(torch.randn(10, dim) * 0.1)
        layer = nn.TransformerEncoderLayer(dim, nhead=2, dim_feedforward=32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2)
        self.fc = nn.Linear(dim, num_classes)

    def forward(self, tokens):
        padding = tokens == 0
        x = self.embed(tokens) + self.pos[: tokens.size(1)]
        x = self.encoder(x, src_key_padding_mask=padding)
        x = x.masked_fill(padding.unsqueeze(-1), 0).sum(1) / (~padding).sum(1, keepdim=True)
        return self.fc(x)


class SelfAttentionNet(nn.Module):
    """One nn.MultiheadAttention with a shortcut."""

    def __init__(self, dim=16, num_classes=4):
        super().__init__()
        self.proj = nn.Linear(6, dim)
        self.attn = nn.MultiheadAttention(dim, num_heads=4, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(dim)
        self.fc = nn.Linear(dim, num_classes)

    def forward(self, x):
        x = self.proj(x)
        attended, _weights = self.attn(x, x, x)
        x = self.norm(x + attended)
        return self.fc(x.mean(dim=1))


class EinsumAttention(nn.Module):
    """Heads as an axis of raw weight parameters."""

    def __init__(self, dim=12, heads=3, key=4, num_classes=4):
        super().__init__()
        self.inp = nn.Linear(6, dim)
        self.wq = nn.Parameter(torch.randn(heads, dim, key) / dim**0.5)
        self.wk = nn.Parameter(torch.randn(heads, dim, key) / dim**0.5)
        self.wv = nn.Parameter(torch.randn(heads, dim, key) / dim**0.5)
        self.wo = nn.Parameter(torch.randn(heads, key, dim) / (heads * key) ** 0.5)
        self.out = nn.Linear(dim, num_classes)

    def forward(self, x):
        x = torch.tanh(self.inp(x))
        q = torch.einsum("btd,hdk->bhtk", x, self.wq)
        k = torch.einsum("btd,hdk->bhtk", x, self.wk)
        v = torch.einsum("btd,hdk->bhtk", x, self.wv)
        att = torch.einsum("bhtk,bhsk->bhts", q, k) / q.size(-1) ** 0.5
        y = torch.einsum("bhts,bhsk->bhtk", att.softmax(dim=-1), v)
        x = x + torch.einsum("bhtk,hkd->btd", y, self.wo)
        return self.out(x.mean(1))


class AttentionPooling(nn.Module):
    """A weighted mean of the items of a bag, the weights learned."""

    def __init__(self, hidden=10, num_classes=4):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, hidden), nn.ReLU())
        self.attention = nn.Sequential(nn.Linear(hidden, 8), nn.Tanh(), nn.Linear(8, 1, bias=False))
        self.classifier = nn.Linear(hidden, num_classes)

    def forward(self, x):
        h = self.encoder(x)
        weights = torch.softmax(self.attention(h), dim=1)
        return self.classifier(torch.sum(weights * h, dim=1))


def _sequence(name, make, about):
    """Classify five sequences of seven vectors of length six."""
    return Case(name, make, lambda: floats(5, 7, 6), lambda: integers(4, 5), F.cross_entropy, about=about)


def _padded():
    """Draw five sentences of eight tokens, of which some end in padding."""
    tokens = integers(19, 5, 8, seed=3) + 1
    return tokens * (torch.arange(8) < torch.tensor([8, 5, 3, 8, 6]).unsqueeze(1))


CASES = (
    Case(
        "vit",
        ViT,
        lambda: floats(4, 3, 16, 16),
        lambda: integers(10, 4),
        F.cross_entropy,
        about="class token and position parameters, fused attention with dropout",
    ),
    Case(
        "transformer_encoder",
        EncoderClassifier,
        _padded,
        lambda: integers(3, 5),
        F.cross_entropy,
        about="nn.TransformerEncoder with padding mask and dropout over nn.Embedding",
    ),
    _sequence("multihead_attention", SelfAttentionNet, "nn.MultiheadAttention, which returns a pair"),
    _sequence("einsum_attention", EinsumAttention, "attention by einsum with raw weight parameters"),
    _sequence("attention_pooling", AttentionPooling, "softmax over the items of a bag"),
)
