"""What the prefetching thread hands out, and the note that goes with it."""

import threading
import time

import pytest
import torch

from fairway.data.prefetch import Prefetcher
from fairway.problem import Problem

CPU = torch.device("cpu")


class Counter:
    """A loader whose n-th batch holds the number n; it fails at `fails_at`."""

    def __init__(self, fails_at=None):
        self.step, self.fails_at = 0, fails_at

    def next(self):
        if self.step == self.fails_at:
            raise Problem(f"token 5000 in batch {self.step}")
        self.step += 1
        return torch.full((2, 4), self.step), torch.full((2, 4), -self.step)


def steps_of(loader):
    return loader.step


@pytest.fixture(params=[1, 2, 5])
def depth(request):
    return request.param


@pytest.fixture
def prefetcher(depth):
    prefetcher = Prefetcher(Counter(), CPU, depth, steps_of)
    yield prefetcher
    prefetcher.close()


def eventually(condition):
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return condition()


def test_batches_come_in_the_loaders_order_and_each_with_its_note(prefetcher):
    assert prefetcher.handed == 0
    for step in range(1, 40):
        x, y = prefetcher.next()
        assert x.unique().item() == step and y.unique().item() == -step
        assert prefetcher.handed == step


def test_it_works_ahead_by_depth_and_no_further(prefetcher, depth):
    prefetcher.next()
    assert eventually(lambda: prefetcher.loader.step == 1 + depth)
    time.sleep(0.02)
    assert prefetcher.loader.step == 1 + depth and prefetcher.handed == 1


def test_a_run_that_goes_on_from_the_note_neither_skips_nor_repeats(prefetcher):
    for _ in range(7):
        prefetcher.next()
    loader = Counter()
    loader.step = prefetcher.handed
    again = Prefetcher(loader, CPU)
    assert again.next()[0].unique().item() == 8 == prefetcher.next()[0].unique().item()
    again.close()


def test_what_the_loader_raises_comes_out_of_next_after_the_good_batches():
    prefetcher = Prefetcher(Counter(fails_at=3), CPU, 5, steps_of)
    for _ in range(3):
        prefetcher.next()
    for _ in range(2):
        with pytest.raises(Problem, match="token 5000 in batch 3"):
            prefetcher.next()
    assert prefetcher.handed == 3
    prefetcher.close()


def test_close_joins_the_thread_at_any_moment():
    before = set(threading.enumerate())
    for pause in (0, 0.0005, 0.01):
        prefetcher = Prefetcher(Counter(), CPU, depth=1)
        time.sleep(pause)
        prefetcher.close()
        prefetcher.close()
        assert set(threading.enumerate()) <= before
        with pytest.raises(RuntimeError, match="after shutdown"):
            prefetcher.next(), prefetcher.next()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_batches_are_whole_while_the_caller_computes_on_them():
    prefetcher = Prefetcher(Counter(), torch.device("cuda"), depth=2)
    busy = torch.randn(2048, 2048, device="cuda")
    sums = []
    for _ in range(200):
        x, y = prefetcher.next()
        assert x.device.type == "cuda"
        busy = (busy @ busy).clamp(-1, 1)
        sums.append((x.float().mean() + busy.sum() * 0, y.float().mean()))
        del x, y
    assert [(a.item(), b.item()) for a, b in sums] == [(step, -step) for step in range(1, 201)]
    prefetcher.close()
