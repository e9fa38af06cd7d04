"""The matched baseline: autograd carries the signal, and everything else is as in target propagation."""

from torch import Tensor, nn

from targetprop.admission import check_place, explained
from targetprop.buckets import Buckets
from targetprop.guard import Gradients, Guard
from targetprop.norm_statistics import check_norms
from targetprop.output_target import Loss, shared_loss_gradient
from targetprop.ranks import Ranks
from targetprop.share import Share
from targetprop.step_report import StepReport
from targetprop.watching import BAD_INPUT, BAD_LOSS, CURE, LOWER


def backprop(model: nn.Module, loss: Loss, x: Tensor, y: Tensor, ranks: Ranks, share: Share) -> StepReport:
    """Do what ``loss(model(x), y).backward()`` does, for the whole batch of several ranks, if all is finite.

    Args:
        model: any module.
        loss: the user's loss.
        x: input, shape ``(n, …)``.
        y: what the loss compares the output with.
        ranks: the processes that share the batch.
        share: which rows of the batch these are.

    Returns:
        The report; ``.grad`` is left alone where it says that the step is to be skipped.

    Raises:
        ValueError: nothing is to be trained, or the model or the loss do not accept the batch.
    """
    if not ranks.alone:
        check_norms([model], synchronised=True)
    first, guard, buckets = next(model.parameters()), Guard(ranks), Buckets(ranks)
    now = first.device, first.dtype
    check_place(x, now, now)
    with explained(x, now):
        output = model(x.detach())
    if not output.requires_grad:
        raise ValueError("the model has no trainable parameter; call requires_grad_(True) on those to train")
    value, gradient = shared_loss_gradient(output, y, loss, share)
    guard.watch(BAD_INPUT, x)
    guard.watch("the network returns NaN or infinite values; " + LOWER, output)
    guard.watch(BAD_LOSS, value, gradient)
    with Gradients(model.parameters()) as gradients:
        with buckets.collect(model.parameters()):
            output.backward(gradient)
        buckets.finish()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                guard.watch(f"the gradient of {name} is NaN or infinite; {CURE}", parameter.grad)
        if guard.passes():
            gradients.add()
    return StepReport(value, output.detach(), skipped=guard.reason)
