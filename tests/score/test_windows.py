import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.node import parse_node
from fairway.problem import Problem
from fairway.score.windows import DocumentPlan, Documents, Evaluation, NonOverlapping, Sliding, WindowPlan, prove_coverage


def plan_of(*windows):
    columns = np.array(windows, dtype=np.int64).T
    return (WindowPlan if len(columns) == 3 else DocumentPlan)(*columns)


@pytest.mark.parametrize(
    "windows, targets, count",
    [
        (Sliding(2048, 64), 40_540_160, 633_409),
        (Sliding(2048, 64), 62_021_632, 969_057),
        (NonOverlapping(2048), 62_021_632, 30_284),
        (NonOverlapping(2048), 40_540_160, 19_795),
    ],
)
def test_the_contests_streams_take_the_known_numbers_of_windows(windows, targets, count):
    plan = windows.plan(targets)
    prove_coverage(plan, targets)
    assert len(plan) == count
    assert set(plan.length.tolist()) == {2048}


def test_a_small_plan_by_hand():
    plan = Sliding(length=8, stride=3).plan(15)
    # Targets 0-7, then 8-10, 11-13, and the last window moved left: inputs 7-14, only target 14 is left.
    assert list(zip(plan.start, plan.length, plan.first, strict=True)) == [(0, 8, 0), (3, 8, 5), (6, 8, 5), (7, 8, 7)]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 400), st.integers(1, 90), st.data())
def test_every_target_is_scored_once_with_the_context_promised(targets, length, data):
    stride = data.draw(st.integers(1, length))
    plan = Sliding(length, stride).plan(targets)
    prove_coverage(plan, targets)
    times, context = np.zeros(targets, int), np.zeros(targets, int)
    for start, size, first in zip(plan.start, plan.length, plan.first, strict=True):
        assert start >= 0 and start + size <= targets and size == min(length, targets)
        times[start + first : start + size] += 1
        context[start + first : start + size] = np.arange(first, size) + 1
    assert (times == 1).all()
    assert (context >= np.minimum(np.arange(targets) + 1, length - stride + 1)).all()


def test_a_small_plan_of_documents_by_hand():
    plan = Documents(length=4, stride=2).plan(13, np.array([2, 9, 10, 13, 20]))
    # Before the first start; seven inputs 2-8, the last window moved left; one input; three inputs 10-12.
    assert list(zip(plan.start, plan.length, plan.first, plan.floor, strict=True)) == [
        (0, 2, 0, 0), (2, 4, 0, 2), (4, 4, 2, 2), (5, 4, 3, 2), (9, 1, 0, 9), (10, 3, 0, 10)
    ]  # fmt: skip
    prove_coverage(plan, 13)


def documents_one_by_one(windows, targets, starts):
    """Sliding windows over each document as if it were a stream of its own."""
    edges = [0, *sorted({int(start) for start in starts if 0 < start < targets}), targets]
    found = []
    for floor, end in pairwise(edges):
        one = Sliding(windows.length, windows.stride).plan(end - floor)
        found += [(at + floor, size, first, floor) for at, size, first in zip(one.start, one.length, one.first, strict=True)]
    return found


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 60), st.data())
def test_documents_are_planned_as_if_each_were_a_stream(targets, length, data):
    windows = Documents(length, data.draw(st.integers(1, length)))
    starts = np.array(sorted(data.draw(st.sets(st.integers(0, targets + 5), max_size=30))), np.int64)
    plan = windows.plan(targets, starts)
    prove_coverage(plan, targets)
    assert list(zip(plan.start, plan.length, plan.first, plan.floor, strict=True)) == documents_one_by_one(
        windows, targets, starts
    )


@pytest.mark.parametrize("starts", [None, [], [0], [90], [0, 80]])
def test_a_stream_without_starts_inside_is_one_document(starts):
    plan, sliding = Documents(16, 3).plan(80, starts), Sliding(16, 3).plan(80)
    for name in ("start", "length", "first"):
        assert np.array_equal(getattr(plan, name), getattr(sliding, name))
    assert plan.floor.dtype == np.int64 and not plan.floor.any()


def test_fifty_thousand_documents_are_planned_at_once():
    lengths = np.random.default_rng(0).integers(20, 1580, 50_000)
    lengths[::100] *= 10
    starts = np.cumsum(lengths) - lengths
    begin = time.perf_counter()
    plan = Documents().plan(int(lengths.sum()), starts)
    prove_coverage(plan, int(lengths.sum()))
    assert time.perf_counter() - begin < 2
    assert set(plan.floor.tolist()) == set(starts.tolist())


@pytest.mark.parametrize(
    "plan, fault",
    [
        (plan_of((0, 4, 0), (2, 4, 1)), "scores again"),
        (plan_of((0, 4, 0), (2, 4, 3)), "leaves out"),
        (plan_of((0, 4, 0)), "0..3, not 0..5"),
        (plan_of((0, 4, 1), (2, 4, 2)), "1..5, not 0..5"),
        (plan_of((0, 4, 0), (2, 5, 2)), "0..6, not 0..5"),
        (plan_of((0, 4, 0), (4, 0, 0), (2, 4, 2)), "window 1 is empty"),
        (plan_of((-1, 5, 1), (2, 4, 2)), "outside of the stream"),
        (plan_of((0, 6, 0), (0, 6, 0)), "scores again"),
        (WindowPlan(*np.zeros((3, 0), int)), "nothing"),
        (plan_of((0, 4, 0, 0), (2, 4, 2, 4)), "window 1 reads from token 2, its document starts at 4"),
    ],
)
def test_overlaps_gaps_and_empty_windows_are_caught(plan, fault):
    with pytest.raises(ValueError, match=fault):
        prove_coverage(plan, 6)


@pytest.mark.parametrize("length, stride", [(8, 9), (8, 0), (8, -1), (0, 0)])
def test_an_impossible_stride_is_a_problem_when_the_node_is_made(length, stride):
    with pytest.raises(Problem, match=f"not {stride}"):
        Sliding(length, stride)
    with pytest.raises(Problem, match=rf"Documents.stride takes 1 to length \({length}\), not {stride}"):
        Documents(length, stride)


def test_other_impossible_numbers_are_problems():
    for make in (
        lambda: NonOverlapping(0),
        lambda: Evaluation(Sliding(), multiple_of=0),
        lambda: Evaluation(Sliding(), batch_windows=0),
        lambda: Sliding().plan(0),
        lambda: NonOverlapping().plan(-1),
        lambda: Documents().plan(0, []),
    ):
        with pytest.raises(Problem):
            make()


def test_the_multiple_drops_the_contests_tail():
    contest = Evaluation(NonOverlapping(2048), multiple_of=2048)
    assert contest.scored_targets(62_021_846) == 62_021_632
    assert contest.scored_targets(2049) == 2048
    assert Evaluation(NonOverlapping()).scored_targets(62_021_846) == 62_021_845
    with pytest.raises(Problem, match="set multiple_of to 1"):
        contest.scored_targets(2048)


def test_an_evaluation_reads_back_from_its_repr():
    for windows in (Sliding(128, 16), Documents(128, 16)):
        evaluation = Evaluation(windows, multiple_of=128, batch_windows=4)
        assert parse_node(repr(evaluation)) == evaluation
