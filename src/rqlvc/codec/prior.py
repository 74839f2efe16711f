"""Coding of latents: integer prior networks from what both sides know to the mean and scale bin of every latent.

But for :func:`hyper_values`, which only the encoder runs, everything in this file is integer-exact (see
:mod:`rqlvc.codec.integer`): inputs are integer latents, already decoded by both sides, and quality in 1/64 steps.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlvc.codec.entropy import Coder, Kind, Place
from rqlvc.codec.integer import (
    LATENT_UNIT,
    IntegerConv,
    compand,
    companding_table,
    linear_input,
    rectify,
    requantise,
    round_half_up,
)
from rqlvc.codec.interpolation import upsample_blocks
from rqlvc.codec.laplace import BINS, SKIP_BIN, bin_scales
from rqlvc.codec.quality import ANCHORS, IntegerQualityTable

MEAN_LIMIT = 16 * 1024
SHIFT = 8  # weights of 1/256: +-127 reaches +-0.5, five deviations of the widest layer at the start


class Parameters(NamedTuple):
    mean: Tensor  # integers, 1/16 quantiser steps
    bins: Tensor  # integers in [0, 63]


def split_parameters(accumulator: Tensor, offset: Tensor, axis: int = -1) -> Parameters:
    """Means and bins, side by side along ``axis``, from the last accumulator; ``offset`` is added to the bins."""
    output = requantise(accumulator, SHIFT)
    mean, scale = output.chunk(2, dim=axis)
    return Parameters(mean.clamp(-MEAN_LIMIT, MEAN_LIMIT), (scale + offset).clamp(0, BINS - 1))


GROUP = 4  # neighbouring channels that share a band of the hyper-latents
REACH = 4  # latents on each side that share a hyper-latent
HYPER_RESOLUTION = 2.0  # steps of a hyper-latent per doubling of its band's magnitude
QUIET = 0.1  # mean log-magnitude that a hyper-latent of zero stands for
_TABLE_STEPS = 4  # entries of the band table per step of a hyper-latent
_TABLE_LENGTH = 80


def mean_log_magnitude(scale: Tensor) -> Tensor:
    """E log2(1 + |v|) of a Laplace variable, elementwise in its scale."""
    quantiles = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    magnitude = -torch.log(quantiles) * scale.double()[..., None]
    return torch.log2(1 + magnitude).mean(dim=-1).float()


def band_table() -> Tensor:
    """Scale bin (integer) of a band whose hyper-latent is index / 4: the hyper-latents' meaning before training."""
    mean = mean_log_magnitude(bin_scales()).contiguous()
    wanted = (torch.arange(_TABLE_LENGTH) / _TABLE_STEPS / HYPER_RESOLUTION).clamp(min=QUIET)
    return torch.searchsorted(mean, wanted).clamp(max=BINS - 1).float()


def hyper_values(latent: Tensor) -> Tensor:
    """Hyper-latents, in steps: the mean log-magnitude of 4 neighbouring channels over 4x4 latents. Encoder only.

    ``latent`` in quantiser steps, (N, C, H, W); result (N, C / 4, ceil(H / 4), ceil(W / 4)). Nothing here is trained:
    trained hyper-latents fall silent, for what they are worth to the prior reaches them through rounding and a table,
    while their price is always felt.
    """
    pad = (0, -latent.shape[-1] % REACH, 0, -latent.shape[-2] % REACH)
    magnitude = torch.log2(1 + F.pad(latent.detach(), pad, mode="replicate").abs())
    return F.avg_pool3d(magnitude[:, None], (GROUP, REACH, REACH))[:, 0] * HYPER_RESOLUTION


class HyperPrior(nn.Module):
    """Prior of the hyper-latents: the last frame's hyper-latents and the quality level."""

    companding: Tensor

    LIMIT = 4095  # 1/16 steps: what past hyper-latents are clamped to, so that their products are exact

    def __init__(self, initial_mean: Tensor, temporal: bool) -> None:
        """``initial_mean``: hyper-latents to expect at each quality anchor, (9, channels)."""
        super().__init__()
        channels = initial_mean.shape[1]
        self.past = IntegerConv(channels, 2 * channels, 3, gain=0.05, signed=True) if temporal else None
        self.keep = nn.Parameter(torch.full((channels, 1, 1), 0.75)) if temporal else None
        self.level = IntegerQualityTable(initial_mean * LATENT_UNIT)
        self.offset = IntegerQualityTable(torch.full((ANCHORS, channels), 20.0))
        self.register_buffer("companding", companding_table(), persistent=False)

    def forward(self, past: Tensor | None, shape: tuple[int, ...], quality: Tensor) -> Parameters:
        """Parameters of ``shape``; ``past`` is None after an intra frame."""
        level, offset = self.level(quality).expand(shape), self.offset(quality).expand(shape)
        if past is None or self.past is None or self.keep is None:
            return Parameters(level, offset.clamp(0, BINS - 1))
        mean, bins = split_parameters(self.past(compand(past, self.companding)), offset, axis=1)
        keep = round_half_up(self.keep.clamp(0, 1) * LATENT_UNIT) / LATENT_UNIT
        past = past.clamp(-self.LIMIT, self.LIMIT)
        return Parameters(mean + level + round_half_up((past - level) * keep), bins)


class HyperSynthesis(nn.Module):
    """Hyper-latents at 1/4 of the latents' resolution, up to it: an accumulator for the prior's sum."""

    companding: Tensor

    def __init__(self, hyper: int, width: int) -> None:
        super().__init__()
        self.inner = IntegerConv(hyper, width, 3, signed=True)
        self.up = IntegerConv(width, 4 * width // 2, 3)
        self.out = IntegerConv(width // 2, 4 * width, 1)
        self.register_buffer("companding", companding_table(), persistent=False)

    def forward(self, hyper: Tensor, height: int, width: int) -> Tensor:
        x = rectify(self.inner(compand(hyper, self.companding)), SHIFT)
        x = F.pixel_shuffle(rectify(self.up(x), SHIFT), 2)
        return F.pixel_shuffle(self.out(x), 2)[:, :, :height, :width]


class Step(nn.Module):
    """One step of the context model: what is known so far to features of every square."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.context = IntegerConv(inputs, width, 3, signed=True) if inputs else None
        self.inner = IntegerConv(width, width, 3)

    def forward(self, known: Tensor, decoded: Tensor | None) -> Tensor:
        if self.context is not None and decoded is not None:
            known = known + self.context(decoded)
        return rectify(self.inner(rectify(known, SHIFT)), SHIFT)


BESIDE = ((0.0, 1.0, 0.0), (1.0, 0.0, 1.0), (0.0, 1.0, 0.0))
ACROSS = ((1.0, 0.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 1.0))


class NeighbourMean(IntegerConv):
    """Low frequencies predicted, linearly, from those of the squares around that are coded.

    Starts as nine tenths of the mean of four of these; learns gradients from differences of means.
    """

    COARSER = 4  # the input counts in quarter steps, so that 12 channels of 9 products stay below 2^24
    LIMIT = 1023
    BYTES = False

    def __init__(self, channels: int, four: tuple[tuple[float, ...], ...]) -> None:
        """``four``: ones for the squares of 3x3 whose mean it starts from."""
        super().__init__(channels, channels, 3)
        self.weight.data = torch.eye(channels)[:, :, None, None] * torch.tensor(four) * 0.225

    def forward(self, decoded: Tensor) -> Tensor:
        """Means in 1/16 steps from latents in 1/16 steps."""
        coarse = torch.floor(decoded / self.COARSER + 0.5).clamp(-self.LIMIT, self.LIMIT)
        return requantise(super().forward(coarse) * self.COARSER, SHIFT)


class LatentPrior(nn.Module):
    """Prior of latents, coded on a checkerboard in three steps, or in four.

    Low frequencies on the even squares come first; then, knowing these, low frequencies on the odd and the rest on the
    even squares; then the rest. In intra frames, where squares beside each other are alike, the first step is two: the
    even squares of even rows, then those of odd rows, between them. Every step also knows the side information
    (hyper-latents, other latents of this frame), the last frame's latents of the same kind and the quality levels of
    both frames.
    """

    companding: Tensor

    def __init__(
        self, kind: Kind, channels: int, low: tuple[int, ...], width: int, *, linear: bool, whole: bool, temporal: bool
    ) -> None:
        """``low``: the channels of lowest frequency; with ``linear`` they also enter uncompressed, are predicted from
        their neighbours and coded in three steps, because in intra frames they are large and smooth. With ``whole``,
        means are whole steps: an inter frame needs latents that are zero and not nearly so, which would add up along a
        group of pictures."""
        super().__init__()
        self.kind = kind
        self.low = low
        self.linear = linear
        self.whole = whole
        rest = [channel for channel in range(channels) if channel not in low]
        self.coded = torch.tensor([*low, *rest])
        self.order = _runs([*low, *rest])
        self.natural = _runs(sorted(range(channels), key=[*low, *rest].__getitem__))
        inputs = channels + (len(low) if linear else 0)
        self.past = IntegerConv(inputs, width, 3, signed=True) if temporal else None
        self.level = IntegerQualityTable(torch.randn(ANCHORS, width) * 4)
        self.past_level = IntegerQualityTable(torch.zeros(ANCHORS, width)) if temporal else None
        self.offset = IntegerQualityTable(torch.zeros(ANCHORS, channels))
        self.across, self.beside = (NeighbourMean(len(low), four) if linear else None for four in (ACROSS, BESIDE))
        low_steps = 3 if linear else 2
        self.steps = nn.ModuleList(Step(inputs if index else 0, width) for index in range(low_steps + 1))
        # From a step's features to parameters of low frequencies, step by step, then of the rest on even, odd squares.
        self.low_heads = nn.ModuleList(IntegerConv(width, 2 * len(low), 1, gain=0.05) for _ in range(low_steps))
        self.rest_heads = nn.ModuleList(IntegerConv(width, 2 * len(rest), 1, gain=0.05) for _ in range(2))
        self.register_buffer("companding", companding_table(), persistent=False)

    def _input(self, latent: Tensor) -> Tensor:
        latent = latent.detach()
        companded = compand(latent, self.companding)
        return torch.cat([companded, linear_input(latent[:, self.low])], dim=1) if self.linear else companded

    def forward(
        self,
        coder: Coder,
        value: Tensor | None,
        side: Tensor,
        bands: Tensor,
        quality: Tensor,
        past: Tensor | None,
        past_quality: Tensor | None,
    ) -> Tensor:
        """Code ``value`` (None when decoding); returns the latents as integers in 1/16 steps.

        ``side``: accumulator (batch, width, height, width) of the side information, of shift 8. ``bands``: the scale
        bin that the hyper-latents suggest for each latent.
        """
        known = side + self.level(quality) * 2.0**SHIFT
        if self.past is not None and self.past_level is not None and past is not None and past_quality is not None:
            known = known + self.past(self._input(past)) + self.past_level(past_quality) * 2.0**SHIFT
        low, rest = slice(0, len(self.low)), slice(len(self.low), None)
        even, odd = _squares(bands)
        parts: tuple[Tensor, ...] = (even, odd)
        if self.linear:
            odd_row = even // bands.shape[-1] % 2 == 1
            parts = (even[~odd_row], even[odd_row], odd)
        around = (None, self.across, self.beside)[-len(parts) :]
        first_rest, second_rest = self.rest_heads
        plan = [[Block(low, *part)] for part in zip(parts, self.low_heads, around, strict=True)]
        plan[-1].append(Block(rest, even, first_rest))
        plan.append([Block(rest, odd, second_rest)])
        offset = _reordered(_rows(bands + self.offset(quality)), self.order)
        values = None if value is None else _reordered(_rows(value), self.order)
        rows = torch.zeros_like(offset)
        decoded = torch.zeros_like(bands)
        for index, (step, blocks) in enumerate(zip(self.steps, plan, strict=True)):
            features = step(known, self._input(decoded) if index else None)
            rows = self._code(coder, values, blocks, _rows(features), offset, decoded, rows, past)
            decoded = _reordered(rows, self.natural).unflatten(1, decoded.shape[2:]).permute(0, 3, 1, 2)
        return decoded

    def _code(
        self,
        coder: Coder,
        values: Tensor | None,
        blocks: "list[Block]",
        features: Tensor,
        offset: Tensor,
        decoded: Tensor,
        rows: Tensor,
        past: Tensor | None,
    ) -> Tensor:
        """``rows`` with the latents of ``blocks`` added: (N, H W, C), as all arguments but ``decoded`` and ``past``
        (N, C, H, W)."""
        rows = rows.clone()
        for block in blocks:
            if not len(block.squares):  # a single square has no odd ones
                continue
            accumulator = block.head(features.index_select(1, block.squares).mT[:, :, None])[:, :, 0].mT
            parameters = split_parameters(accumulator, block.of(offset))
            mean = parameters.mean
            if block.neighbours is not None:
                mean = mean + _rows(block.neighbours(decoded[:, self.low].detach())).index_select(1, block.squares)
            if self.whole:  # and nothing where nothing is coded, for there it could not be corrected
                mean = round_half_up(mean / LATENT_UNIT) * LATENT_UNIT * (parameters.bins > SKIP_BIN)
            size = (decoded.shape[2], decoded.shape[3])
            place = Place(self.kind, size, block.squares, self.coded[block.channels], past)
            value = None if values is None else block.of(values)
            rows[:, block.squares, block.channels] = coder.latent(value, mean, parameters.bins, place)
        return rows


class Block(NamedTuple):
    """Latents that are coded at once: some channels of half of the squares, and the head of their parameters."""

    channels: slice
    squares: Tensor
    head: Any  # an IntegerConv
    neighbours: nn.Module | None = None

    def of(self, rows: Tensor) -> Tensor:
        """(N, H W, C) to (N, squares, channels)."""
        return rows[..., self.channels].index_select(1, self.squares)


def _runs(order: Sequence[int]) -> list[slice]:
    """``order`` as slices of consecutive channels."""
    starts = [i for i in range(len(order)) if i == 0 or order[i] != order[i - 1] + 1]
    return [slice(order[i], order[j - 1] + 1) for i, j in pairwise([*starts, len(order)])]


def _reordered(rows: Tensor, runs: list[slice]) -> Tensor:
    """Channels, the last dimension, run after run."""
    return torch.cat([rows[..., run] for run in runs], dim=-1)


def _rows(planes: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H W, C): one position after the other, which lie so in memory."""
    return planes.permute(0, 2, 3, 1).flatten(1, 2)


def _squares(like: Tensor) -> tuple[Tensor, Tensor]:
    """Positions, row after row, of the even and of the odd squares of a checkerboard."""
    height, width = like.shape[-2:]
    i, j = torch.arange(height, device=like.device), torch.arange(width, device=like.device)
    odd = ((i[:, None] + j) % 2).flatten()
    return torch.nonzero(odd == 0)[:, 0], torch.nonzero(odd)[:, 0]


class Latents(NamedTuple):
    """Integer latents of one frame (1/16 steps) and their hyper-latents at a quarter of the resolution."""

    latent: Tensor
    hyper: Tensor

    def detach(self) -> "Latents":
        return Latents(self.latent.detach(), self.hyper.detach())


class LatentCodec(nn.Module):
    """Hyper-latents, then latents."""

    bands: Tensor

    def __init__(
        self,
        kind: Literal["intra", "inter"],
        initial_scale: Tensor,
        low: tuple[int, ...],
        width: int,
        *,
        linear: bool,
        whole: bool,
        temporal: bool,
    ) -> None:
        """``kind``: of frame. ``initial_scale``: Laplace scale to expect at each anchor, (9, channels)."""
        super().__init__()
        channels = initial_scale.shape[1]
        mean = mean_log_magnitude(initial_scale).reshape(ANCHORS, -1, GROUP).mean(dim=-1) * HYPER_RESOLUTION
        self.hyper_kind: Kind = "intra hyper" if kind == "intra" else "inter hyper"
        self.hyper_channels = channels // GROUP
        self.hyper_prior = HyperPrior(mean, temporal)
        self.hyper_synthesis = HyperSynthesis(channels // GROUP, width)
        self.prior = LatentPrior(kind, channels, low, width, linear=linear, whole=whole, temporal=temporal)
        self.register_buffer("bands", band_table())

    def forward(
        self,
        coder: Coder,
        latent: Tensor | None,
        size: tuple[int, int],
        quality: Tensor,
        side: Tensor | None = None,
        past: Latents | None = None,
        past_quality: Tensor | None = None,
    ) -> Latents:
        """Code ``latent`` (quantiser steps; None when decoding) of ``size`` (height, width).

        ``side``: accumulator of what else is known of this frame; ``past``: the last frame's latents of this kind.
        """
        height, width = size
        value = None if latent is None else hyper_values(latent)
        with torch.autocast(quality.device.type, enabled=False):
            shape = (quality.shape[0], self.hyper_channels, -(-height // REACH), -(-width // REACH))
            mean, bins = self.hyper_prior(None if past is None else past.hyper, shape, quality)
            hyper = self._code_hyper(coder, value, mean, bins)
            known = self.hyper_synthesis(hyper, height, width)
            decoded = self.prior(
                coder,
                latent,
                known if side is None else known + side,
                self._band_bins(hyper)[:, :, :height, :width],
                quality,
                None if past is None else past.latent,
                past_quality,
            )
        return Latents(decoded, hyper)

    def _code_hyper(self, coder: Coder, value: Tensor | None, mean: Tensor, bins: Tensor) -> Tensor:
        _, channels, height, width = mean.shape
        squares, bands = (torch.arange(count, device=mean.device) for count in (height * width, channels))
        place = Place(self.hyper_kind, (height, width), squares, bands)
        rows = coder.latent(None if value is None else _rows(value), _rows(mean), _rows(bins), place)
        return rows.mT.unflatten(2, (height, width))

    def _band_bins(self, hyper: Tensor) -> Tensor:
        """The bin that the band table gives each latent, (N, C, 4H, 4W)."""
        index = torch.floor(hyper * (_TABLE_STEPS / LATENT_UNIT) + 0.5).clamp(0, _TABLE_LENGTH - 1)
        return upsample_blocks(self.bands[index.long()].repeat_interleave(GROUP, dim=1), REACH)
