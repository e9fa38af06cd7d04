"""What an engine owns, as a dictionary to be stored and restored."""

from collections.abc import Mapping
from typing import Any

from targetprop.checks import check_fits, check_state
from targetprop.step import Parts
from targetprop.updates import state_key

VERSION = 3


def gather_layers(parts: Parts) -> None:
    """Give every process the layers, decoders and update statistics as their owners have them."""
    kept, layers = parts.update_state, parts.chain.layers
    statistics = {layer.name: [kept[key] for key in [state_key(layer.name)] if key in kept] for layer in layers}
    parts.peers.gather_layers(
        [(*layer.modules, *parts.bank.parts(layer.name), *statistics[layer.name]) for layer in layers]
    )


def collect_state(parts: Parts) -> dict[str, Any]:
    """Collect decoders, their optimiser, update statistics and random states of all processes."""
    gather_layers(parts)
    own = parts.peers.own(len(parts.chain))
    names = parts.chain.names[own.start : own.stop]

    def owned(name: str) -> bool:
        return name in names or name not in parts.chain.names

    optimizer = None if parts.decoder_optimizer is None else parts.decoder_optimizer.state_dict()
    return {
        "version": VERSION,
        "method": parts.method.name,
        "decoders": parts.bank.state_dict(),
        "decoder_optimizer": parts.peers.merge_optimizer(optimizer),
        "update": parts.update_state.state_dict(),
        "generators": parts.peers.merge({n: g.get_state() for n, g in parts.generators.items() if owned(n)}),
    }


def restore_state(parts: Parts, state: Mapping[str, Any]) -> None:
    """Take over what `collect_state` returned; what does not fit is a ``ValueError``, and changes nothing."""
    check_state(state, VERSION, parts.method.name)
    check_fits(parts.bank, state.get("decoders"), "decoders")
    check_fits(parts.update_state, state.get("update"), "update statistics")
    if list(state["generators"]) != list(parts.generators):
        raise ValueError("engine state belongs to another network: its layers have other names")
    parts.bank.load_state_dict(state["decoders"])
    if parts.decoder_optimizer is not None:
        parts.decoder_optimizer.load_state_dict(state["decoder_optimizer"])
    parts.update_state.load_state_dict(state["update"])
    for name, generator in parts.generators.items():
        # Generators of different kinds of device have states of different size; a fresh one then goes on.
        if state["generators"][name].shape == generator.get_state().shape:
            generator.set_state(state["generators"][name])
