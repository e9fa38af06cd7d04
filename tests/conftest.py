"""Fixtures of several test files."""

import gc

import pytest

gc.disable()  # imports make objects by the hundred thousand, and next to no garbage


def pytest_collection_finish() -> None:
    """Spare the garbage collections of the tests what imports have made."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def quick_seeds():
    """Seed the CPU alone where there is nothing else: PyTorch notes the stack for each kind of GPU, in 1 ms."""
    import torch

    with pytest.MonkeyPatch.context() as patch:
        if torch.accelerator.current_accelerator() is None:
            patch.setattr(torch, "manual_seed", torch.default_generator.manual_seed)
        yield


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """Leave out what is drawn of runs, but for tests marked ``pictures``: that takes longer than a small run trains."""
    from matplotlib.figure import Figure  # late, since xdist's own process reads this file too

    from targetprop.experiments import inspect, recorder

    if request.node.get_closest_marker("pictures") is None:
        monkeypatch.setattr(recorder, "draw_curves", lambda run: run)
        monkeypatch.setattr(inspect, "draw_inspection", lambda run: Figure())


@pytest.fixture
def new_objects():
    """Let the garbage collector know only of what the test makes, and not of all that is imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def short_trials(monkeypatch):
    """Let the trials of an inspection be short, where what they find is not looked at closely."""
    from targetprop.diagnostics import inverse_quality

    monkeypatch.setattr(inverse_quality, "TRIAL_STEPS", 10)
    monkeypatch.setattr(inverse_quality, "EXTRA_STEPS", 3)
