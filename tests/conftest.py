"""What several rooms test with: a tiny data folder, and the command line within this process."""

import random
import signal

import pytest
import torch

WORDS = "the of and to in model byte token weight scale window score shard rate step loss matrix table".split()


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory):
    """A folder of 60 text files, 650 bytes each."""
    folder, chance = tmp_path_factory.mktemp("corpus"), random.Random(5)
    for number in range(60):
        sentences = [" ".join(chance.choices(WORDS, k=9)).capitalize() + ".\n" for _ in range(14)]
        (folder / f"doc{number:02}.txt").write_text("".join(sentences))
    return folder


@pytest.fixture(scope="session")
def tiny_data(tiny_corpus, tmp_path_factory):
    """A data folder of 300 pieces: three training shards, one of validation. Not to be written to."""
    from fairway.data.build import build_dataset

    out = tmp_path_factory.mktemp("tiny") / "data"
    build_dataset(tiny_corpus, out, vocab=300, normalization="identity", shard_tokens=12_000)
    return out


@pytest.fixture
def fairway_here(capsys):
    """`fairway_here(*arguments)` runs the command line in this process: (exit code, standard output, lines of error)."""
    from fairway.cli import main

    handler, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    torch.set_num_threads(1)

    def call(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err.splitlines()

    yield call
    signal.signal(signal.SIGTERM, handler)
    torch.set_num_threads(threads)
