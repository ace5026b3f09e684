"""Toy predictors over toy streams; the stream's byte table is a double with the real table's one method."""

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.problem import Problem
from fairway.score.commit import Committer, fused_commit, read_function, reference_commit
from fairway.score.watched import WatchedPass
from fairway.score.windows import Evaluation, NonOverlapping, Sliding
from fairway.train.dist import World

CPU = torch.device("cpu")


class TwoBytes:
    """Every token is two bytes, token 0 none; a token after token 0 is one byte shorter."""

    def counts(self, previous, target):
        return (2 * (target != 0) - ((previous == 0) & (target != 0))).astype(np.int16)


class Ranks:
    """Ranks as threads: all_reduce_sum adds up in rank order, largest takes the largest."""

    def __init__(self, size):
        self.size, self.parts, self.barrier = size, [None] * size, threading.Barrier(size, timeout=20)

    def world(self, rank):
        ranks = self

        class OneOfThem:
            size, device = ranks.size, CPU

            def gathered(self, thing):
                ranks.parts[rank] = thing
                ranks.barrier.wait()
                parts = list(ranks.parts)
                ranks.barrier.wait()
                return parts

            def all_reduce_sum(self, tensor):
                parts = self.gathered(tensor.clone())
                return tensor.copy_(sum(parts[1:], parts[0].clone()))

            def largest(self, numbers):
                return [max(column) for column in zip(*self.gathered(list(numbers)), strict=True)]

            def synchronize(self):
                pass

        OneOfThem.rank = rank
        return OneOfThem()

    def run(self, work):
        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(work, [self.world(rank) for rank in range(self.size)]))


def uniform(vocab):
    return lambda ids, first: torch.zeros(*ids[:, first:].shape, vocab)


def context_hash(vocab):
    """Logits that depend on every token of the context and its order, exactly: integers, then quarters."""

    def predict(ids_BT, first):
        state_B, logits = torch.zeros(len(ids_BT), dtype=torch.int64), []
        for position in range(ids_BT.shape[1]):
            state_B = (state_B * 31 + ids_BT[:, position] + 7) % 1_000_003
            logits.append((state_B[:, None] * (torch.arange(vocab) + 3) % 23).float() / 4)
        return torch.stack(logits[first:], dim=1)

    return predict


def noise(tokens, vocab, seed=0):
    return np.random.default_rng(seed).integers(0, vocab, tokens).astype(np.uint16)


def passing(predict, tokens, windows, vocab, **more):
    names = ("multiple_of", "batch_windows", "seconds")
    evaluation = Evaluation(windows, **{name: more.pop(name) for name in names if name in more})
    targets, world = evaluation.scored_targets(len(tokens)), more.pop("world", World(0, 1, CPU))
    count = int(TwoBytes().counts(tokens[:targets], tokens[1 : targets + 1]).sum())
    commit = Committer(read_function(lambda ids_BT: predict(ids_BT, 0), vocab), vocab, CPU)
    return WatchedPass(commit, tokens, evaluation, count, world, **more)


def score(predict, tokens, windows, vocab, progress=None, **more):
    return passing(predict, tokens, windows, vocab, **more).run(progress)[0][1]


@pytest.mark.parametrize("windows", [Sliding(32, 8), NonOverlapping(32), Sliding(4000, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_uniform_predictor_scores_ln_v_a_token(windows, dtype):
    vocab, tokens = 1024, noise(500, 1024)
    scored = score(lambda ids, first: uniform(vocab)(ids, first).to(dtype) + 3, tokens, windows, vocab)
    assert scored.nats / scored.tokens == pytest.approx(math.log(vocab), rel=1e-14)
    assert scored.tokens == 499


def test_a_score_by_hand():
    # V=3, stream 1 2 0 2; logits for the next token depend on the last one only.
    rows = torch.log(torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8], [0.6, 0.2, 0.2]], dtype=torch.float64))
    scored = score(lambda ids, first: rows[ids[:, first:]] + 5.0, np.array([1, 2, 0, 2], np.uint16), NonOverlapping(2), 3)
    nats = -math.log(0.8) - math.log(0.6) - math.log(0.5)
    assert scored.nats == pytest.approx(nats, rel=1e-12)
    assert scored.bytes == 2 + 0 + 1
    assert scored.bpb == pytest.approx(nats / math.log(2) / 3, rel=1e-12)
    assert scored.implied_bytes == pytest.approx(3, rel=1e-12)
    assert scored.nats_N == pytest.approx([-math.log(0.8), -math.log(0.6), -math.log(0.5)], rel=1e-6)
    assert scored.nats_N.dtype == np.float32
    assert scored.as_json() == {
        "bpb": scored.bpb,
        "nats": scored.nats,
        "tokens": 3,
        "bytes": 3,
        "implied_bytes": scored.implied_bytes,
        "dropped_targets": 0,
        "windows": 2,
    }


@pytest.mark.parametrize("scale, seed", [(0.5, 1), (3.0, 2)])
def test_random_logits_never_predict_noise_better_than_uniform(scale, seed):
    vocab, random = 64, torch.Generator().manual_seed(seed)

    def predict(ids, first):
        return scale * torch.randn(*ids[:, first:].shape, vocab, generator=random)

    scored = score(predict, noise(20_001, vocab, seed), NonOverlapping(100), vocab)
    error = float(scored.nats_N.std()) / math.sqrt(scored.tokens)
    # E[nats] = ln V + KL(uniform || prediction), which is at least ln V; five standard errors of room.
    assert scored.nats / scored.tokens > math.log(vocab) - 5 * error
    assert scored.nats / scored.tokens > math.log(vocab) + 0.05 * scale**2


def test_a_confident_guess_of_noise_costs_what_it_must():
    vocab, boost = 64, 8.0

    def predict(ids, first):
        guess_BS = (ids[:, first:] * 5 + 1) % vocab
        return boost * torch.nn.functional.one_hot(guess_BS, vocab).float()

    scored = score(predict, noise(40_001, vocab), Sliding(100, 50), vocab)
    error = float(scored.nats_N.std()) / math.sqrt(scored.tokens)
    expected = math.log(vocab - 1 + math.exp(boost)) - boost / vocab
    assert scored.nats / scored.tokens == pytest.approx(expected, abs=5 * error)
    assert expected > math.log(vocab) + 5 * error


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 90), st.integers(1, 30), st.data())
def test_every_token_is_scored_once_from_its_own_context(tokens, length, data):
    stride, vocab = data.draw(st.integers(1, length)), 5
    stream, predict = noise(tokens, vocab, seed=tokens), context_hash(vocab)
    stream[1] = 1  # a stream of no bytes has no score
    windows = Sliding(length, stride)
    scored = score(predict, stream, windows, vocab, batch_windows=3)
    plan, expected = windows.plan(tokens - 1), np.full(tokens - 1, np.nan)
    for start, first, end in zip(plan.start, plan.first, plan.end, strict=True):
        for target in range(start + first, end):
            context = torch.from_numpy(stream[start : target + 1].astype(np.int64))[None]
            assert target < length or len(context[0]) > length - stride
            expected[target] = -predict(context, target - start)[0, 0].double().log_softmax(0)[int(stream[target + 1])]
    np.testing.assert_allclose(scored.nats_N, expected, rtol=1e-6)


@pytest.mark.parametrize("batch", [2, 7, 32])
def test_the_batch_size_changes_nothing(batch):
    stream, predict = noise(700, 11), context_hash(11)
    one = score(predict, stream, Sliding(40, 16), 11, batch_windows=1)
    other = score(predict, stream, Sliding(40, 16), 11, batch_windows=batch)
    assert other.nats == pytest.approx(one.nats, rel=1e-12)
    np.testing.assert_allclose(other.nats_N, one.nats_N, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("tokens", [30, 700])
def test_ranks_change_nothing(size, tokens):
    # 30 tokens are one window: with five ranks, four have no work.
    stream, predict = noise(tokens, 11), context_hash(11)
    alone = score(predict, stream, Sliding(40, 16), 11, batch_windows=4)
    together = Ranks(size).run(lambda world: score(predict, stream, Sliding(40, 16), 11, batch_windows=4, world=world))
    for scored in together:
        assert scored.nats == pytest.approx(alone.nats, rel=1e-12)
        assert (scored.bytes, scored.tokens, scored.windows) == (alone.bytes, alone.tokens, alone.windows)
        np.testing.assert_allclose(scored.nats_N, alone.nats_N, rtol=1e-6)


def test_each_rank_takes_a_contiguous_share():
    stream, starts = np.arange(641).astype(np.uint16), {}

    def work(world):
        def predict(ids, first):
            # A batch that is not full repeats its last window.
            starts.setdefault(world.rank, []).extend(dict.fromkeys(ids[:, 0].tolist()))
            return uniform(641)(ids, first)

        score(predict, stream, NonOverlapping(64), 641, world=world)

    Ranks(3).run(work)
    assert starts == {0: [0, 64, 128], 1: [192, 256, 320], 2: [384, 448, 512, 576]}


def test_batches_have_few_shapes_and_all_are_run_before_the_pass_begins():
    seen = []

    def predict(ids, first):
        seen.append(tuple(ids.shape))
        return uniform(7)(ids, first)

    one = passing(predict, noise(64 + 7 * 16 + 3 + 1, 7), Sliding(64, 16), 7, batch_windows=5)
    kinds = {(cut.shape, cut.layout is None) for cut in one.cuts(np.arange(len(one.plan)))}
    assert kinds == {((5, 64, 64), True), ((5, 64, 16), True)}
    assert one.warm_up() > 0
    warmed = set(seen)
    seen.clear()
    one.run()
    assert set(seen) == warmed == {(5, 64)}


def test_a_warm_up_shows_the_predictor_random_tokens_only():
    seen = []

    def predict(ids, first):
        seen.append(ids.clone())
        return uniform(64)(ids, first)

    stream = np.full(300, 63, np.uint16)
    passing(predict, stream, Sliding(32, 8), 64).warm_up()
    assert seen and not any(bool((ids[:, :-1] == 63).all()) for ids in seen)


class Clockwork:
    """A predictor that lets `seconds` pass in each call."""

    def __init__(self, vocab, seconds):
        self.vocab, self.seconds, self.calls = vocab, seconds, 0

    def __call__(self, ids, first):
        self.calls += 1
        time.sleep(self.seconds)
        return context_hash(self.vocab)(ids, first)


def test_where_the_budget_ends_the_rest_is_scored_plainly_and_nothing_is_lost(monkeypatch):
    monkeypatch.setattr("fairway.score.watched.CHECK_EVERY", 2)
    stream, windows = noise(1200, 11), Sliding(40, 4)
    whole = passing(context_hash(11), stream, windows, 11, batch_windows=4)
    slow = passing(Clockwork(11, 0.02), stream, windows, 11, batch_windows=4, seconds=1.2)
    assert slow.warm_up() > 1.2
    (_, exact), (_, cut) = whole.run()[0], slow.run()[0]
    assert cut.tokens == exact.tokens == 1199
    assert 100 < cut.facts["plainly_scored"] < 1199 and exact.facts["plainly_scored"] == 0
    done = 1199 - cut.facts["plainly_scored"]
    np.testing.assert_allclose(cut.nats_N[:done], exact.nats_N[:done], rtol=1e-6)
    # Windows side by side from there on, as if the text began anew.
    rest = score(context_hash(11), stream[done:], NonOverlapping(40), 11)
    np.testing.assert_allclose(cut.nats_N[done:], rest.nats_N, rtol=1e-6)


def test_the_forecast_is_about_what_the_pass_takes():
    one = passing(Clockwork(11, 0.02), noise(800, 11), Sliding(40, 20), 11, batch_windows=4)
    forecast = one.warm_up()
    begin = time.perf_counter()
    one.run()
    assert forecast == pytest.approx(time.perf_counter() - begin, rel=0.5)


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_end_their_adapting_together(size, monkeypatch):
    monkeypatch.setattr("fairway.score.watched.CHECK_EVERY", 2)
    stream = noise(900, 11)

    def work(world):
        predict = Clockwork(11, 0.03 if world.rank else 0.001)
        slow = passing(predict, stream, Sliding(40, 4), 11, batch_windows=4, seconds=0.4, world=world)
        slow.warm_up()
        return slow.run()[0][1]

    found = Ranks(size).run(work)
    assert len({scored.nats for scored in found}) == 1
    assert all(scored.facts["plainly_scored"] == found[0].facts["plainly_scored"] > 0 for scored in found)


@pytest.mark.parametrize("scale", [1.0, 12.0])
def test_the_fused_normalisation_is_the_reference_up_to_rounding(scale):
    draw = torch.Generator().manual_seed(3)
    z_NV = scale * torch.randn(50, 700, generator=draw)
    z_NV[7, 3] = -math.inf
    ids_NK = torch.randint(700, (50, 3), generator=draw)
    exact, entropy = reference_commit(z_NV, ids_NK, True).split([3, 1], dim=1)
    fused, fused_entropy = fused_commit(z_NV, ids_NK, True).split([3, 1], dim=1)
    torch.testing.assert_close(fused.double(), exact, rtol=1e-6, atol=4e-6)
    torch.testing.assert_close(fused_entropy.double(), entropy, rtol=1e-5, atol=1e-5)
    probability = z_NV.double().softmax(1).clamp(min=1e-300)
    torch.testing.assert_close(entropy[:, 0], -(probability * probability.log()).sum(1))
    assert torch.equal(reference_commit(z_NV, ids_NK), exact)


def test_the_multiple_drops_the_tail_and_says_so():
    stream = noise(2 * 64 + 1 + 13, 9)
    stream[-13:] = 8
    whole = score(uniform(9), stream, NonOverlapping(64), 9)
    cut = score(uniform(9), stream, NonOverlapping(64), 9, multiple_of=64)
    assert (whole.tokens, whole.dropped, whole.windows) == (141, 0, 3)
    assert (cut.tokens, cut.dropped, cut.windows) == (128, 13, 2)
    assert len(cut.nats_N) == 128 and len(whole.nats_N) == 141
    assert whole.bytes - cut.bytes in (25, 26)


def test_a_dropped_tail_is_never_shown_to_the_predictor():
    stream = np.concatenate([noise(65, 9), np.full(10, 9, np.uint16)])
    seen = []

    def predict(ids, first):
        seen.append(int(ids.max()))
        return uniform(10)(ids, first)

    score(predict, stream, Sliding(32, 8), 10, multiple_of=64)
    assert max(seen) < 9


def test_windows_that_do_not_cover_are_refused_before_the_predictor_is_called():
    class Careless(Sliding):
        def plan(self, targets, starts=None):
            return super().plan(targets - 1)

    calls = []
    with pytest.raises(ValueError, match=r"not 0\.\.98"):
        score(lambda ids, first: calls.append(ids), noise(100, 9), Careless(32, 8), 9)
    assert not calls


def test_a_bad_logit_ends_the_share_early():
    calls = []

    def predict(ids, first):
        calls.append(first)
        return uniform(9)(ids, first) * math.nan

    with pytest.raises(Problem, match="window 0"):
        score(predict, noise(5000, 9), NonOverlapping(8), 9, batch_windows=1)
    assert len(calls) < 100


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_logit_names_its_window(value):
    def predict(ids, first):
        logits = uniform(200)(ids, first)
        logits[(ids[:, first:] == 100)] = torch.where(torch.arange(200) == 3, value, 0.0)
        return logits

    stream = np.arange(150).astype(np.uint16)
    # Input 100 stands in window 9 of stride 8 after a first of 32: targets 96..103.
    for worlds in (1, 3):
        with pytest.raises(Problem, match=r"window 9 \(tokens 72\.\.103\).*target 100"):
            Ranks(worlds).run(lambda world: score(predict, stream, Sliding(32, 8), 200, batch_windows=2, world=world))


def test_no_chance_for_the_realised_token_is_a_problem_and_for_another_is_fine():
    stream = np.array([1, 2, 1, 2, 1], np.uint16)
    silent = torch.tensor([-math.inf, 0.0, 0.0])
    scored = score(lambda ids, first: uniform(3)(ids, first) + silent, stream, NonOverlapping(4), 3)
    assert scored.nats == pytest.approx(4 * math.log(2), rel=1e-12)
    with pytest.raises(Problem, match="no chance"):
        score(lambda ids, first: uniform(3)(ids, first) + silent.roll(1), stream, NonOverlapping(4), 3)


@pytest.mark.parametrize(
    "predict, found",
    [
        (lambda ids, first: torch.zeros(*ids[:, 1:].shape, 9), r"\[1, 31, 9\].*\[1, 32\]"),
        (lambda ids, first: torch.zeros(*ids[:, first:].shape, 8), "8"),
        (lambda ids, first: torch.zeros(ids[:, first:].numel(), 9), r"\[32, 9\], not one vector"),
        (lambda ids, first: torch.zeros(*ids[:, first:].shape, 9, dtype=torch.int64), "torch.int64"),
        (lambda ids, first: None, "NoneType"),
    ],
)
def test_logits_of_the_wrong_shape_or_kind_are_a_problem(predict, found):
    with pytest.raises(Problem, match=found):
        score(predict, noise(100, 9), Sliding(32, 8), 9, batch_windows=1)


@pytest.mark.parametrize("tokens", [0, 1])
def test_a_stream_without_a_target_is_a_problem(tokens):
    with pytest.raises(Problem, match=f"{tokens} tokens"):
        score(uniform(9), noise(tokens, 9), NonOverlapping(8), 9)


def test_an_id_outside_the_vocabulary_is_a_problem_that_names_it():
    stream = noise(50, 9)
    stream[20] = 9
    with pytest.raises(Problem, match=r"token 20 .* is 9, not in 0\.\.8"):
        score(uniform(9), stream, NonOverlapping(8), 9)


def test_a_stream_of_no_bytes_is_a_problem():
    with pytest.raises(Problem, match="0 bytes"):
        score(uniform(9), np.zeros(20, np.uint16), NonOverlapping(8), 9)


def test_progress_ends_with_the_whole_share():
    calls = []
    score(
        uniform(9),
        noise(2000, 9),
        Sliding(16, 8),
        9,
        batch_windows=1,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert len(calls) > 2
    assert calls == sorted(calls) and calls[-1] == (1999, 1999)


def test_the_predictor_runs_without_gradients_and_gets_int64_ids():
    weight = torch.zeros(9, 9, requires_grad=True)

    def predict(ids, first):
        assert ids.dtype == torch.int64
        logits = weight[ids[:, first:]]
        assert not logits.requires_grad
        return logits

    score(predict, noise(50, 9), NonOverlapping(8), 9)
