"""Data sets by name, whole and as tensors: embedded digits, MNIST's files, folders of images."""

from targetprop.experiments.data.dataset import Dataset, Source, stratified_split
from targetprop.experiments.data.digits import Digits
from targetprop.experiments.data.folder import Folder
from targetprop.experiments.data.mnist import Mnist

SOURCES: dict[str, type[Source]] = {source.name: source for source in (Digits, Mnist, Folder)}

__all__ = ["SOURCES", "Dataset", "Digits", "Folder", "Mnist", "Source", "stratified_split"]
