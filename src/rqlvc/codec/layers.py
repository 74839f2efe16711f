"""The few float layers that the codec is built from."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlvc.codec.quality import ANCHORS, QualityTable


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)


def zero_conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    """A convolution that adds nothing until it is trained: the warm start's last layer."""
    layer = conv(inputs, outputs, kernel)
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def join_channels(*parts: Tensor) -> Tensor:
    """The channels of all ``parts``, rounded already where the convolution that follows would: half as much to copy."""
    device = parts[0].device.type
    if torch.is_autocast_enabled(device):
        parts = tuple(part.to(torch.get_autocast_dtype(device)) for part in parts)
    return torch.cat(parts, dim=1)


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = conv(channels, channels)
        self.outer = conv(channels, channels)
        with torch.no_grad():
            self.outer.weight *= 0.5

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(F.leaky_relu(self.inner(x), 0.1))


def residual_blocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(count)))


class QualityScale(nn.Module):
    """Channels scaled by learned factors of the quality level: how one network serves all rates."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factor = QualityTable(torch.ones(ANCHORS, channels))

    def forward(self, x: Tensor, quality: Tensor) -> Tensor:
        return x * self.factor(quality).to(x.dtype)


class JointAttention(nn.Module):
    """Windowed attention of features over themselves and their condition, at half their resolution.

    Windows of 4x4 positions; queries from the features, keys and values from both.
    """

    WINDOW = 4
    HEADS = 4

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = conv(channels, channels, 2, 2)
        self.down.padding = (0, 0)
        self.down_condition = conv(channels, channels, 2, 2)
        self.down_condition.padding = (0, 0)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.out = zero_conv(channels, 4 * channels, 1)

    def _windows(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N * windows, 16, C)."""
        n, c, h, w = x.shape
        s = self.WINDOW
        return x.reshape(n, c, h // s, s, w // s, s).permute(0, 2, 4, 3, 5, 1).reshape(-1, s * s, c)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        n, c, h, w = x.shape
        s = 2 * self.WINDOW
        pad = (0, -w % s, 0, -h % s)
        own = self.down(F.pad(x, pad))
        other = self.down_condition(F.pad(condition, pad))
        rows, columns = own.shape[-2:]
        tokens = self._windows(own)
        both = torch.cat([tokens, self._windows(other)], dim=1)
        windows, length, _ = tokens.shape
        query = self.query(tokens).reshape(windows, length, self.HEADS, -1).transpose(1, 2)
        key, value = self.key_value(both).reshape(windows, 2 * length, 2, self.HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(windows, length, c)
        k = self.WINDOW
        mixed = (
            mixed.reshape(n, rows // k, columns // k, k, k, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, rows, columns)
        )
        return x + F.pixel_shuffle(self.out(mixed), 2)[:, :, :h, :w]
