"""How a model becomes layers: cutting it, running it once into a record, and repeating a layer on other inputs."""

from targetprop.layers.accepts import check_whereabouts, explained, whereabouts
from targetprop.layers.chain import Chain, Cut, Layer, Model, build_chain, leaves, visible
from targetprop.layers.forward_pass import check_repeatable, evaluating, run_forward
from targetprop.layers.loss import evaluate_loss, explain_loss
from targetprop.layers.network import Layered, Network, SegmentLayer, SegmentRecord
from targetprop.layers.record import LayerRecord, LossGradient, MapUse, Pulled, Record, linear_index
from targetprop.layers.replay import ReplayState, record_input, record_modules, register_replay, replay_modules
from targetprop.layers.residual import Residual

__all__ = [
    "Chain",
    "Cut",
    "Layer",
    "LayerRecord",
    "Layered",
    "LossGradient",
    "MapUse",
    "Model",
    "Network",
    "Pulled",
    "Record",
    "ReplayState",
    "SegmentLayer",
    "SegmentRecord",
    "Residual",
    "build_chain",
    "check_repeatable",
    "check_whereabouts",
    "evaluating",
    "evaluate_loss",
    "explain_loss",
    "explained",
    "leaves",
    "linear_index",
    "record_input",
    "record_modules",
    "register_replay",
    "replay_modules",
    "run_forward",
    "visible",
    "whereabouts",
]
