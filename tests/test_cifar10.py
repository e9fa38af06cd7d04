"""CIFAR-10's files, and how images are normalised, limited and varied; a resumed run repeats the same crops."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from targetprop.experiments.data import SOURCES, Augmentation, Cifar10, Dataset, Digits
from targetprop.experiments.data.augment import crop_images
from targetprop.experiments.errors import CommandError
from targetprop.experiments.main import main
from targetprop.experiments.networks import Dense

NAMES = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]


def write_cifar10(folder: Path, count: int = 4) -> dict[str, np.ndarray]:
    """Write random records, and return them by file."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    written = {name: generator.integers(0, 256, (count, 3073), dtype=np.uint8) for name in NAMES}
    for name, records in written.items():
        records[:, 0] %= 10
        records.tofile(folder / name)
    return written


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("place", ["cifar-10-batches-bin", "."])
def test_files_are_read_as_written(tmp_path, place):
    written = write_cifar10(tmp_path / place)
    data = Cifar10(root=str(tmp_path), normalise=False, crop=0, flip=False).load()
    assert data.train_x.shape == (20, 3, 32, 32) and data.test_x.shape == (4, 3, 32, 32)
    assert data.train_x.dtype == torch.float32 and data.classes == 10
    record = written["data_batch_3.bin"][1]
    for channel, row, column in ((0, 0, 0), (1, 2, 5), (2, 31, 30)):
        byte = record[1 + 1024 * channel + 32 * row + column]
        assert float(data.train_x[9, channel, row, column]) == pytest.approx(byte / 255, abs=1e-7)
    labels = np.concatenate([written[name][:, 0] for name in NAMES[:5]])
    assert data.train_y.tolist() == labels.tolist()
    assert data.test_y.tolist() == written["test_batch.bin"][:, 0].tolist()


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(CommandError, match=r"nowhere is not a folder.*CIFAR-10"):
        Cifar10(root=str(tmp_path / "nowhere")).load()
    write_cifar10(tmp_path)
    good = (tmp_path / NAMES[1]).read_bytes()
    foreign = bytearray(good)
    foreign[3073] = 10
    for content, problem in (
        (good[:-1], "holds 12291 bytes, which is no whole number of records of 3073 bytes"),
        (b"", "holds 0 bytes, which"),
        (bytes(foreign), "has label 10 where CIFAR-10 has 0…9"),
    ):
        (tmp_path / NAMES[1]).write_bytes(content)
        with pytest.raises(CommandError, match=rf"data_batch_2.bin {problem}.*; fetch the file again$") as caught:
            Cifar10(root=str(tmp_path)).load()
        assert caught.value.status == 1
    (tmp_path / NAMES[1]).unlink()
    with pytest.raises(CommandError, match=r"data_batch_2.bin is neither in .*batches-bin nor in .*cifar-10-binary"):
        Cifar10(root=str(tmp_path)).load()


def test_normalisation_uses_the_training_set_channel_by_channel():
    x, y = torch.rand(50, 3, 4, 5, generator=seeded()), torch.zeros(50, dtype=torch.long)
    x[:, 1] = 0.25
    data = Dataset(x, y, x[:10] + 1, y[:10], 1, "it").normalised()
    for channel in (0, 2):
        mean, std = x[:, channel].mean(), x[:, channel].std(correction=0)
        torch.testing.assert_close(data.train_x[:, channel], (x[:, channel] - mean) / std)
        torch.testing.assert_close(data.test_x[:, channel], (x[:10, channel] + 1 - mean) / std)
    assert data.train_x[:, 1].abs().max() == 0 and torch.allclose(data.test_x[:, 1], torch.tensor(1.0))


def test_limit_is_spread_over_the_training_set():
    whole, part = Digits().load(), Digits(limit=100).load()
    assert len(part.train_x) == 100 and torch.equal(part.test_x, whole.test_x)
    assert torch.equal(part.train_x, whole.train_x[torch.arange(100) * len(whole.train_x) // 100])
    assert torch.equal(Digits(limit=9999).load().train_x, whole.train_x)


def test_crops_are_the_slices_of_the_padded_image():
    images = torch.rand(81, 2, 6, 5, generator=seeded())
    down, right = (torch.cartesian_prod(torch.arange(9), torch.arange(9))).T
    padded = torch.zeros(81, 2, 14, 13)
    padded[:, :, 4:10, 4:9] = images
    found = crop_images(images, 4, down, right)
    for i, (a, b) in enumerate(zip(down.tolist(), right.tolist(), strict=True)):
        assert torch.equal(found[i], padded[i, :, a : a + 6, b : b + 5])
    assert torch.equal(crop_images(images, 4, torch.full((81,), 4), torch.full((81,), 4)), images)


def test_every_crop_and_both_orientations_are_drawn_alike_often():
    image = torch.arange(1.0, 17).reshape(1, 1, 4, 4)
    varied = Augmentation(crop=1, flip=True).begin_epoch(seeded(), torch.device("cpu"))(image.expand(9000, 1, 4, 4))
    kinds, counts = varied.flatten(1).unique(dim=0, return_counts=True)
    places = torch.cartesian_prod(torch.arange(3), torch.arange(3)).T
    pieces = crop_images(image.expand(9, 1, 4, 4), 1, *places)
    expected = torch.cat([pieces, pieces.flip(3)]).flatten(1).unique(dim=0)
    assert torch.equal(kinds, expected) and len(kinds) == 18
    assert (counts - 500).abs().max() < 5 * 500**0.5


def test_augmentation_is_repeated_by_its_seed_and_differs_between_epochs_and_samples():
    images = torch.rand(1, 1, 8, 8, generator=seeded()).expand(64, 1, 8, 8)
    seeds, cpu = seeded(3), torch.device("cpu")
    augmentation = Augmentation(crop=2)
    first, second = (augmentation.begin_epoch(seeds, cpu)(images) for _ in range(2))
    assert torch.equal(first, augmentation.begin_epoch(seeded(3), cpu)(images))
    assert not torch.equal(first, second) and len(first.unique(dim=0)) > 10


def test_without_augmentation_nothing_is_drawn():
    seeds, images = seeded(5), torch.rand(2, 1, 3, 3)
    assert Augmentation().begin_epoch(seeds, torch.device("cpu"))(images) is images
    assert torch.equal(seeds.get_state(), seeded(5).get_state())


def test_defaults_and_their_reach(capsys):
    for name, settings in ((n, s()) for n, s in SOURCES.items()):
        on = name == "cifar10"
        assert (settings.normalise, settings.crop, settings.flip) == (on, 4 * on, on) and settings.limit is None
    assert main("train --data.name cifar10 --data.crop 2 --data.limit 300 --print_config".split()) == 0
    section = yaml.safe_load(capsys.readouterr().out)["data"]
    assert section == {
        "name": "cifar10",
        "limit": 300,
        "normalise": True,
        "crop": 2,
        "flip": True,
        "root": "data",
        "validation": 0.0,
    }
    assert Digits(crop=1, flip=True).load().augmentation == Augmentation(crop=1, flip=True)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.limit 0", "data.limit must be null or a whole number ≥ 1; got 0"),
        ("--data.crop -1", "data.crop must be a whole number ≥ 0; got -1"),
        ("--data.crop 1.5", "--data.crop must be a whole number; got '1.5'"),
        ("--data.flip maybe", "--data.flip must be True or False"),
    ],
)
def test_bad_options_give_one_sentence(capsys, option, message):
    assert main(["train", *option.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_training_sees_varied_images_and_evaluation_the_images_as_they_are(tmp_path):
    words = "train --method backprop --network.widths 8 --batch_size 256 --device cpu --data.crop 2 --data.flip true"
    assert main([*words.split(), "--epochs", "2", "--out", str(tmp_path / "run")]) == 0
    torch.manual_seed(0)
    data, model = Digits().load(), Dense([8]).build((1, 8, 8), 10)
    optimizer, seeds, loss = torch.optim.Adam(model.parameters()), seeded(), nn.CrossEntropyLoss()
    for _ in range(2):
        order = torch.randperm(len(data.train_x), generator=seeds)
        vary = Augmentation(crop=2, flip=True).begin_epoch(seeds, torch.device("cpu"))
        for batch in order.split(256):
            optimizer.zero_grad()
            loss(model(vary(data.train_x[batch])), data.train_y[batch]).backward()
            optimizer.step()
    saved = load_file(tmp_path / "run" / "checkpoint.safetensors")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(saved[f"model/{name}"], value)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test_loss"] == pytest.approx(loss(model(data.test_x), data.test_y).item(), rel=1e-5)


def test_augmented_run_resumes_bit_for_bit(tmp_path):
    base = "train --method backprop --network.widths 8 --batch_size 256 --device cpu --data.limit 600".split()
    varied = [*base, "--data.crop", "2", "--data.flip", "true", "--data.normalise", "true"]
    whole, parts, plain = (str(tmp_path / name) for name in ("whole", "parts", "plain"))
    assert main([*varied, "--epochs", "4", "--out", whole]) == 0
    assert main([*varied, "--epochs", "2", "--out", parts]) == 0
    assert main(["train", "--resume", parts, "--epochs", "4"]) == 0
    assert main([*base, "--data.normalise", "true", "--epochs", "4", "--out", plain]) == 0
    one, two, three = (load_file(f"{run}/checkpoint.safetensors") for run in (whole, parts, plain))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], three[name]) for name in one)


@pytest.mark.parametrize("method", ["l-drl", "backprop"])
def test_the_recipe_for_an_accelerator_runs_at_tiny_size(tmp_path, method):
    write_cifar10(tmp_path, 8)
    recipe = Path(__file__).parents[1] / "benchmarks" / "cifar10_vgg" / "config.yaml"
    words = ["train", "--config", str(recipe), "--data.root", str(tmp_path), "--method", method, "--device", "cpu"]
    words += "--epochs 2 --batch_size 16 --network.channels 4 4 --log_every 1 --out".split()
    assert main([*words, str(tmp_path / "run")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [row["lr"] for row in rows if row["kind"] == "step"]
    assert len(rates) == 6 and max(rates) == 0.05 and rates[-1] < 0.01
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"
