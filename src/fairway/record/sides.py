"""One side of a comparison: which runs may stand there, whether two sides are pairs, and nats by document.

N targets, D documents.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from ..data.dataset import open_dataset, target_bytes, validation_tokens
from ..data.tokenizer import BOS_ID
from ..problem import Problem
from ..referee.margins import mean_interval
from ..runfolder import PACKED, WEIGHTS
from ..score.bootstrap import document_of_targets
from .admission import chosen_runs
from .measured import Measured, score_faults


@dataclass(frozen=True)
class ComparedSide:
    """One side of a comparison: its runs, or none where it is the figures of a record."""

    name: str
    runs: tuple[Measured, ...]
    figures: tuple[float, ...]

    def shared(self, key):
        """What the side's runs have in run.json under `key`, each value once."""
        return list(dict.fromkeys(one.run.get(key) for one in self.runs))

    def as_json(self):
        """Its runs, mean, sample deviation (None for one), n, and the interval of the mean."""
        if self.runs:
            rows = [{"run": str(one.folder), "seed": one.seed, "bpb": one.bpb} for one in self.runs]
        else:
            rows = [{"run": None, "seed": None, "bpb": figure} for figure in self.figures]
        deviation = stdev(self.figures) if len(self.figures) > 1 else None
        return {
            "name": self.name, "runs": rows, "mean": mean(self.figures), "std": deviation, "n": len(self.figures),
            "interval": mean_interval(self.figures),
        }  # fmt: skip


def compared_side(paths):
    """The ComparedSide of run folders. Problem for one that is not scored, does not agree with itself, or stands twice."""
    ones = chosen_runs(paths)
    for one in ones:
        refuse_unscored(one)
    seen = {}
    for one in ones:
        twin = seen.setdefault((one.seed, one.run["recipe_hash"], one.bpb), one)
        if twin is not one:
            raise Problem(f"{one.folder} and {twin.folder} have one seed and one figure: one run twice; leave one out")
    folders = [one.folder.resolve() for one in ones] if len(paths) > 1 else [Path(paths[0]).resolve()]
    parents = {folder.parent for folder in folders}
    name = folders[0].name if len(folders) == 1 else parents.pop().name if len(parents) == 1 else path_list(paths)
    return ComparedSide(name, tuple(ones), tuple(one.bpb for one in ones))


def path_list(paths):
    """Paths as a text, no more than three of them."""
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(map(str, paths[:3])) + more


def refuse_unscored(one):
    """Problem unless the run has a score of its packed file by its own evaluation, which agrees with itself and run.json."""
    folder, score = one.folder, one.score
    if score and not score.get("normalised", True):
        raise Problem(f"{folder} is scored by what is no probability: its bpb cannot be compared; score it otherwise")
    if one.bpb is None or score is None:
        step = "score" if (folder / PACKED).is_file() else "pack" if (folder / WEIGHTS).is_file() else "train --resume"
        raise Problem(f"{folder} has no score of its packed file on its own data; `fairway {step} {folder}` is next")
    for key in ("bpb", "nats", "tokens", "bytes"):
        if not isinstance(score.get(key), (int, float)) or not 0 < score[key] < math.inf:
            raise Problem(f"{folder}: score.json has {key} {score.get(key)!r:.40}; `fairway score {folder}` writes it again")
    faults = score_faults(one) if isinstance(score.get("stages"), list) else ["score.json has no stages"]
    if faults:
        raise Problem(f"{folder}: {faults[0]}; `fairway score {folder}` writes it again")


def refuse_shared_run(own, other):
    """Problem for a run that stands on both sides."""
    both = {one.folder.resolve() for one in own.runs} & {one.folder.resolve() for one in other.runs}
    if both:
        raise Problem(f"{min(both)} stands on both sides; leave it out of one")


def refuse_other_texts(ones):
    """Problem unless all runs were scored on one validation text: on the same data, or on as many bytes of it, and in the
    same tokenizer on as many tokens."""
    first = ones[0]
    for one in ones[1:]:
        if one.run["data_hash"] == first.run["data_hash"]:
            continue
        same_tokenizer = one.run.get("tokenizer_sha256") == first.run.get("tokenizer_sha256")
        for key in ("bytes", "tokens") if same_tokenizer else ("bytes",):
            if one.score[key] != first.score[key]:
                raise Problem(
                    f"{first.folder} is scored on {first.score[key]:,} {key}, {one.folder} on {one.score[key]:,}: different"
                    " validation texts cannot be compared; train and score both on one"
                )


def why_unpaired(own_runs, other_runs):
    """Why the runs of two sides, sorted by seed, are no pairs; None if they are: one seed, one order of data each."""
    seeds = [[one.seed for one in ones] for ones in (own_runs, other_runs)]
    if seeds[0] != seeds[1]:
        return "the seeds of the two sides differ"
    if len(set(seeds[0])) < len(seeds[0]):
        return "a seed stands twice on a side"
    for pair in zip(own_runs, other_runs, strict=True):
        try:
            one, two = map(data_order, pair)
        except Problem as problem:
            return f"the order of the data is not known ({problem})"
        for key, value in one.items():
            if two[key] != value:
                return f"{key} of seed {pair[0].seed} differs ({value} and {two[key]})"
    return None


def data_order(one):
    """What decides which tokens a run sees in which step. The initial values' seed does not."""
    recipe = one.recipe()
    settings = {
        "loader": recipe.loader,
        "batch_tokens": recipe.train.batch_tokens,
        "micro_tokens": recipe.train.micro_tokens,
    }
    facts = {key: one.run.get(key) for key in ("data_hash", "steps", "tokens", "world_size")}
    return facts | settings | {"sequence": recipe.model.sequence}


def per_document(one):
    """Nats and bytes of each document of a run's validation text, float64 [D] each. Problem without nats.npy or the data."""
    path, folder = one.nats_file(), one.run.get("data")
    if path is None:
        raise Problem(
            f"{one.folder} has no nats.npy, and single runs are compared by documents;"
            f" `fairway score {one.folder} --keep-nats` writes it"
        )
    if folder is None or not Path(folder).is_dir():
        raise Problem(f"{folder}, the data of {one.folder}, is not there, and single runs are compared by its documents")
    dataset = open_dataset(folder)
    if dataset.data_hash != one.run["data_hash"]:
        raise Problem(f"{folder} has changed since {one.folder} was scored; restore it, or train and score again")
    nats_N, tokens = np.load(path, mmap_mode="r"), validation_tokens(dataset)
    if len(nats_N) >= len(tokens):
        raise Problem(f"{path} has {nats_N.shape} nats for {one.score['tokens']} targets; score again with --keep-nats")
    document_N = document_of_targets(np.flatnonzero(tokens == BOS_ID), len(nats_N))
    counts_N = target_bytes(dataset, tokens, len(nats_N))
    return np.bincount(document_N, nats_N), np.bincount(document_N, counts_N)
