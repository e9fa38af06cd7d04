"""`TargetPropagation`: replaces ``loss.backward()`` in an existing training loop."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from targetprop.backprop import BackPropagation
from targetprop.checks import (
    check_arguments,
    check_batch,
    check_optimizer,
    check_sweeps,
    first_tensor,
)
from targetprop.decoders import OptimizerFactory, registered
from targetprop.drawn_targets import LABELS
from targetprop.engine_state import collect_state, gather_layers, restore_state
from targetprop.finite import RunningStatistics
from targetprop.forward import Forward, run_example
from targetprop.generators import Generators
from targetprop.layers import (
    Cutting,
    Model,
    Network,
    Record,
    Reduction,
    check_given,
    check_whereabouts,
    forked_random_states,
    whereabouts,
)
from targetprop.layers.loss import modules_of
from targetprop.layers.sites import tensors_in
from targetprop.layers.undone import evaluating
from targetprop.methods import method as find_method
from targetprop.output_target import Loss
from targetprop.parallel import Placement, connect
from targetprop.precision import warn_if_unscaled
from targetprop.recipe import Method
from targetprop.step import Parts, learn, take_step
from targetprop.step_report import StepReport, settle

OnDivergence = Literal["raise", "skip"]


class TargetPropagation:
    """Fills ``.grad`` by target propagation instead of back-propagation.

    Each `backward` runs the model once, trains the decoders on what it saw, carries a small change of the output down
    by (iterated) approximate inverses, and writes for every layer the gradient of its own local loss. The user's
    modules, optimiser and loop stay as they are: only ``.grad`` changes, and it is accumulated.

    Args:
        model: any module, as it is written; or a list or dictionary of modules, each of which becomes one layer.
        loss: ``loss(output, y)``, a scalar: a mean or a sum over the batch, as its ``reduction`` says or as it behaves.
        method: a name from `METHODS` or a `Method`.
        example_input: an input of shape ``(n, …)``, a tuple of inputs or a dictionary of them by keyword; its values do
            not matter, its shape and device do.
        layers: names of modules, after each of which a layer ends; None to cut by the method's rule.
        decoders: your own decoders by layer name, each a module from the layer's output to its input.
        decoder_optimizer: makes the decoders' optimiser from their parameters, if not the method's own.
        seed: seed of the decoders' initial values and of the noise that trains them; PyTorch's initial seed if None.
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
            or a call that autograd cannot differentiate stands where a derivative is needed.

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

    def __new__(cls, model: Any = None, loss: Any = None, *, method: str | Method = "l-drl", **options: Any) -> Self:
        """Make the matched baseline, which is an engine of its own, where the method is back-propagation."""
        recipe = find_method(method) if isinstance(method, str) else method
        if not isinstance(recipe, Method) or recipe.propagation != "backprop":
            return super().__new__(cls)
        example, on_divergence = options["example_input"], options.get("on_divergence", "raise")
        _check(loss, recipe, options.get("decoders"), options.get("seed"), on_divergence, example)
        device = first_tensor(example, "example_input").device
        peers = connect(options.get("process_group"), options.get("placement"), recipe, device)
        return BackPropagation(model, loss, recipe, on_divergence, peers)  # pyright: ignore[reportReturnType]

    def __init__(
        self,
        model: Model,
        loss: Loss,
        *,
        example_input: Any,
        method: str | Method = "l-drl",
        layers: Sequence[str] | None = None,
        decoders: Mapping[str, nn.Module] | None = None,
        decoder_optimizer: OptimizerFactory | None = None,
        seed: int | None = None,
        on_divergence: OnDivergence = "raise",
        process_group: "dist.ProcessGroup | None" = None,
        placement: Placement | None = None,
    ) -> None:
        """Cut the model, build its decoders and their optimiser."""
        self.method = find_method(method) if isinstance(method, str) else method
        _check(loss, self.method, decoders, seed, on_divergence, example_input)
        self.model, self.loss, self.on_divergence = model, loss, on_divergence
        derivatives = self.method.derivatives
        own = () if derivatives else registered()
        cutting = Cutting(self.method.cut, layers, derivatives, own, by_maps=self.method.update.by_maps)
        self.network = Network(model, cutting, loss)
        check_given(self.network.model)
        self._whereabouts = whereabouts(self.network)
        first = first_tensor(example_input, "example_input")
        check_whereabouts(first, self._whereabouts, self._whereabouts)
        self.peers = connect(process_group, placement, self.method, first.device)
        self.peers.check_modules(self.network.modules())
        seed = self.peers.first(torch.initial_seed() if seed is None else seed)
        with evaluating(self.network.modules()):
            example = run_example(self.network, example_input)
            check_sweeps(self.method, len(self.network))
            with forked_random_states(seed % 2**63):
                self.bank = self.method.decoder.build(self.network, example, decoders or {})
        trainable = [p for p in self.bank.parameters() if p.requires_grad]
        make = decoder_optimizer or self.method.decoder.make_optimizer
        self.decoder_optimizer = make(trainable) if trainable else None
        if decoder_optimizer and trainable:
            check_optimizer(self.decoder_optimizer)
        self.peers.settle(self.network, example, self.bank, self.decoder_optimizer)
        self._forward = Forward(self.network, self.method, self.bank, self.peers)
        names = [*self.bank.names, *([LABELS] if self.method.update.draws else [])]
        generators = Generators(names, seed, first.device)
        update_state = self.method.update.build(self.network, example)
        self._parts = Parts(
            self.method, self.network, self._forward, loss, Reduction(loss), self.bank, self.decoder_optimizer,
            generators, update_state, self.peers,
        )  # fmt: skip
        self.peers.start_alike(self._named_tensors())

    def backward(self, x: Any, y: Any, *, measure: bool = False) -> StepReport:
        """Do what ``loss(model(x), y).backward()`` would do, by target propagation.

        Args:
            x: input, shape ``(n, …)``, or several as a tuple or a dictionary.
            y: what the loss compares the output with; None for a model that computes its own loss.
            measure: fill in the norms and the residuals of every inversion, also where the step does not need them.

        Returns:
            The report of the step; its `StepReport.skipped` says whether there is anything for the optimiser to do.

        Raises:
            RuntimeError: gradients are disabled.

        Where the loss, a target, a decoder's loss or a gradient is not finite, ``on_divergence="raise"`` raises a
        ``FloatingPointError``. Nothing was changed then, but by the forward pass itself (batch statistics, random
        numbers); with "skip" the statistics are put back too. Only decoders that learned from finite numbers keep that
        where a target or a gradient fails after them. A batch that is empty, or that the model or the loss do not
        accept, is a ``ValueError``.
        """
        if not torch.is_grad_enabled():
            raise RuntimeError("backward fills .grad, and gradients are disabled; call it outside torch.no_grad()")
        self._check_batch(x, y)
        statistics = RunningStatistics(self.network.modules()) if self.on_divergence == "skip" else None
        return settle(take_step(self._parts, x, y, measure=measure), statistics)

    def train_decoders(self, x: Any) -> Tensor | None:
        """Train the decoders alone on one batch, leaving ``.grad`` untouched.

        Args:
            x: input, shape ``(n, …)``.

        Returns:
            The decoders' loss, or None if nothing is learned.

        Raises:
            FloatingPointError: an activation or a decoder's loss is not finite; no decoder was changed then.
        """
        self._check_batch(x)
        record = self._forward(x)
        loss, problem = learn(self._parts, record, record.looks(x))
        if problem:
            raise FloatingPointError(problem)
        return self.peers.whole_report(StepReport(x, x, loss), record.batch, measure=False).decoder_loss

    def record(self, x: Any, *, exact: bool = False) -> Record:
        """Run the model into a record of its layers, to look at them; nothing is trained.

        Args:
            x: the model's input.
            exact: let backward passes read the weights, where they would read mirrors.

        Returns:
            The record, with graphs, and layers that can be repeated.
        """
        return self._forward.record(x, exact=exact)

    def gather(self) -> None:
        """Give every process of a placement the layers as their owners have them, to evaluate or save the model.

        Parameters and buffers of the model and the decoders are copied; optimisers' states are not. Without a
        placement there is nothing to do.
        """
        gather_layers(self._parts)

    def state_dict(self) -> dict[str, Any]:
        """Collect everything that the engine owns: decoders, their optimiser, update statistics, random state.

        Of a placement, every process has to ask, and is given all of it; it does what `gather` does first.

        Returns:
            A dictionary of tensors and plain values.
        """
        return collect_state(self._parts)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: the dictionary. One of another version, another method or another network is a ``ValueError``, and
                nothing is changed then.
        """
        restore_state(self._parts, state)

    def kinds(self) -> dict[str, str]:
        """Say in a word how each layer is inverted, by layer name; the first layer is not.

        Returns:
            Such as "mirrored", "learned", "fixed".
        """
        return self.bank.kinds()

    def __str__(self) -> str:
        """Print the method and how each layer is inverted."""
        kinds = self.kinds()
        rows = [
            f"  layer {layer.name:<10} {' → '.join(layer.kinds()):<32} inverse: {kinds.get(layer.name, 'none needed')}"
            for layer in self.network.layers
        ]
        return "\n".join([str(self.method), *rows])

    def _check_batch(self, x: Any, y: Any = None) -> None:
        first = first_tensor(x, "the batch")
        for tensor in tensors_in(x):
            check_batch(tensor, may_be_empty=True)
            check_whereabouts(tensor, whereabouts(self.network), self._whereabouts)
        warn_if_unscaled(first)
        self.peers.check_modules(self.network.modules())
        self.peers.check_same(x, y)

    def _named_tensors(self) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {}
        for index, module in enumerate((*self.network.modules(), *modules_of(self.loss), self.bank)):
            named |= {
                f"{index}.{name}": t
                for name, t in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            }
        return named


def _check(loss: Any, method: Any, decoders: Any, seed: Any, on_divergence: Any, example_input: Any) -> None:
    if torch.is_inference_mode_enabled():
        raise ValueError("what is made in inference mode never learns; make the engine outside torch.inference_mode()")
    if on_divergence not in get_args(OnDivergence):
        raise ValueError(f"on_divergence must be 'raise' or 'skip'; got {on_divergence!r}")
    check_arguments(loss, method, decoders, seed)
    first_tensor(example_input, "example_input")
    for tensor in tensors_in(example_input):
        check_batch(tensor, "example_input")
