"""Leave-one-out runs: what each technique of a recipe is worth, by the same run without it."""

import difflib
import json
import statistics
from itertools import pairwise
from pathlib import Path

import torch

from .data.dataset import open_dataset
from .files import refuse_unwritable, write_json, write_text
from .model.flops import products_of
from .node import children, digest, drop, override, show, walk
from .optim.optimizer import assign_groups
from .problem import DoesNotHold, Interrupted, Problem
from .runfolder import METRICS, RUN, read_run
from .stages import check_recipe, find_recipe, resume_training, train, unscored, weights_there, with_budget
from .terminal import print_table
from .train.dist import start_world

ABLATION = "ablation.json"
WHOLE_RUN = "whole"  # the run of the recipe as it is
ROW_FORMATS = {"bpb": ".4f", "delta_bpb": "+.4f", "ms_per_step": ".1f", "loss": ".4f"}


def ablate(name, data, out, seed, steps, seconds, settings, only, terminal):
    """Trains the recipe whole, then once without each technique, into run folders in `out`; returns ablation.json's content.

    What has ended there is not run again and what was interrupted goes on, so the same command can be given again.
    Techniques are the nodes in the tuples of `model` and in `qat`; what stands alone at its site cannot be left out.
    All runs share one seed, and a technique left out leaves the other initial values as they are: runs are pairs. Yet
    one seed's difference that is below the spread between seeds (for the contest's recipes 0.0006 to 0.0009 bpb) proves
    nothing: repeat with other seeds.
    """
    recipe, dataset, out = override(with_budget(find_recipe(name), steps, seconds), settings), open_dataset(data), Path(out)
    refuse_torchrun()
    techniques = chosen_techniques(recipe, only)
    refuse_untrainable(recipe, dataset)
    variants = [(kind.__name__, *without(recipe, kind, dataset)) for kind in techniques]
    refuse_unwritable(out)
    runs = [(WHOLE_RUN, recipe, None), *variants]
    for folder, variant, reason in runs:
        if reason is None:
            refuse_other_run(out / folder, variant, seed, dataset)
    budget = recipe.train.budget
    table = {
        "recipe": recipe.name,
        "steps": budget.steps or None,
        "seconds": budget.seconds or None,
        "seed": seed,
        "rows": [],
    }
    for number, (technique, variant, reason) in enumerate(runs, 1):
        terminal.note(f"{number} of {len(runs)}: {technique if number == 1 else f'without {technique}'}")
        row = blank_row(technique, reason)
        if reason is None:
            row |= run_row(out, technique, variant, data, dataset, seed, terminal)
        whole = table["rows"][0]["bpb"] if table["rows"] else None
        if whole is not None and row["bpb"] is not None:
            row["delta_bpb"] = row["bpb"] - whole
        table["rows"].append(row)
        write_json(out / ABLATION, table)
    return table


def refuse_torchrun():
    """Problem under torchrun: runs follow each other in one process."""
    with start_world() as world:
        if world.size > 1:
            raise Problem(f"ablate trains in one process, here are {world.size}; start it without torchrun")


def technique_kinds(recipe):
    """The types of all nodes that stand in a tuple of the model or in `qat`, in order of appearance, each once."""
    below_model = [child for _, node in walk(recipe.model) for _, child, _, index in children(node) if index is not None]
    return list(dict.fromkeys(type(node) for node in (*below_model, *recipe.qat)))


def chosen_techniques(recipe, only):
    """The techniques named in `only`, or all. Problem for a name that the recipe does not hold."""
    kinds = {kind.__name__: kind for kind in technique_kinds(recipe)}
    for name in only:
        if name not in kinds:
            close = difflib.get_close_matches(name, kinds, n=1, cutoff=0.0)
            nearest = f"; nearest is {close[0]}" if close else ""
            raise Problem(f"--only {name}: {recipe.name} has no such technique in its model or qat{nearest}")
    return [kind for name, kind in kinds.items() if not only or name in only]


def without(recipe, kind, dataset):
    """(the recipe without any `kind`, None), or (None, why there is no such recipe)."""
    try:
        variant = drop(recipe, kind)
        refuse_untrainable(variant, dataset)
    except Problem as problem:
        return None, str(problem)
    return variant, None


def refuse_untrainable(recipe, dataset):
    """Problem for what can be seen before a run: checks, one pass through each phase, optimiser groups, qat."""
    check_recipe(recipe, dataset)
    model = recipe.model.build()
    for phase in range(len(model.orders)):
        products_of(recipe.model, model, phase)
    assign_groups(model, recipe.optim)
    for node in recipe.qat:
        node.build(model, recipe.quantize)


def refuse_other_run(folder, recipe, seed, dataset):
    """Problem when `folder` holds a run of something else."""
    if not (folder / RUN).exists():
        return
    run = read_run(folder, "recipe_hash", "seed", "data_hash")
    for what, found, wanted in (
        ("recipe", run["recipe_hash"], digest(recipe)),
        ("seed", run["seed"], seed),
        ("data", run["data_hash"], dataset.data_hash),
    ):
        if found != wanted:
            raise Problem(f"{folder} is a run with {what} {found}, this one is {wanted}; choose another --out, or remove it")


def blank_row(technique, reason=None):
    """A row of the table that nothing has been measured for."""
    figures = dict.fromkeys(("parameters", "bpb", "delta_bpb", "loss", "ms_per_step"))
    return {"technique": technique, **figures, "reason": reason and f"cannot be left out: {reason}"}


def run_row(out, technique, recipe, data, dataset, seed, terminal):
    """The figures of one run, which is trained, gone on with or only read. One that diverges says so as its reason."""
    folder = out / technique
    figures = {"parameters": sum(parameter.numel() for parameter in recipe.model.build().parameters())}
    try:
        run = finished_run(folder, recipe, data, dataset, seed, terminal)
    except DoesNotHold as fault:
        if technique == WHOLE_RUN:
            raise
        return figures | {"reason": f"did not end: {fault}"}
    except Interrupted as ending:
        raise Interrupted(f"interrupted in {folder}; the same command goes on") from ending
    finally:
        # Compiled code of one model is of no use to the next, and its number is limited.
        torch.compiler.reset()
    return figures | {"bpb": run.get("bpb", {}).get("weights")} | read_pace(folder / METRICS)


def finished_run(folder, recipe, data, dataset, seed, terminal):
    """run.json's content of the run in `folder`, once it has ended."""
    if not (folder / RUN).exists():
        path = folder.with_name(f"{folder.name}.recipe.py")
        write_text(path, show(recipe))
        return train(str(path), data, folder, seed, None, None, (), terminal)
    run = read_run(folder)
    if weights_there(folder, run) and not unscored(run, dataset):
        return run
    return resume_training(folder, terminal)


def read_pace(path):
    """The last loss, and the median milliseconds of a step, by a run's metrics."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    ends = [row["seconds"] for row in rows]
    spent = [end - begin for begin, end in pairwise(ends)] or ends
    return {"loss": rows[-1]["loss"], "ms_per_step": 1000 * statistics.median(spent)}


def print_ablation(table):
    """One row a technique: what leaving it out changes. Below, what could not be measured."""
    whole, rows = table["rows"][0], []
    for row in table["rows"]:
        if row["parameters"] is None:
            continue
        more = f"{row['parameters']:,}" if row is whole else f"{row['parameters'] - whole['parameters']:+,}"
        cells = ["-" if row[name] is None else format(row[name], form) for name, form in ROW_FORMATS.items()]
        rows.append((row["technique"] if row is whole else f"without {row['technique']}", more, *cells))
    title = f"{table['recipe']} seed {table['seed']}: parameters and bpb of the weights, as differences from the whole"
    print_table(title, ("", "parameters", "bpb", "difference", "ms a step", "last loss"), rows)
    reasons = [f"{row['technique']} {row['reason']}" for row in table["rows"] if row["reason"]]
    print(*["", *reasons, "one seed: a difference below the spread between seeds proves nothing"], sep="\n")
