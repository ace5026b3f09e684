import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fairway.optim.average import SWA
from fairway.optim.schedule import Budget, Moment, WarmDownFraction, WarmDownSteps
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


def test_a_run_shorter_than_the_warm_down_starts_below_one():
    assert WarmDownSteps(3000).multiplier(0, 0.0, Budget(300, 0.0)) == pytest.approx(0.1)


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
    st.sampled_from([WarmDownSteps(3000), WarmDownSteps(1), WarmDownFraction(0.667), WarmDownFraction(1.0)]),
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


# --- averages


def averaged(node, multipliers):
    """The node's state after steps with these factors, the weights after each step, and the model."""
    model = nn.Linear(3, 2)
    state, weights = node.build(model), []
    for step, multiplier in enumerate(multipliers):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)))
        weights.append(model.weight.detach().double())
        state.after_step(Moment(step, step / len(multipliers), multiplier))
    return state, weights, model


def test_swa_is_the_float64_mean_of_the_snapshots_it_should_take():
    # Below 0.5, after every third step: 1-based steps 6, 9 and 12 (3 is above, 5 and 7 are not third ones).
    multipliers = [1.0, 1.0, 0.6, 0.5, 0.49, 0.4, 0.4, 0.3, 0.3, 0.2, 0.1, 0.0]
    state, weights, _ = averaged(SWA(below=0.5, every=3), multipliers)
    assert state.count == 3
    assert state.summary() == "SWA of 3 snapshots"
    mean = sum(weights[step - 1] for step in (6, 9, 12)) / 3
    torch.testing.assert_close(state.tensors()["weight"].double(), mean, rtol=1e-6, atol=1e-7)


def test_a_factor_of_exactly_the_bound_is_not_below_it():
    assert averaged(SWA(below=0.5, every=1), [0.5, 0.4999])[0].count == 1


@pytest.mark.parametrize("count", [0, 1])
def test_under_two_snapshots_the_last_weights_stay(count):
    state, weights, _ = averaged(SWA(below=0.5, every=1), [0.0] * count + [1.0, 1.0])
    assert state.summary() == f"SWA took {count} snapshots, under 2: the last step's weights are used"
    assert torch.equal(state.tensors()["weight"].double(), weights[-1])


def test_snapshots_are_copies():
    state, _, model = averaged(SWA(below=0.5, every=1), [0.0])
    with torch.no_grad():
        model.weight.add_(1.0)
    assert not torch.equal(state.sums["weight"], model.weight)
