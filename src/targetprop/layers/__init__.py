"""How a model becomes layers: cutting it, running it once into a record, and repeating a layer on other inputs."""

from targetprop.layers.accepts import check_whereabouts, explained, whereabouts
from targetprop.layers.closed import Closed
from targetprop.layers.given import check_given
from targetprop.layers.layer import Cut, Layer, Model
from targetprop.layers.loss import Reduction, evaluate_loss, explain_loss
from targetprop.layers.network import Network, Pass, record_layers
from targetprop.layers.pieces import Piece
from targetprop.layers.planning import Cutting
from targetprop.layers.random_states import forked_random_states
from targetprop.layers.record import LayerRecord, LossGradient, MapUse, Pulled, Record, Wanted
from targetprop.layers.residual import Residual

__all__ = [
    "Closed",
    "Cut",
    "Cutting",
    "Layer",
    "LayerRecord",
    "LossGradient",
    "MapUse",
    "Model",
    "Network",
    "Pass",
    "Piece",
    "Pulled",
    "Record",
    "Reduction",
    "Residual",
    "Wanted",
    "check_given",
    "check_whereabouts",
    "evaluate_loss",
    "explain_loss",
    "explained",
    "forked_random_states",
    "record_layers",
    "whereabouts",
]
