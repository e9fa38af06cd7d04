"""Layers on several processes: whatever a step computes is the same as where one process has all of them."""

import pytest
import torch

import placement_worker
import ranks_worker
from targetprop.inversion.columns import Columns
from targetprop.parallel.layer_owners import marks, stretches

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """What each of two processes found, and each of four on a grid."""
    folder = tmp_path_factory.mktemp("placement")
    ranks_worker.start(folder, (placement_worker.run_two, 2), (placement_worker.run_four, 4))
    return [[torch.load(folder / f"{name}{rank}.pt") for rank in range(n)] for name, n in (("two", 2), ("four", 4))]


@pytest.fixture(scope="module")
def two(started):
    return started[0]


def check(found, one, own):
    """Compare all but gradients everywhere, and each gradient where its layer is; elsewhere there is none."""
    for process in found:
        for step, expected in zip(process["steps"], one["steps"], strict=True):
            seen = {key: value for key, value in step.items() if key != "own gradients"}
            torch.testing.assert_close(seen, {key: expected[key] for key in seen}, **CLOSE)
        for part in ("trained", "weights", "state"):
            torch.testing.assert_close(process[part], one[part], **CLOSE)
    for step, expected in enumerate(one["steps"]):
        gradients = [process["steps"][step]["own gradients"] for process in found]
        for place, wanted in enumerate(expected["own gradients"]):
            made = [mine[place] for mine in gradients if mine[place] is not None]
            assert len(made) == own
            for gradient in made:
                torch.testing.assert_close(gradient, wanted, **CLOSE)


@pytest.mark.parametrize("name", placement_worker.cases())
def test_layers_on_two_processes_match_one(two, name):
    check([found[name] for found, *_ in two], placement_worker.steps(placement_worker.cases()[name], None), own=1)


def test_an_engine_goes_on_elsewhere(two):
    alone = placement_worker.resumed(None)
    for _, resumed, *_ in two:
        torch.testing.assert_close(resumed, alone, **CLOSE)


def test_what_a_placement_cannot_do_is_refused_everywhere(two):
    for _, _, found, *_ in two:
        for method in ("drl", "ddtp-linear", "backprop"):
            assert found[method].startswith(f"method '{method}' cannot be spread over processes by layer")
        assert found["names"] == "the placement names layer '7', but the layers are 0, 2"
        assert found["missing"].startswith("the placement has no rank for layer 2")
        assert found["idle"].startswith("the placement gives 2 layers to ranks [0], and the group has ranks 0 to 1")
        assert found["turn"].startswith(
            "the placement gives ranks [0, 1, 0] to the layers; give each rank neighbouring"
        )
        assert found["whole"].startswith("a placement needs layers that are whole modules, applied in order; write the")
        assert found["kind"].startswith("the placement must be a Placement; got ")
        assert found["shape"].startswith("samples have shape (8,), and the example input's (4,)")
        for batch in ("length", "order", "decoders"):
            assert found[batch].startswith("the processes of a placement were given different batches")


def test_a_layer_that_fails_is_named_everywhere_and_its_step_skipped(two):
    reasons, decoders = placement_worker.spoilt(None)
    assert reasons[0].startswith("layer 4 returns NaN") and reasons[1] is None
    for _, _, _, (found, kept), _ in two:
        assert found == reasons
        torch.testing.assert_close(kept, decoders, **CLOSE)


def test_half_precision_travels(two):
    for name, one in placement_worker.rounded(None, torch.float32).items():
        for place, wanted in enumerate(one):
            (gradient,) = (found[name][place] for *_, found in two if found[name][place] is not None)
            assert gradient.dtype == torch.float32
            assert float((gradient - wanted).norm() / wanted.norm()) < 0.03


def test_layers_and_rows_spread_over_a_grid(started):
    found = started[1]
    for name in found[0]:
        one = placement_worker.steps(placement_worker.grid_case(name), None)
        for rank, process in enumerate(found):
            for step, expected in zip(process[name]["steps"], one["steps"], strict=True):
                torch.testing.assert_close(step["output"], expected["output"][rank // 2 :: 2], **CLOSE)
                step["output"] = expected["output"]
        check([process[name] for process in found], one, own=2)


@pytest.mark.parametrize(
    ("sizes", "parts", "owners"),
    [
        ([5, 1, 1, 1], 2, [0, 1, 1, 1]),
        ([1, 1, 1, 9], 2, [0, 0, 0, 1]),
        ([3, 3, 3, 3], 2, [0, 0, 1, 1]),
        ([7, 1, 6, 2, 5], 3, [0, 1, 1, 2, 2]),
        ([0, 0, 4], 3, [0, 1, 2]),
        ([4, 4], 1, [0, 0]),
    ],
)
def test_stretches_have_the_smallest_largest_sum(sizes, parts, owners):
    assert stretches(sizes, parts) == owners


def test_marks_tell_batches_apart():
    x = torch.arange(6.0).view(3, 2)
    assert marks(x) == marks(x.clone()) and marks(x.half())[0] == 3
    assert len({tuple(marks(v)) for v in (x, x.flip(0), x + 1e-6, x[:2], x.bool())}) == 5


def test_norms_go_over_all_columns():
    other = torch.tensor([[2.0, 4.0], [1.0, 0.0]])
    columns = Columns(lambda tensors: [t.add_(other.norm(dim=1).square()) for t in tensors])
    assert columns.norms(torch.tensor([[4.0], [0.0]]))[0].tolist() == [6.0, 1.0]
