"""Clips made on the spot, a third-party codec plugged in through packaging metadata, and the real command line."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from rqlvc.codec.protocol import Codec
from rqlvc.codec.registry import available_codecs, load_codec
from rqlvc.media.frame import Frame, Plane
from rqlvc.media.reader import open_reader
from toy_codec import ToyCodec

TESTS = Path(__file__).parent
SOURCES = TESTS.parent / "src"
COMMAND_TIMEOUT = 120


def moving_picture(width: int, height: int, index: int) -> Plane:
    """yuv420p picture ``index`` of a textured scene that drifts by (2, 1) pixels a frame. Even sizes."""
    rng = np.random.default_rng(7)
    coarse = rng.uniform(40, 210, (height // 8 + 4, width // 8 + 4))
    luma = np.kron(coarse, np.ones((8, 8))) + rng.normal(0, 4, (height // 8 * 8 + 32, width // 8 * 8 + 32))
    luma = np.roll(luma, (index, 2 * index), (0, 1))[:height, :width]
    chroma = np.full((height // 2, width), 128.0)
    chroma[: height // 4] += 20 * np.sin(np.arange(width) / 9 + index / 5)
    picture: Plane = np.clip(np.concatenate([luma, chroma]), 0, 255).astype(np.uint8)
    return picture


def make_clip(
    path: Path,
    *,
    width: int = 64,
    height: int = 48,
    frames: int = 12,
    rate: int = 25,
    times: Sequence[int] | None = None,
    audio: bool = False,
) -> Path:
    """A lossless clip (FFV1). ``times`` in milliseconds make a variable frame rate; ``audio`` adds a tone."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("ffv1", rate=rate)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.time_base = Fraction(1, 1000)
        video.codec_context.time_base = Fraction(1, 1000)
        if audio:
            sound = container.add_stream("pcm_s16le", rate=8000, layout="mono")
            tone = (8000 * np.sin(np.arange(8000 * frames // rate) / 5)).astype(np.int16)
            samples = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
            samples.rate, samples.pts, samples.time_base = 8000, 0, Fraction(1, 8000)
            container.mux(sound.encode(samples))
            container.mux(sound.encode(None))
        for index in range(frames):
            picture = av.VideoFrame.from_ndarray(moving_picture(width, height, index), format="yuv420p")
            picture.pts = times[index] if times is not None else round(1000 * index / rate)
            picture.time_base = Fraction(1, 1000)
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
    return path


def read_frames(path: Path) -> list[Frame]:
    with open_reader(str(path)) as reader:
        return list(reader)


def same_picture(a: Frame, b: Frame) -> bool:
    return all(np.array_equal(p, q) for p, q in ((a.y, b.y), (a.u, b.u), (a.v, b.v)))


def register(folder: Path, entries: dict[str, str], package: str = "plugged-in") -> Path:
    """The metadata that pip would leave in ``folder`` for a package with these ``rqlvc.codecs`` entry points."""
    metadata = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {target}" for name, target in entries.items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[rqlvc.codecs]", *lines]) + "\n")
    return folder


@dataclass(frozen=True)
class CommandLine:
    """The real ``rqlvc`` in another process."""

    environment: dict[str, str]

    def __call__(
        self, *arguments: str | Path, input: bytes | None = None, plugins: Path | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.command(*arguments),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            timeout=COMMAND_TIMEOUT,
            env=self.environment if plugins is None else plugged_in(plugins),
        )

    def start(self, *arguments: str | Path) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        return subprocess.Popen(self.command(*arguments), stdin=pipe, stdout=pipe, stderr=pipe, env=self.environment)

    @staticmethod
    def command(*arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "rqlvc.cli", *map(str, arguments)]


def plugged_in(plugins: Path) -> dict[str, str]:
    """An environment in which Python also finds what is installed in ``plugins``, and the modules of these tests."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(SOURCES), str(plugins), str(TESTS)])}


@pytest.fixture(scope="session")
def rqlvc(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return CommandLine(plugged_in(register(tmp_path_factory.mktemp("plugins"), {"toy": "toy_codec:ToyCodec"})))


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 frames of 64x48 at 25 fps, with a tone."""
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mkv", audio=True)


@pytest.fixture(scope="session")
def coded(rqlvc: CommandLine, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clip coded by the toy codec at quality 40, a keyframe every 5 frames. Read only."""
    path = tmp_path_factory.mktemp("coded") / "coded.mkv"
    finished = rqlvc("encode", clip, "-o", path, "--quality", "40", "--keyint", "5", "--codec", "toy")
    assert finished.returncode == 0, finished.stderr.decode()
    return path


def neural_codec_is_here() -> bool:
    known = any(entry.name == "rqlvc" for entry in available_codecs())
    return known and importlib.util.find_spec("rqlvc.codec.neural") is not None


@pytest.fixture(scope="session", params=["toy", "rqlvc"])
def codec_name(request: pytest.FixtureRequest) -> str:
    """Each codec in turn: a third party's and our own."""
    name: str = request.param
    if name == "rqlvc" and not neural_codec_is_here():
        pytest.skip("the neural codec is not installed")
    return name


@pytest.fixture(scope="session")
def codec(codec_name: str) -> Codec:
    return ToyCodec() if codec_name == "toy" else load_codec(codec_name, device="cpu", threads=1)
