"""Every public module of `torch.nn`, by group of its documentation; losses have a table of their own."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from compatibility.case import WIDTH, Case, in_the_middle

SIZES = {1: (2, 8), 2: (2, 6, 6), 3: (2, 4, 4, 4)}  # a sample of two channels, by the number of axes
_NO_ROW = {
    "Container": "torch keeps the name alone; use Sequential",
    "Module": "the base of all; see the rest of this page",
    "RNNCellBase": "an abstract base; see RNNCell, LSTMCell and GRUCell",
}


def public() -> list[str]:
    """Name every public module class of `torch.nn`."""
    return sorted(n for n, c in vars(nn).items() if inspect.isclass(c) and issubclass(c, nn.Module) and n[0] != "_")


def losses() -> list[str]:
    """Name those of them that are losses."""
    return [name for name in public() if name.endswith(("Loss", "Loss2d", "WithLoss"))]


def without_row() -> dict[str, str]:
    """Say why a class has no row."""
    return _NO_ROW


def _by_axes(
    names: tuple[str, ...], group: str, *args: Any, axes: tuple[int, ...] = (1, 2, 3), **settings: Any
) -> Iterator[Case]:
    for name in names:
        for axis in axes:
            module: Callable[..., nn.Module] = getattr(nn, f"{name}{axis}d")
            yield in_the_middle(f"{name}{axis}d", group, lambda module=module: module(*args, **settings), SIZES[axis])


def _convolutions() -> Iterator[Case]:
    group = "Convolution"
    yield from _by_axes(("Conv", "ConvTranspose"), group, 2, 3, 3)
    for axis in (1, 2, 3):
        for name in ("LazyConv", "LazyConvTranspose"):
            module: Any = getattr(nn, f"{name}{axis}d")
            yield called_once(f"{name}{axis}d", group, lambda module=module: module(3, 3), SIZES[axis])
    for settings in (
        {"groups": 2},
        {"dilation": 2},
        {"stride": 2, "padding": 1, "padding_mode": "circular"},
        {"padding": "same"},
    ):
        text = ", ".join(f"{k}={v}" for k, v in settings.items())
        yield in_the_middle(f"Conv2d, {text}", group, lambda s=settings: nn.Conv2d(2, 4, 3, **s), SIZES[2])
    yield in_the_middle(
        "ConvTranspose2d, stride=2, output_padding=1, groups=2",
        group,
        lambda: nn.ConvTranspose2d(2, 4, 3, stride=2, output_padding=1, groups=2),
        SIZES[2],
    )
    yield in_the_middle("Unfold", group, lambda: nn.Unfold(2), SIZES[2])
    yield in_the_middle("Fold", group, lambda: nn.Fold((4, 4), 2), (8, 9))


def called_once(name: str, group: str, make: Callable[[], nn.Module], shape: tuple[int, ...]) -> Case:
    """Make the row of a lazy module after its first call."""

    def made() -> nn.Module:
        module = make()
        module(torch.randn(5, *shape))
        return module

    return in_the_middle(name, group, made, shape)


def _poolings() -> Iterator[Case]:
    group = "Pooling"
    yield from _by_axes(("MaxPool", "AvgPool"), group, 2)
    yield from _by_axes(("LPPool",), group, 2, 2)
    yield from _by_axes(("AdaptiveAvgPool", "AdaptiveMaxPool"), group, 2)
    yield from _by_axes(("FractionalMaxPool",), group, 2, axes=(2, 3), output_size=2)
    yield in_the_middle("MaxPool2d, overlapping, padded", group, lambda: nn.MaxPool2d(3, 2, 1), SIZES[2])
    for axis in (1, 2, 3):
        pool, unpool = getattr(nn, f"MaxPool{axis}d"), getattr(nn, f"MaxUnpool{axis}d")

        def use(m: Any, h: Tensor, pool: Any = pool) -> Tensor:
            return m(*pool(2, return_indices=True)(h))

        yield in_the_middle(f"MaxUnpool{axis}d", group, lambda unpool=unpool: unpool(2), SIZES[axis], use)


def _paddings() -> Iterator[Case]:
    yield from _by_axes(("ReflectionPad", "ReplicationPad", "ZeroPad", "CircularPad"), "Padding", 1)
    yield from _by_axes(("ConstantPad",), "Padding", 1, 0.5)


_ACTIVATIONS = (
    "CELU",
    "ELU",
    "GELU",
    "Hardshrink",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "LeakyReLU",
    "LogSigmoid",
    "Mish",
    "PReLU",
    "RReLU",
    "ReLU",
    "ReLU6",
    "SELU",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Softshrink",
    "Softsign",
    "Tanh",
    "Tanhshrink",
)


def _activations() -> Iterator[Case]:
    group = "Activations"
    for name in _ACTIVATIONS:
        yield in_the_middle(name, group, getattr(nn, name))
    for name in ("CELU", "ELU", "Hardswish", "Hardtanh", "LeakyReLU", "RReLU", "ReLU", "SELU", "SiLU", "Threshold"):
        args = (0.1, 0.2) if name == "Threshold" else ()
        yield in_the_middle(f"{name}, inplace", group, lambda n=name, a=args: getattr(nn, n)(*a, inplace=True))
    yield in_the_middle("PReLU, per channel", group, lambda: nn.PReLU(WIDTH))
    yield in_the_middle("Threshold", group, lambda: nn.Threshold(0.1, 0.2))
    yield in_the_middle("GLU", group, nn.GLU)
    for name in ("Softmax", "Softmin", "LogSoftmax"):
        yield in_the_middle(name, group, lambda n=name: getattr(nn, n)(dim=1))
    yield in_the_middle("Softmax2d", group, nn.Softmax2d, SIZES[2])
    yield in_the_middle(
        "MultiheadAttention",
        group,
        lambda: nn.MultiheadAttention(4, 2, batch_first=True),
        (3, 4),
        lambda m, h: m(h, h, h, need_weights=False),
    )
    yield in_the_middle(
        "MultiheadAttention, with weights, dropout",
        group,
        lambda: nn.MultiheadAttention(4, 2, dropout=0.2, batch_first=True),
        (3, 4),
        lambda m, h: m(h, h, h),
    )
    yield in_the_middle(
        "MultiheadAttention, kdim, vdim, bias_kv",
        group,
        lambda: nn.MultiheadAttention(4, 2, kdim=2, vdim=3, add_bias_kv=True, add_zero_attn=True, batch_first=True),
        (3, 4),
        lambda m, h: m(h, h[..., :2], h[..., :3]),
    )


def _norms() -> Iterator[Case]:
    group = "Normalisation"
    yield from _by_axes(("BatchNorm", "InstanceNorm"), group, 2)
    for axis in (1, 2, 3):
        for name, settings in (("LazyBatchNorm", {}), ("LazyInstanceNorm", {"affine": True})):
            module: Any = getattr(nn, f"{name}{axis}d")
            yield called_once(f"{name}{axis}d", group, lambda m=module, s=settings: m(**s), SIZES[axis])
    yield in_the_middle("BatchNorm1d, of vectors", group, lambda: nn.BatchNorm1d(WIDTH))
    yield in_the_middle("BatchNorm1d, momentum=None", group, lambda: nn.BatchNorm1d(WIDTH, momentum=None))
    yield in_the_middle(
        "BatchNorm1d, without statistics", group, lambda: nn.BatchNorm1d(WIDTH, track_running_stats=False)
    )
    yield in_the_middle("BatchNorm1d, in eval mode", group, lambda: Evaluated(nn.BatchNorm1d(WIDTH)))
    yield in_the_middle(
        "InstanceNorm1d, affine, with statistics",
        group,
        lambda: nn.InstanceNorm1d(2, affine=True, track_running_stats=True),
        SIZES[1],
    )
    yield in_the_middle("SyncBatchNorm", group, lambda: nn.SyncBatchNorm(WIDTH))
    yield in_the_middle("SyncBatchNorm, in eval mode", group, lambda: Evaluated(nn.SyncBatchNorm(WIDTH)))
    yield in_the_middle("LayerNorm", group, lambda: nn.LayerNorm(WIDTH))
    yield in_the_middle("RMSNorm", group, lambda: nn.RMSNorm(WIDTH))
    yield in_the_middle("GroupNorm", group, lambda: nn.GroupNorm(2, WIDTH))
    yield in_the_middle("LocalResponseNorm", group, lambda: nn.LocalResponseNorm(2), SIZES[2])
    yield in_the_middle("CrossMapLRN2d", group, lambda: nn.CrossMapLRN2d(3), SIZES[2])


class Evaluated(nn.Module):
    """A module that stays in eval mode, as a frozen one does.

    Args:
        module: the module.
    """

    def __init__(self, module: nn.Module) -> None:
        """Keep it."""
        super().__init__()
        self.module = module.eval()

    def train(self, mode: bool = True) -> "Evaluated":
        """Leave the module in eval mode."""
        super().train(mode)
        self.module.eval()
        return self

    def forward(self, h: Tensor) -> Tensor:
        """Apply it."""
        return self.module(h)


def _last(m: Any, h: Tensor) -> Tensor:
    return m(h)[0]


def _recurrent() -> Iterator[Case]:
    group = "Recurrent"
    for name in ("RNN", "LSTM", "GRU"):
        module: Any = getattr(nn, name)
        yield in_the_middle(name, group, lambda m=module: m(3, 4, batch_first=True), (3, 3), _last)
        yield in_the_middle(
            f"{name}, 2 layers, bidirectional, dropout",
            group,
            lambda m=module: m(3, 4, 2, bidirectional=True, dropout=0.2, batch_first=True),
            (3, 3),
            _last,
        )
        yield in_the_middle(
            f"{name}, batch second",
            group,
            lambda m=module: m(3, 4),
            (3, 3),
            lambda m, h: m(h.transpose(0, 1))[0].transpose(0, 1),
        )
    yield in_the_middle("RNN, relu", group, lambda: nn.RNN(3, 4, nonlinearity="relu", batch_first=True), (3, 3), _last)
    yield in_the_middle("LSTM, proj_size", group, lambda: nn.LSTM(3, 4, proj_size=2, batch_first=True), (3, 3), _last)
    yield in_the_middle(
        "GRU, last state", group, lambda: nn.GRU(3, 4, batch_first=True), (3, 3), lambda m, h: m(h)[1].transpose(0, 1)
    )
    yield in_the_middle("RNNBase", group, lambda: nn.RNNBase("GRU", 3, 4, batch_first=True), (3, 3), _base)
    for name in ("RNNCell", "LSTMCell", "GRUCell"):
        cell: Any = getattr(nn, name)
        yield in_the_middle(name, group, lambda m=cell: m(3, 4), (3, 3), _unrolled)


def _base(m: Any, h: Tensor) -> Tensor:
    return nn.GRU.forward(m, h)[0]


def _unrolled(m: Any, h: Tensor) -> Tensor:
    state = None
    for step in h.unbind(1):
        state = m(step, state)
    return state[0] if isinstance(state, tuple) else state  # pyright: ignore[reportReturnType]


def _transformers() -> Iterator[Case]:
    group = "Transformer"
    one: dict[str, Any] = {"dim_feedforward": 8, "batch_first": True}
    mask = nn.Transformer.generate_square_subsequent_mask(3).double()
    yield in_the_middle(
        "Transformer",
        group,
        lambda: nn.Transformer(4, 2, 1, 1, 8, batch_first=True),
        (3, 4),
        lambda m, h: m(h, h.flip(1)),
    )
    for first in (False, True):
        text = ", norm_first" if first else ""
        yield in_the_middle(
            f"TransformerEncoderLayer{text}",
            group,
            lambda f=first: nn.TransformerEncoderLayer(4, 2, norm_first=f, **one),
            (3, 4),
        )
        yield in_the_middle(
            f"TransformerDecoderLayer{text}",
            group,
            lambda f=first: nn.TransformerDecoderLayer(4, 2, norm_first=f, **one),
            (3, 4),
            lambda m, h: m(h, h.flip(1)),
        )
    yield in_the_middle(
        "TransformerEncoderLayer, without dropout, causal",
        group,
        lambda: nn.TransformerEncoderLayer(4, 2, dropout=0.0, activation="gelu", **one),
        (3, 4),
        lambda m, h: m(h, src_mask=mask.to(h), is_causal=True),
    )
    yield in_the_middle(
        "TransformerEncoder", group, lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, **one), 2), (3, 4)
    )
    yield in_the_middle(
        "TransformerDecoder",
        group,
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, **one), 2),
        (3, 4),
        lambda m, h: m(h, h.flip(1)),
    )


def _linear() -> Iterator[Case]:
    group = "Linear"
    yield in_the_middle("Identity", group, nn.Identity)
    yield in_the_middle("Linear", group, lambda: nn.Linear(WIDTH, 4))
    yield in_the_middle("Linear, bias=False", group, lambda: nn.Linear(WIDTH, 4, bias=False))
    yield in_the_middle("Linear, by position", group, lambda: nn.Linear(4, 5), (3, 4))
    yield in_the_middle("Bilinear", group, lambda: nn.Bilinear(WIDTH, WIDTH, 4), use=lambda m, h: m(h, h.tanh()))
    yield in_the_middle(
        "Bilinear, with a constant",
        group,
        lambda: nn.Bilinear(WIDTH, 2, 4),
        use=lambda m, h: m(h, torch.ones_like(h[:, :2])),
    )
    yield called_once("LazyLinear", group, lambda: nn.LazyLinear(4), (WIDTH,))


def _dropouts() -> Iterator[Case]:
    for name in ("Dropout", "AlphaDropout"):
        yield in_the_middle(name, "Dropout", lambda n=name: getattr(nn, n)(0.4))
    for name in ("Dropout1d", "Dropout2d", "Dropout3d", "FeatureAlphaDropout"):
        axis = int(name[-2]) if name[-1] == "d" else 2
        yield in_the_middle(name, "Dropout", lambda n=name: getattr(nn, n)(0.4), SIZES[axis])
    yield in_the_middle("Dropout, inplace", "Dropout", lambda: nn.Dropout(0.4, inplace=True))


def _lookups() -> Iterator[Case]:
    group = "Embedding (of a choice made from the activations)"

    def chosen(m: Any, h: Tensor) -> Tensor:
        return h + m(h.detach().argmax(1))

    def bag(m: Any, h: Tensor) -> Tensor:
        return h * m(h.detach().topk(2, 1).indices)

    yield in_the_middle("Embedding", group, lambda: nn.Embedding(WIDTH, WIDTH), use=chosen)
    yield in_the_middle("Embedding, padding_idx", group, lambda: nn.Embedding(WIDTH, WIDTH, 2), use=chosen)
    yield in_the_middle("Embedding, max_norm", group, lambda: nn.Embedding(WIDTH, WIDTH, max_norm=1.0), use=chosen)
    yield in_the_middle("Embedding, sparse", group, lambda: nn.Embedding(WIDTH, WIDTH, sparse=True), use=chosen)
    yield in_the_middle(
        "Embedding, scale_grad_by_freq", group, lambda: nn.Embedding(WIDTH, WIDTH, scale_grad_by_freq=True), use=chosen
    )
    for mode in ("mean", "sum", "max"):
        yield in_the_middle(
            f"EmbeddingBag, {mode}", group, lambda mode=mode: nn.EmbeddingBag(WIDTH, WIDTH, mode=mode), use=bag
        )


def _distances() -> Iterator[Case]:
    def use(m: Any, h: Tensor) -> Tensor:
        return m(h[:, :3], h[:, 3:])

    for name in ("CosineSimilarity", "PairwiseDistance"):
        yield in_the_middle(name, "Distance", getattr(nn, name), use=use, shape=(6, 4))


def _pictures() -> Iterator[Case]:
    group = "Vision, shapes and order"
    yield in_the_middle("PixelShuffle", group, lambda: nn.PixelShuffle(2), (4, 2, 3))
    yield in_the_middle("PixelUnshuffle", group, lambda: nn.PixelUnshuffle(2), SIZES[2])
    for mode in ("nearest", "bilinear", "bicubic", "nearest-exact", "area"):
        yield in_the_middle(
            f"Upsample, {mode}", group, lambda mode=mode: nn.Upsample(scale_factor=2, mode=mode), SIZES[2]
        )
    yield in_the_middle("UpsamplingNearest2d", group, lambda: nn.UpsamplingNearest2d(scale_factor=2), SIZES[2])
    yield in_the_middle("UpsamplingBilinear2d", group, lambda: nn.UpsamplingBilinear2d(scale_factor=2), SIZES[2])
    yield in_the_middle("ChannelShuffle", group, lambda: nn.ChannelShuffle(2), (4, 2, 2))
    yield in_the_middle("Flatten", group, nn.Flatten, SIZES[2])
    yield in_the_middle("Unflatten", group, lambda: nn.Unflatten(1, (2, 3)))


class Named(nn.Module):
    """Parameters by name and by number.

    Args:
        kept: the container of parameters.
    """

    def __init__(self, kept: nn.Module) -> None:
        """Keep it."""
        super().__init__()
        self.kept = kept

    def forward(self, h: Tensor) -> Tensor:
        """Apply the parameters as weights."""
        values = self.kept.values() if isinstance(self.kept, nn.ParameterDict) else self.kept
        for weight in values:  # pyright: ignore[reportGeneralTypeIssues]
            h = torch.tanh(h @ weight)
        return h


def _containers() -> Iterator[Case]:
    group = "Containers"

    def maps() -> list[nn.Module]:
        return [nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH)]

    def weights() -> list[nn.Parameter]:
        return [nn.Parameter(torch.randn(WIDTH, WIDTH)), nn.Parameter(torch.randn(WIDTH, 3))]

    def in_turn(m: Any, h: Tensor) -> Tensor:
        for module in m.values() if isinstance(m, nn.ModuleDict) else m:
            h = module(h)
        return h

    yield in_the_middle("Sequential", group, lambda: nn.Sequential(*maps()))
    yield in_the_middle("ModuleList", group, lambda: nn.ModuleList(maps()), use=in_turn)
    yield in_the_middle("ModuleDict", group, lambda: nn.ModuleDict(zip("abc", maps(), strict=True)), use=in_turn)
    yield in_the_middle("ParameterList", group, lambda: Named(nn.ParameterList(weights())))
    yield in_the_middle("ParameterDict", group, lambda: Named(nn.ParameterDict(zip("ab", weights(), strict=True))))
    yield in_the_middle("DataParallel", group, lambda: nn.DataParallel(nn.Linear(WIDTH, 4)))


def rows() -> list[Case]:
    """List the rows, group by group."""
    parts = (
        _containers,
        _linear,
        _convolutions,
        _poolings,
        _paddings,
        _activations,
        _norms,
        _recurrent,
        _transformers,
        _dropouts,
        _lookups,
        _distances,
        _pictures,
    )
    return [case for part in parts for case in part()]
