"""Models as they are written, trained by back-propagation and by methods of the library: loss, cosine, time of a step.

    OMP_NUM_THREADS=1 python benchmarks/models.py --root DIR --out benchmarks/results/models.json
    python benchmarks/models.py --root DIR --steps 3 --only hf_gpt2 unet

DIR is where CIFAR-10's binary version lies; text is that of Python's own standard library. The models come from the
transformers library (from configurations, nothing is downloaded) and from tests/zoo. All sides start from the same
weights and see the same batches and dropout masks; the optimiser is AdamW at 1e-3. They take steps in turn, and the
time is the median of a step's. A loss is the mean over the last 20 steps. The cosine is the least of a parameter
tensor's gradient to back-propagation's in the last step, both for the method's weights; tensors whose gradient is below
a millionth of the largest are left out.
"""

import argparse
import copy
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map

import targetprop as tp
from real_data import KINDS, VOCAB, RealData
from targetprop.experiments.build import find_device
from targetprop.layers.inputs import call
from zoo import attention, dense, gpt, modern, recurrent, vision


def hf(name: str, **settings: Any) -> Callable[[], nn.Module]:
    """Build a model of the transformers library from its configuration."""
    return lambda: getattr(transformers, name)(getattr(transformers, name).config_class(**settings))


def altered(model: nn.Module, name: str, part: Any) -> nn.Module:
    """Give a model another part than its class makes."""
    setattr(model, name, part)
    return model


def loss_of(out: Any, y: Tensor | None) -> Tensor:
    """Compute the loss, or take the model's own."""
    if y is None:
        return out[1] if isinstance(out, tuple) else out.loss
    return functional.cross_entropy(out if isinstance(out, Tensor) else out.logits, y)


WIDE = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "num_hidden_layers": 3}
TEXT, N, PIXELS = {"vocab_size": VOCAB, "max_position_embeddings": 64}, len(KINDS), ("pixel_values",)
GPT2 = {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2}
RESNET = {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [2, 2], "layer_type": "basic", "num_labels": 10}
T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
IMAGES, FOLLOWING, LABELLED = (RealData.images, {}), (RealData.texts, {"gap": 1}), ("input_ids", "labels")
SMALL, HALVES = (RealData.images, {"size": 8, "grey": True}), (RealData.texts, {"length": 24, "gap": 24})
TEXTS, NEXT, KINDS_ALONE = (RealData.texts, {}), (RealData.next_kind, {}), (RealData.kinds_in_a_row, {})
# How a model is made, what it is trained on, and what it calls its inputs, and labels if it computes its own loss.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[Callable[..., Any], dict[str, Any]], tuple[str, ...]]] = {
    "hf_gpt2": (hf("GPT2LMHeadModel", **GPT2), TEXTS, LABELLED),
    "hf_bert": (hf("BertForSequenceClassification", **WIDE, **TEXT, num_labels=N), NEXT, LABELLED),
    "hf_vit": (hf("ViTForImageClassification", **WIDE, image_size=16, patch_size=4, num_labels=10), IMAGES, PIXELS),
    "hf_resnet": (hf("ResNetForImageClassification", **RESNET), (RealData.images, {"size": 32}), PIXELS),
    "hf_llama": (hf("LlamaForCausalLM", **WIDE, **TEXT, num_key_value_heads=2), TEXTS, LABELLED),
    "hf_t5": (hf("T5ForConditionalGeneration", **T5, vocab_size=VOCAB), HALVES, LABELLED),
    "cnn_tutorial": (vision.TutorialCNN, IMAGES, ()),
    "resnet": (lambda: vision.ResNet(width=8), IMAGES, ()),
    "vgg": (lambda: vision.VGG((16, "M", 32, 32, "M", 64, "M")), IMAGES, ()),
    "densenet": (vision.DenseNet, IMAGES, ()),
    "convnext": (lambda: modern.ConvNeXt(dim=32), IMAGES, ()),
    "mobilenet": (modern.MobileNet, IMAGES, ()),
    "unet": (lambda: modern.UNet(width=8), (RealData.noisy, {}), ()),
    "vit": (lambda: attention.ViT(dim=64, depth=3), IMAGES, ()),
    "mlp_mixer": (lambda: altered(dense.MLPMixer(dim=32), "head", nn.Linear(32, 10)), SMALL, ()),
    "gpt_fused": (lambda: gpt.GPT(gpt.GPTConfig(48, VOCAB, 3, 4, 64)), FOLLOWING, ("idx", "targets")),
    "transformer_encoder": (lambda: altered(
        attention.EncoderClassifier(VOCAB, 32, N), "pos", nn.Parameter(torch.randn(32, 32) / 10)), NEXT, ()),
    "lstm": (lambda: recurrent.LSTMClassifier(VOCAB, 32, 64, N), NEXT, ()),
    "gru_bidirectional": (lambda: recurrent.BiGRU(32, N), KINDS_ALONE, ()),
    "rnn_own_cell": (lambda: recurrent.OwnRNN(64, N), KINDS_ALONE, ()),
}  # fmt: skip
ROW = "{model:<20}{method:<15}{seed:>4}{parameters:>8}{layers:>7}{backprop_loss:>10.4f}{loss:>8.4f}{ratio:>7.3f}"
ROW += "{least_cosine:>8.3f}{backprop_seconds:>11.4f}{seconds:>9.4f}"
TITLES = "model               method         seed  params layers  backprop    loss  ratio  cosine backprop s method s"


class Side:
    """A model with its optimiser and, unless it is back-propagation's, an engine."""

    def __init__(self, model: nn.Module, method: Any, example: Any, seed: int) -> None:
        """Start the optimiser."""
        self.model, self.losses, self.seconds = model, [], []
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        self.engine = method and tp.TargetPropagation(model, loss_of, example_input=example, method=method, seed=seed)

    def gradients(self, x: Any, y: Any, seed: int, *, plain: bool = False) -> tuple[float, dict[str, Tensor]]:
        """Fill ``.grad`` and return it with the loss."""
        torch.manual_seed(seed)
        self.optimizer.zero_grad()
        if self.engine is not None and not plain:
            loss = self.engine.backward(x, y).loss
        else:
            loss = loss_of(call(self.model, x), y)
            loss.backward()
        return float(loss.detach()), {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}

    def step(self, x: Any, y: Any, seed: int) -> None:
        """Take a step, and time it."""
        start = time.perf_counter()
        self.losses.append(self.gradients(x, y, seed)[0])
        self.optimizer.step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - start)

    def cosines(self, x: Any, y: Any, seed: int) -> dict[str, float]:
        """Compare the method's gradients with back-propagation's by parameter tensor; the weights stay."""
        found, plain = self.gradients(x, y, seed)[1], self.gradients(x, y, seed, plain=True)[1]
        sizes = {name: float(g.norm()) for name, g in plain.items()}
        kept = [name for name, size in sizes.items() if size > 1e-6 * max(sizes.values())]
        pairs = {name: [g.double().flatten() for g in (found.get(name, 0 * plain[name]), plain[name])] for name in kept}
        return {name: float(functional.cosine_similarity(*pair, dim=0)) for name, pair in pairs.items()}


def train(name: str, methods: list[Any], data: RealData, arguments: Any, seed: int) -> list[dict[str, Any]]:
    """Train a model by back-propagation and by methods, which may be names or recipes; a row for each method."""
    make, (draw, settings), keys = MODELS[name]
    generator, device = torch.Generator().manual_seed(seed), find_device(arguments.device)

    def batch() -> tuple[Any, Any]:
        x, y = tree_map(lambda t: t.to(device), draw(data, arguments.batch, generator, **settings))
        named = dict(zip(keys, (x, y), strict=False))
        return named or x, None if len(named) == 2 else y

    torch.manual_seed(seed)
    model, (x, _) = make().train().to(device), batch()
    sides = [Side(copy.deepcopy(model), method, x, seed) for method in (None, *methods)]
    for step in range(arguments.steps):
        x, y = batch()
        cosines = [side.cosines(x, y, step) for side in sides[1:]] if step == arguments.steps - 1 else []
        for side in sides:
            side.step(x, y, step)
    rows = []
    for method, side, by_tensor in zip(methods, sides[1:], cosines, strict=True):
        losses = [statistics.mean(s.losses[-20:]) for s in (sides[0], side)]
        least = min(by_tensor, key=by_tensor.__getitem__)
        rows.append({
            "model": name, "method": str(method), "seed": seed, "layers": len(side.engine.network),
            "parameters": sum(p.numel() for p in model.parameters()), "backprop_loss": losses[0], "loss": losses[1],
            "ratio": losses[1] / losses[0], "least_cosine": by_tensor[least], "least_tensor": least,
            "backprop_seconds": statistics.median(sides[0].seconds), "seconds": statistics.median(side.seconds),
        })  # fmt: skip
    return rows


def main() -> None:
    """Train all models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder that holds cifar-10-batches-bin")
    parser.add_argument("--methods", nargs="+", default=["l-drl"], choices=list(tp.METHODS)[:-1], help="methods")
    parser.add_argument("--only", nargs="+", default=list(MODELS), choices=list(MODELS), help="models; all if left out")
    parser.add_argument("--steps", type=int, default=200, help="training steps")
    parser.add_argument("--batch", type=int, default=32, help="samples per step")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to train")
    parser.add_argument("--out", type=Path, default=os.devnull, help="write the result as JSON here, after every model")
    parser.add_argument("--note", default="", help="what to know of this copy of the data; kept in the result")
    arguments = parser.parse_args()
    cuda = find_device(arguments.device).type == "cuda"
    place = torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {torch.get_num_threads()} threads"
    settings = {key: value for key, value in vars(arguments).items() if key not in ("root", "out")}
    result = {"where": place, "torch": torch.__version__, "transformers": transformers.__version__}
    result |= {"python": platform.python_version(), "settings": settings, "rows": [], "failed": {}}
    transformers.logging.set_verbosity_error()
    data = RealData(arguments.root)
    for name, seed in itertools.product(arguments.only, arguments.seeds):
        print(f"{name}, seed {seed} …", file=sys.stderr, flush=True)
        try:
            result["rows"] += (rows := train(name, arguments.methods, data, arguments, seed))
            print(*(ROW.format(**row) for row in rows), sep="\n", file=sys.stderr, flush=True)
        except (ValueError, TypeError, RuntimeError, FloatingPointError) as error:
            result["failed"][f"{name}, seed {seed}"] = f"{type(error).__name__}: {error}"
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{place}, torch {torch.__version__}\n{TITLES}", *(ROW.format(**row) for row in result["rows"]), sep="\n")
    sys.exit("\n".join(f"{name} failed: {error}" for name, error in result["failed"].items()) or 0)


if __name__ == "__main__":
    main()
