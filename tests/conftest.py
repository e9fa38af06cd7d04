"""Fixtures of several test files."""

import pytest

from targetprop.experiments import recorder


@pytest.fixture
def no_curves(monkeypatch):
    """Leave out a run's curves, which take longer to draw than a small run takes to train."""
    monkeypatch.setattr(recorder, "draw_curves", lambda run: run)
