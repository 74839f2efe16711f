"""From integer latents and motion to bits: the two lines these can walk.

Networks describe latents and hand them to a :class:`Coder` together with integer means and integer scale bins. An
:class:`Estimator` counts bits (training), a :class:`PacketCoder` codes or decodes symbols. So the networks are written
once for all.
"""

import functools
import zlib
from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rqlvc.codec.binary import BinaryCoder, counter, finish
from rqlvc.codec.coefficients import (
    SETS,
    SETS_OF_ONE,
    SYMBOL_LIMIT,
    Around,
    Choice,
    Layout,
    around,
    code_block,
    further_sets,
    hyper_layout,
    texture_layout,
)
from rqlvc.codec.integer import LATENT_UNIT
from rqlvc.codec.laplace import (
    BIT_PRICE,
    MOST,
    SKIP_BIN,
    bits_of_one,
    gradient_share,
    laplace_bits,
    laplace_rounding,
    quantise,
    rate_gradient,
)
from rqlvc.codec.mixing import Mixer, blank_decision, fresh_mixer
from rqlvc.codec.motion import Field, Surroundings, as_field, as_motion, surroundings
from rqlvc.codec.motion_coding import code_field

MOTION = "motion"
"""Where the bits of vectors are booked; those of latents are under "texture" and "texture hyper"."""

Kind = Literal["intra", "intra hyper", "inter", "inter hyper"]
"""Of latents: each has contexts of its own."""
Mixers = Mapping[Kind, Mixer]


def part_of(kind: Kind) -> str:
    """Where bits of this kind are booked."""
    return "texture hyper" if kind.endswith("hyper") else "texture"


def layout_of(kind: Kind) -> Layout:
    """How latents of this kind lie to each other."""
    return hyper_layout() if kind.endswith("hyper") else texture_layout()


def new_mixer(kind: Kind) -> Mixer:
    """Contexts and weights that know nothing."""
    layout = layout_of(kind)
    return fresh_mixer(int(layout.contexts[-1]), SETS, further_sets(layout))


class MotionContext(NamedTuple):
    """What both sides know of motion before a frame."""

    last: Tensor | None
    """The last frame's motion (N, 3, h, w), as it would be to the pictures of this frame: vectors in quarter samples,
    and which picture they reach to; None after an intra frame."""
    distances: tuple[int, ...]
    """Frames from this one to each picture that vectors may reach to, the reference first."""
    mixers: tuple[Mixer, ...]
    """What decisions are coded with, for each of N."""
    predicted: bool
    """Whether decoded motion predicts motion."""

    def of(self, sample: int, field: Field) -> tuple[Surroundings, Mixer]:
        """What is around ``field`` (h, w, 3) of one sample of the batch, and a mixer that may adapt."""
        last = None if self.last is None else as_field(self.last[sample])
        return surroundings(field, last, self.distances, self.predicted), self.mixers[sample].copy()


class Place(NamedTuple):
    """Which latents of a frame are coded."""

    kind: Kind
    size: tuple[int, int]
    """(height, width) of the whole, in squares."""
    squares: Tensor
    """Row after row, (S,)."""
    channels: Tensor
    """(K,)."""
    last: Tensor | None = None
    """The last frame's latents of the same kind, (N, channels, height, width), in 1/16 steps."""


class Coder(Protocol):
    def motion(
        self, vectors: Tensor | None, known: MotionContext, size: tuple[int, int]
    ) -> tuple[Tensor, tuple[Mixer, ...]]:
        """Code ``vectors`` and their pictures (N, 3, h, w; None when decoding) of ``size`` (h, w), before any
        latents. Returns them, and the mixers after them."""
        ...

    def latent(self, value: Tensor | None, mean: Tensor, bins: Tensor, place: Place) -> Tensor:
        """Code latents and return them as both sides know them, in 1/16 steps.

        ``value``: real latents in quantiser steps, None when decoding. ``mean``: integers in 1/16 steps. ``bins``:
        integer scale bins in [0, 63]. All (N, S, K) for the S squares and K channels of ``place``.
        """
        ...


class Estimator:
    """Estimates bits per sample of the batch; differentiable."""

    def __init__(self) -> None:
        self.bits: dict[str, Tensor] = {}

    def motion(
        self, vectors: Tensor | None, known: MotionContext, size: tuple[int, int]
    ) -> tuple[Tensor, tuple[Mixer, ...]]:
        assert vectors is not None
        bits, after = [], []
        for sample, field in enumerate(vectors):
            around, mixer = known.of(sample, as_field(field))
            coder = counter()
            code_field(coder, mixer, around)
            bits.append(float(coder.bits[0]))
            after.append(mixer)
        self.bits[MOTION] = torch.tensor(bits, device=vectors.device)
        return vectors, tuple(after)

    def latent(self, value: Tensor | None, mean: Tensor, bins: Tensor, place: Place) -> Tensor:
        assert value is not None
        centred = value - mean / LATENT_UNIT
        part = part_of(place.kind)
        rounding, known = laplace_rounding(part), bins.detach()
        symbol = quantise(centred.detach(), known, rounding).clamp(-SYMBOL_LIMIT, SYMBOL_LIMIT).to(value.dtype)
        if centred.requires_grad:
            share = gradient_share(centred.detach(), symbol, known, rounding)
            passed = (centred - centred.detach()) * share
            cost = laplace_bits(symbol, bins) + rate_gradient(centred.detach() + passed, symbol, known)
        else:
            passed, cost = torch.zeros_like(symbol), laplace_bits(symbol, bins)
        self.bits[part] = self.bits.get(part, 0) + cost.flatten(1).sum(dim=1)  # type: ignore[call-overload]
        # With the symbol held, the latent moves with its mean: that gradient is real, so it is kept.
        return (symbol + passed) * LATENT_UNIT + mean


class PacketCoder:
    """Codes the symbols of a frame, or decodes them, as the binary ``coder`` below it does; batches of one.

    ``mixers`` are what the frame starts from; :attr:`mixers` is what the next frame of the group starts from.
    """

    def __init__(self, coder: BinaryCoder, mixers: Mixers) -> None:
        self.mixers: dict[Kind, Mixer] = dict(mixers)
        self.bits: dict[str, float] = {}
        """By part; nothing is added up when decoding."""
        self.checksum = 0
        self._coder = coder
        self._around: dict[Kind, Around] = {}

    def motion(
        self, vectors: Tensor | None, known: MotionContext, size: tuple[int, int]
    ) -> tuple[Tensor, tuple[Mixer, ...]]:
        field = np.zeros((*size, 3), np.int32) if vectors is None else as_field(vectors[0])
        before = float(self._coder.bits[0])
        around, mixer = known.of(0, field)
        code_field(self._coder, mixer, around)
        self._book(MOTION, before, field)
        return as_motion(field)[None], (mixer,)

    def latent(self, value: Tensor | None, mean: Tensor, bins: Tensor, place: Place) -> Tensor:
        kind = place.kind
        if kind not in self._around:
            self._around[kind] = _around(place)
            self.mixers[kind] = self.mixers[kind].copy()
        symbols = np.empty(mean.shape[1:], np.int32)
        before = float(self._coder.bits[0])
        code_block(
            self._coder,
            self.mixers[kind],
            layout_of(kind),
            self._around[kind],
            place.squares.cpu().numpy(),
            place.channels.cpu().numpy(),
            _numbers(bins),
            0 if kind.endswith("hyper") else SKIP_BIN + 1,
            _NOTHING if value is None else _numbers(value - mean / LATENT_UNIT),
            _choice(part_of(kind)),
            blank_decision(SETS_OF_ONE),
            symbols,
        )
        self._book(part_of(kind), before, symbols)
        return mean + LATENT_UNIT * torch.from_numpy(symbols)[None].to(mean)

    def _book(self, part: str, before: float, symbols: npt.NDArray[np.int32]) -> None:
        self.bits[part] = self.bits.get(part, 0.0) + float(self._coder.bits[0]) - before
        self.checksum = zlib.crc32(symbols.tobytes(), self.checksum)

    def finish(self) -> bytes:
        """What was written."""
        return finish(self._coder)


_NOTHING = np.zeros((0, 0), np.float32)


def _numbers(tensor: Tensor) -> npt.NDArray[np.float32]:
    """Of the only sample."""
    return tensor[0].detach().float().contiguous().cpu().numpy()


def _around(place: Place) -> Around:
    last = None
    if place.last is not None:
        rows = place.last[0].detach().flatten(1).T
        last = rows.abs().mul_(1 / LATENT_UNIT).add_(0.5).to(torch.int32).contiguous().cpu().numpy()
    height, width = place.size
    return around(layout_of(place.kind), height * width, width, last)


@functools.cache
def _choice(part: str) -> Choice:
    return Choice(laplace_rounding(part).offset.numpy(), bits_of_one().numpy(), BIT_PRICE.get(part, 0.0), MOST)
