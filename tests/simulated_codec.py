"""A codec without pictures: frames that follow a known rate-quality law, for tests and benchmarks of controllers.

    ln R = level + slope * (q - 31.5) + bend * ((q - 31.5) / 31.5)^2 + reference * (q - q of the last frame) + noise

``level`` drifts from frame to frame and jumps at cuts. An inter frame on a cut costs nearly an intra frame.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from rqlvc.codec.protocol import EncodedFrame
from rqlvc.media.frame import Frame
from rqlvc.rate.hierarchy import LOOKAHEAD
from rqlvc.rate.protocol import QUALITY_MAX, QUALITY_MIN, Controller, FrameInfo, FrameResult, RatePoint
from rqlvc.rate.registry import make_controller

CENTRE = 31.5
PREDICTED_QUALITIES = (10.0, 27.0, 43.0, 60.0)
HEADER_BITS = 160.0


@dataclass(frozen=True)
class Law:
    """Expected ln bits of the inter frames of one scene."""

    bits_per_pixel: float = 0.05
    """At quality 31.5. What the built-in codec usually takes, as the slope is."""
    slope: float = 0.07
    bend: float = 0.0
    intra_ratio: float = 7.0
    """Bits of an intra frame over those of an inter frame at the same quality."""


@dataclass(frozen=True)
class Simulation:
    """A sequence. All randomness comes from ``seed``: the same frame always costs the same at the same quality."""

    frames: int = 96
    pixels: int = 416 * 240
    framerate: float = 30.0
    intra_period: int = 32
    scenes: tuple[Law, ...] = (Law(),)
    """Of equal length, with hard cuts between."""
    noise: float = 0.04
    drift: float = 0.02
    reference: float = 0.01
    predictor_bias: float = 0.12
    predictor_noise: float = 0.1
    sees_noise: float = 0.7
    """Part of a frame's own noise and of a cut that the predictor sees."""
    seed: int = 0
    _random: dict[str, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        draw = np.random.default_rng(self.seed).standard_normal
        bias = np.repeat(draw((len(self.scenes), 4)), -(-self.frames // len(self.scenes)), axis=0)[: self.frames]
        self._random.update(
            noise=self.noise * draw(self.frames),
            drift=self.drift * np.cumsum(draw(self.frames)),
            predictor=self.predictor_bias * (0.8 * bias[:, :1] + 0.6 * bias)
            + self.predictor_noise * (0.8 * draw((self.frames, 1)) + 0.6 * draw((self.frames, 4))),
        )

    def scene(self, index: int) -> int:
        return index * len(self.scenes) // self.frames

    def intra(self, index: int) -> bool:
        return index % self.intra_period == 0

    def bits(self, index: int, quality: float, last_quality: float | None, intra: bool | None = None) -> int:
        """``intra`` where it is not that of ``intra_period``."""
        return self._bits(index, quality, last_quality, 1.0, intra)

    def predicted(self, index: int, last_quality: float | None) -> tuple[RatePoint, ...]:
        errors = self._random["predictor"][index]
        return tuple(
            RatePoint(quality, self._bits(index, quality, last_quality, self.sees_noise) * math.exp(error))
            for quality, error in zip(PREDICTED_QUALITIES, errors, strict=True)
        )

    def encoded(self, index: int, last_quality: float | None) -> tuple[RatePoint, ...]:
        """Four real encodes."""
        return tuple(RatePoint(q, self.bits(index, q, last_quality)) for q in PREDICTED_QUALITIES)

    def _bits(
        self, index: int, quality: float, last_quality: float | None, seen: float, intra: bool | None = None
    ) -> int:
        law = self.scenes[self.scene(index)]
        x = quality - CENTRE
        log_rate = math.log(law.bits_per_pixel * self.pixels) + law.slope * x + law.bend * (x / CENTRE) ** 2
        log_rate += float(self._random["drift"][index]) + seen * float(self._random["noise"][index])
        if self.intra(index) if intra is None else intra:
            log_rate += math.log(law.intra_ratio)
        elif index and self.scene(index) != self.scene(index - 1):
            log_rate += seen * math.log(max(law.intra_ratio * 0.8, 1.0))
        elif last_quality is not None:
            log_rate += self.reference * (quality - last_quality)
        return 8 * round((HEADER_BITS + math.exp(min(log_rate, 40.0))) / 8)


class SimulatedCodec:
    """A simulation behind the codec protocol: packets are as long as its law says. Its frames are those of ``frames``,
    and its state is the quality of the last one."""

    name = "simulated"
    identity = "51a7"

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation

    def frames(self, times: Sequence[Fraction]) -> list[Frame]:
        """Grey pictures that carry their index."""
        chroma = np.full((1, 1), 128, np.uint8)
        pictures = (
            np.full((2, 2), 0, np.uint8) + np.array(divmod(index, 256), np.uint8) for index in range(len(times))
        )
        return [Frame(luma, chroma, chroma, time) for luma, time in zip(pictures, times, strict=True)]

    def encode(self, frame: Frame, quality: float, state: float | None) -> EncodedFrame:
        index = int(frame.y[0, 0]) * 256 + int(frame.y[0, 1])
        bits = self.simulation.bits(index, quality, state, intra=state is None)
        return EncodedFrame(bytes(bits // 8), frame, quality)


@dataclass(frozen=True)
class Recorded:
    """A real sequence, as ``benchmarks/surfaces.py`` recorded it: bits of every frame at constant levels."""

    pixels: int
    framerate: float
    reference: float
    """Rise of ln R for each level that an inter frame is above the frame before."""
    levels: np.ndarray
    log_bits: np.ndarray
    """(levels, frames)."""
    log_predicted: np.ndarray
    """RQNet's points on the way along each constant level, (levels, frames, 4); empty without RQNet."""
    novelty: np.ndarray
    """How badly each frame predicts the next, (frames,)."""
    intra_period: int = 32
    lookahead: int = LOOKAHEAD
    """Frames in view after the one in hand."""

    @property
    def frames(self) -> int:
        return self.log_bits.shape[1]

    def intra(self, index: int) -> bool:
        return index % self.intra_period == 0

    def bits(self, index: int, quality: float, last_quality: float | None) -> int:
        log_rate = float(np.interp(quality, self.levels, self.log_bits[:, index]))
        if last_quality is not None and not self.intra(index):
            log_rate += self.reference * (quality - last_quality)
        return 8 * max(round(math.exp(log_rate) / 8), 1)

    def predicted(self, index: int, last_quality: float | None) -> tuple[RatePoint, ...]:
        along = CENTRE if last_quality is None else last_quality
        return tuple(
            RatePoint(quality, math.exp(np.interp(along, self.levels, self.log_predicted[:, index, point])))
            for point, quality in enumerate(PREDICTED_QUALITIES)
        )

    def novelties(self, index: int) -> tuple[float, ...]:
        """Of this frame and those in view, as an encoder tells them."""
        before = [self.novelty[index - 1] if index else 1.0]
        return tuple(map(float, [*before, *self.novelty[index : min(index + self.lookahead, self.frames - 1)]]))

    def encoded(self, index: int, last_quality: float | None) -> tuple[RatePoint, ...]:
        """Four real encodes."""
        return tuple(RatePoint(q, self.bits(index, q, last_quality)) for q in PREDICTED_QUALITIES)


def recorded(path: Path) -> dict[str, Recorded]:
    """Every sequence of a recording, by name."""
    with np.load(path) as file:
        columns = {name: file[name] for name in file.files}
    sequences = {}
    for name in sorted({key.split(".")[0] for key in columns} - {"levels"}):
        pixels, rate, slope = columns[f"{name}.facts"].tolist()
        bits, predicted = columns[f"{name}.bits"], columns[f"{name}.predicted"]
        sequences[name] = Recorded(
            int(pixels),
            rate,
            slope,
            columns["levels"],
            np.log(bits),
            np.log(np.maximum(predicted, 8)),
            columns[f"{name}.novelty"],
        )
    return sequences


@dataclass(frozen=True)
class Log:
    """What a run did, one entry per frame."""

    quality: np.ndarray
    bits: np.ndarray
    target: np.ndarray
    intra: np.ndarray
    decide_seconds: np.ndarray
    update_seconds: np.ndarray

    def error(self, total: float) -> float:
        """|target - actual| / target of the whole (Eq. 9)."""
        return abs(float(self.bits.sum()) - total) / total

    def frame_error(self, frames: int | None = None) -> float:
        """Mean |bits - target| / target over the inter frames (of the first ``frames``) whose level met no limit."""
        free = (~self.intra & (self.quality > QUALITY_MIN) & (self.quality < QUALITY_MAX))[:frames]
        return float(np.mean(np.abs(self.bits / self.target - 1)[:frames][free])) if free.any() else 0.0


def controller_for(name: str, simulation: Simulation | Recorded, total: float, **options: object) -> Controller:
    """The controller ``name`` with ``total`` bits for the whole of ``simulation``."""
    bitrate = total * simulation.framerate / simulation.frames
    return make_controller(name, bitrate=bitrate, framerate=simulation.framerate, pixels=simulation.pixels, **options)


def run(
    controller: Controller,
    simulation: Simulation | Recorded,
    *,
    points: str = "predicted",
    end_known: bool = True,
    intra_known: bool = True,
    rates: dict[int, float] | None = None,
) -> Log:
    """Drive ``controller`` over ``simulation``; ``rates`` maps a frame index to a new bitrate from there on."""
    rows = []
    last_quality: float | None = None
    for index in range(simulation.frames):
        if rates and index in rates:
            controller.set_rates(rates[index], simulation.framerate)
        intra = simulation.intra(index)
        position = index % simulation.intra_period
        left = simulation.frames - index
        info = FrameInfo(
            index=index,
            intra=intra,
            position=position,
            pixels=simulation.pixels,
            frames_left=left if end_known else None,
            frames_to_intra=simulation.intra_period - position if intra_known else None,
            scene_left=left if isinstance(simulation, Recorded) and left <= simulation.lookahead else None,
            novelties=simulation.novelties(index) if isinstance(simulation, Recorded) else (),
        )
        if points == "predicted":
            info = replace(info, points=tuple(simulation.predicted(index, last_quality)))
        elif points == "encoded":
            info = replace(info, points=simulation.encoded(index, last_quality))
        start = time.perf_counter()
        decision = controller.decide(info)
        decided = time.perf_counter()
        if decision.tentative:
            tried = RatePoint(decision.quality, simulation.bits(index, decision.quality, last_quality))
            decision = controller.decide(replace(info, tried=tried))
        quality = round(decision.quality * 64) / 64
        bits = simulation.bits(index, quality, last_quality)
        result = FrameResult(info, quality, bits, mse=1e-3)
        before = time.perf_counter()
        controller.update(result)
        after = time.perf_counter()
        target = math.nan if decision.target_bits is None else decision.target_bits
        rows.append((quality, bits, target, intra, decided - start, after - before))
        last_quality = quality
    quality_, bits_, target_, intra_, decide_, update_ = (np.array(column) for column in zip(*rows, strict=True))
    return Log(quality_, bits_, target_, intra_, decide_, update_)


SEQUENCES: dict[str, Simulation] = {
    "steady": Simulation(seed=1),
    "talking": Simulation(seed=2, scenes=(Law(0.04, 0.08, 0.1, 12.0),), noise=0.06, drift=0.03),
    "sport": Simulation(seed=3, scenes=(Law(0.25, 0.06, -0.2, 3.0),), noise=0.08, drift=0.06, reference=0.015),
    "erratic": Simulation(seed=4, scenes=(Law(0.12, 0.075),), noise=0.2, drift=0.05),
    "bent": Simulation(seed=5, scenes=(Law(0.08, 0.07, 0.5, 6.0),), noise=0.05, drift=0.03, reference=0.02),
    "static": Simulation(seed=6, scenes=(Law(0.008, 0.035, 0.3, 40.0),), noise=0.03, drift=0.005, reference=0.03),
    "water": Simulation(seed=7, scenes=(Law(0.3, 0.1, -0.3, 2.0),), noise=0.05, drift=0.02, reference=0.02),
    "cuts": Simulation(
        seed=8,
        scenes=(Law(0.05, 0.08, 0.1, 10.0), Law(0.3, 0.065, -0.2, 3.0), Law(0.02, 0.06, 0.2, 20.0), Law(0.12)),
        noise=0.06,
        drift=0.03,
        frames=130,
    ),
}
