"""The texture codec: samples to latents at 1/8 and back, with or without a condition.

Beside every network runs the linear path, a block DCT, that makes the untrained codec a classical one.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlvc.codec.entropy import Coder
from rqlvc.codec.integer import LATENT_UNIT
from rqlvc.codec.layers import JointAttention, QualityScale, ResidualBlock, conv, zero_conv
from rqlvc.codec.planes import FOLD_4, Planes, fold, unfold
from rqlvc.codec.prior import HyperPrior, HyperSynthesis, LatentPrior, scale_to_bin
from rqlvc.codec.quality import ANCHORS, QualityTable, anchor_qualities, quantiser_step
from rqlvc.codec.transforms import picture_dct

FINE = 48  # features at 1/4
COARSE = 96  # features at 1/8; also the number of latents
HYPER = 24
PRIOR = 64  # width of the integer prior
HYPER_RESOLUTION = 4.0  # initial steps of the hyper-latents per doubling of a band's magnitude


class Condition(NamedTuple):
    """What inter coding is conditioned on: features of the prediction at 1/4 and 1/8."""

    fine: Tensor
    coarse: Tensor


class TextureLatents(NamedTuple):
    """Integer latents (1/16 steps) of one frame: texture at 1/8 and hyper at 1/32."""

    latent: Tensor
    hyper: Tensor

    def detach(self) -> "TextureLatents":
        return TextureLatents(self.latent.detach(), self.hyper.detach())


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


class HyperAnalysis(nn.Module):
    """Starts as the mean log-magnitude of groups of 4 neighbouring frequencies over 4x4 latents."""

    GROUP = COARSE // HYPER

    def __init__(self) -> None:
        super().__init__()
        self.gain = QualityTable(torch.zeros(ANCHORS, HYPER))
        self.head = conv(COARSE, PRIOR)
        self.down = conv(PRIOR, PRIOR, 3, 2)
        self.deep = conv(PRIOR, PRIOR, 3, 2)
        self.out = zero_conv(PRIOR, HYPER, 1)

    def forward(self, latent: Tensor, quality: Tensor) -> Tensor:
        """``latent`` in quantiser steps, (N, 96, H, W); result (N, 24, ceil(H / 4), ceil(W / 4))."""
        pad = (0, -latent.shape[-1] % 4, 0, -latent.shape[-2] % 4)
        magnitude = torch.log2(1 + F.pad(latent, pad, mode="replicate").abs())
        bands = F.avg_pool3d(magnitude[:, None], (self.GROUP, 4, 4))[:, 0] * HYPER_RESOLUTION
        x = F.leaky_relu(self.down(F.leaky_relu(self.head(magnitude), 0.1)), 0.1)
        correction = self.out(F.leaky_relu(self.deep(x), 0.1)).float()
        return (bands + correction) * torch.exp(self.gain(quality))


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
        step = quantiser_step(anchor_qualities())
        self.forward_transform = nn.Parameter(matrix.clone())
        self.inverse_transform = nn.Parameter(matrix.T.clone())
        self.gain = QualityTable(-torch.log(step)[:, None].expand(-1, COARSE))
        self.inverse_gain = QualityTable(torch.log(step)[:, None].expand(-1, COARSE))
        self.analysis = Analysis(conditional, attention)
        self.synthesis = Synthesis(conditional, attention)
        self.hyper_analysis = HyperAnalysis()
        self.hyper_prior = HyperPrior(HYPER)
        self.hyper_synthesis = HyperSynthesis(HYPER, PRIOR)
        bins = scale_to_bin(initial_scales(not conditional)[None, :] / step[:, None])
        self.prior = LatentPrior(COARSE, PRIOR, bins, linear=not conditional, temporal=temporal)

    def analyse(self, samples: Planes, quality: Tensor, condition: Condition | None) -> Tensor:
        """Latents in quantiser steps, (N, 96, H / 8, W / 8)."""
        with torch.autocast(samples.luma.device.type, enabled=False):
            # Float32: a bfloat16 DCT would err by half a quantiser step at the highest rates.
            linear = F.conv2d(fold(samples, 8), self.forward_transform[:, :, None, None])
        correction = self.analysis(fold(samples, 4), quality, condition)
        return (linear + correction.float()) * torch.exp(self.gain(quality))

    def code(
        self,
        coder: Coder,
        latent: Tensor | None,
        size: tuple[int, int],
        quality: Tensor,
        side: Tensor | None,
        past: TextureLatents | None,
        past_quality: Tensor | None,
    ) -> TextureLatents:
        """Code hyper-latents and latents (``latent`` None when decoding); ``size`` is theirs, (H / 8, W / 8)."""
        height, width = size
        hyper_value = None if latent is None else self.hyper_analysis(latent, quality)
        with torch.autocast(quality.device.type, enabled=False):
            shape = (quality.shape[0], HYPER, -(-height // 4), -(-width // 4))
            last = quality.new_zeros(shape) if past is None else past.hyper
            coder.part = "hyper"
            parameters = self.hyper_prior(last, quality)
            hyper = coder.latent(hyper_value, parameters.mean, parameters.bins, torch.ones_like(last))
            known = self.hyper_synthesis(hyper, height, width)
            if side is not None:
                known = known + side
            coder.part = "texture"
            coded = self.prior(coder, latent, known, quality, None if past is None else past.latent, past_quality)
        return TextureLatents(coded, hyper)

    def synthesise(
        self, coded: Tensor, prediction: Tensor | None, quality: Tensor, condition: Condition | None
    ) -> Planes:
        """Decoded samples from integer latents; ``prediction``: masked prediction, fold 4, added to the residual."""
        latent = coded.float() / LATENT_UNIT
        with torch.autocast(quality.device.type, enabled=False):
            scaled = latent * torch.exp(self.inverse_gain(quality))
            residual = unfold(F.conv2d(scaled, self.inverse_transform[:, :, None, None]), 8)
            linear = fold(residual, 4)
            if prediction is not None:
                linear = linear + prediction
        correction = self.synthesis(torch.asinh(scaled * 8), linear, quality, condition)
        return unfold(linear + correction.float(), 4)
