"""`fairway audit`: the referee on a packed run. The two files run in boxes; the scorer that they must agree with is probed
here, target by target.

N targets, V vocabulary.
"""

import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .core import packed_model
from .data.check import check_dataset
from .data.dataset import dataset_bytes, open_dataset, target_bytes, validation_tokens
from .data.shards import joined_shards
from .data.tokenizer import BOS_ID
from .files import file_sha256, owning, refuse_unwritable, write_json
from .kernels.capability import capability, device_name, settle_threads
from .node import digest
from .problem import Problem
from .referee.boxes import (
    judge_boxed_future,
    judge_boxed_noise,
    judge_bytes_counted,
    judge_code_run,
    judge_figure,
    judge_pack_run,
    judge_score_run,
    judge_train_run,
)
from .referee.probes import (
    flipped_text,
    judge_bos,
    judge_coverage,
    judge_flip,
    judge_noise,
    judge_repeat,
    judge_truncation,
    noise_text,
)
from .referee.rules import read_policy
from .referee.sandbox import clear_box, sandbox_fault
from .referee.stated import judge_bytes, judge_clock, judge_hashes, judge_score_file
from .referee.submitted import BOXES, Submitted
from .referee.texts import judge_dataset, judge_overlap
from .referee.trace import TracedPass, frontiers_of, judge_trace
from .referee.verdict import Findings
from .referee.whole import judge_sum
from .runfolder import AUDIT, PACKED, PROGRAM, RECIPE, WEIGHTS, need, read_run
from .score.adapter import AdaptContext, build_adapter
from .score.commit import Committer, read_model
from .score.schedule import scoring_rank
from .score.stage import SCORING
from .score.watched import WatchedPass
from .stages import check_recipe, read_recipe
from .train.dist import start_world

PASS_SECONDS = 1.0  # of a pass of the probes, which make a dozen and more
PROBE_TARGETS, FULL_TARGETS = 8192, 1 << 18  # in such a pass, at most
LESSON_SECONDS = 10.0  # of a pass that takes longer, so that something is learned in it
WHOLE_SECONDS = 15.0  # of the pass over the whole validation text, unless all is asked for
BOX_SECONDS, FULL_SECONDS = 60.0, 1200.0  # of a run in a box
TRAIN_STEPS = 2


class PackagedScorer:
    """The scorer of the package over a packed model, for texts of the probes' choosing."""

    def __init__(self, recipe, folder, world, machine):
        self.recipe, self.world, self.machine = recipe, world, machine
        self.model = packed_model(recipe, Path(folder) / PACKED, recipe, self.machine)
        self.committers = {
            dynamic: Committer(read_model(self.model), recipe.model.vocab, world.device, self.machine.compiled, dynamic)
            for dynamic in (False, True)
        }

    def passing(self, tokens, kind=WatchedPass, batch=None, wrap=None):
        """(Pass over the text, its adapter or None). `batch`: windows at once, in place of the recipe's or of all there are;
        `wrap(commit)` may stand before the Committer."""
        evaluation, starts = self.recipe.evaluate, np.flatnonzero(tokens == BOS_ID)
        # Rows without a window cost as much as those with one.
        windows = len(evaluation.windows.plan(evaluation.scored_targets(len(tokens)), starts))
        evaluation = replace(evaluation, batch_windows=batch or min(evaluation.batch_windows, windows))
        adapter = build_adapter(self.recipe.adapt, AdaptContext(self.model, self.machine, self.world, evaluation))
        commit = self.committers[adapter is not None and adapter.by_round]
        commit = wrap(commit) if wrap else commit
        return kind(commit, tokens, evaluation, len(tokens), self.world, starts, adapter, self.recipe.mix), adapter

    def run(self, one, adapter):
        """What a pass gives; the model is as it was before."""
        try:
            return one.run()
        finally:
            if adapter is not None:
                adapter.restore()

    def traced(self, tokens):
        """A TracedPass that has run over the text."""
        one, adapter = self.passing(tokens, partial(TracedPass, model=self.model))
        self.run(one, adapter)
        return one

    def nats_of(self, tokens, batch=None):
        """Nats of every target, float64 [N]."""
        return self.run(*self.passing(tokens, batch=batch))[-1][1].nats_N.astype(np.float64)


def audit(folder, data, policy, full, terminal):
    """Judges a packed run under a policy; writes and returns audit.json's content.

    Sized for a CPU; with `full` on the whole text, all training shards and without hurry. Problem for a folder that holds no
    packed run. Whatever a run's files do in their boxes ends in a verdict.
    """
    folder, begin = Path(folder), time.perf_counter()
    recipe, run = read_recipe(need(folder, RECIPE, "train")), read_run(folder, "data", "data_hash", "recipe_hash")
    for name, stage in ((WEIGHTS, "train"), (PROGRAM, "pack"), (PACKED, "pack")):
        need(folder, name, stage)
    dataset = open_dataset(run["data"] if data is None else data)
    if dataset.vocab != recipe.model.vocab:
        raise Problem(
            f"{dataset.folder} has {dataset.vocab} pieces, the model {recipe.model.vocab}; give the run's own data"
        )
    check_recipe(recipe, dataset)
    findings = Findings(read_policy(policy))
    refuse_unwritable(folder)
    with owning(folder), tempfile.TemporaryDirectory(prefix="fairway-audit-") as scratch, start_world() as world:
        if world.size > 1:
            raise Problem(f"an audit is one process's work, this is one of {world.size}; run it without torchrun")
        # Boxes work at the same time: threads that wait for each other would take several times as long.
        threads = torch.get_num_threads()
        settle_threads(world.device, 1)
        terminal.note("files, bytes, seconds and text")
        judge_bytes(findings, folder)
        judge_clock(findings, folder, run)
        judge_hashes(findings, folder, run, digest(recipe), dataset.data_hash)
        claimed = judge_claimed_score(findings, recipe, dataset, folder, run)
        judge_dataset(findings, check_dataset(dataset.folder, hashes=full))
        judge_overlap(findings, dataset, full)
        try:
            # Probes take texts of many lengths: compiling for each would take longer than all of them.
            scorer = PackagedScorer(recipe, folder, world, replace(capability(world.device), compiled=False))
        except Problem as problem:
            findings.say("A8", False, "the artifact cannot be read back", "a model", evidence=str(problem))
            scorer = None
        try:
            if scorer is not None:
                judge_scoring(findings, scorer, dataset, folder, claimed, Path(scratch), threads, full, terminal)
        finally:
            clear_box(Path(scratch) / BOXES)
    report = findings.as_json("audit") | {"run": str(folder), "full": full, "seconds": round(time.perf_counter() - begin, 1)}
    write_json(folder / AUDIT, report)
    return report


def judge_claimed_score(findings, recipe, dataset, folder, run):
    """G3 of score.json's figures among themselves; returns its content, {} where nothing can be compared with it."""
    tokens = validation_tokens(dataset)
    targets = recipe.evaluate.scored_targets(len(tokens))
    counted = int(target_bytes(dataset, tokens, targets).sum())
    evaluation = {name: repr(getattr(recipe, name)) for name in SCORING}
    return judge_score_file(findings, folder, run, evaluation, dataset.data_hash, targets, counted)


def judge_scoring(findings, scorer, dataset, folder, claimed, scratch, threads, full, terminal):
    """The boxed runs, two at a time, and meanwhile the probes of the packaged scorer."""
    tokens, on_gpu = validation_tokens(dataset), scorer.world.device.type == "cuda"
    text, whole = probe_text(scorer, tokens, full)
    one, _ = scorer.passing(text)
    rank_N = scoring_rank(one.schedule, one.plan)
    draw = np.random.default_rng(0)
    texts = {
        "flip": other_future(text, rank_N, len(rank_N) // 2),
        "noise": noise_text(dataset.vocab, len(text) - 1, draw)[0],
    }
    fault, halt = sandbox_fault(), threading.Event()
    with ThreadPoolExecutor(1 if on_gpu else 2) as boxes, halting(halt):
        jobs = {}
        if fault:
            for rule in ("A2", "A8", "A9", "D1", "D2", "D3", "E14"):
                findings.untested(rule, f"the files were not run: {fault}")
        else:
            terminal.note("the submitted files run in boxes")
            seconds = FULL_SECONDS if full or on_gpu else BOX_SECONDS  # on a GPU each run compiles first
            submitted = Submitted(folder, dataset, scratch, seconds, threads, halt, on_gpu)
            jobs = {"pack": boxes.submit(submitted.pack), "train": boxes.submit(submitted.train, TRAIN_STEPS)}
            boxed = texts | {"score": tokens if whole else text}
            jobs |= {
                name: boxes.submit(submitted.score, name, one, beside_of(dataset, name, one)) for name, one in boxed.items()
            }
        terminal.note(f"probes of the scorer on {len(text) - 1:,} of {len(tokens) - 1:,} targets")
        repeated = judge_probes(findings, scorer, text, rank_N)
        results = {name: job.result() for name, job in jobs.items()}
    if results and repeated is not None:
        machine = capability(scorer.world.device)
        as_run = PackagedScorer(scorer.recipe, folder, scorer.world, machine) if machine.compiled else scorer
        judge_results(findings, as_run, dataset, results, boxed, repeated, whole, claimed)
        same = results["score"] if len(boxed["score"]) == len(text) else None
        if same is None and findings.failed("A8"):
            same = submitted.score("text", text)
        if same is not None:
            judge_boxed_future(findings, same, results["flip"], rank_N < len(rank_N) // 2, repeated.same)
    if results:
        here = f"on {device_name(scorer.world.device)}"
        validation = (*dataset.val, *dataset.byte_files)
        judge_pack_run(findings, *results["pack"], file_sha256(folder / PACKED), here, validation)
        judge_train_run(findings, *results["train"], TRAIN_STEPS, validation)


@contextmanager
def halting(halt):
    """Sets the event when something, also Ctrl-C, breaks the block off."""
    try:
        yield
    except BaseException:
        halt.set()
        raise


def judge_probes(findings, scorer, text, rank_N):
    """The probes of the packaged scorer on a text. Returns the text's Repeated, or None."""
    recipe, vocab = scorer.recipe, scorer.recipe.model.vocab
    other = max(1, min(recipe.evaluate.batch_windows, len(rank_N) // recipe.evaluate.windows.length) // 2)
    repeated = judge_repeat(findings, scorer.nats_of, text, lambda tokens: scorer.nats_of(tokens, batch=other))
    if repeated is not None:
        judge_flip(findings, scorer.nats_of, repeated, rank_N)
        judge_truncation(findings, scorer.nats_of, repeated, recipe.evaluate.windows.length, bool(recipe.adapt))
    judge_noise(findings, scorer.nats_of, vocab)
    traced = scorer.traced(text)
    flips = [other_future(text, rank_N, place, 1) for place in frontiers_of(traced, most=2)]
    judge_trace(findings, traced, [scorer.traced(one) for one in flips])
    if recipe.adapt and all(one.before == one.after for one in traced.moments):
        findings.untested("C3", f"in {len(text) - 1:,} targets nothing was learned yet; --full takes more")
    if repeated is not None:
        tail = recipe.evaluate.multiple_of - 1
        judge_coverage(findings, repeated.nats_N, len(text) - 1, traced.scored_N, traced.dropped, tail)
    judge_sum(findings, lambda wrap: scorer.passing(text, wrap=wrap)[0], recipe.mix)
    judge_bos(findings, scorer.model, vocab, bool(recipe.adapt))
    return repeated


def judge_results(findings, scorer, dataset, results, texts, repeated, whole, claimed):
    """What the boxed runs gave, against the packaged scorer on the same texts."""
    words = {
        "score": "the whole validation text" if whole else f"the first {len(texts['score']) - 1:,} targets",
        "flip": "a text with another future",
        "noise": "uniform noise",
    }
    batch = scorer.recipe.evaluate.batch_windows  # the files know no other
    for name, where in words.items():
        judge_score_run(findings, results[name], scorer.nats_of(texts[name], batch), repeated.same, where, dataset.train)
    judge_boxed_noise(findings, results["noise"], texts["noise"], scorer.recipe.model.vocab)
    if whole:
        judge_figure(findings, results["score"], claimed)
    else:
        for rule in ("A8", "G3"):
            findings.untested(rule, f"the files scored {words['score']} alone, not the whole text: see --full")
    if dataset.byte_files:
        counted = {name: int(beside_of(dataset, name, one)[1:].sum()) for name, one in texts.items()}
    else:
        table = dataset_bytes(dataset)
        counted = {name: int(table.of_targets(one).sum()) for name, one in texts.items()}
    judge_bytes_counted(findings, [(results[name], counted[name], words[name]) for name in words])
    if results["score"].nats_N is not None:
        judge_code_run(findings, results["score"].boxed)


def beside_of(dataset, name, text):
    """Bytes that each token of a boxed text stands for, int [N + 1], where the data bring their own counts of them: those of
    the validation text, which "score" begins with, and 1 for each token of another. None where they do not."""
    if not dataset.byte_files:
        return None
    return joined_shards(dataset.byte_files)[: len(text)] if name == "score" else np.ones(len(text), np.uint16)


def probe_text(scorer, tokens, full):
    """(text of the probes, whether the whole text is scored once): as long as a pass takes no longer than it may, and long
    enough, if it can be, for a recipe that learns to do so twice."""
    evaluation, total = scorer.recipe.evaluate, len(tokens) - 1
    most, allowed = (FULL_TARGETS, 20 * PASS_SECONDS) if full else (PROBE_TARGETS, PASS_SECONDS)
    size = min(total, max(2 * evaluation.windows.length, 4 * evaluation.multiple_of))
    while True:
        begin = time.perf_counter()
        scorer.nats_of(tokens[: size + 1])
        pace = (time.perf_counter() - begin) / size
        if pace * size > allowed or size >= min(total, most):
            break
        size = min(2 * size, total, most)
    one, _ = scorer.passing(tokens)
    lessons = min(total, sum(one.count_of(group.windows()) for group in one.schedule[:2]) + 2 * evaluation.windows.length)
    if scorer.recipe.adapt and size < lessons and pace * lessons < LESSON_SECONDS:
        size = lessons
    return tokens[: size + 1], full or pace * total < WHOLE_SECONDS


def other_future(text, rank_N, place, seed=0):
    """The text with other tokens from that place in the order of scoring on; documents begin where they did."""
    changed_N = np.zeros(len(text) - 1, bool)
    changed_N[: len(rank_N)] = rank_N >= place
    return flipped_text(text, changed_N, np.random.default_rng(seed))
