"""From integer latents and motion to bits: scale bins, their probability tables, and the three lines these can walk.

A network describes latents and hands them to a :class:`Coder` together with integer means and integer scale bins.
An :class:`Estimator` counts bits (training), a :class:`Writer` codes symbols, a :class:`Reader` decodes them. So the
networks are written once for all three.
"""

import functools
import math
import zlib
from typing import Any, NamedTuple, Protocol

import constriction
import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

from rqlvc.codec.binary import BinaryCoder, Contexts, counter, finish, reader, writer
from rqlvc.codec.compiled import OPTIONS
from rqlvc.codec.integer import LATENT_UNIT
from rqlvc.codec.motion import Field, Surroundings, as_field, as_vectors, code_field, surroundings
from rqlvc.errors import RqlvcError

BINS = 64
SCALE_MIN = 0.08
SCALE_MAX = 64.0
LOG_STEP = math.log(SCALE_MAX / SCALE_MIN) / (BINS - 1)
"""Bin b stands for a Laplace distribution of scale SCALE_MIN * exp(b * LOG_STEP)."""

SKIP_BIN = 0
"""Latents of this bin are not coded: they differ from their mean with a probability below 0.3 %. Hyper-latents are,
for else a band that the prior takes to be silent would stay so, whatever the picture holds."""

SYMBOL_LIMIT = 255
"""Symbols beyond a bin's support are coded as an escape, then plainly."""
LEAST_SUPPORT = 8
ESCAPE_LIMIT = 2**15 - 1
TABLE_TOTAL = 2**16
"""Each table's integer frequencies add up to this."""

RATE_TRUST = 0.8
"""Share of a symbol's cost that the quantiser counts: detail that is coded also serves the frames to come."""
BIT_PRICE = {"texture": RATE_TRUST * math.log(2) / 6}
"""Squared quantiser steps that a bit is worth: lambda * step^2 / 1.5 = 6 / ln2 bits a squared step is the high-rate
optimum of the samples' quantiser. Hyper-latents are rounded to nearest."""

MOTION = "motion"
"""Where the bits of vectors are booked."""

Symbols = npt.NDArray[np.int32]


def laplace_bits(symbol: Tensor, bins: Tensor) -> Tensor:
    """-log2 of the probability that a Laplace variable of the bin's scale rounds to ``symbol``."""
    scale = SCALE_MIN * torch.exp(bins * LOG_STEP)
    magnitude = symbol.abs()
    tail = torch.exp(-0.5 / scale)
    zero = -torch.log2(1 - tail + 1e-9)
    # For n >= 1: exp(-(n - 1/2) / scale) * (1 - exp(-1 / scale)) / 2.
    other = ((magnitude - 0.5) / scale - torch.log(1 - tail * tail + 1e-9)) / math.log(2) + 1
    return torch.where(magnitude < 0.5, zero, other)


class Rounding(NamedTuple):
    """By bin: what is added to a magnitude before it is rounded down, and the magnitude below which it is zero."""

    offset: Tensor
    threshold: Tensor


NEAREST = Rounding(torch.full((BINS,), 0.5), torch.full((BINS,), 0.5))


def rate_aware_rounding(first: Tensor, further: Tensor, bit_price: float) -> Rounding:
    """Rate-distortion optimised rounding: the nearest integer, or the next towards zero where that saves more.

    ``first``: bits by bin that a one costs more than a zero; ``further``: that every further step costs.
    ``bit_price``: squared quantiser steps that a bit is worth. Going from n - 1 to n lowers the squared error of v by
    2 (v - n + 1/2). Encoder only, so free to change.
    """
    price = bit_price / 2
    # A bin that hardly ever sees a one must still be able to send it.
    return Rounding(0.5 - (price * further).clamp(0, 0.45), 0.5 + (price * first).clamp(0, 0.6))


@functools.cache
def laplace_rounding(part: str) -> Rounding:
    """For Laplace distributions; hyper-latents, which have no price, are rounded to nearest."""
    if part not in BIT_PRICE:
        return NEAREST
    bins = torch.arange(BINS, dtype=torch.float32)
    first = laplace_bits(torch.ones(BINS), bins) - laplace_bits(torch.zeros(BINS), bins)
    return rate_aware_rounding(first, 1 / (math.log(2) * SCALE_MIN * torch.exp(bins * LOG_STEP)), BIT_PRICE[part])


def quantise(value: Tensor, bins: Tensor, rounding: Rounding) -> Tensor:
    """Integers from latents in quantiser steps, whose scale bins are ``bins``."""
    magnitude = value.abs()
    offset, threshold = (table.to(value.device)[bins.long()] for table in rounding)
    rounded = torch.floor(magnitude + offset).clamp(min=1.0)
    return torch.sign(value) * torch.where(magnitude < threshold, 0.0, rounded)


SOFTNESS = 3
"""Exponent of :func:`gradient_share` below the rounding threshold."""


def gradient_share(value: Tensor, symbol: Tensor, bins: Tensor, rounding: Rounding) -> Tensor:
    """How much of a change of ``value`` its rounding is taken to pass on, in [0, 1]: training's straight-through rule.

    All of it where a symbol is coded, next to nothing far below the threshold. Were it all of it everywhere, an inter
    frame would seem not to depend on its prediction, whose every change the residual makes up for: but nearly all of
    the residual is rounded to zero.
    """
    threshold = rounding.threshold.to(value.device)[bins.long()]
    below = (value.abs() / threshold).clamp(max=1) ** SOFTNESS
    return torch.where(symbol == 0, below, 1.0)


def rate_gradient(value: Tensor, symbol: Tensor, bins: Tensor) -> Tensor:
    """Zero, with the gradient in ``value`` that the rate has in truth: bits per step of magnitude.

    The rate of the rounded symbol is flat around zero. Left at that, training would amplify whatever rounding drops,
    until it is coded: distortion pulls, and no rate holds against it.
    """
    if not value.requires_grad:
        return torch.zeros_like(value)
    with torch.no_grad():
        scale = SCALE_MIN * torch.exp(bins * LOG_STEP)
        first = laplace_bits(torch.ones_like(bins), bins) - laplace_bits(torch.zeros_like(bins), bins)
        slope = torch.where(symbol == 0, first, 1 / (math.log(2) * scale))
    magnitude = value.abs() * slope
    return magnitude - magnitude.detach()


class MotionContext(NamedTuple):
    """What both sides know of motion before a frame."""

    last: Tensor | None
    """The last frame's vectors (N, 2, h, w) in quarter samples; None after an intra frame."""
    contexts: Tensor
    """(N, contexts, 2), int32: see :mod:`rqlvc.codec.binary`."""
    predicted: bool
    """Whether decoded motion predicts motion."""

    def of(self, sample: int, field: Field) -> tuple[Surroundings, Contexts]:
        """What is around ``field`` (h, w, 2) of one sample of the batch, and contexts that may adapt."""
        last = None if self.last is None else as_field(self.last[sample])
        return surroundings(field, last, self.predicted), self.contexts[sample].cpu().numpy().copy()


class Coder(Protocol):
    part: str
    """Where bits of latents are booked from now on: "texture", or its hyper-latents, "texture hyper"."""

    def motion(self, vectors: Tensor | None, known: MotionContext, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Code whole ``vectors`` (N, 2, h, w; quarter samples; None when decoding) of ``size`` (h, w), before any
        latents. Returns them, and the contexts after them."""
        ...

    def latent(self, value: Tensor | None, mean: Tensor, bins: Tensor) -> Tensor:
        """Code latents and return them as both sides know them, in 1/16 steps.

        ``value``: real latents in quantiser steps, None when decoding. ``mean``: integers in 1/16 steps. ``bins``:
        integer scale bins in [0, 63]. All of one shape, samples of the batch first.
        """
        ...


class Counts(NamedTuple):
    """What was coded: the tables and contexts of a weights file come from it."""

    symbols: Tensor
    """By scale bin and magnitude, (64, 256)."""
    decisions: npt.NDArray[np.int64]
    """Of motion: zeros and ones in each context, (contexts, 2)."""


class Estimator:
    """Estimates bits per sample of the batch; differentiable. ``counts`` grow by what is coded."""

    def __init__(self, counts: Counts | None = None) -> None:
        self.bits: dict[str, Tensor] = {}
        self.part = "total"
        self.counts = counts

    def motion(self, vectors: Tensor | None, known: MotionContext, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        assert vectors is not None
        bits, after = [], []
        for sample, field in enumerate(vectors):
            around, contexts = known.of(sample, as_field(field))
            coder = counter(len(contexts))
            code_field(coder, contexts, around)
            bits.append(float(coder.bits[0]))
            after.append(torch.from_numpy(contexts))
            if self.counts is not None:
                self.counts.decisions[:] += coder.seen
        self.bits[MOTION] = torch.tensor(bits, device=vectors.device)
        return vectors, torch.stack(after)

    def latent(self, value: Tensor | None, mean: Tensor, bins: Tensor) -> Tensor:
        assert value is not None
        centred = value - mean / LATENT_UNIT
        rounding, known = laplace_rounding(self.part), bins.detach()
        symbol = quantise(centred.detach(), known, rounding).clamp(-ESCAPE_LIMIT, ESCAPE_LIMIT).to(value.dtype)
        if centred.requires_grad:
            share = gradient_share(centred.detach(), symbol, known, rounding)
            passed = (centred - centred.detach()) * share
            cost = laplace_bits(symbol, bins) + rate_gradient(centred.detach() + passed, symbol, known)
        else:
            passed, cost = torch.zeros_like(symbol), laplace_bits(symbol, bins)
        self.bits[self.part] = self.bits.get(self.part, 0) + cost.flatten(1).sum(dim=1)  # type: ignore[call-overload]
        if self.counts is not None:
            _count(self.counts.symbols, symbol, known)
        # With the symbol held, the latent moves with its mean: that gradient is real, so it is kept.
        return (symbol + passed) * LATENT_UNIT + mean


def _count(histogram: Tensor, symbols: Tensor, bins: Tensor) -> None:
    """Add symbols to ``histogram`` of shape (64, SYMBOL_LIMIT + 1), by bin and magnitude."""
    magnitude = symbols.abs().clamp(max=SYMBOL_LIMIT).long()
    index = bins.long() * (SYMBOL_LIMIT + 1) + magnitude
    histogram += torch.bincount(index.flatten(), minlength=histogram.numel()).reshape(histogram.shape)


# --- probability tables -------------------------------------------------------------------------------------------


def support(bin_index: int) -> int:
    """Largest |symbol| that a bin's table holds; beyond it comes the escape."""
    scale = SCALE_MIN * math.exp(bin_index * LOG_STEP)
    return min(SYMBOL_LIMIT, max(LEAST_SUPPORT, math.ceil(scale * 9)))


def build_tables(histogram: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.int32]:
    """Integer frequencies, shape (64, 2 * 255 + 2): symbols -255..255 and the escape.

    Each row adds up to 2^16 and has no zero inside its support. Without a histogram the rows are Laplace; with one
    (by bin and magnitude, shape (64, 256)) the Laplace row is the prior of a Dirichlet estimate of 1000 symbols.
    """
    prior_weight = 1000.0
    tables = np.zeros((BINS, 2 * SYMBOL_LIMIT + 2), np.int32)
    for index in range(BINS):
        limit = support(index)
        scale = SCALE_MIN * math.exp(index * LOG_STEP)
        n = np.arange(1, limit + 1, dtype=np.float64)
        one_sided = np.exp(-(n - 0.5) / scale) * (1 - math.exp(-1 / scale)) / 2
        magnitude = np.concatenate([[1 - math.exp(-0.5 / scale)], 2 * one_sided, [math.exp(-(limit + 0.5) / scale)]])
        if histogram is not None:
            counts = histogram[index].astype(np.float64)
            seen = np.concatenate([counts[: limit + 1], [counts[limit + 1 :].sum()]])
            magnitude = (magnitude * prior_weight + seen) / (prior_weight + seen.sum())
        row = np.concatenate([magnitude[limit:0:-1] / 2, magnitude[:1], magnitude[1 : limit + 1] / 2, magnitude[-1:]])
        frequencies = _integer_frequencies(row)
        start = SYMBOL_LIMIT - limit
        tables[index, start : start + 2 * limit + 1] = frequencies[:-1]
        tables[index, -1] = frequencies[-1]
    return tables


def _integer_frequencies(probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    """Integers of sum 2^16, each at least 1, as near as may be to ``probabilities``."""
    scaled = probabilities / probabilities.sum() * (TABLE_TOTAL - len(probabilities))
    frequencies = np.floor(scaled).astype(np.int32) + 1
    frequencies[np.argmax(frequencies)] += TABLE_TOTAL - int(frequencies.sum())
    return frequencies


class Tables:
    """The tables as the range coder takes them."""

    def __init__(self, frequencies: npt.NDArray[np.int32]) -> None:
        self.models = []
        self.limits = np.array([support(index) for index in range(BINS)], np.int32)
        self.cost = np.zeros((BINS, SYMBOL_LIMIT + 2), np.float64)
        for index in range(BINS):
            limit = int(self.limits[index])
            start = SYMBOL_LIMIT - limit
            row = np.concatenate([frequencies[index, start : start + 2 * limit + 1], frequencies[index, -1:]])
            if row.min() < 1 or row.sum() != TABLE_TOTAL:
                raise RqlvcError("The weights file holds a broken probability table: get a fresh copy of it.")
            # Integers over a power of two are exact floats, so every machine builds the same coder.
            probabilities = row.astype(np.float64) / TABLE_TOTAL
            self.models.append(constriction.stream.model.Categorical(probabilities, perfect=False))
            self.cost[index] = 16 - math.log2(row[-1] / TABLE_TOTAL)  # escape, then 16 plain bits
            self.cost[index, : limit + 1] = -np.log2(row[limit : 2 * limit + 1] / TABLE_TOTAL)

        cost = torch.from_numpy(self.cost).float()
        first, further = cost[:, 1] - cost[:, 0], (cost[:, 3] - cost[:, 1]) / 2
        self._rounding = {part: rate_aware_rounding(first, further, price) for part, price in BIT_PRICE.items()}

    def rounding(self, part: str) -> Rounding:
        """Rounding by what these tables charge."""
        return self._rounding.get(part, NEAREST)


_PLAIN = constriction.stream.model.Uniform(2 * ESCAPE_LIMIT + 2)


@njit(**OPTIONS)
def _sorted_by_bin(bins: Any, first: int) -> Any:
    """Positions of what is coded, by bin from ``first`` on, and the number in each bin."""
    counts = np.zeros(BINS, np.int64)
    for i in range(len(bins)):
        counts[int(bins[i])] += 1
    counts[:first] = 0
    ends = np.cumsum(counts)
    positions = np.empty(ends[-1], np.int32)
    ends -= counts
    for i in range(len(bins)):
        b = int(bins[i])
        if b >= first:
            positions[ends[b]] = i
            ends[b] += 1
    return positions, counts


@njit(**OPTIONS)
def _quantised(values: Any, means: Any, bins: Any, positions: Any, offsets: Any, thresholds: Any) -> Any:
    """As :func:`quantise`, of the values less their means at ``positions``."""
    symbols = np.zeros(len(positions), np.int32)
    for k in range(len(positions)):
        i = positions[k]
        b = int(bins[i])
        centred = values[i] - means[i] / np.float32(LATENT_UNIT)
        magnitude = abs(centred)
        if magnitude >= thresholds[b]:
            rounded = min(max(math.floor(magnitude + offsets[b]), 1.0), ESCAPE_LIMIT)
            symbols[k] = rounded if centred > 0 else -rounded
    return symbols


@njit(**OPTIONS)
def _placed(symbols: Any, positions: Any, means: Any) -> Any:
    """Latents in 1/16 steps: the mean where no symbol was coded."""
    latents = means.copy()
    for k in range(len(positions)):
        latents[positions[k]] += np.float32(symbols[k] * LATENT_UNIT)
    return latents


def _flat(tensor: Tensor) -> npt.NDArray[np.float32]:
    return tensor.detach().reshape(-1).float().cpu().numpy()


def _first_bin(part: str) -> int:
    return 0 if part.endswith("hyper") else SKIP_BIN + 1


def _code_motion(coder: BinaryCoder, field: Field, known: MotionContext) -> Tensor:
    """Code or decode the field of the only sample; returns the contexts after it."""
    around, contexts = known.of(0, field)
    code_field(coder, contexts, around)
    return torch.from_numpy(contexts)[None]


def _number(value: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last byte have the highest bit set."""
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def _read_number(data: bytes) -> tuple[int, bytes]:
    """Inverse of :func:`_number`, and what comes after it. What is missing at the end of ``data`` is 0."""
    value = 0
    for place, byte in enumerate(data):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80 or place == 3:
            return value, data[place + 1 :]
    return value, b""


class Writer:
    """Range-codes symbols; also counts the information content of each part from the tables."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.encoder = constriction.stream.queue.RangeEncoder()
        self.part = "total"
        self.bits: dict[str, float] = {}
        self.checksum = 0
        self._motion = b""

    def motion(self, vectors: Tensor | None, known: MotionContext, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        assert vectors is not None
        field = as_field(vectors[0])
        coder = writer(field.size * 4)
        contexts = _code_motion(coder, field, known)
        data = finish(coder)
        self._motion = _number(len(data)) + data
        self.bits[MOTION] = 8.0 * len(self._motion)
        self.checksum = zlib.crc32(field.tobytes(), self.checksum)
        return as_vectors(field)[None], contexts

    def latent(self, value: Tensor | None, mean: Tensor, bins: Tensor) -> Tensor:
        assert value is not None
        means, flat_bins = _flat(mean), _flat(bins)
        positions, counts = _sorted_by_bin(flat_bins, _first_bin(self.part))
        rounding = (table.numpy() for table in self.tables.rounding(self.part))
        symbols = _quantised(_flat(value), means, flat_bins, positions, *rounding)
        self.checksum = zlib.crc32(symbols.tobytes(), self.checksum)
        self._put(symbols, counts)
        return torch.from_numpy(_placed(symbols, positions, means)).to(mean).reshape(mean.shape)

    def _put(self, symbols: Symbols, counts: npt.NDArray[np.int64]) -> None:
        bins = np.repeat(np.arange(BINS), counts)
        limits = self.tables.limits[bins]
        magnitude = np.abs(symbols)
        outside = magnitude > limits
        coded = np.where(outside, 2 * limits + 1, symbols + limits)
        escapes = set(bins[outside].tolist())
        begin = 0
        for index in np.flatnonzero(counts):
            chunk = slice(begin, begin + counts[index])
            begin += counts[index]
            self.encoder.encode(coded[chunk], self.tables.models[index])
            if index in escapes:
                self.encoder.encode(symbols[chunk][outside[chunk]] + ESCAPE_LIMIT, _PLAIN)
        bits = float(self.tables.cost[bins, np.minimum(magnitude, SYMBOL_LIMIT + 1)].sum())
        self.bits[self.part] = self.bits.get(self.part, 0.0) + bits

    def finish(self) -> bytes:
        """Motion, where there is any, as its length and its bytes; then the latents."""
        return self._motion + self._latents()

    def _latents(self) -> bytes:
        """The range coder's output, ended with the fewest bytes that still say which interval it is in."""
        words = self.encoder.get_compressed()
        position, (lower, width) = self.encoder.pos()
        if lower + width >= 2**64:  # a carry is pending: the library's own ending accounts for it
            return words.astype(">u4").tobytes().rstrip(b"\0")
        for length in range(9):
            unit = 1 << (64 - 8 * length)
            end = -(-lower // unit) * unit
            if end < lower + width:
                return words[:position].astype(">u4").tobytes() + end.to_bytes(9, "big")[1 : 1 + length]
        raise AssertionError("an interval holds its own lower end")


class Reader:
    """Decodes symbols from the bytes that a :class:`Writer` finished."""

    def __init__(self, tables: Tables, payload: bytes) -> None:
        self.tables = tables
        self.part = "total"
        self.checksum = 0
        self._payload = payload
        self._decoder: constriction.stream.queue.RangeDecoder | None = None

    def motion(self, vectors: Tensor | None, known: MotionContext, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        length, rest = _read_number(self._payload)
        if length > len(rest):
            raise RqlvcError("A packet is damaged: it ends within its motion.")
        self._payload = rest[length:]
        field = np.zeros((*size, 2), np.int32)
        contexts = _code_motion(reader(rest[:length]), field, known)
        self.checksum = zlib.crc32(field.tobytes(), self.checksum)
        return as_vectors(field)[None], contexts

    @property
    def decoder(self) -> Any:
        """Of the latents: what lies behind the motion."""
        if self._decoder is None:
            whole = self._payload + bytes(-len(self._payload) % 4)
            self._decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(whole, ">u4").astype(np.uint32))
        return self._decoder

    def latent(self, value: Tensor | None, mean: Tensor, bins: Tensor) -> Tensor:
        means = _flat(mean)
        positions, counts = _sorted_by_bin(_flat(bins), _first_bin(self.part))
        symbols = self._get(counts)
        self.checksum = zlib.crc32(symbols.tobytes(), self.checksum)
        return torch.from_numpy(_placed(symbols, positions, means)).to(mean).reshape(mean.shape)

    def _get(self, counts: npt.NDArray[np.int64]) -> Symbols:
        chunks = []
        try:
            for index in np.flatnonzero(counts):
                limit = int(self.tables.limits[index])
                chunk = self.decoder.decode(self.tables.models[index], int(counts[index])) - limit
                outside = np.flatnonzero(chunk == limit + 1)
                if len(outside):
                    chunk[outside] = self.decoder.decode(_PLAIN, len(outside)) - ESCAPE_LIMIT
                chunks.append(chunk)
        except AssertionError as error:
            raise RqlvcError("A packet is damaged: its range-coded data is invalid.") from error
        return np.concatenate(chunks).astype(np.int32) if chunks else np.zeros(0, np.int32)
