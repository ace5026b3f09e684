"""Stub subjects of every kind of leak, honest noise, and the project's own scorer as a black box."""

import numpy as np
import pytest
import torch

from conformance.evaluators_table import ADAPTERS, LENGTH, MIXERS, UNNORMALISED, WINDOWS
from conformance.table import BASE, BOS, last, randomise
from conformance.test_evaluators_conform import VOCAB, passing, text
from fairway.model.inputs import BigramHash
from fairway.model.stream import GatedSmear, HashEmbedding, SmearGate
from fairway.problem import Problem
from fairway.referee.probes import (
    flipped_text,
    judge_bos,
    judge_coverage,
    judge_flip,
    judge_noise,
    judge_repeat,
    judge_truncation,
)
from fairway.referee.rules import read_policy
from fairway.referee.verdict import FAIL, NOT_TESTED, PASS, Findings
from fairway.score.schedule import scoring_rank

TEXT = text(0, 400)


def findings(policy="as-practised"):
    return Findings(read_policy(policy))


def causal(tokens):
    """Nats that depend on every token so far, the target's own among them."""
    return 1 + np.cumsum(tokens.astype(np.int64) * np.arange(3, 3 + len(tokens)))[1:] % 97 / 97


def verdicts(found, rule):
    return [row["verdict"] for row in found.rows if row["rule"] == rule]


def flip(subject, tokens=TEXT, noise_of=None):
    found = findings()
    judge_flip(found, subject, judge_repeat(found, subject, tokens, noise_of))
    return found


def next_token(tokens):
    nats_N = causal(tokens)
    nats_N[:-1] -= 0.01 * (tokens[2:] % 2)
    return nats_N


def rest_of_the_window(tokens):
    """The nats of 64 targets are fitted to their own tokens, as test-time training on the scored window does."""
    nats_N = causal(tokens)
    for low in range(0, len(nats_N), 64):
        nats_N[low : low + 64] += 1e-3 * tokens[low + 1 : low + 65].mean()
    return nats_N


def whole_text(tokens):
    return causal(tokens) * (1 + 1e-5 * tokens.mean())


def a_little_of_the_whole_text(tokens):
    """Less than a target's last digit, but of all of them in one direction."""
    return causal(tokens) + 1e-7 * tokens.mean()


def a_single_target(tokens):
    """More than its last digit; in the sum of all of them it would not show."""
    nats_N = causal(tokens)
    nats_N[140] += 1.5e-6 * tokens[200]
    return nats_N


def not_a_number(tokens):
    return np.where(tokens[-2] % 2, np.nan, 1.0) * causal(tokens)


@pytest.mark.parametrize(
    "subject",
    [next_token, rest_of_the_window, whole_text, a_little_of_the_whole_text, a_single_target, not_a_number],
    ids=lambda f: f.__name__,
)
def test_a_look_ahead_fails(subject):
    found = flip(subject)
    assert verdicts(found, "C1") == [FAIL]
    assert found.rows[0]["measured"] == "inf" or found.rows[0]["measured"] > 1e-7


def test_what_only_looks_back_passes():
    assert verdicts(flip(causal), "C1") == [PASS]


class Noisy:
    """The causal toy, each run with other rounding, of each target and of all at once; `leak` nats of the whole text."""

    def __init__(self, each, together=0.0, leak=0.0):
        self.draw, self.each, self.together, self.leak = np.random.default_rng(5), each, together, leak

    def __call__(self, tokens):
        nats_N = causal(tokens) + self.leak * tokens.mean()
        return nats_N + self.draw.normal(0, self.each, len(nats_N)) + self.draw.normal(0, self.together)


@pytest.mark.parametrize("each, together", [(1e-7, 0.0), (1e-4, 0.0), (3e-3, 0.0), (1e-5, 1e-5), (0.0, 1e-6)])
def test_honest_noise_never_fails(each, together):
    for _ in range(8):
        assert FAIL not in verdicts(flip(Noisy(each, together)), "C1")


@pytest.mark.parametrize("each", [1e-6, 1e-4, 1e-3])
def test_no_leak_of_a_hundredth_of_a_nat_hides_in_noise(each):
    assert verdicts(flip(Noisy(each, leak=0.01)), "C1")[-1] == FAIL


def test_noise_that_could_hide_a_leak_is_not_tested():
    assert set(verdicts(flip(Noisy(0.05)), "C1")) == {NOT_TESTED}


def test_a_score_that_no_token_changes_is_not_tested():
    assert verdicts(flip(lambda tokens: np.ones(len(tokens) - 1)), "C1") == [NOT_TESTED]


def broken(tokens):
    raise Problem("it has stopped")


@pytest.mark.parametrize("subject", [broken, lambda tokens: np.ones(len(tokens)), lambda tokens: np.ones((2, 3))])
def test_a_subject_that_does_not_answer_is_not_tested(subject):
    found = findings()
    assert judge_repeat(found, subject, TEXT) is None
    judge_noise(found, subject, VOCAB)
    assert verdicts(found, "C1") == verdicts(found, "C2") == [NOT_TESTED]


def test_a_flip_changes_every_token_asked_for_and_no_document_start():
    changed_N = np.arange(len(TEXT) - 1) >= 100
    for alike in (False, True):
        other = flipped_text(TEXT, changed_N, np.random.default_rng(0), BOS, alike)
        same = other == TEXT
        assert same[:101].all() and (same[101:] == (TEXT[101:] == BOS)).all()
        np.testing.assert_array_equal(other == BOS, TEXT == BOS)


def of_its_length(tokens):
    return causal(tokens) + 0.1 / len(tokens)


def rounded(subject):
    return lambda tokens: subject(tokens) + 1e-6 * np.sin(np.arange(len(tokens) - 1))


def rounds_if_long(tokens):
    return (rounded(causal) if len(tokens) == len(TEXT) else causal)(tokens)


@pytest.mark.parametrize(
    "subject, noise_of, learns, verdict",
    [
        (causal, None, False, PASS),
        (of_its_length, rounded(of_its_length), False, FAIL),
        (of_its_length, None, False, NOT_TESTED),
        (of_its_length, rounded(of_its_length), True, PASS),
        (rounds_if_long, causal, False, PASS),
    ],
)
def test_a_text_that_ends_sooner(subject, noise_of, learns, verdict):
    found = findings()
    judge_truncation(found, subject, judge_repeat(found, subject, TEXT, noise_of), 16, learns)
    assert verdicts(found, "C1") == [verdict]


def test_what_the_last_window_sees_may_differ_and_nothing_before():
    def subject(tokens):
        nats_N = causal(tokens)
        nats_N[-30:] += 1
        return nats_N

    for reach, verdict in ((30, PASS), (29, FAIL)):
        found = findings()
        judge_truncation(found, subject, judge_repeat(found, subject, TEXT, subject), reach)
        assert verdicts(found, "C1") == [verdict]


def uniform(tokens):
    return np.full(len(tokens) - 1, np.log(VOCAB))


def believes_in_few(tokens):
    """All weight on the ids that occur: as good as a code can be, were it known beforehand which do."""
    kinds = len(np.setdiff1d(tokens, [BOS]))
    return np.where(tokens[1:] == BOS, 0.0, np.log(kinds))


def rewards_the_token(tokens):
    """A twentieth of a nat better than certain knowledge of which ids there are."""
    return believes_in_few(tokens) - 0.05


@pytest.mark.parametrize(
    "subject, verdict", [(uniform, PASS), (believes_in_few, PASS), (rewards_the_token, FAIL)], ids=lambda one: str(one)[:20]
)
def test_the_price_of_noise(subject, verdict):
    found = findings()
    judge_noise(found, subject, VOCAB, 1000, 4, BOS)
    assert verdicts(found, "C2") == [verdict]


def test_what_looks_ahead_and_saves_on_noise_is_no_matter_of_its_sum():
    found = findings()
    found.say("C1", False, 1.0)
    judge_noise(found, rewards_the_token, VOCAB, 1000, 4, BOS)
    assert verdicts(found, "C1") == [FAIL, FAIL] and not verdicts(found, "C2")


@pytest.mark.parametrize(
    "changes, says",
    [
        ({}, None),
        ({"targets": 11}, "nats of 10 targets"),
        ({"targets": 13, "dropped": 3, "tail": 3}, None),
        ({"targets": 13, "dropped": 3, "tail": 2}, "left out"),
        ({"times_N": np.array([1, 1, 2, *[1] * 7])}, "target 2 2 times"),
        ({"nats_N": np.array([2.0] * 9 + [np.inf])}, "target 9 has no finite cost"),
    ],
)
def test_coverage(changes, says):
    found, facts = findings(), {"nats_N": np.full(10, 2.0), "targets": 10} | changes
    judge_coverage(found, **facts)
    assert verdicts(found, "D7") == [FAIL if says else PASS] and (says or "") in found.rows[0]["evidence"]


def test_a_target_that_costs_less_than_nothing_breaks_the_sum():
    found = findings()
    judge_coverage(found, np.array([1.0, -0.2, 3.0]), 3)
    assert verdicts(found, "C2") == [FAIL]


@pytest.mark.parametrize(
    "windows, adapt, mix",
    [(WINDOWS[1], (), MIXERS[-1]), (WINDOWS[0], ADAPTERS[1], ()), (WINDOWS[2], ADAPTERS[-2], MIXERS[1])],
)
def test_the_own_scorer_passes_also_with_other_batches(windows, adapt, mix):
    def scorer(batch):
        return lambda tokens: passing(tokens, windows, adapt, mix, batch=batch)[0].run()[-1][1].nats_N

    tokens = TEXT[:150]
    found, one = findings(), passing(tokens, windows, adapt, mix)[0]
    repeated = judge_repeat(found, scorer(4), tokens, scorer(32))
    judge_flip(found, scorer(4), repeated, scoring_rank(one.schedule, one.plan), BOS)
    judge_truncation(found, scorer(4), repeated, LENGTH, bool(adapt))
    judge_noise(found, scorer(4), VOCAB, 200, 4, BOS)
    assert [row["verdict"] for row in found.rows] == [PASS] * 3
    assert repeated.same.each == 0 and repeated.other.each < 1e-3


def test_without_the_order_of_scoring_documents_out_of_order_look_ahead():
    windows, adapt = WINDOWS[2], ADAPTERS[-1]
    assert verdicts(flip(lambda tokens: passing(tokens, windows, adapt, ())[0].run()[-1][1].nats_N), "C1") == [FAIL]


def test_the_published_cache_is_causal():
    scorer = lambda tokens: passing(tokens, WINDOWS[0], (), UNNORMALISED)[0].run()[-1][1].nats_N  # noqa: E731
    assert verdicts(flip(scorer), "C1") == [PASS]


@pytest.mark.parametrize(
    "model, learns, crosses",
    [
        (BASE, False, False),
        (last("stream", BASE, SmearGate(stop_at_bos=True, bos=BOS)), False, False),
        (last("stream", BASE, SmearGate(stop_at_bos=False)), False, True),
        (last("stream", BASE, GatedSmear(stop_at_bos=True, inputs=6, bos=BOS)), False, False),
        (last("inputs", BASE, BigramHash(buckets=32, dim=8)), False, True),
        (last("stream", BASE, HashEmbedding(buckets=64)), False, False),
        (last("stream", BASE, HashEmbedding(buckets=64)), True, True),
    ],
)
def test_what_crosses_a_document_start(model, learns, crosses):
    module = randomise(model.build(0))
    if any(isinstance(node, HashEmbedding) for node in model.stream):
        with torch.no_grad():
            module.stream[-1].table_ND.zero_()
    before = [p.clone() for p in module.parameters()]
    for policy in ("strict", "as-practised"):
        found = findings(policy)
        judge_bos(found, module, model.vocab, learns, BOS)
        assert verdicts(found, "E16") == [FAIL if crosses and policy == "strict" else PASS]
        assert (found.rows[0]["measured"] > 0) is crosses
    assert all(torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True))
