"""Sums over the vocabulary: of models, of mixers, and of what only says that it is a distribution."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from conformance.evaluators_table import ADAPTERS, MIXERS, UNNORMALISED, WINDOWS
from conformance.table import BOS, randomise
from conformance.test_evaluators_conform import CPU, NODE, VOCAB, text
from fairway.kernels.capability import capability
from fairway.referee.rules import read_policy
from fairway.referee.verdict import FAIL, NOT_TESTED, PASS, Findings
from fairway.referee.whole import judge_load, judge_sum
from fairway.score.adapter import AdaptContext, build_adapter
from fairway.score.backoff import BackoffCache, BackoffCacheAsPublished
from fairway.score.commit import Committer, read_function, read_model
from fairway.score.mixing import Blended, MixerBase, Mixing
from fairway.score.scorer import Pass
from fairway.score.tilt import TokenTilt
from fairway.score.windows import Evaluation, NonOverlapping
from fairway.train.dist import World

TEXT = text(0, 300)
WORLD = World(0, 1, CPU)


def verdicts(found):
    return [row["verdict"] for row in found.rows]


def judged(windows, adapt=(), mix=(), between=lambda commit: commit, load=False):
    """Findings of judge_sum on the toy; `between` is put between the scorer and the model."""

    def make(wrap):
        model = randomise(NODE.build(), seed=1)
        evaluation = Evaluation(windows, batch_windows=4)
        adapter = build_adapter(adapt, AdaptContext(model, capability(CPU), WORLD, evaluation))
        commit = between(Committer(read_model(model), VOCAB, CPU))
        return Pass(wrap(commit), TEXT, evaluation, 600, WORLD, np.flatnonzero(TEXT == BOS), adapter, mix)

    found = Findings(read_policy("as-practised"))
    judge_sum(found, make, mix, 1.0, load)
    return found


@pytest.mark.parametrize("windows", WINDOWS, ids=repr)
@pytest.mark.parametrize("adapt, mix", [((), ()), ((), MIXERS[-1]), (ADAPTERS[1], MIXERS[1]), (ADAPTERS[-2], MIXERS[-2])])
def test_honest_models_and_mixers_sum_to_one(windows, adapt, mix):
    found = judged(windows, adapt, mix)
    assert verdicts(found) == [PASS] * (1 + bool(mix))
    assert all(row["measured"] == pytest.approx(1.0, abs=1e-9) for row in found.rows)
    if mix:
        assert float(found.rows[1]["evidence"].split("moves up to ")[1].split()[0]) > 0.01, "the mixers were cold"


class Between:
    """Stands where the scorer asks the model, and answers a little otherwise."""

    def __init__(self, commit):
        self.commit, self.vocab, self.device = commit, commit.vocab, commit.device

    def __call__(self, batch, ids_NK, entropy=False, tensors=(), linear=None):
        return self.changed(self.commit(batch, ids_NK, entropy, tensors, linear))

    def changed(self, logp_NK):
        return logp_NK


class MoreThanOne(Between):
    """All ids a hundred-thousandth likelier."""

    def changed(self, logp_NK):
        return logp_NK + 1e-5


class FavoursWhatIsAskedFirst(Between):
    """The target is what the scorer asks for first."""

    def changed(self, logp_NK):
        return torch.cat([logp_NK[:, :1] + 0.01, logp_NK[:, 1:]], dim=1)


class FavoursTheScored(Between):
    """Only where a score is at stake: a probe asks for more ids at once."""

    def changed(self, logp_NK):
        return logp_NK + 0.01 if logp_NK.shape[1] == 2 else logp_NK


@pytest.mark.parametrize(
    "between, verdict",
    [(Between, PASS), (MoreThanOne, FAIL), (FavoursWhatIsAskedFirst, FAIL), (FavoursTheScored, FAIL)],
)
def test_a_model_that_is_charged_less_than_its_share_fails(between, verdict):
    assert verdicts(judged(WINDOWS[1], between=between)) == [verdict]


@dataclass(frozen=True)
class Planted(Mixing):
    """Half the model, half of `rows`, which are no distribution."""

    rows: type = object

    def build(self, history):
        return PlantedMixer(history, self.rows(history))


class PlantedMixer(MixerBase):
    def __init__(self, history, rows):
        self.history, self.rows = history, rows

    def mix(self, base, span=None):
        count = self.history.targets if span is None else len(range(*span.indices(self.history.targets)))
        return Blended(base, torch.full((count,), 0.5), self.rows, span)


class Even:
    """An honest one: all ids alike."""

    def __init__(self, history):
        self.vocab = history.vocab

    def at(self, ids, span=None):
        return torch.full(ids.shape, 1 / self.vocab, dtype=torch.float64)


class TooMuch(Even):
    """A thousandth more than there is."""

    def at(self, ids, span=None):
        return super().at(ids, span) * 1.002


class MoreForTheToken(Even):
    """A distribution for whoever asks for all of it, more for the token that stands there."""

    def at(self, ids, span=None):
        return super().at(ids, span) * (1.5 if ids.ndim == 1 else 1.0)


class OnlyTheToken(Even):
    """Knows the token that stands there alone, and gives it `much`."""

    much = 1.5

    def at(self, ids, span=None):
        if ids.ndim > 1:
            raise ValueError("one id at a time")
        return super().at(ids, span) * self.much


class OnlyTheTokenFairly(OnlyTheToken):
    much = 1.0


@pytest.mark.parametrize(
    "rows, verdict, z",
    [
        (Even, PASS, 1.0),
        (TooMuch, FAIL, 1.001),
        (MoreForTheToken, FAIL, 1.25),
        (OnlyTheToken, FAIL, 1.25),
        (OnlyTheTokenFairly, PASS, 1.0),
    ],
)
def test_mixers_that_are_none_fail(rows, verdict, z):
    found = judged(WINDOWS[0], mix=(Planted(rows),))
    assert verdicts(found) == [PASS, verdict]
    assert found.rows[1]["measured"] == pytest.approx(z, abs=1e-6)


def test_the_published_cache_fails_with_its_sum_and_the_exact_one_passes():
    found = judged(WINDOWS[0], mix=UNNORMALISED)
    assert verdicts(found) == [PASS, FAIL] and found.rows[1]["measured"] > 1.01
    assert "tells the mean sum" in found.rows[1]["evidence"]
    assert verdicts(judged(WINDOWS[0], mix=MIXERS[2])) == [PASS, PASS]


class Broken(Between):
    def changed(self, logp_NK):
        raise RuntimeError("no answer today")


def test_what_breaks_is_not_tested():
    found = judged(WINDOWS[0], between=Broken)
    assert verdicts(found) == [NOT_TESTED] and "no answer today" in found.rows[0]["evidence"]


@pytest.mark.parametrize("node", [BackoffCache(every=4096), TokenTilt()], ids=lambda node: type(node).__name__)
def test_at_load_distributions_pass(node):
    found = Findings(read_policy("as-practised"))
    judge_load(found, (node,), 1024, 0.1)
    assert verdicts(found) == [PASS, PASS]
    assert found.rows[1]["measured"] > math.log(4) - 0.01


def test_at_load_the_published_cache_undercuts_noise():
    found = Findings(read_policy("as-practised"))
    # Tables a thirty-second of #864's, after a thirty-second of the text.
    judge_load(found, (BackoffCacheAsPublished(buckets=1 << 14, every=2048, sample=200),), 1024, 0.1)
    assert verdicts(found) == [FAIL, FAIL]
    assert found.rows[0]["measured"] < found.rows[0]["expected"] - 1 and found.rows[1]["measured"] > 100


def test_a_thousand_ids_at_a_text_of_thousands_of_tokens():
    vocab, draw = 1024, np.random.default_rng(0)
    table = torch.from_numpy(draw.normal(0, 2, (64, vocab)).astype(np.float32))
    phrases = [draw.integers(2, vocab, 20) for _ in range(12)]
    tokens = np.concatenate([phrases[at] for at in draw.integers(0, 12, 200)]).astype(np.uint16)
    mix = (BackoffCache(every=64), TokenTilt(rules=((3, 0.4, 1),)))

    def make(wrap):
        commit = Committer(read_function(lambda ids_BT: table[ids_BT % 64], vocab), vocab, CPU)
        return Pass(wrap(commit), tokens, Evaluation(NonOverlapping(256)), 9000, WORLD, None, None, mix)

    found = Findings(read_policy("as-practised"))
    judge_sum(found, make, mix, 2.0, load=False)
    assert verdicts(found) == [PASS, PASS] and "of the whole" in found.rows[1]["evidence"]
