"""RQNet from collection to prediction: real encodes of a small codec, real files, a real kill."""

import csv
import itertools
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from conftest import CommandLine, make_clip, plugged_in
from rqlvc.codec.registry import load_codec
from rqlvc.codec.transforms import dct_matrix
from rqlvc.errors import RqlvcError
from rqlvc.evaluation.metrics import mse_y
from rqlvc.media.frame import Frame, Plane
from rqlvc.rate.activity import BAND_LIMITS, FLOOR, MAPS, PICTURE_MAPS, activity_maps
from rqlvc.rate.motion import EDGE, SQUARE, motion
from rqlvc.rate.protocol import FrameInfo, FrameResult
from rqlvc.rate.rqnet import (
    QUALITY_LEVELS,
    RQNet,
    RQNetPredictor,
    context_scalars,
    load_rqnet,
    write_rqnet,
)
from rqlvc.rate.rqnet_loops import SCALARS, Layers, log_rates
from rqlvc.training.collect import CHAINS_PER_SHARD, Collection, collect, read_samples
from rqlvc.training.rqnet import CARD, CHECKPOINT, LOG, WEIGHTS, Dataset, Epoch, evaluate, split_by_source, train
from small_streams import moving_frames
from toy_codec import StrangerCodec, ToyCodec

ENCODER_KILO_MACS = 35.0
"""Of the neural codec per pixel of an inter frame; RQNet may take 1 %."""


def picture(width: int, height: int, seed: int = 0, contrast: float = 60.0) -> Frame:
    rng = np.random.default_rng(seed)

    def plane(rows: int, columns: int) -> Plane:
        return np.clip(128 + contrast * rng.standard_normal((rows, columns)), 0, 255).astype(np.uint8)

    chroma = (height + 1) // 2, (width + 1) // 2
    return Frame(plane(height, width), plane(*chroma), plane(*chroma))


def result(width: int, height: int, *, intra: bool = False, bits: int = 20_000, quality: float = 30.0) -> FrameResult:
    return FrameResult(FrameInfo(3, intra, 0 if intra else 3, width * height), quality, bits, 1e-3)


def predictor(seed: int = 0) -> RQNetPredictor:
    torch.manual_seed(seed)
    return RQNetPredictor(RQNet(), "toy", "70c0dec0")


# Activity maps


def test_maps_are_the_mean_magnitudes_of_the_cosine_bands() -> None:
    """A block that is one cosine has activity in that cosine's band and nowhere else."""
    amplitude, frequency = 40.0, 3  # horizontal index 3: the third band, of sums 3 and 4
    wave = amplitude * np.cos(np.pi * (np.arange(16) % 8 + 0.5) * frequency / 8)
    luma = np.round(128 + np.tile(wave, (16, 1))).astype(np.uint8)
    grey = np.full((8, 8), 128, np.uint8)
    maps = activity_maps(Frame(luma, grey, grey), None)
    magnitudes = FLOOR * (np.exp(maps[0, 0, 1:6]) - 1)
    in_band = 9  # coefficients whose indices add up to 3 or 4
    assert magnitudes[2] == pytest.approx(amplitude * 4 * math.sqrt(2) / in_band, rel=0.02)
    assert all(magnitudes[band] < 0.05 * magnitudes[2] for band in (0, 1, 3, 4))
    assert maps[0, 0, 0] == pytest.approx(luma.mean() / 25.5, rel=1e-4)


def test_maps_are_what_a_plain_transform_gives() -> None:
    """Of a picture and of its difference to another, block by block in double precision."""
    frame, reference = picture(48, 32), picture(48, 32, 1)

    def bands(plane: np.ndarray, size: int, row: int, column: int, limits: tuple[int, ...]) -> list[float]:
        basis = dct_matrix(size).numpy()
        block = plane[size * row : size * (row + 1), size * column : size * (column + 1)].astype(float)
        magnitudes = abs(basis @ block @ basis.T)
        frequency = np.add.outer(np.arange(size), np.arange(size))
        edges = itertools.pairwise((-1, 0, *limits))
        return [magnitudes[(frequency > low) & (frequency <= high)].mean() for low, high in edges]

    maps = FLOOR * (np.exp(activity_maps(frame, reference).astype(float)) - 1)
    pictures = (frame.y, frame.u, frame.v), (reference.y, reference.u, reference.v)
    own, difference = pictures[0], [a.astype(int) - b for a, b in zip(*pictures, strict=True)]
    for row, column in itertools.product(range(4), range(6)):
        for planes, found in ((own, maps[row, column]), (difference, maps[row, column, PICTURE_MAPS:])):
            luma = bands(planes[0], 8, row, column, BAND_LIMITS)
            chroma = [bands(plane, 4, row, column, (6,))[1] for plane in planes[1:]]
            first = 1 if planes is own else 0  # the map of mean luma is of another kind
            assert found[first : PICTURE_MAPS - 1] == pytest.approx(luma[first:], rel=1e-3, abs=1e-3)
            assert found[PICTURE_MAPS - 1] == pytest.approx(sum(chroma) / 2, rel=1e-3)


def test_maps_of_a_frame_against_itself_show_no_difference() -> None:
    frame = picture(48, 32)
    assert np.array_equal(activity_maps(frame, frame), activity_maps(frame, None))


@pytest.mark.parametrize(("right", "down"), [(8, 4), (-6, 2), (0, 24), (27, -27)])
def test_maps_tell_motion_from_change(right: int, down: int) -> None:
    """What moved differs from the reference, and hardly from the moved reference."""
    grey = np.full((64, 64), 128, np.uint8)
    scene = smooth_scene(192)
    here = Frame(np.ascontiguousarray(scene[29:157, 29:157]), grey, grey)
    there = Frame(np.ascontiguousarray(scene[29 + down : 157 + down, 29 + right : 157 + right]), grey, grey)
    inside = activity_maps(there, here)[4:-4, 4:-4]  # what comes from outside the picture cannot be followed
    plain, moved = inside[..., PICTURE_MAPS : 2 * PICTURE_MAPS], inside[..., 2 * PICTURE_MAPS :]
    assert plain[..., 1].mean() > 3.0
    assert moved[..., :-1].mean() < 0.1


def smooth_scene(side: int) -> Plane:
    """Spots of some eight samples, sharp enough to be followed."""
    spots = np.random.default_rng(3).uniform(0, 255, (side // 8, side // 8))
    return np.kron(spots, np.ones((8, 8))).astype(np.uint8)


@pytest.mark.parametrize(("x", "y"), [(12, 0), (-23, 8), (25, -14), (1, 3)])
def test_motion_is_found_in_quarter_samples(x: int, y: int) -> None:
    """A picture taken from between the reference's samples has one vector everywhere but at the border."""
    fine = np.kron(np.random.default_rng(5).uniform(0, 255, (48, 48)), np.ones((16, 16)))
    for _ in range(60):  # smooth enough to be told from a quarter of a sample beside it
        fine = (fine + np.roll(fine, 1, 0) + np.roll(fine, 1, 1) + np.roll(fine, (1, 1), (0, 1))).astype(np.float32) / 4
    reference, frame = fine[128:640:4, 128:640:4], fine[128 + y : 640 + y : 4, 128 + x : 640 + x : 4]
    around = np.pad(reference.round().astype(np.uint8), EDGE, mode="edge")
    vectors = motion(frame.round().astype(np.uint8), around)
    assert vectors.shape == (128 // SQUARE, 128 // SQUARE, 2)
    assert (vectors[2:-2, 2:-2] == (x, y)).all()


def test_reference_of_another_size_is_refused() -> None:
    with pytest.raises(RqlvcError, match="64x48"):
        predictor().predict(picture(48, 64), picture(64, 48), None)


# Predictions


@pytest.mark.parametrize(("width", "height"), [(16, 16), (17, 33), (176, 144), (416, 240), (250, 18)])
def test_any_size(width: int, height: int) -> None:
    points = predictor().predict(picture(width, height), picture(width, height, 1), result(width, height))
    assert [point.quality for point in points] == list(QUALITY_LEVELS)
    assert all(0 < point.bits < 100 * (width + 16) * (height + 16) for point in points)


def test_without_reference_and_without_a_last_frame() -> None:
    frame = picture(64, 48)
    net = predictor()
    first = net.predict(frame, None, None)
    assert len(first) == 4
    assert net.predict(frame, None, result(64, 48)) != first
    assert net.predict(frame, frame, None) != first


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scale=st.floats(0, 50),
    maps=st.floats(0, 12),
    bits=st.integers(0, 10**9),
    quality=st.floats(0, 63),
    mse=st.floats(0, 1),
    intra=st.booleans(),
)
def test_rates_always_rise_with_quality(
    seed: int, scale: float, maps: float, bits: int, quality: float, mse: float, intra: bool
) -> None:
    """Whatever the weights and the inputs are."""
    torch.manual_seed(seed)
    network = RQNet()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
        last = FrameResult(FrameInfo(1, intra, 1, 256), quality, bits, mse)
        rates = network(maps * torch.rand(1, 4, 6, MAPS), torch.tensor([context_scalars(intra, last)]))[0]
    assert torch.isfinite(rates).all()
    assert all(high >= low for low, high in itertools.pairwise(rates.tolist()))


def test_untrained_curve_rises_strictly() -> None:
    points = predictor(seed=5).predict(picture(64, 64), picture(64, 64, 1), None)
    assert all(high.bits > low.bits for low, high in itertools.pairwise(points))


def test_costs_under_a_hundredth_of_the_encoder() -> None:
    width, height = 416, 240
    with FlopCounterMode(display=False) as counter:
        RQNet()(torch.zeros(1, height // 8, width // 8, MAPS), torch.zeros(1, SCALARS))
    kilo_macs = counter.get_total_flops() / 2 / (width * height) / 1000
    assert 0.01 < kilo_macs <= 0.01 * ENCODER_KILO_MACS


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 4),
    columns=st.integers(1, 5),
    scale=st.floats(0.1, 3),
    known=st.booleans(),
    intra=st.booleans(),
)
def test_compiled_loops_give_what_the_network_gives(
    seed: int, rows: int, columns: int, scale: float, known: bool, intra: bool
) -> None:
    torch.manual_seed(seed)
    network = RQNet()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * scale * torch.randn_like(parameter))
        network.normalise(torch.rand(MAPS) * 5, torch.rand(MAPS) + 0.5)
        maps = 10 * torch.rand(1, 2 * rows, 2 * columns, MAPS)
        last = result(32, 32, quality=float(torch.rand(())) * 63) if known else None
        scalars = torch.tensor([context_scalars(intra, last)])
        expected = network(maps, scalars)[0].numpy()
    layers = Layers.of({name: value.numpy() for name, value in network.state_dict().items()})
    assert log_rates(layers, maps[0].numpy(), scalars[0].numpy()) == pytest.approx(expected, abs=1e-3, rel=1e-4)


# Files


def test_weights_survive_a_file(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = RQNet()
    write_rqnet(tmp_path / "net.safetensors", network, "toy", "70c0dec0")
    frame, reference = picture(64, 48), picture(64, 48, 1)
    loaded = load_rqnet(tmp_path / "net.safetensors")
    direct = RQNetPredictor(network, "toy", "70c0dec0")
    assert loaded.predict(frame, reference, result(64, 48)) == direct.predict(frame, reference, result(64, 48))
    assert loaded.mismatch("toy", "70c0dec0") is None
    warning = loaded.mismatch("toy", "0ddba110")
    assert warning is not None and "70c0dec0" in warning and "0ddba110" in warning


def test_the_shipped_network_belongs_to_the_shipped_codec() -> None:
    codec = load_codec(device="cpu", threads=1)
    assert load_rqnet().mismatch(codec.name, codec.identity) is None


def test_the_shipped_network_tells_a_new_picture_from_one_shown_again() -> None:
    codec, network = load_codec(device="cpu", threads=1), load_rqnet()
    first, second, *_ = moving_frames(192, 128, 2)
    new = replace(first, y=np.ascontiguousarray(second.y[::-1, ::-1]))
    coded = codec.encode(first, 40.0, None)
    info = FrameInfo(0, True, 0, 192 * 128)
    last = FrameResult(info, 40.0, 8 * len(coded.payload), mse_y(first, coded.reconstruction))
    again, cut = (network.predict(frame, coded.reconstruction, last) for frame in (first, new))
    assert all(3 * still.bits < other.bits for still, other in zip(again, cut, strict=True))


def test_weights_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RqlvcError, match="cannot be read"):
        load_rqnet(tmp_path / "missing.safetensors")
    (tmp_path / "noise.safetensors").write_bytes(bytes(100))
    with pytest.raises(RqlvcError, match="cannot be read"):
        load_rqnet(tmp_path / "noise.safetensors")
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(RqlvcError, match="does not hold"):
        load_rqnet(tmp_path / "other.safetensors")


# Collection


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four sources of different sizes, two of them from one video."""
    folder = tmp_path_factory.mktemp("videos")
    sizes = {"one": (96, 80), "two": (128, 64), "three_0": (64, 64), "three_80": (80, 64)}
    for name, (width, height) in sizes.items():
        make_clip(folder / f"{name}.mkv", width=width, height=height, frames=8)
    make_clip(folder / "too_small.mkv", width=32, height=32, frames=2)
    return folder


@pytest.fixture(scope="module")
def collection(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("collection") / "data"
    collect(videos, out, ToyCodec(), samples=120)
    return out


def test_samples_are_what_the_codec_does(collection: Path) -> None:
    samples = read_samples(collection)
    assert len(samples) >= 120
    for sample in samples:
        assert sample.maps.shape[0] == MAPS
        assert sample.maps.shape[1] * sample.maps.shape[2] * 64 == sample.pixels
        assert all(bits > 0 and bits % 8 == 0 for bits in sample.bits)
        assert sample.mse[0] >= sample.mse[3]
    intra = [sample for sample in samples if sample.scalars[0]]
    assert 0 < len(intra) < len(samples)
    assert all(not sample.maps[PICTURE_MAPS:].any() for sample in intra)
    assert any(sample.clip != sample.last_clip for sample in samples)
    assert len({sample.scalars[4] for sample in samples}) > len(samples) / 2  # references at all qualities


KILLED = """
import sys
from pathlib import Path
from rqlvc.training.collect import collect
from toy_codec import ToyCodec
collect(Path(sys.argv[1]), Path(sys.argv[2]), ToyCodec(), samples=10**6)
"""


def test_killed_collection_goes_on_and_gives_the_same_samples(videos: Path, collection: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    process = subprocess.Popen([sys.executable, "-c", KILLED, videos, out], env=plugged_in(tmp_path))
    deadline = time.monotonic() + 60
    while not (out / "samples-00000.npz").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(out.glob("samples-*.npz"))) < len(list(collection.glob("samples-*.npz")))

    with pytest.raises(RqlvcError, match="--resume"):
        collect(videos, out, ToyCodec(), samples=120)
    done = collect(videos, out, ToyCodec(), samples=120, resume=True)
    assert 0 < done.made < done.samples
    for resumed, whole in zip(read_samples(out), read_samples(collection), strict=True):
        assert np.array_equal(resumed.maps, whole.maps)
        assert resumed[1:] == whole[1:]


def test_collection_is_not_mixed_with_another_codec(videos: Path, collection: Path) -> None:
    with pytest.raises(RqlvcError, match="another codec"):
        collect(videos, collection, StrangerCodec(), samples=200, resume=True)


def test_collection_stops_when_the_time_is_up(videos: Path, tmp_path: Path) -> None:
    seen: list[Collection] = []
    done = collect(videos, tmp_path / "data", ToyCodec(), samples=10**6, minutes=1e-6, on_shard=seen.append)
    assert done == seen[-1] and len(seen) == 1
    assert done.samples >= 2 * CHAINS_PER_SHARD


def test_nothing_to_collect_from(tmp_path: Path) -> None:
    with pytest.raises(RqlvcError, match="not a folder"):
        collect(tmp_path / "missing", tmp_path / "data", ToyCodec())
    (tmp_path / "empty").mkdir()
    with pytest.raises(RqlvcError, match="holds no video"):
        collect(tmp_path / "empty", tmp_path / "data", ToyCodec())
    with pytest.raises(RqlvcError, match="holds no collection"):
        read_samples(tmp_path / "empty")


# Training


def test_validation_shares_no_video_with_training(collection: Path) -> None:
    clips = ["one.mkv", "three_0.mkv", "three_80.mkv", "two.mkv"]
    training, validation = split_by_source(read_samples(collection), clips)
    sides = [
        {clips[clip].split("_")[0] for s in side for clip in clip_ids(s)}
        for side, clip_ids in ((training, lambda s: (s.clip, s.last_clip)), (validation, lambda s: (s.clip,)))
    ]
    assert sides[0] and sides[1] and not sides[0] & sides[1]


def test_training_lowers_the_error_and_writes_what_it_learnt(collection: Path, tmp_path: Path) -> None:
    seen: list[Epoch] = []
    errors = train(collection, tmp_path, epochs=10, on_epoch=seen.append)
    assert seen[-1].loss < 0.5 * seen[0].loss
    assert errors.mean() == pytest.approx(min(epoch.error for epoch in seen))
    with (tmp_path / LOG).open(newline="") as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == list(range(1, len(seen) + 1))

    learnt = load_rqnet(tmp_path / WEIGHTS)
    assert learnt.mismatch("toy", ToyCodec().identity) is None
    held_out = split_by_source(read_samples(collection), ["one.mkv", "three_0.mkv", "three_80.mkv", "two.mkv"])[1]
    assert evaluate(learnt.network, Dataset.of(held_out)).mean() == pytest.approx(errors.mean(), rel=1e-4)
    card = (tmp_path / CARD).read_text()
    assert "70c0dec0" in card and f"{errors.all[0]:.1f}" in card


def test_interrupted_training_goes_on_as_if_it_had_not_been(collection: Path, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop_after_two(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            raise StopError

    whole = train(collection, tmp_path / "whole", epochs=4)
    with pytest.raises(StopError):
        train(collection, tmp_path / "broken", epochs=4, on_epoch=stop_after_two)
    with pytest.raises(RqlvcError, match="--resume"):
        train(collection, tmp_path / "broken", epochs=4)
    assert repr(train(collection, tmp_path / "broken", resume=True)) == repr(whole)  # repr: NaN equals NaN
    a, b = (load_rqnet(tmp_path / name / WEIGHTS).network.state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    os.truncate(tmp_path / "broken" / CHECKPOINT, 100)
    with pytest.raises(RqlvcError, match="cannot be read"):
        train(collection, tmp_path / "broken", resume=True)


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(RqlvcError, match="holds no collection"):
        train(tmp_path, tmp_path / "run")
    with pytest.raises(RqlvcError, match="no checkpoint"):
        make_clip(tmp_path / "a.mkv", width=64, height=64, frames=3)
        make_clip(tmp_path / "b.mkv", width=64, height=64, frames=3)
        collect(tmp_path, tmp_path / "data", ToyCodec(), samples=5)
        train(tmp_path / "data", tmp_path / "run", resume=True)


# Command line


@pytest.mark.slow
def test_collect_and_train_on_the_command_line(rqlvc: CommandLine, videos: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    collecting = "collect", "--videos", videos, "--out", data, "--codec", "toy", "--samples", "60"
    finished = rqlvc(*collecting)
    assert finished.returncode == 0, finished.stderr.decode()
    assert b"samples" in finished.stderr and not finished.stdout
    again = rqlvc(*collecting)
    assert again.returncode == 1 and b"--resume" in again.stderr and b"Traceback" not in again.stderr
    trained = rqlvc("train", "rqnet", "--data", data, "--out", out, "--epochs", "2", "--threads", "1")
    assert trained.returncode == 0, trained.stderr.decode()
    assert load_rqnet(out / WEIGHTS).codec == "toy"
