"""Runs of several seeds: one recipe, one data set, a run folder a seed. What has ended stays, what is missing is made, and
every attempt is on record.

In OUT: recipe.py, seed42/ and so on, seed42.json (what became of it), seed42.log (what its processes said), seeds.json (all
seeds, made of these files). Several machines can work in one OUT: a seed is its log's holder's.
"""

import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..data.dataset import open_dataset
from ..files import read_json, refuse_unwritable
from ..node import override
from ..problem import DoesNotHold, Interrupted, Problem
from ..runfolder import RECIPE, RUN
from ..stages import check_recipe, find_recipe, with_budget
from ..terminal import Terminal, print_table
from ..train.dist import start_world
from ..train.interrupt import listening
from .child import ending_of, run_child, time_now
from .cluster import TIMEOUT_MIN, job_parameters, make_executor, submit_calls, waiting_state
from .rows import (
    SEED_STAGES,
    SEEDS_FILE,
    at_least,
    close_lost,
    holding,
    in_use,
    reached_stage,
    record_reached,
    refuse_other_ranks,
    seed_row,
    settle_seeds,
    update_row,
)

JOBS = "jobs"


@dataclass(frozen=True)
class SeedWork:
    """What the seeds of a folder share: where, on what, how far, by how many processes, with what sinks."""

    out: Path
    data: Path
    until: str
    ranks: int
    sinks: tuple[str, ...]

    def folder(self, seed):
        """The run folder of a seed."""
        return self.out / f"seed{seed}"

    def command(self, stage, seed):
        """Command line of the process that does a stage of a seed: under torchrun for several ranks, an audit alone."""
        folder = self.folder(seed)
        if stage == "train":
            new = [self.out / RECIPE, "--data", self.data, "--out", folder, "--seed", seed]
            words = ["--resume", folder] if (folder / RUN).exists() else new
            words += [word for sink in self.sinks for word in ("--sink", sink)]
        else:
            words = [folder, "--data", self.data, *(["--keep-nats"] if stage == "score" else [])]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", self.ranks]
        python = [sys.executable, *(launcher if self.ranks > 1 and stage != "audit" else ())]
        return [str(word) for word in (*python, "-m", "fairway", stage, *words)]


def train_seeds(name, data, out, seeds, budget, how, terminal):
    """Takes each seed's run in `out` as far as `how["until"]`; returns seeds.json's content.

    `budget`: (steps, seconds, settings) of the recipe. `how`: until, ranks, sinks, submit, cluster, as on the command line.
    Given again, it goes on with what is missing; a seed that fails is on record with its reason, and the others go on. A run
    that diverged is kept beside, as seed42.attempt1, when it is made anew. A seed that another process or machine works on
    is left to it. Ctrl-C: the process at work leaves its checkpoint, then Interrupted. Problem, before anything begins, for
    another recipe or data than those in `out`.
    """
    steps, seconds, settings = budget
    recipe, dataset, out = override(with_budget(find_recipe(name), steps, seconds), settings), open_dataset(data), Path(out)
    refuse_launched(how["ranks"])
    check_recipe(recipe, dataset)
    if how["cluster"] and how["submit"] is None:
        raise Problem(f"--cluster {' '.join(how['cluster'])} belongs to --submit; as in: --submit slurm")
    refuse_unwritable(out)
    refuse_other_ranks(out, seeds, how["ranks"])
    if how["submit"] is not None:
        with tempfile.TemporaryDirectory() as desk:
            make_executor(how["submit"], desk, job_parameters(how["cluster"]))
    settle_seeds(out, recipe, data, dataset, how["until"], seeds)
    if how["submit"] is not None:
        # A job begins in a folder of its own.
        work = SeedWork(out.resolve(), Path(data).resolve(), how["until"], how["ranks"], how["sinks"])
        return submit_seeds(work, seeds, how["submit"], how["cluster"], terminal)
    work = SeedWork(out, Path(data), how["until"], how["ranks"], how["sinks"])
    with listening() as interrupt:
        for number, seed in enumerate(seeds, 1):
            if (state := job_of_seed(out, seed)) is not None:
                terminal.note(f"seed {seed} is left to its job: {state}")
                continue
            terminal.note(f"seed {seed}: {number} of {len(seeds)}")
            work_seed(work, seed, interrupt, terminal)
            if interrupt.asked:
                raise Interrupted(f"interrupted in {work.folder(seed)}; the same command goes on")
    return read_json(out / SEEDS_FILE)


def refuse_launched(ranks):
    """Problem under torchrun, which each run is to be started by itself, and for less than one process."""
    if ranks < 1:
        raise Problem(f"--ranks {ranks}: a run has 1 process or more")
    with start_world() as world:
        if world.size > 1:
            raise Problem(f"--seeds starts torchrun for each run: give --ranks {world.size} in the place of torchrun")


def submit_seeds(work, seeds, kind, words, terminal):
    """Hands each seed that has not got as far as it should to a cluster, as a job; returns seeds.json's content."""
    others = {"name": "fairway", "timeout_min": TIMEOUT_MIN, "gpus_per_node": work.ranks}
    executor, wanted = make_executor(kind, work.out / JOBS, job_parameters(words), **others), []
    for seed in seeds:
        state = job_of_seed(work.out, seed)
        if state is None and not at_least(reached_stage(work.folder(seed)), work.until):
            wanted.append(seed)
        elif state is not None:
            terminal.note(f"seed {seed} is left to its job: {state}")
    if wanted:
        ids = submit_calls(executor, [(work_alone, work, seed) for seed in wanted])
        for seed, job in zip(wanted, ids, strict=True):
            update_row(work.out, seed, job=f"{kind} {job}")
            terminal.note(f"seed {seed} is {kind} job {job}")
        look = "`squeue --me` and " if kind == "slurm" else ""
        terminal.note(f"to look: {look}{work.out}/seed*.log; the same command without --submit shows what became of them")
    return read_json(work.out / SEEDS_FILE)


def job_of_seed(out, seed):
    """What is said of a seed's job while it waits or runs, else None."""
    job = seed_row(out, seed)["job"]
    if job is None:
        return None
    kind, _, number = job.partition(" ")
    state = waiting_state(kind, out.resolve() / JOBS, number)
    return state and f"{job} is {state}"


def work_alone(work, seed):
    """A job: one seed. Returns its row; DoesNotHold with the reason if it did not get there, for the cluster to see."""
    with listening() as interrupt:
        work_seed(work, seed, interrupt, Terminal())
    row = seed_row(work.out, seed)
    if not at_least(row["reached"], work.until):
        raise DoesNotHold(f"seed {seed}: {row['attempts'][-1]['reason'] if row['attempts'] else 'in work elsewhere'}")
    return row


def work_seed(work, seed, interrupt, terminal):
    """Does what a seed's run lacks, unless somebody else is at it; all that happens is in its row."""
    folder = work.folder(seed)
    with holding(work.out / f"seed{seed}.log") as held:
        if held is None or in_use(folder):
            return terminal.note(f"seed {seed} is in work elsewhere")
        there = complete(work, seed)
        close_lost(work.out, seed, there)
        if there:
            return terminal.note(f"seed {seed} is there: {folder}")
        put_aside(work, seed, terminal)
        attempts = seed_row(work.out, seed)["attempts"]
        last = {"began": time_now(), "ended": None, "outcome": None, "reason": None, "folder": folder.name}
        update_row(work.out, seed, attempts=[*attempts, last])
        last |= {"outcome": "interrupted"}
        try:
            last["outcome"], last["reason"] = run_missing(work, seed, interrupt, held)
        except Problem as problem:  # a broken file of the run
            last |= {"outcome": "failed", "reason": str(problem)}
        finally:
            update_row(work.out, seed, attempts=[*attempts, last | {"ended": time_now()}])
        if last["reason"]:
            terminal.note(f"seed {seed} {last['outcome']}: {last['reason']}")


def complete(work, seed):
    """Whether a seed's run has got as far as it should; a broken file of it has not, and fails the attempt that comes."""
    try:
        return at_least(record_reached(work.out, seed), work.until)
    except Problem:
        return False


def run_missing(work, seed, interrupt, log):
    """Runs the stages that a seed lacks, each a process that writes to the open `log`. Returns (outcome, reason or None):
    done, interrupted, killed (by a signal), "does not hold" (exit code 1: it diverged, is over the cap) or failed."""
    reason = None
    for stage in SEED_STAGES[: SEED_STAGES.index(work.until) + 1]:
        if at_least(reached_stage(work.folder(seed)), stage):
            continue
        if interrupt.asked:
            return "interrupted", f"before {stage}"
        code, tail = run_child(work.command(stage, seed), log, interrupt)
        outcome, said = ending_of(code, tail, interrupt.asked)
        if not at_least(record_reached(work.out, seed), stage):
            return outcome, f"{stage}: {said}"
        # What counts is there, however the process left; what it found not to hold is said.
        if outcome == "does not hold" or (stage == "audit" and code == 1):
            reason = f"{stage}: {said if stage != 'audit' else 'a rule failed'}"
    return "done", reason


def put_aside(work, seed, terminal):
    """Keeps a run that diverged as seed42.attempt1 and so on: resumed, it would diverge again."""
    folder, row = work.folder(seed), seed_row(work.out, seed)
    attempts = row["attempts"]
    if row["reached"] or not attempts or attempts[-1]["outcome"] != "does not hold" or not (folder / RUN).exists():
        return
    aside = folder.with_name(f"{folder.name}.attempt{len(attempts)}")
    folder.rename(aside)
    for one in attempts:
        one["folder"] = aside.name if one["folder"] == folder.name else one["folder"]
    update_row(work.out, seed, attempts=attempts)
    terminal.note(f"seed {seed} begins anew; the run before is kept as {aside}")


def print_seeds(result):
    """One row a seed; below, mean and sample deviation of the scores, and why seeds are not there."""
    rows, reasons, scores = [], [], [row["bpb"] for row in result["seeds"] if row["bpb"] is not None]
    for row in result["seeds"]:
        last = row["attempts"][-1] if row["attempts"] else None
        state = "-" if last is None else last["outcome"] or "in work"
        figures = ["-" if figure is None else f"{figure:.4f}" for figure in (row["bpb_weights"], row["bpb"])]
        rows.append((str(row["seed"]), row["reached"] or "-", *figures, len(row["attempts"]), state))
        if last is None and row["job"]:
            reasons.append(f"seed {row['seed']}: handed over as {row['job']}")
        if last is not None and last["reason"]:
            reasons.append(f"seed {row['seed']}: {last['reason']}")
    there = sum(at_least(row["reached"], result["until"]) for row in result["seeds"])
    title = f"{result['recipe']} {result['recipe_hash']}: {there} of {len(rows)} seeds are through {result['until']}"
    print_table(title, ("seed", "reached", "weights bpb", "packed bpb", "attempts", "last attempt"), rows)
    if len(scores) > 1:
        deviation = statistics.stdev(scores)
        reasons.insert(0, f"packed: mean {statistics.mean(scores):.4f} bpb, deviation {deviation:.4f}, {len(scores)} seeds")
    if reasons:
        print("", *reasons, sep="\n")
