"""RQNet: the rate-quality curve of a frame, predicted before it is coded (after the RQ-LVC paper, section 2.3).

The network never sees pixels. A picture and its difference to the last decoded one become *activity maps* at 1/8
resolution: for each block of 8x8 luma samples, the logarithm of the mean magnitude of its cosine coefficients in five
bands (averaging pixels down to that size would hide the very texture that costs bits). A transform coder spends about
ln(1 + magnitude / step) on a coefficient, which is softplus(ln magnitude - ln step): one layer of a network, so a small
one over such maps starts close to the law that it has to learn. It gives the rates of each block at four quality
levels; the frame's rate is their mean, which makes it work at any size.

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
from rqlvc.rate.models import FloatArray, log_bits
from rqlvc.rate.protocol import QUALITY_MAX, FrameResult, RatePoint

QUALITY_LEVELS = (10.0, 27.0, 43.0, 60.0)
"""Where the curve is predicted: Table 4 of the paper."""

BLOCK = 8
CHROMA_BLOCK = 4
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
_BLOCK_LOG_RATE_RANGE = (-20.0, 5.0)
"""The same of a single block."""
_FIRST_LOG_RATES = (-4.0, -2.7, -1.5, -0.3)
"""A plausible curve to start training from: 0.02 to 0.7 bits per pixel."""
_FIRST_OVERHEAD = 64.0
"""Bits per packet that do not depend on the picture, before training has measured them."""

FORMAT = "rqlvc-rqnet-1"
DEFAULT_WEIGHTS = Path(__file__).parents[1] / "weights" / "rqnet.safetensors"


def padded_pixels(width: int, height: int) -> int:
    """Luma pixels of a picture after padding: what the network's bits per pixel are counted over."""
    return -(-width // PADDING) * -(-height // PADDING) * PADDING * PADDING


def _cosine_transform(size: int) -> FloatArray:
    """The orthonormal cosine transform of a size x size block, (size², size²), acting on rows."""
    frequency, place = np.mgrid[:size, :size]
    basis = np.cos(np.pi * (place + 0.5) * frequency / size) * np.where(frequency, math.sqrt(2), 1) / math.sqrt(size)
    kernel: FloatArray = np.einsum("ui,vj->ijuv", basis, basis).reshape(size * size, size * size)
    return kernel


def _means(members: npt.NDArray[np.bool_]) -> FloatArray:
    """Columns that average over the rows that belong to them."""
    means: FloatArray = members / members.sum(axis=0, keepdims=True)
    return means


def _luma_bands() -> FloatArray:
    """From 64 magnitudes to those of the mean and of the bands, (64, 6)."""
    order = np.add.outer(np.arange(BLOCK), np.arange(BLOCK)).reshape(-1, 1)
    limits = np.array((-1, 0, *BAND_LIMITS))
    return _means((limits[:-1] < order) & (order <= limits[1:]))


def _quarters() -> FloatArray:
    """From 64 samples to the means of the four quarters of the block, (64, 4)."""
    row, column = np.divmod(np.arange(BLOCK * BLOCK), BLOCK)
    quarter = 2 * (row // (BLOCK // 2)) + column // (BLOCK // 2)
    return _means(quarter[:, None] == np.arange(4))


class ActivityMaps:
    """Turns pictures into the network's input. Has no parameters that are learnt.

    Everything is a product of blocks (rows) and a small constant matrix: it has to run in a hundredth of the time that
    coding the frame takes.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)

        def constant(matrix: FloatArray) -> Tensor:
            return torch.from_numpy(matrix.astype(np.float32)).to(self.device)

        texture = np.tile(np.arange(CHROMA_BLOCK**2) > 0, 2)[:, None]
        self._luma_transform = constant(_cosine_transform(BLOCK))
        self._luma_bands = constant(_luma_bands() / FLOOR)
        self._quarters = constant(_quarters() / FLOOR)
        self._chroma_transform = constant(_cosine_transform(CHROMA_BLOCK))
        self._chroma_texture = constant(_means(texture) / FLOOR)

    @torch.inference_mode()
    def __call__(self, frame: Frame, reference: Frame | None) -> Tensor:
        """Maps of shape (ceil(height / 16) * 2, ceil(width / 16) * 2, 15), each from 0 to about 10.

        ``reference`` is the last decoded picture; None, for an intra frame, reads as no difference at all. Raises
        :class:`RqlvcError` when the two pictures differ in size.
        """
        if reference is not None and reference.y.shape != frame.y.shape:
            raise RqlvcError(
                f"the reference is {reference.width}x{reference.height} and the frame {frame.width}x{frame.height}: "
                "start with an intra frame where the picture size changes."
            )
        height, width = (-(-side // PADDING) * PADDING // BLOCK for side in (frame.height, frame.width))
        blocks = height * width
        luma, chroma = self._samples([frame] if reference is None else [frame, reference], height, width)
        bands = (luma.flatten(0, 1) @ self._luma_transform).abs_() @ self._luma_bands
        mean = bands[:blocks, :1] * (FLOOR / (BLOCK * LUMA_UNIT))
        colours = (chroma.view(-1, CHROMA_BLOCK**2) @ self._chroma_transform).abs_()
        colour = colours.view(-1, 2 * CHROMA_BLOCK**2) @ self._chroma_texture
        if reference is None:
            maps = [bands[:, 1:], colour, mean.new_zeros(blocks, BANDS + 3)]
        else:
            quarters = luma @ self._quarters
            moved = _coarse_search(*quarters.view(2, height, width, 2, 2).transpose(2, 3).reshape(2, 2 * height, -1))
            maps = [bands[:blocks, 1:], colour[:blocks], bands[blocks:], colour[blocks:], moved.view(-1, 1)]
        return torch.cat([mean, torch.cat(maps, dim=1).log1p_()], dim=1).view(height, width, MAPS)

    def _samples(self, frames: Sequence[Frame], height: int, width: int) -> tuple[Tensor, Tensor]:
        """8-bit samples as floats, by block: luma (n, height * width, 64) and chroma (n, height * width, 2, 16).

        The second of two frames is subtracted from the first: what is given is the first, and the difference.
        """

        def blocks(plane: Plane, size: int) -> Tensor:
            missing = (height * size - plane.shape[0], width * size - plane.shape[1])
            if missing != (0, 0):
                plane = np.pad(plane, ((0, missing[0]), (0, missing[1])), mode="edge")
            rows = plane.reshape(height, size, width, size).transpose(0, 2, 1, 3).reshape(height * width, size * size)
            return torch.from_numpy(rows)

        luma = torch.empty(len(frames), height * width, BLOCK**2, device=self.device)
        chroma = torch.empty(len(frames), height * width, 2, CHROMA_BLOCK**2, device=self.device)
        for index, frame in enumerate(frames):
            luma[index].copy_(blocks(frame.y, BLOCK))
            chroma[index, :, 0].copy_(blocks(frame.u, CHROMA_BLOCK))
            chroma[index, :, 1].copy_(blocks(frame.v, CHROMA_BLOCK))
        if len(frames) == 2:
            torch.sub(luma[0], luma[1], out=luma[1])
            torch.sub(chroma[0], chroma[1], out=chroma[1])
        return luma, chroma


def _coarse_search(small: Tensor, difference: Tensor) -> Tensor:
    """The smallest mean difference of each block to the reference moved by up to 8 samples, (H / 8, W / 8).

    ``small`` is luma at 1/4 resolution and ``difference`` what it has more than the reference, so this tells motion
    from change, but not how well the codec will follow the motion.
    """
    height, width = small.shape
    around = F.pad((small - difference)[None, None], (SEARCH,) * 4, mode="replicate")[0, 0]
    moved = around.unfold(0, height, 1).unfold(1, width, 1)
    error = (moved - small).abs_()
    rows = error[:, :, 0::2] + error[:, :, 1::2]
    return (rows[..., 0::2] + rows[..., 1::2]).flatten(0, 1).amin(0) / 4


def context_scalars(intra: bool, last: FrameResult | None) -> tuple[float, ...]:
    """What the network is told beside the maps, (6,): is the frame intra; is the last frame known, was it intra, its
    ln(bits per pixel), quality and ln(MSE), all zero when it is not known."""
    if last is None:
        return float(intra), 0.0, 0.0, 0.0, 0.0, 0.0
    rate = log_bits(last.bits) - math.log(last.info.pixels)
    return float(intra), 1.0, float(last.info.intra), rate, last.quality, math.log(max(last.mse, 1e-7))


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
    """Activity maps (N, h, w, 15) and context scalars (N, 6) to ln(bits per pixel) at the four levels, (N, 4).

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
        self.register_buffer("scalar_mean", torch.tensor([0.0, 0.0, 0.0, -3.0, QUALITY_MAX / 2, -7.0]))
        self.register_buffer("scalar_scale", torch.tensor([1.0, 1.0, 1.0, 2.0, QUALITY_MAX / 4, 2.0]))
        self.stem = nn.Linear(MAPS, _WIDTH)
        self.context = nn.Linear(SCALARS, _WIDTH)
        self.down = nn.Linear(4 * _WIDTH, _COARSE_WIDTH)
        self.coarse = _Separable(_COARSE_WIDTH)
        self.up = nn.Linear(_COARSE_WIDTH, 4 * _WIDTH)
        self.out = nn.Linear(_WIDTH, levels)
        self.look = nn.Linear(_WIDTH + _COARSE_WIDTH + SCALARS, _COARSE_WIDTH)
        self.correct = nn.Linear(_COARSE_WIDTH, levels)
        self.log_overhead = nn.Parameter(torch.tensor(math.log(_FIRST_OVERHEAD)))
        with torch.no_grad():
            self.out.bias.copy_(torch.tensor(_FIRST_LOG_RATES))
            nn.init.zeros_(self.correct.weight)
            nn.init.zeros_(self.correct.bias)

    @torch.no_grad()
    def normalise(self, mean: Tensor, deviation: Tensor) -> None:
        """Set the mean and the standard deviation of each map, (15,), over the training samples."""
        self.map_mean.copy_(mean)
        self.map_scale.copy_(deviation.clamp(min=0.1))

    def forward(self, maps: Tensor, scalars: Tensor) -> Tensor:
        n, height, width, _ = maps.shape
        centred = (scalars - self.scalar_mean) / self.scalar_scale
        scalars = torch.cat([scalars[:, :3], centred[:, 3:] * scalars[:, 1:2]], dim=1)
        x = (maps - self.map_mean) / self.map_scale
        fine = F.relu(self.stem(x) + self.context(scalars)[:, None, None])
        quads = fine.view(n, height // 2, 2, width // 2, 2, _WIDTH).transpose(2, 3)
        coarse: Tensor = self.coarse(F.relu(self.down(quads.reshape(n, height // 2, width // 2, 4 * _WIDTH))))
        both = F.relu(quads + self.up(coarse).view(quads.shape))
        blocks = self.out(both).flatten(1, 4)
        overview = torch.cat([fine.mean((1, 2)), coarse.mean((1, 2)), scalars], dim=1)
        rates = blocks.clamp(*_BLOCK_LOG_RATE_RANGE).exp().mean(1).log() + self.correct(F.relu(self.look(overview)))
        rates = _rising(rates.clamp(*_LOG_RATE_RANGE))
        return torch.logaddexp(rates, self.log_overhead - math.log(height * width * BLOCK * BLOCK))


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
