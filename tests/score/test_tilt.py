import math
from collections import Counter, defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.node import parse_node
from fairway.problem import Problem
from fairway.score.history import History
from fairway.score.mixing import Committed, CommittedWhole
from fairway.score.tilt import TokenTilt
from fairway.score.watched import tallied_nats


def mixer_of(node, ids, vocab=8):
    return node.build(History(torch.tensor(ids, dtype=torch.int32), None, None, vocab))


def walked(node, ids):
    """(hint, strength) of each target by a walk over dictionaries, as #1514 tells it."""
    followed, best, found = defaultdict(Counter), {}, []
    for i in range(len(ids) - 1):
        hint, strength = -1, 0.0
        contexts = {length: tuple(ids[i + 1 - length : i + 1]) for length, _, _ in node.rules if length <= i + 1}
        for length, share, count in node.rules:
            seen = followed[contexts.get(length)]
            if seen.total() >= count and seen[best[contexts[length]]] / seen.total() >= share:
                hint = best[contexts[length]]
                strength = node.strength * (seen[hint] / seen.total() if node.by_share else 1)
                break
        found.append((hint, strength))
        for context in contexts.values():
            followed[context][ids[i + 1]] += 1
            if context not in best or followed[context][ids[i + 1]] > followed[context][best[context]]:
                best[context] = ids[i + 1]
    return found


def uniform_nats(mixer, tokens, vocab):
    target_N = tokens[1:].long()
    ids_NK = torch.stack([target_N, *(ids_N.long() for ids_N in mixer.queries)], dim=1)
    committed = Committed(ids_NK, torch.full(ids_NK.shape, -math.log(vocab), dtype=torch.float64))
    return tallied_nats(committed, [("TokenTilt", mixer)], target_N)[0]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=5) | st.lists(st.integers(0, 2), min_size=40, max_size=80), st.data()
)
def test_hints_and_strengths_are_those_of_a_walk(ids, data):
    lengths = sorted(data.draw(st.sets(st.integers(1, 6), min_size=1, max_size=3)), reverse=True)
    share, count = st.sampled_from([0.2, 0.5, 0.6, 1.0]), st.integers(1, 4)
    rules = tuple((length, data.draw(share), data.draw(count)) for length in lengths)
    node = TokenTilt(rules, strength=data.draw(st.sampled_from([0.5, 2.0])), by_share=data.draw(st.booleans()))
    mixer = mixer_of(node, ids)
    hints, strengths = zip(*walked(node, ids), strict=True) if len(ids) > 1 else ((), ())
    assert mixer.hint_N.tolist() == list(hints)
    assert mixer.strength_N.tolist() == pytest.approx(list(strengths), rel=1e-6)


def test_a_tilted_stream_by_hand():
    # Targets 1 0 1 0 2; contexts of one token: 0 | 1 | 0 | 1 | 0. Hints: none, none, 1 (after 0), 0 (after 1), 1 (after 0).
    tokens = torch.tensor([0, 1, 0, 1, 0, 2], dtype=torch.int32)
    mixer = mixer_of(TokenTilt(((1, 0.5, 1),), strength=math.log(4.0), by_share=True), tokens.tolist(), 4)
    assert mixer.hint_N.tolist() == [-1, -1, 1, 0, 1]
    mixer.strength_N = mixer.strength_N.double()
    mixer.strength_N[mixer.hint_N >= 0] = math.log(4.0)
    _, nats_N, summary = uniform_nats(mixer, tokens, 4)
    # p(h) = 1/4, Z = 1 + 1/4 (4 - 1) = 7/4: a hint that comes true costs ln 7/4, any other token ln 7.
    expected = [math.log(4), math.log(4), math.log(7 / 4), math.log(7 / 4), math.log(7)]
    assert nats_N.tolist() == pytest.approx(expected, abs=1e-12)
    assert summary == {
        "hinted_targets": 3,
        "hinted_share": 0.6,
        "hits": pytest.approx(2 / 3),
        "mean_strength": pytest.approx(math.log(4)),
        "normalised": True,
    }


def test_the_strength_is_in_proportion_to_the_share():
    # After 0 came 1, 1, 2: share 2/3.
    ids = [0, 1, 0, 1, 0, 2, 0, 3]
    assert mixer_of(TokenTilt(((1, 0.5, 2),)), ids).strength_N[6].item() == pytest.approx(2.0 * 2 / 3)
    assert mixer_of(TokenTilt(((1, 0.5, 2),), strength=2.625, by_share=False), ids).strength_N[6].item() == 2.625
    assert mixer_of(TokenTilt(((1, 0.7, 2),)), ids).hint_N[6].item() == -1


def test_a_text_that_repeats_itself_is_cheaper_by_the_tilt():
    chance = torch.Generator().manual_seed(3)
    phrases = torch.randint(64, (20, 24), generator=chance)
    tokens = phrases[torch.randint(20, (400,), generator=chance)].flatten().to(torch.int32)
    mixer = TokenTilt().build(History(tokens, None, None, 64))
    _, nats_N, summary = uniform_nats(mixer, tokens, 64)
    assert nats_N.mean() < math.log(64) - 0.9
    assert summary["hits"] > 0.95 and 0.5 < summary["hinted_share"] < 0.8


@pytest.mark.parametrize("node", [TokenTilt(), TokenTilt(((2, 0.5, 1), (1, 0.05, 1)), strength=5.0)])
def test_noise_is_never_cheaper_than_noise(node):
    tokens = torch.randint(1024, (60_001,), generator=torch.Generator().manual_seed(4), dtype=torch.int32)
    _, nats_N, _ = uniform_nats(node.build(History(tokens, None, None, 1024)), tokens, 1024)
    assert nats_N.mean() > math.log(1024) - 0.002


def test_a_stream_of_one_token_has_nothing_to_hint():
    mixer = mixer_of(TokenTilt(), [3])
    assert mixer.queries[0].tolist() == [] and mixer.summary({})["hinted_share"] == 0.0
    ((_, nats_N, _),) = tallied_nats(CommittedWhole(torch.zeros(0, 8)), [("TokenTilt", mixer)], torch.zeros(0).long())
    assert nats_N.tolist() == []


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"rules": ()}, "TokenTilt.rules is empty"),
        ({"rules": ((8, 0.5, 1), (8, 0.6, 1))}, "length 8 after 8: give each length once, the longest first"),
        ({"rules": ((8, 0.5, 1), (10, 0.6, 1))}, "length 10 after 8"),
        ({"rules": ((0, 0.5, 1),)}, "a context of 0 tokens; give 1 to 255"),
        ({"rules": ((8, 0.0, 1),)}, "a share of 0 at length 8"),
        ({"rules": ((8, 1.5, 1),)}, "a share of 1.5 at length 8"),
        ({"rules": ((8, 0.5, 0),)}, "a count of 0 at length 8"),
        ({"strength": -1.0}, "TokenTilt.strength takes 0 to 50, not -1"),
        ({"strength": 51.0}, "TokenTilt.strength takes 0 to 50, not 51"),
    ],
)
def test_senseless_rules_are_one_line(fields, words):
    with pytest.raises(Problem, match=words):
        TokenTilt(**fields)


def test_a_tilt_is_read_back_as_it_is_shown():
    node = TokenTilt(rules=((15, 0.8, 1),), strength=2.625, by_share=False)
    assert parse_node(repr(node)) == node
