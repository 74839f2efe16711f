"""Training: material, the loop and its checkpoints, kills, and what it leaves. Small runs of the real thing."""

import csv
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rqlvc.training.codec as loop
from conftest import SOURCES, CommandLine, make_clip, moving_picture, read_frames
from rqlvc.codec.binary import counter
from rqlvc.codec.integer import IntegerConv
from rqlvc.codec.mixing import INPUTS
from rqlvc.codec.model import ModelConfig, VideoModel
from rqlvc.codec.neural import load
from rqlvc.codec.planes import Planes
from rqlvc.codec.quality import lagrangian
from rqlvc.errors import RqlvcError
from rqlvc.training.codec import (
    CHECKPOINT,
    HIERARCHY,
    LOG,
    SCHEDULE,
    Run,
    Stage,
    code_chain,
    loss_of,
    sample_qualities,
    scaled,
    start_run,
    train,
)
from rqlvc.training.data import (
    PHOTO_SUFFIXES,
    VIDEO_SUFFIXES,
    Clip,
    batches,
    read_library,
    read_photo,
    real_motion,
    synthetic_motion,
)
from rqlvc.training.export import export, learn_contexts
from rqlvc.training.report import model_card, plot_curves, read_log
from small_streams import decode_stream, encode_stream, moving_frames, new_mixers, untrained

SMALL = (
    Stage("intra", 3, 1, 1e-3, 1e-3, batch=2, size=64, photo_share=0.5),
    Stage("pair", 4, 2, 1e-3, 1e-4, batch=2, size=64),
)
STEPS = 7


@dataclass(frozen=True)
class Material:
    """Folders as a user has them, and their content."""

    videos: Path
    photos: Path
    clips: list[Clip]
    pictures: list[Clip]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Two clips and two photographs; files that are none of these lie beside them."""
    videos, photos = tmp_path_factory.mktemp("videos"), tmp_path_factory.mktemp("photos")
    make_clip(videos / "a.mkv", width=224, height=208, frames=8)
    make_clip(videos / "b.mkv", width=192, height=194, frames=7)
    for name, size in (("a.png", 240), ("b.webp", 201)):
        rgb = np.repeat(moving_picture(size + size % 2, 232, 3)[:232, :size, None], 3, axis=2)
        Image.fromarray(rgb).save(photos / name)
    (videos / "notes.txt").write_text("not a clip")
    (photos / "notes.txt").write_text("not a picture")
    return Material(
        videos, photos, read_library(videos, VIDEO_SUFFIXES, 192), read_library(photos, PHOTO_SUFFIXES, 192)
    )


def cropped(clips: list[Clip]) -> list[Clip]:
    """Four frames of 64x80."""
    return [Clip(clip.luma[:4, :, :64, :80], clip.chroma[:4, :, :32, :40]) for clip in clips]


def log_steps(out: Path) -> list[int]:
    with (out / LOG).open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


# --- material ------------------------------------------------------------------------------------------------------


def test_a_library_holds_the_samples_of_its_files(material: Material) -> None:
    first, second = material.clips
    assert first.luma.shape == (8, 1, 208, 224) and first.chroma.shape == (8, 2, 104, 112)
    assert second.luma.shape == (7, 1, 194, 192)
    frames = read_frames(material.videos / "a.mkv")
    assert np.array_equal(first.luma[5, 0], frames[5].y) and np.array_equal(first.chroma[5, 1], frames[5].v)
    assert [picture.luma.shape for picture in material.pictures] == [(1, 1, 232, 240), (1, 1, 232, 200)]


def test_a_photograph_becomes_its_luma_and_grey_chroma(material: Material) -> None:
    photo = read_photo(material.photos / "a.png")
    grey = moving_picture(240, 232, 3)[:232].astype(float)
    limited = 16 + grey * 219 / 255
    assert np.abs(photo.luma[0, 0] - limited).max() <= 2 and np.abs(photo.chroma.astype(int) - 128).max() <= 1


def test_material_too_small_is_left_out(material: Material) -> None:
    assert len(read_library(material.videos, VIDEO_SUFFIXES, 193)) == 1
    with pytest.raises(RqlvcError, match="at least 4096"):
        read_library(material.videos, VIDEO_SUFFIXES, 4096)


def test_a_folder_that_is_none_says_so(material: Material) -> None:
    with pytest.raises(RqlvcError, match="folder"):
        read_library(material.videos / "a.mkv", VIDEO_SUFFIXES, 64)


@pytest.mark.parametrize("length", [1, 2, 4, 7])
def test_real_motion_is_a_crop_of_consecutive_frames(material: Material, length: int) -> None:
    rng = np.random.default_rng(length)
    # A clip whose samples tell their frame: its index times ten.
    shape = (8, 1, 80, 96)
    counting = Clip(
        np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None, None, None] * 10, shape),
        np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None, None, None] * 10, (8, 2, 40, 48)),
    )
    for _ in range(20):
        luma, chroma = real_motion([counting], length, 64, rng)
        assert luma.shape == (length, 1, 64, 64) and chroma.shape == (length, 2, 32, 32)
        order = luma[:, 0, 0, 0].int() // 10
        assert torch.equal(order, chroma[:, 0, 0, 0].int() // 10)
        steps = set(order.diff().tolist())
        assert len(steps) <= 1 and steps <= {1, -1, 2, -2}


def test_clips_shorter_than_the_chain_are_passed_over(material: Material) -> None:
    rng = np.random.default_rng(0)
    single = Clip(material.clips[0].luma[:1], material.clips[0].chroma[:1])
    assert len(real_motion([single, material.clips[1]], 6, 64, rng)[0]) == 6
    with pytest.raises(RqlvcError, match="6 frames"):
        real_motion([single], 6, 64, rng)


def test_synthetic_motion_moves_smoothly_and_stays_in_range(material: Material) -> None:
    rng = np.random.default_rng(1)
    for _ in range(6):
        luma, chroma = synthetic_motion(material.pictures, 4, 64, rng)
        assert luma.dtype == chroma.dtype == torch.uint8
        assert luma.shape == (4, 1, 64, 64) and chroma.shape == (4, 2, 32, 32)
        assert luma.float().std() > 5  # a picture
        far = (luma[0].float() - luma[3].float()).abs().mean()
        near = (luma[0].float() - luma[1].float()).abs().mean()
        assert near <= far + 2


def test_synthetic_motion_of_a_photograph_no_larger_than_the_crop(material: Material) -> None:
    tiny = Clip(material.pictures[0].luma[..., :64, :64], material.pictures[0].chroma[..., :32, :32])
    assert synthetic_motion([tiny], 2, 64, np.random.default_rng(0))[0].shape == (2, 1, 64, 64)


@pytest.mark.parametrize(("length", "photo_share"), [(1, 1.0), (1, 0.0), (3, 0.5), (2, 1.0)])
def test_batches(material: Material, length: int, photo_share: float) -> None:
    def draw(seed: int) -> list[Planes]:
        return next(batches(material.clips, material.pictures, 3, length, 64, photo_share, seed))

    frames = draw(0)
    assert len(frames) == length
    for planes in frames:
        assert planes.luma.shape == (3, 1, 64, 64) and planes.chroma.shape == (3, 2, 32, 32)
        assert planes.luma.min() >= 0 and planes.luma.max() <= 1
    assert torch.equal(frames[0].luma, draw(0)[0].luma) and not torch.equal(frames[0].luma, draw(1)[0].luma)


# --- quality, schedule, loss ---------------------------------------------------------------------------------------


def test_qualities_cover_the_range_in_every_batch() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        qualities = sample_qualities(8, 4, rng)
        assert len(qualities) == 4
        for quality in qualities:
            assert quality.shape == (8,) and quality.min() >= 0 and quality.max() <= 63
            assert torch.equal(quality * 64, (quality * 64).round())
        # The first frames: one sample in each eighth of the range (give or take the rounding to 1/64).
        low = torch.arange(8) * (63 / 8)
        assert (qualities[0] > low - 0.01).all() and (qualities[0] < low + 63 / 8 + 0.01).all()


def test_hierarchy_weights_become_lagrangians() -> None:
    """A step of quality along the miniGOP multiplies lambda by the weight of the frame (before rounding), in half of
    the samples of a batch and at the same place of the miniGOP in all of these."""
    rng = np.random.default_rng(2)
    met = []
    for _ in range(40):
        first, second = sample_qualities(200, 2, rng)
        middle = (first > 10) & (first < 53)
        ratio = (lagrangian(second) / lagrangian(first))[middle]
        shares = {weight: float(((ratio / weight - 1).abs() < 2e-3).float().mean()) for weight in set(HIERARCHY)}
        weight = max(shares, key=lambda one: shares[one])
        assert shares[weight] > 0.3 and sum(shares.values()) - shares[weight] < 0.1
        met.append(weight)
    assert set(met) == set(HIERARCHY)


def test_a_scaled_schedule_keeps_its_stages() -> None:
    small = scaled(SCHEDULE, 0.01)
    assert [stage.name for stage in small] == [stage.name for stage in SCHEDULE]
    assert [stage.steps for stage in small] == [round(stage.steps * 0.01) for stage in SCHEDULE]
    assert all(stage.steps == 1 for stage in scaled(SCHEDULE, 1e-9))


def test_every_parameter_learns_but_those_without_work(material: Material) -> None:
    """Three frames, so that every prediction from the past is at work."""
    model = untrained(ModelConfig(attention=True))
    frames = next(batches(material.clips, [], 2, 3, 64, 0.0, 0))
    qualities = sample_qualities(2, 3, np.random.default_rng(0))
    results, _ = code_chain(model, frames, qualities)
    loss_of(results, qualities, torch.ones(2)).backward()
    missing = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    # Hyper-latents of intra frames have no past.
    assert all(
        name.startswith(("intra.latents.hyper_prior.past", "intra.latents.hyper_prior.keep")) for name in missing
    )
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.slow
def test_the_loss_falls_on_one_batch(material: Material) -> None:
    torch.manual_seed(0)
    model = VideoModel()
    frames = next(batches(material.clips, [], 1, 2, 64, 0.0, 3))
    qualities = [torch.tensor([15.0])] * 2
    optimiser = torch.optim.Adam(model.parameters(), 5e-4, betas=(0.9, 0.98))
    losses = []
    for _ in range(40):
        results, _ = code_chain(model, frames, qualities)
        loss = loss_of(results, qualities, torch.ones(1))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    assert max(losses[-3:]) < 0.9 * losses[0], losses


# --- runs ----------------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_log_a_checkpoint_and_other_weights(material: Material, tmp_path: Path) -> None:
    run = start_run(tmp_path, schedule=SMALL)
    before = [parameter.detach().clone() for parameter in run.model.parameters()]
    seen: list[tuple[int, int]] = []
    average = train(run, material.clips, material.pictures, tmp_path, on_step=lambda s, n, row: seen.append((s, n)))
    assert seen == [(step, STEPS) for step in range(1, STEPS + 1)] and log_steps(tmp_path) == [*range(1, STEPS + 1)]
    assert (tmp_path / CHECKPOINT).exists() and not list(tmp_path.glob("*.part"))
    moved = [not torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True)]
    assert np.mean(moved) > 0.5
    assert any(not torch.equal(a, b) for a, b in zip(average.parameters(), run.model.parameters(), strict=True))
    columns = read_log(tmp_path / LOG)
    assert np.isfinite(columns["loss"]).all() and np.isnan(columns["p_bpp_low"][:3]).all()
    assert columns["i_psnr_low"].mean() < columns["i_psnr_high"].mean()


class InterruptedRunError(Exception):
    pass


def _interrupt_at(step: int):  # type: ignore[no-untyped-def]
    def on_step(now: int, total: int, row: dict[str, float]) -> None:
        if now == step:
            raise InterruptedRunError

    return on_step


def _resumed(material: Material, out: Path) -> Run:
    # The schedule is the checkpoint's, whatever is asked for now.
    run = start_run(out, schedule=SCHEDULE, resume=True)
    train(run, material.clips, material.pictures, out)
    return run


def test_a_run_goes_on_where_its_checkpoint_stands(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", 2)
    with pytest.raises(InterruptedRunError):
        train(
            start_run(tmp_path, schedule=SMALL),
            material.clips,
            material.pictures,
            tmp_path,
            on_step=_interrupt_at(5),
        )
    assert log_steps(tmp_path) == [1, 2, 3, 4, 5]
    run = _resumed(material, tmp_path)
    assert run.step == STEPS and run.schedule == SMALL and log_steps(tmp_path) == [*range(1, STEPS + 1)]
    assert f"{STEPS} steps" in run.describe()


def test_a_finished_run_resumes_to_nothing(material: Material, tmp_path: Path) -> None:
    train(start_run(tmp_path, schedule=SMALL[:1]), material.clips, material.pictures, tmp_path)
    log = (tmp_path / LOG).read_text()
    assert _resumed(material, tmp_path).step == SMALL[0].steps
    assert (tmp_path / LOG).read_text() == log


def test_a_run_killed_before_its_first_checkpoint_starts_again_with_a_clean_log(
    material: Material, tmp_path: Path
) -> None:
    with pytest.raises(InterruptedRunError):
        train(
            start_run(tmp_path, schedule=SMALL),
            material.clips,
            material.pictures,
            tmp_path,
            on_step=_interrupt_at(2),
        )
    with pytest.raises(RqlvcError, match="no checkpoint"):
        start_run(tmp_path, schedule=SMALL, resume=True)
    train(start_run(tmp_path, schedule=SMALL), material.clips, material.pictures, tmp_path)
    assert log_steps(tmp_path) == [*range(1, STEPS + 1)]


def test_a_run_is_not_overwritten_and_can_be_built_on(material: Material, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    run = start_run(first, schedule=SMALL[:1])
    train(run, material.clips, material.pictures, first)
    with pytest.raises(RqlvcError, match="--resume"):
        start_run(first, schedule=SMALL)
    # Another configuration takes over what fits.
    config = ModelConfig(attention=True, temporal_prior=False)
    following = start_run(second, start_from=first / CHECKPOINT, config=config)
    assert following.step == 0 and len(following.history) == 1 and "intra" in following.history[0]
    ours, theirs = dict(run.average.named_parameters()), dict(following.model.named_parameters())
    resized = {name for name in ours.keys() & theirs.keys() if ours[name].shape != theirs[name].shape}
    assert all(torch.equal(ours[name], theirs[name]) for name in (ours.keys() & theirs.keys()) - resized)
    assert resized == {"prediction.out.weight", "prediction.blend.weight", "inter.synthesis.merge.weight"}
    assert theirs.keys() - ours.keys() and ours.keys() - theirs.keys()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut"])
def test_a_broken_checkpoint_says_so(content: bytes, tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(RqlvcError, match="checkpoint"):
        start_run(tmp_path, resume=True)


TRAIN_ELSEWHERE = """
import sys
from pathlib import Path
import torch
import rqlvc.training.codec as loop
from rqlvc.training.codec import Stage, start_run, train
from rqlvc.media.reader import VIDEO_SUFFIXES
from rqlvc.training.data import PHOTO_SUFFIXES, read_library
torch.set_num_threads(1)
videos, photos, out = map(Path, sys.argv[1:4])
loop.SAVE_EVERY = 5
schedule = (Stage("intra", 20, 1, 1e-3, 1e-4, batch=1, size=64), Stage("pair", 20, 2, 1e-3, 1e-4, batch=1, size=64))
run = start_run(out, schedule=schedule, resume="--resume" in sys.argv)
train(run, read_library(videos, VIDEO_SUFFIXES, 64), read_library(photos, PHOTO_SUFFIXES, 64), out)
print(run.step)
"""


@pytest.mark.slow
def test_a_run_survives_kills(material: Material, tmp_path: Path) -> None:
    """Killed twice without warning, then finished: the last step and the log are those of an unbroken run."""
    out = tmp_path / "run"
    command = [sys.executable, "-c", TRAIN_ELSEWHERE, str(material.videos), str(material.photos), str(out)]
    environment = os.environ | {"PYTHONPATH": str(SOURCES)}
    for lines in (9, 25):
        resume = ["--resume"] if lines > 9 else []
        process = subprocess.Popen([*command, *resume], env=environment)
        deadline = time.monotonic() + 120
        while not (out / LOG).exists() or len((out / LOG).read_text().splitlines()) < lines:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    finished = subprocess.run([*command, "--resume"], env=environment, capture_output=True, timeout=300)
    assert finished.returncode == 0, finished.stderr.decode()
    assert int(finished.stdout) == 40 and log_steps(out) == [*range(1, 41)]


# --- what training leaves ------------------------------------------------------------------------------------------


def test_contexts_learn_from_every_frame(material: Material) -> None:
    model, coder, before = untrained(), counter(), new_mixers()
    seen = model.motion_mixer.contexts[:, 1].sum()
    bits = []
    for _ in range(2):  # the same material again, with what was learnt from it
        groups = islice(batches(material.clips, material.pictures, 2, 3, 64, 0.5, 0), 1)
        coder.bits[0] = 0
        before = learn_contexts(model, coder, before, groups, "cpu")
        bits.append(float(coder.bits[0]))
    squares = (64 // 16) ** 2
    learnt = model.motion_mixer
    assert learnt.contexts[:, 1].sum() - seen > INPUTS * squares and learnt.sound()  # at least of whether each is split
    assert bits[1] < 0.95 * bits[0]
    assert all(not np.array_equal(mixer.contexts, new_mixers()[kind].contexts) for kind, mixer in before.items())
    assert model.training is False


def test_exported_weights_code_video_and_have_a_card(material: Material, tmp_path: Path) -> None:
    run = start_run(tmp_path, schedule=SMALL)
    average = train(run, material.clips, material.pictures, tmp_path)
    path = tmp_path / "weights" / "codec.safetensors"
    identity = export(average, path, cropped(material.clips), cropped(material.pictures))
    codec = load(device="cpu", weights=path, bfloat16=False)
    assert codec.identity == identity
    integer = [name for name, module in average.named_modules() if isinstance(module, IntegerConv)]
    for name, value in average.named_parameters():
        if name.rpartition(".")[0] not in integer:  # those are stored as the integers that they stand for
            assert torch.allclose(value, codec.model.get_parameter(name), atol=1e-4, rtol=1e-3), name
    stream = encode_stream(codec, moving_frames(64, 48, 3), [40.0] * 3)
    frames, _ = decode_stream(codec, stream.packets)
    assert np.array_equal(frames[2].y, stream.coded[2].reconstruction.y)

    plot_curves(tmp_path / LOG, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 400
    card = model_card(average, identity, [run.describe()], material.clips, material.pictures, tmp_path / LOG, "cpu")
    assert identity in card and "2 video clips (15 frames) and 2 photographs" in card and f"{STEPS} steps" in card
    assert f"{np.mean(read_log(tmp_path / LOG)['loss']):.3f}" in card
    assert not math.isnan(float(card.split("| inter | high half | ")[1].split(" |")[0]))


def test_material_smaller_than_the_measuring_crop_still_exports(material: Material, tmp_path: Path) -> None:
    path = tmp_path / "codec.safetensors"
    export(untrained(), path, cropped(material.clips), [])
    assert load(device="cpu", weights=path).model.config == ModelConfig()


@pytest.mark.slow
def test_the_command_trains_exports_and_resumes(rqlvc: CommandLine, material: Material, tmp_path: Path) -> None:
    out = tmp_path / "run"
    folders = ("--videos", material.videos, "--photos", material.photos, "--out", out)
    finished = rqlvc("train", "codec", *folders, "--stages", "intra,pair", "--scale", "0.0007", "--device", "cpu")
    assert finished.returncode == 0, finished.stderr.decode()
    steps = sum(stage.steps for stage in scaled(SCHEDULE[:2], 0.0007))
    assert log_steps(out) == [*range(1, steps + 1)]
    codec = load(device="cpu", weights=out / "codec.safetensors")
    assert codec.identity in (out / "codec.md").read_text() and (out / "curves.png").exists()
    again = rqlvc("train", "codec", *folders)
    assert again.returncode == 1 and b"--resume" in again.stderr
    assert rqlvc("train", "codec", *folders, "--resume").returncode == 0
    assert log_steps(out) == [*range(1, steps + 1)]
