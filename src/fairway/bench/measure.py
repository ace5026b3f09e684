"""`fairway bench`: how long a recipe's step takes, by phase of its plan and by part, on one rank or several.

A step is one micro-batch on each rank and one update, whatever the recipe's own batch is, so that one GPU does what each
of eight would. The rates are full and the budget has just begun: late quantisation-aware training and averages of the
last weights do not work yet.
"""

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from itertools import count
from pathlib import Path
from statistics import median

import numpy as np
import torch

from ..artifact.sources import source_hash
from ..data.dataset import Dataset, open_dataset
from ..data.shards import write_shard
from ..kernels.capability import capability, device_name, peak_flops, plain_forms, settle_threads
from ..model.flops import attention_flops, products_of
from ..node import digest, override
from ..problem import Problem
from ..stages import find_recipe, trainer_on_all_ranks
from ..train.dist import start_world
from ..train.interrupt import listening
from ..train.session import nothing_compiled
from ..version import VERSION
from .results import append_bench, bench_place
from .watch import TimedWorld, ms_between, time_mark, watch_steps, watched_parts

BLOCKS_TIMED = 5
BENCH_STEPS = {"cuda": 20, "cpu": 2}  # of a block, if not said otherwise
WARM_STEPS, LEAD_STEPS = {"cuda": 5, "cpu": 1}, {"cuda": 2, "cpu": 0}  # a phase before all, and before each block
PRODUCT_SIZE, PRODUCT_SECONDS = {"cuda": 8192, "cpu": 1024}, 0.3
SYNTHETIC_BATCHES = 4  # micro-batches of random text for each rank


@dataclass
class PhaseTimes:
    """What was measured of one phase: milliseconds, of a step by block and of its parts; seconds to warm up; bytes."""

    warm_seconds: float = 0.0
    step_ms: list = field(default_factory=list)
    parts_ms: tuple = ()
    host_ms: float | None = None
    communication_ms: float = 0.0
    memory: int | None = None


def bench_recipe(name, data, settings, steps, tokens, out, terminal):
    """Measures the recipe of that name with `settings`; adds a row a phase to a CSV file and returns them with what is known
    of all phases.

    `data`: a data folder, or None for random tokens. `steps` of each block and `tokens` of a micro-batch: None for the
    default, and for the recipe's. Problem for wrong input, before anything is measured.
    """
    recipe, path = override(find_recipe(name), settings), bench_place(out)
    for setting in settings:
        if setting.startswith(("train.batch_tokens=", "train.micro_tokens=")):
            raise Problem(f"--set {setting}: a step of bench is one micro-batch on each rank; give its size by --tokens N")
    if steps is not None and steps < 1:
        raise Problem(f"--steps {steps} is none; give 1 or more")
    flops = step_flops(recipe)
    facts = {"recipe": recipe.name, "recipe_hash": digest(recipe), "changes": " ".join(settings)}
    dataset = None if data is None else open_dataset(data)
    with start_world() as world, ExitStack() as held:
        terminal.quiet |= world.rank > 0
        settle_threads(world.device)
        recipe = with_one_micro_batch(recipe, tokens, world.size)
        try:
            if dataset is None:
                dataset = synthetic_dataset(Path(held.enter_context(tempfile.TemporaryDirectory())), recipe, world.size)
            found = _measure(recipe, dataset, world, steps or BENCH_STEPS[world.device.type], terminal)
        except (torch.OutOfMemoryError, MemoryError) as error:
            size = recipe.train.micro_tokens
            raise Problem(
                f"{size} tokens do not fit in {device_name(world.device)}'s memory; give fewer by --tokens"
            ) from error
        facts |= {"data": "synthetic" if data is None else dataset.data_hash}
        result = described(facts, recipe, world, flops, *found)
        if path is not None and world.rank == 0:
            append_bench(path, result["rows"])
        return result | {"out": path and str(path)}


def with_one_micro_batch(recipe, tokens, ranks):
    """The recipe with a step of one micro-batch on each rank, of `tokens` or as it stands. Problem for a number that is no
    positive multiple of the sequence."""
    length = recipe.model.sequence
    if tokens is not None and (tokens < 1 or tokens % length):
        near = max(length, round(tokens / length) * length)
        raise Problem(f"--tokens {tokens} is no positive multiple of model.sequence={length}; give {near}")
    tokens = recipe.train.micro_tokens if tokens is None else tokens
    recipe = replace(recipe, train=replace(recipe.train, micro_tokens=tokens, batch_tokens=tokens * ranks))
    recipe.train.micro_steps(ranks, recipe.model.sequence)
    return recipe


def synthetic_dataset(folder, recipe, ranks):
    """A Dataset of random tokens, for training alone: as in text, the k-th comes about 1 / k as often as the first."""
    vocab, path = recipe.model.vocab, folder / "synthetic_train_000000.bin"
    chances_V = 1 / (np.arange(vocab) + 2.7)
    size = SYNTHETIC_BATCHES * ranks * (recipe.train.micro_tokens + 1)
    write_shard(path, np.random.default_rng(0).choice(vocab, size, p=chances_V / chances_V.sum()))
    return Dataset(folder, (path,), (), (), folder / "no.model", vocab, {"shards": []})


def _measure(recipe, dataset, world, steps, terminal):
    """(PhaseTimes of each phase, blocks of steps and their length, FLOPs a second of one large product)."""
    machine, watched = capability(world.device), world if world.size == 1 else TimedWorld(world)
    with ExitStack() as held:
        interrupt = held.enter_context(listening())
        trainer = trainer_on_all_ranks(recipe, dataset, 42, watched, machine)
        held.callback(trainer.batches.close)
        times = [PhaseTimes() for _ in trainer.model.orders]
        if line := plain_forms(world.device):
            terminal.note(line)
        terminal.note(f"{recipe.name}: warms up, then takes {BLOCKS_TIMED} blocks of {steps:,} steps in each phase")
        show = held.enter_context(terminal.progress(f"bench {recipe.name}"))
        total, done = len(times) * (BLOCKS_TIMED + 3), count()
        for phase, found in enumerate(times):
            show(next(done), total, f"phase {phase}: warm-up")
            found.warm_seconds = warm_phase(trainer, phase, interrupt)
        with nothing_compiled(machine.compiled):
            for phase, found in enumerate(times):
                show(next(done), total, f"phase {phase}: parts")
                time_parts(found, trainer, phase, steps, interrupt)
            trainer.record()
            # Phase after phase within each round, so that a card that warms up does so for all alike.
            for number in range(BLOCKS_TIMED):
                for phase, found in enumerate(times):
                    show(next(done), total, f"phase {phase}: block {number + 1} of {BLOCKS_TIMED}")
                    time_block(found, trainer, phase, steps, interrupt)
            for phase, found in enumerate(times):
                show(next(done), total, f"phase {phase}: host and collectives")
                time_rest(found, trainer, phase, steps, interrupt)
    return times, steps, product_rate(machine)


def warm_phase(trainer, phase, interrupt):
    """Compiles a phase by real steps; the seconds that they took."""
    begin = time.perf_counter()
    watch_steps(trainer, phase, WARM_STEPS[trainer.world.device.type], interrupt)
    return time.perf_counter() - begin


def time_block(found, trainer, phase, steps, interrupt):
    """Adds a block to `found`: the mean step of `steps` that were queued back to back, after some that fill the queue."""
    lead = LEAD_STEPS[trainer.world.device.type]
    marks = watch_steps(trainer, phase, lead + steps, interrupt).marks
    found.step_ms.append(ms_between(marks[lead], marks[-1]) / steps)


def time_parts(found, trainer, phase, steps, interrupt):
    """Puts into `found` the median forward, backward and update of `steps` steps that were queued back to back and not yet
    recorded, kernel by kernel; and the memory that their tensors took."""
    device = trainer.world.device
    lead = LEAD_STEPS[device.type]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with watched_parts(trainer) as (ends, begins):
        marks = watch_steps(trainer, phase, lead + steps, interrupt).marks
    cuts = list(zip(marks, ends, begins, marks[1:], strict=False))[lead:]
    found.parts_ms = tuple(median(ms_between(cut[i], cut[i + 1]) for cut in cuts) for i in range(3))
    if device.type == "cuda":
        found.memory = torch.cuda.max_memory_allocated(device)


def time_rest(found, trainer, phase, steps, interrupt):
    """Puts into `found`, on a GPU, what the host takes to queue a step; of several ranks, what their collectives take when
    each runs alone."""
    world = trainer.world
    lead = LEAD_STEPS[world.device.type]
    if world.device.type == "cuda":
        found.host_ms = median(watch_steps(trainer, phase, lead + steps, interrupt, alone=True).queued_ms[lead:])
    if world.size > 1:
        world.timed, world.spent_ms = True, 0.0
        try:
            watch_steps(trainer, phase, steps, interrupt)
        finally:
            world.timed = False
        found.communication_ms = world.spent_ms / steps


def product_rate(machine):
    """FLOPs a second of one large product in the dtype of the activations."""
    size = PRODUCT_SIZE[machine.device.type]
    a, b = (torch.randn(size, size, device=machine.device, dtype=machine.activations) for _ in range(2))
    out = torch.empty_like(a)

    def seconds(times):
        begin = time_mark(machine.device)
        for _ in range(times):
            torch.mm(a, b, out=out)
        end = time_mark(machine.device)
        if machine.device.type == "cuda":
            torch.cuda.synchronize(machine.device)
        return ms_between(begin, end) / 1000

    seconds(3)
    times = max(1, round(PRODUCT_SECONDS / (seconds(3) / 3)))
    return 2 * size**3 * times / seconds(times)


def step_flops(recipe):
    """FLOPs a token of each phase, forward and backward: products with matrices, and attention's own two. Problem for a
    model that does not run."""
    model = recipe.model.build()
    return [
        6 * sum(products_of(recipe.model, model, phase).values()) + attention_flops(recipe.model, order)
        for phase, order in enumerate(model.orders)
    ]


def described(facts, recipe, world, flops, times, steps, rate):
    """The result: a row a phase, and what the rows have in common. A collective call."""
    device, tokens = world.device, recipe.train.micro_tokens
    peak, rows = peak_flops(device), []
    common = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), **facts, "ranks": world.size, "device": device_name(device),
        "torch": torch.__version__, "triton": triton_version(), "cuda": torch.version.cuda, "fairway": VERSION,
        "source_hash": source_hash(), "tokens": tokens, "n": BLOCKS_TIMED, "steps": steps,
    }  # fmt: skip
    for phase, found in enumerate(times):
        step_ms, (forward, backward, update) = median(found.step_ms), found.parts_ms
        warm_seconds = found.warm_seconds - WARM_STEPS[device.type] * step_ms / 1000
        # Of the rank that took longest, or needs most.
        warm_seconds, memory = world.largest([warm_seconds, float(found.memory or 0)])
        rows.append(common | {
            "phase": phase, "step_ms": round(step_ms, 3), "step_min": round(min(found.step_ms), 3),
            "step_max": round(max(found.step_ms), 3), "forward_ms": round(forward, 3), "backward_ms": round(backward, 3),
            "optimiser_ms": round(update, 3), "communication_ms": round(found.communication_ms, 3),
            "host_ms": None if found.host_ms is None else round(found.host_ms, 3),
            "tokens_per_s": round(1000 * tokens / step_ms),
            "mfu": peak and round(flops[phase] * tokens / (step_ms / 1000) / peak, 4),
            "floor_ms": round(1000 * flops[phase] * tokens / rate, 3),
            "memory_gib": round(memory / 2**30, 2) if found.memory else None, "compile_s": round(max(warm_seconds, 0.0), 1),
        })  # fmt: skip
    return {
        "rows": rows, "flops_per_token": flops, "product_tflops": rate / 1e12,
        "product_size": PRODUCT_SIZE[device.type], "peak_tflops": peak and peak / 1e12,
        "visits": [len(order.encoder) + len(order.decoder) for order in recipe.model.plan.orders(recipe.model.layers)],
    }  # fmt: skip


def triton_version():
    """Triton's version; None where it is not installed."""
    try:
        return version_of("triton")
    except PackageNotFoundError:
        return None
