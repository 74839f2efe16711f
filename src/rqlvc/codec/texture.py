"""The texture codec: samples to latents at 1/8 and back, with or without a condition.

Beside every network runs the linear path, a block DCT, that makes the untrained codec a classical one.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlvc.codec.integer import LATENT_UNIT
from rqlvc.codec.layers import JointAttention, QualityScale, ResidualBlock, conv, zero_conv
from rqlvc.codec.planes import FOLD_4, Planes, fold, unfold
from rqlvc.codec.prior import LatentCodec
from rqlvc.codec.quality import QualityTable, anchor_qualities, quantiser_step
from rqlvc.codec.transforms import picture_dct

FINE = 48  # features at 1/4
COARSE = 96  # features at 1/8; also the number of latents
PRIOR = 64  # width of the integer prior
LOW = (*range(6), *range(64, 67), *range(80, 83))  # the lowest frequencies of Y, U and V


class Condition(NamedTuple):
    """What inter coding is conditioned on: features of the prediction at 1/4 and 1/8."""

    fine: Tensor
    coarse: Tensor


class Analysis(nn.Module):
    def __init__(self, conditional: bool, attention: bool) -> None:
        super().__init__()
        self.head = conv(FOLD_4 + (FINE if conditional else 0), FINE)
        self.modulate = QualityScale(FINE)
        self.fine = ResidualBlock(FINE)
        self.down = conv(FINE, COARSE, 3, 2)
        self.merge = conv(COARSE + (COARSE if conditional else 0), COARSE)
        self.coarse = ResidualBlock(COARSE)
        self.attention = JointAttention(COARSE) if attention and conditional else None
        self.out = zero_conv(COARSE, COARSE, 1)

    def forward(self, samples: Tensor, quality: Tensor, condition: Condition | None) -> Tensor:
        x = samples if condition is None else torch.cat([samples, condition.fine], dim=1)
        x = F.leaky_relu(self.modulate(self.head(x), quality), 0.1)
        x = F.leaky_relu(self.down(self.fine(x)), 0.1)
        x = x if condition is None else torch.cat([x, condition.coarse], dim=1)
        x = self.coarse(F.leaky_relu(self.merge(x), 0.1))
        if self.attention is not None and condition is not None:
            x = self.attention(x, condition.coarse)
        return self.out(x)


class Synthesis(nn.Module):
    """Latents to a correction of the linearly decoded picture; it also is the in-loop filter."""

    def __init__(self, conditional: bool, attention: bool) -> None:
        super().__init__()
        self.head = conv(COARSE + (COARSE if conditional else 0), COARSE)
        self.modulate = QualityScale(COARSE)
        self.coarse = ResidualBlock(COARSE)
        self.attention = JointAttention(COARSE) if attention and conditional else None
        self.up = conv(COARSE, 4 * FINE // 2, 1)
        self.merge = conv(FINE // 2 + FOLD_4 + (FINE if conditional else 0), FINE)
        self.fine = ResidualBlock(FINE)
        self.out = zero_conv(FINE, FOLD_4)

    def forward(self, latent: Tensor, linear: Tensor, quality: Tensor, condition: Condition | None) -> Tensor:
        x = latent if condition is None else torch.cat([latent, condition.coarse], dim=1)
        x = self.coarse(F.leaky_relu(self.modulate(self.head(x), quality), 0.1))
        if self.attention is not None and condition is not None:
            x = self.attention(x, condition.coarse)
        x = F.pixel_shuffle(self.up(x), 2)
        x = torch.cat([x, linear] if condition is None else [x, linear, condition.fine], dim=1)
        return self.out(self.fine(F.leaky_relu(self.merge(x), 0.1)))


def initial_scales(intra: bool) -> Tensor:
    """Laplace scales of the DCT coefficients on [0, 1] samples: they fall with frequency. Shape (96,)."""
    _, frequency = picture_dct()
    top = 0.25 if intra else 0.04
    scale = top / (1 + frequency / (1.5 if intra else 4)) ** 1.5
    scale[64:] *= 0.4  # chroma is smoother
    return scale


class TextureCodec(nn.Module):
    """One texture codec: the intra codec without, the inter codec with a condition."""

    def __init__(self, conditional: bool, attention: bool, temporal: bool) -> None:
        super().__init__()
        matrix, _ = picture_dct()
        self.centre = 0.0 if conditional else 0.5  # of the samples that are transformed
        step = quantiser_step(anchor_qualities())
        self.forward_transform = nn.Parameter(matrix.clone())
        self.inverse_transform = nn.Parameter(matrix.T.clone())
        self.gain = QualityTable(-torch.log(step)[:, None].expand(-1, COARSE))
        self.inverse_gain = QualityTable(torch.log(step)[:, None].expand(-1, COARSE))
        self.analysis = Analysis(conditional, attention)
        self.synthesis = Synthesis(conditional, attention)
        scale = initial_scales(not conditional)[None, :] / step[:, None]
        self.latents = LatentCodec("texture", scale, LOW, PRIOR, linear=not conditional, temporal=temporal)

    def analyse(self, samples: Planes, quality: Tensor, condition: Condition | None) -> Tensor:
        """Latents in quantiser steps, (N, 96, H / 8, W / 8)."""
        with torch.autocast(samples.luma.device.type, enabled=False):
            # Float32: a bfloat16 DCT would err by half a quantiser step at the highest rates.
            linear = F.conv2d(fold(samples, 8) - self.centre, self.forward_transform[:, :, None, None])
        correction = self.analysis(fold(samples, 4), quality, condition)
        return (linear + correction.float()) * torch.exp(self.gain(quality))

    def synthesise(
        self, coded: Tensor, prediction: Tensor | None, quality: Tensor, condition: Condition | None
    ) -> Planes:
        """Decoded samples from integer latents; ``prediction``: masked prediction, fold 4, added to the residual."""
        latent = coded.float() / LATENT_UNIT
        with torch.autocast(quality.device.type, enabled=False):
            scaled = latent * torch.exp(self.inverse_gain(quality))
            residual = unfold(F.conv2d(scaled, self.inverse_transform[:, :, None, None]) + self.centre, 8)
            linear = fold(residual, 4)
            if prediction is not None:
                linear = linear + prediction
        correction = self.synthesis(torch.asinh(scaled * 8), linear, quality, condition)
        return unfold(linear + correction.float(), 4)
