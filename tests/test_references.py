"""Which pictures are kept beside the reference, and that both sides keep the same ones."""

import numpy as np
import pytest
import torch

from rqlvc.codec.neural import NeuralCodec
from rqlvc.codec.packet import read_packet
from rqlvc.codec.planes import Planes
from rqlvc.codec.references import BETTER, OLDEST, PICTURES, USED, Kept, superfluous
from rqlvc.errors import RqlvcError
from rqlvc.media.frame import Frame
from small_streams import encode_stream, moving_frames, neural_codec

LEVELS = (40.0, 34.0, 38.0, 34.0)
"""Of a miniGOP, the best frame first."""


@pytest.fixture(scope="module")
def codec() -> NeuralCodec:
    return neural_codec()


def kept(level: float, distance: int, use: float = 1.0) -> Kept:
    nothing = torch.zeros(1, 1, 16, 16)
    return Kept(Planes(nothing, nothing), torch.tensor([level]), torch.zeros(1, 2, 2, 2), distance, use)


def test_the_best_of_the_last_minigop_is_kept_until_the_next_one() -> None:
    far = kept(36.0, 9)
    assert superfluous([kept(34.0, 1), kept(40.0, 2), far]) == 0
    assert superfluous([kept(40.0 - BETTER, 1), kept(40.0, 2), far]) == 1
    assert superfluous([kept(34.0, 1), kept(40.0, OLDEST), far]) == 1


def test_a_far_picture_that_nothing_reaches_to_gives_way() -> None:
    near, latest = kept(34.0, 2), kept(40.0, 1)
    assert superfluous([latest, near, kept(36.0, 9, use=USED)]) == 1
    assert superfluous([latest, near, kept(36.0, 9, use=USED / 2)]) == 2


def test_what_reaches_to_a_picture_counts_as_its_use_and_leads_on() -> None:
    motion = torch.zeros(1, 3, 2, 2)
    motion[0, :, 0, 0] = torch.tensor([12.0, -4.0, 2.0])
    vectors = torch.tensor([2.0, 0.0]).reshape(1, 2, 1, 1).expand(1, 2, 2, 2)
    past = kept(36.0, 3)._replace(through=torch.tensor([5.0, 1.0]).reshape(1, 2, 1, 1).expand(1, 2, 2, 2))
    after = past.after(motion, vectors, index=2)
    assert after.distance == 4 and 0.25 < after.use < 1
    assert after.through[0, :, 0, 0].tolist() == [12, -4] and after.through[0, :, 1, 1].tolist() == [7, 1]
    assert past.after(motion, vectors, index=1).through[0, :, 0, 0].tolist() == [7, 1]


def test_both_sides_keep_the_same_pictures(codec: NeuralCodec) -> None:
    stream = encode_stream(codec, moving_frames(96, 64, 12), [LEVELS[index % 4] for index in range(12)])
    state, given_up = None, []
    for packet, coded in zip(stream.packets, stream.coded, strict=True):
        decoded = codec.decode(packet, state)
        state = decoded.state
        assert np.array_equal(decoded.frame.y, coded.reconstruction.y)
        ours, theirs = state.state.kept, coded.state.state.kept
        assert len(ours) < PICTURES and len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            assert torch.equal(mine.picture.luma, other.picture.luma) and torch.equal(mine.through, other.through)
            assert mine.distance == other.distance
        given_up.append(read_packet(packet).dropped)
    assert len(set(given_up[3:])) > 1, "the choice changes along a miniGOP"


def test_another_choice_of_pictures_is_noticed(codec: NeuralCodec) -> None:
    stream = encode_stream(codec, moving_frames(96, 64, 5), [40.0] * 5)
    damaged = bytearray(stream.packets[4])
    damaged[0] ^= 1 << 2
    with pytest.raises(RqlvcError, match="damaged"):
        codec.decode(bytes(damaged), stream.coded[3].state)


def test_what_was_seen_long_ago_comes_back_for_little(codec: NeuralCodec) -> None:
    """An object stands before a scene for as long as three miniGOPs; then the scene is taken from the intra frame."""
    frames = moving_frames(96, 80, 1) * 16
    hidden = frames[0].y.copy()
    hidden[16:64, 16:64] = np.arange(48, dtype=np.uint8) * 4
    frames[2:14] = [Frame(hidden, frames[0].u, frames[0].v)] * 12
    sizes = [len(packet) for packet in encode_stream(codec, frames, [LEVELS[index % 4] for index in range(16)]).packets]
    assert 5 * sizes[14] < sizes[2], sizes
