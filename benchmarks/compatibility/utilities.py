"""Every utility of `torch.nn.utils`, and what belongs to them: done to a module in the middle, or around a step."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import fusion, parametrizations, parametrize, prune, rnn, stateless

from compatibility.case import WIDTH, Case, Plain, apply, in_the_middle


def _linear() -> nn.Linear:
    return nn.Linear(WIDTH, 4)


def _done(
    name: str,
    do: Callable[[Any], Any],
    make: Callable[[], nn.Module] = _linear,
    shape: Any = (WIDTH,),
    use: Any = apply,
) -> Case:
    """Make the row of what is done to a module, which may be given back."""

    def made() -> nn.Module:
        module = make()
        found = do(module)
        return found if isinstance(found, nn.Module) else module

    return in_the_middle(name, "Modules that are changed", made, shape, use)


class Symmetric(nn.Module):
    """A parametrisation."""

    def forward(self, x: Tensor) -> Tensor:
        """Make a matrix symmetric."""
        return x.triu() + x.triu(1).transpose(-1, -2)


def _square() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH)


def _lstm() -> nn.LSTM:
    return nn.LSTM(3, 4, batch_first=True)


def _weights() -> Iterator[Case]:
    old = nn.utils
    yield _done("weight_norm", old.weight_norm)
    yield _done("weight_norm; remove_weight_norm", lambda m: old.remove_weight_norm(old.weight_norm(m)))
    yield _done("weight_norm of a convolution", old.weight_norm, lambda: nn.Conv1d(2, 3, 3), (2, 8))
    yield _done("spectral_norm", old.spectral_norm)
    yield _done("spectral_norm; remove_spectral_norm", lambda m: old.remove_spectral_norm(old.spectral_norm(m)))
    yield _done("parametrizations.weight_norm", parametrizations.weight_norm)
    yield _done(
        "parametrizations.weight_norm of an LSTM",
        lambda m: parametrizations.weight_norm(m, "weight_hh_l0"),
        _lstm,
        (3, 3),
        lambda m, h: m(h)[0],
    )
    yield _done("parametrizations.spectral_norm", parametrizations.spectral_norm)
    yield _done(
        "parametrizations.spectral_norm of a convolution",
        parametrizations.spectral_norm,
        lambda: nn.Conv1d(2, 3, 3),
        (2, 8),
    )
    for kind in ("matrix_exp", "cayley", "householder"):
        yield _done(
            f"parametrizations.orthogonal, {kind}",
            lambda m, k=kind: parametrizations.orthogonal(m, orthogonal_map=k, use_trivialization=False),
            _square,
        )
    yield _done("parametrizations.orthogonal, trivialised", parametrizations.orthogonal, _square)
    yield _done(
        "parametrize.register_parametrization",
        lambda m: parametrize.register_parametrization(m, "weight", Symmetric()),
        _square,
    )
    yield _done("parametrize.remove_parametrizations", _registered_and_removed, _square)
    yield _done(
        "parametrize.cached",
        lambda m: parametrize.register_parametrization(m, "weight", Symmetric()),
        _square,
        use=_cached,
    )


def _registered_and_removed(m: nn.Module) -> None:
    parametrize.register_parametrization(m, "weight", Symmetric())
    parametrize.remove_parametrizations(m, "weight")


def _cached(m: Any, h: Tensor) -> Tensor:
    with parametrize.cached():
        return m(h) + m(h.tanh())


def _prunings() -> Iterator[Case]:
    mask = torch.tensor([[1.0, 0, 1, 0, 1, 1]] * 4)
    ways: dict[str, Callable[[Any], Any]] = {
        "identity": lambda m: prune.identity(m, "weight"),
        "random_unstructured": lambda m: prune.random_unstructured(m, "weight", 0.4),
        "l1_unstructured": lambda m: prune.l1_unstructured(m, "weight", 0.4),
        "random_structured": lambda m: prune.random_structured(m, "weight", 1, dim=0),
        "ln_structured": lambda m: prune.ln_structured(m, "weight", 1, n=2, dim=1),
        "custom_from_mask": lambda m: prune.custom_from_mask(m, "weight", mask),
        "global_unstructured": lambda m: prune.global_unstructured(
            [(m, "weight"), (m, "bias")], prune.L1Unstructured, amount=0.4
        ),
        "remove": lambda m: prune.remove(prune.l1_unstructured(m, "weight", 0.4), "weight"),
    }
    for name, way in ways.items():
        yield _done(f"prune.{name}", way)


def _fused() -> Iterator[Case]:
    def conv() -> nn.Module:
        return fusion.fuse_conv_bn_eval(nn.Conv1d(2, 3, 3).eval(), nn.BatchNorm1d(3).eval())

    def linear() -> nn.Module:
        return fusion.fuse_linear_bn_eval(_linear().eval(), nn.BatchNorm1d(4).eval())

    def weights() -> nn.Module:
        module, norm = nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3)
        found = fusion.fuse_conv_bn_weights(
            module.weight, module.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        module.weight, module.bias = found
        return module

    def linear_weights() -> nn.Module:
        module, norm = _linear(), nn.BatchNorm1d(4)
        found = fusion.fuse_linear_bn_weights(
            module.weight, module.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        module.weight, module.bias = found
        return module

    group = "Modules that are changed"
    yield in_the_middle("fusion.fuse_conv_bn_eval", group, conv, (2, 8))
    yield in_the_middle("fusion.fuse_linear_bn_eval", group, linear)
    yield in_the_middle("fusion.fuse_conv_bn_weights", group, weights, (2, 8))
    yield in_the_middle("fusion.fuse_linear_bn_weights", group, linear_weights)
    yield in_the_middle("skip_init", group, lambda: _started(nn.utils.skip_init(nn.Linear, WIDTH, 4)))
    for name, make, shape in (
        ("convert_conv2d_weight_memory_format", lambda: nn.Conv2d(2, 3, 3), (2, 6, 6)),
        ("convert_conv3d_weight_memory_format", lambda: nn.Conv3d(2, 3, 3), (2, 4, 4, 4)),
    ):
        form = torch.channels_last if "2d" in name else torch.channels_last_3d
        yield _done(name, lambda m, n=name, f=form: getattr(nn.utils, n)(m, f), make, shape)
    for name in ("xavier_uniform_", "kaiming_normal_", "orthogonal_", "trunc_normal_", "sparse_"):
        args = (0.4,) if name == "sparse_" else ()
        yield _done(f"init.{name}", lambda m, n=name, a=args: getattr(nn.init, n)(m.weight, *a))


def _started(module: nn.Module) -> nn.Module:
    for p in module.parameters():
        nn.init.normal_(p)
    return module


class Stateless(nn.Module):
    """A module called with parameters that are made of its own.

    Args:
        caller: calls a module with parameters by name.
        module: the module.
    """

    def __init__(self, caller: Callable[..., Any], module: nn.Module) -> None:
        """Keep both."""
        super().__init__()
        self.caller, self.module = caller, module

    def forward(self, h: Tensor) -> Tensor:
        """Call it."""
        return self.caller(self.module, {name: p.tanh() for name, p in self.module.named_parameters()}, (h,))


def _stateless() -> Iterator[Case]:
    group = "Modules that are called in another way"
    yield in_the_middle("stateless.functional_call", group, lambda: Stateless(stateless.functional_call, _linear()))
    yield in_the_middle("torch.func.functional_call", group, lambda: Stateless(torch.func.functional_call, _linear()))
    yield in_the_middle(
        "torch.func.functional_call, batch norm",
        group,
        lambda: Stateless(torch.func.functional_call, nn.Sequential(_linear(), nn.BatchNorm1d(4))),
    )
    yield in_the_middle("torch.func.vmap", group, _linear, use=lambda m, h: torch.func.vmap(m)(h))
    yield in_the_middle("torch.func.stack_module_state", group, lambda: Ensemble([_linear(), _linear()]))
    yield in_the_middle(
        "torch.func.jvp", group, _linear, use=lambda m, h: torch.func.jvp(m, (h,), (torch.ones_like(h),))[0]
    )
    yield in_the_middle(
        "torch.func.jacrev",
        group,
        lambda: nn.Sequential(_linear(), nn.Tanh()),
        use=lambda m, h: torch.func.vmap(torch.func.jacrev(m))(h),
    )


class Ensemble(nn.Module):
    """Several modules of one kind, called at once.

    Args:
        members: the modules.
    """

    def __init__(self, members: list[nn.Module]) -> None:
        """Keep them."""
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, h: Tensor) -> Tensor:
        """Call them and take the mean."""
        stacked = {
            n: torch.stack([dict(m.named_parameters())[n] for m in self.members])
            for n, _ in self.members[0].named_parameters()
        }
        base = self.members[0]
        return torch.func.vmap(lambda p: torch.func.functional_call(base, p, (h,)))(stacked).mean(0)


_LENGTHS = torch.tensor([3, 2, 3, 1, 2])


def _packed(m: Any, h: Tensor) -> Tensor:
    packed = rnn.pack_padded_sequence(h, _LENGTHS, batch_first=True, enforce_sorted=False)
    return rnn.pad_packed_sequence(m(packed)[0], batch_first=True)[0]


def _sequences(m: Any, h: Tensor) -> Tensor:
    rows = [row[:length] for row, length in zip(h, _LENGTHS.tolist(), strict=True)]
    packed = rnn.pack_sequence(rows, enforce_sorted=False)
    return torch.stack([row.mean(0) for row in rnn.unpack_sequence(m(packed)[0])])


def _padded(m: Any, h: Tensor) -> Tensor:
    rows = rnn.unpad_sequence(h, _LENGTHS, batch_first=True)
    return m(rnn.pad_sequence(rows, batch_first=True))[0]


def _rnn() -> Iterator[Case]:
    group = "Sequences"
    for module in (nn.RNN, nn.LSTM, nn.GRU):
        yield in_the_middle(
            f"rnn.pack_padded_sequence, pad_packed_sequence, {module.__name__}",
            group,
            lambda m=module: m(3, 4, batch_first=True),
            (3, 3),
            _packed,
        )
    yield in_the_middle("rnn.pack_sequence, unpack_sequence", group, _lstm, (3, 3), _sequences)
    yield in_the_middle("rnn.pad_sequence, unpad_sequence", group, _lstm, (3, 3), _padded)
    yield in_the_middle("rnn.PackedSequence, invert_permutation", group, _lstm, (3, 3), _packed_by_hand)


def _packed_by_hand(m: Any, h: Tensor) -> Tensor:
    order = torch.tensor([2, 0, 1, 4, 3])
    packed = rnn.PackedSequence(h[order, :2].transpose(0, 1).flatten(0, 1), torch.tensor([5, 5]))
    out = m(packed)[0].data.unflatten(0, (2, 5)).transpose(0, 1)
    return out[rnn.invert_permutation(order)]


def _scaled(model: nn.Module) -> None:
    with torch.no_grad():
        vector = nn.utils.parameters_to_vector(model.parameters())
        nn.utils.vector_to_parameters(0.5 * vector, model.parameters())


def _vector_of_gradients(model: nn.Module) -> None:
    own = list(model.parameters())
    nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector([p.grad for p in own if p.grad is not None]) / 2,
        [g for p in own if (g := p.grad) is not None],
    )


def _by_total_norm(model: nn.Module) -> None:
    total = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    nn.utils.clip_grads_with_norm_(list(model.parameters()), 0.01, total)


def _around() -> Iterator[Case]:
    group = "Parameters and gradients, around a step"
    utils: Any = nn.utils
    for name, after in {
        "clip_grad_norm_": lambda m: utils.clip_grad_norm_(m.parameters(), 0.01),
        "clip_grad_norm": lambda m: utils.clip_grad_norm(m.parameters(), 0.01),
        "clip_grad_value_": lambda m: utils.clip_grad_value_(m.parameters(), 0.005),
        "get_total_norm, clip_grads_with_norm_": _by_total_norm,
        "parameters_to_vector of .grad": _vector_of_gradients,
    }.items():
        yield Case(name, group, Plain, after=after)
    yield Case("parameters_to_vector, vector_to_parameters", group, Plain, before=_scaled)
    yield Case(
        "vector_to_parameters after every step",
        group,
        Plain,
        after=_scaled,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.1),
    )
    yield Case("copy.deepcopy", group, lambda: deepcopy(Plain()))


def rows() -> list[Case]:
    """List the rows."""
    parts = (_weights, _prunings, _fused, _stateless, _rnn, _around)
    return [case for part in parts for case in part()]
