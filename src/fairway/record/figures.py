"""What the charts and tables of a report show: plain data from Measured runs. Tables are {"columns", "rows"} of texts.

N targets, D documents, B buckets.
"""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
from scipy.stats import t as student

from ..artifact.ledger import owners_together
from ..data.dataset import open_dataset, validation_tokens
from ..data.tokenizer import BOS_ID
from ..problem import Problem
from ..score.bootstrap import document_of_targets
from ..score.stage import PACKED_STAGE, plain_stage

LOSS_ROWS = 20  # of the table beside a loss curve, which may have 20,000 points
TARGETS_AT_ONCE = 1 << 22  # looked at together, so that 62 million targets take no more memory than their nats
ON_CLOCK = ("train", "calibrate")  # phases that the limit of the artifact counts: all that reads data to set weights
FEWEST_DOCUMENTS = 5  # whose spread is shown: of two, Student's t makes a band wider than the picture


def run_names(ones):
    """A name for each run, no two the same: its folder's, with the folder above it where several are called so."""
    places = [one.folder.resolve() for one in ones]
    counts = Counter(place.name for place in places)
    names = [place.name if counts[place.name] == 1 else "/".join(place.parts[-2:]) for place in places]
    return names if len(set(names)) == len(names) else [str(one.folder) for one in ones]


def run_groups(ones):
    """[(name, runs)]: runs of one recipe on the same data together, in the order of their first. What differs between
    groups of the same recipe name is in their hashes, so their names carry the start of it."""
    found = {}
    for one in ones:
        found.setdefault((one.run.get("recipe", ""), one.run["recipe_hash"], one.run["data_hash"]), []).append(one)
    counts = Counter(recipe for recipe, *_ in found)
    return [
        (recipe if counts[recipe] == 1 else f"{recipe} {recipe_hash[:6]}", runs)
        for (recipe, recipe_hash, _), runs in found.items()
    ]


def page_table(columns, rows):
    """A table as the page shows it: `columns` of names, rows of as many texts; the first text names the row."""
    return {"columns": list(columns), "rows": [list(row) for row in rows]}


def loss_curves(ones, names):
    """(series, table, faults): training loss in nats a token by step, of the runs that have metrics; the table has means,
    `faults` are of metrics that cannot be read."""
    series, faults = [], []
    for one, name in zip(ones, names, strict=True):
        try:
            rows = one.metrics()
        except Problem as problem:
            faults.append(str(problem))
            continue
        points = [
            (row["step"], row["loss"])
            for row in rows
            if isinstance(row.get("loss"), (int, float)) and isinstance(row.get("step"), int)
        ]
        if points:
            series.append({"name": name, "points": points})
    last = max((step for one in series for step, _ in one["points"]), default=0)
    edges = sorted({round(last * part / LOSS_ROWS) for part in range(LOSS_ROWS + 1)})
    means = [span_means(one["points"], edges) for one in series]
    rows = []
    for at, (low, high) in enumerate(pairwise(edges)):
        name = f"{high:,}" if high == low + 1 else f"{low + 1:,} to {high:,}"
        rows.append([name, *(f"{one[at]:.4f}" if math.isfinite(one[at]) else "" for one in means)])
    return series, page_table(["steps", *(one["name"] for one in series)], rows), faults


def span_means(points, edges):
    """Mean y of the points (x, y) with low < x <= high, for each pair of neighbouring edges; nan where there is none."""
    x_P, y_P = np.asarray(points, np.float64).T
    spans = len(edges) - 1
    span_P = np.searchsorted(edges, x_P) - 1
    inside_P = (span_P >= 0) & (span_P < spans)
    sums, counts = (np.bincount(span_P[inside_P], weights, spans) for weights in (y_P[inside_P], None))
    return np.divide(sums, counts, out=np.full(spans, math.nan), where=counts > 0).tolist()


def stage_label(name):
    """A stage in words, that of the weights as it is called."""
    return name if name == "weights" else plain_stage(name)


def bpb_stairs(ones, names):
    """(columns, table): bpb of each run from the weights to the score, [{"name", "steps": [(stage, bpb)]}]; the table has
    changes, and 95 % of them where the score has drawn documents again."""
    columns, rows = [], []
    for one, name in zip(ones, names, strict=True):
        steps = [(stage_label(stage), bpb) for stage, bpb in one.staircase]
        if not steps:
            continue
        columns.append({"name": name, "steps": [(stage.removeprefix(f"{PACKED_STAGE}, "), bpb) for stage, bpb in steps]})
        intervals = {stage_label(stage["name"]): gain_interval(stage) for stage in score_stages(one)}
        for at, (stage, bpb) in enumerate(steps):
            change = f"{bpb - steps[at - 1][1]:+.6f}" if at else ""
            interval = intervals.get(stage)
            spread = f"{interval[0]:+.6f} to {interval[1]:+.6f}" if interval else ""
            rows.append([f"{name}, {stage}", f"{bpb:.6f}", change, spread])
    return columns, page_table(("run and stage", "bpb", "change", "95 % of the change, by documents"), rows)


def gain_interval(stage):
    """[low, high] of what a stage gains, or None where score.json has none."""
    found = (stage.get("gain") or {}).get("interval")
    if isinstance(found, list) and len(found) == 2 and all(type(edge) in (int, float) for edge in found):
        return found
    return None


def score_stages(one):
    """Stages of score.json, [] where it is not there."""
    return (one.score or {}).get("stages", [])


def byte_parts(one):
    """(parts, table) of a run with a ledger: bytes of both files by owner and kind, layers together, the code as one;
    parts are [{"label", "group": kind, "value"}] from the largest down."""
    sums = owners_together(one.ledger).most_common()
    parts = [{"label": name, "group": kind, "value": size} for (name, kind), size in sums]
    total = one.ledger["total"]
    rows = [[part["label"], part["group"], f"{part['value']:,}", f"{part['value'] / total:.2%}"] for part in parts]
    rows.append(["together", "", f"{total:,}", ""])
    return parts, page_table(("owner", "kind", "bytes", "share"), rows)


def making_rows(ones, names):
    """(rows, table): seconds of what the limit of the artifact counts, by run, {"label", "parts": [{"name", "seconds"}]};
    the table has all phases."""
    rows, cells = [], []
    for one, name in zip(ones, names, strict=True):
        phases = phases_of(one)
        parts = [{"name": phase, "seconds": phases[phase]} for phase in ON_CLOCK if phase in phases]
        if parts:
            rows.append({"label": name, "parts": parts})
        for phase, seconds in phases.items():
            cells.append([f"{name}, {phase}", f"{seconds:.2f}", "yes" if phase in ON_CLOCK else "no"])
    return rows, page_table(("run and phase", "seconds", "counted"), cells)


def phases_of(one):
    """Seconds of making the artifact, by phase: run.json's, less what scoring has added to them."""
    phases, scoring = one.run.get("phases", {}), (one.score or {}).get("phases", {})
    return {phase: spent for phase, spent in phases.items() if scoring.get(phase.removesuffix(" for score")) != spent}


def scoring_rows(ones, names):
    """(rows, table): seconds of the pass that is each run's score; the table has all passes, their forecasts and rates."""
    rows, cells = [], []
    for one, name in zip(ones, names, strict=True):
        for stage in score_stages(one):
            label, last = stage_label(stage["name"]), stage is score_stages(one)[-1]
            if last:
                rows.append({"label": name, "parts": [{"name": label, "seconds": stage["seconds"]}]})
            forecast = stage.get("seconds_forecast")
            cells.append([
                f"{name}, {label}", f"{stage['seconds']:.2f}", "" if forecast is None else f"{forecast:.1f}",
                f"{stage['tokens_per_second']:,}" if "tokens_per_second" in stage else "", "yes" if last else "no",
            ])  # fmt: skip
    return rows, page_table(("run and pass", "seconds", "forecast", "tokens a second", "is the score"), cells)


def loss_by_place(ones):
    """Mean nats a token by position in the document and by the document's length, over runs of one data set.

    Returns {"position": rows, "length": rows, "runs": how many had their nats kept}, rows as `bucket_rows` has them. Problem
    that says why there is nothing to show: no nats, other data, or a data folder that is not there any more.
    """
    kept = [one for one in ones if one.score and one.nats_file() is not None]
    if not kept:
        raise Problem("no run has kept its nats: `fairway score RUN --keep-nats` does")
    if len({one.score.get("data_hash") for one in kept}) > 1:
        raise Problem("the runs were not scored on the same text")
    dataset = open_dataset(kept[0].run.get("data", "the data folder"))
    if dataset.data_hash != kept[0].score.get("data_hash"):
        raise Problem(f"{dataset.folder.name} is not the data any more that the runs were scored on")
    nats_N = mean_nats(kept)
    tokens = validation_tokens(dataset)
    if len(nats_N) >= len(tokens):
        raise Problem(f"{len(nats_N)} nats of {len(tokens)} validation tokens: score again with --keep-nats")
    starts = np.flatnonzero(tokens == BOS_ID)
    document_N = document_of_targets(starts, len(nats_N))
    length_D = np.bincount(document_N)
    first_D = np.cumsum(length_D) - length_D
    position, length = bucket_sums(nats_N, document_N, first_D, length_D)
    return {"position": bucket_rows(*position), "length": bucket_rows(*length), "runs": len(kept)}


def mean_nats(ones):
    """The mean of the runs' nats of each target, float32 [N]. Problem for runs that scored different numbers of targets."""
    arrays = [np.load(one.nats_file(), mmap_mode="r") for one in ones]
    if len({len(array) for array in arrays}) != 1 or not len(arrays[0]):
        raise Problem("the runs' nats are of different targets; score them again, the same way")
    total_N = np.array(arrays[0], np.float32)
    for array in arrays[1:]:
        total_N += array
    return total_N / len(arrays)


def bucket_sums(nats_N, document_N, first_D, length_D):
    """((nats_DB, count_DB) by position, the same by length): sums of documents in buckets of doubling size.

    Bucket b holds positions, or lengths, from 2**b to 2 * 2**b - 1, both counted from 1.
    """
    documents, buckets = len(length_D), int(length_D.max()).bit_length()
    shape = documents, buckets
    nats_P, count_P = np.zeros(documents * buckets), np.zeros(documents * buckets)
    for low in range(0, len(nats_N), TARGETS_AT_ONCE):
        document = document_N[low : low + TARGETS_AT_ONCE]
        place = np.arange(low, low + len(document)) - first_D[document] + 1
        cell = document * buckets + doubling_bucket(place)
        nats_P += np.bincount(cell, nats_N[low : low + TARGETS_AT_ONCE], documents * buckets)
        count_P += np.bincount(cell, minlength=documents * buckets)
    nats_DB, count_DB = nats_P.reshape(shape), count_P.reshape(shape)
    own_DB = doubling_bucket(length_D)[:, None] == np.arange(buckets)
    by_length = nats_DB.sum(1, keepdims=True) * own_DB, count_DB.sum(1, keepdims=True) * own_DB
    return (nats_DB, count_DB), by_length


def doubling_bucket(counts):
    """floor(log2) of counts from 1, as int64."""
    return np.frexp(np.asarray(counts, np.float64))[1].astype(np.int64) - 1


def bucket_rows(nats_DB, count_DB):
    """[{"label", "value", "low", "high", "count", "documents"}] of the buckets that hold targets: mean nats a target and
    95 % of it with documents as what varies (ratio estimate, Student's t); low and high are None of too few documents."""
    rows = []
    for bucket in np.flatnonzero(count_DB.sum(0)):
        used_D = count_DB[:, bucket] > 0
        nats_D, count_D = nats_DB[used_D, bucket], count_DB[used_D, bucket]
        documents, count = len(count_D), count_D.sum()
        value, low, high = float(nats_D.sum() / count), None, None
        if documents >= FEWEST_DOCUMENTS:
            spread = math.sqrt(((nats_D - value * count_D) ** 2).sum() * documents / (documents - 1)) / count
            reach = float(student.ppf(0.975, documents - 1)) * spread
            low, high = value - reach, value + reach
        begin, end = 1 << int(bucket), (2 << int(bucket)) - 1
        label = "1" if end == 1 else f"{begin:,}–{end:,}"
        rows.append({
            "label": label, "value": value, "low": low, "high": high, "count": int(count), "documents": documents,
        })  # fmt: skip
    return rows


def bucket_table(rows, what):
    """Rows of `bucket_rows` as a table; `what` names the buckets."""
    cells = [
        [
            row["label"], f"{row['value']:.4f}", "" if row["low"] is None else f"{row['low']:.4f} to {row['high']:.4f}",
            f"{row['count']:,}", f"{row['documents']:,}",
        ]
        for row in rows
    ]  # fmt: skip
    return page_table((what, "nats a token", "95 %", "tokens", "documents"), cells)
