"""Several processes: whatever a step computes is the same as one process computes on all of the batch."""

import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from torch import nn

import ranks_worker
import targetprop as tp
from cases import NETWORKS, gradients, parameters, rand
from targetprop import buckets as buckets_module
from targetprop.buckets import Buckets
from targetprop.output_target import shared_loss_gradient
from targetprop.ranks import Ranks
from targetprop.share import Share

pytestmark = pytest.mark.xdist_group("ranks")  # its processes are started once


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two ranks found, in one start of the processes."""
    folder = tmp_path_factory.mktemp("ranks")
    ranks_worker.start(ranks_worker.run_all, 2, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", ranks_worker.cases())
def test_two_ranks_match_one_process(two, name):
    one = ranks_worker.steps(ranks_worker.cases()[name], None)
    for found, *_ in two:
        torch.testing.assert_close(found[name], one, rtol=1e-10, atol=1e-12)
    first, second = ([step["gradients"] for step in found[name]] + found[name][-1]["weights"] for found, *_ in two)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "the ranks are not in step"


@pytest.mark.parametrize("rank", range(2))
def test_what_one_rank_cannot_do_all_refuse(two, rank):
    found = two[rank][1]
    for method in ("backprop", "dtp"):
        assert found[f"data, {method}"].startswith("the input holds NaN")
        assert "check the labels" in found[f"labels, {method}"]
        assert found[f"no samples, {method}"].startswith("the batch is empty")
    assert "BatchNorm1d would normalise by each rank's own rows" in found["batch norm, iterated"]
    assert "nn.SyncBatchNorm.convert_sync_batchnorm(model)" in found["batch norm, backprop"]
    assert found["other model"].startswith("the ranks hold different parameters")
    assert len(found) == 9


def test_a_step_that_one_rank_spoils_all_skip(two):
    alone = ranks_worker.skips(None)
    for (method, what), problem in ranks_worker.SPOILT.items():
        for reasons, kept in (found[2][method, what] for found in two):
            assert [reason is None for reason in reasons] == [True, False, True]
            assert str(reasons[1]).startswith(problem) and reasons == alone[method, what][0]
            torch.testing.assert_close(kept, alone[method, what][1], rtol=1e-10, atol=1e-12, msg=f"{method}, {what}")


class Others(Ranks):
    """Rank 1 of 3, whose peers add nothing to a sum; writes down when sums begin and end."""

    size, rank, alone = 3, 1, False

    def __init__(self) -> None:
        self.device, self.events = torch.device("cpu"), []

    def begin_sum(self, tensors: Sequence[torch.Tensor]):
        if tensors[0].dim() == 0:  # the guard's number
            return lambda: None
        self.events.append("send")
        return lambda: self.events.append("wait")


def share(*counts: int) -> Share:
    return Share(Others(), counts[1], lambda: list(counts))


@pytest.mark.parametrize(
    ("counts", "places"), [((2, 2, 2), [1, 4]), ((3, 2, 2), [1, 4]), ((1, 4, 2), [1, 3, 5, 6]), ((3, 0, 1), [])]
)
def test_samples_are_dealt_in_turn(counts, places):
    dealt, values = share(*counts), torch.arange(sum(counts))
    assert dealt.keep(values).tolist() == places and dealt.total == len(values)
    for samples in range(1, len(values) + 1):
        head = dealt.head(samples)
        assert head.total == samples
        assert head.keep(values[:samples]).tolist() == [place for place in places if place < samples]


def test_rows_of_other_ranks_are_left_to_them():
    dealt = share(2, 2, 1).times(2)  # samples 1 and 4, that is rows 2, 3 and 8, 9
    found = dealt.take(torch.tensor([[20.0], [30.0], [80.0], [90.0]]), torch.tensor([3, 0, 8, 8, 5]))
    assert found.flatten().tolist() == [30.0, 0.0, 80.0, 80.0, 0.0]


def test_gradients_travel_while_lower_layers_are_at_work(monkeypatch):
    monkeypatch.setattr(buckets_module, "BUCKET", 1)
    network = NETWORKS["tanh"]
    model, x = network.build(), network.batch()
    alone = Share.of(len(x))
    monkeypatch.setattr(Share, "of", lambda *_: alone)
    for method in ("l-drl", "backprop"):
        engine = tp.TargetPropagation(model, nn.MSELoss(), example_input=x, method=method)
        others = engine.ranks = Others()
        hooks = [p.register_hook(lambda _, events=others.events: events.append("make")) for p in parameters(model)]
        engine.backward(x, rand(5, 3))
        assert others.events == ["make", "send"] * len(hooks) + ["wait"] * len(hooks)
        for hook in hooks:
            hook.remove()


def test_only_what_a_step_adds_is_sent():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.grad = torch.full((1, 2), 5.0)
    buckets = Buckets(Others())
    with buckets.collect(layer.parameters()):
        layer(torch.ones(1, 2)).sum().backward()
    assert layer.weight.grad.tolist() == [[5.0, 5.0]]
    buckets.finish()
    assert layer.weight.grad.tolist() == [[6.0, 6.0]]
    with pytest.raises(KeyError), buckets.collect(layer.parameters()):
        raise KeyError
    assert layer.weight.grad.tolist() == [[6.0, 6.0]]


def test_weighted_mean_counts_each_rank_by_its_weights():
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]).double(), ignore_index=2)
    h, y = rand(4, 3), torch.tensor([0, 2, 1, 1])
    value, gradient = shared_loss_gradient(h, y, loss, share(3, 4, 2))
    assert torch.allclose(value, loss(h, y)) and torch.equal(gradient[1], torch.zeros(3).double())
    value, gradient = shared_loss_gradient(h, torch.full((4,), 2), loss, share(3, 4, 2))
    assert not gradient.any(), "a rank whose labels are all ignored has no part in the mean"


def test_threads_of_groups_settle_before_the_interpreter_ends(tmp_path):
    script = f"""
import torch.distributed as dist
from targetprop import ranks
dist.init_process_group("gloo", init_method="file://{tmp_path}/store", rank=0, world_size=1)
for _ in range(2):
    ranks.Ranks(dist.group.WORLD)
ranks.sleep = lambda seconds: print("settled", seconds > 0)
dist.destroy_process_group()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout == "settled True\n"


def test_lost_rank_is_told_from_other_errors(monkeypatch):
    def fail(*arguments, **settings):
        raise RuntimeError("Connection closed by peer.\nmore")

    ranks = Others()
    ranks._group = None
    monkeypatch.setattr(torch.distributed, "all_reduce", fail)
    with pytest.raises(ConnectionError, match=r"another rank .* \(Connection closed by peer\)"):
        Ranks.begin_sum(ranks, [torch.ones(1)])


def test_one_process_sends_nothing():
    network = NETWORKS["tanh"]
    model, x = network.build(), network.batch()
    engine = tp.TargetPropagation(model, nn.MSELoss(), example_input=x)
    assert engine.ranks.alone and engine.ranks.first(-1) == -1 and not engine.ranks.differs(torch.ones(1))
    engine.backward(x, rand(5, 3))
    assert gradients(model).any()
