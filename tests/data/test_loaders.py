"""Which tokens reach which rank in which step, against slow and literal readings of the two orders."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.data.loaders import LoaderContext, SequentialShards, ShuffledWindows
from fairway.data.shards import write_shard
from fairway.node import parse_node
from fairway.problem import Problem

NODES = [SequentialShards(), ShuffledWindows()]


def shards_of(folder, sizes, vocab=1000):
    """Shards of the given sizes; each token says where in the whole stream it stands, so that an order can be read off."""
    stream = np.arange(sum(sizes), dtype=np.uint16) % vocab
    parts = np.split(stream, np.cumsum(sizes)[:-1])
    paths = [folder / f"train_{index:06d}.bin" for index in range(len(sizes))]
    for path, part in zip(paths, parts, strict=True):
        write_shard(path, part)
    return tuple(paths), parts


def context(paths, rank=0, world=1, tokens=24, seq=8, vocab=1000):
    return LoaderContext(tuple(paths), rank, world, tokens, seq, vocab)


def literal_sequential(parts, world, rank, tokens, seq, steps):
    """Takes one token after the other from a tape that begins again after its last token."""
    tape = [int(token) for part in parts for token in part]
    head = 0
    for _ in range(steps):
        taken = []
        for _ in range(world * (tokens + 1)):
            taken.append(tape[head])
            head = head + 1 if head + 1 < len(tape) else 0
        span = taken[rank * (tokens + 1) :][: tokens + 1]
        rows = range(0, tokens, seq)
        yield [span[row : row + seq] for row in rows], [span[row + 1 : row + seq + 1] for row in rows]


def literal_shuffled(parts, world, rank, tokens, seq, steps, seed=0):
    """Lists of starts that are popped from the end; `parts` of this rank are every world-th."""
    mine, generator = parts[rank::world], np.random.Generator(np.random.PCG64(seed + rank))

    def reset():
        lists = []
        for part in mine:
            n = len(part)
            max_phase = min(seq - 1, n - seq - 1)
            phase = int(generator.integers(max_phase + 1))
            lists.append([phase + seq * int(place) for place in generator.permutation((n - 1 - phase) // seq)])
        return lists

    starts = reset()
    for _ in range(steps):
        xs, ys = [], []
        for _ in range(tokens // seq):
            if not any(starts):
                starts = reset()
            weights = np.array([len(one) for one in starts], dtype=np.float64)
            chosen = int(generator.choice(len(mine), p=weights / weights.sum()))
            start = starts[chosen].pop()
            window = mine[chosen][start : start + seq + 1].tolist()
            xs.append(window[:-1])
            ys.append(window[1:])
        yield xs, ys


@pytest.mark.parametrize("world", [1, 2, 8])
@pytest.mark.parametrize("node, literal", [(NODES[0], literal_sequential), (NODES[1], literal_shuffled)])
def test_every_rank_reads_what_the_words_say(tmp_path, world, node, literal):
    sizes = [211, 97, 160, 83, 140, 101, 333, 64, 9, 77, 130, 55, 120, 90, 46, 88, 19]
    paths, parts = shards_of(tmp_path, sizes)
    for rank in range(world):
        loader = node.build(context(reversed(paths), rank, world))
        for x_BT, y_BT in literal(parts, world, rank, tokens=24, seq=8, steps=60):
            x, y = loader.next()
            assert (x.tolist(), y.tolist()) == (x_BT, y_BT)
            assert x.is_contiguous() and x.dtype == y.dtype and str(x.dtype) == "torch.int64"


def test_another_seed_is_another_order_but_the_same_words(tmp_path):
    paths, parts = shards_of(tmp_path, [400, 300])
    loader = ShuffledWindows(seed=5).build(context(paths))
    expected = list(literal_shuffled(parts, 1, 0, tokens=24, seq=8, steps=40, seed=5))
    assert [tuple(part.tolist() for part in loader.next()) for _ in range(40)] == expected
    assert ShuffledWindows().build(context(paths)).next()[0].tolist() != expected[0][0]
    assert parse_node(repr(ShuffledWindows(seed=5))) == ShuffledWindows(seed=5)


@settings(max_examples=40, deadline=None)
@given(
    node=st.sampled_from(NODES),
    sizes=st.lists(st.integers(25, 40), min_size=1, max_size=5),
    world=st.sampled_from([1, 2, 8]),
    rank=st.integers(0, 7),
    before=st.integers(0, 120),
    detour=st.integers(0, 9),
)
def test_a_run_resumed_at_any_step_sees_the_same_batches(tmp_path_factory, node, sizes, world, rank, before, detour):
    paths, _ = shards_of(tmp_path_factory.mktemp("resume"), sizes)
    one = context(paths, rank % world, world, tokens=2, seq=2)
    loader = node.build(one)
    for _ in range(before):
        loader.next()
    state = json.loads(json.dumps(loader.state()))
    expected = [tuple(part.tolist() for part in loader.next()) for _ in range(30)]
    again = node.build(one)
    for _ in range(detour):
        again.next()
    again.restore(state)
    assert [tuple(part.tolist() for part in again.next()) for _ in range(30)] == expected


@pytest.mark.parametrize("world", [2, 8])
def test_all_ranks_together_read_what_one_rank_reads_in_as_many_micro_steps(tmp_path, world):
    paths, _ = shards_of(tmp_path, [211, 97, 160])
    alone = SequentialShards().build(context(paths))
    ranks = [SequentialShards().build(context(paths, rank, world)) for rank in range(world)]
    for _ in range(12):
        for loader in ranks:
            x, y = loader.next()
            x_alone, y_alone = alone.next()
            assert x.equal(x_alone) and y.equal(y_alone)
    assert len({json.dumps(loader.state()) for loader in (alone, *ranks)}) == 1


def test_a_corpus_of_a_few_dozen_tokens_wraps_many_times(tmp_path):
    paths, parts = shards_of(tmp_path, [5, 26])
    for rank in range(8):
        loader = SequentialShards().build(context(paths, rank, 8))
        for x_BT, _ in literal_sequential(parts, 8, rank, tokens=24, seq=8, steps=20):
            assert loader.next()[0].tolist() == x_BT


def test_an_empty_shard_and_one_shorter_than_a_window_are_passed_over(tmp_path):
    paths, parts = shards_of(tmp_path, [0, 60, 0, 5, 60, 0])
    sequential, shuffled = (node.build(context(paths)) for node in NODES)
    for x_BT, _ in literal_sequential(parts, 1, 0, tokens=24, seq=8, steps=20):
        assert sequential.next()[0].tolist() == x_BT
    seen = {row[0] for _ in range(30) for row in shuffled.next()[0].tolist()}
    assert not seen & set(range(60, 65)) and min(seen) < 60 and max(seen) >= 65


def test_an_epoch_holds_every_window_once(tmp_path):
    paths, _ = shards_of(tmp_path, [8 * 9 + 1, 8 * 6 + 1])
    loader = ShuffledWindows().build(context(paths, tokens=8))
    left = sum(loader.state()["left"])
    starts = [int(loader.next()[0][0, 0]) for _ in range(left)]
    assert len(set(starts)) == left and left >= 13
    for shard, size in ((0, 73), (73, 49)):
        mine = sorted(start - shard for start in starts if 0 <= start - shard < size)
        assert mine == list(range(mine[0], size - 8, 8))


def test_ranks_that_share_a_shard_read_disjoint_parts_that_cover_it(tmp_path):
    paths, _ = shards_of(tmp_path, [400, 300])
    seen = []
    for rank in range(5):
        loader = ShuffledWindows().build(context(paths, rank, 5, tokens=8))
        windows = range(sum(loader.state()["left"]))
        seen.append({token for _ in windows for part in loader.next() for token in part.flatten().tolist()})
    assert [len(one) for one in map(set.intersection, seen[:-1], seen[1:])] == [0] * 4
    assert len(set.union(*seen)) == sum(map(len, seen)) >= 700 - 5 * 14
    assert seen[0] | seen[2] | seen[4] <= set(range(400)) and seen[1] | seen[3] <= set(range(400, 700))


@pytest.mark.parametrize(
    "node, sizes, changes, words",
    [
        (NODES[0], [50], {"tokens": 25}, ["25 ", "sequence length 8"]),
        (NODES[1], [50], {"tokens": 4}, ["4 ", "sequence length 8"]),
        (NODES[0], [24], {}, ["24 tokens", "takes 25"]),
        (NODES[1], [8, 7], {}, ["8 tokens", "9"]),
        (NODES[1], [20], {"world": 3, "rank": 1}, ["rank 1", "7 tokens", "9"]),
        (NODES[0], [], {}, ["fairway data build"]),
        (NODES[1], [], {}, ["fairway data build"]),
    ],
)
def test_a_batch_that_cannot_be_made_is_a_problem_that_names_the_numbers(tmp_path, node, sizes, changes, words):
    paths, _ = shards_of(tmp_path, sizes) if sizes else ((), ())
    with pytest.raises(Problem) as caught:
        node.build(context(paths, **changes))
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


@pytest.mark.parametrize("node", NODES)
def test_a_token_that_the_model_has_no_row_for_names_its_file(tmp_path, node):
    paths, _ = shards_of(tmp_path, [100, 33])
    node.build(context(paths, vocab=133, tokens=128)).next()
    with pytest.raises(Problem, match=r"token 132 in .*train_000001.bin but the model has 132 rows"):
        loader = node.build(context(paths, vocab=132, tokens=128))
        for _ in range(20):
            loader.next()


@pytest.mark.parametrize("node", NODES)
def test_a_state_from_longer_shards_is_refused(tmp_path, node):
    paths, _ = shards_of(tmp_path, [400, 300])
    loader = node.build(context(paths))
    for _ in range(8):
        loader.next()
    short, _ = shards_of(tmp_path / "short", [60, 40])
    with pytest.raises(Problem, match="the data changed"):
        node.build(context(short)).restore(loader.state())
