"""The checks that every window, adapter and mixer goes through, in every combination.

N targets, V vocabulary.
"""

import importlib
import math
import pkgutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fairway.score
from conformance.evaluators_table import ADAPTERS, LENGTH, MIXERS, ROWS, TILT, UNNORMALISED, WINDOWS
from conformance.table import BASE, BOS, randomise
from fairway.kernels.capability import capability
from fairway.model.positions import QKNorm, Rotary
from fairway.model.stream import InputNorm
from fairway.node import node_kinds, parse_node, show
from fairway.score.adapter import AdaptContext, build_adapter
from fairway.score.commit import Committer, read_model
from fairway.score.lora import DocumentLoRA
from fairway.score.schedule import scoring_rank
from fairway.score.scorer import Pass
from fairway.score.watched import WatchedPass
from fairway.score.windows import Evaluation
from fairway.sites import AdaptSite, MixSite, WindowSite
from fairway.train.dist import World
from score.test_scorer import Ranks

CPU = torch.device("cpu")
VOCAB, TOKENS = 12, 200
NODE = replace(BASE, vocab=VOCAB, stream=(InputNorm(),), positions=(QKNorm(), Rotary()), layers=2, sequence=LENGTH)
EVERY = [(windows, adapt, mix) for windows in WINDOWS for adapt in ADAPTERS for mix in MIXERS]
# Mixers work on what the pass has given: with each adapter and window the longest chain stands for them all.
CHAINS = [(windows, adapt, mix) for windows in WINDOWS for adapt in ADAPTERS for mix in MIXERS[-1:]]
CHAINS += [(WINDOWS[1], (), mix) for mix in MIXERS]


def brief(value):
    """A name for a test, of a node or of a tuple of nodes."""
    nodes = value if isinstance(value, tuple) else (value,)
    return "+".join(type(node).__name__ for node in nodes) or "none"


def by_length(row):
    """Whether the order of scoring goes by the lengths of documents: one that is cut short takes another place."""
    return any(isinstance(node, DocumentLoRA) for node in row[1])


def text(seed=0, tokens=TOKENS):
    """Documents of many lengths that repeat themselves and each other: contexts come back."""
    draw = np.random.default_rng(seed)
    phrases = [draw.integers(BOS + 1, VOCAB, draw.integers(2, 6)) for _ in range(4)]
    stream = []
    while len(stream) < tokens:
        body = np.concatenate([phrases[i] for i in draw.integers(0, 4, draw.integers(1, 12))])
        stream += [BOS, *body[: draw.integers(1, 60)]]
    return np.array(stream[:tokens], np.uint16)


def passing(tokens, windows, adapt, mix, batch=4, world=None, starts=None, kind=WatchedPass):
    """(Pass, its model, its adapter). `starts`: the documents', by default where the tokens have a BOS."""
    fresh = tuple(part for node in adapt for part in node.fresh)
    model = randomise(replace(NODE, stream=(*NODE.stream, *fresh)).build(), seed=1)
    world, evaluation = world or World(0, 1, CPU), Evaluation(windows, batch_windows=batch)
    adapter = build_adapter(adapt, AdaptContext(model, capability(CPU), world, evaluation))
    commit, starts = Committer(read_model(model), VOCAB, CPU), np.flatnonzero(tokens == BOS) if starts is None else starts
    return kind(commit, tokens, evaluation, 2 * len(tokens), world, starts, adapter, mix), model, adapter


def nats_of(tokens, windows, adapt, mix, **more):
    """float32 nats of every target by the last mixer."""
    return passing(tokens, windows, adapt, mix, **more)[0].run()[-1][1].nats_N


def test_every_window_adapter_and_mixer_stands_in_the_table():
    for module in pkgutil.iter_modules(fairway.score.__path__):
        importlib.import_module(f"fairway.score.{module.name}")
    sites = (WindowSite, AdaptSite, MixSite)
    kinds = {kind for kind in node_kinds().values() if issubclass(kind, sites) and kind.__module__.startswith("fairway.")}
    assert kinds == {type(row) for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=repr)
def test_a_row_is_read_back_from_what_it_shows(row):
    assert parse_node(show(row)) == row


@pytest.mark.parametrize("windows, adapt, mix", EVERY, ids=brief)
def test_each_target_is_scored_once_and_nothing_is_left_behind(windows, adapt, mix):
    tokens = text()
    one, model, adapter = passing(tokens, windows, adapt, mix)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    nats_N = one.run()[-1][1].nats_N
    assert nats_N.shape == (len(tokens) - 1,) and np.isfinite(nats_N).all() and (nats_N >= 0).all()
    assert bool((one.times_N[:-1] == 1).all())
    if adapter is not None:
        adapter.restore()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    np.testing.assert_array_equal(nats_of(tokens, windows, adapt, mix), nats_N)


@pytest.mark.parametrize("windows, adapt, mix", CHAINS, ids=brief)
def test_neither_the_batch_nor_the_number_of_ranks_changes_a_score(windows, adapt, mix):
    tokens = text()
    nats_N = nats_of(tokens, windows, adapt, mix)
    for batch in (1, 32):
        np.testing.assert_allclose(nats_of(tokens, windows, adapt, mix, batch=batch), nats_N, rtol=1e-3, atol=1e-4)
    for ranks_N in Ranks(2).run(lambda world: nats_of(tokens, windows, adapt, mix, world=world)):
        np.testing.assert_allclose(ranks_N, nats_N, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("windows, adapt, mix", CHAINS, ids=brief)
def test_a_pass_that_nobody_watches_gives_the_same_bits(windows, adapt, mix):
    tokens = text()
    watched, alone = (passing(tokens, windows, adapt, mix, kind=kind)[0].run() for kind in (WatchedPass, Pass))
    assert [name for name, _ in watched] == [name for name, _ in alone]
    assert [scored.nats for _, scored in watched] == [scored.nats for _, scored in alone]


def flipped(tokens, changed, shift):
    """Other tokens where `changed`, none of them a document start."""
    other = tokens.copy()
    other[changed] = BOS + 1 + (tokens[changed].astype(int) - BOS - 1 + shift) % (VOCAB - BOS - 1)
    return other


@pytest.mark.parametrize(
    "windows, adapt, mix", [*CHAINS, *((windows, (), UNNORMALISED) for windows in WINDOWS[:2])], ids=repr
)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 3), place=st.floats(0.05, 0.98), shift=st.integers(1, 8))
def test_a_token_changes_nothing_that_is_scored_before_it(windows, adapt, mix, seed, place, shift):
    tokens = text(seed)
    one = passing(tokens, windows, adapt, mix)[0]
    rank_N = scoring_rank(one.schedule, one.plan)
    # All tokens from a place in the order of scoring on. Where documents begin is known beforehand, as it is in all public
    # systems that go by documents.
    first = int(place * len(rank_N))
    changed = np.concatenate([[False], rank_N >= first]) & (tokens != BOS)
    before_N, after_N = one.run()[-1][1].nats_N, nats_of(flipped(tokens, changed, shift), windows, adapt, mix)
    np.testing.assert_array_equal(after_N[rank_N < first], before_N[rank_N < first])
    assert changed.sum() < 5 or not np.array_equal(after_N, before_N)


@pytest.mark.parametrize("windows, adapt, mix", [row for row in EVERY if not by_length(row)], ids=brief)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 3), place=st.integers(100, TOKENS - 1))
def test_a_text_that_ends_sooner_scores_the_same_until_then(windows, adapt, mix, seed, place):
    tokens = text(seed)
    whole = passing(tokens, windows, adapt, mix)[0]
    # The rates of test-time training follow the number of chunks, so that is told; the last window reaches further back.
    chunks = tuple(replace(node, chunks=len(whole.schedule)) for node in adapt)
    cut_N = nats_of(tokens[:place], windows, chunks, mix)
    same = max(0, place - 1 - LENGTH)
    np.testing.assert_allclose(cut_N[:same], whole.run()[-1][1].nats_N[:same], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("windows, adapt, mix", CHAINS, ids=brief)
def test_the_probabilities_of_a_warm_state_sum_to_one(windows, adapt, mix):
    tokens = text(2, 150)
    starts = np.flatnonzero(tokens == BOS)
    at = 149 - int(np.argmax((tokens != BOS)[::-1]))
    total = 0.0
    for token in range(VOCAB):
        other = tokens.copy()
        other[at] = token
        total += math.exp(-float(nats_of(other, windows, adapt, mix, starts=starts)[at - 1]))
    assert total == pytest.approx(1.0, abs=1e-5)


def test_the_published_cache_sums_to_more_than_one_and_says_so():
    tokens = text(2, 400)
    one = passing(tokens, WINDOWS[1], (), UNNORMALISED)[0]
    facts = one.run()[-1][1].facts
    total = 0.0
    for token in range(VOCAB):
        other = tokens.copy()
        other[399] = token
        total += math.exp(-float(nats_of(other, WINDOWS[1], (), UNNORMALISED)[398]))
    assert total > 1.01 and facts["mean_z"] > 1.01 and facts["normalised"] is False and "not a probability" in facts["says"]


@pytest.mark.parametrize("windows, adapt, mix", CHAINS, ids=brief)
def test_noise_is_never_predicted_better_than_noise_can_be(windows, adapt, mix):
    tokens = np.random.default_rng(9).integers(BOS + 1, VOCAB, 600).astype(np.uint16)
    one = passing(tokens, windows, adapt, mix, starts=np.array([0, 150, 260, 450]))[0]
    scored = one.run()[-1][1]
    # Not even a model that knew which ids occur could do better than their number; four standard errors of room.
    error = float(scored.nats_N.std()) / math.sqrt(scored.tokens)
    assert scored.nats / scored.tokens > math.log(VOCAB - BOS - 1) - 4 * error


def test_mixers_learn_in_the_order_of_scoring_also_where_every_group_is_a_single_window():
    lora = DocumentLoRA(rank=2, batch=1, context=LENGTH, chunks=(), chunk=LENGTH, phases=2, prefix=2)
    body = [3, 4, 5, 6, 7, 3, 4, 5, 6, 7, 3, 4, 5, 6, 7]
    tokens = np.array([BOS, *body[:5], BOS, *body[:9], BOS, *body[:14]], np.uint16)
    one = passing(tokens, WINDOWS[0], (lora,), (TILT,))[0]
    assert [group.windows().tolist() for group in one.schedule] == [[2], [1], [0]]
    # The first document, scored last, repeats the others: they must not have seen it.
    first = np.arange(len(tokens)) < 6
    before_N = one.run()[-1][1].nats_N
    after_N = nats_of(flipped(tokens, first & (tokens != BOS), 4), WINDOWS[0], (lora,), (TILT,))
    np.testing.assert_array_equal(after_N[6:], before_N[6:])
