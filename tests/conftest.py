"""What several rooms test with: a tiny data folder, and the command line within this process."""

import os
import random
import signal

import pytest
import torch

TEXT = "the of and to in model byte token weight scale window score shard rate step loss matrix table"


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests that take more than 20 seconds")
    parser.addoption("--gpu", action="store_true", help="let the tests see the machine's GPUs; expectations are a CPU's")


def pytest_configure(config):
    if not config.getoption("--gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["TRITON_INTERPRET"] = "1"  # read as triton is imported: its kernels then run on the CPU, step by step
    config.addinivalue_line("markers", "slow: takes more than 20 seconds; run with --slow")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: give --slow"))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny tensors, and processes side by side: more threads only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory):
    """A folder of 60 text files, 650 bytes each."""
    folder, chance = tmp_path_factory.mktemp("corpus"), random.Random(5)
    for number in range(60):
        sentences = [" ".join(chance.choices(TEXT.split(), k=9)).capitalize() + ".\n" for _ in range(14)]
        (folder / f"doc{number:02}.txt").write_text("".join(sentences))
    return folder


@pytest.fixture(scope="session")
def tiny_data(tiny_corpus, tmp_path_factory):
    """A data folder of 300 pieces: three training shards, one of validation. Not to be written to."""
    from fairway.data.build import build_dataset

    out = tmp_path_factory.mktemp("tiny") / "data"
    build_dataset(tiny_corpus, out, vocab=300, normalization="identity", shard_tokens=12_000)
    return out


@pytest.fixture(scope="session")
def tiny_run(tiny_data, tmp_path_factory):
    """A run folder, trained and packed. Not to be written to."""
    from fairway.stages import pack, train
    from fairway.terminal import Terminal
    from train.tiny import SETTINGS

    run, silent = tmp_path_factory.mktemp("tiny") / "run", Terminal(quiet=True)
    train("demo", tiny_data, run, 42, 12, None, SETTINGS, silent)
    pack(run, None, "base85", silent)
    return run


@pytest.fixture
def fairway_here(capsys):
    """`fairway_here(*arguments)` runs the command line in this process: (exit code, standard output, lines of error)."""
    from fairway.cli import main

    handler = signal.getsignal(signal.SIGTERM)

    def call(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err.splitlines()

    yield call
    signal.signal(signal.SIGTERM, handler)
