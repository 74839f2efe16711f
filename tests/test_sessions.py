"""The two sessions and the registry, in this process: what an application that embeds them sees."""

import dataclasses
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import make_clip, neural_codec_is_here, read_frames, register, same_picture
from rqlvc.codec.protocol import Codec
from rqlvc.codec.registry import available_codecs, load_codec
from rqlvc.control import CURVE_QUALITIES, RateTarget, RealEncodes
from rqlvc.decoder import Decoder, decode_file
from rqlvc.encoder import Encoder, FrameStats
from rqlvc.errors import RqlvcError
from rqlvc.evaluation.metrics import mse_y, psnr_y, psnr_yuv
from rqlvc.media.container import ContainerReader
from rqlvc.media.frame import Frame
from rqlvc.rate.buffer import Buffer
from rqlvc.rate.constant import Constant
from rqlvc.rate.protocol import Decision, FrameInfo, FrameResult, RatePoint
from rqlvc.rate.registry import make_controller
from rqlvc.transcode import encode_file
from toy_codec import StrangerCodec, ToyCodec


def noise(count: int, width: int = 33, height: int = 17) -> list[Frame]:
    """Odd-sized frames that have nothing in common, a seventh of a second apart."""
    rng = np.random.default_rng(3)
    luma, chroma = (count, height, width), (count, (height + 1) // 2, (width + 1) // 2)
    y, u, v = (rng.integers(0, 256, shape, np.uint8) for shape in (luma, chroma, chroma))
    return [Frame(y[index], u[index], v[index], Fraction(index, 7)) for index in range(count)]


class Recorder:
    """A controller that alternates two levels and keeps all it is told."""

    def __init__(self) -> None:
        self.infos: list[FrameInfo] = []
        self.results: list[FrameResult] = []

    def decide(self, info: FrameInfo) -> Decision:
        self.infos.append(info)
        return Decision(20.001 if info.index % 2 else 50.0, target_bits=1000.0 + info.index)

    def update(self, result: FrameResult) -> None:
        self.results.append(result)

    def set_rates(self, bitrate: float, framerate: float) -> None: ...


def test_decoder_shows_what_the_encoder_reconstructed_at_its_time(codec: Codec) -> None:
    encoder, decoder = Encoder(codec, Constant(30.0), keyint=3), Decoder(codec)
    keyframes = []
    for frame in noise(7):
        packet, stats = encoder.encode(frame)
        decoded = decoder.decode(packet)
        assert encoder.reconstruction is not None and same_picture(decoded, encoder.reconstruction)
        assert decoded.time == frame.time
        assert stats.psnr_y == psnr_y(frame, decoded) and stats.psnr_yuv == psnr_yuv(frame, decoded)
        assert stats.bits == 8 * len(packet.payload)
        assert (stats.type == "I") == packet.keyframe
        keyframes.append(packet.keyframe)
    assert keyframes == [True, False, False, True, False, False, True]


def test_controller_hears_what_each_frame_really_cost() -> None:
    controller = Recorder()
    encoder = Encoder(ToyCodec(), controller, keyint=4)
    frames = noise(6)
    for left, frame in zip(range(len(frames), 0, -1), frames, strict=True):
        packet, stats = encoder.encode(frame, frames_left=left)
        result = controller.results[-1]
        assert result.info is controller.infos[-1]
        assert result.bits == 8 * len(packet.payload)
        assert encoder.reconstruction is not None and result.mse == mse_y(frame, encoder.reconstruction)
        assert result.quality == stats.quality  # 20.001 is carried as 20
        assert stats.target_bits == 1000.0 + stats.index
    assert [info.position for info in controller.infos] == [0, 1, 2, 3, 0, 1]
    assert [info.frames_left for info in controller.infos] == [6, 5, 4, 3, 2, 1]
    assert [info.frames_to_intra for info in controller.infos] == [4, 3, 2, 1, 4, 3]
    assert {info.points for info in controller.infos} == {()}
    assert {info.pixels for info in controller.infos} == {33 * 17}
    assert {result.quality for result in controller.results} == {50.0, 20.0}


class Table:
    """A predictor that keeps all it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Frame, Frame | None, FrameResult | None]] = []

    def predict(self, frame: Frame, reference: Frame | None, last: FrameResult | None) -> list[RatePoint]:
        self.calls.append((frame, reference, last))
        return [RatePoint(quality, 100.0 * len(self.calls) + quality) for quality in (10.0, 60.0)]


def test_predictor_sees_what_the_decoder_has_and_its_points_reach_the_controller() -> None:
    controller, table = Recorder(), Table()
    encoder = Encoder(ToyCodec(), controller, keyint=3, predictor=table)
    shown: list[Frame | None] = []
    frames = noise(5)
    for index, frame in enumerate(frames, 1):
        _, stats = encoder.encode(frame)
        shown.append(encoder.reconstruction)
        assert stats.points == controller.infos[-1].points
        low, high = stats.points
        assert (low.quality, high.quality) == (10.0, 60.0)
        # What is wrong with all inter frames is put right: both points by one factor.
        assert high.bits / low.bits == pytest.approx((100.0 * index + 60) / (100.0 * index + 10))
        if index in (1, 2, 4):  # intra, or nothing is known yet
            assert index == 2 or low.bits == 100.0 * index + 10
    assert all(seen is frame for (seen, _, _), frame in zip(table.calls, frames, strict=True))
    references = [reference for _, reference, _ in table.calls]
    assert references[0] is None and references[3] is None  # intra frames
    assert all(references[index] is shown[index - 1] for index in (1, 2, 4))
    assert [last for _, _, last in table.calls] == [None, *controller.results[:-1]]


@pytest.mark.parametrize("quality", CURVE_QUALITIES)
def test_real_encodes_are_what_the_frame_then_costs(codec: Codec, quality: float) -> None:
    encoder = Encoder(codec, Constant(quality), keyint=3, predictor=RealEncodes())
    for frame in noise(4, 32, 16):
        packet, stats = encoder.encode(frame)
        assert [point.quality for point in stats.points] == list(CURVE_QUALITIES)
        assert dict.fromkeys([point.bits for point in stats.points if point.quality == quality]) == {stats.bits: None}
        assert stats.bits == 8 * len(packet.payload)


def test_rates_may_change_between_two_frames(tmp_path: Path) -> None:
    frames = read_frames(make_clip(tmp_path / "clip.mkv", frames=160))
    controller = make_controller("adaptive", bitrate=400_000, framerate=25, pixels=64 * 48)
    encoder = Encoder(ToyCodec(), controller, keyint=1000)
    bits = []
    for index, frame in enumerate(frames):
        if index == 80:
            controller.set_rates(600_000, 25)
        bits.append(encoder.encode(frame)[1].bits)
    # The first frames of each half still pay for the start, or for the step, and the level moves these bits little.
    assert np.mean(bits[60:80]) == pytest.approx(400_000 / 25, rel=0.1)
    assert np.mean(bits[140:160]) == pytest.approx(600_000 / 25, rel=0.1)


def test_decoder_wants_a_keyframe_first() -> None:
    encoder = Encoder(ToyCodec(), Constant(30.0))
    _, (packet, _) = (encoder.encode(frame) for frame in noise(2))
    with pytest.raises(RqlvcError, match="needs frames before it"):
        Decoder(ToyCodec()).decode(packet)


def test_summary_is_what_the_files_hold(codec: Codec, clip: Path, tmp_path: Path) -> None:
    coded, decoded = tmp_path / "coded.mkv", tmp_path / "decoded.y4m"
    frames: list[FrameStats] = []
    summary = encode_file(str(clip), str(coded), codec, Constant(25.0), keyint=5, on_frame=frames.append)
    decode_file(str(coded), str(decoded), codec=codec)
    pairs = list(zip(read_frames(clip), read_frames(decoded), strict=True))
    with ContainerReader(str(coded)) as container:
        packets = list(container)
    assert summary.frames == len(frames) == len(pairs) == 12
    assert summary.keyframes == 3
    assert summary.bits == sum(frame.bits for frame in frames) == 8 * sum(len(packet.payload) for packet in packets)
    assert summary.psnr_y == pytest.approx(np.mean([psnr_y(a, b) for a, b in pairs]))
    assert summary.psnr_yuv == pytest.approx(np.mean([psnr_yuv(a, b) for a, b in pairs]))
    assert summary.bitrate == pytest.approx(summary.bits / (12 / 25))
    assert summary.bits_per_pixel == pytest.approx(summary.bits / (12 * 64 * 48))
    assert [frame.frames_left for frame in frames] == list(range(12, 0, -1))


@pytest.mark.parametrize(("width", "height", "count"), [(16, 16, 1), (50, 34, 2)])
def test_any_size_and_a_single_frame(codec: Codec, tmp_path: Path, width: int, height: int, count: int) -> None:
    source = make_clip(tmp_path / "small.mkv", width=width, height=height, frames=count)
    coded, decoded = str(tmp_path / "coded.mkv"), tmp_path / "decoded.y4m"
    summary = encode_file(str(source), coded, codec, Constant(63.0))
    decode_file(coded, str(decoded), codec=codec)
    assert (summary.frames, summary.width, summary.height) == (count, width, height)
    measured = [psnr_y(a, b) for a, b in zip(read_frames(source), read_frames(decoded), strict=True)]
    assert summary.psnr_y == pytest.approx(np.mean(measured))


def test_an_interrupt_keeps_the_frames_so_far_under_a_stated_name(clip: Path, tmp_path: Path) -> None:
    coded = tmp_path / "coded.mkv"

    def interrupt(stats: FrameStats) -> None:
        if stats.index == 3:
            raise KeyboardInterrupt

    summary = encode_file(str(clip), str(coded), ToyCodec(), Constant(25.0), on_frame=interrupt)
    assert summary.interrupted and summary.frames == 4
    assert not coded.exists()
    with ContainerReader(summary.output) as container:
        assert len(list(container)) == 4


def test_an_interrupted_size_is_held_against_its_share(clip: Path, tmp_path: Path) -> None:
    def interrupt(stats: FrameStats) -> None:
        if stats.index == 5:
            raise KeyboardInterrupt

    targets: list[float] = []
    target = RateTarget(size=24_000)
    coded = str(tmp_path / "coded.mkv")
    summary = encode_file(str(clip), coded, ToyCodec(), target, on_target=targets.append, on_frame=interrupt)
    assert targets == [summary.target_bitrate] == [24_000 * 8 / (12 / 25)]
    assert summary.error_percent == pytest.approx(100 * (summary.bits / (12_000 * 8) - 1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "a bitrate, a size or a capped quality"),
        ({"bitrate": 1e5, "size": 1000}, "give one of the three"),
        ({"size": 0}, "at least 1 byte"),
        ({"quality": 30.0}, "needs the buffer"),
        ({"bitrate": 1e5, "buffer": Buffer(9e4, 1e5)}, "cannot carry"),
        ({"bitrate": 1e5, "min_quality": 50.0, "max_quality": 20.0}, "0 <= lowest <= highest <= 63"),
        ({"bitrate": 1e5, "controller": "best"}, "no controller 'best'"),
        ({"bitrate": -1.0}, "above 0 bits per second"),
    ],
)
def test_a_target_without_sense_is_refused(clip: Path, tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(RqlvcError, match=message):
        encode_file(str(clip), str(tmp_path / "coded.mkv"), ToyCodec(), RateTarget(**values))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("controller", ["adaptive", "rq-lvc"])
def test_rqnet_gives_its_points_and_says_whose_they_are(clip: Path, tmp_path: Path, controller: str) -> None:
    from rqlvc.rate.rqnet import RQNet, write_rqnet

    weights = tmp_path / "rqnet.safetensors"
    frames: list[FrameStats] = []

    def warnings_with(trained_for: str) -> list[str]:
        warnings: list[str] = []
        write_rqnet(weights, RQNet(), trained_for, ToyCodec().identity)
        coded = str(tmp_path / f"{trained_for}.mkv")
        target = RateTarget(300e3, controller=controller, rqnet=weights)
        encode_file(str(clip), coded, ToyCodec("cpu"), target, on_frame=frames.append, on_warning=warnings.append)
        return [message for message in warnings if "RQNet" in message]

    assert warnings_with("toy") == []
    assert "trained for the codec other" in warnings_with("other")[0]
    for stats in frames:
        assert [point.quality for point in stats.points] == list(CURVE_QUALITIES)
        assert all(low.bits < high.bits for low, high in pairwise(stats.points))


def test_other_weights_are_refused_by_name(coded: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.y4m"
    with pytest.raises(RqlvcError, match=r"needs model 70c0dec0 of codec 'toy'.*0ddba110"):
        decode_file(str(coded), str(output), codec=StrangerCodec())
    assert not output.exists()


@given(
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4),
    cut=st.one_of(st.just(1.0), st.floats(0, 1)),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_ends_in_a_sentence_or_a_flagged_part(
    coded: Path, tmp_path: Path, flips: list[tuple[float, int]], cut: float
) -> None:
    data = bytearray(coded.read_bytes())
    for place, bits in flips:
        data[int(place * len(data))] ^= bits
    del data[round(cut * len(data)) :]
    damaged, output = tmp_path / "damaged.mkv", tmp_path / "out.y4m"
    damaged.write_bytes(data)
    output.unlink(missing_ok=True)
    try:
        summary = decode_file(str(damaged), str(output), codec=ToyCodec())
    except RqlvcError as error:
        assert str(error)
        assert not output.exists()
    else:
        assert len(read_frames(output)) == summary.frames
        assert summary.frames == 12 or summary.damage is not None


def test_keyint_below_one_is_refused() -> None:
    with pytest.raises(RqlvcError, match="at least 1"):
        Encoder(ToyCodec(), Constant(25.0), keyint=0)


# The registry


def plug_in(monkeypatch: pytest.MonkeyPatch, folder: Path, module: str, code: str, name: str, target: str) -> None:
    (folder / f"{module}.py").write_text(code)
    register(folder, {name: target})
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, module, raising=False)


def test_a_codec_is_registered_in_three_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = (
        "from toy_codec import ToyCodec\ndef load(device='auto', threads=None):\n    return ToyCodec(device, threads)\n"
    )
    plug_in(monkeypatch, tmp_path, "plugin_three_lines", code, "toy", "plugin_three_lines:load")
    entry = next(entry for entry in available_codecs() if entry.name == "toy")
    assert (entry.target, entry.package) == ("plugin_three_lines:load", "plugged-in 1.0")
    codec: Codec = load_codec("toy", device="cpu", threads=2)
    assert isinstance(codec, ToyCodec)
    assert (codec.device, codec.threads) == ("cpu", 2)


def test_unknown_codec_lists_those_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plug_in(monkeypatch, tmp_path, "plugin_known", "", "known", "plugin_known:load")
    with pytest.raises(RqlvcError, match=r"no codec called 'nosuch'.*known"):
        load_codec("nosuch")


def test_weights_reach_a_factory_that_takes_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = (
        "from toy_codec import ToyCodec\n"
        "def load(device='auto', threads=None, weights='own'):\n"
        "    return ToyCodec(device, threads, 'weighed', str(weights))\n"
        "def load_any(**options):\n    return load(**options)\n"
    )
    plug_in(monkeypatch, tmp_path, "plugin_weighed", code, "weighed", "plugin_weighed:load")
    assert load_codec("weighed").identity == "own"
    assert load_codec("weighed", weights=Path("new.bin")).identity == "new.bin"
    (tmp_path / "any").mkdir()
    plug_in(monkeypatch, tmp_path / "any", "plugin_any", code, "weighed", "plugin_any:load_any")
    assert load_codec("weighed", weights=Path("new.bin")).identity == "new.bin"


def test_weights_for_a_factory_that_takes_none_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plug_in(monkeypatch, tmp_path, "plugin_plain", "from toy_codec import ToyCodec", "toy", "plugin_plain:ToyCodec")
    with pytest.raises(RqlvcError, match=r"'toy'.*takes no weights file: leave out new\.bin"):
        load_codec("toy", weights=Path("new.bin"))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_module_anywhere", "could not be loaded: ModuleNotFoundError"),
        ("1 / 0", "ZeroDivisionError"),
        ("", "could not be loaded: AttributeError"),
        ("load = object", "could not be loaded: TypeError"),
        ("def load(**options): return object()", "lacks name, identity, encode, decode"),
        ("from toy_codec import ToyCodec as load", "calls itself 'toy'"),
    ],
)
def test_a_broken_plugin_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, message: str
) -> None:
    plug_in(monkeypatch, tmp_path, "plugin_broken", code, "broken", "plugin_broken:load")
    with pytest.raises(RqlvcError, match=message):
        load_codec("broken")


def test_stats_are_plain_values() -> None:
    _, stats = Encoder(ToyCodec(), Constant(30.0)).encode(noise(1)[0])
    assert set(dataclasses.asdict(stats)) >= {
        "index",
        "time",
        "type",
        "quality",
        "target_bits",
        "bits",
        "alpha",
        "beta",
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.bits = 0  # type: ignore[misc]


@pytest.mark.skipif(not neural_codec_is_here(), reason="the neural codec is not installed")
def test_readme_example_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    example = readme.split("```python\n")[1].split("```")[0]
    make_clip(tmp_path / "clip.mkv", frames=2).rename(tmp_path / "in.mp4")
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["I", "P"]


def test_every_frame_knows_how_far_those_in_view_predict_the_next() -> None:
    controller = Recorder()
    encoder = Encoder(ToyCodec(), controller, keyint=3)
    frames = noise(5, 64, 64)
    frames[1] = frames[0]  # a still, then pictures that have nothing in common
    for index, frame in enumerate(frames):
        encoder.encode(frame, ahead=frames[index + 1 : index + 2])
    seen = [info.novelties for info in controller.infos]
    assert [len(novelties) for novelties in seen] == [2, 2, 2, 2, 1]
    assert seen[0][1] == seen[1][0] < 0.5 < seen[3][1]
    assert [info.novelty for info in controller.infos] == [*(novelties[1] for novelties in seen[:4]), None]


def test_a_bitrate_is_met_where_every_fifth_frame_was_dropped(tmp_path: Path) -> None:
    times = [1000 * (index + index // 4) // 25 for index in range(120)]
    clip = make_clip(tmp_path / "clip.mkv", frames=len(times), times=times)  # which is told to have 150 frames
    for options in ({}, {"buffer": Buffer(250e3, 250e3)}):
        coded = str(tmp_path / "coded.mkv")
        summary = encode_file(
            str(clip), coded, ToyCodec(), RateTarget(bitrate=250e3, **options), keyint=30, overwrite=True
        )
        assert summary.bitrate == pytest.approx(250e3, rel=0.01)


@pytest.mark.parametrize(("controller", "lands"), [("adaptive", True), ("no-rqnet", False)])
def test_the_last_frames_of_a_file_take_what_is_left(tmp_path: Path, controller: str, lands: bool) -> None:
    clip = make_clip(tmp_path / "clip.mkv", frames=45)
    stats: list[FrameStats] = []
    target = RateTarget(bitrate=300e3, controller=controller)
    encode_file(str(clip), str(tmp_path / "coded.mkv"), ToyCodec(), target, keyint=16, on_frame=stats.append)
    assert all(each.encodes == 1 for each in stats[1:-2])
    assert (stats[0].encodes > 1) == lands  # what nobody knows before is rehearsed
    errors = [abs(each.bits / each.target_bits - 1) for each in stats[-2:] if each.target_bits]
    if lands:
        assert max(errors) <= 0.03
        assert abs(sum(each.bits for each in stats) / (300e3 * 45 / 25) - 1) < 0.01
    else:
        assert {each.encodes for each in stats} == {1}
