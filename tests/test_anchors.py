"""Anchors on real encodes of a small moving clip."""

import weakref
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import pytest

from rqlvc.errors import RqlvcError
from rqlvc.evaluation.anchors import AnchorBitrate, AnchorEncoder, AnchorResult, encode_anchor
from rqlvc.media.frame import Frame

ENCODERS: tuple[AnchorEncoder, ...] = get_args(AnchorEncoder)
RATE = Fraction(25)


def moving_clip(frames: int, width: int = 96, height: int = 64) -> list[Frame]:
    """A smooth random texture that drifts by two luma samples a frame, with some noise of its own in every frame."""
    draw = np.random.default_rng(7)
    margin = 2 * frames
    coarse = draw.uniform(30, 220, ((height + 15) // 8, (width + margin + 15) // 8))
    texture = np.kron(coarse, np.ones((8, 8)))
    for axis in (0, 1):
        texture = np.mean([np.roll(texture, shift, axis) for shift in range(-4, 5)], axis=0)
    clip = []
    for index in range(frames):
        window = texture[:height, 2 * index : 2 * index + width] + draw.normal(0, 2, (height, width))
        y = np.clip(window, 0, 255).astype(np.uint8)
        clip.append(Frame(y, y[::2, ::2].copy(), 255 - y[::2, ::2], Fraction(index) / RATE))
    return clip


def encode(
    encoder: AnchorEncoder, rate: int | AnchorBitrate, keyint: int, clip: list[Frame] | None = None
) -> AnchorResult:
    return encode_anchor(clip or moving_clip(20), RATE, encoder, rate, keyint)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("keyint", [1, 8])
def test_a_coarser_quantiser_costs_fewer_bits_and_more_distortion(encoder: AnchorEncoder, keyint: int) -> None:
    quantisers = (20, 32, 44, 63) if encoder == "libsvtav1" else (20, 28, 36, 44)
    results = [encode(encoder, quantiser, keyint) for quantiser in quantisers]
    for finer, coarser in pairwise(results):
        assert coarser.bits < finer.bits
        assert coarser.psnr_y < finer.psnr_y
        assert coarser.psnr_yuv < finer.psnr_yuv
    assert 0 < results[-1].bits < results[0].bits / 4


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("keyint", [1, 7, 32])
def test_intra_frames_stand_at_every_keyint_and_nothing_is_bidirectional(encoder: AnchorEncoder, keyint: int) -> None:
    result = encode(encoder, 30, keyint)
    assert result.frames == 20
    assert result.picture_types == "".join("P" if index % keyint else "I" for index in range(20))
    assert result.keyframes == result.picture_types.count("I")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_scene_cut_makes_no_intra_frame_of_its_own(encoder: AnchorEncoder) -> None:
    first = moving_clip(10)
    second = [Frame(255 - frame.y[::-1], frame.v, frame.u, frame.time + 1) for frame in first]
    assert encode(encoder, 30, 32, first + second).picture_types == "I" + "P" * 19


@pytest.mark.parametrize("encoder", ENCODERS)
def test_what_the_encoder_says_of_itself_is_not_charged(encoder: AnchorEncoder) -> None:
    luma, chroma = np.full((64, 96), 90, np.uint8), np.full((32, 48), 120, np.uint8)
    # The description alone is over 600 bytes; parameter sets and a flat picture take far fewer.
    assert 0 < encode(encoder, 40, 1, [Frame(luma, chroma, chroma)]).bits < 8 * 250


@pytest.mark.parametrize("encoder", ENCODERS)
def test_equal_input_gives_equal_results(encoder: AnchorEncoder) -> None:
    first = encode(encoder, 30, 8)
    encode("libsvtav1", 30, 8)  # what it leaves in the process changed x264's AVX-512 functions
    second = encode(encoder, 30, 8)
    assert (first.bits, first.psnr_y, first.psnr_yuv) == (second.bits, second.psnr_y, second.psnr_yuv)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_odd_sizes_are_measured_without_padding(encoder: AnchorEncoder) -> None:
    odd = [Frame(frame.y[:63, :95], frame.u, frame.v, frame.time) for frame in moving_clip(6)]
    result = encode(encoder, 12, 8, odd)
    assert result.frames == 6
    assert result.psnr_y > 40


@pytest.mark.parametrize("encoder", ENCODERS)
def test_bits_of_the_frames_add_up(encoder: AnchorEncoder) -> None:
    result = encode(encoder, 30, 8)
    assert len(result.frame_bits) == 20 and sum(result.frame_bits) == result.bits
    intra = [bits for bits, kind in zip(result.frame_bits, result.picture_types, strict=True) if kind == "I"]
    assert min(intra) > max(bits for bits in result.frame_bits if bits not in intra)


@pytest.mark.parametrize(
    ("encoder", "passes"), [("libx264", 1), ("libx264", 2), ("libx265", 1), ("libx265", 2), ("libsvtav1", 1)]
)
def test_more_bits_per_second_are_spent_where_they_are_asked_for(encoder: AnchorEncoder, passes: Literal[1, 2]) -> None:
    clip = moving_clip(60)
    results = [encode(encoder, AnchorBitrate(kilobits, passes), 20, clip) for kilobits in (150, 300)]
    low, high = (result.bits / 60 * float(RATE) / 1000 for result in results)
    assert 150 * 0.6 < low < 150 * 1.4 and 300 * 0.6 < high < 300 * 1.4 and high > 1.5 * low
    assert results[0].picture_types == "".join("P" if index % 20 else "I" for index in range(60))


@pytest.mark.parametrize("encoder", ["libx264", "libx265"])
def test_two_passes_know_what_is_coming(encoder: AnchorEncoder) -> None:
    """A still half before a restless one: who has seen both lands nearer to the bitrate."""
    still, restless = moving_clip(1) * 30, moving_clip(30)
    target = 250
    one, two = (encode(encoder, AnchorBitrate(target, passes), 60, still + restless) for passes in (1, 2))
    wanted = 1000 * target * 60 / RATE
    assert abs(two.bits - wanted) < abs(one.bits - wanted)


def test_a_long_clip_is_not_held_in_memory() -> None:
    clip, alive, most = moving_clip(20), 0, 0

    def release() -> None:
        nonlocal alive
        alive -= 1

    def source() -> Iterator[Frame]:
        nonlocal alive, most
        for index in range(300):
            frame = clip[index % 20]
            luma = frame.y.copy()
            weakref.finalize(luma, release)
            alive += 1
            most = max(most, alive)
            yield Frame(luma, frame.u, frame.v)

    assert encode_anchor(source(), RATE, "libx264", 30, 8).frames == 300
    assert most < 80  # the lookahead of the preset is 40


def test_bad_requests_are_refused_in_words() -> None:
    clip = moving_clip(2)
    with pytest.raises(RqlvcError, match="no anchor named 'h264'"):
        encode_anchor(clip, RATE, "h264", 30, 8)  # type: ignore[arg-type]
    with pytest.raises(RqlvcError, match="quantiser is 0"):
        encode_anchor(clip, RATE, "libx264", 0, 8)
    with pytest.raises(RqlvcError, match="quantiser is 52"):
        encode_anchor(clip, RATE, "libx265", 52, 8)
    with pytest.raises(RqlvcError, match="no second pass"):
        encode_anchor(clip, RATE, "libsvtav1", AnchorBitrate(100, 2), 8)
    with pytest.raises(RqlvcError, match="bitrate is 0"):
        encode_anchor(clip, RATE, "libx264", AnchorBitrate(0), 8)
    with pytest.raises(RqlvcError, match="keyint is 0"):
        encode_anchor(clip, RATE, "libx264", 30, 0)
    with pytest.raises(RqlvcError, match="no frames"):
        encode_anchor([], RATE, "libx264", 30, 8)
    with pytest.raises(RqlvcError, match="sizes must agree"):
        encode_anchor(clip + moving_clip(1, width=48), RATE, "libx264", 30, 8)
    with pytest.raises(RqlvcError, match="preset 'warp'"):
        encode_anchor(clip, RATE, "libx264", 30, 8, preset="warp")
    with pytest.raises(RqlvcError, match="frame rate"):
        encode_anchor(clip, Fraction(0), "libx264", 30, 8)
