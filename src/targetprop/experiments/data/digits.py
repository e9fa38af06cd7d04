"""The digits that come with scikit-learn: 1,797 real 8×8 scans, no download."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from targetprop.experiments.data.dataset import Dataset, Source, stratified_split


@dataclass(frozen=True)
class Digits(Source):
    """Embedded digits with a fixed split, a fifth of each class for testing."""

    name: ClassVar[str] = "digits"

    def read(self) -> Dataset:
        """Take them from scikit-learn; see `Source.read`."""
        from sklearn.datasets import load_digits

        raw: Any = load_digits()
        x = torch.from_numpy(raw.images).float().div_(16).unsqueeze(1)
        y = torch.from_numpy(raw.target).long()
        train, test = stratified_split(y, fraction=0.2)
        return Dataset(x[train], y[train], x[test], y[test], classes=10, where="the digits data")
