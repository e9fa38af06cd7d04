"""Decoder of ``nn.Linear``: a learned affine map of its own, ``g(y) = Vy + c``; it never reads the forward weights."""

from torch import Tensor, nn
from torch.nn import functional

from targetprop.decoders.registry import ModuleDecoder, Style, register_decoder
from targetprop.layers.replay import ReplayState, record_input, register_replay


class LinearDecoder(ModuleDecoder):
    """``g(y) = Vy + c``.

    Args:
        outputs: width of the layer's output.
        inputs: width of the layer's input.
    """

    affine = True

    def __init__(self, outputs: int, inputs: int) -> None:
        """Draw ``V`` and ``c`` as ``nn.Linear`` does."""
        super().__init__()
        self.map = nn.Linear(outputs, inputs)

    def forward(self, y: Tensor, state: ReplayState) -> Tensor:
        """Decode; see `ModuleDecoder.forward`."""
        return self.map(y)

    def linear(self, change: Tensor, state: ReplayState) -> Tensor:
        """Apply ``V``; see `ModuleDecoder.linear`."""
        return functional.linear(change, self.map.weight)


register_replay(nn.Linear, record_input, lambda module, x, state: module(x))


@register_decoder(nn.Linear)
def _build_linear(module: nn.Module, x: Tensor, y: Tensor, style: Style) -> nn.Module:
    return LinearDecoder(y.shape[-1], x.shape[-1]).to(y)
