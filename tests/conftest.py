"""Fixtures of several test files."""

import gc

import pytest

from targetprop.experiments import recorder

gc.disable()  # imports make objects by the hundred thousand, and next to no garbage


def pytest_collection_finish() -> None:
    """Spare the garbage collections of the tests what imports have made."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture
def no_curves(monkeypatch):
    """Leave out a run's curves, which take longer to draw than a small run takes to train."""
    monkeypatch.setattr(recorder, "draw_curves", lambda run: run)
