"""A convolution as a product with patches: the convolution itself is the oracle."""

import pytest
import torch
from torch import Tensor, nn

import targetprop as tp
from cases import DTYPE, rand
from one_layer import CONVS
from targetprop.layers import MapUse
from targetprop.layers.convolution import Convolution, has_patches, patches

OTHERS = {"two of everything", "depthwise", "three axes", *(case for case in CONVS if "transposed" in case)}
PATCHED = [case for case in CONVS if case not in OTHERS]
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


def run(case: str) -> tuple[nn.Module, Tensor, MapUse]:
    make, shape = CONVS[case]
    torch.manual_seed(0)
    conv, x = make().to(DTYPE), rand(4, *shape, seed=1)
    engine = tp.TargetPropagation(nn.Sequential(conv, nn.Tanh()), nn.MSELoss(), example_input=x, method="l-drl")
    (use,) = engine.record(x).uses()
    return conv, x, use


@pytest.mark.parametrize("case", PATCHED)
def test_a_convolution_is_a_product_with_its_patches(case: str) -> None:
    conv, x, use = run(case)
    z = conv(x).detach().movedim(1, -1)
    found = patches(use) @ conv.get_parameter("weight").flatten(1).T
    found = found if use.bias is None else found + use.bias
    torch.testing.assert_close(found.detach(), z.flatten(0, -2))
    some = patches(use, slice(3), stride=4) @ conv.get_parameter("weight").flatten(1).T
    some = some if use.bias is None else some + use.bias
    torch.testing.assert_close(some.detach(), z[:3].flatten(1, -2)[:, ::4].flatten(0, 1))


@pytest.mark.parametrize("case", PATCHED)
def test_the_sum_over_patches_is_the_gradient_of_the_weight(case: str) -> None:
    conv, x, use = run(case)
    assert use.input is not None
    z, x = conv(x), use.input  # with its padding, where that is no zeros
    dz = rand(*z.shape, seed=2)
    (expected,) = torch.autograd.grad((z * dz).sum(), conv.get_parameter("weight"))
    torch.testing.assert_close(Convolution(use, x).outer(x, dz), expected)


@pytest.mark.parametrize("case", sorted(OTHERS))
def test_other_convolutions_are_no_such_product(case: str) -> None:
    _, _, use = run(case)
    assert use.site.kind != "conv" or not has_patches(use)
