"""`TargetPropagation`: replaces ``loss.backward()`` in an existing training loop."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from targetprop.admission import (
    check_arguments,
    check_batch,
    check_fits,
    check_optimizer,
    check_place,
    check_placement,
    check_samples,
    explained,
    place,
)
from targetprop.backprop import backprop
from targetprop.black_box import check_derivatives
from targetprop.buckets import Buckets
from targetprop.chain import Model, build_chain
from targetprop.compiled import Stages
from targetprop.decoders import LayerDecoder, OptimizerFactory
from targetprop.forward import LayerRecord, Record, evaluating, run_forward
from targetprop.gathering import gather_norms, gather_optimizer, gather_outcomes, layer_states
from targetprop.guard import Gradients, Guard, RunningStatistics
from targetprop.inversion import Iteration
from targetprop.methods import Method
from targetprop.methods import method as find_method
from targetprop.norm_statistics import check_norms
from targetprop.output_target import Loss
from targetprop.placement import Placement, Places
from targetprop.ranks import Ranks
from targetprop.replay import Replay, replay_modules
from targetprop.share import Share
from targetprop.step_report import StepReport
from targetprop.targets import propagate
from targetprop.watching import BAD_LOSS, CURE, watch_forward, watch_targets

STATE_VERSION = 2
OnDivergence = Literal["raise", "skip"]


class TargetPropagation:
    """Fills ``.grad`` by target propagation instead of back-propagation.

    Each `backward` runs the model once, trains the decoders on what it saw, carries a small change of the output down
    by (iterated) approximate inverses, and writes for every layer the gradient of its own local loss. The user's
    modules, optimiser and loop stay as they are: only ``.grad`` changes, and it is accumulated.

    Args:
        model: an ``nn.Sequential`` (nested or not), or a list or dictionary of modules, one per layer.
            ``"backprop"`` takes any module.
        loss: ``loss(output, y)``, a scalar; a mean over the batch unless its ``reduction`` is ``"sum"``.
        method: a name from `METHODS` or a `Method`.
        example_input: an input of shape ``(n, …)``; its values do not matter, its shape and device do.
        decoders: your own decoders by layer name, each a module from the layer's output to its input.
        decoder_optimizer: makes the decoders' optimiser from their parameters, if not the method's own.
        seed: seed of the decoders' initial values and of the noise that trains them; PyTorch's initial seed if None.
        compile: compile with ``torch.compile`` what layers and decoders compute while targets are sought; a `Stages`
            chooses the backend. Where that fails, a warning says so and nothing is compiled.
        on_divergence: what a step does whose loss, targets, decoder losses or gradients are not finite: "raise" a
            `FloatingPointError`, or "skip", which reports why. Either way nothing of it stays.
        process_group: processes of `torch.distributed` that train together, each on its own rows of every batch. Model
            and decoders then start as rank 0 has them, ``.grad`` is the whole batch's on every rank, and so is the
            decoders' step: ranks whose rows are dealt as ``DistributedSampler`` does match one process with all of
            them. All ranks make the same calls, and none takes a step whose numbers are not finite on one of them.
            Dropout draws from each rank's own random state.
        placement: which process works on which layer. A process runs its own layers only, and only those have a
            ``.grad`` there: where it stays None, optimisers do nothing. `gather` brings the layers together again. All
            processes make the same calls with the same batches. It may go with a `process_group` of processes that
            work on the same layers, each on its own rows.

    Raises:
        ValueError: a setting or the method is unknown, its parts do not fit the model, the example input does not fit,
            or a module that autograd cannot differentiate stands where a derivative is needed.
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
        compile: bool | Stages = False,
        on_divergence: OnDivergence = "raise",
        process_group: "dist.ProcessGroup | None" = None,
        placement: Placement | None = None,
    ) -> None:
        """Cut the model, build its decoders and their optimiser."""
        if on_divergence not in get_args(OnDivergence):
            raise ValueError(f"on_divergence must be 'raise' or 'skip'; got {on_divergence!r}")
        self.on_divergence = on_divergence
        self.method = find_method(method) if isinstance(method, str) else method
        check_arguments(loss, self.method, decoders, seed)
        check_batch(example_input, "example_input")
        self.ranks = Ranks(process_group, example_input.device)
        self.model, self.loss = model, loss
        reduction = getattr(loss, "reduction", "mean")
        if reduction not in ("mean", "sum"):
            raise ValueError(f"the loss has reduction={reduction!r}; use 'mean' or 'sum'")
        check_placement(placement, self.method)
        self.places = Places()
        if self.method.propagation == "backprop":
            self.chain = None
            if not isinstance(model, nn.Module):
                model = self.model = nn.Sequential(*(model.values() if isinstance(model, Mapping) else model))
            self._start_alike(model)
            return
        self.chain = build_chain(model, self.method.cut)
        self._place = place(self.chain)
        check_place(example_input, self._place, self._place)
        if placement is not None:
            self.places = placement.places(self.chain, example_input.device)
        seed = self.places.ranks.first(self.ranks.first(torch.initial_seed() if seed is None else seed))
        self._generator = torch.Generator(device=example_input.device).manual_seed(seed % 2**63)
        with evaluating(self.chain):
            example, inner = self._example(example_input)
            with torch.random.fork_rng(devices=[] if example_input.device.type == "cpu" else None):
                torch.manual_seed(seed % 2**63)
                self.bank = self.method.decoder.build(self.chain, example, inner, decoders or {})
            check_derivatives(self.chain, example, inner, self.bank, self.method.inversion.needs_decoder)
        self._outlines = [layer.outline(0, example.share) for layer in example.layers]
        trainable = [p for p in self.bank.parameters() if p.requires_grad]
        make = decoder_optimizer or self.method.decoder.make_optimizer
        self.decoder_optimizer = make(trainable) if trainable else None
        if decoder_optimizer and trainable:
            check_optimizer(self.decoder_optimizer)
        self._update_state = self.method.update.build(self.chain)
        self._start_alike(*(module for layer in self.chain.layers for module in layer.modules), self.bank)
        self._check_sweeps()
        self._replays = self._compile(Stages() if compile is True else compile) if compile else None

    def backward(self, x: Tensor, y: Tensor, *, measure: bool = False) -> StepReport:
        """Do what ``loss(model(x), y).backward()`` would do, by target propagation.

        Args:
            x: input, shape ``(n, …)``.
            y: what the loss compares the output with.
            measure: fill in the norms and the residuals of every inversion, also where the step does not need them.

        Returns:
            The report of the step; its `StepReport.skipped` says whether there is anything for the optimiser to do.

        Raises:
            FloatingPointError: the loss, a target, a decoder's loss or a gradient is not finite, and
                ``on_divergence="raise"``. Nothing was changed then, but by the forward pass itself (batch statistics,
                random numbers); with "skip" the statistics are put back too. Only decoders that learned from finite
                numbers keep that where a target or a gradient fails after them.
            RuntimeError: gradients are disabled.

        A batch that is empty, or that the model or the loss do not accept, is a ``ValueError``.
        """
        if not torch.is_grad_enabled():
            raise RuntimeError("backward fills .grad, and gradients are disabled; call it outside torch.no_grad()")
        share = self._share(x)
        self.places.check_same(x, y)
        statistics = RunningStatistics(self._modules()) if self.on_divergence == "skip" else None
        if self.chain is None:
            assert isinstance(self.model, nn.Module)
            report = backprop(self.model, self.loss, x, y, self.ranks, share)
        else:
            report = self._step(x, y, share, measure)
        if report.skipped is not None:
            if statistics is None:
                raise FloatingPointError(report.skipped)
            statistics.restore()
        return report

    def _step(self, x: Tensor, y: Tensor, share: Share, measure: bool) -> StepReport:
        """Take the step if all its numbers are finite; otherwise leave everything alone and say why."""
        assert self.chain is not None
        if not self.ranks.alone:
            check_norms(module for layer in self.chain.layers for module in layer.modules)
        guard, draws = Guard(self.ranks, self.places.ranks), self._generator.get_state()
        record = self._forward(x, share, self.method.update.needs_inner, self._replays)
        change = self.method.output_target(record.output, y, self.loss, share)
        watch_forward(guard, x, record)
        guard.watch(BAD_LOSS, change.loss, change.delta)
        decoder_loss = self.method.decoder.train(self.bank, record, self.decoder_optimizer, self._generator, guard)
        report = StepReport(change.loss, record.output, decoder_loss)
        if guard.reason is not None:
            self._generator.set_state(draws)
            return replace(report, skipped=guard.reason)
        with torch.no_grad():
            targets = propagate(
                record, self.bank, change.delta, self.method.inversion, self.method.propagation, measure=measure
            )
        own = record.own
        deltas = list(self.method.influence(targets.deltas))[: len(own)]
        asked = gather_norms(record, targets.deltas[: len(own)]) if measure else {}
        if self.method.propagation == "composite":  # every inversion starts at the output
            asked = {name: asked["all"] for name in asked}
        norms = gather_norms(record, deltas) if measure else {}
        watch_targets(guard, record, deltas)
        outcomes = gather_outcomes(targets.outcomes, record) if measure else targets.outcomes
        report = replace(report, delta_norms=norms, outcomes=outcomes, target_norms=asked)
        layers, scale = [record.layers[index] for index in own], change.scale
        del record, change, targets
        self._update(layers, deltas, scale, guard)
        return report if guard.reason is None else StepReport(report.loss, report.output, skipped=guard.reason)

    def _update(self, layers: list[LayerRecord], deltas: list[Tensor], scale: float, guard: Guard) -> None:
        """Write ``.grad`` and empty both lists, unless the guard does not pass."""
        keeps_state = next(self._update_state.children(), None) is not None
        if keeps_state and not guard.passes():
            return
        assert self.chain is not None
        written = {layer.layer.name: list(layer.layer.parameters()) for layer in reversed(layers)}
        buckets = Buckets(self.ranks)
        with Gradients(p for parameters in written.values() for p in parameters) as gradients:
            for parameters in written.values():  # what a layer has used is freed before the next one's gradient is made
                with buckets.collect(parameters):
                    self.method.update.apply(layers.pop(), deltas.pop(), scale, self._update_state)
            buckets.finish()
            for name in reversed(self.chain.names):
                problem = f"the gradient of layer {name} is NaN or infinite though its target is finite; {CURE}"
                guard.watch(problem, *(p.grad for p in written.get(name, ()) if p.grad is not None))
            if guard.passes():
                gradients.add()

    def train_decoders(self, x: Tensor) -> Tensor | None:
        """Train the decoders alone on one batch, leaving ``.grad`` untouched.

        Args:
            x: input, shape ``(n, …)``.

        Returns:
            The decoders' loss, or None if nothing is learned.

        Raises:
            FloatingPointError: an activation or a decoder's loss is not finite; no decoder was changed then.
        """
        share = self._share(x)
        if self.chain is None:
            return None
        self.places.check_same(x)
        with torch.no_grad():
            record = self._forward(x, share)
        guard, draws = Guard(self.ranks, self.places.ranks), self._generator.get_state()
        watch_forward(guard, x, record)
        loss = self.method.decoder.train(self.bank, record, self.decoder_optimizer, self._generator, guard)
        if not guard.passes():
            self._generator.set_state(draws)
            raise FloatingPointError(guard.reason)
        return loss

    def gather(self) -> None:
        """Give every process of a placement the layers as their owners have them, to evaluate or save the model.

        Parameters and buffers of the model and the decoders are copied; optimisers' states are not. Without a
        placement there is nothing to do.
        """
        if self.chain is not None:
            self.places.gather(
                {
                    index: (*layer.modules, *self.bank.parts(index), *layer_states(self._update_state, layer.name))
                    for index, layer in enumerate(self.chain.layers)
                }
            )

    def state_dict(self) -> dict[str, Any]:
        """Collect everything that the engine owns: decoders, their optimiser, update statistics, random state.

        Of a placement, every process has to ask, and is given all of it; it does what `gather` does first.

        Returns:
            A dictionary of tensors and plain values.
        """
        self.gather()
        if self.chain is None:
            return {"version": STATE_VERSION, "method": self.method.name}
        return {
            "version": STATE_VERSION,
            "method": self.method.name,
            "decoders": self.bank.state_dict(),
            "decoder_optimizer": gather_optimizer(self.decoder_optimizer, self._own_decoders(), self.places),
            "update": self._update_state.state_dict(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: the dictionary.

        Raises:
            ValueError: it is of another version, another method or another network; nothing was changed then.
        """
        if not isinstance(state, Mapping):
            raise ValueError(f"engine state must be what state_dict returned; got {type(state).__name__}")
        if state.get("version") != STATE_VERSION:
            raise ValueError(f"engine state has version {state.get('version')!r}; this release reads {STATE_VERSION}")
        if state["method"] != self.method.name:
            raise ValueError(f"engine state belongs to method {state['method']!r}, not {self.method.name!r}")
        if self.chain is None:
            return
        check_fits(self.bank, state.get("decoders"), "decoders")
        check_fits(self._update_state, state.get("update"), "update statistics")
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
        for at, module in enumerate(modules):
            tensors |= {f"{at}.{name}": p for name, p in (*module.named_parameters(), *module.named_buffers())}
        self.ranks.copy_from_first(tensors.values(), tensors, "parameters")
        self.places.ranks.copy_from_first(tensors.values(), tensors, "parameters")

    def _share(self, x: Tensor) -> Share:
        """Find this rank's part of a batch, of which it may have none."""
        check_batch(x, may_be_empty=not self.ranks.alone)
        share = Share.of(len(x), self.ranks)
        if len(x) == 0:
            check_batch(x, may_be_empty=share.total > 0)
        return share

    def _modules(self) -> Iterator[nn.Module]:
        if self.chain is None:
            assert isinstance(self.model, nn.Module)
            return self.model.modules()
        return (part for layer in self.chain.layers for module in layer.modules for part in module.modules())

    def _forward(
        self, x: Tensor, share: Share, keep_inner: bool = False, replays: list[Replay] | None = None
    ) -> Record:
        assert self.chain is not None
        now = place(self.chain)
        check_place(x, now, self._place)
        if not self.places.alone and x.shape[1:] != self._outlines[0].x.shape[1:]:
            like = tuple(self._outlines[0].x.shape[1:])
            raise ValueError(
                f"samples have shape {tuple(x.shape[1:])}, and the example input's {like}; with a placement they must"
                " agree"
            )
        with explained(x, now):
            record = run_forward(
                self.chain,
                x,
                keep_inner=keep_inner,
                replays=replays,
                share=share,
                places=self.places,
                outlines=self._outlines,
            )
        check_samples(record, len(x))
        return record

    def _example(self, x: Tensor) -> tuple[Record, list[tuple[Tensor, ...]]]:
        assert self.chain is not None
        with torch.no_grad(), explained(x, self._place, "example_input"):
            record = run_forward(self.chain, x[:2], keep_inner=True)
        check_samples(record, len(x[:2]))
        return record, [layer.inner for layer in record.layers]

    def _compile(self, stages: Stages) -> list[Replay]:
        assert self.chain is not None
        for decoder in self.bank.modules():
            if isinstance(decoder, LayerDecoder):
                decoder.compile_with(stages)
        return [stages.compile(replay_modules) for _ in self.chain.layers]

    def _own_decoders(self) -> list[nn.Parameter]:
        assert self.chain is not None
        own = [index for index in range(len(self.chain)) if self.places.owns(index)]
        return [p for index in own for part in self.bank.parts(index) for p in part.parameters()]

    def _check_sweeps(self) -> None:
        assert self.chain is not None
        rule, needed = self.method.inversion, len(self.chain) - 1
        if self.method.propagation == "joint" and isinstance(rule, Iteration) and rule.steps < needed:
            raise ValueError(
                f"joint sweeps reach the bottom of {len(self.chain)} layers after {needed} steps, and inversion.steps"
                f" is {rule.steps}; raise it"
            )
