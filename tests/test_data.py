"""Data sources: values as written, fixed splits, and a sentence for everything that is wrong with a file."""

import gzip
import struct
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from targetprop.experiments.build import build
from targetprop.experiments.data import Dataset, Digits, Folder, Mnist, stratified_split
from targetprop.experiments.data.idx import read_idx
from targetprop.experiments.errors import CommandError
from targetprop.experiments.loop import run_epoch
from targetprop.experiments.parser import build_config

NAMES = {
    "train_x": "train-images-idx3-ubyte",
    "train_y": "train-labels-idx1-ubyte",
    "test_x": "t10k-images-idx3-ubyte",
    "test_y": "t10k-labels-idx1-ubyte",
}


def idx_bytes(values: torch.Tensor) -> bytes:
    sizes = struct.pack(f">{values.dim()}I", *values.shape)
    return bytes([0, 0, 8, values.dim()]) + sizes + bytes(values.flatten().tolist())


def write_mnist(folder: Path, *, zipped: bool, **changes: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    parts = {
        "train_x": torch.randint(0, 256, (30, 5, 4), generator=generator, dtype=torch.uint8),
        "train_y": torch.arange(30, dtype=torch.uint8) % 10,
        "test_x": torch.randint(0, 256, (10, 5, 4), generator=generator, dtype=torch.uint8),
        "test_y": torch.arange(10, dtype=torch.uint8),
    } | changes
    folder.mkdir(parents=True, exist_ok=True)
    for part, values in parts.items():
        content = idx_bytes(values)
        (folder / (NAMES[part] + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    return parts


def write_image(path: Path, mode: str, size: tuple[int, int], value: int | tuple[int, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def test_digits_are_scaled_and_split_alike_every_time():
    first, second = Digits().load(), Digits().load()
    assert first.shape == (1, 8, 8) and first.classes == 10
    assert len(first.train_y) + len(first.test_y) == 1797
    assert first.train_x.min() == 0 and first.train_x.max() == 1
    assert torch.equal(first.test_x, second.test_x) and torch.equal(first.train_y, second.train_y)
    shares = first.test_y.bincount() / (first.test_y.bincount() + first.train_y.bincount())
    assert (shares - 0.2).abs().max() < 0.005


def test_stratified_split_is_a_partition_with_every_class_on_both_sides():
    y = torch.tensor([0] * 10 + [1] * 3 + [2] * 2)
    train, test = stratified_split(y, 0.2, seed=3)
    assert torch.cat([train, test]).sort().values.tolist() == list(range(15))
    assert y[test].bincount().tolist() == [2, 1, 1]
    assert not torch.equal(test, stratified_split(y, 0.2, seed=4)[1])


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["MNIST/raw", "."])
def test_mnist_is_read_as_written(tmp_path, place, zipped):
    written = write_mnist(tmp_path / place, zipped=zipped)
    data = Mnist(root=str(tmp_path)).load()
    assert torch.equal((data.train_x * 255).round().to(torch.uint8).squeeze(1), written["train_x"])
    assert torch.equal(data.test_y, written["test_y"].long())
    assert data.train_x.dtype == torch.float32 and data.train_x.max() <= 1


def test_idx_rejects_every_damage_and_names_the_file(tmp_path):
    good = idx_bytes(torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4))
    zipped = gzip.compress(good)
    cases = {
        "cut": good[:-1],
        "long": good + b"x",
        "head": good[:9],
        "empty": b"",
        "magic": b"\x00\x00\x0d\x03" + good[4:],
        "cut.gz": zipped[: len(zipped) // 2],
        "flipped.gz": zipped[:-8] + bytes([zipped[-8] ^ 1]) + zipped[-7:],
        "plain.gz": good,
    }
    for name, content in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(CommandError, match="fetch the file again") as caught:
            read_idx(path, 3)
        assert str(path) in str(caught.value) and caught.value.status == 1
    (tmp_path / "good").write_bytes(good)
    assert torch.equal(read_idx(tmp_path / "good", 3), torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4))


def test_mnist_says_which_file_is_missing_and_where_it_looked(tmp_path):
    with pytest.raises(CommandError, match=r"not a folder.*MNIST"):
        Mnist(root=str(tmp_path / "nowhere")).load()
    write_mnist(tmp_path, zipped=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(CommandError, match=r"t10k-labels-idx1-ubyte.gz is neither in .*unpack MNIST there"):
        Mnist(root=str(tmp_path)).load()


def test_mnist_rejects_wrong_labels_counts_and_sizes(tmp_path):
    cases = {
        "labels 0…10": {"test_y": torch.arange(1, 11, dtype=torch.uint8) % 11 * torch.tensor([0] + [1] * 9).byte()},
        "30 training inputs and 29 labels": {"train_y": torch.zeros(29, dtype=torch.uint8)},
        "differ in size": {"test_x": torch.zeros(10, 4, 4, dtype=torch.uint8)},
    }
    for number, (message, change) in enumerate(cases.items()):
        write_mnist(tmp_path / str(number), zipped=False, **change)
        with pytest.raises(CommandError, match=message):
            Mnist(root=str(tmp_path / str(number))).load()


def test_dataset_rejects_nan():
    x, y = torch.zeros(3, 1, 2, 2), torch.zeros(3, dtype=torch.long)
    with pytest.raises(CommandError, match="NaN or infinite test inputs"):
        Dataset(x, y, x.clone().fill_(float("nan")), y, 1, "it")


def test_folder_with_its_own_split(tmp_path):
    for i in range(3):
        write_image(tmp_path / "train" / "cat" / f"{i}.png", "L", (6, 4), 51 * i)
        write_image(tmp_path / "train" / "dog" / f"{i}.png", "L", (6, 4), 255)
    write_image(tmp_path / "test" / "dog" / "a.png", "L", (3, 2), 102)
    data = Folder(root=str(tmp_path)).load()
    assert data.shape == (1, 4, 6) and data.classes == 2
    assert data.train_y.tolist() == [0, 0, 0, 1, 1, 1] and data.test_y.tolist() == [1]
    assert torch.allclose(data.train_x[:, 0, 0, 0], torch.tensor([0.0, 0.2, 0.4, 1.0, 1.0, 1.0]))
    assert torch.allclose(data.test_x, torch.full((1, 1, 4, 6), 0.4))


def test_folder_of_colour_images_is_split_by_class(tmp_path):
    for i in range(5):
        write_image(tmp_path / "red" / f"{i}.png", "RGB", (8, 8), (255, 0, 51))
        write_image(tmp_path / "grey" / f"{i}.jpg", "L", (8, 8), 128)
    data = Folder(root=str(tmp_path), size=4).load()
    assert data.shape == (3, 4, 4)
    assert data.test_y.tolist() == [0, 1] and len(data.train_y) == 8
    assert torch.allclose(data.test_x[1, :, 0, 0], torch.tensor([1.0, 0.0, 0.2]))
    assert (data.test_x[0] - 128 / 255).abs().max() < 0.01


def test_folder_says_what_is_wrong(tmp_path):
    with pytest.raises(CommandError, match="no class folders"):
        Folder(root=str(tmp_path)).load()
    write_image(tmp_path / "a" / "0.png", "L", (2, 2), 0)
    with pytest.raises(CommandError, match="a class needs two or more"):
        Folder(root=str(tmp_path)).load()
    write_image(tmp_path / "a" / "1.png", "L", (2, 2), 0)
    (tmp_path / "b").mkdir()
    with pytest.raises(CommandError, match="holds no images"):
        Folder(root=str(tmp_path)).load()
    damaged = tmp_path / "a" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    (tmp_path / "b").rmdir()
    with pytest.raises(CommandError, match=r"1.png is no readable image"):
        Folder(root=str(tmp_path)).load()
    write_image(tmp_path / "a" / "1.png", "I;16", (2, 2), 7)
    with pytest.raises(CommandError, match="convert it to 8-bit"):
        Folder(root=str(tmp_path)).load()
    (tmp_path / "a").rename(tmp_path / "train")
    with pytest.raises(CommandError, match="none called test"):
        Folder(root=str(tmp_path)).load()


def test_held_out_samples_come_from_every_class_and_are_not_trained_on():
    whole, data = Digits().load(), Digits(validation=0.25, normalise=True).load()
    assert data.validation_x is not None and data.validation_y is not None and whole.validation_x is None
    assert len(data.train_x) + len(data.validation_x) == len(whole.train_x)
    counts = [torch.bincount(y, minlength=10) for y in (data.validation_y, whole.train_y)]
    assert counts[0].tolist() == [round(0.25 * int(n)) for n in counts[1]]
    assert float(data.train_x.mean()) == pytest.approx(0, abs=1e-5), "the scale is that of what is trained on"
    assert abs(float(data.validation_x.mean())) > 1e-4 and data.validation_x.mean().abs() < 0.1
    kept, held = ({tuple(row) for row in x.flatten(1).tolist()} for x in (data.train_x, data.validation_x))
    assert not kept & held
    with pytest.raises(ValueError, match=r"data.validation must be a share in \[0, 1\); got 1.0"):
        Digits(validation=1.0)


def test_an_epoch_ends_with_the_loss_on_what_was_held_out():
    config = build_config({"data.validation": "0.2", "data.limit": "300", "network.widths": "5", "precision": "fp64"})
    state, data = build(config)
    assert data.validation_x is not None and data.validation_y is not None and data.validation_x.dtype == torch.double

    class Silent:
        def on_step(self, record): ...

        on_skip = on_step

    record = run_epoch(state, data, 100, 50, Silent())
    with torch.no_grad():
        output = state.model(data.validation_x)
    assert record["validation_loss"] == pytest.approx(float(cross_entropy(output, data.validation_y)))
    right = (output.argmax(1) == data.validation_y).double().mean()
    assert record["validation_accuracy"] == pytest.approx(float(right))
