"""The texture codecs: samples to latents at 1/8 and back, without (intra) or with a condition (inter).

Beside every network runs the linear path, a block DCT, that makes the untrained codec a classical one.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlvc.codec.integer import LATENT_UNIT
from rqlvc.codec.interpolation import upsample_blocks
from rqlvc.codec.layers import (
    JointAttention,
    QualityScale,
    ResidualBlock,
    conv,
    join_channels,
    residual_blocks,
    zero_conv,
)
from rqlvc.codec.planes import FOLD_4, Planes, fold, unfold, unshuffle_order
from rqlvc.codec.prior import LatentCodec
from rqlvc.codec.quality import QualityTable, anchor_qualities, quantiser_step
from rqlvc.codec.transforms import picture_dct

FINE = 48  # features at 1/4
COARSE = 96  # features at 1/8; also the number of latents
PRIOR = 64  # width of the integer prior
INTRA_PRIOR = 96  # of intra frames: as wide as exact sums of products allow
DEPTH = 3  # residual blocks in a row, in the networks of intra frames: one frame in many can take its time
LOW = (*range(6), *range(64, 67), *range(80, 83))  # the lowest frequencies of Y, U and V


class Condition(NamedTuple):
    """What inter coding is conditioned on: features of the prediction at 1/4 and, where used, at 1/8."""

    fine: Tensor
    coarse: Tensor | None


class IntraAnalysis(nn.Module):
    """Samples, fold 4, to a correction of their linear transform."""

    def __init__(self) -> None:
        super().__init__()
        self.head = conv(FOLD_4, FINE)
        self.modulate = QualityScale(FINE)
        self.fine = residual_blocks(FINE, DEPTH)
        self.down = conv(FINE, COARSE, 3, 2)
        self.merge = conv(COARSE, COARSE)
        self.coarse = residual_blocks(COARSE, DEPTH)
        self.out = zero_conv(COARSE, COARSE, 1)

    def forward(self, samples: Tensor, quality: Tensor) -> Tensor:
        x = F.leaky_relu(self.modulate(self.head(samples), quality), 0.1)
        x = F.leaky_relu(self.down(self.fine(x)), 0.1)
        return self.out(self.coarse(F.leaky_relu(self.merge(x), 0.1)))


class CoarseTrunk(nn.Module):
    """Features at 1/8 from coefficients and the condition: what inter analysis and synthesis begin with there."""

    def __init__(self, attention: bool) -> None:
        super().__init__()
        self.head = conv(2 * COARSE, COARSE)
        self.modulate = QualityScale(COARSE)
        self.block = ResidualBlock(COARSE)
        self.attention = JointAttention(COARSE) if attention else None

    def forward(self, coefficients: Tensor, quality: Tensor, known: Condition) -> Tensor:
        assert known.coarse is not None
        x = join_channels(companded(coefficients), known.coarse)
        x = self.block(F.leaky_relu(self.modulate(self.head(x), quality), 0.1))
        return x if self.attention is None else self.attention(x, known.coarse)


class InterAnalysis(nn.Module):
    """The residual's linear transform and the condition to a correction of the former, at 1/8."""

    def __init__(self, attention: bool) -> None:
        super().__init__()
        self.trunk = CoarseTrunk(attention)
        self.out = zero_conv(COARSE, COARSE, 1)

    def forward(self, linear: Tensor, quality: Tensor, known: Condition) -> Tensor:
        return self.out(self.trunk(linear, quality, known))


def companded(coefficients: Tensor) -> Tensor:
    """Coefficients of samples on [0, 1] as networks see them."""
    return torch.asinh(coefficients * 8)


class IntraSynthesis(nn.Module):
    """Latents to a correction of the linearly decoded picture; it also is the in-loop filter."""

    def __init__(self) -> None:
        super().__init__()
        self.head = conv(COARSE, COARSE)
        self.modulate = QualityScale(COARSE)
        self.coarse = residual_blocks(COARSE, DEPTH)
        self.up = conv(COARSE, 4 * FINE // 2, 1)
        self.merge = conv(FINE // 2 + FOLD_4, FINE)
        self.fine = residual_blocks(FINE, DEPTH)
        self.out = zero_conv(FINE, FOLD_4)

    def forward(self, scaled: Tensor, linear: Tensor, quality: Tensor) -> Tensor:
        x = self.coarse(F.leaky_relu(self.modulate(self.head(companded(scaled)), quality), 0.1))
        x = join_channels(F.pixel_shuffle(self.up(x), 2), linear)
        return self.out(self.fine(F.leaky_relu(self.merge(x), 0.1)))


class InterSynthesis(nn.Module):
    """The residual and the prediction to a correction of their sum: the in-loop filter, conditioned at each scale."""

    def __init__(self, coarse: bool, attention: bool) -> None:
        super().__init__()
        self.coarse = InterSynthesisCoarse(attention) if coarse else None
        self.merge = conv(2 * FOLD_4 + FINE + (FINE // 2 if coarse else 0), FINE)
        self.modulate = QualityScale(FINE)
        self.fine = ResidualBlock(FINE)
        self.out = zero_conv(FINE, FOLD_4)

    def forward(self, scaled: Tensor, residual: Tensor, linear: Tensor, quality: Tensor, known: Condition) -> Tensor:
        parts = [residual, linear, known.fine]
        if self.coarse is not None:
            parts.append(self.coarse(scaled, quality, known))
        x = F.leaky_relu(self.modulate(self.merge(join_channels(*parts)), quality), 0.1)
        return self.out(self.fine(x))


class InterSynthesisCoarse(nn.Module):
    """Features at 1/4 from the decoded coefficients and the condition at 1/8."""

    def __init__(self, attention: bool) -> None:
        super().__init__()
        self.trunk = CoarseTrunk(attention)
        self.up = conv(COARSE, 4 * FINE // 2, 1)

    def forward(self, scaled: Tensor, quality: Tensor, known: Condition) -> Tensor:
        return F.pixel_shuffle(self.up(self.trunk(scaled, quality, known)), 2)


def initial_scales(intra: bool) -> Tensor:
    """Laplace scales of the DCT coefficients on [0, 1] samples: they fall with frequency. Shape (96,)."""
    _, frequency = picture_dct()
    top = 0.25 if intra else 0.04
    scale = top / (1 + frequency / (1.5 if intra else 4)) ** 1.5
    scale[64:] *= 0.4  # chroma is smoother
    return scale


class TextureCodec(nn.Module):
    """What the intra and the inter codec share: the linear transform, its gains, and the coding of latents."""

    order: Tensor

    def __init__(self, intra: bool, temporal: bool) -> None:
        super().__init__()
        matrix, _ = picture_dct()
        self.register_buffer("order", unshuffle_order(), persistent=False)
        self.centre = 0.5 if intra else 0.0  # of the samples that are transformed
        step = quantiser_step(anchor_qualities())
        self.forward_transform = nn.Parameter(matrix.clone())
        self.inverse_transform = nn.Parameter(matrix.T.clone())
        self.gain = QualityTable(-torch.log(step)[:, None].expand(-1, COARSE))
        self.inverse_gain = QualityTable(torch.log(step)[:, None].expand(-1, COARSE))
        scale = initial_scales(intra)[None, :] / step[:, None]
        kind: Literal["intra", "inter"] = "intra" if intra else "inter"
        width = INTRA_PRIOR if intra else PRIOR
        self.latents = LatentCodec(kind, scale, LOW, width, linear=intra, whole=not intra, temporal=temporal)

    def transform(self, samples: Tensor) -> Tensor:
        """Coefficients (N, 96, H / 8, W / 8) of samples, fold 4."""
        with torch.autocast(samples.device.type, enabled=False):
            # Float32: a bfloat16 DCT would err by half a quantiser step at the highest rates.
            matrix = self.forward_transform[:, self.order]
            return F.conv2d(F.pixel_unshuffle(samples - self.centre, 2), matrix[:, :, None, None])

    def scale(self, latent: Tensor, quality: Tensor) -> Tensor:
        """Coefficients from integer latents."""
        return latent.float() / LATENT_UNIT * torch.exp(self.inverse_gain(quality))

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Samples, fold 4 (N, 24, H / 4, W / 4), from coefficients."""
        with torch.autocast(coefficients.device.type, enabled=False):
            matrix = self.inverse_transform[self.order]
            return F.pixel_shuffle(F.conv2d(coefficients, matrix[:, :, None, None]), 2) + self.centre


class IntraCodec(TextureCodec):
    """A picture's samples to latents and back."""

    def __init__(self) -> None:
        super().__init__(intra=True, temporal=False)
        self.analysis = IntraAnalysis()
        self.synthesis = IntraSynthesis()

    def analyse(self, samples: Planes, quality: Tensor) -> Tensor:
        """Latents in quantiser steps, (N, 96, H / 8, W / 8)."""
        folded = fold(samples, 4)
        correction = self.analysis(folded, quality).float()
        return (self.transform(folded) + correction) * torch.exp(self.gain(quality))

    def synthesise(self, latent: Tensor, quality: Tensor) -> Planes:
        """Decoded samples from integer latents."""
        scaled = self.scale(latent, quality)
        linear = self.inverse(scaled)
        return unfold(linear + self.synthesis(scaled, linear, quality).float(), 4)


class InterCodec(TextureCodec):
    """What the prediction leaves to latents, and latents and the prediction to a picture.

    ``coarse`` adds networks at 1/8, ``attention`` their windowed attention.
    """

    def __init__(self, coarse: bool, attention: bool, temporal: bool) -> None:
        super().__init__(intra=False, temporal=temporal)
        self.analysis = InterAnalysis(attention) if coarse else None
        self.synthesis = InterSynthesis(coarse, attention)

    def analyse(self, residual: Tensor, quality: Tensor, known: Condition) -> Tensor:
        """Latents in quantiser steps, (N, 96, H / 8, W / 8), of a residual, fold 4."""
        coefficients = self.transform(residual)
        if self.analysis is not None:
            coefficients = coefficients + self.analysis(coefficients, quality, known).float()
        return coefficients * torch.exp(self.gain(quality))

    def synthesise(self, latent: Tensor, prediction: Tensor, quality: Tensor, known: Condition) -> Planes:
        """Decoded samples from integer latents and the masked prediction, fold 4."""
        scaled = self.scale(latent, quality)
        residual = self.inverse(scaled)
        linear = prediction + residual
        correction = self.synthesis(scaled, residual, linear, quality, known).float()
        return unfold(linear + correction * _near_residual(latent), 4)


def _near_residual(coded: Tensor) -> Tensor:
    """1 at and beside blocks with a residual, (N, 1, H / 4, W / 4); elsewhere an inter frame is its prediction.

    As a deblocking filter's strength: what is repeated frame after frame must not be filtered every time.
    """
    active = (coded != 0).any(dim=1, keepdim=True).to(torch.float32)
    return upsample_blocks(F.max_pool2d(active, 3, 1, 1), 2)
