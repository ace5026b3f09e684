"""What the prefetching thread hands out, and the state that goes with it."""

import threading
import time

import pytest
import torch

from fairway.data.prefetch import Prefetcher
from fairway.problem import Problem


class Counter:
    """A loader whose n-th batch holds the number n; it fails at `fails_at`."""

    def __init__(self, fails_at=None):
        self.step, self.fails_at = 0, fails_at

    def next(self):
        if self.step == self.fails_at:
            raise Problem(f"token 5000 in batch {self.step}")
        self.step += 1
        return torch.full((2, 4), self.step), torch.full((2, 4), -self.step)

    def state(self):
        return {"step": self.step}

    def restore(self, state):
        self.step = state["step"]


@pytest.fixture(params=[1, 2, 5])
def prefetcher(request):
    prefetcher = Prefetcher(Counter(), "cpu", depth=request.param)
    yield prefetcher
    prefetcher.close()


def eventually(condition):
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return condition()


def test_batches_come_in_the_loaders_order_and_each_with_its_state(prefetcher):
    assert prefetcher.state() == {"step": 0}
    for step in range(1, 40):
        x, y = prefetcher.next()
        assert x.unique().item() == step and y.unique().item() == -step
        assert prefetcher.state() == {"step": step}


def test_it_works_ahead_by_depth_and_no_further(prefetcher):
    prefetcher.next()
    ahead = 1 + prefetcher.depth + 1  # one handed out, `depth` waiting, one in the thread's hands
    assert eventually(lambda: prefetcher.loader.step == ahead)
    time.sleep(0.02)
    assert prefetcher.loader.step == ahead and prefetcher.state() == {"step": 1}


def test_a_run_resumed_from_the_state_neither_skips_nor_repeats(prefetcher):
    for _ in range(7):
        prefetcher.next()
    loader = Counter()
    loader.restore(prefetcher.state())
    again = Prefetcher(loader, "cpu")
    assert again.next()[0].unique().item() == 8 == prefetcher.next()[0].unique().item()
    again.close()


def test_a_restart_drops_what_was_prepared(prefetcher):
    begin = prefetcher.state()
    for _ in range(3):
        prefetcher.next()
    prefetcher.restart(begin)
    assert prefetcher.state() == begin
    assert [prefetcher.next()[0].unique().item() for _ in range(4)] == [1, 2, 3, 4]


def test_what_the_loader_raises_comes_out_of_next_after_the_good_batches():
    prefetcher = Prefetcher(Counter(fails_at=3), "cpu", depth=5)
    assert eventually(lambda: not prefetcher.thread.is_alive())
    for _ in range(3):
        prefetcher.next()
    for _ in range(2):
        with pytest.raises(Problem, match="token 5000 in batch 3"):
            prefetcher.next()
    assert prefetcher.state() == {"step": 3}
    prefetcher.restart({"step": 0})
    assert prefetcher.next()[0].unique().item() == 1
    prefetcher.close()


def test_close_joins_the_thread_at_any_moment():
    for pause in (0, 0.0005, 0.01):
        prefetcher = Prefetcher(Counter(), "cpu", depth=1)
        thread = prefetcher.thread
        time.sleep(pause)
        prefetcher.close()
        prefetcher.close()
        assert not thread.is_alive() and thread not in threading.enumerate()
    with pytest.raises(RuntimeError, match="closed"):
        prefetcher.next()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_batches_are_whole_while_the_caller_computes_on_them():
    prefetcher = Prefetcher(Counter(), "cuda", depth=2)
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
