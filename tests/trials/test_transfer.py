"""What is said of fields whose best value another number of GPUs changes."""

import pytest

from fairway.node import paths
from fairway.recipes.catalogue import RECIPES
from fairway.trials.transfer import TRANSFERS, transfer_of


@pytest.mark.parametrize(
    "path, transfers",
    [
        ("average", False), ("average.EMA.decay", False), ("train.batch_tokens", False), ("train.schedule.steps", False),
        ("optim.Muon.momentum.steps", False), ("qat.LateQAT.below", False), ("optim.AdamW:0.rate", False),
        ("optim.Muon.orthogonaliser.steps", None), ("model.width", None), ("train.clip", None), ("loader", None),
        ("model.stream.SmearGate.stop_at_bos", True), ("model.taps", True),
    ],
)  # fmt: skip
def test_what_is_known_to_transfer_is_said_by_path(path, transfers):
    found = transfer_of(path)
    assert found["transfers"] is transfers and found["path"] == path and found["why"]
    assert (found["source"] is None) == (found["why"] == "nobody has measured it")


def test_the_paths_in_the_table_are_there_in_some_recipe():
    known = {path for recipe in RECIPES for path in paths(recipe())}
    taken = {path: transfer_of(path)["why"] for path in known}
    for _, _, why, _ in TRANSFERS:
        assert why in taken.values()
