"""The command line: what it accepts, what it refuses, and what a run leaves behind."""

import hashlib
import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

import targetprop as tp
from targetprop.experiments import main as main_module
from targetprop.experiments.config import SECTIONS
from targetprop.experiments.data import Digits
from targetprop.experiments.main import main
from targetprop.experiments.networks import ACTIVATIONS, Dense
from targetprop.experiments.options import field_options
from targetprop.experiments.parser import build_config, choose, list_options, read_options
from targetprop.experiments.values import read_values, split_words
from targetprop.report.curves import draw_curves

SMALL = "--network.widths 12 12 --batch_size 256 --log_every 4 --device cpu --epochs 1".split()


def run(*arguments: object) -> int:
    return main(["train", *map(str, arguments)])


def printed(capsys, *arguments: object) -> str:
    assert run(*arguments, "--print_config") == 0
    return capsys.readouterr().out


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(autouse=True)
def inside_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.pictures
def test_without_arguments_it_learns_the_digits(tmp_path, capsys):
    assert main(["train"]) == 0
    folder = Path("runs/l-drl-digits-s0")
    names = {"checkpoint.safetensors", "config.yaml", "curves.png", "metrics.jsonl", "summary.json"}
    assert {path.name for path in folder.iterdir()} == names
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test_accuracy"] >= 0.95 and summary["best_test_accuracy"] >= summary["test_accuracy"]
    assert (summary["method"], summary["seed"], summary["epochs"], summary["status"]) == ("l-drl", 0, 30, "finished")
    assert summary["reason"] is None and summary["seconds_per_step"] > 0 and summary["torch"] == torch.__version__
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    steps = [line for line in lines if line["kind"] == "step"]
    assert len(epochs) + len(steps) == len(lines) and [line["epoch"] for line in epochs] == list(range(1, 31))
    assert [line["step"] for line in steps] == [1, *range(50, summary["steps"] + 1, 50)]
    assert epochs[-1]["test_accuracy"] == summary["test_accuracy"] and summary["train_loss"] == epochs[-1]["train_loss"]
    assert all(line["residual"] is None for line in steps), "transposes are no inverses"
    output = capsys.readouterr()
    assert f"{summary['test_accuracy']:.2%}" in output.out and str(folder) in output.out
    assert output.err.count("\n") == 30 and "epoch 30/30: loss " in output.err


def test_a_run_that_inverts_reports_what_its_inverses_miss(tmp_path):
    assert run("--method", "iterated", "--epochs", 2) == 0
    (folder,) = Path("runs").iterdir()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["residual"] < 1.05 for line in lines if line["kind"] == "step")


def test_terminal_gets_a_bar_with_numbers_and_time_left(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    assert run(*SMALL) == 0
    bar = capsys.readouterr().err
    for word in ("epoch 1/1", "loss", "accuracy", "residual", "left"):
        assert word in bar


def test_backprop_is_the_plain_loop(tmp_path):
    assert run(*SMALL, "--method", "backprop", "--epochs", 2, "--out", "run") == 0
    torch.manual_seed(0)
    data = Digits().load()
    model = Dense([12, 12]).build(data.shape, data.classes)
    optimizer, order = torch.optim.Adam(model.parameters()), torch.Generator().manual_seed(0)
    for _ in range(2):
        for batch in torch.randperm(len(data.train_x), generator=order).split(256):
            optimizer.zero_grad()
            nn.CrossEntropyLoss()(model(data.train_x[batch]), data.train_y[batch]).backward()
            optimizer.step()
    saved = load_file("run/checkpoint.safetensors")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(saved[f"model/{name}"], value)


def test_config_file_repeats_the_run_bit_for_bit():
    assert run(*SMALL, "--method", "l-drl", "--seed", 3, "--inversion.rule", "output-space", "--out", "a") == 0
    assert run("--config", "a/config.yaml", "--out", "b") == 0
    assert Path("a/config.yaml").read_bytes() == Path("b/config.yaml").read_bytes()
    first, second = (load_file(f"{name}/checkpoint.safetensors") for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", tp.METHODS)
def test_printed_config_is_complete_and_reads_back(capsys, name):
    text = printed(capsys, "--method", name)
    Path("c.yaml").write_text(text)
    assert printed(capsys, "--config", "c.yaml") == text
    content, recipe = yaml.safe_load(text), tp.method(name)
    if name == "backprop":
        assert not {"inversion", "decoder", "cut"} & content.keys()
        return
    for part in ("inversion", "decoder", "output_target", "influence", "update"):
        settings = getattr(recipe, part)
        assert {f.name: getattr(settings, f.name) for f in fields(settings)}.items() <= content[part].items()
    assert content["cut"] == recipe.cut and content["propagation"] == recipe.propagation


SGD, ADAM = {"nesterov": False, "weight_decay": 0.0}, {"name": "adam", "lr": 0.001}
OPTIMIZERS = {
    "--method kronecker": {"name": "sgd", "lr": 1.0, "momentum": 0.0, **SGD},
    "--update.rule least-squares": {"name": "sgd", "lr": 0.25, "momentum": 0.5, **SGD},
    "--method gauss-newton": {"name": "sgd", "lr": 0.1, "momentum": 0.5, **SGD},
    "--method gauss-newton --optimizer.lr 0.2": {"name": "sgd", "lr": 0.2, "momentum": 0.5, **SGD},
    "--method gauss-newton --update.rule gradient": ADAM,
    "--method kronecker --optimizer.name adam": ADAM,
    "--method backprop": ADAM,
}


@pytest.mark.parametrize("words", OPTIMIZERS)
def test_an_update_that_is_a_step_already_comes_with_the_optimiser_that_it_wants(capsys, words):
    content, steps = yaml.safe_load(printed(capsys, *words.split())), "gradient" not in words and "back" not in words
    assert content["optimizer"] == OPTIMIZERS[words]
    assert content["schedule"] == ({"name": "linear", "warmup": 0.05} if steps else {"name": "constant", "warmup": 0.0})


def test_kronecker_learns_the_digits_in_two_epochs_as_it_comes():
    assert run("--method", "kronecker", "--epochs", 2, "--out", "run") == 0
    assert json.loads(Path("run/summary.json").read_text())["train_loss"] < 0.1


def test_every_option_reaches_the_configuration(capsys):
    text = printed(
        capsys, "--method", "learned-inverse", "--inversion.rule", "input-space", "--inversion.steps", 7,
        "--decoder.damping", 0.5, "--output_target.beta", "1e-3", "--influence.limit",
        "inf", "--influence.normalise=false", "--update.rule", "least-squares", "--update.every", 9, "--cut",
        "pre-activation", "--propagation", "joint", "--network.widths", 5, "--network.activation", "gelu",
        "--optimizer.name", "sgd", "--optimizer.momentum", 0.5, "--optimizer.weight_decay", 0.01, "--schedule.name",
        "cosine", "--schedule.warmup", 0.25, "--batch_size", 3, "--log_every", 2, "--device", "cpu",
    )  # fmt: skip
    content = yaml.safe_load(text)
    assert content["inversion"]["steps"] == 7 and content["decoder"]["damping"] == 0.5
    assert float(content["output_target"]["beta"]) == 1e-3
    assert content["influence"] == {"normalise": False, "limit": float("inf")}
    assert content["update"]["rule"] == "least-squares" and content["update"]["every"] == 9
    assert (content["cut"], content["propagation"]) == ("pre-activation", "joint")
    assert content["network"] == {"name": "dense", "widths": [5], "activation": "gelu"}
    assert content["optimizer"] == {
        "name": "sgd", "lr": 0.25, "momentum": 0.5, "nesterov": False, "weight_decay": 0.01
    }  # fmt: skip
    assert content["schedule"] == {"name": "cosine", "warmup": 0.25}
    assert (content["batch_size"], content["log_every"], content["device"]) == (3, 2, "cpu")


@pytest.mark.parametrize("name", ["007", "1e3", "nan", "true", "2026-11-23", "2026-13-45", "[a]"])
def test_a_folder_may_have_any_name(name: str):
    assert build_config(read_values(f"out: {name}")).out == name
    assert build_config(read_options(["--out", name]).values).out == name
    assert build_config(read_options(["--data.name", "mnist", "--data.root", name]).values).data.root == name


def test_lists_in_every_spelling():
    for words in (["256", "32"], ["[256,32]"], ["256, 32"], ["[256, 32]"]):
        text = split_words(["--network.widths", *words], "train").values["network.widths"]
        assert yaml.safe_load(f"[{text.strip('[]')}]") == [256, 32]


def test_switches_need_no_value(capsys):
    content = yaml.safe_load(printed(capsys, "--deterministic", "--data.flip", "--data.normalise=false"))
    assert content["deterministic"] is content["data"]["flip"] is True and content["data"]["normalise"] is False


def test_command_line_wins_over_the_file(capsys):
    Path("c.yaml").write_text("method: l-drl\nepochs: 3\nseed: 5\ninversion: {rule: input-space, steps: 9}\n")
    content = yaml.safe_load(printed(capsys, "--config", "c.yaml", "--epochs", 4, "--inversion.steps", 2))
    assert (content["method"], content["epochs"], content["seed"]) == ("l-drl", 4, 5)
    assert content["inversion"]["steps"] == 2


def test_settings_of_what_the_command_line_replaces_are_left_out_and_named(capsys):
    Path("c.yaml").write_text("method: krylov\nseed: 5\ninversion: {steps: 9}\noptimizer: {name: sgd, lr: 0.5}\n")
    assert run("--config", "c.yaml", "--method", "dtp", "--optimizer.name", "adam", "--print_config") == 0
    output = capsys.readouterr()
    content = yaml.safe_load(output.out)
    assert content["inversion"] == {"rule": "difference"} and content["optimizer"] == {"name": "adam", "lr": 0.001}
    assert content["seed"] == 5
    assert "inversion.steps are left out" in output.err and "optimizer.lr are left out" in output.err


def test_an_optimiser_that_the_files_method_wanted_does_not_stay_for_another(capsys):
    Path("c.yaml").write_text(printed(capsys, "--method", "kronecker", "--seed", 5))
    assert run("--config", "c.yaml", "--method", "dtp", "--optimizer.lr", 0.01, "--print_config") == 0
    output = capsys.readouterr()
    content = yaml.safe_load(output.out)
    assert content["optimizer"] == {"name": "adam", "lr": 0.01} and content["schedule"]["name"] == "constant"
    assert content["seed"] == 5 and "so the file's optimizer.name, optimizer.lr" in output.err
    assert run("--config", "c.yaml", "--update.rule", "gradient", "--print_config") == 0
    assert yaml.safe_load(capsys.readouterr().out)["optimizer"] == ADAM
    Path("c.yaml").write_text(printed(capsys, "--method", "l-drl", "--optimizer.lr", 0.02))
    assert run("--config", "c.yaml", "--method", "dtp", "--print_config") == 0
    output = capsys.readouterr()
    assert yaml.safe_load(output.out)["optimizer"] == ADAM | {"lr": 0.02} and "optimiser" not in output.err


def test_every_option_of_every_class_has_a_help_text_and_appears_in_the_help(capsys):
    for section, kind in SECTIONS.items():
        for choice in kind.classes.values():
            assert [o.name for o in field_options(choice(), section) if not o.help] == []
    for name in tp.METHODS:
        options = list_options(*choose({"method": name}))
        assert [option.name for option in options.values() if not option.help] == []
        assert run("--method", name, "--help") == 0
        text = capsys.readouterr().out
        assert [option for option in options if f"--{option} " not in text] == []


REFUSED = {
    "--inversion.rule difference --inversion.steps 3": "inversion 'difference' has no option --inversion.steps",
    "--method dtp --inversion.steps 3": "--inversion.rule input-space or output-space or krylov or regularised has it",
    "--method krylov --inversion.tolerence 3": "its options are --inversion.rule, --inversion.steps, --inversion.d",
    "--influence.steps 3": "its options are --influence.normalise, --influence.limit",
    "--method backprop --decoder.lr 1": "method 'backprop', which has no parts to set",
    "--method iterate": "did you mean 'iterated'?",
    "--method xyz": "choose one of l-drl, iterated, autoencoder, krylov",
    "--inversion.rule inputspace": "did you mean 'input-space'?",
    "--decoder.objective learned": "choose one of difference-reconstruction",
    "--epoch 3": "unknown option --epoch; did you mean --epochs?",
    "--xyz 3": "targetprop train --help lists the options",
    "--compile": "unknown option --compile",
    "--lr 0.1": "unknown option --lr; did you mean --optimizer.lr?",
    "--learning-rate 0.1": "unknown option --learning-rate; did you mean --optimizer.lr?",
    "--method dtp --lr 0.1": "did you mean --decoder.lr or --optimizer.lr?",
    "optimizer.lr=0.1": "unexpected 'optimizer.lr=0.1'; write --optimizer.lr=0.1",
    "--config": "--config needs a value",
    "--method krylov --inversion.steps many": "--inversion.steps must be a whole number; got 'many'",
    "--config empty.yaml": "holds a value that is neither number, text nor",
    "--epochs": "--epochs needs a value",
    "--epochs 3 4": "--epochs must be a whole number",
    "--epochs 0": "epochs must be a whole number ≥ 1",
    "--epochs 2.5": "--epochs must be a whole number; got '2.5'",
    "--batch_size 10000000000": "--batch_size 10000000000 is too large; give at most 2147483647",
    "--optimizer.lr 1e300": "--optimizer.lr 1e+300 is too large",
    "--network.widths 4 10000000000": "--network.widths 10000000000 is too large",
    "--checkpoint_minutes -1": "checkpoint_minutes must be a number ≥ 0",
    "--seed -1": "seed must be a whole number from 0",
    "--out a b": "--out got 2 values",
    "stray": "unexpected 'stray'",
    "--cut middle": "--cut must be one of post-activation, pre-activation",
    "--propagation backprop": "--propagation must be one of layerwise, joint, top-down, composite",
    "--influence.normalise maybe": "--influence.normalise must be True or False",
    "--optimizer.lr -1": "optimizer.lr must be a number > 0",
    "--optimizer.lr nan": "optimizer.lr must be a finite number",
    "--optimizer.momentum 0.9": "--optimizer.name sgd has it",
    "--optimizer.name sgd --optimizer.momentum 1": "optimizer.momentum must be a number in [0, 1)",
    "--optimizer.name sgd --optimizer.momentum 0 --optimizer.nesterov true": "set optimizer.momentum > 0",
    "--optimizer.name adamw --optimizer.weight_decay -1": "optimizer.weight_decay must be a number ≥ 0",
    "--schedule.name linear --schedule.warmup 1": "schedule.warmup must be a fraction of all steps in [0, 1)",
    "--schedule.name step": "choose one of constant, linear, cosine",
    "--network.widths 8 0": "network.widths must be whole numbers ≥ 1",
    "--network.widths a": "--network.widths must be a list, each a whole number",
    "--network.activation than": "did you mean 'tanh'?",
    "--method dtp --decoder.lr 0": "--decoder.lr must be a learning rate > 0",
    "--data.root x": "--data.name mnist or cifar10 or folder has it",
    "--data.name mnist --data.root nowhere": "--data.root nowhere is not a folder",
    "--data.name folder --data.root nowhere": "--data.root nowhere is not a folder",
    "--propagation joint --inversion.rule difference": "joint sweeps are an input-space iteration",
    "--propagation joint --inversion.rule input-space --inversion.steps 1 --network.widths 8 8 8": "joint sweeps reach",
    "--config nowhere.yaml": "--config nowhere.yaml cannot be read",
    "--config bad.yaml": "is not valid YAML",
    "--config list.yaml": "must hold lines of the form 'name: value'",
    "--config unknown.yaml": "unknown option --epoch; did you mean --epochs?",
    "--config section.yaml": "its options are --inversion.rule",
    "--config value.yaml": "--batch_size must be a whole number; got 'many'",
    "--resume nowhere": "--resume nowhere is not a run folder",
    "--out full": "--out full is not empty and nothing is overwritten",
    "--out full/file": "--out full/file is not a folder",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_wrong_usage_ends_with_one_sentence_and_changes_nothing(tmp_path, capsys, arguments):
    for name, text in {
        "bad.yaml": "a: [",
        "empty.yaml": "deterministic: ''",
        "list.yaml": "- 1",
        "unknown.yaml": "epoch: 3",
        "section.yaml": "inversion: difference",
        "value.yaml": "batch_size: many",
    }.items():
        Path(name).write_text(text)
    Path("full").mkdir()
    Path("full/file").write_text("mine")
    before = hashes(tmp_path)
    assert run(*arguments.split()) == 2
    output = capsys.readouterr()
    assert REFUSED[arguments] in output.err
    assert output.err.startswith("targetprop: ") and output.err.count("\n") == 1 and not output.out
    assert hashes(tmp_path) == before and not Path("runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_absent_gpu_is_named(capsys):
    assert run("--device", "cuda") == 2
    assert "use --device cpu or auto" in capsys.readouterr().err


def test_run_that_diverges_is_marked_as_failed(capsys):
    assert run(*SMALL, "--optimizer.name", "sgd", "--optimizer.lr", "1e38", "--network.activation", "relu") == 1
    error = capsys.readouterr().err
    assert "the run in runs/l-drl-digits-s0 failed in epoch 1" in error and "Traceback" not in error
    summary = json.loads(Path("runs/l-drl-digits-s0/summary.json").read_text())
    assert summary["status"] == "failed" and "NaN or infinite" in summary["reason"] and summary["epochs"] == 0


def test_run_whose_loss_has_grown_says_so(capsys):
    assert run(*SMALL, "--method", "backprop", "--optimizer.name", "sgd", "--optimizer.lr", "30", "--out", "run") == 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["status"] == "finished" and summary["train_loss"] > 10
    assert f" to {summary['train_loss']:.3g}; lower --optimizer.lr" in summary["reason"]
    assert f"finished, but {summary['reason']}" in capsys.readouterr().out


def test_second_run_gets_its_own_folder():
    assert run(*SMALL) == 0
    before = hashes(Path("runs/l-drl-digits-s0"))
    assert run(*SMALL) == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["l-drl-digits-s0", "l-drl-digits-s0-2"]
    assert hashes(Path("runs/l-drl-digits-s0")) == before


@pytest.mark.pictures
def test_curves_are_drawn_from_the_folder_alone():
    assert run(*SMALL, "--out", "run") == 0
    drawn = Path("run/curves.png").read_bytes()
    Path("run/curves.png").unlink()
    for name in ("checkpoint.safetensors", "config.yaml"):
        Path("run", name).unlink()
    assert draw_curves(Path("run")).read_bytes() == drawn


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense_network_stacks_its_widths(activation):
    network = Dense([5, 7], activation).build((2, 3, 4), classes=6)
    maps = [module for module in network if isinstance(module, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in maps] == [(24, 5), (5, 7), (7, 6)]
    assert [type(network[i]) for i in (2, 4)] == [type(ACTIVATIONS[activation]())] * 2
    assert network(torch.rand(8, 2, 3, 4)).shape == (8, 6)


def test_methods_are_listed_with_their_parts(capsys):
    assert main(["methods"]) == 0
    short = capsys.readouterr().out
    assert [line.split()[0] for line in short.splitlines() if line[0] != " "] == list(tp.METHODS)
    assert max(map(len, short.splitlines())) <= 80
    assert main(["methods", "--verbose"]) == 0
    assert "output-space" in capsys.readouterr().out
    assert main(["methods", "--all"]) == 2
    assert "its options are --verbose" in capsys.readouterr().err


def test_commands(capsys):
    assert main([]) == 2
    assert "train" in capsys.readouterr().out
    assert main(["--help"]) == 0 and main(["--version"]) == 0
    assert capsys.readouterr().out.endswith(f"targetprop {tp.__version__}\n")
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "targetprop: unknown command 'trian'; did you mean 'train'?\n"


def test_missing_extra_is_named(monkeypatch, capsys):
    def absent(name):
        raise ModuleNotFoundError("no rich", name="rich.console")

    monkeypatch.setattr(main_module, "import_module", absent)
    assert main(["train"]) == 1
    assert "pip install 'targetprop[experiments]'" in capsys.readouterr().err


WRONG_FILES = {
    "a: &x 1\nb: *x\n": "aliases are not supported",
    "epochs: 1\nseed: 2\nepochs: 3\n": "epochs is given twice",
    "data: {limit: 1, limit: 2}\n": "limit is given twice",
    "[" * 5000: "nested too deeply",
    'out: "\\ud800"\n': "holds a value that is neither number, text nor",
    "? [1, 2]\n: 3\n": "is not valid YAML",
    "out: !!python/object:os.system {}\n": "holds a value that is neither number, text nor",
    "- 1\n": "must hold lines of the form 'name: value'",
    "\0": "is not valid YAML",
}


@pytest.mark.parametrize("text", WRONG_FILES, ids=lambda text: text[:12].encode("unicode_escape").decode())
def test_what_a_configuration_file_may_not_hold(capsys, text):
    Path("c.yaml").write_text(text)
    assert run("--config", "c.yaml", "--print_config") == 2
    error = capsys.readouterr().err
    assert WRONG_FILES[text] in error and "c.yaml" in error and error.count("\n") == 1
