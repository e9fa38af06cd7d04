"""Classic convolutional classifiers: a tutorial's, ResNet, VGG and DenseNet."""

import torch
import torch.nn.functional as F
from torch import nn

from .case import Case, floats, integers


class TutorialCNN(nn.Module):
    """Two convolutions and two linear layers, all else functional."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 8, 3)
        self.fc1 = nn.Linear(8 * 2 * 2, 20)
        self.fc2 = nn.Linear(20, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(-1, 8 * 2 * 2)
        x = F.relu(self.fc1(x))
        return self.fc2(x)


class BasicBlock(nn.Module):
    """Two convolutions around a shortcut; one in-place ReLU serves both."""

    def __init__(self, c_in, c_out, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """ResNet-18's four stages of two blocks, narrow, with the stem for small images."""

    def __init__(self, width=4, num_classes=10):
        super().__init__()
        self.c_in = width
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._make_layer(width, 1)
        self.layer2 = self._make_layer(2 * width, 2)
        self.layer3 = self._make_layer(4 * width, 2)
        self.layer4 = self._make_layer(8 * width, 2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8 * width, num_classes)

    def _make_layer(self, c_out, stride):
        layers = [BasicBlock(self.c_in, c_out, stride), BasicBlock(c_out, c_out)]
        self.c_in = c_out
        return nn.Sequential(*layers)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = torch.flatten(self.avgpool(x), 1)
        return self.fc(x)


class VGG(nn.Module):
    """Stacked convolutions from a list of widths, batch norm, dropout in the classifier."""

    def __init__(self, cfg=(4, "M", 8, 8, "M", 16, "M"), num_classes=10):
        super().__init__()
        layers, channels = [], 3
        for width in cfg:
            if width == "M":
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels * 4, 32), nn.ReLU(True), nn.Dropout(0.5), nn.Linear(32, num_classes)
        )

    def forward(self, x):
        x = self.features(x)
        x = x.view(x.size(0), -1)
        return self.classifier(x)


class DenseLayer(nn.Module):
    """Norm, ReLU and convolution, whose output is appended to its input."""

    def __init__(self, channels, growth):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, growth, 3, padding=1, bias=False)

    def forward(self, x):
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], dim=1)


class DenseNet(nn.Module):
    """Two dense blocks with a transition that halves channels and size."""

    def __init__(self, growth=4, num_classes=10):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.block1 = nn.Sequential(*[DenseLayer(8 + i * growth, growth) for i in range(3)])
        self.transition = nn.Sequential(
            nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1, bias=False), nn.AvgPool2d(2)
        )
        self.block2 = nn.Sequential(*[DenseLayer(10 + i * growth, growth) for i in range(3)])
        self.norm = nn.BatchNorm2d(22)
        self.classifier = nn.Linear(22, num_classes)

    def forward(self, x):
        x = self.transition(self.block1(self.stem(x)))
        x = F.relu(self.norm(self.block2(x)), inplace=True)
        x = F.adaptive_avg_pool2d(x, (1, 1)).flatten(1)
        return self.classifier(x)


def _case(name, make, about):
    """Classify six images of 16x16 into ten classes."""
    return Case(
        name, make, lambda: floats(6, 3, 16, 16), lambda: integers(10, 6), nn.functional.cross_entropy, about=about
    )


CASES = (
    _case("cnn_tutorial", TutorialCNN, "F.relu, one pool module called twice, view"),
    _case("resnet", ResNet, "batch norm, in-place ReLU used twice a block, out += identity"),
    _case("vgg", VGG, "batch norm after biased convolutions, nn.Dropout"),
    _case("densenet", DenseNet, "torch.cat of features, pre-activation batch norm"),
)
