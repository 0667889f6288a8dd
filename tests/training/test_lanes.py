"""Lanes: every window is where it should be in the text, whoever asks, and in whatever order."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charlm.errors import CharlmError
from charlm.training.lanes import Lanes, Position

lanes_count = st.integers(1, 7)
bptt = st.integers(1, 9)
dtypes = st.sampled_from([np.uint8, np.uint16])


def some_ids(n: int, dtype=np.uint16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, n, dtype=dtype)


def numbered(n: int) -> np.ndarray:
    """Ids that say where in the text they stand."""
    assert n <= 0x10000
    return np.arange(n, dtype=np.uint16)


def epoch_of(lanes: Lanes, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of all windows of an epoch, side by side: [B, W * T] each."""
    both = [lanes.window(Position(epoch, w)) for w in range(lanes.windows)]
    return tuple(torch.cat(part, 1).numpy() for part in zip(*both, strict=True))


@given(lanes_count, bptt, st.integers(0, 300), st.integers(0, 5), dtypes)
def test_windows_of_an_epoch_joined_per_lane_are_the_text_cut_in_lanes(B, T, more, epoch, dtype):
    ids = some_ids(B * T + 1 + more, dtype)
    lanes = Lanes(ids, B, T)
    x, y = epoch_of(lanes, epoch)
    start, used = lanes.offset(epoch), B * lanes.windows * T
    assert x.shape == y.shape == (B, lanes.windows * T)
    assert np.array_equal(x, ids[start : start + used].reshape(B, -1))
    assert np.array_equal(y, ids[start + 1 : start + 1 + used].reshape(B, -1))


@given(lanes_count, bptt, st.integers(0, 300), st.integers(0, 5))
def test_y_is_the_character_after_each_x(B, T, more, epoch):
    lanes = Lanes(numbered(B * T + 1 + more), B, T)
    for window in range(lanes.windows):
        x, y = lanes.window(Position(epoch, window))
        assert torch.equal(y, x + 1)
        assert x.shape == y.shape == (B, T)


def test_the_picture_in_the_docstring_is_true():
    ids = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz.", np.uint8)[: 2 * 4 * 3 + 1 + 2].copy()
    lanes = Lanes(ids, 2, 4)
    assert (lanes.windows, lanes.spare) == (3, 2)
    first = lanes.window(Position(0, 1))
    assert [bytes(row.tolist()) for row in first[0]] == [b"efgh", b"qrst"]
    assert [bytes(row.tolist()) for row in first[1]] == [b"fghi", b"rstu"]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_windows_are_int64(dtype):
    x, y = Lanes(some_ids(50, dtype), 2, 3).window(Position(1, 2))
    assert x.dtype == y.dtype == torch.int64


def test_ids_beyond_32767_stay_positive_and_exact():
    ids = np.array([32766, 32767, 32768, 40000, 65534, 65535, 0], np.uint16)
    x, y = Lanes(ids, 2, 3).window(Position())
    assert x.tolist() == [[32766, 32767, 32768], [40000, 65534, 65535]]
    assert y.tolist() == [[32767, 32768, 40000], [65534, 65535, 0]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_memory_mapped_file_gives_the_same_windows(tmp_path, dtype):
    ids = some_ids(2 * 3 * 5 + 4, dtype)
    np.save(tmp_path / "train.npy", ids)
    mapped = Lanes(np.load(tmp_path / "train.npy", mmap_mode="c"), 2, 3)  # as a corpus opens it
    for epoch in range(3):
        assert np.array_equal(epoch_of(mapped, epoch)[0], epoch_of(Lanes(ids, 2, 3), epoch)[0])
    assert np.array_equal(np.load(tmp_path / "train.npy"), ids)


def test_changing_a_window_does_not_change_the_text():
    ids = numbered(50)
    lanes = Lanes(ids, 2, 3)
    x, _ = lanes.window(Position())
    x.fill_(49)
    assert np.array_equal(ids, numbered(50))
    assert lanes.window(Position())[0].tolist() != x.tolist()


# position


@given(lanes_count, bptt, st.integers(0, 300), st.integers(0, 3), st.integers(0, 400), st.integers(0, 9))
def test_restart_at_any_position_gives_the_same_windows(B, T, more, epoch, window, seed):
    ids = some_ids(B * T + 1 + more)
    walked, position = Lanes(ids, B, T, seed=seed), Position()
    target = Position(epoch, window % walked.windows)
    while position != target:
        walked.window(position)
        position = walked.after(position)
    restarted = Lanes(ids, B, T, seed=seed)
    for _ in range(3):
        for a, b in zip(walked.window(position), restarted.window(position), strict=True):
            assert torch.equal(a, b)
        position = walked.after(position)
        assert restarted.after(target) == position
        target = position


def test_after_counts_windows_then_wraps_to_the_next_epoch():
    lanes = Lanes(numbered(2 * 3 * 4 + 1), 2, 3)
    assert lanes.windows == 4
    assert [lanes.after(Position(5, w)) for w in range(4)] == [(5, 1), (5, 2), (5, 3), (6, 0)]
    assert isinstance(lanes.after(Position(5, 3)), Position)


def test_after_with_one_window_per_epoch_goes_straight_to_the_next_epoch():
    lanes = Lanes(numbered(2 * 3 + 1), 2, 3)
    assert lanes.after(Position(0, 0)) == Position(1, 0)


def test_training_starts_at_epoch_0_window_0():
    assert Position() == (0, 0)


# ranks


@given(st.integers(1, 6), st.integers(0, 20), bptt, st.integers(0, 200), st.integers(0, 3))
def test_ranks_together_read_exactly_the_whole_batch_in_order(world, beyond, T, more, epoch):
    B = world + beyond
    ids = some_ids(B * T + 1 + more)
    whole = Lanes(ids, B, T, seed=3)
    ranks = [Lanes(ids, B, T, rank=r, world=world, seed=3) for r in range(world)]
    assert [lane for r in ranks for lane in r.lanes] == list(range(B))
    for window in {0, whole.windows // 2, whole.windows - 1}:
        position = Position(epoch, window)
        parts = [r.window(position) for r in ranks]
        each = [len(part[0]) for part in parts]
        assert min(each) >= 1 and max(each) - min(each) <= 1
        assert all(part[0].shape == part[1].shape == (n, T) for part, n in zip(parts, each, strict=True))
        for i in range(2):
            assert torch.equal(torch.cat([part[i] for part in parts]), whole.window(position)[i])
        assert {r.after(position) for r in ranks} == {whole.after(position)}


@given(st.integers(2, 6), st.integers(1, 4), bptt, st.integers(0, 200))
def test_no_two_ranks_read_the_same_text(world, each, T, more):
    ids = numbered(world * each * T + 1 + more)
    seen = np.concatenate(
        [epoch_of(Lanes(ids, world * each, T, rank=r, world=world), 1)[0].ravel() for r in range(world)]
    )
    assert len(np.unique(seen)) == len(seen)


@given(lanes_count, st.integers(1, 8))
def test_more_ranks_than_lanes_are_refused(B, more):
    world = B + more
    with pytest.raises(CharlmError, match=rf"train\.batch_size={B}: too few lanes for {world} processes"):
        Lanes(numbered(1000), B, 2, rank=0, world=world)


# epochs and their offsets


@given(lanes_count, bptt, st.integers(0, 400), st.integers(0, 9), st.integers(0, 9))
def test_no_window_of_any_epoch_reads_past_the_end(B, T, more, epoch, seed):
    n = B * T + 1 + more
    lanes = Lanes(numbered(n), B, T, seed=seed)
    assert lanes.spare >= 0
    assert 0 <= lanes.offset(epoch) <= lanes.spare
    assert lanes.windows >= 1
    _, y = epoch_of(lanes, epoch)
    assert y[-1, -1] == lanes.offset(epoch) + B * lanes.windows * T <= n - 1
    assert lanes.spare + B * lanes.windows * T == n - 1  # the furthest offset ends with the text


@given(lanes_count, bptt, st.integers(1, 30), st.floats(0, 1, exclude_max=True))
def test_an_epoch_never_drops_more_than_a_tenth_and_one_window(B, T, windows, part):
    n = windows * B * T + 1 + int(part * B * T)
    lanes = Lanes(numbered(n), B, T)
    assert n - 1 - B * lanes.windows * T <= 0.1 * n + B * T


@given(lanes_count, bptt, st.integers(0, 400), st.integers(0, 9))
def test_epoch_0_starts_at_the_start_of_the_text(B, T, more, seed):
    lanes = Lanes(numbered(B * T + 1 + more), B, T, seed=seed)
    assert lanes.offset(0) == 0
    assert lanes.window(Position())[0][0, 0] == 0


def test_later_epochs_start_at_other_offsets():
    lanes = Lanes(some_ids(20_000), 3, 67)
    offsets = [lanes.offset(epoch) for epoch in range(20)]
    assert lanes.spare >= 100
    assert len(set(offsets)) >= 16
    assert min(offsets[1:]) < lanes.spare / 4 and max(offsets) > lanes.spare * 3 / 4


def test_a_text_that_the_windows_fill_exactly_still_has_offsets_to_choose_from():
    lanes = Lanes(numbered(3 * 5 * 40 + 1), 3, 5)
    assert lanes.spare >= 3 * 5 // 2
    assert len({lanes.offset(epoch) for epoch in range(1, 20)}) > 5


def test_offsets_are_decided_by_the_seed_alone():
    ids = some_ids(20_000)
    offsets = {
        seed: [Lanes(ids, 3, 67, seed=seed).offset(epoch) for epoch in range(8)] for seed in (0, 1, 10)
    }
    np.random.default_rng().random(), torch.rand(5)
    for seed, told in offsets.items():
        lanes = Lanes(ids, 3, 67, seed=seed)
        assert [lanes.offset(epoch) for epoch in reversed(range(8))] == told[::-1]
    assert len({tuple(told) for told in offsets.values()}) == 3


def test_an_offset_draw_leaves_the_random_states_of_python_and_torch_alone():
    import random

    lanes = Lanes(some_ids(20_000), 3, 67)
    before = random.getstate(), torch.get_rng_state()
    lanes.window(Position(4, 1))
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_without_spare_every_epoch_starts_at_0():
    lanes = Lanes(numbered(2 * 3 * 4 + 1), 2, 3)
    assert lanes.spare == 0
    assert {lanes.offset(epoch) for epoch in range(9)} == {0}


# texts too short


@given(lanes_count, bptt)
def test_the_shortest_text_is_one_window_of_every_lane_and_one_character(B, T):
    lanes = Lanes(numbered(B * T + 1), B, T)
    assert (lanes.windows, lanes.spare) == (1, 0)
    x, y = lanes.window(Position())
    assert x.flatten().tolist() == list(range(B * T))
    assert y.flatten().tolist() == list(range(1, B * T + 1))


@given(lanes_count, bptt, st.integers(0, 70))
def test_a_shorter_text_is_refused_with_the_numbers(B, T, n):
    n = min(n, B * T)
    with pytest.raises(CharlmError) as error:
        Lanes(numbered(n), B, T)
    for told in (f"{n:,} symbols", f"train.batch_size={B}", f"train.bptt={T}", f"{B * T + 1:,}"):
        assert told in str(error.value)


# windows read ahead, for ids that do not fit on the device


@pytest.mark.parametrize(
    ("lanes", "every", "world"), [(16, 64, 1), (16, 64, 3), (10, 4, 3), (3, 3, 3), (2, 1, 1)]
)
def test_the_carry_of_every_lane_starts_again_once_in_so_many_windows(lanes, every, world):
    at = []
    for rank in range(world):
        own = Lanes(numbered(lanes * 200 + 1), lanes, 2, rank=rank, world=world, carry_windows=every)
        zeros = []
        for window in range(1, every + 1):  # in the first of an epoch there is none
            carry = (torch.ones(2, len(own.lanes), 3), torch.ones(1, len(own.lanes), 1))
            own.restart(Position(1, window), carry)
            assert torch.equal(*(part.sum((0, 2)) == 0 for part in carry))
            zeros.append(carry[0].sum((0, 2)) == 0)
        at.append(torch.stack(zeros))
    at = torch.cat(at, 1)  # [windows, lanes]
    assert (at.sum(0) == 1).all() and at.sum(1).max() <= -(-lanes // every)  # and never many at once
    whole = Lanes(numbered(lanes * 200 + 1), lanes, 2)
    whole.restart(Position(0, 1), carry := (torch.ones(1, lanes, 1),))
    assert carry[0].all()


def test_windows_read_ahead_are_the_same_in_any_order(monkeypatch):
    """On a CPU, where memory cannot be pinned; the device that the copy would go to is the CPU itself."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    plain, ahead = (Lanes(np.arange(200, dtype=np.uint8), 3, 5, seed=4) for _ in range(2))
    ahead._reader = ThreadPoolExecutor(1)
    position, order = Position(), []
    for _ in range(2 * plain.windows):  # over the end of an epoch
        order.append(position)
        position = plain.after(position)
    for position in [*order, order[3], order[3], order[0]]:  # and where a resumed run would jump to
        for ours, theirs in zip(ahead.window(position), plain.window(position), strict=True):
            assert ours.dtype == torch.int64 and torch.equal(ours, theirs)


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_a_process_keeps_what_its_lanes_read_and_no_thread_without_nvidia(device):
    """64 processes on a corpus of 20 GB: each touches its part. Apple's GPUs have no pinned memory."""
    ids = np.arange(1000, dtype=np.uint16)
    for rank in range(4):
        lanes = Lanes(ids, 8, 5, rank=rank, world=4, device=device)
        assert len(lanes.ids) == 2 * lanes.windows * 5 + lanes.spare + 1 < 350
        assert lanes.ids[0] == rank * 2 * lanes.windows * 5 and lanes._reader is None
