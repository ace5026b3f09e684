"""Passes that do in their lessons what none may do, each traced; and honest ones of every kind."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from conformance.evaluators_table import ADAPTERS, LENGTH, MIXERS, WINDOWS
from conformance.table import BOS
from conformance.test_evaluators_conform import passing, text
from fairway.referee.probes import flipped_text
from fairway.referee.rules import read_policy
from fairway.referee.trace import TracedPass, digest_of, frontiers_of, judge_trace
from fairway.referee.verdict import FAIL, NOT_TESTED, PASS, Findings
from fairway.score.adapter import Adapter, Lessons
from fairway.score.schedule import Episode, Group, Round, scoring_rank
from fairway.score.sgd import ScoreFirstSGD, ScoreFirstSGDAdapter
from fairway.sites import AdaptSite

TEXT = text(0, 300)


def traced(adapt, windows=WINDOWS[1], mix=(), tokens=TEXT):
    """A TracedPass that has run, and what it gave."""
    one, _, adapter = passing(tokens, windows, adapt, mix, kind=TracedPass)
    found = one.run()
    if adapter is not None:
        adapter.restore()
    return one, found


def judged(adapt, windows=WINDOWS[1], mix=(), most=3):
    """{rule: verdict}, {rule: evidence} of a pass and of those with other futures."""
    one, _ = traced(adapt, windows, mix)
    rank_N = scoring_rank(one.schedule, one.plan)
    draw = np.random.default_rng(0)
    others = [flipped_text(TEXT, rank_N >= place, draw, BOS) for place in frontiers_of(one, most)]
    found = Findings(read_policy("as-practised"))
    judge_trace(found, one, [traced(adapt, windows, mix, other)[0] for other in others])
    return {row["rule"]: row["verdict"] for row in found.rows}, {row["rule"]: row["evidence"] for row in found.rows}


@pytest.mark.parametrize("adapt", ADAPTERS, ids=lambda nodes: "+".join(type(node).__name__ for node in nodes))
def test_honest_passes_pass_and_score_as_if_nobody_looked(adapt):
    verdicts, _ = judged(adapt, mix=MIXERS[1], most=1)
    documents = "DocumentLoRA" in str(adapt)
    assert verdicts == {"C3": PASS, "C4": PASS, "E3": PASS, "E19": NOT_TESTED if documents else PASS}
    one, found = traced(adapt)
    plain = passing(TEXT, WINDOWS[1], adapt, ())[0].run()
    assert found[-1][1].nats == plain[-1][1].nats
    np.testing.assert_array_equal(one.seen_N.astype(np.float32), plain[0][1].nats_N)


@pytest.mark.parametrize(
    "epochs, strict, practised", [(1, PASS, PASS), (3, PASS, PASS), (4, FAIL, PASS), (10, FAIL, PASS), (11, FAIL, FAIL)]
)
def test_epochs_are_counted(epochs, strict, practised):
    adapt = (ScoreFirstSGD(rate=0.01, chunk=64, epochs=epochs),)
    for policy, expected in (("strict", strict), ("as-practised", practised)):
        found = Findings(read_policy(policy))
        judge_trace(found, traced(adapt)[0])
        row = next(row for row in found.rows if row["rule"] == "E3")
        assert (row["verdict"], row["measured"]) == (expected, epochs)


@dataclass(frozen=True)
class Planted(ScoreFirstSGD):
    """Test-time training as it should be, but for one deed of its Lessons or its adapter."""

    deed: type = Lessons
    kind: type = ScoreFirstSGDAdapter

    def build(self, context):
        adapter, deed = self.kind(self, context), self.deed
        adapter.lessons = lambda one: deed(adapter, one)
        return adapter


def planted(**how):
    return (Planted(rate=0.05, chunk=64, epochs=1, **how),)


def steps(adapter, one, begin, count=32):
    """Learns from tokens of the pass, whether it may or not."""
    ids_N1 = one.stream[begin : begin + count + 1].long()
    adapter.trainer.step(ids_N1[:-1].view(-1, LENGTH), ids_N1[1:].view(-1, LENGTH), 0.05)


class LearnsFirst(Lessons):
    """On the first tokens of the text, before anything is scored."""

    def begin(self, episode):
        if not self.adapter.done:
            steps(self.adapter, self.one, len(self.one.stream) // 2)


class LearnsWhatComesNext(Lessons):
    """The next chunk, past what is revealed."""

    def after_group(self, group):
        end = int(self.one.plan.end[group.windows()].max())
        if end + 33 < len(self.one.stream):
            steps(self.adapter, self.one, end)
        return True


class LearnsWhileScoring(Lessons):
    """Between the question and the answer."""

    def commit(self, batch, ids_NK, entropy=False):
        with torch.no_grad():
            next(self.adapter.context.model.parameters()).add_(1e-3)
        return super().commit(batch, ids_NK, entropy)


class LyingMarks(Lessons):
    """Says that all is scored, so that Revealed hands it out."""

    def after_group(self, group):
        self.revealed.mark(0, self.one.targets)
        return super().after_group(group)


class LooksWithoutLearning(ScoreFirstSGDAdapter):
    """Runs the model on what it has learned from."""

    def after_group(self, group, plan, revealed):
        super().after_group(group, plan, revealed)
        self.context.model(revealed.tokens(0, LENGTH)[None, :-1])


class AsksAhead(ScoreFirstSGDAdapter):
    """For the chunk that comes next."""

    def after_group(self, group, plan, revealed):
        end = int(plan.end[group.windows()].max())
        revealed.tokens(end, min(end + 32, 299))


class ScoresTwice(Lessons):
    """Each batch again, after the weights have moved."""

    def after_batch(self, batch, logp_SK):
        with torch.no_grad():
            next(self.adapter.context.model.parameters()).add_(1e-3)
        self.one.score(batch, self.one.commit)


class ChoosesTheBetter(Lessons):
    """Halves what the first targets cost when all is done."""

    def after_group(self, group):
        self.one.logp_NK[:5] *= 0.5
        return super().after_group(group)


class Breaks(Lessons):
    def after_group(self, group):
        raise KeyError("no such thing")


@pytest.mark.parametrize(
    "how, rule, says",
    [
        ({"deed": LearnsFirst}, "C3", "the state after 0 scored targets (begin) depends on"),
        ({"deed": LearnsWhatComesNext}, "C3", "(group) depends on targets from place"),
        ({"deed": LearnsWhileScoring}, "C3", "the state changes while"),
        ({"deed": LyingMarks, "kind": AsksAhead}, "C3", "a lesson asks for target"),
        ({"kind": AsksAhead}, "C3", "a lesson asks for target"),
        ({"deed": ScoresTwice}, "C4", "scored more than once, target 0 2 times"),
        ({"deed": ChoosesTheBetter}, "C4", "changed after they stood"),
    ],
)
def test_each_deed_is_named(how, rule, says):
    verdicts, evidence = judged(planted(**how))
    assert verdicts[rule] == FAIL and says in evidence[rule]


def test_the_planted_adapter_without_a_deed_passes():
    assert set(judged(planted())[0].values()) == {PASS}


def test_a_pass_without_gradients_is_no_epoch():
    found = Findings(read_policy("as-practised"))
    judge_trace(found, traced(planted(kind=LooksWithoutLearning))[0])
    assert [row["measured"] for row in found.rows if row["rule"] == "E3"] == [1.0]


def test_what_ends_early_is_told_and_nothing_is_made_of_it():
    verdicts, evidence = judged(planted(deed=Breaks))
    assert verdicts["C3"] == verdicts["C4"] == verdicts["E3"] == NOT_TESTED and "no such thing" in evidence["C4"]


@dataclass(frozen=True)
class Backwards(AdaptSite):
    """Documents from the last to the first; nothing learns."""

    fresh: tuple = ()
    carries: bool = False

    def build(self, context):
        return BackwardsAdapter(self, context)


class BackwardsAdapter(Adapter):
    def __init__(self, node, context):
        super().__init__(context)
        self.node, self.memory = node, torch.zeros(1)

    def schedule(self, plan, starts):
        parts = np.split(np.arange(len(plan)), np.flatnonzero(np.diff(plan.floor)) + 1)
        return [Group((Episode((Round(part),)),)) for part in reversed(parts)]

    def after_group(self, group, plan, revealed):
        if self.node.carries:
            self.memory += revealed.tokens(
                int(plan.begin[group.windows()].min()), int(plan.end[group.windows()].max())
            ).sum()


@pytest.mark.parametrize(
    "carries, mix, verdict", [(False, (), PASS), (True, (), NOT_TESTED), (False, MIXERS[1], NOT_TESTED)]
)
def test_another_order_is_fine_where_nothing_is_carried(carries, mix, verdict):
    verdicts, _ = judged((Backwards(carries=carries),), WINDOWS[2], mix)
    assert verdicts == {"C3": PASS, "C4": PASS, "E3": PASS, "E19": verdict}


def test_a_digest_sees_every_bit_of_a_state():
    state = {
        "a": [torch.zeros(3), torch.ones((), dtype=torch.bfloat16)],
        "b": np.zeros(2),
        "c": torch.zeros(2, 1).expand(2, 4),
    }
    before = digest_of(state)
    assert digest_of(state) == before
    state["a"][0][2] = -0.0
    assert digest_of(state) != before
    state["a"][0][2], state["b"][1] = 0.0, 1e-300
    assert digest_of(state) != before
