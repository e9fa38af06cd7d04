r"""Dense Jacobians of a network, one row at a time by plain autograd: of layers, to the output, and in the parameters.

The functions see a network as the forward pass left it (dropout masks and batch statistics held fixed), so samples do
not influence each other and one backward pass gives a row for all of them.

>>> import torch
>>> from torch import nn
>>> from targetprop.layers import record_layers
>>> net = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 1, bias=False))
>>> record = record_layers(net, torch.ones(4, 3))
>>> bool((layer_jacobians(record)[1] == net[1].weight).all())
True
>>> [tuple(J.shape) for J in output_jacobians(record)]      # h_1 → h_2 and h_2 → h_2
[(4, 1, 2), (4, 1, 1)]
>>> [tuple(J.shape) for J in parameter_jacobians(record, sample=0)]
[(1, 6), (1, 2)]
"""

import torch
from torch import Tensor

from targetprop.layers import Record


def activations(record: Record) -> list[Tensor]:
    """Repeat the forward pass in one piece, with one graph from the input to the output.

    Args:
        record: the forward pass.

    Returns:
        ``h_0 … h_L``, connected.
    """
    first = record.layers[0]
    if first.layer.segment.start is None:  # its inputs may be several, and are left as they are
        y = first.y if first.y.requires_grad else first.h.requires_grad_()  # of some samples it has no graph
        values = [first.x.detach().float().requires_grad_(), y]
    else:
        values = [first.x.detach().requires_grad_()]
    with torch.enable_grad():
        for layer in record.layers[len(values) - 1 :]:
            values.append(layer.f(values[-1]))
    return values


def layer_jacobians(record: Record) -> list[Tensor]:
    """Differentiate every layer at its forward input.

    Args:
        record: the forward pass.

    Returns:
        ``∂h_l/∂h_{l-1}`` for ``l = 1…L``, each of shape ``(n, d_l, d_{l-1})``.
    """
    values = activations(record)
    return [_rows(after, before) for before, after in zip(values, values[1:], strict=False)]


def output_jacobians(record: Record) -> list[Tensor]:
    """Differentiate the output in every layer's output.

    Args:
        record: the forward pass.

    Returns:
        ``J_{l→L} = ∂h_L/∂h_l`` for ``l = 1…L``, each of shape ``(n, d_L, d_l)``; the last is the identity.
    """
    values = activations(record)
    return [_rows(values[-1], value) for value in values[1:]]


def parameter_jacobians(record: Record, sample: int) -> list[Tensor]:
    """Differentiate one sample's output in the parameters of every layer.

    Args:
        record: the forward pass.
        sample: which sample.

    Returns:
        ``∂h_L/∂θ_l`` for ``l = 1…L``, each of shape ``(d_L, |θ_l|)``; columns follow ``layer.parameters()``, flattened.
    """
    output = activations(record)[-1][sample].flatten()
    found = []
    for layer in record.layers:
        parameters = list(layer.layer.parameters())
        rows = [_gradients(value, parameters) for value in output] if parameters else []
        found.append(torch.stack(rows) if rows else output.new_zeros(len(output), 0))
    return found


def _rows(after: Tensor, before: Tensor) -> Tensor:
    rows = [
        torch.autograd.grad(column.sum(), before, retain_graph=True, materialize_grads=True)[0].flatten(1)
        for column in after.flatten(1).unbind(1)
    ]
    return torch.stack(rows, dim=1)


def _gradients(value: Tensor, parameters: list[torch.nn.Parameter]) -> Tensor:
    found = torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in found])
