"""Does the background thread keep order, hand errors over, and go away?"""

from __future__ import annotations

import gc
import threading
import time
import traceback

import pytest

from annbatch.epoch import Reads
from annbatch.prefetch import Prefetch
from live_threads import background_threads


@pytest.mark.parametrize("depth", [0, 1, 3, 100])
def test_results_come_in_order(depth):
    assert list(Prefetch(lambda i: i * i, 20, depth)) == [i * i for i in range(20)]
    assert not background_threads()


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_it_works_ahead_but_no_further_than_asked(depth):
    begun: list[int] = []
    ahead = Prefetch(begun.append, 50, depth)
    next(ahead)
    deadline = time.monotonic() + 20
    while len(begun) < 1 + depth and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    assert begun == list(range(1 + depth))
    ahead.close()


def test_it_says_whether_a_result_is_there():
    may_go_on = threading.Event()

    def work(i: int) -> int:
        may_go_on.wait(20)
        if i == 1:
            raise ValueError("the second one")
        return i

    ahead = Prefetch(work, 3, 1)
    assert not ahead.is_ready
    may_go_on.set()
    deadline = time.monotonic() + 20
    while not ahead.is_ready and time.monotonic() < deadline:
        time.sleep(0.005)
    assert ahead.is_ready
    assert next(ahead) == 0
    while not ahead._ahead[0].done():
        time.sleep(0.005)
    assert not ahead.is_ready, "an error is for who asks for the result"
    with pytest.raises(ValueError, match="the second one"):
        next(ahead)
    ahead.close()
    assert not ahead.is_ready
    assert not Prefetch(work, 3, 0).is_ready


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_an_error_arrives_in_its_place_with_its_traceback(depth):
    def work(i: int) -> int:
        if i == 3:
            raise OSError("the disk is gone")
        return i

    ahead = Prefetch(work, 10, depth)
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="the disk is gone") as caught:
        next(ahead)
    assert "work" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    ahead.close()


def test_closing_cancels_and_leaves_no_thread():
    begun: list[int] = []

    def work(i: int) -> None:
        begun.append(i)
        time.sleep(0.02)

    ahead = Prefetch(work, 1000, 500)
    next(ahead)
    ahead.close()
    n_begun = len(begun)
    assert n_begun < 500
    assert not background_threads()
    time.sleep(0.05)
    assert len(begun) == n_begun
    with pytest.raises(StopIteration):
        next(ahead)


def test_dropping_it_leaves_no_thread():
    ahead = Prefetch(lambda i: time.sleep(0.01), 1000, 5)
    next(ahead)
    del ahead
    gc.collect()
    # A finaliser does not wait: the thread ends with the work that it has begun, not with all thousand.
    deadline = time.monotonic() + 5
    while background_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not background_threads()


@pytest.mark.parametrize("most", [1, 2, 8])
def test_every_window_is_read_once_and_the_first_one_alone(most):
    for n_windows in range(40):
        reads = Reads(n_windows, most)
        groups = [list(reads[number]) for number in range(len(reads))]
        assert [window for group in groups for window in group] == list(range(n_windows))
        assert all(1 <= len(group) <= most for group in groups)
        assert not groups or len(groups[0]) == 1
