"""A transformer trained end to end: a character-level GPT on Python's own library, by several methods side by side.

    python benchmarks/char_gpt.py --out benchmarks/results/char_gpt.json          # 1,000 steps of each
    python benchmarks/char_gpt.py --steps 5 --layers 2 --width 32 --batch 4       # a look at it
    python benchmarks/char_gpt.py --figure docs/images/char_gpt.png --read benchmarks/results/char_gpt.json

The text is the ``.py`` files of the standard library in alphabetical order, ASCII alone; its last tenth is for
validation. All methods start from the same weights, see the same batches and take AdamW's steps at the same rate. Times
are of whole steps, a method after the other; on a shared machine only their order of magnitude means anything.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

import torch
from torch import Tensor
from torch.nn import functional

import targetprop as tp
from targetprop.bench.problems.characters import Gpt, library_text

EVERY = 50


def loss(logits: Tensor, following: Tensor) -> Tensor:
    """Compare with the characters that follow."""
    return functional.cross_entropy(logits.flatten(0, 1), following.flatten())


def encode(text: str, alphabet: list[str]) -> Tensor:
    """Number the characters."""
    table = torch.zeros(128, dtype=torch.long)
    table[torch.tensor([ord(c) for c in alphabet])] = torch.arange(len(alphabet))
    return table[torch.frombuffer(bytearray(text.encode("ascii")), dtype=torch.uint8).long()]


def batch_of(codes: Tensor, count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw windows and the characters that follow."""
    starts = torch.randint(len(codes) - length - 1, (count,), generator=generator)
    rows = starts.unsqueeze(1) + torch.arange(length + 1)
    windows = codes[rows.to(codes.device)]
    return windows[:, :-1], windows[:, 1:]


def train(name: str, seed: int, codes: tuple[Tensor, Tensor], characters: int, a: argparse.Namespace) -> dict:
    """Train by one method; returns losses by step."""
    torch.manual_seed(seed)
    device = codes[0].device
    model = Gpt(characters, a.length, a.width, a.layers, a.heads, a.dropout).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=a.rate)
    generator, losses, checks = torch.Generator().manual_seed(seed), [], {}
    engine = None
    if name != "backprop":
        example = codes[0][: 2 * a.length].view(2, -1)
        engine = tp.TargetPropagation(model, loss, example_input=example, method=name, seed=seed)
    torch.manual_seed(seed + 1)
    begun = time.perf_counter()
    for step in range(1, a.steps + 1):
        x, y = batch_of(codes[0], a.batch, a.length, generator)
        optimizer.zero_grad()
        if engine is None:
            value = loss(model(x), y)
            value.backward()
        else:
            value = engine.backward(x, y).loss
        optimizer.step()
        losses.append(value.detach())
        if step % EVERY == 0 or step == a.steps:
            checks[step] = validate(model, codes[1], a)
            print(f"{name} seed {seed} step {step}: {float(value.detach()):.3f}, {checks[step]:.3f}", file=sys.stderr)
    seconds = (time.perf_counter() - begun) / a.steps
    return {
        "losses": [round(float(value), 5) for value in losses],
        "validation": checks,
        "final": sum(map(float, losses[-100:])) / len(losses[-100:]),
        "seconds_per_step": seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


@torch.no_grad()
def validate(model: Gpt, codes: Tensor, a: argparse.Namespace) -> float:
    """Measure the loss on the same windows every time, without dropout and without touching the random numbers."""
    generator = torch.Generator().manual_seed(0)
    model.eval()
    found = [float(loss(model(x), y)) for x, y in (batch_of(codes, 64, a.length, generator) for _ in range(8))]
    model.train()
    return sum(found) / len(found)


def draw(read: Path, figure: Path) -> None:
    """Draw training loss, smoothed, and validation loss by step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = json.loads(read.read_text())
    drawn, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, constrained_layout=True)
    for colour, (name, runs) in zip(
        ("black", "tab:blue", "tab:orange", "tab:green"), found["runs"].items(), strict=False
    ):
        for seed, run in enumerate(runs):
            means = [sum(run["losses"][max(0, i - 24) : i + 1]) / min(i + 1, 25) for i in range(len(run["losses"]))]
            axes[0].plot(range(1, len(means) + 1), means, color=colour, lw=1, label=name if seed == 0 else None)
            axes[1].plot(
                *zip(*((int(k), v) for k, v in run["validation"].items()), strict=True), ".-", color=colour, lw=1
            )
    for ax, title in zip(axes, ("training loss, mean of 25 steps", "validation loss"), strict=True):
        ax.set(title=title, xlabel="step", yscale="log")
        ax.set_yticks(ticks := [1.5, 2, 2.5, 3, 4], [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    axes[0].legend()
    drawn.savefig(figure, dpi=130)


def main() -> None:
    """Run the methods, or draw what was run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["backprop", "l-drl", "krylov"])
    for name, value in (("steps", 1000), ("batch", 32), ("length", 128), ("width", 128), ("layers", 4), ("heads", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--size", type=int, default=2_000_000, help="characters of text")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--read", type=Path, help="results to draw")
    parser.add_argument("--figure", type=Path)
    a = parser.parse_args()
    if a.figure and a.read:
        draw(a.read, a.figure)
        return
    text = library_text(a.size)
    alphabet = sorted(set(text))
    codes = encode(text, alphabet).to(a.device)
    parts = codes[: len(codes) * 9 // 10], codes[len(codes) * 9 // 10 :]
    runs = {m: [train(m, seed, parts, len(alphabet), a) for seed in a.seeds] for m in a.methods}
    device = torch.cuda.get_device_name() if a.device == "cuda" else "cpu"
    settings = {k: v for k, v in vars(a).items() if k not in ("out", "read", "figure")}
    for name, found in runs.items():
        means = [sum(r[k] for r in found) / len(found) for k in ("final", "seconds_per_step")]
        checks = sum(list(r["validation"].values())[-1] for r in found) / len(found)
        print(f"{name:12} training {means[0]:.4f}  validation {checks:.4f}  {1e3 * means[1]:.1f} ms a step")
    if a.out:
        record = {"device": device, "torch": torch.__version__, "settings": settings, "characters": len(alphabet)}
        a.out.write_text(json.dumps(record | {"runs": runs}) + "\n")


if __name__ == "__main__":
    main()
