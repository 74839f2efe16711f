"""What every rate controller is to the rest of the package. Nothing in ``rqlvc.rate`` but RQNet needs PyTorch."""

from dataclasses import dataclass
from typing import Protocol


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
    points: tuple[RatePoint, ...] = ()
    """Predicted R-Q points of this frame, from RQNet, a table, or real encodes."""


@dataclass(frozen=True, slots=True)
class Decision:
    quality: float
    target_bits: float | None = None
    """Bits that the frame was given; None when the controller does not think in bits."""
    alpha: float | None = None
    beta: float | None = None
    """Parameters of Q = alpha * ln R + beta (R in bits) behind the decision, where there are such."""


@dataclass(frozen=True, slots=True)
class FrameResult:
    """What the frame really cost."""

    info: FrameInfo
    quality: float
    """As carried in the packet."""
    bits: int
    mse: float
    """Luma distortion on samples scaled to [0, 1]."""


class Controller(Protocol):
    """Chooses a quality level for each frame. The same calls drive a file, a live stream and a simulation."""

    def decide(self, info: FrameInfo) -> Decision: ...

    def update(self, result: FrameResult) -> None: ...

    def set_rates(self, bitrate: float, framerate: float) -> None:
        """New target in bits per second, and frames per second; callable between any two frames."""
        ...
