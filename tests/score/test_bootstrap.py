import math

import numpy as np
import pytest

from fairway.problem import Problem
from fairway.score.bootstrap import document_of_targets, paired_bootstrap


def drawn(documents, targets, gain, spread, seed=0):
    """Nats under both, bytes and document of each target: b costs `gain` more, give or take what the document does."""
    chance = np.random.default_rng(seed)
    document_N = np.repeat(np.arange(documents), targets)
    nats_a_N = chance.exponential(size=documents * targets)
    own_N = chance.normal(gain, spread, documents)[document_N]
    return nats_a_N, nats_a_N + own_N, np.full(documents * targets, 2), document_N


def test_the_difference_by_hand():
    nats_a, nats_b = np.array([1.0, 2.0, 3.0]), np.array([1.5, 2.5, 2.0])
    result = paired_bootstrap(nats_a, nats_b, np.array([1, 2, 3]), np.array([0, 0, 1]))
    assert result["delta_bpb"] == pytest.approx(0.0, abs=1e-12) and result["documents"] == 2 and result["draws"] == 1000
    # Both documents, or one of them twice: -1 nat on 3 bytes, or +1 nat on 3 bytes.
    assert result["interval"] == pytest.approx([-1 / 3 / math.log(2), 1 / 3 / math.log(2)], abs=1e-12)


def test_bytes_in_all_are_shared_out_by_targets():
    nats_a, nats_b, size_N, document_N = drawn(40, 9, 0.1, 0.3)
    each = paired_bootstrap(nats_a, nats_b, size_N, document_N)
    whole = paired_bootstrap(nats_a, nats_b, int(size_N.sum()), document_N)
    assert each["delta_bpb"] == pytest.approx((nats_a - nats_b).sum() / size_N.sum() / math.log(2), rel=1e-12)
    assert whole["delta_bpb"] == pytest.approx(each["delta_bpb"]) and whole["interval"] == pytest.approx(each["interval"])


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    truth, held = -0.1 / 2 / math.log(2), 0
    for seed in range(200):
        low, high = paired_bootstrap(*drawn(100, 3, 0.1, 0.5, seed), draws=400, seed=seed)["interval"]
        held += low <= truth <= high
    assert 178 <= held <= 199


def test_targets_of_one_document_stand_and_fall_together():
    few, many = drawn(20, 50, 0.0, 0.5), drawn(1000, 1, 0.0, 0.5)
    wide, narrow = (np.ptp(paired_bootstrap(*one)["interval"]) for one in (few, many))
    assert wide > 4 * narrow


def test_one_document_has_no_interval():
    result = paired_bootstrap([1.0, 2.0], [2.0, 3.0], 4, [0, 0])
    assert result == {"delta_bpb": pytest.approx(-0.5 / math.log(2)), "interval": None, "draws": 1000, "documents": 1}


def test_seeds_decide_and_blocks_of_draws_do_not(monkeypatch):
    one = paired_bootstrap(*drawn(30, 2, 0.1, 0.5), seed=3)
    assert one == paired_bootstrap(*drawn(30, 2, 0.1, 0.5), seed=3) != paired_bootstrap(*drawn(30, 2, 0.1, 0.5), seed=4)
    monkeypatch.setattr("fairway.score.bootstrap.RESAMPLED_AT_ONCE", 70)
    assert paired_bootstrap(*drawn(30, 2, 0.1, 0.5), seed=3) == one


def test_documents_without_targets_count_for_nothing():
    nats_a, nats_b, size_N, document_N = drawn(30, 2, 0.1, 0.5)
    assert paired_bootstrap(nats_a, nats_b, size_N, 3 * document_N + 5) == paired_bootstrap(
        nats_a, nats_b, size_N, document_N
    )


def test_a_target_belongs_to_the_document_that_it_is_predicted_from():
    # Documents begin at tokens 2 and 5; target 4, token 5, is the last of the second document.
    assert document_of_targets([2, 5, 9], 7).tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert document_of_targets([0, 3], 5).tolist() == [0, 0, 0, 1, 1]
    assert document_of_targets([], 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (([1.0], [1.0, 2.0], 4, [0]), "nats of 1 and 2 targets, documents of 1"),
        (([1.0], [1.0], 4, [0, 1]), "documents of 2"),
        (([], [], 4, []), "no targets to compare"),
        (([1.0], [math.nan], 4, [0]), "NaN or infinite"),
        (([1.0], [1.0], 0, [0]), "stand for 0 bytes"),
        (([1.0], [1.0], [1, 2], [0]), "bytes of 2 targets for nats of 1"),
        (([1.0], [1.0], 4, [-1]), "document -1"),
        (([1.0], [1.0], 4, [0], 0), "0 draws"),
    ],
)
def test_what_cannot_be_compared_is_one_line(arguments, words):
    with pytest.raises(Problem, match=words):
        paired_bootstrap(*arguments)
