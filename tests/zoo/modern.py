"""Later convolutional nets: ConvNeXt, U-Net, MobileNet and one with group norm."""

import torch
import torch.nn.functional as F
from torch import nn

from .case import Case, floats, integers


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, channels-last MLP, layer scale, stochastic depth."""

    def __init__(self, dim, drop_rate=0.3):
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.expand = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.project = nn.Linear(4 * dim, dim)
        self.layer_scale = nn.Parameter(0.1 * torch.ones(dim))
        self.drop_rate = drop_rate

    def drop(self, x):
        if not self.training:
            return x
        keep = 1 - self.drop_rate
        mask = (keep + torch.rand(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device)).floor()
        return x / keep * mask

    def forward(self, x):
        residual = x
        x = self.depthwise(x).permute(0, 2, 3, 1)
        x = self.project(self.act(self.expand(self.norm(x))))
        x = (self.layer_scale * x).permute(0, 3, 1, 2)
        return residual + self.drop(x)


class ConvNeXt(nn.Module):
    """A patch stem and three blocks, with a mean over the image."""

    def __init__(self, dim=12, num_classes=10):
        super().__init__()
        self.stem = nn.Conv2d(3, dim, kernel_size=2, stride=2)
        self.blocks = nn.ModuleList([ConvNeXtBlock(dim) for _ in range(3)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.mean([-2, -1])))


class DoubleConv(nn.Module):
    """Twice convolution, batch norm and ReLU."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(c_out, c_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(inplace=True),
        )

    def forward(self, x):
        return self.body(x)


class UNet(nn.Module):
    """Down twice, up twice, with skips; one score per class and pixel."""

    def __init__(self, width=4, num_classes=3):
        super().__init__()
        self.first = DoubleConv(3, width)
        self.down1 = nn.Sequential(nn.MaxPool2d(2), DoubleConv(width, 2 * width))
        self.down2 = nn.Sequential(nn.MaxPool2d(2), DoubleConv(2 * width, 4 * width))
        self.up1 = nn.ConvTranspose2d(4 * width, 2 * width, kernel_size=2, stride=2)
        self.conv1 = DoubleConv(4 * width, 2 * width)
        self.up2 = nn.ConvTranspose2d(2 * width, width, kernel_size=2, stride=2)
        self.conv2 = DoubleConv(2 * width, width)
        self.last = nn.Conv2d(width, num_classes, kernel_size=1)

    def forward(self, x):
        x1 = self.first(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x = self.conv1(torch.cat([x2, self.up1(x3)], dim=1))
        x = self.conv2(torch.cat([x1, self.up2(x)], dim=1))
        return self.last(x)


class SqueezeExcitation(nn.Module):
    """Scale each channel by a gate computed from the channels' means."""

    def __init__(self, channels, squeeze):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeeze, 1)
        self.fc2 = nn.Conv2d(squeeze, channels, 1)

    def forward(self, x):
        scale = F.adaptive_avg_pool2d(x, 1)
        scale = torch.sigmoid(self.fc2(F.relu(self.fc1(scale))))
        return x * scale


class InvertedResidual(nn.Module):
    """Expand, filter each channel, squeeze-and-excite, project; a shortcut where shapes agree."""

    def __init__(self, c_in, c_out, stride, ratio=3):
        super().__init__()
        hidden = c_in * ratio
        self.shortcut = stride == 1 and c_in == c_out
        self.conv = nn.Sequential(
            nn.Conv2d(c_in, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            SqueezeExcitation(hidden, 4),
            nn.Conv2d(hidden, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )

    def forward(self, x):
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNet(nn.Module):
    """Three inverted residuals and a classifier with dropout."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.features = nn.Sequential(
            InvertedResidual(8, 8, 1), InvertedResidual(8, 12, 2), InvertedResidual(12, 12, 1)
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(12, num_classes))

    def forward(self, x):
        x = self.features(self.stem(x))
        x = nn.functional.adaptive_avg_pool2d(x, (1, 1))
        return self.classifier(torch.flatten(x, 1))


class GroupNormNet(nn.Module):
    """Residual convolutions with group norm and SiLU, as in diffusion models."""

    def __init__(self, width=8, num_classes=10):
        super().__init__()
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.norm1, self.conv1 = nn.GroupNorm(2, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(4, width), nn.Conv2d(width, width, 3, padding=1, stride=2)
        self.act = nn.SiLU()
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        h = self.conv_in(x)
        h = h + self.conv1(self.act(self.norm1(h)))
        h = F.silu(self.conv2(self.act(self.norm2(h))))
        return self.head(h.mean(dim=(2, 3)))


def _case(name, make, about, labels=lambda: integers(10, 6)):
    """Classify six images of 16x16, or their pixels."""
    return Case(name, make, lambda: floats(6, 3, 16, 16), labels, F.cross_entropy, about=about)


CASES = (
    _case("convnext", ConvNeXt, "permute to channels-last and back, layer scale, stochastic depth by torch.rand"),
    _case("unet", UNet, "skips over ConvTranspose2d, output (n, C, H, W)", lambda: integers(3, 6, 16, 16)),
    _case("mobilenet", MobileNet, "groups, ReLU6, squeeze-and-excitation"),
    _case("groupnorm_silu", GroupNormNet, "group norm, SiLU as module (used twice) and as function"),
)
