"""Use the inversion alone, on any two callables: convergence, damping and status per sample.

python examples/invert_alone.py
"""

import torch

import targetprop as tp

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
A = torch.eye(6) + 0.3 * torch.randn(6, 6) / 6**0.5
rough = torch.linalg.inv(A + 0.1 * torch.randn(6, 6) / 6**0.5)  # an approximate inverse


def f(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.leaky_relu(x @ A.T, 0.3)


def g(y: torch.Tensor) -> torch.Tensor:
    return torch.where(y > 0, y, y / 0.3) @ rough.T


truth = torch.randn(1000, 6)
target, x0 = f(truth), torch.zeros(1000, 6)
for rule in (
    tp.Direct(),
    tp.InputSpace(steps=100),
    tp.InputSpace(steps=100, alpha=0.5),
    tp.InputSpace(steps=100, anderson=3),
    tp.OutputSpace(steps=100),
):
    solution = tp.invert(f, g, target, x0, method=rule)
    print(
        f"{rule}\n  converged {solution.converged.float().mean():.1%}, mean steps {solution.steps.float().mean():.1f},"
        f" largest error {(solution.x - truth).norm(dim=1).max():.1e}"
    )
assert (solution.x - truth).norm(dim=1).median() < 1e-3
