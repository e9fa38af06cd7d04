"""Several processes: whatever a step computes is the same as one process computes on all of the batch."""

import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from torch import nn

import ranks_worker
from cases import rand
from targetprop.output_target import loss_gradient
from targetprop.parallel.batch_shard import BatchShard
from targetprop.parallel.group import Group


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two ranks found, in one start of the processes."""
    folder = tmp_path_factory.mktemp("ranks")
    ranks_worker.start(folder, (ranks_worker.run_all, 2))
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
    for when in ("batch norm", "later batch norm"):
        assert "BatchNorm1d would normalise by each rank's own rows" in found[f"{when}, krylov"]
        assert "nn.SyncBatchNorm.convert_sync_batchnorm(model)" in found[f"{when}, backprop"]
    assert found["other model"].startswith("the ranks hold different parameters")
    assert len(found) == 11


def test_a_step_that_one_rank_spoils_all_skip(two):
    alone = ranks_worker.skips(None)
    for (method, what), problem in ranks_worker.SPOILT.items():
        for reasons, kept in (found[2][method, what] for found in two):
            assert [reason is None for reason in reasons] == [True, False, True]
            assert str(reasons[1]).startswith(problem) and reasons == alone[method, what][0]
            torch.testing.assert_close(kept, alone[method, what][1], rtol=1e-10, atol=1e-12, msg=f"{method}, {what}")


def test_layers_with_time_first_are_measured_on_each_rank(two):
    assert [found[3] for found in two] == [3, 3]


class Others(Group):
    """Rank 1 of 3, whose peers add nothing to a sum."""

    size, rank, alone = 3, 1, False

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def sum_(self, tensors: Sequence[torch.Tensor]) -> None:
        pass


def shard(*counts: int) -> BatchShard:
    return BatchShard(Others(), counts)


@pytest.mark.parametrize(
    ("counts", "own"), [((2, 2, 2), [1, 4]), ((3, 2, 2), [1, 4]), ((1, 4, 2), [1, 3, 5, 6]), ((3, 0, 1), [])]
)
def test_samples_are_dealt_in_turn(counts, own):
    dealt = shard(*counts)
    assert dealt._own.tolist() == own and dealt.total == sum(counts) and dealt.rows == len(own)
    for samples in range(1, sum(counts) + 1):
        head = dealt.head(samples)
        assert head.total == samples
        assert head._own.tolist() == [sample for sample in own if sample < samples]


def test_rows_of_other_ranks_are_left_to_them():
    dealt = shard(2, 2, 1)  # samples 1 and 4, of two rows each: rows 2, 3 and 8, 9
    values, count = torch.tensor([[[20.0], [30.0]], [[80.0], [90.0]]]), 40
    rows = torch.randint(10, (count,), generator=torch.Generator().manual_seed(0))
    found = dealt.pick(values, count, torch.Generator().manual_seed(0))
    assert found.flatten().tolist() == [10.0 * row if row in (2, 3, 8, 9) else 0.0 for row in rows.tolist()]


def test_weighted_mean_counts_each_rank_by_its_weights():
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]).double(), ignore_index=2)
    h, y = rand(4, 3), torch.tensor([0, 2, 1, 1])
    own = loss_gradient(h, y, loss)
    value, gradient = shard(3, 4, 2).loss(own.value, own.output, h, y, loss, summed=False)
    assert torch.allclose(value, loss(h, y)) and torch.equal(gradient[1], torch.zeros(3).double())
    ignored = torch.full((4,), 2)
    own = loss_gradient(h, ignored, loss)
    value, gradient = shard(3, 4, 2).loss(own.value, own.output, h, ignored, loss, summed=False)
    assert not gradient.any(), "a rank whose labels are all ignored has no part in the mean"


def test_threads_of_groups_settle_before_the_interpreter_ends(tmp_path):
    script = f"""
import torch.distributed as dist
from targetprop.parallel import group
dist.init_process_group("gloo", init_method="file://{tmp_path}/store", rank=0, world_size=1)
for _ in range(2):
    group.Group(dist.group.WORLD)
group.sleep = lambda seconds: print("settled", seconds > 0)
dist.destroy_process_group()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout == "settled True\n"


def test_lost_rank_is_told_from_other_errors(monkeypatch):
    def fail(*arguments, **settings):
        raise RuntimeError("Connection closed by peer.\nmore")

    others = Others()
    others._group = None
    monkeypatch.setattr(torch.distributed, "all_reduce", fail)
    with pytest.raises(ConnectionError, match=r"another rank .* \(Connection closed by peer\)"):
        Group.sum_(others, [torch.ones(1)])
