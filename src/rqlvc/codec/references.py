"""The pictures that vectors may reach to beside the reference, and which of them an encoder keeps.

Two are kept: usually the best one of the last miniGOP, and the intra frame, which shows without loss what comes to
light again. Packets say which is given up, so the choice is the encoder's alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rqlvc.codec.interpolation import MARGIN, follow, quarter_pel
from rqlvc.codec.planes import Planes

PICTURES = 3
"""That a vector may reach to: the reference, and two that are kept."""
BETTER = 2.0
"""Levels that a kept picture must be above a later one to be worth more than it."""
OLDEST = 9
"""Frames after which the better one of the last miniGOP gives way all the same: one more than a miniGOP has."""
USED, USE_RATE = 0.02, 0.3
"""Part of the blocks that must reach to an old picture for it to be kept, and that of the newest frame in its mean."""


class Kept(NamedTuple):
    """A picture before the reference that vectors can still reach to."""

    picture: Planes
    quality: Tensor
    through: Tensor
    """Vectors (N, 2, h, w) from the reference to it, in quarter samples."""
    distance: int = 1
    """Frames from the reference to it."""
    use: float = 1.0
    """Part of the blocks that reached to it, a running mean that believes in it at first."""
    fine: Tensor | None = None
    """What :func:`~rqlvc.codec.interpolation.quarter_pel` made of its luma, where an encoder has needed that."""

    def at_quarter_pel(self) -> Tensor:
        """What a block search reads of it."""
        return quarter_pel(self.picture.luma, MARGIN) if self.fine is None else self.fine

    def after(self, motion: Tensor, vectors: Tensor, index: int) -> "Kept":
        """As it is once a frame with ``motion`` (N, 3, h, w), of which ``vectors`` (N, 2, h, w) lead to the reference,
        is the reference. In ``motion`` it has this ``index``."""
        there = motion[:, 2:] == index
        through = torch.where(there, motion[:, :2], follow(vectors, self.through))
        use = self.use + USE_RATE * (float(there.float().mean()) - self.use)
        return self._replace(through=through, distance=self.distance + 1, use=use)


def too_many(kept: Sequence[Kept]) -> bool:
    """Whether these and the reference are more than the next frame can reach to."""
    return len(kept) >= PICTURES


def superfluous(kept: Sequence[Kept]) -> int:
    """Which of ``kept``, the latest first, the frames to come are likely to miss least; 0 if there are not too many."""
    if not too_many(kept):
        return 0
    latest, near, far = kept
    better = float(near.quality.mean()) > float(latest.quality.mean()) + BETTER
    if better and near.distance < OLDEST:
        return 0
    return 1 if far.use >= USED else 2
