"""Sites: where a torch call applies a weight to activations, and how its backward pass reads a mirror instead.

Only there the backward pass of a model reads weights. Autograd keeps the weight, or a view of it, for the backward
pass of the call; what it is handed back is the mirror ``V`` in the same view. Stride, padding, groups, packed
projections and transposed storage need no code of their own.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_map

Kind = Literal["linear", "matmul", "conv", "conv-transpose", "recurrent", "other"]
Place = tuple[int | str, ...]  # the way to a tensor among the arguments of a call: (1,), ("weight",), (2, 0)

_CONV = {f"conv{d}d" for d in (1, 2, 3)}
_CONV_TRANSPOSE = {f"conv_transpose{d}d" for d in (1, 2, 3)}
_PRODUCTS = {"matmul", "mm", "bmm", "addmm", "baddbmm", "addbmm", "einsum", "tensordot", "bilinear", "mv", "inner"}
_PRODUCTS |= {"__matmul__", "__rmatmul__"}
_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"}


@dataclass(frozen=True)
class Site:
    """A use of a weight.

    Attributes:
        key: the weight's name: a parameter's, or, where it is computed from parameters, that of its use.
        kind: what is done with it.
        weight: the way to it among the arguments of the call.
        input: the way to the activations; None where there are several.
        needed: whether the backward pass to the activations reads the weight.
        copied: whether it reads a copy that the call makes.
    """

    key: str
    kind: Kind
    weight: Place
    input: Place | None
    needed: bool = False
    copied: bool = False


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists, dictionaries, data classes and slices."""
    for _, t in placed_tensors(tree):
        yield t


def placed_tensors(tree: Any, place: Place = ()) -> Iterator[tuple[Place, Tensor]]:
    """Yield tensors and the way to them."""
    if isinstance(tree, Tensor):
        yield place, tree
    elif isinstance(tree, tuple | list):
        for i, item in enumerate(tree):
            yield from placed_tensors(item, (*place, i))
    elif isinstance(tree, Mapping):
        for key, item in tree.items():
            yield from placed_tensors(item, (*place, key))
    elif isinstance(tree, slice):
        for bound in ("start", "stop", "step"):
            yield from placed_tensors(getattr(tree, bound), (*place, bound))
    elif hasattr(tree, "__dataclass_fields__") and not isinstance(tree, type):
        yield from placed_tensors(vars(tree), place)


def at(place: Place, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Follow the way to an argument."""
    here: Any = kwargs if isinstance(place[0], str) else args
    for step in place:
        here = here[step]
    return here


def memory(t: Tensor) -> int:
    """Identify the memory of a tensor."""
    return t.untyped_storage().data_ptr() if t.layout == torch.strided else id(t)


def version(t: Tensor) -> int:
    """Count the writes into the memory of a tensor."""
    return 0 if t.is_inference() else t._version


def bias_of(site: Site, args: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
    """Find the bias that a call adds to the product."""
    if site.kind in ("linear", "conv", "conv-transpose"):
        return args[2] if len(args) > 2 else kwargs.get("bias")
    return args[0] if site.weight == (2,) and site.kind == "matmul" else None


def find_sites(
    name: str, args: Any, kwargs: Mapping[str, Any], is_weight: Callable[[Tensor], bool], key: Callable[[Tensor], str]
) -> tuple[Site, ...]:
    """Say where a call uses weights.

    Args:
        name: the function's name.
        args: its positional arguments.
        kwargs: its keyword arguments.
        is_weight: whether a tensor depends on parameters and not on data.
        key: names a weight.

    Returns:
        A site per weight.
    """
    kind = _kind(name)
    if kind is None:
        return ()
    placed = [*placed_tensors(args), *placed_tensors(kwargs)]
    if name in ("addmm", "baddbmm", "addbmm"):
        placed = placed[1:]
    if kind in ("linear", "conv", "conv-transpose"):
        weights = placed[1:2] if is_weight(placed[1][1]) else []
    else:
        weights = [(p, t) for p, t in placed if is_weight(t) and (t.dim() == 2 or kind != "recurrent")]
    inputs = [p for p, t in placed if not is_weight(t)]
    if kind == "matmul" and not _plain_product(weights, placed):
        kind = "other"
    source = inputs[0] if len(inputs) == 1 or kind in ("linear", "conv", "conv-transpose") else None
    return tuple(Site(key(t), kind, place, source) for place, t in weights if inputs)


def _kind(name: str) -> Kind | None:
    if name == "linear":
        return "linear"
    if name in _CONV:
        return "conv"
    if name in _CONV_TRANSPOSE:
        return "conv-transpose"
    if name in _RECURRENT:
        return "recurrent"
    return "matmul" if name in _PRODUCTS else None


def _plain_product(weights: list[tuple[Place, Tensor]], placed: list[tuple[Place, Tensor]]) -> bool:
    """Whether it is ``a W`` with a matrix ``W`` on the right."""
    return len(weights) == 1 and len(placed) == 2 and weights[0][1].dim() == 2 and weights[0][0] == placed[1][0]


def same_view(mirror: Tensor, base: Tensor, weight: Tensor) -> Tensor:
    """View a mirror as a weight views its parameter.

    Args:
        mirror: ``V``, shape of the parameter.
        base: the parameter.
        weight: the parameter, or a view of it.

    Returns:
        A view of ``V``, shape of the weight; a copy where the two are laid out in other ways.
    """
    if weight.shape == mirror.shape and weight.stride() == base.stride():
        return mirror
    if mirror.stride() != base.stride():
        mirror = torch.empty_strided(base.shape, base.stride(), dtype=mirror.dtype, device=mirror.device).copy_(mirror)
    offset = mirror.storage_offset() + weight.storage_offset() - base.storage_offset()
    return mirror.as_strided(weight.shape, weight.stride(), offset)


@dataclass(slots=True, eq=False)
class _Mirrored:
    """A view of a weight that autograd keeps, to be handed out as the same view of the mirror."""

    mirror: Callable[[], Tensor]
    weight: Tensor
    kept: Tensor

    def view(self) -> Tensor:
        """Give the view of the mirror."""
        return same_view(self.mirror().detach().to(self.kept.dtype), self.weight, self.kept)


def as_autocast(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Do what autocast would do inside the call, so that the copy of the weight that it keeps is known."""
    first = args[0] if args and isinstance(args[0], Tensor) else next(tensors_in((args, kwargs)))
    kind = first.device.type
    if not torch.is_autocast_enabled(kind):
        return args, kwargs
    dtype = torch.get_autocast_dtype(kind)

    def lower(t: Any) -> Any:
        return t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t

    return tree_map(lower, args), tree_map(lower, kwargs)


def told_apart(sites: Sequence[Site], args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Copy the weights of one call where they share their memory, as those of a fused recurrent layer do."""
    weights = [at(site.weight, args, kwargs) for site in sites]
    if len({memory(weight) for weight in weights}) == len(weights):
        return args, kwargs
    copies = {id(weight): weight.clone() for weight in weights}
    return tree_map(lambda t: copies.get(id(t), t), (args, kwargs))


def reading_mirrors(
    weights: Mapping[int, tuple[Tensor, Callable[[], Tensor]]], copied: Container[int]
) -> saved_tensors_hooks:
    """Let what runs meanwhile keep mirrors for its backward pass instead of weights.

    Args:
        weights: each weight and what gives its mirror, by the weight's memory.
        copied: memory of other parameters, of which copies are kept, so that later changes of them are not seen.

    Returns:
        The context.
    """

    def pack(t: Tensor) -> Any:
        found = weights.get(memory(t))
        if found is None:
            return t.detach().clone() if memory(t) in copied else t
        return _Mirrored(found[1], found[0].detach(), t.detach())

    return saved_tensors_hooks(pack, _unpack)


def _unpack(kept: Any) -> Tensor:
    return kept.view() if isinstance(kept, _Mirrored) else kept


_ANY_KERNEL = nullcontext()


def composite_kernels(sites: Iterable[Site]) -> AbstractContextManager[None]:
    """Switch kernels off that pack the weights of a recurrent layer for themselves."""
    return _composite_kernels() if any(site.kind == "recurrent" for site in sites) else _ANY_KERNEL


@contextmanager
def _composite_kernels() -> Iterator[None]:
    before = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    torch._C._set_cudnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before[0])
        torch._C._set_cudnn_enabled(before[1])
