"""Batches of every kind score what the plan says, show no window more than it may see, and have few shapes."""

import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.table import BASE, last, packed_logits, randomise
from fairway.model.positions import Rotary
from fairway.model.stream import SmearGate
from fairway.score.batches import Cut
from fairway.score.packed import pack_windows
from fairway.score.windows import DocumentPlan, Documents, NonOverlapping, Sliding, WindowPlan


def stream_of(targets):
    """Distinct tokens that are not zero, so that what a batch shows can be read off."""
    return torch.arange(1, targets + 2, dtype=torch.int32)


def plan_of(*windows):
    return WindowPlan(*np.array(windows, dtype=np.int64).T)


def windows_shown(batch):
    """The ids of each window that a batch shows a model, spare ones too."""
    if batch.bounds is None:
        return batch.ids_BT.tolist()
    cuts = [*torch.nonzero(batch.bounds.position_BT.flatten() == 0).flatten().tolist(), batch.ids_BT.numel()]
    return [batch.ids_BT.flatten().tolist()[low:high] for low, high in pairwise(cuts)]


def check_batch(plan, cut, batch):
    """The batch shows exactly the windows of its cut, scores exactly their targets, each at its place."""
    rows, length, slots = cut.shape
    assert batch.ids_BT.shape == (rows, length) and batch.ids_BT.dtype == batch.take_N.dtype == torch.int64
    assert len(batch.take_N) == len(batch.target_N) == len(batch.live_N) == rows * slots
    expected = [list(range(plan.start[w] + 1, plan.start[w] + plan.length[w] + 1)) for w in cut.windows]
    shown = [ids[: ids.index(0)] if 0 in ids else ids for ids in windows_shown(batch)]
    if batch.bounds is None:  # spare rows repeat the last
        assert shown == expected + expected[-1:] * (rows - len(expected))
    else:
        assert sorted(ids for ids in shown if ids) == sorted(expected)
    targets = np.concatenate([np.arange(plan.begin[w], plan.end[w]) for w in cut.windows])
    assert sorted(batch.target_N[batch.live_N].tolist()) == sorted(targets.tolist())
    # A slot reads the input before its target; spare ones too, so that they cost nothing but time.
    assert torch.equal(batch.ids_BT.flatten()[batch.take_N], batch.target_N + 1)
    # and that input stands where its window has it.
    place = dict(zip(batch.target_N[batch.live_N].tolist(), batch.take_N[batch.live_N].tolist(), strict=True))
    for w in cut.windows:
        spots = [place[target] for target in range(plan.begin[w], plan.end[w])]
        low = spots[0] - plan.first[w]
        assert spots == list(range(spots[0], spots[0] + len(spots))) and low // length == spots[-1] // length
        assert batch.ids_BT.flatten()[low : spots[-1] + 1].tolist() == list(range(plan.start[w] + 1, plan.end[w] + 1))


def check_bounds(batch, longest):
    """Bounds cover all positions with windows, none across rows, in both of their forms."""
    bounds, (rows, length) = batch.bounds, batch.ids_BT.shape
    assert bounds.offsets_W.dtype == torch.int32 and bounds.longest == longest
    offsets = bounds.offsets_W.tolist()
    assert offsets[0] == 0 and offsets[-1] == rows * length and offsets == sorted(offsets)
    cuts = sorted(set(offsets))
    assert {row * length for row in range(rows + 1)} <= set(cuts)
    expected = torch.cat([torch.arange(high - low) for low, high in pairwise(cuts)])
    assert torch.equal(bounds.position_BT.flatten(), expected) and int(expected.max()) < longest


def plans():
    """Plans of all kinds over up to 120 targets."""
    return st.one_of(
        st.builds(lambda n, length, stride: (n, Sliding(length, min(stride, length)).plan(n)), *[st.integers(1, 120)] * 3),
        st.builds(
            lambda n, length, stride, starts: (n, Documents(length, min(stride, length)).plan(n, sorted(starts))),
            *[st.integers(1, 120), st.integers(1, 40), st.integers(1, 40), st.sets(st.integers(0, 120), max_size=25)],
        ),
    )


@settings(max_examples=150, deadline=None)
@given(plans(), st.integers(1, 6), st.data())
def test_cuts_score_the_targets_of_their_windows_once_in_two_shapes_at_most(planned, size, data):
    targets, plan = planned
    collator = plan.collator(stream_of(targets))
    low = data.draw(st.integers(0, len(plan) - 1))
    windows = np.arange(low, data.draw(st.integers(low + 1, len(plan))))
    cuts = collator.cuts(windows, size)
    assert sorted(np.concatenate([cut.windows for cut in cuts]).tolist()) == windows.tolist()
    assert len({cut.shape for cut in cuts}) <= 2 and all(cut.shape[:2] == (size, plan.length.max()) for cut in cuts)
    offsets = set()
    for cut in cuts:
        batch = collator.build(cut)
        check_batch(plan, cut, batch)
        if batch.bounds is not None:
            check_bounds(batch, collator.length)
            offsets.add(len(batch.bounds.offsets_W))
    assert len(offsets) <= 1 and (plan.floor is not None or not offsets)


def test_what_a_row_has_to_spare_shows_no_later_token():
    collator = plan_of((3, 5, 0), (9, 4, 2)).collator(stream_of(30))
    batch = collator.rows(np.array([0, 1]), 3, 8, 6)
    assert batch.ids_BT.tolist() == [
        [4, 5, 6, 7, 8, 0, 0, 0],
        [10, 11, 12, 13, 0, 0, 0, 0],
        [10, 11, 12, 13, 0, 0, 0, 0],
    ]
    assert batch.live_N.view(3, 6).int().tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0], [0] * 6]
    assert batch.take_N.tolist()[:6] == [0, 1, 2, 3, 4, 4] and batch.take_N.tolist()[6:12] == [10, 11, 11, 11, 11, 11]
    assert batch.target_N.tolist()[:6] == [3, 4, 5, 6, 7, 7]


def test_a_packed_batch_by_hand():
    plan = DocumentPlan(*np.array([(0, 3, 0), (3, 2, 0), (4, 3, 2)]).T, np.array([0, 3, 4]))
    batch = plan.collator(stream_of(12)).packed([np.array([0, 1]), np.array([2])], 3, 6, 2, 7)
    assert batch.ids_BT.tolist() == [[1, 2, 3, 4, 5, 0], [5, 6, 7, 0, 0, 0], [0] * 6]
    assert batch.bounds.position_BT.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5]]
    assert batch.bounds.offsets_W.tolist() == [0, 3, 5, 6, 9, 12, 18, 18] and batch.bounds.longest == 6
    assert batch.take_N.tolist() == [0, 1, 2, 3, 4, 8] and batch.target_N.tolist() == [0, 1, 2, 3, 4, 6]
    assert batch.live_N.all()
    spare = plan.collator(stream_of(12)).packed([np.array([2])], 1, 6, 3, 2)
    assert spare.take_N.tolist() == [2, 2, 2] and spare.live_N.tolist() == [True, False, False]


def test_what_does_not_fit_is_an_error_not_a_loss():
    plan = DocumentPlan(*np.array([(0, 6, 0), (2, 6, 4), (4, 6, 4)]).T, np.zeros(3, np.int64))
    collator = plan.collator(stream_of(10))
    for windows, shape in (((0, 1), (1, 6, 6)), ((0,), (1, 5, 6)), ((0,), (1, 6, 5)), ((0, 1), (2, 6, 2))):
        with pytest.raises(ValueError, match="do not fit"):
            collator.rows(np.array(windows), *shape)
    collator.rows(np.array([0, 1]), 2, 6, 6)
    both = [np.array([0, 1])]
    for layout, shape in (
        (both, (1, 11, 12, 9)),
        (both, (1, 12, 7, 9)),
        (both, (1, 13, 13, 2)),
        (both * 2, (1, 12, 20, 9)),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            collator.packed(layout, *shape)
    collator.packed(both, 1, 12, 8, 2)
    with pytest.raises(ValueError, match="window 0 of 6 positions does not fit a row of 5"):
        pack_windows(plan, np.arange(3), 2, 5, 9)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(1, 5), st.integers(1, 7))
def test_packing_loses_nothing_fills_rows_and_is_the_same_again(lengths, rows, most):
    plan = WindowPlan(np.zeros(len(lengths), np.int64), np.array(lengths), np.zeros(len(lengths), np.int64))
    windows = np.arange(len(lengths))[::-1]
    layouts = pack_windows(plan, windows, rows, 20, most)
    packed = [row for layout in layouts for row in layout]
    assert sorted(np.concatenate(packed).tolist()) == list(range(len(lengths)))
    used = [sum(lengths[w] for w in row) for row in packed]
    assert max(used) <= 20 and max(map(len, packed)) <= most
    assert [len(layout) for layout in layouts[:-1]] == [rows] * (len(layouts) - 1) and len(layouts[-1]) <= rows
    # No window could have gone into an earlier row that was open to it when it came: a new row began with what fits none.
    for number, row in enumerate(packed):
        assert all(used[before] + lengths[row[0]] > 20 or len(packed[before]) == most for before in range(number))
    again = pack_windows(plan, windows, rows, 20, most)
    assert [[row.tolist() for row in layout] for layout in again] == [[row.tolist() for row in layout] for layout in layouts]


def test_the_best_fit_wins():
    plan = plan_of(*((0, length, 0) for length in (12, 16, 4, 4)))
    ((one, two),) = pack_windows(plan, np.arange(4), 2, 20, 9)
    assert one.tolist() == [1, 2] and two.tolist() == [0, 3]


def test_a_sliding_stream_has_two_shapes_and_documents_a_packed_and_a_narrow_one():
    sliding = Sliding(32, 4).plan(1003)
    cuts = sliding.collator(stream_of(1003)).cuts(np.arange(len(sliding)), 8)
    assert [cut.shape for cut in cuts] == [(8, 32, 32)] + [(8, 32, 4)] * 31 and cuts[0].windows.tolist() == [0]
    assert cuts[-1].windows[-1] == len(sliding) - 1 and (sliding.end - sliding.begin)[-1] == 3
    for targets in (40, 1003):
        plain = NonOverlapping(32).plan(targets)
        assert {cut.shape for cut in plain.collator(stream_of(1003)).cuts(np.arange(len(plain)), 8)} == {(8, 32, 32)}
    documents = Documents(32, 4).plan(1003, [0, 10, 40, 500, 515, 517])
    cuts = documents.collator(stream_of(1003)).cuts(np.arange(len(documents)), 8)
    # The first windows of all documents share rows; the last one of a long document, with few targets, is no shape more.
    assert [(cut.shape, cut.layout is None) for cut in cuts] == [((8, 32, 32), False)] + [((8, 32, 4), True)] * 28
    assert sorted(cuts[0].windows.tolist()) == np.flatnonzero(documents.first == 0).tolist()


def test_a_given_length_and_an_empty_plan_keep_the_shapes():
    short = NonOverlapping(16).plan(9)
    (cut,) = short.collator(stream_of(9), length=16).cuts(np.arange(1), 4)
    assert cut.shape == (4, 16, 9)
    empty = WindowPlan(*np.zeros((3, 0), np.int64))
    assert empty.collator(stream_of(9)).cuts(np.arange(0), 4) == []
    plan = Documents(16, 4).plan(9, [0, 4])
    (cut,) = plan.collator(stream_of(9), length=16).cuts(np.arange(2), 4)
    assert cut.shape == (4, 16, 16) and plan.collator(stream_of(9), length=16).build(cut).ids_BT.shape == (4, 16)
    assert plan.collator(stream_of(9), length=16).build(Cut(np.array([1]), (2, 8, 5))).ids_BT.shape == (2, 8)


def test_only_windows_that_score_no_more_than_usual_are_narrow():
    windows = np.array([(0, 8, 0), (2, 8, 6), (4, 8, 6), (6, 8, 6), (11, 8, 3)]).T
    plan = DocumentPlan(*windows, np.zeros(5, np.int64))
    packed, narrow = plan.collator(stream_of(30)).cuts(np.arange(5), 4)
    assert sorted(packed.windows.tolist()) == [0, 4] and packed.shape == (4, 8, 8)
    assert narrow.windows.tolist() == [1, 2, 3] and narrow.shape == (4, 8, 2) and narrow.layout is None


def test_there_is_room_for_as_many_windows_and_spare_ones_as_rows_may_hold():
    plan = Documents(16, 4).plan(40, [*range(24)])
    collator = plan.collator(stream_of(40))
    one, *others = collator.cuts(np.arange(len(plan)), 1)
    assert one.windows.tolist() == [23] and [len(cut.windows) for cut in others if cut.layout] == [4] * 5 + [3]
    assert {len(collator.build(cut).bounds.offsets_W) for cut in others if cut.layout} == {6}


def test_fifty_thousand_windows_are_packed_at_once_and_tightly():
    lengths = np.minimum(np.exp(np.random.default_rng(0).normal(6, 1, 50_000)).astype(np.int64) + 20, 2048)
    plan = WindowPlan(np.zeros_like(lengths), lengths, np.zeros_like(lengths))
    begin = time.perf_counter()
    layouts = pack_windows(plan, np.arange(50_000), 32, 2048, 32)
    assert time.perf_counter() - begin < 3
    assert lengths.sum() > 0.98 * 2048 * 32 * len(layouts)


@pytest.mark.parametrize("windows", [Sliding(16, 3), NonOverlapping(16), Documents(16, 3), Documents(16, 16)])
def test_a_model_gives_each_slot_what_the_window_gets_alone(windows):
    model = last("positions", last("stream", BASE, SmearGate(stop_at_bos=False)), Rotary())
    module, targets = randomise(model.build(0)), 150
    stream = torch.randint(model.vocab, (targets + 1,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    plan = windows.plan(targets, np.array([0, 5, 6, 30, 47, 120]))
    collator, z_NV, alone_NV = plan.collator(stream), torch.zeros(targets, model.vocab), torch.zeros(targets, model.vocab)
    with torch.no_grad():
        for cut in collator.cuts(np.arange(len(plan)), 3):
            batch = collator.build(cut)
            z_BTV = module(batch.ids_BT) if batch.bounds is None else packed_logits(module, batch.ids_BT, batch.bounds)
            z_NV[batch.target_N[batch.live_N]] = z_BTV.flatten(0, 1)[batch.take_N][batch.live_N]
        for start, length, first in zip(plan.start, plan.length, plan.first, strict=True):
            ids_BT = stream[None, start : start + length].long()
            alone_NV[start + first : start + length] = module(ids_BT)[0, first:]
    torch.testing.assert_close(z_NV, alone_NV, rtol=1e-4, atol=1e-4)
