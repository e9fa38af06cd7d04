"""Fixtures of several test files."""

import pytest

from targetprop.experiments import recorder


@pytest.fixture
def no_curves(monkeypatch):
    """Leave out a run's curves, which take longer to draw than a small run takes to train."""
    monkeypatch.setattr(recorder, "draw_curves", lambda run: run)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Measure each claim once: all tests of one claim run in one process, which shares their fixtures."""
    for item in items:
        if item.path.name.startswith(("test_claim_", "test_inspect", "test_verify")):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
