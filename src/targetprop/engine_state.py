"""What an engine owns, as a dictionary to be stored and restored."""

from collections.abc import Mapping
from typing import Any

from targetprop.checks import check_fits, check_state
from targetprop.layers import Layer
from targetprop.step import Parts
from targetprop.updates import state_key

VERSION = 3


def gather_layers(parts: Parts) -> None:
    """Give every process the layers, decoders and update statistics as their owners have them."""
    kept = parts.update_state
    parts.peers.gather_layers(
        [
            (*layer.modules, *parts.bank.parts(layer.name), *(kept[key] for key in _keys(layer) if key in kept))
            for layer in parts.network.layers
        ]
    )


def _keys(layer: Layer) -> list[str]:
    """List what the statistics of a layer and of its maps are called."""
    return [state_key(name) for name in (layer.name, *(site.key for site in layer.segment.sites))]


def collect_state(parts: Parts) -> dict[str, Any]:
    """Collect decoders, their optimiser, update statistics and random states of all processes."""
    gather_layers(parts)
    own = parts.peers.own(len(parts.network))
    keys = {key for layer in parts.network.layers[own.start : own.stop] for key in _keys(layer)}
    known = {key for layer in parts.network.layers for key in _keys(layer)}
    mine = {n: g.get_state() for n, g in parts.generators.items() if state_key(n) in keys or state_key(n) not in known}
    optimizer = None if parts.decoder_optimizer is None else parts.decoder_optimizer.state_dict()
    return {
        "version": VERSION,
        "method": parts.method.name,
        "decoders": parts.bank.state_dict(),
        "decoder_optimizer": parts.peers.merge_optimizer(optimizer),
        "update": parts.update_state.state_dict(),
        "generators": parts.peers.merge(mine),
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
