"""Averages against loops in float64 over the weights that they saw."""

import io

import pytest
import torch
from torch import nn

from fairway.optim.average import EMA, SWA, LastWeights
from fairway.optim.schedule import Moment
from fairway.problem import Problem

NAMES = ("weight", "bias")


def put(model, step):
    """Weights of a step of their own; returns them in float64."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)))
    return {name: parameter.detach().double() for name, parameter in model.named_parameters()}


def averaged(node, multipliers):
    """The node's state after steps with these factors, the weights after each step, and the model."""
    model = nn.Linear(3, 2)
    put(model, 999)  # initial weights, that no average may hold
    state, weights = node.build(model), []
    for step, multiplier in enumerate(multipliers):
        weights.append(put(model, step))
        state.after_step(Moment(step, step / len(multipliers), multiplier))
    return state, weights, model


def same(found, expected):
    assert list(found) == list(NAMES)
    for name in NAMES:
        assert found[name].dtype == torch.float32 and not found[name].requires_grad
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-5, atol=1e-6)


def mean(weights):
    return {name: sum(one[name] for one in weights) / len(weights) for name in NAMES}


def emas(weights, decay):
    """After each step the mean of all weights so far, those k steps back counted decay^k times."""
    found = []
    for last in range(len(weights)):
        shares = [decay ** (last - step) for step in range(last + 1)]
        found.append({name: sum(s * w[name] for s, w in zip(shares, weights, strict=False)) / sum(shares) for name in NAMES})
    return found


# --- SWA


def test_swa_is_the_float64_mean_of_the_snapshots_it_should_take():
    # Below 0.5, after every third step: 1-based steps 6, 9 and 12 (3 is above, 5 and 7 are not third ones).
    multipliers = [1.0, 1.0, 0.6, 0.5, 0.49, 0.4, 0.4, 0.3, 0.3, 0.2, 0.1, 0.0]
    state, weights, _ = averaged(SWA(below=0.5, every=3), multipliers)
    assert state.count == 3
    assert state.summary() == "SWA of 3 snapshots"
    same(state.tensors(), mean([weights[step - 1] for step in (6, 9, 12)]))


def test_a_factor_of_exactly_the_bound_is_not_below_it():
    assert averaged(SWA(below=0.5, every=1), [0.5, 0.4999])[0].count == 1


@pytest.mark.parametrize("count", [0, 1])
def test_under_two_snapshots_the_last_weights_stay(count):
    state, weights, _ = averaged(SWA(below=0.5, every=1), [0.0] * count + [1.0, 1.0])
    assert state.summary() == f"SWA took {count} snapshots, under 2: the last step's weights are used"
    assert torch.equal(state.tensors()["weight"].double(), weights[-1]["weight"])


@pytest.mark.parametrize("node", [SWA(below=0.5, every=1), SWA(0.5, 1, EMA(0.9))], ids=repr)
def test_snapshots_are_copies(node):
    state, _, model = averaged(node, [0.0])
    before = state.sums["weight"].clone()
    put(model, 7)
    state.inner.after_step(Moment(1, 0.5, 0.0))
    assert torch.equal(state.sums["weight"], before)


def test_864_s_swa_is_the_mean_of_the_emas_of_every_step_at_its_snapshots():
    multipliers = [1.0, 0.9, 0.3, 0.19, 0.15, 0.1, 0.05, 0.0]
    state, weights, _ = averaged(SWA(below=0.2, every=2, of=EMA(0.8)), multipliers)
    assert state.summary() == "SWA of 3 snapshots of EMA weights (decay 0.8, 8 steps)"
    every = emas(weights, 0.8)
    same(state.tensors(), mean([every[step - 1] for step in (4, 6, 8)]))


@pytest.mark.parametrize("count", [0, 1])
def test_under_two_snapshots_of_an_ema_the_ema_is_used(count):
    state, weights, _ = averaged(SWA(below=0.2, every=1, of=EMA(0.8)), [0.0] * count + [1.0, 1.0])
    assert state.summary() == f"SWA took {count} snapshots, under 2: EMA weights (decay 0.8, {count + 2} steps) are used"
    same(state.tensors(), emas(weights, 0.8)[-1])


# --- EMA


@pytest.mark.parametrize("decay", [0.997, 0.5, 0.0])
def test_ema_is_the_weighted_mean_of_the_weights_after_every_step(decay):
    for steps in (1, 2, 40):
        state, weights, _ = averaged(EMA(decay), [1.0] * steps)
        same(state.tensors(), emas(weights, decay)[-1])
        assert state.summary() == f"EMA weights (decay {decay:g}, {steps} steps)"


def test_after_4700_steps_ema_is_the_public_one_to_a_millionth_of_the_initial_weights():
    decay, public, ours = 0.997, 1.0, 5.0  # the initial weight is 1, all later ones 0 but the last few
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    state = EMA().build(model)
    for step in range(4700):
        weight = float(step > 4690)
        with torch.no_grad():
            model.weight.fill_(weight)
        state.after_step(Moment(step, 0.0, 1.0))
        public = decay * public + (1 - decay) * weight
    ours = state.tensors()["weight"].item()
    assert 0 < public - ours < 1e-6 and ours == pytest.approx(public, rel=1e-4)


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_an_ema_that_takes_nothing_in_is_refused(decay):
    with pytest.raises(Problem, match=rf"EMA\.decay is {decay}; take a fraction"):
        EMA(decay)


# --- no average, and what all share


def test_last_weights_are_copies_of_the_weights_as_they_are():
    state, weights, model = averaged(LastWeights(), [1.0, 0.5])
    found = state.tensors()
    put(model, 77)
    same(found, weights[-1])
    assert state.summary() == "the last step's weights"


def test_copies_count_the_floats_that_a_state_holds_for_each_parameter():
    nodes = LastWeights(), EMA(), SWA(), SWA(of=EMA()), SWA(of=SWA(of=EMA()))
    assert [node.copies for node in nodes] == [0, 1, 1, 2, 3]


@pytest.mark.parametrize("node", [EMA(0.9), SWA(0.5, 2), SWA(0.5, 2, EMA(0.9)), LastWeights()], ids=repr)
@pytest.mark.parametrize("stop", [0, 1, 5])
def test_a_state_goes_on_from_a_file_to_the_bit(node, stop):
    whole, _, _ = averaged(node, [0.4] * 9)
    first, _, _ = averaged(node, [0.4] * stop)
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    model = nn.Linear(3, 2)
    second = node.build(model)
    second.restore(saved)
    for step in range(stop, 9):
        put(model, step)
        second.after_step(Moment(step, step / 9, 0.4))
    assert second.summary() == whole.summary()
    assert all(torch.equal(second.tensors()[name], whole.tensors()[name]) for name in NAMES)
