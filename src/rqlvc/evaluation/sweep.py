"""The encodes behind the paper's tables: each kept on disk under all that it depends on, made by several processes.

An encode runs with one thread, whatever the number of processes, so that its bits do not depend on the machine's load.
"""

import functools
import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch

from rqlvc.codec.protocol import Codec, DecodedFrame, EncodedFrame, State
from rqlvc.codec.registry import load_codec
from rqlvc.control import CURVE_QUALITIES, RateTarget, open_control
from rqlvc.encoder import Encoder
from rqlvc.errors import RqlvcError
from rqlvc.evaluation.anchors import AnchorBitrate, AnchorEncoder, encode_anchor
from rqlvc.evaluation.digests import anchor_digest, codec_digest, controller_digest
from rqlvc.evaluation.metrics import VMAF_MODEL, ms_ssim, psnr_rgb, psnr_y, psnr_yuv, vmaf
from rqlvc.first_pass import Cost, look
from rqlvc.media.frame import Frame
from rqlvc.media.properties import VideoProperties
from rqlvc.media.reader import VIDEO_SUFFIXES, file_digest, open_reader
from rqlvc.parallel import Engine, spread
from rqlvc.rate.constant import Constant, Hierarchical
from rqlvc.rate.rqnet import DEFAULT_WEIGHTS, RQNetPredictor, load_rqnet

CONSTANT, HIERARCHICAL = "constant", "hierarchical"
"""What controllers are compared with: one level for all frames, or the pattern of levels around it."""
CURVES = "curves"
"""Not a controller: a constant quality on whose way some frames are coded at many levels."""
CURVE_LEVELS = (4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 60.0)
CURVE_STRIDE = 8
"""Frames from one whose curve is measured to the next."""
FIGURE_FRAME = 16
"""The frame whose curve is measured in every encode that meets a target (the paper's Fig. 5), or the middle one of a
clip that has no more than twice as many."""
ENCODE_FORMAT = 3
"""Goes up when :class:`Encode` gets a field or another meaning: encodes on disk without it are made again."""
ONE_PASS, TWO_PASS = "one-pass", "two-pass"
"""How an anchor meets a target."""
ANCHORS: tuple[AnchorEncoder, ...] = get_args(AnchorEncoder)
ANCHOR_COST = 0.2
"""Time of an anchor's encode relative to ours."""
RECODE = "recode"
ENCODES = {"four-pass": 1 + len(CURVE_QUALITIES), TWO_PASS: 2, RECODE: 1.3}
"""Of each frame, where they are more than one."""
_ENCODES = "encodes"


@dataclass(frozen=True, slots=True)
class Clip:
    """The first ``frames`` frames of a file, or all it has where it has fewer."""

    path: str
    digest: str
    properties: VideoProperties
    frames: int

    @property
    def name(self) -> str:
        return Path(self.path).stem


@dataclass(frozen=True, slots=True)
class Job:
    """One encode."""

    clip: Clip
    codec: str
    """A registered one, or an anchor."""
    model: str
    """Identity of the codec's weights; of an anchor its settings."""
    controller: str
    """Of an anchor: ``constant``, ``one-pass`` or ``two-pass``."""
    level: float | None
    """The constant quality level (an anchor's quantiser), or the level of ours whose bits are the target; None for a
    target from elsewhere."""
    keyint: int
    target_bits: int | None = None
    """None at a constant quality."""
    vmaf: bool = False
    """Whether VMAF is measured."""
    rates: tuple[tuple[int, int], ...] = ()
    """Bits per second from frame to frame, the first from frame 0 on; empty for the one rate of ``target_bits``."""
    lookahead: int = 0
    """Frames that the encoder sees after each."""

    @property
    def key(self) -> dict[str, Any]:
        """All that the result depends on."""
        return {
            "format": ENCODE_FORMAT,
            "clip": self.clip.digest,
            "frames": self.clip.frames,
            "codec": [self.codec, self.model, anchor_digest() if self.is_anchor else codec_digest()],
            "controller": [self.controller, None if self.is_anchor else controller_digest(self.controller)],
            "level": self.level,
            "keyint": self.keyint,
            "target_bits": self.target_bits,
            "vmaf": VMAF_MODEL if self.vmaf else None,
            "rates": self.rates,
            "lookahead": self.lookahead,
        }

    @property
    def is_anchor(self) -> bool:
        return self.codec in ANCHORS

    @property
    def file_name(self) -> str:
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()
        return f"{_ENCODES}/{digest[:32]}.json"

    @property
    def goal(self) -> str:
        """For people."""
        if self.level is not None:
            return f"q {self.level:g}"
        return " ".join(f"{rate / 1000:g}" for _, rate in self.rates) + " kbit/s"

    @property
    def cost(self) -> float:
        """Relative time it takes."""
        runs = ANCHOR_COST if self.is_anchor else ENCODES.get(self.controller, 1)
        return runs * self.clip.frames * self.clip.properties.width * self.clip.properties.height


@dataclass(frozen=True, slots=True)
class Encode:
    """What a job gave. Lists have an entry for each frame, but for ``curves``."""

    type: list[str]
    """I or P."""
    quality: list[float | None]
    """None for an anchor."""
    target_bits: list[float | None]
    bits: list[int]
    psnr_y: list[float]
    psnr_yuv: list[float]
    psnr_rgb: list[float]
    ms_ssim: list[float | None]
    """None where the picture is too small for it."""
    alpha: list[float | None]
    beta: list[float | None]
    """Of the model quality = alpha · ln(bits) + beta behind the decision, where there is one."""
    predicted: list[list[tuple[float, float]]]
    """Quality and bits of the points that the controller had, predicted or really coded; empty where it had none."""
    seconds: float
    """Of the codec, the controller and the predictor, in one thread."""
    encodes: int
    """Times that a frame was coded, in all: also in a first pass, or to see what it costs."""
    vmaf: list[float] = field(default_factory=list)
    """Empty where it was not asked for."""
    curve_frames: list[int] = field(default_factory=list)
    """Frames that were also coded at each of ``CURVE_LEVELS`` from the same state."""
    curves: list[list[int]] = field(default_factory=list)
    """The bits that each of these took."""


def find_sequences(folder: Path, names: Sequence[str]) -> list[Path]:
    """The video files of a folder: all, or those of ``names`` (without suffix). Raises :class:`RqlvcError` for none."""
    if not folder.is_dir():
        raise RqlvcError(f"{folder} is no folder: name one that holds the sequences.")
    files = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in VIDEO_SUFFIXES}
    unknown = [name for name in names if name not in files]
    if unknown or not files:
        raise RqlvcError(f"{folder} lacks {', '.join(unknown) or 'video files'}; it has: {', '.join(files) or 'none'}.")
    return [files[name] for name in names or files]


def find_clips(folder: Path, names: Sequence[str], frames: int) -> list[Clip]:
    """As :func:`find_sequences`, opened."""
    return [open_clip(path, frames) for path in find_sequences(folder, names)]


def open_clip(path: Path, frames: int) -> Clip:
    """The first ``frames`` frames of a file, or all it has where it has fewer."""
    with open_reader(str(path), frames=frames) as reader:
        available = reader.frame_count or sum(1 for _ in reader)
        return Clip(str(path), file_digest(path), reader.properties, min(available, frames))


def run_jobs(
    jobs: Iterable[Job], out: Path, engine: Engine, on_done: Callable[[Job, float], None] = lambda job, cost: None
) -> dict[Job, Encode]:
    """The results of ``jobs``, from the folder ``out`` where they are there, made and kept there where not.

    ``on_done`` hears of each that is made, with the cost still to come. A stopped run loses what was being coded.
    Raises :class:`RqlvcError`, after all others, for encodes whose workers died.
    """
    found: dict[Job, Encode] = {}
    missing = []
    for job in jobs:
        known = _load(out / job.file_name)
        if known is None:
            missing.append(job)
        else:
            found[job] = known
    (out / _ENCODES).mkdir(parents=True, exist_ok=True)
    missing.sort(key=lambda job: -job.cost)
    left = sum(job.cost for job in missing)
    lost = []
    for order, encode in spread(run_order, [Order(job, job.file_name) for job in missing], engine):
        if encode is None:
            lost.append(order.job)
            continue
        _store(out / order.job.file_name, order.job, encode)
        found[order.job] = encode
        left -= order.job.cost
        on_done(order.job, left)
    if lost:
        names = ", ".join(f"{job.clip.name} ({job.codec}, {job.controller}, {job.goal})" for job in lost)
        raise RqlvcError(
            f"workers died again and again, perhaps for want of memory, over {names}: all else is done and kept; "
            "the same command tries them again."
        )
    return found


def _load(path: Path) -> Encode | None:
    return Encode(**json.loads(path.read_text())["encode"]) if path.exists() else None


def _store(path: Path, job: Job, encode: Encode) -> None:
    """Whole or not at all."""
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps({"key": job.key, "encode": asdict(encode)}))
    partial.replace(path)


@functools.lru_cache(maxsize=1)
def _codec(name: str) -> Codec:
    """Of a process: loading one takes longer than a short encode."""
    return load_codec(name, device="cpu", threads=1)


@dataclass(frozen=True, slots=True)
class Order:
    """A job for another process or machine, and the name of its file here, which is a digest of all it depends on."""

    job: Job
    file_name: str


def run_order(order: Order) -> Encode:
    """As :func:`run_job`. Raises :class:`RqlvcError` where this machine has other sources, weights or sequences."""
    if order.job.file_name != order.file_name:
        raise RqlvcError(f"{socket.gethostname()} has another version of rqlvc, or it was changed: start again.")
    if _known_digest(order.job.clip.path) != order.job.clip.digest:
        raise RqlvcError(f"{order.job.clip.path} on {socket.gethostname()} is not the file it was: start again.")
    return run_job(order.job)


@functools.cache
def _known_digest(path: str) -> str:
    return file_digest(Path(path))


def run_job(job: Job) -> Encode:
    """Encode. Raises :class:`RqlvcError` when the installed codec is not the one that ``job`` names."""
    torch.set_num_threads(1)  # a codec of other make may not have
    with open_reader(job.clip.path, frames=job.clip.frames) as reader:
        frames = list(reader)
    return _encode_anchor(job, frames) if job.is_anchor else _encode(job, frames)


class _Counted:
    """A codec that counts its encodes."""

    def __init__(self, codec: Codec) -> None:
        self.codec, self.name, self.identity = codec, codec.name, codec.identity
        self.encodes = 0

    def encode(self, frame: Frame, quality: float, state: State | None) -> EncodedFrame:
        self.encodes += 1
        return self.codec.encode(frame, quality, state)

    def decode(self, payload: bytes, state: State | None) -> DecodedFrame:
        return self.codec.decode(payload, state)


def _encode(job: Job, frames: Sequence[Frame]) -> Encode:
    codec = _Counted(_codec(job.codec))
    if codec.identity != job.model:
        raise RqlvcError(f"the codec {job.codec} is now model {codec.identity} and was {job.model}: start again.")
    encoder = _open_encoder(job, codec, frames)
    later_rates = dict(job.rates[1:])
    stats, shown, curves = [], [], {}
    for index, frame in enumerate(frames):
        if has_curve(job, index):
            state: State | None = None if index % job.keyint == 0 else encoder.state
            curves[index] = [8 * len(codec.codec.encode(frame, level, state).payload) for level in CURVE_LEVELS]
        if index in later_rates:
            encoder.set_rates(float(later_rates[index]), float(job.clip.properties.frame_rate))
        left = len(frames) - index
        ahead, ends = _view(job, frames, index)
        stats.append(encoder.encode(frame, frames_left=left, ahead=ahead, scene_ends=ends)[1])
        assert encoder.reconstruction is not None
        shown.append(encoder.reconstruction)
    return Encode(
        type=[each.type for each in stats],
        quality=[each.quality for each in stats],
        target_bits=[each.target_bits for each in stats],
        bits=[each.bits for each in stats],
        alpha=[each.alpha for each in stats],
        beta=[each.beta for each in stats],
        predicted=[[(point.quality, round(point.bits, 1)) for point in each.points] for each in stats],
        seconds=sum(each.seconds for each in stats),
        encodes=codec.encodes,
        curve_frames=list(curves),
        curves=list(curves.values()),
        **_distortions(job, frames, shown),
    )


def _encode_anchor(job: Job, frames: Sequence[Frame]) -> Encode:
    shown: list[Frame] = []
    passes: Literal[1, 2] = 2 if job.controller == TWO_PASS else 1
    rate: int | AnchorBitrate
    if job.target_bits is None:
        assert job.level is not None
        rate = round(job.level)
    else:
        kilobits = anchor_kilobits(job.target_bits, job.clip)
        rate = AnchorBitrate(kilobits, passes)
    result = encode_anchor(
        frames,
        job.clip.properties.frame_rate,
        cast(AnchorEncoder, job.codec),
        rate,
        job.keyint,
        on_frame=lambda source, picture: shown.append(picture),
    )
    unknown = [None] * len(frames)
    return Encode(
        type=list(result.picture_types),
        quality=[*unknown],
        target_bits=[*unknown],
        bits=list(result.frame_bits),
        alpha=[*unknown],
        beta=[*unknown],
        predicted=[[] for _ in frames],
        seconds=result.seconds,
        encodes=passes * len(frames),
        **_distortions(job, frames, shown),
    )


def anchor_kilobits(bits: float, clip: Clip) -> int:
    """The whole kilobits per second nearest to ``bits`` for all of ``clip``, which is what anchors can be asked for."""
    return max(1, round(bits * clip.properties.frame_rate / clip.frames / 1000))


def _distortions(job: Job, frames: Sequence[Frame], shown: Sequence[Frame]) -> dict[str, Any]:
    pairs = list(zip(frames, shown, strict=True))
    full_range = job.clip.properties.colour.full_range
    similarities = [ms_ssim(source, picture) for source, picture in pairs]
    return {
        "psnr_y": [round(psnr_y(source, picture), 4) for source, picture in pairs],
        "psnr_yuv": [round(psnr_yuv(source, picture), 4) for source, picture in pairs],
        "psnr_rgb": [round(psnr_rgb(source, picture, full_range), 4) for source, picture in pairs],
        "ms_ssim": [None if value is None else round(value, 6) for value in similarities],
        "vmaf": vmaf(frames, shown) if job.vmaf else [],
    }


def _view(job: Job, frames: Sequence[Frame], index: int) -> tuple[Sequence[Frame], bool]:
    """What the encoder of ``job`` sees after frame ``index``, and whether it sees the video end there."""
    end = index + 1 + job.lookahead
    return frames[index + 1 : end], end > len(frames)


def _open_encoder(job: Job, codec: Codec, frames: Sequence[Frame]) -> Encoder:
    if job.target_bits is None:
        assert job.level is not None
        if job.controller == HIERARCHICAL:
            return Encoder(codec, Hierarchical(job.level), keyint=job.keyint)
        return Encoder(codec, Constant(job.level), keyint=job.keyint, predictor=rqnet_of(codec.name, codec.identity))
    bitrate = job.rates[0][1] if job.rates else job.target_bits * job.clip.properties.frame_rate / len(frames)
    outlook = None
    if job.controller == TWO_PASS:

        def code(control: Constant) -> list[Cost]:
            first = Encoder(codec, control, keyint=job.keyint)
            costs = []
            for index, frame in enumerate(frames):
                ahead, ends = _view(job, frames, index)
                costs.append(Cost.of(first.encode(frame, ahead=ahead, scene_ends=ends)[1]))
            return costs

        outlook = look(code, float(bitrate), job.clip.properties, job.keyint, job.lookahead)
    target = RateTarget(float(bitrate), controller=job.controller, outlook=outlook)
    control = open_control(target, codec, job.clip.properties, len(frames), lambda message: None)
    return Encoder(codec, control.controller, keyint=job.keyint, predictor=control.predictor)


def rqnet_of(codec: str, model: str) -> RQNetPredictor | None:
    """The shipped RQNet, where it was trained for this codec: at a constant quality it changes nothing but is heard."""
    rqnet = load_rqnet() if DEFAULT_WEIGHTS.exists() else None
    return rqnet if rqnet is not None and rqnet.mismatch(codec, model) is None else None


def has_curve(job: Job, index: int) -> bool:
    """Whether ``job`` measures the curve of frame ``index``."""
    if job.controller == CURVES:
        return index % job.keyint != 0 and index % CURVE_STRIDE == CURVE_STRIDE // 2
    return job.target_bits is not None and index == min(FIGURE_FRAME, job.clip.frames // 2)
