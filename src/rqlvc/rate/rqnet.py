"""RQNet: the rate-quality curve of a frame, predicted before it is coded (after the RQ-LVC paper, section 2.3).

The network never sees pixels. A picture and its difference to the last decoded one become *activity maps* at 1/8
resolution: for each block of 8x8 luma samples, the logarithm of the mean magnitude of its cosine coefficients in five
bands (averaging pixels down to that size would hide the very texture that costs bits). A transform coder spends about
ln(1 + magnitude / step) on a coefficient, and softplus(ln magnitude - ln step) is that number, so a small network over
such maps starts close to the law that it has to learn. It gives the rates of each block at four quality levels; the
frame's rate is their sum, which makes it work at any size.

The rest is the paper's: rate, distortion and quality of the last frame go in, and out come the rates at the quality
levels 10, 27, 43 and 60, here as ln(bits per pixel) and never falling from one level to the next.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rqlvc.errors import RqlvcError
from rqlvc.media.frame import Frame, Plane
from rqlvc.rate.models import log_bits
from rqlvc.rate.protocol import QUALITY_MAX, FrameResult, RatePoint

QUALITY_LEVELS = (10.0, 27.0, 43.0, 60.0)
"""Where the curve is predicted: Table 4 of the paper."""

BLOCK = 8
PADDING = 16
"""Pictures are extended to multiples of this: two blocks, for the network's coarser scale."""
BAND_LIMITS = (1, 2, 4, 7, 14)
"""Bands of the cosine transform: the greatest sum of the two frequency indices in each."""
BANDS = len(BAND_LIMITS)
MAPS = 2 * (BANDS + 1) + 3
"""Of the picture: mean luma, five bands, chroma. Of the difference: mean, five bands, chroma, after a coarse search."""
FLOOR = 0.1
"""Magnitude, in 8-bit units, that is told from nothing: maps are ln(magnitude / FLOOR + 1)."""
LUMA_UNIT = 25.5
"""The map of mean luma is in these units, so that all maps span about 0 to 10."""
SEARCH = 2
"""Reach of the coarse motion search in samples at 1/4 resolution: 8 luma samples."""

SCALARS = 6
_WIDTH = 32
_COARSE_WIDTH = 48
_STEP_SHARPNESS = 4.0
_MINIMUM_STEP = 0.01
"""ln R grows by at least this from level to level: a curve can always be inverted."""
_LOG_RATE_RANGE = (-14.0, 5.0)
"""Of bits per pixel: 0.08 bits per 100,000 pixels, and far beyond what 8-bit samples hold."""
_FIRST_OVERHEAD = 64.0
"""Bits per packet that do not depend on the picture, before training has measured them."""

FORMAT = "rqlvc-rqnet-1"
DEFAULT_WEIGHTS = Path(__file__).parents[1] / "weights" / "rqnet.safetensors"


def padded_pixels(width: int, height: int) -> int:
    """Luma pixels of a picture after padding: what the network's bits per pixel are counted over."""
    return -(-width // PADDING) * -(-height // PADDING) * PADDING * PADDING


def _cosine_transform() -> Tensor:
    """The orthonormal 8x8 cosine transform as a convolution kernel, (64, 1, 8, 8)."""
    frequency, place = np.mgrid[:BLOCK, :BLOCK]
    basis = np.cos(np.pi * (place + 0.5) * frequency / BLOCK) * np.where(frequency, math.sqrt(2), 1) / math.sqrt(BLOCK)
    kernel = np.einsum("ui,vj->uvij", basis, basis).reshape(BLOCK * BLOCK, 1, BLOCK, BLOCK)
    return torch.from_numpy(kernel.astype(np.float32))


def _band_means() -> Tensor:
    """A 1x1 convolution from the 64 coefficients' magnitudes to the mean's and the bands', (6, 64, 1, 1)."""
    order = np.add.outer(np.arange(BLOCK), np.arange(BLOCK)).reshape(-1)
    limits = (-1, 0, *BAND_LIMITS)
    members = np.stack([(low < order) & (order <= high) for low, high in zip(limits, limits[1:], strict=False)])
    means = members / members.sum(axis=1, keepdims=True)
    return torch.from_numpy(means.astype(np.float32))[:, :, None, None]


class ActivityMaps:
    """Turns pictures into the network's input. Has no parameters that are learnt."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self._transform = _cosine_transform().to(self.device)
        self._bands = _band_means().to(self.device)

    @torch.inference_mode()
    def __call__(self, frame: Frame, reference: Frame | None) -> Tensor:
        """Maps of shape (15, ceil(height / 16) * 2, ceil(width / 16) * 2), each from 0 to about 10.

        ``reference`` is the last decoded picture; None, for an intra frame, reads as no difference at all. Raises
        :class:`RqlvcError` when the two pictures differ in size.
        """
        if reference is not None and reference.y.shape != frame.y.shape:
            raise RqlvcError(
                f"the reference is {reference.width}x{reference.height} and the frame {frame.width}x{frame.height}: "
                "start with an intra frame where the picture size changes."
            )
        luma, chroma = self._samples(frame)
        height, width = luma.shape[-2] // BLOCK, luma.shape[-1] // BLOCK
        mean = F.avg_pool2d(luma, BLOCK)
        chroma_change = chroma - F.interpolate(F.avg_pool2d(chroma, BLOCK // 2), scale_factor=BLOCK // 2)
        texture = self._log(F.avg_pool2d(chroma_change.abs(), BLOCK // 2).mean(0, keepdim=True))
        if reference is None:
            own = self._log(self._activity(luma)[:, 1:])
            nothing = luma.new_zeros(1, BANDS + 3, height, width)
            return torch.cat([mean / LUMA_UNIT, own, texture, nothing], dim=1)[0]
        old_luma, old_chroma = self._samples(reference)
        activity = self._log(self._activity(torch.cat([luma, luma - old_luma])))
        moved = self._log(_coarse_search(luma, old_luma))
        repaint = self._log(F.avg_pool2d((chroma - old_chroma).abs(), BLOCK // 2).mean(0, keepdim=True))
        return torch.cat([mean / LUMA_UNIT, activity[:1, 1:], texture, activity[1:], repaint, moved], dim=1)[0]

    def _activity(self, luma: Tensor) -> Tensor:
        """Mean magnitudes of the block mean and of each band, (N, 6, H / 8, W / 8)."""
        return F.conv2d(F.conv2d(luma, self._transform, stride=BLOCK).abs_(), self._bands)

    @staticmethod
    def _log(magnitude: Tensor) -> Tensor:
        return torch.log1p(magnitude / FLOOR)

    def _samples(self, frame: Frame) -> tuple[Tensor, Tensor]:
        """8-bit samples as floats: luma (1, 1, H, W) and chroma (2, 1, H / 2, W / 2), padded."""
        rows, columns = -(-frame.height // PADDING) * PADDING, -(-frame.width // PADDING) * PADDING

        def padded(plane: Plane, height: int, width: int) -> Tensor:
            if plane.shape != (height, width):
                plane = np.pad(plane, ((0, height - plane.shape[0]), (0, width - plane.shape[1])), mode="edge")
            return torch.from_numpy(np.ascontiguousarray(plane)).to(self.device).float()[None, None]

        chroma = [padded(plane, rows // 2, columns // 2) for plane in (frame.u, frame.v)]
        return padded(frame.y, rows, columns), torch.cat(chroma)


def _coarse_search(luma: Tensor, reference: Tensor) -> Tensor:
    """The smallest mean difference of each 16x16 block to the reference moved by up to 8 samples, (1, 1, H / 8, W / 8).

    At 1/4 resolution, so it tells camera and object motion from change, not how well the codec will follow it.
    """
    small, old = F.avg_pool2d(luma, 4), F.avg_pool2d(reference, 4)
    height, width = small.shape[-2:]
    around = F.pad(old, (SEARCH,) * 4, mode="replicate")[0, 0]
    windows = around.unfold(0, height, 1).unfold(1, width, 1).flatten(0, 1)
    return F.avg_pool2d((windows - small[0]).abs_(), 4, 2, 1, count_include_pad=False).amin(0)[None, None]


def context_scalars(intra: bool, last: FrameResult | None) -> tuple[float, ...]:
    """What the network is told beside the maps, (6,): is the frame intra; is the last frame known, was it intra, its
    ln(bits per pixel), quality and ln(MSE), all zero when it is not known."""
    if last is None:
        return float(intra), 0.0, 0.0, 0.0, 0.0, 0.0
    rate = log_bits(last.bits) - math.log(last.info.pixels)
    return float(intra), 1.0, float(last.info.intra), rate, last.quality, math.log(max(last.mse, 1e-7))


class _Separable(nn.Module):
    """Depthwise 3x3, pointwise, beside an identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 3, padding=1, padding_mode="zeros", groups=width)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.mix(F.silu(self.spatial(x)))
        return y


class RQNet(nn.Module):
    """Activity maps (N, 15, h, w) and context scalars (N, 6) to ln(bits per pixel) at the four levels, (N, 4).

    A U-Net of two scales, 1/8 and 1/16, of depthwise-separable convolutions. Its output is one rate per block and
    level, averaged over the blocks; the averages are then moved by what the last frame cost.
    """

    map_mean: Tensor
    map_scale: Tensor
    scalar_mean: Tensor
    scalar_scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("map_mean", torch.zeros(MAPS))
        self.register_buffer("map_scale", torch.ones(MAPS))
        self.register_buffer("scalar_mean", torch.tensor([0.0, 0.0, 0.0, -3.0, QUALITY_MAX / 2, -7.0]))
        self.register_buffer("scalar_scale", torch.tensor([1.0, 1.0, 1.0, 2.0, QUALITY_MAX / 4, 2.0]))
        self.stem = nn.Conv2d(MAPS, _WIDTH, 1)
        self.context = nn.Linear(SCALARS, _WIDTH)
        self.fine = _Separable(_WIDTH)
        self.down = nn.Conv2d(_WIDTH, _COARSE_WIDTH, 2, stride=2)
        self.coarse = nn.Sequential(_Separable(_COARSE_WIDTH), _Separable(_COARSE_WIDTH))
        self.up = nn.Conv2d(_COARSE_WIDTH, _WIDTH, 1)
        self.out = nn.Conv2d(_WIDTH, len(QUALITY_LEVELS), 1)
        self.correct = nn.Sequential(
            nn.Linear(_WIDTH + _COARSE_WIDTH + SCALARS, _COARSE_WIDTH),
            nn.SiLU(),
            nn.Linear(_COARSE_WIDTH, len(QUALITY_LEVELS)),
        )
        self.log_overhead = nn.Parameter(torch.tensor(math.log(_FIRST_OVERHEAD)))
        with torch.no_grad():
            for layer in (self.out, self.correct[-1]):
                assert isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None
                layer.weight.mul_(0.1)
                layer.bias.zero_()
            # A plausible curve to start from: 0.01 to 1 bit per pixel.
            self.out.bias.copy_(torch.tensor([-4.0, -2.7, -1.5, -0.3]))  # type: ignore[union-attr]

    @torch.no_grad()
    def normalise(self, mean: Tensor, deviation: Tensor) -> None:
        """Set the mean and the standard deviation of each map, (15,), over the training samples."""
        self.map_mean.copy_(mean)
        self.map_scale.copy_(deviation.clamp(min=0.1))

    def forward(self, maps: Tensor, scalars: Tensor) -> Tensor:
        known = scalars[:, 1:2]
        centred = (scalars - self.scalar_mean) / self.scalar_scale
        scalars = torch.cat([scalars[:, :3], centred[:, 3:] * known], dim=1)
        x = (maps - self.map_mean[:, None, None]) / self.map_scale[:, None, None]
        fine = self.fine(F.silu(self.stem(x) + self.context(scalars)[:, :, None, None]))
        coarse = self.coarse(F.silu(self.down(fine)))
        both = F.silu(fine + F.interpolate(self.up(coarse), scale_factor=2))
        blocks = self.out(both).flatten(2)
        overview = torch.cat([fine.mean((2, 3)), coarse.mean((2, 3)), scalars], dim=1)
        rates = torch.logsumexp(blocks, dim=2) - math.log(blocks.shape[2]) + self.correct(overview)
        pixels = maps.shape[-2] * maps.shape[-1] * BLOCK * BLOCK
        rates = _rising(rates.clamp(*_LOG_RATE_RANGE))
        return torch.logaddexp(rates, self.log_overhead - math.log(pixels))


def _rising(rates: Tensor) -> Tensor:
    """The curve with every step made positive, by a softplus that leaves usual steps as they are. ``rates`` (N, 4)."""
    steps = F.softplus(rates.diff(dim=1), beta=_STEP_SHARPNESS) + _MINIMUM_STEP
    return torch.cat([rates[:, :1], rates[:, :1] + steps.cumsum(1)], dim=1)


class RQNetPredictor:
    """RQNet behind the predictor contract: pictures in, points of the rate-quality curve out."""

    def __init__(self, network: RQNet, codec: str, identity: str, device: str = "cpu") -> None:
        self.codec = codec
        self.identity = identity
        """Name of the codec whose bits it predicts, and identity of its weights."""
        self._maps = ActivityMaps(device)
        self._network = network.to(device).eval()

    def mismatch(self, codec: str, identity: str) -> str | None:
        """A warning for use with this codec, None when it is the one that the network was trained for."""
        if (codec, identity) == (self.codec, self.identity):
            return None
        return (
            f"RQNet was trained for the codec {self.codec}, model {self.identity}, and not for {codec}, model "
            f"{identity}: expect larger errors until 'rqlvc collect' and 'rqlvc train rqnet' have made one for it."
        )

    @torch.inference_mode()
    def predict(self, frame: Frame, reference: Frame | None, last: FrameResult | None) -> tuple[RatePoint, ...]:
        """Bits that ``frame`` costs at the quality levels 10, 27, 43 and 60, rising.

        ``reference`` is the last decoded picture; None means that ``frame`` will be intra. ``last`` is what the frame
        before cost, of whatever type it was; None when there is none. Raises :class:`RqlvcError` when the reference has
        another size.
        """
        maps = self._maps(frame, reference)
        scalars = torch.tensor([context_scalars(reference is None, last)], device=maps.device)
        rates: Sequence[float] = self._network(maps[None], scalars)[0].double().exp().tolist()
        pixels = padded_pixels(frame.width, frame.height)
        return tuple(RatePoint(q, rate * pixels) for q, rate in zip(QUALITY_LEVELS, rates, strict=True))


def write_rqnet(path: Path, network: RQNet, codec: str, identity: str) -> None:
    """Write ``network``, trained on the bits of ``codec`` with the weights ``identity``, as a safetensors file."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    save_file(tensors, path, {"format": FORMAT, "codec": codec, "identity": identity})


def load_rqnet(path: Path = DEFAULT_WEIGHTS, device: str = "cpu") -> RQNetPredictor:
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
    return RQNetPredictor(network, metadata.get("codec", ""), metadata.get("identity", ""), device)


def to_bytes(maps: Tensor) -> npt.NDArray[np.uint8]:
    """Maps for storage: 1/16 steps (6 % of a magnitude)."""
    return (maps * 16 + 0.5).clamp(0, 255).byte().cpu().numpy()


def from_bytes(stored: npt.NDArray[np.uint8]) -> Tensor:
    """Inverse of :func:`to_bytes`."""
    return torch.from_numpy(stored).float() / 16
