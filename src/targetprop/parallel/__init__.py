"""Several processes that take a step together: the batch dealt out by rows, or the layers of one network by stretches.

Only the engine imports this folder. The stages of a step see `targetprop.peers.Peers`, of which one process has none.
"""

from targetprop.parallel.layer_owners import Placement
from targetprop.parallel.peer_group import connect

__all__ = ["Placement", "connect"]
