"""The networks, by name: settings that build a module for a data set's shape and classes."""

from targetprop.experiments.networks.dense import Dense
from targetprop.experiments.networks.network import ACTIVATIONS, MOST_LAYERS, Network
from targetprop.experiments.networks.own import OwnModel
from targetprop.experiments.networks.pooled import LeNet, Vgg
from targetprop.experiments.networks.resnet import ResNet
from targetprop.experiments.networks.vit import ViT

NETWORKS: dict[str, type[Network]] = {network.name: network for network in (Dense, LeNet, Vgg, ResNet, ViT)}

__all__ = ["ACTIVATIONS", "MOST_LAYERS", "NETWORKS", "Dense", "LeNet", "Network", "OwnModel", "ResNet", "Vgg", "ViT"]
