"""What autograd knows of how a tensor was made."""

from collections.abc import Iterable

from torch import Tensor


def leaves_of(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Find the leaves that tensors are made of, those too that would be given no gradient.

    Args:
        tensors: the tensors.

    Returns:
        The leaves.

    >>> import torch
    >>> w = torch.ones(2, requires_grad=True)
    >>> leaves_of([(w * 2).sum(), w])[0] is w
    True
    """
    tensors = list(tensors)
    found = {id(t): t for t in tensors if t.is_leaf and t.requires_grad}
    todo, seen = [t.grad_fn for t in tensors], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            found[id(leaf)] = leaf
        todo += [following for following, _ in node.next_functions]
    return list(found.values())
