import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.data.shards import open_shard, write_shard
from fairway.problem import Problem


@settings(max_examples=40, deadline=None)
@given(tokens=st.lists(st.integers(0, 65535), max_size=300))
def test_a_shard_comes_back_as_it_was_written(tmp_path_factory, tokens):
    path = tmp_path_factory.mktemp("shard") / "train_000000.bin"
    write_shard(path, np.array(tokens, np.uint16))
    back = open_shard(path)
    assert back.dtype == np.uint16 and back.tolist() == tokens


def test_the_bytes_of_a_shard_are_the_contests(tmp_path):
    write_shard(tmp_path / "a.bin", np.array([1, 2, 513], np.uint16))
    data = (tmp_path / "a.bin").read_bytes()
    assert np.frombuffer(data[:1024], "<i4").tolist() == [20240520, 1, 3] + [0] * 253
    assert data[1024:] == bytes([1, 0, 2, 0, 1, 2])


def test_a_shard_is_a_map_that_cannot_be_written(tmp_path):
    write_shard(tmp_path / "a.bin", np.arange(10, dtype=np.uint16))
    tokens = open_shard(tmp_path / "a.bin")
    assert isinstance(tokens, np.memmap)
    with pytest.raises(ValueError):
        tokens[0] = 7


def _header(*words):
    return np.array([*words, *[0] * (256 - len(words))], "<i4").tobytes()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "0 bytes"),
        (b"x" * 1023, "1023 bytes"),
        (_header(20240521, 1, 1) + b"\0\0", "magic number is 20240521"),
        (_header(20240520, 2, 1) + b"\0\0", "version 2"),
        (_header(20240520, 1, 2) + b"\0\0", "truncated"),
        (_header(20240520, 1, 2) + b"\0\0\0", "truncated"),
        (_header(20240520, 1, 0) + b"\0\0", "too long"),
        (_header(20240520, 1, -1), "too long"),
    ],
)
def test_a_file_that_is_no_whole_shard_is_one_line(tmp_path, data, says):
    path = tmp_path / "bad.bin"
    path.write_bytes(data)
    with pytest.raises(Problem, match=says) as caught:
        open_shard(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_absent_shard_is_one_line(tmp_path):
    with pytest.raises(Problem, match="cannot read shard"):
        open_shard(tmp_path / "none.bin")


def test_ids_that_do_not_fit_are_refused_and_nothing_is_left_behind(tmp_path):
    for tokens in ([70000], [-1]):
        with pytest.raises(Problem, match="uint16"):
            write_shard(tmp_path / "a.bin", np.array(tokens))
    with pytest.raises(ValueError):
        write_shard(tmp_path / "a.bin", np.array([0.5]))
    assert not list(tmp_path.iterdir())
