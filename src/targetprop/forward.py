"""The forward pass as an engine makes it: a batch becomes a record, whatever kind of layers the network has."""

from typing import Any

import torch

from targetprop.decoders import Bank
from targetprop.inversion import Difference, Direct
from targetprop.layers import Chain, Layered, Network, Record, explained, run_forward, whereabouts
from targetprop.layers.sites import tensors_in
from targetprop.methods import Method
from targetprop.peers import Peers

_NOTHING = object()


def run_example(chain: Layered, x: Any) -> Record:
    """Run an example, to see the layers; nothing of it stays.

    Args:
        chain: the network.
        x: its input.

    Returns:
        The record.
    """
    first = next(tensors_in(x))
    what = f"example_input of shape {tuple(first.shape)}"
    if isinstance(chain, Chain):
        with torch.no_grad():
            return run_forward(chain, x[:2], keep_inner=True, what=what)
    with explained(first, whereabouts(chain), what):
        return chain.example(x)


class Forward:
    """Runs batches.

    Args:
        chain: the network.
        method: the recipe, which says what of the record will be needed.
        bank: the decoders, of which mirrors go into the pass.
        peers: the processes that share samples or layers, already settled.
    """

    def __init__(self, chain: Layered, method: Method, bank: Bank, peers: Peers) -> None:
        """Find this process' layers."""
        self.chain, self.method, self.bank, self.peers = chain, method, bank, peers
        own = peers.own(len(chain))
        self._own: Layered = chain
        if isinstance(chain, Network) and len(own) < len(chain):
            self._own = chain.stage(own)

    def __call__(self, x: Any, y: Any = _NOTHING, *, measure: bool = False) -> Record:
        """Run a batch.

        Args:
            x: the network's input.
            y: labels, if there are any.
            measure: whether layers will be repeated to measure how good their inverses are.

        Returns:
            The record.
        """
        labelled = y is not _NOTHING
        if isinstance(self._own, Chain):
            with torch.set_grad_enabled(labelled):
                return run_forward(self._own, x, self.peers, keep_inner=labelled and self.method.update.needs_inner)
        repeats = measure or not isinstance(self.method.inversion, Difference | Direct)
        with explained(next(tensors_in(x)), whereabouts(self.chain)):
            labelled = labelled and self._own is self.chain  # with a placement the loss is a function of the output
            y = y if labelled else None
            return self._own.run(x, y, self.bank.mirror, self.peers, repeats=repeats, labelled=labelled)

    def record(self, x: Any, *, exact: bool = False) -> Record:
        """Run a batch without labels, to look at the layers; see `targetprop.TargetPropagation.record`."""
        if isinstance(self._own, Chain):
            return run_forward(self._own, x, self.peers, keep_inner=True)
        mirror = self.bank.mirror if not exact else lambda key, weight: None
        return self._own.run(x, None, mirror, self.peers, repeats=True, labelled=False)
