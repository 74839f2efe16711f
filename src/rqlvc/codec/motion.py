"""Motion of 8x8 blocks: predicted from the last frame's, coded without loss at 1/16.

Vectors are integers in quarter samples, held in floating point. What is decoded is therefore the same on every
machine, and a block that does not move stays exactly where it is: vectors that were real numbers crept by hundredths
of a sample, and every frame's interpolation blurred the reference a little more.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlvc.codec.entropy import Coder
from rqlvc.codec.integer import LATENT_UNIT, IntegerConv
from rqlvc.codec.prior import LatentCodec, Latents
from rqlvc.codec.quality import ANCHORS

LATENTS = 8  # of the four blocks of a 16x16 square: x of the first, differences of the others from it; then y
LOW = (0, 4)
WIDTH = 32
VECTOR_LIMIT = 4095
"""Quarter samples; what a damaged stream may ask for at most."""
SEEN_LIMIT = 127  # quarter samples, of what the prior sees of predicted vectors
INITIAL_SCALES = (2.0, 0.3, 0.3, 0.3) * 2  # of the latents, quarter samples


def predict_motion(last: Tensor) -> Tensor:
    """The last field (N, 2, H, W) with each component's median over 3x3 blocks: what moved alone was often noise."""
    padded = F.pad(last, [1] * 4, mode="replicate")
    return padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4).median(dim=4).values


def to_latents(field: Tensor) -> Tensor:
    """Vectors (N, 2, 2H, 2W) to the first of each square and three differences from it (N, 8, H, W)."""
    n, _, height, width = field.shape
    blocks = F.pixel_unshuffle(field, 2).reshape(n, 2, 4, height // 2, width // 2)
    return torch.cat([blocks[:, :, :1], blocks[:, :, 1:] - blocks[:, :, :1]], dim=2).flatten(1, 2)


def from_latents(latents: Tensor) -> Tensor:
    """Inverse of :func:`to_latents`."""
    n, _, height, width = latents.shape
    blocks = latents.reshape(n, 2, 4, height, width)
    blocks = torch.cat([blocks[:, :, :1], blocks[:, :, 1:] + blocks[:, :, :1]], dim=2)
    return F.pixel_shuffle(blocks.flatten(1, 2), 2)


class MotionCodec(nn.Module):
    """Differences of motion from its prediction, coded knowing it; zero where the prior expects silence."""

    def __init__(self, temporal: bool) -> None:
        super().__init__()
        scales = torch.tensor(INITIAL_SCALES).expand(ANCHORS, -1)
        self.latents = LatentCodec("motion", scales, LOW, WIDTH, linear=True, whole=True, temporal=temporal)
        self.condition = IntegerConv(LATENTS, WIDTH, 3, gain=0.2)

    def forward(
        self,
        coder: Coder,
        motion: Tensor | None,
        predicted: Tensor,
        quality: Tensor,
        past: Latents | None,
        past_quality: Tensor | None,
    ) -> tuple[Tensor, Latents]:
        """Code ``motion`` (N, 2, H / 8, W / 8; quarter samples; None when decoding); returns it, decoded."""
        with torch.autocast(quality.device.type, enabled=False):
            seen = to_latents(predicted).clamp(-SEEN_LIMIT, SEEN_LIMIT)
            known = self.condition(seen.to(self.condition.weight.dtype))
        latent = None if motion is None else to_latents(motion - predicted)
        size = (predicted.shape[-2] // 2, predicted.shape[-1] // 2)
        coded = self.latents(coder, latent, size, quality, known, past, past_quality)
        # Coded without loss, motion does not depend on its prior: no gradient but the rate's flows back there.
        coded = coded.detach()
        moved = predicted + from_latents(coded.latent.float() / LATENT_UNIT)
        return moved.clamp(-VECTOR_LIMIT, VECTOR_LIMIT), coded
