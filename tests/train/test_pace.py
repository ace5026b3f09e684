"""On a CPU the pace falls back to one thread when another program takes the cores, and only then."""

import pytest
import torch

import fairway.train.session as session
from fairway.train.session import Keeper


@pytest.fixture
def paced(monkeypatch):
    """`paced(seconds of each step)` runs a Keeper through steps that take so long; returns the threads at the end."""
    before = torch.get_num_threads()

    def run(seconds):
        torch.set_num_threads(2)
        clock = iter(torch.tensor([0.0, *seconds], dtype=torch.float64).cumsum(0).tolist())
        monkeypatch.setattr(session.time, "perf_counter", lambda: next(clock))
        pace = Keeper(None, None, torch.device("cpu"))
        for _ in range(len(seconds) + 1):
            if torch.get_num_threads() > 1:
                pace.keep()
        return torch.get_num_threads()

    yield run
    torch.set_num_threads(before)


def test_an_even_pace_keeps_its_threads(paced):
    assert paced([0.5] * 12 + [0.9] * 12) == 2


def test_one_slow_step_is_no_other_program(paced):
    assert paced([0.5] * 10 + [3.0] + [0.5] * 10) == 2


def test_five_steps_three_times_as_slow_go_on_with_one_thread(paced):
    assert paced([0.5] * 10 + [2.0] * 6) == 1


def test_a_slow_start_is_no_measure(paced):
    assert paced([4.0] + [0.5] * 12) == 2
