"""Fixtures of several test files."""

import gc

import pytest

gc.disable()  # imports make objects by the hundred thousand, and next to no garbage


def pytest_collection_finish() -> None:
    """Spare the garbage collections of the tests what imports have made."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture
def no_curves(monkeypatch):
    """Leave out a run's curves, which take longer to draw than a small run takes to train."""
    from targetprop.experiments import recorder  # late, since xdist's own process reads this file too

    monkeypatch.setattr(recorder, "draw_curves", lambda run: run)


@pytest.fixture
def short_trials(monkeypatch):
    """Let the trials of an inspection be short, where what they find is not looked at closely."""
    from targetprop.diagnostics import inverse_quality

    monkeypatch.setattr(inverse_quality, "TRIAL_STEPS", 10)
    monkeypatch.setattr(inverse_quality, "EXTRA_STEPS", 3)
