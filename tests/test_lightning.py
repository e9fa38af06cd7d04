"""Under a Lightning Trainer: the same steps as in a plain loop, resumed runs, callbacks, loggers, schedules."""

import copy
import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_ddp
import new_process
import targetprop as tp
from targetprop.lightning import TargetPropagationModule

pytestmark = [  # Lightning's advice, where it is not meant
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval"),
]
LOSS = nn.CrossEntropyLoss()
BATCH = 24


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 2))


def data(n: int = 160, dtype: torch.dtype = torch.float32) -> DataLoader:
    """Seven batches, the last one smaller."""
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(1)).to(dtype)
    return DataLoader(TensorDataset(x, (x[:, 0] > x[:, 1].abs() - 0.5).long()), batch_size=BATCH)


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-2)


def make(model=None, **more) -> TargetPropagationModule:
    return TargetPropagationModule(model or network(), LOSS, **{"optimizer": adam, "seed": 0} | more)


def trainer(folder: Path, **more) -> Trainer:
    plain = {"logger": False, "enable_checkpointing": False, "max_epochs": 3}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(**plain | quiet | {"accelerator": "cpu", "devices": 1, "default_root_dir": folder} | more)


def everything(module: TargetPropagationModule) -> list[Tensor]:
    """What a run ends with: weights, and what the engine owns."""
    assert module.engine is not None
    state = module.engine.state_dict()
    owned = [*state.get("decoders", {}).values(), *state.get("update", {}).values()]
    return [*module.model.state_dict().values(), *owned, *state.get("generators", {}).values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(u, v) for u, v in zip(a, b, strict=True))


def plain_loop(module: TargetPropagationModule, epochs: int, accumulate: int = 1, clip: float | None = None) -> None:
    """What the module promises to do, written out."""
    optimizer = adam(list(module.model.parameters()))
    method = module.options["method"]
    example = torch.ones(2, 6)
    module.engine = engine = tp.TargetPropagation(module.model, LOSS, example_input=example, method=method, seed=0)
    for _ in range(epochs):
        batches = list(data())
        for start in range(0, len(batches), accumulate):
            optimizer.zero_grad()
            window = batches[start : start + accumulate]
            for x, y in window:
                engine.backward(x, y)
            for p in module.model.parameters():
                p.grad /= len(window)
            if clip:
                nn.utils.clip_grad_norm_(module.model.parameters(), clip)
            optimizer.step()


@pytest.mark.parametrize("method", ["krylov", "dtp", "least-squares", "backprop"])
def test_training_is_the_plain_loop_bit_for_bit(tmp_path, method):
    module, other = make(method=method), make(method=method)
    trainer(tmp_path).fit(module, data(), data())
    plain_loop(other, epochs=3)
    assert same(everything(module), everything(other))
    assert not torch.equal(module.model[0].weight, network()[0].weight)


@pytest.mark.parametrize(("accumulate", "clip"), [(3, None), (1, 0.05), (2, 0.05)])
def test_gradients_are_accumulated_and_clipped(tmp_path, accumulate, clip):
    module, other = make(accumulate=accumulate, clip=clip), make()
    trainer(tmp_path).fit(module, data())
    plain_loop(other, 3, accumulate, clip)
    assert same(everything(module), everything(other))


class Sharp(torch.optim.SGD):
    """Takes the gradient where the loss is sharpest nearby (SAM)."""

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is not None
        ps = [p for group in self.param_groups for p in group["params"]]
        before, size = [p.clone() for p in ps], torch.stack([p.grad.norm() for p in ps]).norm()
        for p in ps:
            p.add_(p.grad, alpha=0.05 / float(size))
        self.zero_grad()
        with torch.enable_grad():
            closure()
        for p, old in zip(ps, before, strict=True):
            p.copy_(old)
        super().step()


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("kind", [Sharp, torch.optim.LBFGS])
def test_optimisers_that_evaluate_the_loss_anew_do_so_as_in_a_plain_loop(tmp_path, kind, clip):
    module, net = make(method="backprop", optimizer=lambda p: kind(p, lr=0.1), clip=clip), network()
    trainer(tmp_path, max_epochs=1).fit(module, data())
    optimizer = kind(net.parameters(), lr=0.1)
    for x, y in data():

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = LOSS(net(x), y)
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            return loss

        closure()
        optimizer.step(closure)
    for p, expected in zip(module.model.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="evaluates the loss anew, such as L-BFGS, needs accumulate=1"):
        trainer(tmp_path).fit(make(optimizer=lambda p: kind(p, lr=0.1), accumulate=2), data())


@pytest.mark.parametrize("method", ["krylov", tp.method("dtp", update=tp.LeastSquares(every=3)), "backprop"])
def test_a_resumed_run_is_the_undisturbed_one(tmp_path, method):
    def run(module, epochs, path=None):
        runner = trainer(tmp_path, max_epochs=epochs)
        runner.fit(module, data(), data(), ckpt_path=path, weights_only=True)
        runner.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return everything(module)

    halved = {"method": method, "scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5)}
    whole = run(make(**halved), 4)
    run(make(**halved), 2)
    resumed = make(**halved | {"seed": 99})
    assert same(run(resumed, 4, tmp_path / "2.ckpt"), whole)


def test_a_second_fit_continues_with_the_same_decoders(tmp_path):
    module, other = make(), make()
    trainer(tmp_path).fit(module, data())
    decoders = copy.deepcopy(module.engine.bank.state_dict())
    module.on_fit_start()
    engine = module._engine(torch.ones(2, 6))
    assert all(torch.equal(decoders[name], value) for name, value in engine.bank.state_dict().items())
    trainer(tmp_path, max_epochs=1).fit(other, data())
    assert not same(list(decoders.values()), list(other.engine.bank.state_dict().values()))


def test_callbacks_follow_what_is_logged(tmp_path):
    best = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", filename="best", save_weights_only=True)
    stop = EarlyStopping("val_loss", patience=2, min_delta=100.0)  # nothing improves that much
    runner = trainer(tmp_path, max_epochs=20, callbacks=[best, stop], enable_checkpointing=True)
    module = make()
    runner.fit(module, data(), data())
    assert runner.current_epoch == 3

    loaded = TargetPropagationModule.load_from_checkpoint(
        best.best_model_path, model=network(), loss=LOSS, optimizer=adam, weights_only=True
    )
    (found,) = trainer(tmp_path).validate(loaded, data(), verbose=False)
    assert found["val_loss"] == pytest.approx(float(best.best_model_score), rel=1e-6)
    x, y = data().dataset.tensors
    output = loaded(x).detach()
    assert found["val_loss"] == pytest.approx(float(LOSS(output, y)), rel=1e-5)
    assert found["val_accuracy"] == pytest.approx(float((output.argmax(1) == y).float().mean()), rel=1e-6)
    (tested,) = trainer(tmp_path).test(loaded, data(), verbose=False)
    assert tested == {name.replace("val", "test"): value for name, value in found.items()}


class Watched(TargetPropagationModule):
    """Keeps the reports of its steps."""

    def _log_report(self, report, n):
        self.reports = [*getattr(self, "reports", []), report]
        super()._log_report(report, n)


def test_a_logger_writes_what_the_steps_reported(tmp_path):
    def schedule(optimizer):
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    module = Watched(network(), LOSS, method="dtp", optimizer=adam, scheduler=schedule, every_step=True)
    logger = CSVLogger(tmp_path, name="", version="")
    watched = {"logger": logger, "callbacks": [LearningRateMonitor()], "log_every_n_steps": 3}
    trainer(tmp_path, max_epochs=1, **watched).fit(module, data(), data())
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))

    steps = [row for row in rows if row["train_loss"]]
    assert [int(row["step"]) for row in steps] == [2, 5]
    for row, report in zip(steps, (module.reports[2], module.reports[5]), strict=True):
        assert len(report.residuals()) == 2
        residual = sum(report.residuals().values()) / 2
        for name, value in (("train_loss", report.loss), ("decoder_loss", report.decoder_loss), ("residual", residual)):
            assert float(row[name]) == pytest.approx(float(value), rel=1e-5)
    assert [i for i, report in enumerate(module.reports) if report.target_norms] == [2, 5]  # no other was measured
    assert [row["val_loss"] != "" and row["val_accuracy"] != "" for row in rows if row["val_loss"]] == [True]
    rates = [float(row["lr-Adam"]) for row in rows if row["lr-Adam"]]
    assert rates == pytest.approx([1e-2 * 0.5**2, 1e-2 * 0.5**5])


def test_schedules_move(tmp_path):
    plateau = {"threshold": 100.0, "threshold_mode": "abs", "patience": 0, "factor": 0.1}
    rates = []
    for more in (
        {"scheduler": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5)},
        {"scheduler": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5), "every_step": True, "accumulate": 2},
        {"scheduler": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, **plateau)},
    ):
        module = make(**more)
        trainer(tmp_path, max_epochs=2).fit(module, data(), data())
        rates.append(module.optimizers().param_groups[0]["lr"])
    assert rates == pytest.approx([1e-2 * 0.5**2, 1e-2 * 0.5**8, 1e-3])


def test_other_precisions_end_close_to_float32(tmp_path):
    ends = {}
    for precision, dtype in (("32-true", None), ("64-true", torch.float64), ("bf16-mixed", torch.float32)):
        module, loader = make(example_input=torch.ones(2, 6)), data(dtype=dtype or torch.float32)
        runner = trainer(tmp_path, max_epochs=10, precision=precision)
        runner.fit(module, loader, loader)
        assert {p.dtype for p in module.parameters()} == {dtype or torch.float32}
        ends[precision] = float(runner.callback_metrics["val_loss"])
    assert ends["32-true"] < 0.5
    assert 0 < abs(ends["64-true"] - ends["32-true"]) < 1e-3
    assert 1e-5 < abs(ends["bf16-mixed"] - ends["32-true"]) < 0.05


def test_models_of_other_forms_and_decoders_of_the_users_own(tmp_path):
    layers = [nn.Sequential(nn.Linear(6, 12), nn.Tanh()), nn.Linear(12, 2)]
    module = make(layers, method="dtp", decoders={"1": nn.Linear(2, 12)})
    trainer(tmp_path).fit(module, data())
    assert module.engine.network.names == ["0", "1"] and torch.equal(module.model[1].weight, layers[1].weight)
    assert set(module.state_dict()) == {f"model.{name}" for name in nn.Sequential(*layers).state_dict()}
    module = make({"a": nn.Linear(6, 4), "b": nn.Linear(4, 2)})
    trainer(tmp_path, max_epochs=1).fit(module, data())
    assert module.engine.network.names == ["a", "b"]


# Refusals.


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"accumulate": 0}, "accumulate is a number of batches ≥ 1; got 0"), ({"clip": -1.0}, "clip must be > 0"),
     ({"clip": float("nan")}, "clip must be > 0; got nan")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_what_cannot_work_is_refused_with_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"needs precision 32-true, 64-true, bf16-mixed; got 'bf16-true'"):
        trainer(tmp_path, precision="bf16-true").fit(make(), data())
    with pytest.raises(ValueError, match=r"does not accept example_input of shape \(2, 5\)"):
        trainer(tmp_path).fit(make(example_input=torch.ones(2, 5)), data())
    with pytest.raises(TypeError, match=r"a batch must be a pair \(x, y\), and is a Tensor; override split"):
        trainer(tmp_path).fit(make(), DataLoader(data().dataset.tensors[0]))
    plateau = {"scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau}
    with pytest.raises(ValueError, match="ReduceLROnPlateau follows val_loss, and there is none"):
        trainer(tmp_path, max_epochs=1).fit(make(**plateau), data())


def test_strategies_that_would_train_something_else_are_refused():
    module = make()
    made = FSDPStrategy.__new__(FSDPStrategy)
    module._trainer = SimpleNamespace(strategy=made, precision="32-true", world_size=1)
    with pytest.raises(ValueError, match="one device or by strategy='ddp'; got FSDPStrategy"):
        module.setup("fit")
    module.setup("test")
    single = SimpleNamespace(strategy=SingleDeviceStrategy(), precision="32-true", world_size=1)
    module._trainer = single
    module.setup("fit")


# Two processes.


def test_two_processes_train_as_one_does_on_whole_batches(tmp_path):
    code, said = new_process.run(lightning_ddp.train_all, tmp_path, ["krylov", "fw-dtp"])
    assert code == 0, said[-2000:]
    names = ("0 of 1", "0 of 2", "1 of 2")
    for method in ("krylov", "fw-dtp"):
        alone, first, second = (torch.load(tmp_path / method / f"{name}.pt") for name in names)
        assert list(alone) == list(first) == list(second)
        assert all(torch.equal(first[name], second[name]) for name in first)
    for name in alone:  # of fw-dtp, since decoders that learn from noise see other noise
        tolerance = {"residual": 1e-3, "train_loss": 1e-6, "val_loss": 1e-6}.get(name, 1e-10)  # some are float32
        torch.testing.assert_close(first[name], alone[name], rtol=tolerance, atol=1e-12)
