"""The stack of pooled convolutions that `LeNet` and `Vgg` begin with."""

from torch import nn

from targetprop.experiments.networks.network import ACTIVATIONS, Network, refuse_images


def pooled_convolutions(channels_in: int, channels: list[int], kernel: int, activation: str) -> list[nn.Module]:
    """Stack convolutions that keep height and width, each with its activation and max pooling by 2."""
    layers: list[nn.Module] = []
    for before, after in zip([channels_in, *channels], channels, strict=False):
        layers += [
            nn.Conv2d(before, after, kernel, padding=kernel // 2),
            ACTIVATIONS[activation](),
            nn.MaxPool2d(2),
        ]
    return layers


def pooled_units(network: Network, shape: tuple[int, ...], channels: list[int]) -> int:
    """Count the units behind the stack."""
    least = 2 ** len(channels)
    if min(shape[1:]) < least:
        remedy = "give fewer --network.channels, or larger images"
        refuse_images(network, shape, f"of {least}×{least} pixels or more for its {len(channels)} poolings", remedy)
    return channels[-1] * (shape[1] // least) * (shape[2] // least)
