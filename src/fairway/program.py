"""What `train_gpt.py` does when it is run: a recipe's stages without the command line."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from .artifact.pack import pack_recipe
from .clock import Clock
from .core import score_recipe, train_recipe
from .data.dataset import read_dataset
from .files import write_json
from .kernels.capability import capability
from .optim.schedule import Budget
from .problem import DoesNotHold, Problem
from .runfolder import NATS, PACKED, SCORE, update_run
from .train.dist import join_world

STAGES = ("train", "pack", "score")


def run_program(recipe):
    """Trains, packs and scores `recipe`, or does one of the three, as the arguments say. Returns the exit code: 0 done, 1
    does not hold, 2 wrong input, with one line. One process on a CPU or GPU, or one a GPU under torchrun."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--keep-nats", action="store_true")
    wanted = parser.parse_args()
    world = None
    try:
        if min(wanted.steps, wanted.seconds) < 0:
            raise Problem(f"a budget of {wanted.steps} steps, {wanted.seconds} s; give more than 0")
        world = join_world()
        run_stages(recipe, wanted, world)
        return 0
    except (Problem, DoesNotHold) as fault:
        print(f"train_gpt.py: {fault} (a number alone is a line of train_gpt.readable.py)", file=sys.stderr)
        return 2 if isinstance(fault, Problem) else 1
    finally:
        if world:
            world.leave()


def run_stages(recipe, wanted, world):
    """The stages that are `wanted`, one after the other."""
    machine, dataset, clock = capability(world.device), read_dataset(wanted.data), Clock()

    def say(*words):
        if world.rank == 0:
            print(*words, flush=True)

    for stage in [wanted.stage] if wanted.stage else STAGES:
        if stage == "train":
            # Another budget is no other recipe to the stages that follow.
            budget = Budget(wanted.steps, wanted.seconds) if wanted.steps or wanted.seconds else recipe.train.budget
            trained = replace(recipe, train=replace(recipe.train, budget=budget))
            facts = train_recipe(trained, dataset, wanted.out, wanted.seed, world, machine, clock, say)
            if world.rank == 0:
                update_run(wanted.out, facts)
        elif stage == "pack":
            program = Path(sys.argv[0]).read_bytes()
            owners = [{"owner": "program", "kind": "code", "bytes": len(program)}]
            pack_recipe(recipe, wanted.out, program, owners, dataset, world, machine, clock, say)
        else:
            scored = score_recipe(recipe, wanted.out / PACKED, dataset, world, machine)
            say("bpb", scored.bpb)
            if world.rank == 0:
                facts = {"bpb": scored.bpb, "nats": scored.nats, "tokens": scored.tokens, "bytes": scored.bytes}
                write_json(wanted.out / SCORE, facts)
                if wanted.keep_nats:
                    np.save(wanted.out / NATS, scored.nats_N)
        # A stage reads what the first rank has written.
        world.largest([0.0])
