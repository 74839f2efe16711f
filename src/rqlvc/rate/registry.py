"""Every controller by name, with what it is and where it comes from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rqlvc.errors import RqlvcError
from rqlvc.rate import adaptive
from rqlvc.rate.allocation import WINDOW, BitBudget
from rqlvc.rate.icassp24 import Icassp24
from rqlvc.rate.outlook import Outlook
from rqlvc.rate.pi import ProportionalIntegral
from rqlvc.rate.protocol import QUALITY_MAX, QUALITY_MIN, Controller, QualityRange
from rqlvc.rate.rq_lvc import RqLvc
from rqlvc.rate.tip14 import Tip14
from rqlvc.rate.two_pass import TwoPass

PointSource = Literal["none", "optional", "predicted", "encoded", "first pass"]
Factory = Callable[[BitBudget, int, QualityRange], Controller]


@dataclass(frozen=True, slots=True)
class ControllerEntry:
    """One row of ``rqlvc controllers``."""

    name: str
    summary: str
    source: str
    points: PointSource
    """What ``FrameInfo.points`` must hold: predictions of RQNet, real encodes of the frame, or nothing; with "first
    pass" the controller itself must be given what a first pass found."""
    factory: Factory | None
    """None for those that are made from a quality and not from a bitrate, and for ``two-pass``."""
    window: int = WINDOW
    """Frames over which a debt is usually paid back."""

    @property
    def meets_bitrate(self) -> bool:
        return self.name not in WITHOUT_BITRATE


DEFAULT_CONTROLLER = "adaptive"
WITHOUT_BITRATE = ("hierarchical", "constant")
"""These take a quality."""
_RQ_LVC = "NguyenQuang et al., arXiv 2505.02720"

CONTROLLERS: dict[str, ControllerEntry] = {
    entry.name: entry
    for entry in (
        ControllerEntry(
            "adaptive",
            "a steady quality, each frame's cost foretold from predicted points and the frames before; the default",
            "this package",
            "optional",
            adaptive.Adaptive,
            adaptive.WINDOW,
        ),
        ControllerEntry(
            "recode",
            f"adaptive, and a frame that misses its bits by more than {100 * adaptive.RECODED:g} % is coded again",
            "this package",
            "optional",
            lambda budget, pixels, limits: adaptive.Adaptive(budget, pixels, limits, tolerance=adaptive.RECODED),
            adaptive.WINDOW,
        ),
        ControllerEntry(
            "two-pass",
            "a steady quality, planned over the whole video after a first pass; with --two-pass",
            "this package",
            "first pass",
            None,
        ),
        ControllerEntry(
            "hierarchical",
            "a quality level, with offsets along the group of pictures; what --quality uses",
            "this package",
            "none",
            None,
        ),
        ControllerEntry("constant", "one quality level for all frames; with --quality", "-", "none", None),
        ControllerEntry(
            "rq-lvc",
            "least squares over RQNet's points and the coded frames of the group of pictures",
            f"{_RQ_LVC}, Eq. (6)",
            "predicted",
            RqLvc,
        ),
        ControllerEntry(
            "rqnet-only",
            "rq-lvc without the coded frames",
            f"{_RQ_LVC}, ablation",
            "predicted",
            lambda budget, pixels, limits: RqLvc(budget, pixels, limits, history=False),
        ),
        ControllerEntry(
            "no-rqnet",
            "rq-lvc without RQNet's points",
            f"{_RQ_LVC}, ablation",
            "none",
            lambda budget, pixels, limits: RqLvc(budget, pixels, limits, network=False),
        ),
        ControllerEntry(
            "four-pass",
            "least squares over four real encodes of each frame",
            f"{_RQ_LVC}, bound",
            "encoded",
            lambda budget, pixels, limits: RqLvc(budget, pixels, limits, history=False),
        ),
        ControllerEntry(
            "tip14",
            "least mean squares on the logarithmic model, rates in bits",
            f"Li et al., TIP 2014, recast in {_RQ_LVC}, Eqs. (11)-(14)",
            "none",
            lambda budget, pixels, limits: Tip14(budget, pixels, limits, unit=1.0),
        ),
        ControllerEntry(
            "tip14-bpp",
            "tip14 with rates in bits per pixel, which makes its steps some ten times smaller",
            f"Li et al., TIP 2014, recast in {_RQ_LVC}, Eqs. (11)-(14)",
            "none",
            lambda budget, pixels, limits: Tip14(budget, pixels, limits, unit=float(pixels)),
        ),
        ControllerEntry(
            "icassp24",
            "power law per position, one common quality for the rest of the group of pictures",
            "Liao et al., ICASSP 2024",
            "none",
            Icassp24,
        ),
        ControllerEntry(
            "pi",
            "proportional-integral feedback on ln lambda",
            "Xu et al., arXiv 2604.20104",
            "none",
            ProportionalIntegral,
        ),
    )
}


def make_controller(
    name: str,
    *,
    bitrate: float,
    framerate: float,
    pixels: int,
    total_frames: int | None = None,
    min_quality: float = QUALITY_MIN,
    max_quality: float = QUALITY_MAX,
    weights: Sequence[float] | None = None,
    window: int | None = None,
    outlook: Outlook | None = None,
) -> Controller:
    """A controller that spends ``bitrate`` bits per second on frames of ``pixels`` luma pixels.

    ``total_frames``, or ``FrameInfo.frames_left``, lets it land on the target at the end. ``weights`` are the relative
    bits of the inter frames of a miniGOP; about ``window`` frames (the controller's own number unless given) share what
    one cost too much. ``outlook`` is what a first pass found, for ``two-pass``. Raises :class:`RqlvcError` for an
    unknown name or bad values.
    """
    entry = CONTROLLERS.get(name)
    if entry is None:
        raise RqlvcError(f"there is no controller {name!r}: choose one of {', '.join(CONTROLLERS)}.")
    if not entry.meets_bitrate:
        raise RqlvcError(
            f"the controller {name!r} takes a quality and no bitrate: give --quality instead of --bitrate."
        )
    if (outlook is None) == (entry.points == "first pass"):
        raise RqlvcError(
            f"the controller {name!r} and a first pass do not go together: two-pass needs one, others none."
        )
    if pixels < 1:
        raise RqlvcError(f"a frame must have at least one pixel, not {pixels}.")
    if total_frames is not None and total_frames < 1:
        raise RqlvcError(f"the number of frames must be at least 1, not {total_frames}: leave it out if it is unknown.")
    budget = BitBudget(bitrate, framerate, total_frames, weights, window or entry.window)
    limits = QualityRange(min_quality, max_quality)
    if outlook is not None:
        return TwoPass(budget, limits, outlook)
    assert entry.factory is not None
    return entry.factory(budget, pixels, limits)
