"""What a forward pass leaves for the stages that follow: a record per layer, and one of all layers."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from targetprop.batch import Batch
from targetprop.finite import BAD_INPUT, BAD_OUTPUT, Look
from targetprop.layers.chain import Layer
from targetprop.layers.replay import ReplayState, replay_modules


@dataclass(frozen=True, eq=False)
class LayerRecord:
    """What the forward pass left of one layer.

    Attributes:
        layer: the layer.
        x: its input ``h_{l-1}``, shape ``(n, …)``, detached.
        y: its output ``h_l`` with the graph of ``θ_l``, shape ``(n, …)``.
        states: what each module of the layer drew or measured.
        inner: outputs of the layer's modules with their graph, one per module; empty unless asked for.
    """

    layer: Layer
    x: Tensor
    y: Tensor
    states: tuple[ReplayState, ...]
    inner: tuple[Tensor, ...] = ()

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.layer.name

    @property
    def h(self) -> Tensor:
        """The output ``h_l``, detached."""
        return self.y.detach()

    def f(self, x: Tensor) -> Tensor:
        """Repeat the layer on another input, with the replay state of the forward pass.

        Args:
            x: input of shape ``(n, …)``.

        Returns:
            ``f_l(x)``, shape ``(n, …)``.
        """
        return replay_modules(self.layer.modules, x, self.states)

    def head(self, rows: int) -> "LayerRecord":
        """Restrict the record to its first ``rows`` samples, without graph."""
        states = tuple(state.each(lambda values: values[:rows]) for state in self.states)
        return replace(self, x=self.x[:rows], y=self.h[:rows], states=states, inner=())


@dataclass(frozen=True, eq=False)
class Record:
    """The forward pass of the layers of one process, which are all layers where it has no peers.

    Attributes:
        layers: one record per layer, in forward order.
        output: the network's output ``h_L``, detached, shape ``(n, …)``.
        batch: which samples these are.
        from_first: whether the first of these layers is the network's first, which is never inverted.
    """

    layers: tuple[LayerRecord, ...]
    output: Tensor
    batch: Batch
    from_first: bool = True

    @property
    def inverted(self) -> tuple[LayerRecord, ...]:
        """The layers that are inverted, in forward order."""
        return self.layers[1:] if self.from_first else self.layers

    def looks(self, x: Tensor) -> Iterator[Look]:
        """Look at the network's input and at the activations of every layer."""
        yield Look(BAD_INPUT, (x,))
        for layer in self.layers:
            yield Look(BAD_OUTPUT, (layer.h, *layer.inner[:-1]), f"layer {layer.name}")

    def head(self, samples: int) -> "Record":
        """Restrict the record to the first ``samples`` samples of the whole step."""
        if samples >= self.batch.total:
            return self
        batch = self.batch.head(samples)
        layers = tuple(layer.head(batch.rows) for layer in self.layers)
        return Record(layers, self.output[: batch.rows], batch, self.from_first)
