"""The quality levels of a group of pictures: offsets from the base, which is the level of a usual intra frame.

Frames that many later ones take from are worth more bits: every few inter frames one is coded well and those between
less so, and all of them less towards the end of the group; an intra frame is coded the better, the longer it can be
seen; and a group that is cut short is lower as a whole. Chosen for BD-rate on real sequences (docs/training.md).
"""

import math
from collections.abc import Sequence
from functools import lru_cache

from rqlvc.rate.initial import INTER
from rqlvc.rate.protocol import QUALITY_MAX, FrameInfo, QualityRange

GOP_WEIGHTS = (1.0, 1.28, 1.0, 1.53, 1.0, 1.28, 1.0, 1.88)
"""Bits of the eight inter frames of a miniGOP relative to each other. The paper's values are lost; these are what
levels 9, 5.5, 9, 3, 9, 5.5, 9 and 0 below the best cost: of seven hierarchies one of the best for BD-rate on
sequences."""
LIFT = 4.0
"""Levels of the best inter frames above the intra frame. At one level an intra frame is the better one by far, for the
codec was trained to see to that; beside a hierarchy, where only one inter frame in eight is coded so well, it need not
be."""
INHERITED = 0.9
"""Part of its information that an inter frame takes from the one before."""
TILT = 6.0
"""Levels by which a frame is better than one that is worth e times less to itself and to all that inherit from it."""
LOOKAHEAD = 32
"""Frames ahead, usually, in view when a frame is coded."""
FADING_VIEW = 8
"""Of these, the frames of which the last tells how long an intra frame can be seen."""
FADING_POWER = 0.16
"""Novelty rises with the distance in frames to about this power."""
LASTING, LASTING_LEVELS = 0.5, 2.5
"""An intra frame that fades like this has the base level; one that fades e times less, so many levels more."""
INTRA_OFFSETS = -3.0, 4.0
"""The least and the most."""
LOWER_AT_MOST = 6.0
"""Levels by which a group of pictures is lower that another scene or the end cuts short."""
LONGEST_GROUP = 1000
"""Frames of a group of pictures beyond which its end is of no concern."""
ROOM = 8.0
"""Levels below the best from which on offsets get smaller: at 63 all frames are coded as well as they can be."""


def pattern_offsets(weights: Sequence[float]) -> tuple[float, ...]:
    """Levels from the base to each inter frame of a miniGOP whose bits are as ``weights``; LIFT for the heaviest."""
    return tuple(LIFT + INTER.alpha * math.log(weight / max(weights)) for weight in weights)


@lru_cache(maxsize=64)
def level_offsets(weights: tuple[float, ...], group: int | None) -> tuple[float, ...]:
    """Levels from the base to each of the ``group`` frames of a group of pictures, the intra frame first.

    Inter frames follow the hierarchy of the miniGOP with these ``weights``, and those towards the end, from which less
    is inherited, are lower. Without an end: the intra frame and one miniGOP.
    """
    hierarchy = pattern_offsets(weights)
    if group is None:
        return (0.0, *hierarchy)
    worth = [_worth(group - position) for position in range(group)]
    tilt = (TILT * math.log(frame / worth[0]) for frame in worth[1:])
    return (0.0, *(hierarchy[slot % len(hierarchy)] + lower for slot, lower in enumerate(tilt)))


def group_length(info: FrameInfo) -> int | None:
    """Frames of this group of pictures; None where no intra frame is planned, or one far away."""
    group = info.group_length
    return group if group and group <= LONGEST_GROUP else None


def last_use(info: FrameInfo) -> int | None:
    """Frames of this group of pictures up to where nothing is predicted from it any more; None where that is far."""
    ends = [end for end in (info.frames_to_intra, info.scene_left) if end]
    last = info.position + min(ends) if ends else None
    return last if last and last <= LONGEST_GROUP else None


def fading(novelty: float, frames: int) -> float:
    """How little of an intra frame is left ``FADING_VIEW`` frames later, from the ``novelty`` of a frame that comes
    ``frames`` later (:func:`rqlvc.scenecut.novelty`)."""
    return novelty * math.pow(FADING_VIEW / frames, FADING_POWER)


def cut_short(frames: int, group: int) -> float:
    """Levels by which a group of pictures is lower that ends after ``frames`` instead of ``group`` frames: all of them
    are worth less, as those towards the end of any group are."""
    return max(TILT * math.log(_worth(frames) / _worth(group)), -LOWER_AT_MOST) if frames < group else 0.0


def _worth(frames: int) -> float:
    """Of a frame to itself and those after it, ``frames`` in all."""
    return 1 - INHERITED**frames


def level_offset(info: FrameInfo, weights: tuple[float, ...]) -> float:
    """Levels from the base to this frame."""
    last = last_use(info)
    if info.intra and info.fading is not None:
        low, high = INTRA_OFFSETS
        offset = min(max(LASTING_LEVELS * math.log(LASTING / info.fading), low), high)
    else:
        offsets = level_offsets(weights, last)
        place = info.position if info.position < len(offsets) else 1 + (info.position - 1) % len(weights)
        offset = offsets[place]
    return offset + lower_as_a_whole(info)


def lower_as_a_whole(info: FrameInfo) -> float:
    """Levels by which this group of pictures is lower than others; not the first, which they are compared with."""
    last, group = last_use(info), group_length(info)
    return cut_short(last, group) if last and group and info.index > info.position else 0.0


def held_level(base: float, offset: float) -> float:
    """The level of a frame where the base is held, within [0, 63]: near the best level the hierarchy flattens."""
    share = min((QUALITY_MAX - base) / ROOM, 1.0)
    return QualityRange().clip(base + share * offset)
