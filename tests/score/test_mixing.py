import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.problem import Problem
from fairway.score.backoff import BackoffCache, BackoffCacheAsPublished
from fairway.score.history import BackoffRows, History
from fairway.score.mixing import (
    Blended,
    Committed,
    CommittedWhole,
    MixerBase,
    Tilted,
    Unnormalised,
    build_mixers,
)
from fairway.score.tilt import TokenTilt
from fairway.score.watched import tallied_nats

VOCAB = 5
TILT = TokenTilt(rules=((3, 0.5, 1), (2, 0.5, 2), (1, 0.4, 2)))
FIXED = TokenTilt(rules=((2, 0.3, 1),), strength=7.5, by_share=False)
CACHE = BackoffCache(orders=(2, 3, 4), least=2, every=1)
CHUNKED = BackoffCache(orders=(2, 4), least=1, every=16, low=0.3, cap=0.999)
NODES = (TILT, FIXED, CACHE, CHUNKED)


class Rows:
    """Rows that say the same of every target: `p_V`."""

    def __init__(self, p_V):
        self.p_V = p_V

    def at(self, ids, span=None):
        return self.p_V[ids]


def whole(*rows):
    return CommittedWhole(torch.tensor(rows, dtype=torch.float64).log())


def all_ids(targets, vocab=VOCAB):
    return torch.arange(vocab).expand(targets, vocab)


def drawn_model(tokens, seed, spread=2.0):
    """Random distributions, some of them all but certain."""
    z_NV = torch.randn(len(tokens) - 1, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return CommittedWhole((spread * z_NV**3).log_softmax(1))


def documents_of(lengths, order):
    """Starts of documents with these numbers of targets; ranks and floors of scoring them whole, in this order."""
    starts = [sum(lengths[:place]) for place in range(len(lengths))]
    rank_N, floor_N, place = torch.zeros(sum(lengths), dtype=torch.int64), torch.zeros(sum(lengths), dtype=torch.int64), 0
    for document in order:
        span = slice(starts[document], starts[document] + lengths[document])
        rank_N[span] = torch.arange(place, place + lengths[document])
        floor_N[span] = starts[document]
        place += lengths[document]
    return starts, rank_N, floor_N


def chain(nodes, history, base):
    mixed = base
    mixers = [mixer for _, mixer in build_mixers(nodes, history)]
    for mixer in mixers:
        mixed = mixer.mix(mixed)
    return mixed


def streams_of(vocab, least, most):
    return st.lists(st.integers(0, vocab - 1), min_size=least, max_size=most).map(
        lambda ids: torch.tensor(ids, dtype=torch.int32)
    )


streams = streams_of(VOCAB, 2, 10) | streams_of(3, 30, 70)  # in the long ones most contexts have been seen
chains = st.lists(st.sampled_from(NODES), min_size=1, max_size=2)


def test_a_tilt_by_hand():
    tilted = Tilted(whole([0.5, 0.3, 0.2], [0.5, 0.3, 0.2]), torch.tensor([1, -1]), torch.tensor([math.log(4.0), 3.0]))
    # Z = 1 + 0.3 (4 - 1) = 1.9
    expected = torch.tensor([[0.5 / 1.9, 1.2 / 1.9, 0.2 / 1.9], [0.5, 0.3, 0.2]], dtype=torch.float64)
    assert torch.allclose(tilted.at(all_ids(2, 3)).exp(), expected, rtol=0, atol=1e-7)  # ln 4 in float32
    double = Tilted(tilted.base, tilted.hint_N, torch.tensor([math.log(4.0), 3.0], dtype=torch.float64))
    assert torch.allclose(double.at(all_ids(2, 3)).exp(), expected, rtol=0, atol=1e-15)
    assert double.tally(torch.tensor([1, 1])) == {"hits": 1}


@pytest.mark.parametrize("strength", [1e-9, 1.0, 50.0])
@pytest.mark.parametrize("chance", [0.0, 1e-300, 1e-20, 0.5, 1 - 1e-12, 1.0, 1.0 + 1e-7])
def test_a_tilt_is_sound_where_the_hint_is_all_but_certain_or_impossible(chance, strength):
    logp_NV = torch.tensor([[chance, 1 - min(chance, 1.0)]], dtype=torch.float64).log()
    tilted = Tilted(CommittedWhole(logp_NV), torch.tensor([0]), torch.tensor([strength], dtype=torch.float64))
    hit, miss = tilted.at(torch.tensor([[0, 1]]))[0].tolist()
    q = min(chance, 1.0)
    if q:
        assert math.isclose(math.exp(hit), q * math.exp(strength) / (1 - q + q * math.exp(strength)), rel_tol=1e-11)
    assert hit <= 0 and miss <= 0 and abs(math.exp(hit) + math.exp(miss) - 1) < 1e-12
    # What a hint costs when it is wrong, to the last digit where it matters: ln Z.
    if 0 < q < 1:
        assert math.isclose(miss, float(logp_NV[0, 1]) - math.log1p(q * math.expm1(strength)), rel_tol=1e-9)


def test_a_tilt_of_a_chance_below_all_floats_stays_in_proportion():
    base = CommittedWhole(torch.tensor([[-1000.0, 0.0]], dtype=torch.float64))
    tilted = Tilted(base, torch.tensor([0]), torch.tensor([50.0], dtype=torch.float64))
    assert math.isclose(float(tilted.at(torch.tensor([0]))), -950.0, rel_tol=1e-12)


def test_a_blend_by_hand():
    blended = Blended(whole([0.5, 0.5], [0.25, 0.75]), torch.tensor([0.2, 0.0]), Rows(torch.tensor([0.0, 1.0]).double()))
    expected = torch.tensor([[0.4, 0.6], [0.25, 0.75]], dtype=torch.float64)
    assert torch.allclose(blended.at(all_ids(2, 2)).exp(), expected, rtol=0, atol=1e-8)  # 0.2 in float32
    certain = Blended(whole([1.0, 0.0]), torch.tensor([1.0]), Rows(torch.tensor([0.0, 1.0]).double()))
    assert certain.at(all_ids(1, 2)).tolist() == [[-math.inf, 0.0]]


def test_the_published_rule_by_hand():
    rows = Rows(torch.tensor([0.5, 0.0], dtype=torch.float64))
    rule = Unnormalised(whole([1.0, 0.0], [1.0, 0.0]), torch.tensor([0.9, 1.0], dtype=torch.float64), rows)
    p_N = rule.at(torch.tensor([0, 1])).exp()
    assert torch.allclose(p_N, torch.tensor([0.55, 1e-10], dtype=torch.float64), rtol=1e-12, atol=0)
    assert not rule.normalised and not Tilted(rule, torch.tensor([-1, -1]), torch.zeros(2)).normalised


def test_what_was_not_asked_for_before_is_not_told():
    committed = Committed(
        torch.tensor([[3, 7], [4, 3]], dtype=torch.int32), torch.tensor([[-1.0, -2.0], [-3.0, -4.0]]).double()
    )
    assert committed.at(torch.tensor([7, 4])).tolist() == [-2.0, -3.0]
    assert committed.at(torch.tensor([[3, 7], [3, 4]])).tolist() == [[-1.0, -2.0], [-4.0, -3.0]]
    with pytest.raises(ValueError, match="id 7 at target 1 was not asked for"):
        committed.at(torch.tensor([3, 7]))


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_a_weight_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="a blend's weight is"):
        Blended(whole([0.5, 0.5]), torch.tensor([bad]), Rows(torch.ones(2).double()))


@pytest.mark.parametrize("bad", [-1.0, math.inf, math.nan])
def test_a_strength_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="a tilt's strength is"):
        Tilted(whole([0.5, 0.5]), torch.tensor([0]), torch.tensor([bad]))


def test_the_entropy_is_the_models_own_through_a_chain():
    base = whole([0.5, 0.5, 0.0], [1.0, 0.0, 0.0])
    assert torch.allclose(base.entropy_N, torch.tensor([math.log(2), 0.0], dtype=torch.float64), atol=1e-15)
    tilted = Tilted(base, torch.tensor([0, 0]), torch.tensor([3.0, 3.0]))
    assert Blended(tilted, torch.tensor([0.5, 0.5]), Rows(torch.ones(3).double() / 3)).entropy_N is base.entropy_N


@settings(max_examples=60, deadline=None)
@given(streams, chains, st.integers(0, 99), st.data())
def test_every_mixer_and_every_chain_sums_to_one_over_the_vocabulary(tokens, nodes, seed, data):
    targets = len(tokens) - 1
    rank_N = torch.tensor(data.draw(st.permutations(range(targets)))) if data.draw(st.booleans()) else None
    cut = data.draw(st.integers(0, targets))
    floor_N = torch.where(torch.arange(targets) < cut, 0, cut) if data.draw(st.booleans()) else None
    mixed = chain(nodes, History(tokens, rank_N, floor_N, VOCAB), drawn_model(tokens, seed))
    total_N = mixed.at(all_ids(targets)).exp().sum(1)
    assert torch.allclose(total_N, torch.ones_like(total_N), rtol=0, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(streams, chains, st.integers(0, 99))
def test_what_is_scored_is_what_the_whole_distribution_says(tokens, nodes, seed):
    history, base, target_N = History(tokens, None, None, VOCAB), drawn_model(tokens, seed), tokens[1:].long()
    mixers = build_mixers(nodes, history)
    ids_NK = torch.stack([target_N, *(ids_N.long() for _, mixer in mixers for ids_N in mixer.queries)], dim=1)
    committed = Committed(ids_NK.to(torch.int32), base.at(ids_NK), base.entropy_N)
    results = tallied_nats(committed, mixers, target_N)
    assert [name.split(":")[0] for name, _, _ in results] == [type(node).__name__ for node in nodes]
    for count, (_, nats_N, summary) in enumerate(results, 1):
        # All ids at once are counted one by one, not taken from what was kept for the targets and hints.
        logp_NV = chain(nodes[:count], history, base).at(all_ids(len(target_N)))
        assert torch.allclose(nats_N, -logp_NV.gather(1, target_N[:, None])[:, 0], rtol=0, atol=1e-12)
        assert summary["normalised"] is True


def test_spans_and_their_size_change_nothing(monkeypatch):
    tokens = torch.tensor([0, 1, 2, 3] * 12 + [4, 1, 2, 0] * 5, dtype=torch.int32)
    base, target_N = drawn_model(tokens, 3), tokens[1:].long()
    nodes = (CACHE, TILT, CHUNKED, BackoffCacheAsPublished(orders=(2, 3), buckets=16, every=8, sample=20))
    results = []
    for span in (1 << 22, 7):
        monkeypatch.setattr("fairway.score.history.STATISTICS_SPAN", span)
        results.append(tallied_nats(base, build_mixers(nodes, History(tokens, None, None, VOCAB)), target_N))
    for (name, nats_N, facts), (other, same_N, same) in zip(*results, strict=True):
        assert name == other and torch.allclose(nats_N, same_N, rtol=0, atol=1e-12)
        for what, value in facts.items():
            assert same[what] == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value)


def test_what_a_later_mixer_asks_for_is_counted_once_for_all_spans(monkeypatch):
    tokens = torch.tensor([0, 1, 2, 3] * 12, dtype=torch.int32)
    mixers, calls = build_mixers((CACHE, TILT), History(tokens, None, None, VOCAB)), []
    count = BackoffRows._counted
    monkeypatch.setattr(BackoffRows, "_counted", lambda rows, ids, span: calls.append(span) or count(rows, ids, span))
    monkeypatch.setattr("fairway.score.history.STATISTICS_SPAN", 7)
    tallied_nats(drawn_model(tokens, 3), mixers, tokens[1:].long())
    assert calls == [slice(0, 47)]


@settings(max_examples=60, deadline=None)
@given(streams_of(3, 30, 70), chains, st.integers(8, 28), st.integers(0, 99))
def test_no_mixer_knows_a_target_or_what_follows_it(tokens, nodes, at, seed):
    """Probed with all ids: the whole distribution of target i may not change with tokens i + 1 and later."""
    flipped = tokens.clone()
    tail = torch.randint(VOCAB, (len(tokens) - at - 1,), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    tail[0] = (tokens[at + 1] + 1) % 3
    flipped[at + 1 :] = tail
    base, ids = drawn_model(tokens, 1), all_ids(len(tokens) - 1)
    one, other = (chain(nodes, History(stream, None, None, VOCAB), base).at(ids) for stream in (tokens, flipped))
    assert torch.equal(one[: at + 1], other[: at + 1])


@settings(max_examples=60, deadline=None)
@given(chains, st.data())
def test_in_another_order_of_scoring_no_mixer_knows_what_is_scored_later(nodes, data):
    lengths = data.draw(st.lists(st.integers(2, 20), min_size=3, max_size=6))
    starts, rank_N, floor_N = documents_of(lengths, data.draw(st.permutations(range(len(lengths)))))
    targets = sum(lengths)
    tokens = torch.tensor(data.draw(st.lists(st.integers(1, 2), min_size=targets + 1, max_size=targets + 1)))
    tokens[starts] = 0
    at = data.draw(st.integers(0, targets - 1).filter(lambda target: target + 1 not in starts))
    flipped = tokens.clone()
    flipped[at + 1] = 1 + tokens[at + 1] % (VOCAB - 1)
    base, ids = drawn_model(tokens, 1), all_ids(targets)
    one, other = (chain(nodes, History(stream, rank_N, floor_N, VOCAB), base).at(ids) for stream in (tokens, flipped))
    before_N = rank_N <= rank_N[at]
    assert torch.equal(one[before_N], other[before_N])


class Careless(MixerBase):
    """Answers with a class of its own."""

    def mix(self, base, span=None):
        class Better(CommittedWhole):
            pass

        return Better(base.logp_NV)


class Greedy(MixerBase):
    """Answers with chances above 1."""

    def mix(self, base, span=None):
        return CommittedWhole(base.logp_NV + 9)


@pytest.mark.parametrize("mixer, words", [(Careless(), "answers with Better"), (Greedy(), "target 0 of its span .* nats")])
def test_answers_that_are_no_distribution_are_found_out(mixer, words):
    with pytest.raises(ValueError, match=words):
        tallied_nats(whole([0.5, 0.5]), [("X", mixer)], torch.tensor([0]))


def test_a_nat_that_is_not_a_number_is_found_out():
    with pytest.raises(ValueError, match="gives target 1 of its span nan nats"):
        tallied_nats(
            whole([0.5, 0.5], [math.nan, 1.0]),
            build_mixers((TILT,), History(torch.tensor([0, 0, 0]), None, None, 2)),
            torch.tensor([0, 0]),
        )


def test_nothing_stands_on_what_is_no_distribution():
    history = History(torch.tensor([0, 1, 0, 1]), None, None, 2)
    published = BackoffCacheAsPublished(orders=(2,), buckets=4, every=2, sample=2)
    with pytest.raises(Problem, match=r"TokenTilt after BackoffCacheAsPublished, .*: put BackoffCacheAsPublished last"):
        build_mixers((published, TILT), history)
    assert [name for name, _ in build_mixers((TILT, FIXED, CACHE, published), history)] == [
        "TokenTilt:0",
        "TokenTilt:1",
        "BackoffCache",
        "BackoffCacheAsPublished",
    ]


def test_a_history_shows_no_tokens():
    history = History(torch.tensor([0, 1, 0, 1]), None, None, 2)
    shown = [name for name in dir(history) if not name.startswith("_")]
    assert shown == ["backoff", "continuations", "counts", "device", "hashed_backoff", "plain", "targets", "vocab"]
