"""`fairway sweep`: searches fields of a recipe. Each trial is a run folder; asynchronous halving ends most of them early."""

import json
import shlex
import time
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from ..ablation import refuse_other_run, refuse_untrainable
from ..data.dataset import Dataset, open_dataset
from ..files import refuse_unwritable, write_json
from ..node import digest, override
from ..problem import DoesNotHold, Interrupted, Problem
from ..recipe import Recipe
from ..runfolder import METRICS, RUN, read_run
from ..stages import check_recipe, find_recipe, resume_training, train, unscored, weights_there, with_budget
from ..terminal import print_table
from ..train.dist import start_world
from .rows import in_use
from .space import as_settings, new_values, read_space
from .study import Board, Lookout, alone_in, database_problems, shown_url, storage_url
from .transfer import transfer_of

SWEEP, DATABASE = "sweep.json", "sweep.db"
SMOOTHED = 10  # a loss that is compared is the mean over a tenth of the steps so far, and over so many at least
STATES = {
    TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed",
    TrialState.RUNNING: "running", TrialState.WAITING: "waiting",
}  # fmt: skip


@dataclass(frozen=True)
class SweepPlan:
    """What all workers of a sweep have in common. `rungs`: at how many steps (or tokens, if the budget is of these) a
    trial is judged; `recipe` has the shared settings, and the budget if that is of steps."""

    name: str
    data: Path
    out: Path
    recipe: Recipe
    dataset: Dataset
    space: dict
    settings: tuple
    seed: int
    trials: int
    steps: int | None
    tokens: int | None
    factor: int
    rungs: tuple

    def variant(self, settings):
        """The recipe of a trial with these settings and its whole budget. Problem if it is none."""
        recipe = override(self.recipe, settings)
        return with_budget(recipe, self.steps_at(self.tokens or self.steps, recipe), None)

    def steps_at(self, spent, recipe):
        """The steps in which a trial spends so many steps, or tokens. Problem for less than one."""
        if self.tokens is None:
            return spent
        if recipe.train.batch_tokens > self.tokens:
            raise Problem(f"--tokens {self.tokens} is less than a step's train.batch_tokens={recipe.train.batch_tokens}")
        return max(1, spent // recipe.train.batch_tokens)

    def folder(self, number):
        """The run folder of a trial."""
        return self.out / f"trial-{number:04}"


def sweep(command, over, settings, terminal):
    """Trains trials of a recipe until there are `command.trials`, over all workers; returns sweep.json's content.

    command: the fields of cli.SweepCommand. over: texts path=space. settings: texts path=value that all trials share.
    Workers are processes with the same command, one a GPU, over one database (SQLite in OUT, or --storage) and one OUT
    that they all can write to and lock. At each rung, after 1/factor, 1/factor^2 ... of the budget, a trial's smoothed
    training loss is compared with those that others had there: one in `factor` goes on (Li et al., 2018: asynchronous
    successive halving). Trials are judged by the bpb of their weights. Given again, the command goes on: an interrupted
    trial is resumed, and that of a killed worker taken over once that was not heard for a minute.
    Raises Problem for bad input, another sweep's database, or one that cannot be used; Interrupted.
    """
    plan = plan_sweep(command, over, settings)
    refuse_ranks()
    refuse_unwritable(plan.out)
    url = storage_url(command.storage, plan.out / DATABASE)
    plan.out.mkdir(parents=True, exist_ok=True)
    with database_problems(url):
        with alone_in(plan.out):  # or two workers would make the same tables
            board = Board(url)
            board.settle(identity_of(plan, over), plan.space)
            if not board.trials() and any(plan.out.glob(f"trial-*/{RUN}")):
                terminal.note(f"{shown_url(url)} knows no trial: runs in {plan.out} are read again, pruned ones go on")

        def objective(number, values, judge):
            return train_trial(plan, number, values, judge, terminal)

        return take_trials(board, plan, objective, terminal)


def plan_sweep(command, over, settings):
    """The SweepPlan of a command; Problem for what would only be found in a trial."""
    for name, least in (("trials", 1), ("factor", 2), ("rungs", 0)):
        if getattr(command, name) < least:
            raise Problem(f"--{name} {getattr(command, name)} is too few; give {least} or more")
    if command.steps is not None and command.tokens is not None:
        raise Problem("give --steps or --tokens, not both")
    recipe, dataset = override(find_recipe(command.name), settings), open_dataset(command.data)
    budget, steps = recipe.train.budget, command.steps
    if steps is None and command.tokens is None:
        if budget.seconds:
            raise Problem(f"{recipe.name} trains by the clock; give --steps or --tokens, by which trials can be compared")
        steps = budget.steps
    whole = command.tokens if steps is None else steps
    if whole < 1:
        raise Problem(f"a budget of {whole} is none: give more than 0")
    if not dataset.val or any(not path.exists() for path in dataset.val):
        raise Problem(f"{command.data} has no validation shards, by which trials are compared")
    plan = SweepPlan(
        command.name, Path(command.data), Path(command.out), with_budget(recipe, steps, None), dataset, {}, tuple(settings),
        command.seed, command.trials, steps, command.tokens, command.factor, rungs_of(whole, command.factor, command.rungs),
    )  # fmt: skip

    def check(some):
        variant = plan.variant(some)
        check_recipe(variant, dataset)
        return variant

    whole = plan.variant(())
    if override(with_budget(find_recipe(command.name), whole.train.budget.steps, None), settings) != whole:
        raise Problem("--set changes train.budget; every trial has the same: set it with --steps or --tokens")
    refuse_untrainable(whole, dataset)
    return replace(plan, space=read_space(over, check))


def rungs_of(whole, factor, count):
    """The last `count` of 1/factor, 1/factor^2 ... of a whole budget, rounded up, in order; none below 1."""
    rungs = [whole]
    while len(rungs) <= count and rungs[-1] > 1:
        rungs.append(-(-rungs[-1] // factor))
    return tuple(reversed(rungs[1:]))


def refuse_ranks():
    """Problem under torchrun: trials follow each other in one process."""
    with start_world() as world:
        if world.size > 1:
            raise Problem(
                f"sweep trains in one process, here are {world.size}; start it without torchrun, once for each GPU"
            )


def identity_of(plan, over):
    """What the database remembers of a sweep, all but the number of trials; what is said of a difference first."""
    return {
        "over": sorted(over), "steps": plan.steps, "tokens": plan.tokens, "factor": plan.factor, "rungs": list(plan.rungs),
        "seed": plan.seed, "data": plan.dataset.data_hash, "recipe": f"{plan.recipe.name} {digest(plan.recipe)}",
    }  # fmt: skip


def take_trials(board, plan, objective, terminal):
    """Takes trials until there is none left to begin; returns sweep.json's content.

    `objective(number, values, judge)` -> {"bpb", "loss", "steps"}; at each rung it calls
    `judge(spent, loss, steps, whole)`: the rung, the loss there, the steps done, those of the whole trial.
    """
    lookout, waited_for = Lookout(), []
    while True:
        with alone_in(plan.out):
            for number in lookout.look(board.trials()):
                if not in_use(plan.folder(number)):
                    terminal.note(f"trial {number} has lost its worker: it goes on here")
                    board.release(number)
            trial = claim_trial(board, plan)
        if trial is not None:
            values = " ".join(as_settings(trial.params))
            terminal.note(f"trial {trial.number} ({trial.number + 1} of {plan.trials}): {values}")
            run_trial(board, plan, trial, objective)
            write_result(board, plan)
        elif lookout.unsure:
            if lookout.unsure != waited_for:
                waited_for = lookout.unsure
                terminal.note(f"does anybody train {', '.join(map(str, waited_for))}? Listens for a minute at most")
            time.sleep(1.0)
        else:
            break
    result = write_result(board, plan)
    others = [str(row["number"]) for row in result["trials"] if row["state"] == "running"]
    if others:
        terminal.note(f"other workers still train: {', '.join(others)}; the last of them ends the sweep")
    elif len(result["trials"]) < plan.trials:
        terminal.note("every point of the space was tried")
    return result


def claim_trial(board, plan):
    """The next trial that this worker trains, begun before or new, with its values; None if there is none left."""
    trials = board.trials()
    if not any(trial.state == TrialState.WAITING and trial.number < plan.trials for trial in trials):
        values = new_values(board.study, plan.space, len(trials), plan.seed) if len(trials) < plan.trials else None
        if values is None:
            return None
        board.study.enqueue_trial(values)
    trial = board.study.ask(fixed_distributions=plan.space)
    if trial.number >= plan.trials:  # asked for with more --trials, and interrupted
        board.release(trial.number)
        return None
    return trial


def run_trial(board, plan, trial, objective):
    """Trains a claimed trial and tells the others how it ended. What is no fault of its values gives it back."""
    number, study = trial.number, board.study

    def judge(spent, loss, steps, whole):
        known = {one.number: one.intermediate_values.get(spent) for one in board.trials()}
        if known[number] is not None:
            return  # judged before it was interrupted
        trial.report(loss, spent)
        # Once more, after the report: of two workers at a rung, one at least sees both.
        known = [one.intermediate_values.get(spent) for one in board.trials() if one.number != number]
        if not in_best_share(loss, [other for other in known if other is not None], plan.factor):
            board.note(number, loss=loss, steps=steps, whole=whole)
            raise optuna.TrialPruned

    try:
        with board.beating(number):
            found = objective(number, trial.params, judge)
        board.note(number, **found)
        study.tell(number, found["bpb"])
    except optuna.TrialPruned:
        study.tell(number, state=TrialState.PRUNED)
    except (Interrupted, KeyboardInterrupt) as ending:
        board.release(number)
        raise Interrupted(f"interrupted in {plan.folder(number)}; the same command goes on") from ending
    except (DoesNotHold, Problem) as fault:
        # A full disk or a folder in use is no word on the values.
        if isinstance(fault.__cause__, OSError):
            board.release(number)
            raise
        board.note(number, reason=str(fault))
        study.tell(number, state=TrialState.FAIL)
    except UpdateFinishedTrialError:
        pass  # another worker, which took this one for dead, has ended it
    except Exception as fault:
        board.note(number, reason=repr(fault))
        study.tell(number, state=TrialState.FAIL)
        raise


def in_best_share(loss, others, factor):
    """Whether a trial with this loss at a rung is among the best of those that reached it: one in `factor`, at least
    one."""
    better = sum(other < loss for other in others)
    return better < max(1, (len(others) + 1) // factor)


def train_trial(plan, number, values, judge, terminal):
    """Trains, resumes or only reads a trial's run: {"bpb" of the weights, "loss" smoothed at the end, "steps"}."""
    folder, settings = plan.folder(number), as_settings(values)
    recipe = plan.variant(settings)
    refuse_untrainable(recipe, plan.dataset)
    try:
        refuse_other_run(folder, recipe, plan.seed, plan.dataset)
    except Problem as problem:
        raise Problem(str(problem)) from FileExistsError(str(folder))

    ahead = [(spent, plan.steps_at(spent, recipe)) for spent in plan.rungs]

    def watch(row):
        while ahead and ahead[0][1] <= row["step"]:
            spent, steps = ahead.pop(0)
            judge(spent, smoothed_loss(folder, steps), row["step"], recipe.train.budget.steps)

    try:
        if not (folder / RUN).exists():
            steps, shared = recipe.train.budget.steps, (*plan.settings, *settings)
            run = train(plan.name, plan.data, folder, plan.seed, steps, None, shared, terminal, watch)
        elif not weights_there(folder, run := read_run(folder)) or unscored(run, plan.dataset):
            run = resume_training(folder, terminal, watch)
    finally:
        # Compiled code of one model is of no use to the next, and its number is limited.
        torch.compiler.reset()
    return {"bpb": run["bpb"]["weights"], "loss": smoothed_loss(folder, run["steps"]), "steps": run["steps"]}


def smoothed_loss(folder, step):
    """The mean training loss of the last steps up to `step`, in nats a token, by a run's metrics."""
    losses = [json.loads(line)["loss"] for line in (folder / METRICS).read_text().splitlines()[:step]]
    last = losses[-max(SMOOTHED, step // 10) :]
    return sum(last) / len(last)


def write_result(board, plan):
    """Writes sweep.json from what the database holds; returns its content."""
    with alone_in(plan.out):
        result = sweep_result(board, plan)
        write_json(plan.out / SWEEP, result)
    return result


def sweep_result(board, plan):
    """sweep.json's content. `loss` is the smoothed one where the trial ended; `steps` of a whole trial are those of the
    recipe's own batch if the budget is of tokens."""
    rows, saved = [], 0
    for trial in board.trials():
        about, state = trial.user_attrs, STATES[trial.state]
        rows.append({
            "number": trial.number, "values": trial.params, "state": state,
            "bpb": trial.value if state == "complete" else None,
            "loss": about.get("loss"), "steps": about.get("steps"), "reason": about.get("reason"),
        })  # fmt: skip
        if state == "pruned":
            saved += about["whole"] - about["steps"]
    ranked = sorted((row for row in rows if row["bpb"] is not None), key=lambda row: row["bpb"])
    best = {key: ranked[0][key] for key in ("number", "values", "bpb")} if ranked else None
    return {
        "recipe": plan.recipe.name, "steps": plan.variant(()).train.budget.steps, "tokens": plan.tokens,
        "saved_steps": saved, "trials": rows, "best": best, "transfer": [transfer_of(path) for path in plan.space],
        "next": next_command(plan, best),
    }  # fmt: skip


def next_command(plan, best):
    """The command that trains the best values with the recipe's whole budget, or None."""
    if best is None:
        return None
    shared = [setting for setting in plan.settings if setting.partition("=")[0] not in best["values"]]
    settings = (*shared, *as_settings(best["values"]))
    words = ("fairway", "train", plan.name, "--data", plan.data, "--out", plan.out / "best", "--seed", plan.seed, "--set")
    return shlex.join(map(str, (*words, *settings)))


def print_sweep(result):
    """The best ten trials, what pruning saved, what failed, what is known to transfer to eight GPUs, the next step."""
    rows, count = result["trials"], {state: 0 for state in STATES.values()}
    for row in rows:
        count[row["state"]] += 1
    ranked = sorted((row for row in rows if row["bpb"] is not None), key=lambda row: row["bpb"])[:10]
    fields = [entry["path"] for entry in result["transfer"]]
    cells = [
        (
            f"trial {row['number']}",
            f"{row['bpb']:.4f}",
            f"{row['loss']:.4f}",
            *(cell(row["values"][path]) for path in fields),
        )
        for row in ranked
    ]
    title = f"{result['recipe']}, {result['steps']} steps: the best {len(ranked)} of {len(rows)} trials, bpb of the weights"
    print_table(title, ("", "bpb", "loss", *fields), cells)
    states = ", ".join(f"{number} {state}" for state, number in count.items() if number)
    lines = ["", f"{states}; pruning saved {result['saved_steps']:,} steps"]
    lines += [f"trial {row['number']} failed: {row['reason']}" for row in rows if row["state"] == "failed"]
    lines += ["one seed: a difference below the spread between seeds proves nothing", "", "from one GPU to eight:"]
    words = {True: "transfers", False: "does NOT transfer", None: "not known"}
    for entry in result["transfer"]:
        source = f" ({entry['source']})" if entry["source"] else ""
        lines.append(f"  {entry['path']}: {words[entry['transfers']]}; {entry['why']}{source}")
    if result["next"]:
        lines += ["", "the best, with the recipe's whole budget:", f"  {result['next']}"]
    print(*lines, sep="\n")


def cell(value):
    """A value as a table has it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
