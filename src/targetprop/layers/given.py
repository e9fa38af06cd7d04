"""What may be handed over as a model: wrappers are refused, and lists that have lost a model's functions are named."""

import warnings
from itertools import pairwise
from typing import Any

from torch import nn

from targetprop.layers.inputs import leaves

_ALONE = "pass the module inside it, .module, as the model"
_WRAPPERS = {  # by the names of their classes, for some are slow to import
    "DistributedDataParallel": f"{_ALONE}, and process_group= beside it",
    "DataParallel": f"{_ALONE}, and process_group= beside it for several devices",
    "FullyShardedDataParallel": "pass the model unwrapped, and process_group= or placement= beside it",
    "FSDPModule": "pass the model unsharded, and process_group= or placement= beside it",
    "ScriptModule": "pass the module that it was compiled from, whose torch calls can be seen",
}
_AVERAGE = "AveragedModel"


def check_given(model: nn.Module) -> None:
    """Refuse wrappers that would train something else than is meant, and warn of maps with nothing between them.

    Args:
        model: the model.

    Raises:
        ValueError: it is such a wrapper, or has one in it.
    """
    if _AVERAGE in _kinds(model):
        raise ValueError(
            f"the model is an {_AVERAGE}, a copy that holds the average of another one; pass the one that is trained,"
            " and average it after each step"
        )
    for name, module in model.named_modules():
        kind = next((kind for kind in _WRAPPERS if kind in _kinds(module)), None)
        if kind is not None and any(p.requires_grad for p in module.parameters()):
            where = f"module {name}" if name else "the model"
            raise ValueError(f"{where} is a {kind}, which has a backward pass of its own; {_WRAPPERS[kind]}")
    for (a, first), (b, second) in pairwise(leaves(model)):
        if _is_map(first) and _is_map(second) and first is not second and not _narrow(first, second):
            warnings.warn(
                f"modules {a} and {b} are applied one after the other with nothing between them; if the model has"
                " functions there, such as relu, pass the model itself in place of its modules",
                stacklevel=3,
            )
            return


def _kinds(module: nn.Module) -> set[str]:
    return {kind.__name__ for kind in type(module).__mro__}


def _is_map(module: nn.Module) -> bool:
    """Say whether a module is a plain linear map; one of several groups is the half of a separable one."""
    plain = any(type(module).forward is kind.forward for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
    return plain and getattr(module, "groups", 1) == 1


def _narrow(first: nn.Module, second: nn.Module) -> bool:
    """Say whether two maps are one of low rank, as linear code units make it."""
    given, code = _sizes(first)
    return code < min(given, _sizes(second)[1])


def _sizes(module: Any) -> tuple[int, int]:
    linear = isinstance(module, nn.Linear)
    return (module.in_features, module.out_features) if linear else (module.in_channels, module.out_channels)
