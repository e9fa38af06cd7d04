r"""A network as a chain of named layers: ``h_l = f_l(h_{l-1}; θ_l)``, ``l = 1…L``, ``h_0 = x``.

Target propagation gives every layer a target of its own, so it has to know where layers begin and end. Two cuts
are in use, and both describe the same network:

* *post-activation*, ``f(h) = σ(Wh + b)``: a layer starts at each map (Lee 2015, Ernoult 2022);
* *pre-activation*, ``f(h) = Wσ(h) + b``: a layer ends at each map (Bengio 2020); linear in its parameters.

>>> from torch import nn
>>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
>>> [layer.name for layer in build_chain(net).layers]
['1', '3']
>>> [type(m).__name__ for m in build_chain(net, cut="pre-activation").layers[1].modules]
['Tanh', 'Linear']
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from targetprop.layers.residual import Residual

Cut = Literal["post-activation", "pre-activation"]
Model = nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module]

# These carry parameters but never start or end a layer: they belong to the map beside them.
_ATTACHED = (
    nn.modules.batchnorm._NormBase,  # pyright: ignore[reportPrivateUsage]
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.PReLU,
)
_UNREPEATABLE = (nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU)


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer ``f_l``: a name and the modules it applies in order.

    Attributes:
        name: the qualified name of its map in the user's model, such as ``"0"`` or ``"encoder.2"``.
        modules: the modules that make up the layer, none of them an ``nn.Sequential``.
    """

    name: str
    modules: tuple[nn.Module, ...]

    def kinds(self) -> list[str]:
        """Say what the layer applies, in order."""
        return [type(module).__name__ for module in self.modules]

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the trainable parameters ``θ_l``."""
        for module in self.modules:
            yield from (p for p in module.parameters() if p.requires_grad)


class NamedLayers:
    """Layers in forward order, each with a name of its own."""

    layers: tuple[Layer, ...]

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def names(self) -> list[str]:
        """Layer names in forward order."""
        return [layer.name for layer in self.layers]

    def check_names(self, names: Iterator[str] | Sequence[str], what: str) -> None:
        """Refuse names that are no layer of this chain.

        Args:
            names: the names to look for.
            what: what the names were given for, used in the message.

        Raises:
            ValueError: a name is unknown.
        """
        for name in names:
            if name not in self.names:
                raise ValueError(f"{what} names layer {name!r}, but the layers are {', '.join(self.names)}")


@dataclass(frozen=True, eq=False)
class Chain(NamedLayers):
    """The layers of a network in forward order.

    Attributes:
        layers: ``f_1 … f_L``; names are unique.
    """

    layers: tuple[Layer, ...]

    def kinds(self) -> dict[str, str]:
        """Say how layers are inverted whatever the decoders: of these, decoders decide."""
        return {}

    def modules(self) -> Iterator[nn.Module]:
        """Yield the modules of all layers and the modules inside them."""
        for layer in self.layers:
            for module in layer.modules:
                yield from module.modules()


def build_chain(model: Model, cut: Cut = "post-activation") -> Chain:
    """Cut a model into layers.

    Args:
        model: an ``nn.Sequential`` (nested ones are opened), or a list or a dictionary of modules, each of which
            becomes exactly one layer (the cut is then the caller's).
        cut: where layers begin and end in an ``nn.Sequential``.

    Returns:
        The chain; its composition is the model.

    Raises:
        TypeError: the model is neither an ``nn.Sequential`` nor a collection of modules.
        ValueError: the cut is unknown, the model is empty, has no trainable parameter, shares a parameter between
            places, or holds a module that works in place or cannot be repeated with the same random numbers.
    """
    if cut not in get_args(Cut):
        raise ValueError(f"cut must be one of {', '.join(get_args(Cut))}; got {cut!r}")
    if isinstance(model, nn.Module) and not _is_sequential(model):
        raise TypeError(
            f"cannot see the layers of {type(model).__name__}: pass an nn.Sequential, or a list of the modules that"
            " form its layers, in order"
        )
    if isinstance(model, nn.Module):
        layers = _cut(list(leaves(model)), cut)
    else:
        items = list(model.items() if isinstance(model, Mapping) else _numbered(model))
        for name, module in items:
            if not isinstance(module, nn.Module):
                raise TypeError(f"layer {name} must be a module; got {type(module).__name__}")
        layers = [Layer(name, tuple(leaf for _, leaf in leaves(module))) for name, module in items]
    _check_modules(layers)
    return Chain(tuple(layers))


def _numbered(model: Sequence[nn.Module]) -> list[tuple[str, nn.Module]]:
    if not isinstance(model, Iterable):
        raise TypeError(f"the model must be an nn.Sequential or a list of modules; got {type(model).__name__}")
    return [(str(i), module) for i, module in enumerate(model)]


def _is_sequential(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def leaves(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Open nested ``nn.Sequential`` modules.

    Args:
        module: any module.
        prefix: its qualified name.

    Yields:
        Qualified names and modules in forward order; a module of another kind as it is.
    """
    if not _is_sequential(module):
        yield prefix, module
        return
    for name, child in module._modules.items():  # unlike named_children, lists a module each time it is used
        assert child is not None
        yield from leaves(child, f"{prefix}.{name}" if prefix else name)


def visible(module: nn.Module) -> Iterator[nn.Module]:
    """Look into residual blocks.

    Args:
        module: any module but an ``nn.Sequential``.

    Yields:
        The modules that a `Residual` applies, however deep; any other module as it is.
    """
    if not isinstance(module, Residual):
        yield module
        return
    for path in (module.branch, module.shortcut):
        for _, leaf in leaves(path):
            yield from visible(leaf)


def _is_map(module: nn.Module) -> bool:
    return not isinstance(module, _ATTACHED) and any(True for _ in module.parameters())


def _cut(leaves: list[tuple[str, nn.Module]], cut: Cut) -> list[Layer]:
    maps = [i for i, (_, module) in enumerate(leaves) if _is_map(module)]
    if not maps:
        return [Layer(leaves[0][0], tuple(m for _, m in leaves))] if leaves else []
    if cut == "post-activation":
        edges = [0, *maps[1:], len(leaves)]
    else:
        edges = [0, *(i + 1 for i in maps[:-1]), len(leaves)]
    groups = [leaves[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    return [Layer(leaves[i][0], tuple(m for _, m in group)) for i, group in zip(maps, groups, strict=True)]


def _check_modules(layers: list[Layer]) -> None:
    owner: dict[int, str] = {}
    for layer in layers:
        for module in (part for top in layer.modules for part in visible(top)):
            kind = type(module).__name__
            if getattr(module, "inplace", False):
                raise ValueError(
                    f"layer {layer.name}: {kind}(inplace=True) would overwrite the activations that targets are"
                    " measured against; set inplace=False"
                )
            if isinstance(module, _UNREPEATABLE):
                raise ValueError(
                    f"layer {layer.name}: {kind} draws new random numbers at each call, so the layer cannot be"
                    " inverted; use Dropout or LeakyReLU instead"
                )
        for module in layer.modules:
            for parameter in module.parameters():
                if id(parameter) in owner:
                    raise ValueError(
                        f"layers {owner[id(parameter)]} and {layer.name} share a parameter; target propagation needs"
                        " one owner for each: give the layers parameters of their own"
                    )
            owner.update((id(parameter), layer.name) for parameter in module.parameters())
    if not layers:
        raise ValueError("the model has no layers")
    if not any(True for layer in layers for _ in layer.parameters()):
        raise ValueError("the model has no trainable parameter; call requires_grad_(True) on those to train")
