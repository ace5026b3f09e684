"""The stage `score` of the command line: passes over the validation stream, their gains, score.json and nats.npy."""

import hashlib
import time
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from ..data.dataset import checked_target_bytes, target_bytes, validation_tokens
from ..data.tokenizer import BOS_ID
from ..files import replacing, write_json
from ..kernels.capability import peak_flops
from ..runfolder import NATS, PACKED, RUN, SCORE, need, read_run, update_run
from ..sites import EvaluationSite
from .adapter import AdaptContext, build_adapter
from .bootstrap import document_of_targets, paired_bootstrap
from .commit import Committer, read_model
from .scorer import Scored
from .watched import WatchedPass
from .windows import NonOverlapping

PACKED_STAGE = "packed file"
WORTH_SAYING = 5.0  # seconds: of a pass without anything special, how long it takes is said from here on


@dataclass(frozen=True)
class PassPlan:
    """What one pass over the stream does: its windows, what learns on the way, what is mixed in."""

    name: str
    evaluation: EvaluationSite
    adapt: tuple = ()
    mix: tuple = ()


@dataclass(frozen=True, eq=False)
class Stage:
    """One figure of a score: its name, its Scored, the seconds of its pass, and what was read in it."""

    name: str
    scored: Scored
    seconds: float
    rates: dict = field(default_factory=dict)

    def as_json(self):
        """As score.json has it."""
        facts = {"name": self.name, "bpb": self.scored.bpb, "nats": self.scored.nats, "seconds": self.seconds}
        return facts | self.rates | self.scored.facts


def pass_plans(recipe, last_only=False):
    """The passes of a recipe: windows side by side, as the unpacked weights are scored; its own windows; what adapts in
    them and is mixed in. The last is the score."""
    evaluation, name = recipe.evaluate, type(recipe.evaluate.windows).__name__
    plain = replace(evaluation, windows=NonOverlapping(recipe.model.sequence))
    plans = [PassPlan("NonOverlapping", plain)]
    if recipe.adapt:
        plans += [PassPlan(name, evaluation)] if plain != evaluation else []
        plans += [PassPlan("+".join(type(node).__name__ for node in recipe.adapt), evaluation, recipe.adapt, recipe.mix)]
    elif plain != evaluation or recipe.mix:
        plans = [*plans[: plain != evaluation], PassPlan(name, evaluation, (), recipe.mix)]
    return plans[-1:] if last_only else plans


def plain_stage(name):
    """A stage of the score in words: its windows are side by side, unless said otherwise."""
    return {"NonOverlapping": PACKED_STAGE, "Sliding": f"{PACKED_STAGE}, sliding windows"}.get(
        name, f"{PACKED_STAGE}, {name}"
    )


class Scoring:
    """A model on a machine and the stream that it is scored on, for any number of passes.

    `model` is a GPTModule, or with `read` (a Committer's) whatever that reads. `flops`: FLOPs a position takes.
    """

    def __init__(self, model, machine, dataset, clock, world, flops=None, note=None, progress=None, read=None):
        self.model, self.machine, self.clock, self.world = model, machine, clock, world
        self.read = read or read_model(model)
        self.flops, self.note, self.progress = flops, note, progress
        self.dataset, self.tokens = dataset, validation_tokens(dataset)
        self.starts = np.flatnonzero(self.tokens == BOS_ID)
        # One for passes that learn by round, one for the others: what is compiled for a pass serves the next.
        self.committers = {
            dynamic: Committer(self.read, dataset.vocab, world.device, machine.compiled, dynamic)
            for dynamic in (False, True)
        }

    def run(self, plan, phase="score"):
        """[Stage] of one PassPlan: the model's own figure first, then one for each mixer. Seconds of compilation, and of
        random tokens run to see how long the rest will take, are the clock's `compile`; the others are `phase`'s."""
        evaluation, world = plan.evaluation, self.world
        context = AdaptContext(self.model, self.machine, world, evaluation)
        adapter = build_adapter(plan.adapt, context)
        dynamic = adapter is not None and adapter.by_round
        commit = self.committers[dynamic]
        begin = time.perf_counter()
        with self.clock.phase(phase):
            counts_N = checked_target_bytes(self.dataset, self.tokens, evaluation.scored_targets(len(self.tokens)))
            one = WatchedPass(commit, self.tokens, evaluation, int(counts_N.sum()), world, self.starts, adapter, plan.mix)
        one.spent = time.perf_counter() - begin
        if self.machine.compiled or phase == "score":
            with self.clock.phase("compile"):
                forecast = one.warm_up() + one.spent
            self._say(plan, forecast, evaluation.seconds)
        begin = time.perf_counter()
        try:
            with self.clock.phase(phase):
                results = one.run(self.progress)
        finally:
            if adapter is not None:
                adapter.restore()
        seconds = time.perf_counter() - begin + one.spent
        if one.plainly_scored and self.note:
            left, budget = one.plainly_scored, evaluation.seconds
            self.note(f"{plan.name}: {left:,} targets were scored plainly; it took {seconds:.1f} s of {budget:g} s")
        return [Stage(name or plan.name, scored, seconds, self._rates(one, adapter, seconds)) for name, scored in results]

    def _say(self, plan, forecast, budget):
        if self.note and (plan.adapt + plan.mix or forecast > WORTH_SAYING):
            over = "" if forecast <= budget else ": too long, what is left then will be scored plainly"
            self.note(f"{plan.name}: this will take {forecast:.3g} s of {budget:g} s{over}")

    def _rates(self, one, adapter, seconds):
        rates = {"tokens_per_second": round(one.targets / seconds), "positions_per_second": round(one.read / seconds)}
        peak = peak_flops(self.world.device)
        if adapter is None and self.flops and peak:
            rates["flop_utilisation"] = round(self.flops * one.read / (seconds * peak * self.world.size), 4)
        return rates


def gains(stages, counts_N, starts, draws=1000):
    """What each stage gained over the one before it, by a paired bootstrap over documents: [None, {...}, ...]."""
    document_N = document_of_targets(starts, len(counts_N))
    found = [None]
    for before, after in pairwise(stages):
        found.append(paired_bootstrap(after.scored.nats_N, before.scored.nats_N, counts_N, document_N, draws))
    return found


def score_packed(folder, recipe, scoring, keep_nats=False, last_only=False, own=True):
    """Scores the model of a Scoring, which was loaded from the folder's model.bin, as the recipe says; writes score.json.

    Returns what score.json holds: the figures of the last stage, `phases` (seconds so far), `stages`, the evaluation that
    was used, and the hashes of data and model. With `keep_nats`, nats.npy holds float32 nats of every target, in order.
    `own`: whether this is how the run's own recipe is scored; run.json's bpb.packed is nothing else.
    """
    packed = need(folder, PACKED, "pack")
    stages = [stage for plan in pass_plans(recipe, last_only) for stage in scoring.run(plan)]
    scored, rows = stages[-1].scored, [stage.as_json() for stage in stages]
    counts_N = target_bytes(scoring.dataset, scoring.tokens, scored.tokens)
    for row, gain in zip(rows, gains(stages, counts_N, scoring.starts), strict=True):
        row |= {"gain": gain} if gain else {}
    report = scored.as_json() | {
        "phases": dict(scoring.clock.seconds),
        "stages": rows,
        "normalised": scored.facts.get("normalised", True),
        "evaluation": {name: repr(getattr(recipe, name)) for name in SCORING},
        "data_hash": scoring.dataset.data_hash,
        "model_sha256": hashlib.sha256(packed.read_bytes()).hexdigest(),
    }
    if scoring.world.rank == 0:
        _write_score(packed.parent, report, scored.nats_N if keep_nats else None, own)
    return report


SCORING = ("evaluate", "adapt", "mix")  # the fields of a recipe that say how it is scored


def _write_score(folder, report, nats_N, own):
    write_json(folder / SCORE, report)
    if nats_N is None:
        # Nats of an earlier score would pass for this one's.
        (folder / NATS).unlink(missing_ok=True)
    else:
        with replacing(folder / NATS) as part, open(part, "wb") as out:
            np.save(out, nats_N)
    own &= not (folder / RUN).exists() or read_run(folder).get("data_hash", report["data_hash"]) == report["data_hash"]
    # A score on other data, by other means, or by what is no probability is in score.json; the run's own figure stays.
    own &= report["normalised"]
    # Training's own compilation stays beside this one's.
    phases = {"compile for score" if name == "compile" else name: spent for name, spent in report["phases"].items()}
    update_run(folder, {"phases": phases} | ({"bpb": {"packed": report["bpb"]}} if own else {}))
