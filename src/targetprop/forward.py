"""The forward pass as an engine makes it: a batch becomes a record."""

from typing import Any

from targetprop.decoders import Bank
from targetprop.inversion import Difference, Direct
from targetprop.layers import Network, Pass, Record, explained, whereabouts
from targetprop.layers.sites import tensors_in
from targetprop.peers import Peers
from targetprop.recipe import Method

_NOTHING = object()


def run_example(network: Network, x: Any) -> Record:
    """Run an example, to see the layers; nothing of it stays.

    Args:
        network: the network.
        x: its input.

    Returns:
        The record.
    """
    first = next(tensors_in(x))
    with explained(first, whereabouts(network), f"example_input of shape {tuple(first.shape)}"):
        return network.example(x)


class Forward:
    """Runs batches.

    Args:
        network: the network.
        method: the recipe, which says what of the record will be needed.
        bank: the decoders, of which mirrors go into the pass.
        peers: the processes that share samples or layers, already settled.
    """

    def __init__(self, network: Network, method: Method, bank: Bank, peers: Peers) -> None:
        """Find this process' layers."""
        self.network, self.bank, self.peers = network, bank, peers
        self._mirror = bank.mirrors()
        self._straight = self._mirror is not None and method.straight
        self._repeats = self._mirror is None or not isinstance(method.inversion, Difference | Direct)
        own = peers.own(len(network))
        self._own = network.stage(own) if len(own) < len(network) else network

    def __call__(self, x: Any, y: Any = _NOTHING, *, measure: bool = False) -> Record:
        """Run a batch.

        Args:
            x: the network's input.
            y: labels, if there are any.
            measure: whether layers will be repeated to measure how good their inverses are.

        Returns:
            The record.
        """
        with explained(next(tensors_in(x)), whereabouts(self.network)):
            labelled = y is not _NOTHING and self._own is self.network  # with a placement the loss is of the output
            repeats, connected, y = self._repeats or measure, self._straight and not measure, y if labelled else None
            wanted = Pass(self._mirror, repeats, labelled, connected=connected and labelled)
            return self._own.run(x, y, wanted, self.peers)

    def record(self, x: Any, *, exact: bool = False) -> Record:
        """Run a batch without labels, to look at the layers; see `targetprop.TargetPropagation.record`."""
        return self._own.run(x, None, Pass(None if exact else self._mirror), self.peers)
