"""Data sets by name, whole and as tensors: embedded digits, files of MNIST and CIFAR-10, folders of images."""

from targetprop.experiments.data.augment import Augmentation
from targetprop.experiments.data.cifar10 import Cifar10
from targetprop.experiments.data.dataset import Dataset, Source, stratified_split
from targetprop.experiments.data.digits import Digits
from targetprop.experiments.data.folder import Folder
from targetprop.experiments.data.mnist import Mnist

SOURCES: dict[str, type[Source]] = {source.name: source for source in (Digits, Mnist, Cifar10, Folder)}

__all__ = ["SOURCES", "Augmentation", "Cifar10", "Dataset", "Digits", "Folder", "Mnist", "Source", "stratified_split"]
