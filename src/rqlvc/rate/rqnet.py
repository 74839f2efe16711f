"""RQNet: the rate-quality curve of a frame, predicted before it is coded (after the RQ-LVC paper, section 2.3).

The network never sees pixels. A picture, its difference to the last decoded one and what motion leaves of that become
*activity maps* at 1/8 resolution (:mod:`rqlvc.rate.activity`): for each block of 8x8 luma samples, the logarithm of the
mean magnitude of its cosine coefficients in five bands (averaging pixels down to that size would hide the very texture
that costs bits). A transform coder spends about ln(1 + magnitude / step) on a coefficient, which is softplus(ln
magnitude - ln step): one layer of a network, so a small one over such maps starts close to the law that it has to
learn. It gives the rates of each block at four quality levels; the frame's rate is their mean, which makes it work at
any size.

The rest is the paper's: rate, distortion and quality of the last frame go in (here, too, how far that is from its intra
frame), and out come the rates at the quality levels 10, 27, 43 and 60, as ln(bits per pixel) and never falling from one
level to the next.
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rqlvc.errors import RqlvcError
from rqlvc.media.frame import Frame
from rqlvc.rate.activity import BLOCK, MAPS, activity_maps
from rqlvc.rate.models import log_bits
from rqlvc.rate.motion import SQUARE
from rqlvc.rate.protocol import QUALITY_MAX, FrameResult, RatePoint
from rqlvc.rate.rqnet_loops import (
    BLOCK_LOG_RATE_RANGE,
    COARSE,
    FINE,
    LOG_RATE_RANGE,
    MINIMUM_STEP,
    SCALARS,
    STEP_SHARPNESS,
    Layers,
    log_rates,
)

QUALITY_LEVELS = (10.0, 27.0, 43.0, 60.0)
"""Where the curve is predicted: Table 4 of the paper."""

PADDING = SQUARE
"""Pictures are extended to multiples of this: two blocks, for the network's coarser scale."""

OLDEST = 24
"""Frames since the intra frame beyond which there are only many."""
_FIRST_LOG_RATES = (-4.0, -2.7, -1.5, -0.3)
"""A plausible curve to start training from: 0.02 to 0.7 bits per pixel."""
_FIRST_OVERHEAD = 64.0
"""Bits per packet that do not depend on the picture, before training has measured them."""

FORMAT = "rqlvc-rqnet-3"
DEFAULT_WEIGHTS = Path(__file__).parents[1] / "weights" / "rqnet.safetensors"


def padded_pixels(width: int, height: int) -> int:
    """Luma pixels of a picture after padding: what the network's bits per pixel are counted over."""
    return -(-width // PADDING) * -(-height // PADDING) * PADDING * PADDING


def context_scalars(intra: bool, last: FrameResult | None) -> tuple[float, ...]:
    """What the network is told beside the maps, (7,): is the frame intra; is the last frame known, was it intra, its
    ln(bits per pixel), quality, ln(MSE) and ln(1 + frames since the intra frame), all zero when it is not known."""
    if last is None:
        return float(intra), *(SCALARS - 1) * (0.0,)
    rate = log_bits(last.bits) - math.log(last.info.pixels)
    age = math.log1p(min(last.info.position, OLDEST))
    return float(intra), 1.0, float(last.info.intra), rate, last.quality, math.log(max(last.mse, 1e-7)), age


class _Separable(nn.Module):
    """Depthwise 3x3 and pointwise convolution beside an identity. Tensors are (N, h, w, channels)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mix = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.mix(F.relu(self.spatial(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
        return y


class RQNet(nn.Module):
    """Activity maps (N, h, w, 23) and context scalars (N, 7) to ln(bits per pixel) at the four levels, (N, 4).

    A U-Net of two scales: pointwise at 1/8, a depthwise-separable convolution at 1/16. Its output is one rate per block
    and level, averaged over the blocks; the averages are then moved by what the last frame cost. Channels come last,
    where pointwise convolutions are plain matrix products.
    """

    map_mean: Tensor
    map_scale: Tensor
    scalar_mean: Tensor
    scalar_scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        levels = len(QUALITY_LEVELS)
        self.register_buffer("map_mean", torch.zeros(MAPS))
        self.register_buffer("map_scale", torch.ones(MAPS))
        self.register_buffer("scalar_mean", torch.tensor([0.0, 0.0, 0.0, -3.0, QUALITY_MAX / 2, -7.0, 1.5]))
        self.register_buffer("scalar_scale", torch.tensor([1.0, 1.0, 1.0, 2.0, QUALITY_MAX / 4, 2.0, 1.0]))
        self.stem = nn.Linear(MAPS, FINE)
        self.context = nn.Linear(SCALARS, FINE)
        self.down = nn.Linear(4 * FINE, COARSE)
        self.coarse = _Separable(COARSE)
        self.up = nn.Linear(COARSE, 4 * FINE)
        self.out = nn.Linear(FINE, levels)
        self.look = nn.Linear(FINE + COARSE + SCALARS, COARSE)
        self.correct = nn.Linear(COARSE, levels)
        self.log_overhead = nn.Parameter(torch.tensor(math.log(_FIRST_OVERHEAD)))
        with torch.no_grad():
            self.out.bias.copy_(torch.tensor(_FIRST_LOG_RATES))
            nn.init.zeros_(self.correct.weight)
            nn.init.zeros_(self.correct.bias)

    @torch.no_grad()
    def normalise(self, mean: Tensor, deviation: Tensor) -> None:
        """Set the mean and the standard deviation of each map, (23,), over the training samples."""
        self.map_mean.copy_(mean)
        self.map_scale.copy_(deviation.clamp(min=0.1))

    def forward(self, maps: Tensor, scalars: Tensor) -> Tensor:
        n, height, width, _ = maps.shape
        centred = (scalars - self.scalar_mean) / self.scalar_scale
        scalars = torch.cat([scalars[:, :3], centred[:, 3:] * scalars[:, 1:2]], dim=1)
        x = (maps - self.map_mean) / self.map_scale
        fine = F.relu(self.stem(x) + self.context(scalars)[:, None, None])
        quads = fine.view(n, height // 2, 2, width // 2, 2, FINE).transpose(2, 3)
        coarse: Tensor = self.coarse(F.relu(self.down(quads.reshape(n, height // 2, width // 2, 4 * FINE))))
        both = F.relu(quads + self.up(coarse).view(quads.shape))
        blocks = self.out(both).flatten(1, 4)
        overview = torch.cat([fine.mean((1, 2)), coarse.mean((1, 2)), scalars], dim=1)
        rates = blocks.clamp(*BLOCK_LOG_RATE_RANGE).exp().mean(1).log() + self.correct(F.relu(self.look(overview)))
        rates = _rising(rates.clamp(*LOG_RATE_RANGE))
        return torch.logaddexp(rates, self.log_overhead - math.log(height * width * BLOCK * BLOCK))


def _rising(rates: Tensor) -> Tensor:
    """The curve with every step made positive, by a softplus that leaves usual steps as they are. ``rates`` (N, 4)."""
    steps = F.softplus(rates.diff(dim=1), beta=STEP_SHARPNESS) + MINIMUM_STEP
    return torch.cat([rates[:, :1], rates[:, :1] + steps.cumsum(1)], dim=1)


class RQNetPredictor:
    """RQNet behind the predictor contract: pictures in, points of the rate-quality curve out. It runs on the CPU."""

    def __init__(self, network: RQNet, codec: str, identity: str) -> None:
        self.codec = codec
        self.identity = identity
        """Name of the codec whose bits it predicts, and identity of its weights."""
        self.network = network.eval()
        self._layers = Layers.of({name: value.numpy() for name, value in network.state_dict().items()})

    def mismatch(self, codec: str, identity: str) -> str | None:
        """A warning for use with this codec, None when it is the one that the network was trained for."""
        if (codec, identity) == (self.codec, self.identity):
            return None
        return (
            f"RQNet was trained for the codec {self.codec}, model {self.identity}, and not for {codec}, model "
            f"{identity}: expect larger errors until 'rqlvc collect' and 'rqlvc train rqnet' have made one for it."
        )

    def predict(self, frame: Frame, reference: Frame | None, last: FrameResult | None) -> tuple[RatePoint, ...]:
        """Bits that ``frame`` costs at the quality levels 10, 27, 43 and 60, rising.

        ``reference`` is the last decoded picture; None means that ``frame`` will be intra. ``last`` is what the frame
        before cost, of whatever type it was; None when there is none. Raises :class:`RqlvcError` when the reference has
        another size.
        """
        scalars = np.array(context_scalars(reference is None, last), np.float32)
        rates = np.exp(log_rates(self._layers, activity_maps(frame, reference), scalars).astype(float)).tolist()
        pixels = padded_pixels(frame.width, frame.height)
        return tuple(RatePoint(q, rate * pixels) for q, rate in zip(QUALITY_LEVELS, rates, strict=True))


def write_rqnet(path: Path, network: RQNet, codec: str, identity: str) -> None:
    """Write ``network``, trained on the bits of ``codec`` with the weights ``identity``, as a safetensors file."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    save_file(tensors, path, {"format": FORMAT, "codec": codec, "identity": identity})


def load_rqnet(path: Path = DEFAULT_WEIGHTS) -> RQNetPredictor:
    """The predictor with its shipped weights, or those of a file that training wrote.

    Raises :class:`RqlvcError` when the file is missing, broken or of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RqlvcError(f"the RQNet weights {path} cannot be read ({error}): get a fresh copy of them.") from error
    if metadata.get("format") != FORMAT:
        raise RqlvcError(f"{path} does not hold weights of RQNet ({FORMAT}): give a file that 'train rqnet' wrote.")
    network = RQNet()
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise RqlvcError(f"{path} does not fit this version's RQNet: train it anew.") from error
    return RQNetPredictor(network, metadata.get("codec", ""), metadata.get("identity", ""))
