"""The picture type that walks through the whole house."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Frame:
    """One 8-bit 4:2:0 picture.

    ``y`` has shape (height, width); ``u`` and ``v`` have shape (ceil(height / 2), ceil(width / 2)). ``time`` is the
    presentation time in seconds, exact, counted from the start of the file.
    """

    y: Plane
    u: Plane
    v: Plane
    time: Fraction = Fraction(0)

    @property
    def width(self) -> int:
        return int(self.y.shape[1])

    @property
    def height(self) -> int:
        return int(self.y.shape[0])
