"""What every rate controller is to the rest of the package. Nothing in ``rqlvc.rate`` but RQNet needs PyTorch."""

from dataclasses import dataclass
from typing import Protocol

from rqlvc.errors import RqlvcError

QUALITY_MIN = 0.0
QUALITY_MAX = 63.0


@dataclass(frozen=True, slots=True)
class QualityRange:
    """The levels a controller may choose from, within [0, 63]; 63 is best."""

    minimum: float = QUALITY_MIN
    maximum: float = QUALITY_MAX

    def __post_init__(self) -> None:
        if not QUALITY_MIN <= self.minimum <= self.maximum <= QUALITY_MAX:
            raise RqlvcError(
                f"the quality range {self.minimum:g} to {self.maximum:g} is not valid: "
                "give a lowest and a highest level with 0 <= lowest <= highest <= 63."
            )

    def clip(self, quality: float) -> float:
        """``quality`` moved into the range; the lowest level for a value that is not a number."""
        return min(max(self.minimum, quality), self.maximum)

    def around(self, quality: float, down: float, up: float) -> "QualityRange":
        """The part of the range that is at most ``down`` levels below and ``up`` levels above ``quality``."""
        return QualityRange(self.clip(quality - down), self.clip(quality + up))


@dataclass(frozen=True, slots=True)
class RatePoint:
    """A point of a frame's R-Q curve: ``bits`` is what the frame costs at ``quality`` (in [0, 63], 63 is best)."""

    quality: float
    bits: float


@dataclass(frozen=True, slots=True)
class FrameInfo:
    """What is known of a frame before it is coded."""

    index: int
    """Frames coded before this one in the session."""
    intra: bool
    position: int
    """Frames since the last intra frame: 0 for an intra frame itself."""
    pixels: int
    """Luma pixels: bits per pixel are counted over these."""
    frames_left: int | None = None
    """Frames still to code, this one included; None when the end is unknown."""
    frames_to_intra: int | None = None
    """Frames from this one to the next intra frame, this one included (an intra frame: the length of its group of
    pictures); None when no intra frame is planned. Lets a controller save for it."""
    cut: bool = False
    """Another scene begins: what was learnt of the content before is of little use."""
    scene_left: int | None = None
    """Frames from this one to the last of its scene or of the video, both included; None where that is not in view.
    Nothing is predicted from this frame beyond."""
    novelties: tuple[float, ...] = ()
    """How much there is to code of this frame after the one before, and of each one in view after it
    (:func:`rqlvc.scenecut.log_novelty`: near 0 for a still, 2 or more for another scene). Tells what an intra frame is
    worth and how costs will change; empty where nobody looked."""
    fading: float | None = None
    """How little of this intra frame is left in the frames ahead (:func:`rqlvc.rate.hierarchy.fading`); None without a
    look-ahead. Tells at which level an intra frame is worth its bits."""
    new_rate: bool = False
    """The rate of a channel with a buffer is another from this frame on, and the buffer bears what was spent before: it
    is neither a debt nor a credit any more."""
    points: tuple[RatePoint, ...] = ()
    """Predicted R-Q points of this frame, from RQNet, a table, or real encodes."""
    tried: RatePoint | None = None
    """What this frame costs at some level, where that was asked for (:attr:`Decision.tentative`)."""
    rehearsal: "tuple[FrameResult, ...]" = ()
    """What this frame and those ahead cost, where that was asked for (:attr:`Decision.rehearsal`)."""

    @property
    def novelty(self) -> float | None:
        """How much there is to code of the frame after this one; None where that is not known yet."""
        return self.novelties[1] if len(self.novelties) > 1 else None

    @property
    def group_length(self) -> int | None:
        """Frames of this group of pictures; None when no intra frame is planned."""
        return None if self.frames_to_intra is None else self.position + max(self.frames_to_intra, 1)


@dataclass(frozen=True, slots=True)
class Decision:
    quality: float
    target_bits: float | None = None
    """Bits that the frame was given; None when the controller does not think in bits."""
    alpha: float | None = None
    beta: float | None = None
    """Parameters of Q = alpha * ln R + beta (R in bits) behind the decision, where there are such."""
    tentative: bool = False
    """Little is known of what the frame costs: if an encode more is affordable, code it at this level to see, and
    decide again with :attr:`FrameInfo.tried`."""
    rehearsal: "Controller | None" = None
    """Little is known of the video: if there are frames ahead, have this controller code the frame and them, to see,
    and decide again with :attr:`FrameInfo.rehearsal`."""
    tolerance: float | None = None
    """If encodes more are affordable, code the frame again where it misses ``target_bits`` by more than this part."""


@dataclass(frozen=True, slots=True)
class FrameResult:
    """What the frame really cost."""

    info: FrameInfo
    quality: float
    """As carried in the packet."""
    bits: int
    mse: float
    """Luma distortion on samples scaled to [0, 1]."""
    charged: float | None = None
    """Bits that the frame takes from the budget, where they are not its own: one that was left out in the end takes
    none, and one after which the channel idled takes what the channel lost as well."""


class Controller(Protocol):
    """Chooses a quality level for each frame. The same calls drive a file, a live stream and a simulation."""

    def decide(self, info: FrameInfo) -> Decision: ...

    def update(self, result: FrameResult) -> None: ...

    def set_rates(self, bitrate: float, framerate: float) -> None:
        """New target in bits per second, and frames per second; callable between any two frames."""
        ...
