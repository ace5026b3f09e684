import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.optim.schedule import Budget, DecaySchedule, Moment, WarmDownFraction, WarmDownSteps
from fairway.problem import Problem


@pytest.mark.parametrize(
    "step, elapsed, expected",
    [
        (0, 0.0, 1.0),
        # A pace of 0.08 s: W = 240 s; R = 300 s is more, 200 s and 60 s are less.
        (3750, 300.0, 1.0),
        (5000, 400.0, 200 / 240),
        (6750, 540.0, 60 / 240),
        (7500, 600.0, 0.0),
        (7510, 600.8, 0.0),
        # The pace so far counts: at 0.2 s a step the last 3000 steps are the whole run.
        (1500, 300.0, 300 / 600),
    ],
)
def test_162_s_warm_down_follows_the_clock(step, elapsed, expected):
    for steps in (20_000, 0):
        assert WarmDownSteps(3000).multiplier(step, elapsed, Budget(steps, 600.0)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "step, expected", [(0, 1.0), (17_000, 1.0), (18_500, 0.5), (19_999, 1 / 3000), (20_000, 0.0), (20_001, 0.0)]
)
def test_162_s_warm_down_counts_steps_without_a_clock(step, expected):
    assert WarmDownSteps(3000).multiplier(step, 1e9, Budget(20_000, 0.0)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("step, expected", [(0, 1.0), (75, 0.75), (299, 1 / 300), (300, 0.0)])
def test_a_run_shorter_than_the_warm_down_falls_from_one_all_along(step, expected):
    assert WarmDownSteps(3000).multiplier(step, 0.0, Budget(300, 0.0)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "step, elapsed, expected",
    [
        # A pace of 0.2 s: 4500 steps would take 900 s, of which there are 591.
        (1, 0.2, 590.8 / 591),
        (1000, 200.0, 391 / 591),
        # A pace of 0.106 s: D = 477 s, r = 491 s and 291 s.
        (943, 99.958, 1.0),
        (2830, 299.98, 291.02 / 477),
        (5400, 572.4, 0.05),
        (5600, 593.6, 0.05),
    ],
)
def test_1205_s_warm_down_is_the_shorter_of_steps_and_run_without_the_reserve_and_stops_at_its_floor(
    step, elapsed, expected
):
    """r = max(591 - e, 0), D = min(4500 e / n, 591): 1 where r > D, else max(r / D, 0.05)."""
    got = WarmDownSteps(4500, floor=0.05).multiplier(step, elapsed, Budget(20_000, 600.0, reserve=9.0))
    assert got == pytest.approx(expected, rel=1e-9)


def test_the_floor_holds_without_a_clock_too():
    assert [WarmDownSteps(10, 0.25).multiplier(step, 0.0, Budget(20, 0.0)) for step in (10, 15, 17, 18, 20, 21)] == [
        1.0, 0.5, 0.3, 0.25, 0.25, 0.25,
    ]  # fmt: skip


@pytest.mark.parametrize("over, expected", [(0.1, 1.0), (0.15, 1.0), (0.575, 0.5), (0.9, 0.1 / 0.85), (0.95, 0.1), (1, 0.1)])
def test_1787_s_warm_down_takes_0_85_of_the_run_and_stops_at_a_tenth(over, expected):
    """m(f) = 1 for f < .15, then max((1 - f) / .85, .10)."""
    schedule = WarmDownFraction(0.85, floor=0.1)
    assert schedule.multiplier(0, over * 588, Budget(20_000, 600.0, reserve=12.0)) == pytest.approx(expected)
    assert schedule.multiplier(round(over * 1000), 0.0, Budget(1000, 0.0)) == pytest.approx(expected)


@pytest.mark.parametrize("kind", [WarmDownSteps, WarmDownFraction])
@pytest.mark.parametrize("floor", [-0.1, 1.0, float("nan")])
def test_a_floor_that_is_no_fraction_is_named(kind, floor):
    with pytest.raises(Problem, match=rf"{kind.__name__}\.floor is {floor}; a factor on rates is from 0, under 1"):
        kind(floor=floor)


@pytest.mark.parametrize("progress, expected", [(0.0, 1.0), (0.333, 1.0), (0.6665, 0.5), (1.0, 0.0)])
def test_the_fractional_warm_down_reaches_zero_at_the_end(progress, expected):
    for budget, step, elapsed in (
        (Budget(10_000, 0.0), round(progress * 10_000), 5.0),
        (Budget(10**9, 600.0), 7, progress * 600),
    ):
        assert WarmDownFraction(0.667).multiplier(step, elapsed, budget) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    "budget, step, elapsed, expected",
    [
        (Budget(100, 0.0), 25, 1e6, 0.25),
        (Budget(100, 0.0), 130, 0.0, 1.0),
        (Budget(100, 60.0), 10, 30.0, 0.5),
        # Whatever is nearer to its end decides.
        (Budget(100, 60.0), 90, 30.0, 0.9),
        (Budget(100, 60.0), 10, 61.0, 1.0),
        # 0 steps is no limit of steps.
        (Budget(0, 60.0), 10**9, 30.0, 0.5),
        (Budget(0, 60.0), 0, 61.0, 1.0),
    ],
)
def test_progress_is_that_of_the_nearer_end(budget, step, elapsed, expected):
    assert budget.progress(step, elapsed) == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.floats(0, 700),
    st.sampled_from([Budget(5000, 0.0), Budget(20_000, 600.0), Budget(1, 0.5), Budget(0, 600.0)]),
    st.sampled_from([WarmDownSteps(3000), WarmDownSteps(1), WarmDownFraction(0.667), WarmDownFraction(1.0, 0.1)]),
)
def test_multipliers_and_progress_stay_between_zero_and_one_and_never_turn_back(step, elapsed, budget, schedule):
    assert 0 <= budget.progress(step, elapsed) <= budget.progress(step + 1, elapsed + 0.1) <= 1
    assert 0 <= schedule.multiplier(step, elapsed, budget) <= 1
    if not budget.seconds:
        assert schedule.multiplier(step + 1, elapsed, budget) <= schedule.multiplier(step, elapsed, budget)


@pytest.mark.parametrize(
    "steps, seconds", [(0, 0.0), (-1, 0.0), (-1, 600.0), (10, -1.0), (0, float("inf")), (10, float("nan"))]
)
def test_a_budget_that_lets_nothing_run_is_named(steps, seconds):
    with pytest.raises(Problem, match=rf"a budget of {steps} steps\b.* {seconds:g} s"):
        Budget(steps, seconds)


# --- decay

TAPER = ((0.0, 1.0), (0.7, 1.0), (1.0, 0.5))


@pytest.mark.parametrize(
    "points, progress, expected",
    [
        (((0.0, 1.0), (1.0, 1.0)), 0.37, 1.0),
        (TAPER, 0.0, 1.0),
        (TAPER, 0.7, 1.0),
        (TAPER, 0.85, 0.75),
        (TAPER, 1.0, 0.5),
        # Down to 0.65, then up: PR #1512.
        (((0, 1), (0.6, 0.65), (1, 1.5)), 0.3, 0.825),
        (((0, 1), (0.6, 0.65), (1, 1.5)), 0.8, 1.075),
    ],
)
def test_the_decay_s_factor_goes_through_its_points_by_straight_lines(points, progress, expected):
    moment = Moment(3, progress, 0.2)
    assert DecaySchedule(points).factor(moment) == pytest.approx(0.2 * expected)
    assert DecaySchedule(points, follows_rate=False).factor(moment) == pytest.approx(expected)
    assert DecaySchedule(points).at(progress) == pytest.approx(expected)


@pytest.mark.parametrize(
    "points, says",
    [
        ((), "must go up from 0.0 to 1.0"),
        (((0.0, 1.0),), "must go up"),
        (((0.1, 1.0), (1.0, 1.0)), "must go up"),
        (((0.0, 1.0), (0.9, 1.0)), "must go up"),
        (((0.0, 1.0), (0.5, 1.0), (0.5, 0.5), (1.0, 1.0)), "must go up"),
        (((0.0, 1.0), (float("nan"), 1.0), (1.0, 1.0)), "must go up"),
        (((0.0, 1.0), (1.0, -0.1)), "must be 0 or more"),
        (((0.0, float("nan")), (1.0, 0.1)), "must be 0 or more"),
    ],
)
def test_points_that_are_no_schedule_are_named(points, says):
    with pytest.raises(Problem, match=rf"DecaySchedule\.points is .*{says}"):
        DecaySchedule(points)
