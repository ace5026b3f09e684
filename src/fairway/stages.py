"""The stages as functions from files to files: what the command line calls, and the demo, one after the other."""

import math
import platform
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version as version_of
from pathlib import Path

import torch

from .artifact.bundle import bundle
from .artifact.pack import pack_recipe
from .artifact.sources import source_hash
from .clock import Clock
from .core import packed_model, scoring_model
from .data.dataset import open_dataset
from .files import file_sha256, owning, refuse_unwritable, write_text
from .kernels.capability import capability, device_name, plain_forms, settle_threads
from .model.flops import forward_flops
from .model.roles import leaf_views, load_leaves
from .node import differences, digest, override, parse_node, show
from .optim.schedule import Budget
from .problem import Problem
from .quantize.policy import assign_rules, calibrated_leaves
from .recipe import Recipe
from .recipes.catalogue import RECIPES
from .runfolder import CHECKPOINT, METRICS, PACKED, READABLE, RECIPE, RUN, WEIGHTS, need, read_run, update_run
from .score.stage import SCORING, Scoring, pass_plans, score_packed
from .train.checkpoint import loader_state, read_checkpoint
from .train.dist import start_world
from .train.session import train_run
from .train.trainer import Trainer, put_weights
from .version import VERSION


def find_recipe(name):
    """The recipe of that name, or the one in a `.py` file that `show` wrote. Problem names the known ones."""
    if str(name).endswith(".py"):
        return read_recipe(name)
    functions = {function.__name__: function for function in RECIPES}
    if name not in functions:
        raise Problem(f"no recipe {name!r}: there are {', '.join(functions)}, or give a recipe.py")
    return functions[name]()


def read_recipe(path):
    """The Recipe in a file. Problem when it is absent or holds something else."""
    try:
        recipe = parse_node(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"cannot read {path}: {error}") from error
    except Problem as problem:
        raise Problem(f"{path}: {problem}") from problem
    if not isinstance(recipe, Recipe):
        raise Problem(f"{path} holds a {type(recipe).__name__}, not a Recipe")
    return recipe


def with_budget(recipe, steps, seconds):
    """The recipe with its whole budget replaced by a number of steps, or by seconds of training: nothing is reserved."""
    if steps is None and seconds is None:
        return recipe
    if steps is not None and seconds is not None:
        raise Problem("give --steps or --seconds, not both")
    if (steps if seconds is None else seconds) <= 0:
        raise Problem(f"a budget of {steps if seconds is None else seconds} is none: give more than 0")
    budget = Budget(steps or 0, seconds or 0.0)
    return replace(recipe, train=replace(recipe.train, budget=budget))


def check_recipe(recipe, dataset=None):
    """Problem for what would only be found after training: a leaf without a scheme, windows that cannot score.

    With a dataset also for too few validation tokens.
    """
    if not recipe.model.inputs or not recipe.model.head:
        raise Problem("model.inputs and model.head must hold something: token ids come in, logits go out")
    window, sequence = recipe.evaluate.windows.length, recipe.model.sequence
    if window > sequence:
        raise Problem(
            f"evaluate.windows.length={window} is longer than model.sequence={sequence}; set it to {sequence} or less"
        )
    if len(recipe.qat) > 1:
        raise Problem(f"{len(recipe.qat)} nodes stand in `qat`, and each would undo the one before; leave one")
    leaves = model_leaves(recipe)
    rules = assign_rules(leaves, recipe.quantize)
    calibrated_leaves(rules, recipe.calibrate)
    for dial in recipe.fit:
        dial.span(rules, leaves)
    shards = dataset.manifest["shards"] if dataset else []
    tokens = sum(shard["tokens"] for shard in shards if shard["split"] == "val")
    if tokens and (targets := recipe.evaluate.scored_targets(tokens)) < sequence:
        raise Problem(
            f"the validation set has {targets} targets to score, a window reads {sequence};"
            " build the data with more validation text, or set a smaller model.sequence"
        )


def model_leaves(recipe):
    """The Leafs of a recipe's model, in order."""
    return [leaf for leaf, _ in leaf_views(recipe.model.build())]


def train(name, data, out, seed, steps, seconds, settings, terminal, watch=None):
    """Trains a recipe into a new run folder `out`; returns run.json's content.

    `watch(row)` gets the newest row of metrics.jsonl whenever some were written, on rank 0; what it raises ends the run.
    """
    recipe, dataset, out = override(with_budget(find_recipe(name), steps, seconds), settings), open_dataset(data), Path(out)
    check_recipe(recipe, dataset)
    marks = marks_of(out)
    with start_world() as world:
        # Every rank looks before rank 0 writes.
        if world.largest([float((out / RUN).exists())])[0]:
            raise Problem(f"{out} already holds a run; choose another folder, or go on with `fairway train --resume {out}`")
        facts = {
            "fairway": VERSION, "torch": torch.__version__, "recipe": recipe.name, "recipe_hash": digest(recipe),
            "source_hash": source_hash(), "data": str(Path(data).resolve()), "data_hash": dataset.data_hash, "seed": seed,
            "tokenizer_sha256": dataset.manifest["tokenizer"]["sha256"], **origin(recipe),
        }  # fmt: skip
        return _train_in(world, out, recipe, dataset, facts, terminal, None, watch, marks)


def origin(recipe):
    """What run.json says of where a run came from: when, with what, and how its recipe differs from the one of its name."""
    known = {function.__name__: function for function in RECIPES}
    changes = differences(known[recipe.name](), recipe) if recipe.name in known else {}
    return {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: version_of(name) for name in ("numpy", "sentencepiece")}},
        "parameters": sum(math.prod(leaf.shape) for leaf in model_leaves(recipe)),
        "parent": recipe.name if recipe.name in known else None,
        "changes": {path: [repr(before), repr(after)] for path, (before, after) in changes.items()},
    }


def resume_training(folder, terminal, watch=None):
    """Goes on with an interrupted run, or begins it again if it left no checkpoint; of one that was stopped between its
    weights and their score, does that. Returns run.json's content. `watch`: see `train`."""
    folder, marks = Path(folder), marks_of(folder)
    recipe, run = read_recipe(need(folder, RECIPE, "train")), read_run(folder, "data", "data_hash", "recipe_hash", "seed")
    if digest(recipe) != run["recipe_hash"]:
        raise Problem(f"{folder / RECIPE} has changed since the run began; restore it, or start a new run with it")
    dataset = open_dataset(run["data"])
    if dataset.data_hash != run["data_hash"]:
        raise Problem(f"{run['data']} has changed since {folder} began ({run['data_hash']} is now {dataset.data_hash})")
    with start_world() as world:
        checkpoint = None
        if (folder / CHECKPOINT).exists():
            checkpoint = read_checkpoint(folder / CHECKPOINT, recipe, world.size)
        elif weights_there(folder, run) and unscored(run, dataset):
            return _score_weights(world, folder, recipe, dataset, run, terminal)
        elif weights_there(folder, run):
            raise Problem(f"{folder} has ended; `fairway pack {folder}` is next, or train into another folder")
        elif world.rank == 0:
            terminal.note(f"{folder} holds no checkpoint: it begins again")
        return _train_in(world, folder, recipe, dataset, run, terminal, checkpoint, watch, marks)


def weights_there(folder, run):
    """Whether a run's training has ended: its weights are there, and run.json says after how many steps."""
    return (Path(folder) / WEIGHTS).exists() and not (Path(folder) / CHECKPOINT).exists() and "steps" in run


def unscored(run, dataset):
    """Whether a run's weights lack the score that they are to have, where there are validation shards."""
    return "weights" not in run.get("bpb", {}) and bool(dataset.val) and all(path.exists() for path in dataset.val)


def _score_weights(world, folder, recipe, dataset, run, terminal):
    clock, machine = Clock(), capability(world.device)
    terminal.quiet |= world.rank > 0
    settle_threads(world.device, run.get("threads"))
    with ExitStack() as held, terminal.progress("score the weights") as bar:
        if world.rank == 0:
            held.enter_context(owning(folder))
        model = recipe.model.build(None, machine.activations)
        load_leaves(model, torch.load(folder / WEIGHTS, weights_only=True))
        scoring = Scoring(model.to(world.device), machine, dataset, clock, world, progress=bar)
        (stage,) = scoring.run(plain_pass(recipe), "validate")
        found = {"bpb": {"weights": stage.scored.bpb}, "phases": dict(clock.seconds)}
        return update_run(folder, found) if world.rank == 0 else run | found


def plain_pass(recipe):
    """How weights are scored: by themselves, since mixers come with the packed file."""
    return replace(pass_plans(recipe)[0], mix=())


def marks_of(folder):
    """What changes when a process trains in a folder: when the files were written that say how far a run is."""
    paths = [Path(folder) / name for name in (RUN, CHECKPOINT, WEIGHTS)]
    return [path.stat().st_mtime_ns if path.exists() else None for path in paths]


def _train_in(world, folder, recipe, dataset, run, terminal, checkpoint, watch, marks):
    threads = settle_threads(world.device, run.get("threads"))
    machine, clock = capability(world.device), Clock()
    terminal.quiet |= world.rank > 0
    if line := plain_forms(world.device):
        terminal.note(line)
    trainer = trainer_on_all_ranks(recipe, dataset, run["seed"], world, machine)
    with ExitStack() as held:
        if world.rank == 0:
            refuse_unwritable(folder)
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(owning(folder))
            if marks_of(folder) != marks:
                raise Problem(f"another fairway has trained in {folder} meanwhile; give the command again")
            write_text(folder / RECIPE, show(recipe))
            update_run(folder, run | {"device": device_name(world.device), "threads": threads, "world_size": world.size})
        return _train_to_the_end(world, folder, recipe, dataset, trainer, clock, threads, terminal, checkpoint, watch)


def _train_to_the_end(world, folder, recipe, dataset, trainer, clock, threads, terminal, checkpoint, watch):
    machine = trainer.machine
    with terminal.progress(f"train {recipe.name}") as bar:

        def report(row):
            done = recipe.train.budget.progress(row["step"], row["seconds"])
            bar(done, 1.0, f"step {row['step']} loss {row['loss']:.4f} {row['tokens'] / row['seconds']:,.0f} tokens/s")
            if watch is not None:
                watch(row)

        model, others, results = train_run(folder, trainer, clock, checkpoint, report)
    if results.get("threads", 0) < threads:
        terminal.note("another program took the cores: training went on with one thread")
    if world.rank == 0:
        # Before the score, which may be interrupted or find a broken shard.
        update_run(folder, results | {"sha256": {METRICS: file_sha256(folder / METRICS)}})
    if not unscored({}, dataset):
        terminal.note("no validation shards: the weights are not scored")
    else:
        plain, found = plain_pass(recipe), {}
        scoring = Scoring(model, machine, dataset, clock, world)
        for name, tensors in [("weights", None), *others]:
            if tensors is not None:
                put_weights(model, tensors)
            with terminal.progress(f"score the {name}") as bar:
                scoring.progress = bar
                (stage,) = scoring.run(plain, "validate")
            found[name] = stage.scored.bpb
            results |= {"bpb": found, "phases": dict(clock.seconds)}
            if world.rank == 0:
                update_run(folder, results)
    return update_run(folder, results) if world.rank == 0 else results


def trainer_on_all_ranks(recipe, dataset, seed, world, machine):
    """The Trainer, once no rank has refused: before anything is written, so that no folder looks taken by a refused run."""
    trainer = fault = None
    try:
        trainer = Trainer(recipe, dataset, seed, world, machine, loader_state)
    except Problem as problem:
        fault = problem
    if world.largest([float(fault is not None)])[0]:
        if trainer is not None:
            trainer.batches.close()
        raise fault or Problem("another rank was refused; its own line says why")
    return trainer


def pack(folder, data, form, terminal):
    """Bundles the program, quantises and packs a trained run; returns the ledger (None on the ranks beyond the first).

    `data`: another folder of the run's training data, for calibration. `form` of the program: base85 or latin-1.
    """
    recipe, run = read_recipe(need(folder, RECIPE, "train")), read_run(folder, "data", "data_hash")
    dataset = open_dataset(run["data"] if data is None else data)
    if dataset.data_hash != run["data_hash"]:
        raise Problem(f"{dataset.folder} is not the data that {folder} was trained on; give that by --data")
    with start_world() as world, ExitStack() as held:
        terminal.quiet |= world.rank > 0
        if world.rank == 0:
            held.enter_context(owning(folder))
        program, owners, machine = b"", [], capability(world.device)
        if world.rank == 0:  # the only one that writes
            made = bundle(recipe, form)
            program, owners = made.program, made.owners
            write_text(Path(folder) / READABLE, made.readable)
        return pack_recipe(recipe, folder, program, owners, dataset, world, machine, Clock(), terminal.note)


def score(folder, data, keep_nats, settings, last_only, terminal):
    """Scores the packed file of a run in a fresh model; returns score.json's content.

    `settings` (path=value) change how it is scored, under `evaluate`, `adapt` and `mix`: the model stays what was packed.
    With `last_only` the passes that only show what the last one gains are left out.
    """
    recipe = read_recipe(need(folder, RECIPE, "train"))
    packed, packed_by = need(folder, PACKED, "pack"), recipe
    recipe = _scored_otherwise(recipe, settings)
    data, clock = read_run(folder, "data")["data"] if data is None else data, Clock()
    dataset = open_dataset(data)
    if dataset.vocab != recipe.model.vocab:
        raise Problem(f"{data} has {dataset.vocab} pieces, the model {recipe.model.vocab}; give the data it was trained on")
    check_recipe(recipe, dataset)
    with start_world() as world:
        terminal.quiet |= world.rank > 0
        settle_threads(world.device)
        if line := plain_forms(world.device):
            terminal.note(line)
        machine = capability(world.device)
        with clock.phase("decode"):
            model = packed_model(recipe, packed, packed_by, machine)
        if (Path(folder) / RUN).exists():
            _check_origin(folder, packed, dataset)
        flops = forward_flops(scoring_model(recipe), model)
        with ExitStack() as held, terminal.progress("score the packed file") as bar:
            if world.rank == 0:
                held.enter_context(owning(folder))
            scoring = Scoring(model, machine, dataset, clock, world, flops, terminal.note, bar)
            return score_packed(folder, recipe, scoring, keep_nats, last_only, own=not settings)


def _scored_otherwise(recipe, settings):
    for setting in settings:
        if setting.partition("=")[0].split(".")[0] not in SCORING:
            raise Problem(f"{setting!r}: what is packed stays as it is; only {', '.join(SCORING)} can be set when scoring")
    return override(recipe, settings)


def _check_origin(folder, packed, dataset):
    """Problem unless the data are in the run's own tokens and the packed file is the run's own."""
    run = read_run(folder, "data", "tokenizer_sha256", "sha256")
    if dataset.manifest["tokenizer"]["sha256"] != run["tokenizer_sha256"]:
        raise Problem(
            f"{dataset.folder} has another tokenizer than {run['data']}; build it with that one's, --tokenizer FILE"
        )
    if file_sha256(packed) != run["sha256"].get(PACKED):
        raise Problem(f"{packed} is not what `fairway pack` wrote here; pack the run again")
