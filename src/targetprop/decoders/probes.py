"""Probes of a map and its answers, as rows of a matrix equation ``E M = Z`` whatever kind of product the map is.

A linear map is probed by vectors, a convolution by patches of the size of its kernel, so one projection serves both; a
convolution of several groups is several maps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from targetprop.batch import Batch
from targetprop.decoders.objective import Moved
from targetprop.layers import MapUse
from targetprop.layers.convolution import pads, settings, spread
from targetprop.layers.sites import same_view
from targetprop.precision import at_least_float32


@dataclass(frozen=True, eq=False)
class Probes:
    """Probes and answers.

    Attributes:
        e: probes ``E``, shape ``(g, n, d)``: groups, probes, inputs of a group.
        z: answers ``Z = E M``, shape ``(g, n, k)``.
        mirror: the mirror as a matrix like ``M``, a view of shape ``(g, d, k)``.
    """

    e: Tensor
    z: Tensor
    mirror: Tensor


def probe(
    use: MapUse, mirror: Tensor, count: int, activity: float, generator: torch.Generator, batch: Batch,
    moved: Moved | None,
) -> Probes:  # fmt: skip
    """Probe a map with white noise, and along its last changes or with activities of the batch.

    Args:
        use: the use of its weight.
        mirror: ``V``, shape of the parameter.
        count: most probes; more than a group has inputs are of no use.
        activity: share of them that are no noise.
        generator: source of randomness.
        batch: which samples of the step the activities belong to.
        moved: gives directions of the map's last changes, if the update knows them.

    Returns:
        The probes.
    """
    weight, groups = use.weight.detach(), groups_of(use)
    matrix, mirror = as_matrix(use, weight, groups), same_view(mirror, use.base, weight)
    width = matrix.shape[1]
    count = min(count, width)
    active = round(activity * count) if use.input is not None else 0
    noise = torch.empty(groups, count - active, width, dtype=torch.float32, device=weight.device)  # in any precision
    e = noise.normal_(generator=generator).to(weight.dtype)
    if active:
        along = None if moved is None or groups > 1 else moved(use.site.key, active, generator)
        if along is None or along.shape[1] < width:  # or the map has grown since
            along = _activities(use, active, groups, generator, batch)
        else:
            along = along[:, :width].unsqueeze(0)  # without the constant of the bias
        e = torch.cat([e, along.to(weight.dtype)], dim=1)
    e = at_least_float32(e)
    return Probes(e, e @ matrix.to(e.dtype), as_matrix(use, mirror, groups))


def as_matrix(use: MapUse, weight: Tensor, groups: int) -> Tensor:
    """See a weight as what multiplies rows of inputs from the right, shape ``(g, d, k)``; a mirror in a view of it."""
    if use.site.kind in ("linear", "recurrent"):
        return weight.T.unsqueeze(0)
    if use.site.kind == "matmul":
        return weight.unsqueeze(0)
    if use.site.kind == "conv":
        return weight.reshape(groups, weight.shape[0] // groups, -1).mT
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def inputs(use: MapUse) -> int:
    """Count the inputs of a map, of one group."""
    return as_matrix(use, use.weight.detach(), groups_of(use)).shape[1]


def rows(use: MapUse, batch: Batch) -> int:
    """Count the rows that a map is applied to in a step, samples times positions; many if they are not known."""
    a = use.input
    if a is None:
        return 10**9
    if len(a) != batch.rows:
        return a.numel() // max(1, a.shape[-1])
    return batch.total * (a.shape[2:] if use.site.kind.startswith("conv") else a.shape[1:-1]).numel()


def groups_of(use: MapUse) -> int:
    """Count the groups of a convolution."""
    return settings(use)["groups"] if use.site.kind in ("conv", "conv-transpose") else 1


def _activities(use: MapUse, count: int, groups: int, generator: torch.Generator, batch: Batch) -> Tensor:
    """Draw inputs of the map, shape ``(g, count, d)``."""
    a = use.input
    assert a is not None
    if use.site.kind in ("conv", "conv-transpose"):
        dims = use.weight.dim() - 2
        a = a if a.dim() == dims + 2 else a.unsqueeze(0)
    if use.site.kind == "conv":
        found = _patches(use, a, count, generator, batch)
        return found.view(count, groups, -1).transpose(0, 1)
    if use.site.kind == "conv-transpose":
        a = a.movedim(1, -1)
    width = a.shape[-1]
    positions = a.shape[1:-1].numel() if len(a) == batch.rows else a.numel() // (width * max(1, batch.rows))
    if positions * width * batch.rows == a.numel():
        found = batch.pick(a.reshape(batch.rows, positions, width), count, generator)
    else:  # rows that belong to no sample, such as those of a codebook
        found = _pick(a.reshape(-1, width), count, generator)
    return found.view(count, groups, -1).transpose(0, 1)


def _pick(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return rows[torch.randint(len(rows), (count,), generator=generator, device=rows.device)]


def _patches(use: MapUse, a: Tensor, count: int, generator: torch.Generator, batch: Batch) -> Tensor:
    """Draw patches as the convolution sees them, zero padding included, shape ``(count, channels · kernel)``."""
    given, kernel = settings(use), use.weight.shape[2:]
    dims = len(kernel)
    stride, dilation = (spread(given[name], dims) for name in ("stride", "dilation"))
    spans = [dilation[d] * (kernel[d] - 1) for d in range(dims)]
    before = pads(given["padding"], spans)
    picked = batch.pick(a.unsqueeze(1), count, generator) if batch.processes > 1 else a
    samples = len(picked)
    rows = (
        torch.arange(count, device=a.device)
        if batch.processes > 1
        else torch.randint(samples, (count,), generator=generator, device=a.device)
    )
    index: list[Tensor] = [
        rows.view(-1, 1, *[1] * dims),
        torch.arange(a.shape[1], device=a.device).view(1, -1, *[1] * dims),
    ]
    inside: Tensor | None = None
    for d in range(dims):
        size = a.shape[2 + d]
        places = max(1, (size + sum(before[d]) - spans[d] - 1) // stride[d] + 1)
        start = torch.randint(places, (count,), generator=generator, device=a.device) * stride[d] - before[d][0]
        taps = start.view(-1, 1) + dilation[d] * torch.arange(kernel[d], device=a.device)
        taps = taps.view(count, 1, *(kernel[d] if other == d else 1 for other in range(dims)))
        within = (taps >= 0) & (taps < size)
        inside = within if inside is None else inside & within
        index.append(taps.clamp(0, size - 1))
    found = picked[tuple(index)]
    return (found if inside is None else found * inside).flatten(1)
