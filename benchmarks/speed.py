"""Speed, cost and memory of our codec at three sizes, and the start-up time of the real command.

    python benchmarks/speed.py [--input CLIP] [--sizes 416x240,832x480] [--frames 24] [--file-frames 96] [--threads N]
        [--json FILE]
    python benchmarks/speed.py --memory

Every size runs in fresh processes: a file through the real commands, which code groups of pictures side by side, for
frames per second, the time to the first frame and peak memory; the same codec frame by frame, as a bitrate or a live
source needs it, on as many threads as PyTorch has; and twice without compilation, where hooks on the modules give
seconds per stage, and PyTorch's FLOP counter multiply-accumulates (FLOPs / 2; convolutions and matrix products, no
elementwise work) per luma pixel. A stage is a direct child of the codec's ``model``, or one of its methods; "elsewhere"
is everything outside them (motion search, warping, copies).

``--memory`` checks that memory does not grow with length: it encodes 100 and 3,000 frames through the command.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from fractions import Fraction
from inspect import isfunction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rqlvc.errors import RqlvcError
from rqlvc.media import y4m
from rqlvc.media.frame import Frame, Plane
from rqlvc.media.properties import VideoProperties

if TYPE_CHECKING:  # only the children import torch: a process counts its parent's size towards its own peak
    from torch import nn

SIZES = "416x240,832x480,1920x1080"
MEMORY_SIZE = "416x240"
MEMORY_LENGTHS = (100, 3000)  # frames
MEMORY_TOLERANCE = 0.05  # allocators are not exact
MEGABYTE = 1e6
QUALITY = 32.0
FRAME_RATE = Fraction(30)
WARM_UP_FRAMES = 3  # an intra frame, the first P frame, one with a full history: each may compile something
ELSEWHERE = "elsewhere"


@dataclass(frozen=True, slots=True)
class Timing:
    """Of P frames after warming up; ``peak_bytes`` is the largest the whole process ever was.

    CPU seconds are per frame and over all threads: on a busy machine they tell the codec's cost from the neighbours'.
    """

    encode_fps: float
    decode_fps: float
    encode_cpu_seconds: float
    decode_cpu_seconds: float
    bits_per_pixel: float
    peak_bytes: int


Costs = dict[str, dict[str, float]]
"""By task ("encode I", "decode P", ...), then by stage; per frame."""


# Content


def synthetic_frames(width: int, height: int, count: int) -> Iterator[Frame]:
    """A textured background that drifts and a textured block that crosses it."""
    draw = np.random.default_rng(1)
    background, block = (_texture(draw, height, width) for _ in range(2))
    top, bottom, span = height // 4, height // 2, max(width // 5, 1)
    for index in range(count):
        y = np.roll(background, (index, 2 * index), (0, 1))
        left = (5 * index) % max(width - span, 1)
        y[top:bottom, left : left + span] = block[top:bottom, :span]
        chroma = y[::2, ::2] // 2
        yield Frame(y, chroma + 64, 191 - chroma, index / FRAME_RATE)


def _texture(draw: np.random.Generator, height: int, width: int) -> Plane:
    """Noise with the spectrum of a rather busy picture (power falls as frequency^-2.6), seamless at its borders."""
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequencies[0, 0] = 1
    waves = np.fft.irfft2(np.fft.rfft2(draw.standard_normal((height, width))) / frequencies**1.3, (height, width))
    return np.asarray(np.clip(128 + 45 * (waves - waves.mean()) / waves.std(), 0, 255), np.uint8)


def clip_frames(path: str, width: int, height: int, count: int) -> list[Frame]:
    """The first frames of a real clip, scaled to the size."""
    import av

    frames: list[Frame] = []
    with av.open(path) as container:
        for picture in container.decode(video=0):
            scaled = picture.reformat(width, height, "yuv420p", interpolation="BICUBIC")
            samples = np.asarray(scaled.to_ndarray(), np.uint8).reshape(-1)
            luma, u, v = np.split(samples, (width * height, width * height * 5 // 4))
            chroma = (height // 2, width // 2)
            y, u, v = luma.reshape(height, width), u.reshape(chroma), v.reshape(chroma)
            frames.append(Frame(y, u, v, len(frames) / FRAME_RATE))
            if len(frames) == count:
                return frames
    raise RqlvcError(f"{path} has {len(frames)} frames, not {count}: take a longer clip or lower --frames.")


def content(source: str | None, width: int, height: int, count: int) -> list[Frame]:
    return clip_frames(source, width, height, count) if source else list(synthetic_frames(width, height, count))


def y4m_chunks(frames: Iterable[Frame], width: int, height: int) -> Iterator[bytes]:
    yield y4m.header_bytes(VideoProperties(width, height, FRAME_RATE))
    for frame in frames:
        yield b"FRAME\n" + frame.y.tobytes() + frame.u.tobytes() + frame.v.tobytes()


# Measured in a process of its own


def measure_timing(frames: list[Frame], threads: int | None) -> Timing:
    from rqlvc.codec import neural

    codec = neural.load(device="cpu", threads=threads)
    payloads: list[bytes] = []
    encoding, decoding = Stopwatch(), Stopwatch()
    state = None
    for index, frame in enumerate(frames):
        if index == WARM_UP_FRAMES:
            encoding.start()
        encoded = codec.encode(frame, QUALITY, state)
        state = encoded.state
        payloads.append(encoded.payload)
    encoding.stop()
    state = None
    for index, payload in enumerate(payloads):
        if index == WARM_UP_FRAMES:
            decoding.start()
        state = codec.decode(payload, state).state
    decoding.stop()
    timed = len(frames) - WARM_UP_FRAMES
    return Timing(
        encode_fps=timed / encoding.seconds,
        decode_fps=timed / decoding.seconds,
        encode_cpu_seconds=encoding.cpu_seconds / timed,
        decode_cpu_seconds=decoding.cpu_seconds / timed,
        bits_per_pixel=8 * sum(map(len, payloads)) / len(payloads) / frames[0].y.size,
        peak_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )


class Stopwatch:
    """Wall-clock and CPU seconds between ``start`` and ``stop``."""

    def start(self) -> None:
        self.seconds, self.cpu_seconds = -time.perf_counter(), -time.process_time()

    def stop(self) -> None:
        self.seconds += time.perf_counter()
        self.cpu_seconds += time.process_time()


class Meter:
    """Charges what a growing counter gains to the stage that is at work: the innermost, if stages call each other.

    A stage is a child of the model, or a public method of one ("inter.synthesise"). Hooks on all modules inside a child
    charge it as well when it is entered through one of its parts.
    """

    def __init__(self, model: "nn.Module", read: Callable[[], float]) -> None:
        self._read = read
        self._active: list[str] = [ELSEWHERE]
        self._mark = 0.0
        self._spent: dict[str, float] = defaultdict(float)
        hooked: set[nn.Module] = set()
        for room, child in model.named_children():
            for module in set(child.modules()) - hooked:
                hooked.add(module)
                module.register_forward_pre_hook(lambda *_, room=room: self._enter(room))
                module.register_forward_hook(lambda *_: self._leave(), always_call=True)
            for name, method in vars(type(child)).items():
                if isfunction(method) and not name.startswith("_") and name != "forward":
                    setattr(child, name, self._charged(f"{room}.{name}", getattr(child, name)))

    def _charged(self, stage: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def charged(*arguments: Any, **options: Any) -> Any:
            self._enter(stage)
            try:
                return method(*arguments, **options)
            finally:
                self._leave()

        return charged

    def start(self) -> None:
        self._spent.clear()
        self._mark = self._read()

    def stop(self) -> dict[str, float]:
        self._charge()
        return dict(self._spent)

    def _enter(self, stage: str) -> None:
        self._charge()
        current = self._active[-1]
        self._active.append(current if current.partition(".")[0] == stage else stage)  # a part of what is at work

    def _leave(self) -> None:
        self._charge()
        self._active.pop()

    def _charge(self) -> None:
        now = self._read()
        self._spent[self._active[-1]] += now - self._mark
        self._mark = now


def measure_costs(frames: list[Frame], threads: int | None, *, flops: bool) -> Costs:
    """Seconds of each stage, or with ``flops`` its operations; means over frames of a kind."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from rqlvc.codec import neural
    from rqlvc.rate.activity import activity_maps
    from rqlvc.rate.rqnet import load_rqnet
    from rqlvc.rate.rqnet_loops import SCALARS

    codec, predictor = neural.load(device="cpu", threads=threads), load_rqnet()
    integer = getattr(torch.ops.onednn, "qconv2d_pointwise", None)  # not every build of PyTorch has it
    counter = FlopCounterMode(display=False, custom_mapping={integer: _integer_flops} if integer else {})
    read = counter.get_total_flops if flops else time.perf_counter
    meter = Meter(codec.model, read)
    records: dict[str, list[dict[str, float]]] = defaultdict(list)
    with counter if flops else nullcontext():
        # First-time set-up is not the I frame's cost.
        codec.decode(codec.encode(frames[0], QUALITY, None).payload, None)
        predictor.predict(frames[0], None, None)
        encoder_state = decoder_state = reference = None
        for index, frame in enumerate(frames):
            before = read()
            # What an encode at a bitrate does besides; PyTorch counts the operations of its own network only.
            if flops:
                predictor.network(torch.from_numpy(activity_maps(frame, reference))[None], torch.zeros(1, SCALARS))
            else:
                predictor.predict(frame, reference, None)
            predictor_cost = {ELSEWHERE: float(read() - before)}
            meter.start()
            encoded = codec.encode(frame, QUALITY, encoder_state)
            encode_costs = meter.stop()
            meter.start()
            decoded = codec.decode(encoded.payload, decoder_state)
            decode_costs = meter.stop()
            encoder_state, decoder_state, reference = encoded.state, decoded.state, encoded.reconstruction
            if index == 0 or index >= WARM_UP_FRAMES:
                kind = "P" if index else "I"
                records[f"encode {kind}"].append(encode_costs)
                records[f"decode {kind}"].append(decode_costs)
                records[f"RQNet {kind}"].append(predictor_cost)
    return {task: _mean(costs) for task, costs in sorted(records.items())}


def _integer_flops(inputs: Any, scale: float, lift: int, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """Of a convolution of 8-bit integers (:mod:`rqlvc.codec.int8`), which PyTorch's counter does not know."""
    outputs = weight[0]
    return 2 * math.prod(weight) * math.prod(out_shape) // outputs


def _mean(costs: list[dict[str, float]]) -> dict[str, float]:
    stages = dict.fromkeys(stage for cost in costs for stage in cost)
    return {stage: sum(cost.get(stage, 0.0) for cost in costs) / len(costs) for stage in stages}


def in_child(task: str, arguments: argparse.Namespace, size: str) -> Any:
    """Run one measurement in a fresh process and give its JSON."""
    command = [sys.executable, __file__, "--child", task, "--sizes", size, "--frames", str(arguments.frames)]
    command += ["--input", arguments.input] if arguments.input else []
    command += ["--threads", str(arguments.threads)] if arguments.threads else []
    # A compiled module runs no hooks, so the costs are those of the same networks run eagerly.
    environment = os.environ if task == "timing" else os.environ | {"TORCH_COMPILE_DISABLE": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RqlvcError(f"Measuring {task} at {size} failed; its own message stands above.")
    return json.loads(done.stdout)


def child(arguments: argparse.Namespace) -> None:
    (width, height), *_ = parse_sizes(arguments.sizes)
    # Operations do not change from P frame to P frame, and counting is slow.
    count = WARM_UP_FRAMES + 1 if arguments.child == "flops" else arguments.frames
    frames = content(arguments.input, width, height, count)
    if arguments.child == "timing":
        print(json.dumps(asdict(measure_timing(frames, arguments.threads))))
    else:
        print(json.dumps(measure_costs(frames, arguments.threads, flops=arguments.child == "flops")))


# The real command


@dataclass(frozen=True)
class FileRun:
    """A file through ``rqlvc encode`` and ``rqlvc decode``, as users run them: groups of pictures side by side."""

    frames: int
    first_frame_seconds: float
    """From the start of the command to its report of the first coded frame."""
    encode_fps: float
    decode_fps: float
    peak_bytes: int
    """Of the encode."""


def measure_file(frames: Iterable[Frame], width: int, height: int, threads: int | None) -> FileRun:
    with tempfile.TemporaryDirectory() as folder:
        source, output, decoded = (str(Path(folder, name)) for name in ("in.y4m", "out.mkv", "decoded.y4m"))
        with open(source, "wb") as file:
            file.writelines(y4m_chunks(frames, width, height))
        first, encoded, peak = command_run(["encode", source, "-o", output, "--quality", str(QUALITY)], threads)
        _, decoding, _ = command_run(["decode", output, "-o", decoded], threads)
        return FileRun(encoded["frames"], first, encoded["encode_fps"], decoding["decode_fps"], peak)


def command_run(arguments: list[str], threads: int | None) -> tuple[float, dict[str, Any], int]:
    """Seconds to the first line of ``rqlvc arguments --json``, its last line, and its peak memory in bytes."""
    command = [sys.executable, "-m", "rqlvc.cli", *arguments, "--json"]
    command += ["--threads", str(threads)] if threads else []
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = process.stdout.readline()
    first_seconds = time.perf_counter() - started
    for line in process.stdout:
        last = line
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RqlvcError(f"rqlvc {arguments[0]} failed; its own message stands above.")
    return first_seconds, json.loads(last), 1024 * usage.ru_maxrss


def check_memory(sizes: list[tuple[int, int]], threads: int | None) -> None:
    short, long = MEMORY_LENGTHS
    for width, height in sizes:
        runs = [
            measure_file(synthetic_frames(width, height, count), width, height, threads) for count in MEMORY_LENGTHS
        ]
        peaks = [run.peak_bytes for run in runs]
        growth = peaks[1] / peaks[0] - 1
        print(
            f"{width}x{height}: {peaks[0] / MEGABYTE:.0f} MB for {short} frames, {peaks[1] / MEGABYTE:.0f} MB for "
            f"{long} ({growth:+.1%})"
        )
        if growth > MEMORY_TOLERANCE:
            raise RqlvcError(f"Memory grows with the length of the video at {width}x{height}.")


# Report


def report(sizes: dict[str, dict[str, Any]]) -> str:
    heads = ["file: encode fps", "decode fps", "first frame s", "peak MB"]
    heads += ["frame by frame: encode fps", "decode fps", "encode CPU s/frame", "decode CPU s/frame", "peak MB", "bpp"]
    lines = [f"| size | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
    for size, result in sizes.items():
        timing, file = result["timing"], result["file"]
        lines.append(
            f"| {size} | {file['encode_fps']:.2f} | {file['decode_fps']:.2f} | {file['first_frame_seconds']:.2f} "
            f"| {file['peak_bytes'] / MEGABYTE:.0f} | {timing['encode_fps']:.2f} | {timing['decode_fps']:.2f} "
            f"| {timing['encode_cpu_seconds']:.3f} | {timing['decode_cpu_seconds']:.3f} "
            f"| {timing['peak_bytes'] / MEGABYTE:.0f} "
            f"| {timing['bits_per_pixel']:.3f} |"
        )
    for size, result in sizes.items():
        width, height = parse_sizes(size)[0]
        milliseconds = _scaled(result["seconds"], 1e3)
        kmacs = _scaled(result["flops"], 1 / 2 / 1e3 / (width * height))
        lines += ["", f"{size}, one frame, eager: milliseconds", "", *cost_table(milliseconds)]
        lines += ["", f"{size}, one frame: kMAC per luma pixel", "", *cost_table(kmacs)]
    return "\n".join(lines)


def _scaled(costs: Costs, factor: float) -> Costs:
    return {task: {stage: value * factor for stage, value in stages.items()} for task, stages in costs.items()}


def cost_table(costs: Costs) -> list[str]:
    stages = dict.fromkeys(stage for each in costs.values() for stage in each)
    rows = {stage: [each.get(stage, 0.0) for each in costs.values()] for stage in stages if stage != ELSEWHERE}
    rows[ELSEWHERE] = [each.get(ELSEWHERE, 0.0) for each in costs.values()]
    rows["**total**"] = [sum(each.values()) for each in costs.values()]
    lines = [f"| stage | {' | '.join(costs)} |", "| --- |" + " ---: |" * len(costs)]
    return lines + [f"| {stage} | {' | '.join(f'{value:.2f}' for value in row)} |" for stage, row in rows.items()]


def parse_sizes(text: str) -> list[tuple[int, int]]:
    sizes = []
    for part in text.split(","):
        width, _, height = part.partition("x")
        if not (width.isdecimal() and height.isdecimal() and min(int(width), int(height)) >= 16):
            raise RqlvcError(f"{part!r} is no size; write WIDTHxHEIGHT, 16x16 or more, like 416x240.")
        if int(width) % 2 or int(height) % 2:
            raise RqlvcError(f"{part} is odd; this benchmark makes its content at even sizes.")
        sizes.append((int(width), int(height)))
    return sizes


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", help="clip to scale to each size; default: synthetic motion")
    parser.add_argument("--sizes", help=f"WIDTHxHEIGHT, comma-separated; default: {SIZES}, with --memory {MEMORY_SIZE}")
    parser.add_argument("--frames", type=int, default=24, help="frames at each size; default: %(default)s")
    parser.add_argument("--file-frames", type=int, default=96, help="frames of the file; default: %(default)s")
    parser.add_argument("--threads", type=int, help="CPU threads; default: the codec's choice")
    parser.add_argument("--json", type=Path, help="write all numbers to this file as well")
    parser.add_argument("--memory", action="store_true", help="compare 100 and 3,000 frames instead")
    parser.add_argument("--child", choices=("timing", "seconds", "flops"), help=argparse.SUPPRESS)
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> None:
    if arguments.frames <= WARM_UP_FRAMES:
        raise RqlvcError(f"--frames is {arguments.frames}; choose more than {WARM_UP_FRAMES}, which warm up.")
    if arguments.child:
        child(arguments)
    elif arguments.memory:
        check_memory(parse_sizes(arguments.sizes or MEMORY_SIZE), arguments.threads)
    else:
        results: dict[str, dict[str, Any]] = {}
        for width, height in parse_sizes(arguments.sizes or SIZES):
            size = f"{width}x{height}"
            print(size, file=sys.stderr)
            frames = content(arguments.input, width, height, arguments.file_frames)
            results[size] = {"file": asdict(measure_file(frames, width, height, arguments.threads))}
            results[size] |= {task: in_child(task, arguments, size) for task in ("timing", "seconds", "flops")}
        print(report(results))
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    try:
        run(parse_arguments())
    except RqlvcError as error:
        sys.exit(f"speed.py: {error}")
