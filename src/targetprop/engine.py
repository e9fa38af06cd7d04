"""`TargetPropagation`: replaces ``loss.backward()`` in an existing training loop."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from targetprop.black_box import check_derivatives
from targetprop.buckets import Buckets
from targetprop.chain import Model, build_chain
from targetprop.decoders import OptimizerFactory
from targetprop.forward import LayerRecord, Record, evaluating, run_forward
from targetprop.inversion import Iteration, Outcome
from targetprop.methods import Method
from targetprop.methods import method as find_method
from targetprop.norm_statistics import check_norms
from targetprop.output_target import Loss, shared_loss_gradient
from targetprop.ranks import Ranks, Share
from targetprop.step_report import StepReport, root_mean_square
from targetprop.targets import propagate

STATE_VERSION = 2


class TargetPropagation:
    """Fills ``.grad`` by target propagation instead of back-propagation.

    Each `backward` runs the model once, trains the decoders on what it saw, carries a small change of the output down
    by (iterated) approximate inverses, and writes for every layer the gradient of its own local loss. The user's
    modules, optimiser and loop stay as they are: only ``.grad`` changes, and it is accumulated.

    Args:
        model: an ``nn.Sequential`` (nested or not), or a list or dictionary of modules, one per layer.
            ``"backprop"`` takes
            any module.
        loss: ``loss(output, y)``, a scalar; a mean over the batch unless its ``reduction`` is ``"sum"``.
        method: a name from `METHODS` or a `Method`.
        example_input: an input of shape ``(n, …)``; its values do not matter, its shape and device do.
        decoders: your own decoders by layer name, each a module from the layer's output to its input.
        decoder_optimizer: makes the decoders' optimiser from their parameters, if not the method's own.
        seed: seed of the decoders' initial values and of the noise that trains them; PyTorch's initial seed if None.
        process_group: processes of `torch.distributed` that train together, each on its own rows of every batch. Model
            and decoders then start as rank 0 has them, ``.grad`` is the whole batch's on every rank, and so is the
            decoders' step: ranks whose rows are dealt as ``DistributedSampler`` does match one process with all of
            them. All ranks make the same calls. Dropout draws from each rank's own random state.

    Raises:
        ValueError: the method is unknown, its parts do not fit the model, the example input does not fit, or a module
            that autograd cannot differentiate stands where a derivative is needed.
        TypeError: the model's layers cannot be seen.

    >>> import torch, targetprop as tp
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
    >>> x = torch.randn(64, 4); y = (x[:, 0] > 0).long()
    >>> engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x)
    >>> optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     report = engine.backward(x, y)
    ...     optimizer.step()
    >>> bool(report.loss < 0.2)
    True
    """

    def __init__(
        self,
        model: Model,
        loss: Loss,
        *,
        example_input: Tensor,
        method: str | Method = "iterated",
        decoders: Mapping[str, nn.Module] | None = None,
        decoder_optimizer: OptimizerFactory | None = None,
        seed: int | None = None,
        process_group: "dist.ProcessGroup | None" = None,
    ) -> None:
        """Cut the model, build its decoders and their optimiser."""
        self.ranks = Ranks(process_group, example_input.device)
        self.method = find_method(method) if isinstance(method, str) else method
        self.model, self.loss = model, loss
        reduction = getattr(loss, "reduction", "mean")
        if reduction not in ("mean", "sum"):
            raise ValueError(f"the loss has reduction={reduction!r}; use 'mean' or 'sum'")
        if self.method.propagation == "backprop":
            self.chain = None
            if not isinstance(model, nn.Module):
                model = self.model = nn.Sequential(*(model.values() if isinstance(model, Mapping) else model))
            self._start_alike(model)
            return
        self.chain = build_chain(model, self.method.cut)
        seed = self.ranks.first(torch.initial_seed() if seed is None else seed)
        self._generator = torch.Generator(device=example_input.device).manual_seed(seed % 2**63)
        with evaluating(self.chain):
            example, inner = self._example(example_input)
            with torch.random.fork_rng(devices=[] if example_input.device.type == "cpu" else None):
                torch.manual_seed(seed % 2**63)
                self.bank = self.method.decoder.build(self.chain, example, inner, decoders or {})
            check_derivatives(self.chain, example, inner, self.bank, self.method.inversion.needs_decoder)
        trainable = [p for p in self.bank.parameters() if p.requires_grad]
        make = decoder_optimizer or self.method.decoder.make_optimizer
        self.decoder_optimizer = make(trainable) if trainable else None
        self._update_state = self.method.update.build(self.chain)
        self._start_alike(*(module for layer in self.chain.layers for module in layer.modules), self.bank)
        self._check_sweeps()

    def backward(self, x: Tensor, y: Tensor, *, measure: bool = False) -> StepReport:
        """Do what ``loss(model(x), y).backward()`` would do, by target propagation.

        Args:
            x: input, shape ``(n, …)``.
            y: what the loss compares the output with.
            measure: fill in the norms and the residuals of every inversion, also where the step does not need them.

        Returns:
            The report of the step.

        Raises:
            FloatingPointError: the loss is not finite; nothing was changed then, but by the forward pass itself (batch
                statistics, random numbers).
            RuntimeError: gradients are disabled.
            ValueError: the batch is empty, or the loss rejects output and labels.
        """
        if not torch.is_grad_enabled():
            raise RuntimeError("backward fills .grad, and gradients are disabled; call it outside torch.no_grad()")
        share = self.ranks.share(len(x))
        if len(x) == share.total == 0:
            raise ValueError("the batch is empty; drop it, or set drop_last=True in the data loader")
        if self.chain is None:
            return self._backprop(x, y, share)
        if not self.ranks.alone:
            check_norms(module for layer in self.chain.layers for module in layer.modules)
        record = run_forward(self.chain, x, keep_inner=self.method.update.needs_inner, share=share)
        change = self.method.output_target(record.output, y, self.loss, share)
        if not torch.isfinite(change.loss):
            raise FloatingPointError(_not_finite(x, record.layers, share))
        decoder_loss = self.method.decoder.train(self.bank, record, self.decoder_optimizer, self._generator)
        with torch.no_grad():
            targets = propagate(
                record, self.bank, change.delta, self.method.inversion, self.method.propagation, measure=measure
            )
        deltas = list(self.method.influence(targets.deltas))
        asked = _norms(record, targets.deltas) if measure else {}
        if self.method.propagation == "composite":  # every inversion starts at the output
            asked = {name: asked["all"] for name in asked}
        norms = _norms(record, deltas) if measure else {}
        outcomes = _gather(targets.outcomes, share) if measure else targets.outcomes
        report = StepReport(change.loss, record.output, decoder_loss, norms, outcomes, asked)
        layers, scale, buckets = list(record.layers), change.scale, Buckets(self.ranks)
        del record, change, targets
        while layers:  # top layer first; what a layer has used is freed before the next one's gradient is made
            with buckets.collect(layers[-1].layer.parameters()):
                self.method.update.apply(layers.pop(), deltas.pop(), scale, self._update_state)
        buckets.finish()
        return report

    def train_decoders(self, x: Tensor) -> Tensor | None:
        """Train the decoders alone on one batch, leaving ``.grad`` untouched.

        Args:
            x: input, shape ``(n, …)``.

        Returns:
            The decoders' loss, or None if nothing is learned.

        Raises:
            FloatingPointError: the network's output is not finite; no decoder was changed then.
        """
        if self.chain is None:
            return None
        with torch.no_grad():
            record = run_forward(self.chain, x, share=self.ranks.share(len(x)))
        broken = (~torch.isfinite(record.output)).sum()
        record.share.sum_([broken])
        if broken:
            raise FloatingPointError(_not_finite(x, record.layers, record.share))
        return self.method.decoder.train(self.bank, record, self.decoder_optimizer, self._generator)

    def state_dict(self) -> dict[str, Any]:
        """Collect everything that the engine owns: decoders, their optimiser, update statistics, random state.

        Returns:
            A dictionary of tensors and plain values.
        """
        if self.chain is None:
            return {"version": STATE_VERSION, "method": self.method.name}
        return {
            "version": STATE_VERSION,
            "method": self.method.name,
            "decoders": self.bank.state_dict(),
            "decoder_optimizer": None if self.decoder_optimizer is None else self.decoder_optimizer.state_dict(),
            "update": self._update_state.state_dict(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: the dictionary.

        Raises:
            ValueError: it is of another version or another method.
        """
        if state.get("version") != STATE_VERSION:
            raise ValueError(f"engine state has version {state.get('version')!r}; this release reads {STATE_VERSION}")
        if state["method"] != self.method.name:
            raise ValueError(f"engine state belongs to method {state['method']!r}, not {self.method.name!r}")
        if self.chain is None:
            return
        self.bank.load_state_dict(state["decoders"])
        if self.decoder_optimizer is not None:
            self.decoder_optimizer.load_state_dict(state["decoder_optimizer"])
        self._update_state.load_state_dict(state["update"])
        # Generators of different kinds of device have states of different size; a fresh one then goes on.
        if state["generator"].shape == self._generator.get_state().shape:
            self._generator.set_state(state["generator"])

    def __str__(self) -> str:
        """Print the method and how each layer is inverted."""
        if self.chain is None:
            return str(self.method)
        kinds = self.bank.kinds()
        rows = [
            f"  layer {layer.name:<10} {' → '.join(type(m).__name__ for m in layer.modules):<32}"
            f" inverse: {kinds.get(layer.name, 'none needed')}"
            for layer in self.chain.layers
        ]
        return "\n".join([str(self.method), *rows])

    def _start_alike(self, *modules: nn.Module) -> None:
        """Give every rank the parameters and buffers of rank 0."""
        tensors: dict[str, Tensor] = {}
        for place, module in enumerate(modules):
            tensors |= {f"{place}.{name}": p for name, p in (*module.named_parameters(), *module.named_buffers())}
        self.ranks.copy_from_first(tensors.values(), tensors, "parameters")

    def _backprop(self, x: Tensor, y: Tensor, share: Share) -> StepReport:
        assert isinstance(self.model, nn.Module)
        if not self.ranks.alone:
            check_norms([self.model], synchronised=True)
        output = self.model(x)
        value, gradient = shared_loss_gradient(output, y, self.loss, share)
        if not torch.isfinite(value):
            raise FloatingPointError(_not_finite(x, (), share))
        buckets = Buckets(self.ranks)
        with buckets.collect(self.model.parameters()):
            output.backward(gradient)
        buckets.finish()
        return StepReport(value, output.detach())

    def _example(self, x: Tensor) -> tuple[Record, list[tuple[Tensor, ...]]]:
        assert self.chain is not None
        try:
            with torch.no_grad():
                record = run_forward(self.chain, x[:2], keep_inner=True)
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"the model does not accept example_input of shape {tuple(x.shape)}: {error}") from error
        return record, [layer.inner for layer in record.layers]

    def _check_sweeps(self) -> None:
        assert self.chain is not None
        rule, needed = self.method.inversion, len(self.chain) - 1
        if self.method.propagation == "joint" and isinstance(rule, Iteration) and rule.steps < needed:
            raise ValueError(
                f"joint sweeps reach the bottom of {len(self.chain)} layers after {needed} steps, and inversion.steps"
                f" is {rule.steps}; raise it"
            )


def _norms(record: Record, deltas: list[Tensor]) -> dict[str, Tensor]:
    named = {r.layer.name: root_mean_square(d, r.share) for r, d in zip(record.layers, deltas, strict=True)}
    return {**named, "all": named[record.layers[-1].layer.name]}


def _gather(outcomes: dict[str, Outcome], share: Share) -> dict[str, Outcome]:
    """Put the outcomes of all ranks together."""
    if share.ranks.alone:
        return outcomes
    found = {}
    for name, outcome in outcomes.items():
        parts = {f.name: getattr(outcome, f.name) for f in fields(Outcome)}
        kept = {field: values for field, values in parts.items() if values is not None}
        found[name] = Outcome(**parts | dict(zip(kept, share.whole(list(kept.values())), strict=True)))
    return found


def _not_finite(x: Tensor, layers: Sequence[LayerRecord], share: Share) -> str:
    """Say where the first value that is not finite stands, on whichever rank."""
    broken = torch.stack([(~torch.isfinite(values)).sum() for values in (x, *(layer.h for layer in layers))])
    share.sum_([broken])
    if broken[0]:
        return "the input holds NaN or infinite values; clean the data before training"
    for layer, count in zip(layers, broken[1:], strict=True):
        if count:
            return (
                f"layer {layer.layer.name} returns NaN or infinite values; lower the learning rate or load an earlier"
                " checkpoint"
            )
    return "the loss is NaN or infinite though the outputs are finite; check the labels and the loss"
