"""What a recipe will cost before any training: parameters, bytes, FLOPs, steps in its budget, memory, scoring.

Nothing here knows a technique: products are seen by running the model, bytes by packing samples, shards by building the
optimiser. R rows, C columns of a leaf. FLOPs count a multiplication and an addition as two.
"""

import math
from collections import Counter
from dataclasses import replace

import torch

from .artifact.bundle import forecast_program
from .artifact.container import measure_container
from .artifact.pack import SPARE_LEAST, SPARE_MOST
from .data.check import CANONICAL_TOKENS
from .model.flops import attention_flops, products_of
from .model.roles import leaf_views
from .node import digest, override
from .optim.optimizer import GroupContext, assign_groups
from .problem import Problem
from .quantize.gptq import GPTQ, Nearest
from .quantize.policy import assign_rules, quantise
from .stages import check_recipe, find_recipe
from .terminal import print_table
from .train.dist import World

SAMPLE_WEIGHTS = 2**18  # packed of each role; twice as many change the forecast of pr162 by 0.2 %
CLOCK_SLICES = 1000
FLOAT_BYTES = 4


def plan_run(name, settings, ranks, tflops):
    """The forecast for a recipe with `settings` on `ranks` GPUs that do `tflops` x 10^12 FLOPs a second each.

    FLOPs are those of matrices and of attention; all else is in the rate. The logs of the five public systems imply 227
    (#162) to 289 (#1523) on an H100, our own runs of them 281 to 319 on an H200.
    """
    if ranks < 1 or not 0 < tflops < math.inf:
        raise Problem(f"--ranks {ranks} --tflops {tflops:g}: give 1 or more GPUs, and more than 0 TFLOP/s each")
    recipe = override(find_recipe(name), settings)
    check_recipe(recipe)
    recipe.train.micro_steps(1, recipe.model.sequence)
    model = recipe.model.build()
    leaves = [leaf for leaf, _ in leaf_views(model)]
    by_phase = [6 * sum(products_of(recipe.model, model, phase).values()) for phase in range(len(model.orders))]
    attention = [attention_flops(recipe.model, order) for order in model.orders]
    whole = [matrix + scores for matrix, scores in zip(by_phase, attention, strict=True)]
    step_seconds = [flops * recipe.train.batch_tokens / ranks / (tflops * 1e12) for flops in whole]
    steps, seconds = steps_in_budget(recipe.train.budget, recipe.model.plan, step_seconds)
    targets, read, learned = tokens_scored(recipe)
    return {
        "recipe": recipe.name,
        "ranks": ranks,
        "tflops": tflops,
        "parameters": count_by_role(leaves),
        "bytes": forecast_bytes(recipe, leaves),
        "flops_per_token": {
            "plain": by_phase[0], "looped": by_phase[-1], "attention_plain": attention[0], "attention_looped": attention[-1],
        },
        "batch_tokens": recipe.train.batch_tokens,
        "step_seconds": {"plain": step_seconds[0], "looped": step_seconds[-1]},
        "steps": steps,
        "training_seconds": seconds,
        "memory": forecast_memory(recipe, model, ranks),
        "evaluation": {"targets": targets, "tokens_read": read, "tokens_trained": learned},
        "eval_seconds": None if read is None else whole[-1] * (read / 3 + learned) / (ranks * tflops * 1e12),
        "notes": plan_notes(recipe, ranks, targets, read),
    }  # fmt: skip


def count_by_role(leaves):
    """Parameters: total, by_role (both sum up), and refined: the leaves' own roles, as matrix.key."""
    by_role, refined = Counter(), Counter()
    for leaf in leaves:
        by_role[leaf.role.split(".")[0]] += math.prod(leaf.shape)
        refined[leaf.role] += math.prod(leaf.shape)
    return {"total": by_role.total(), "by_role": dict(by_role), "refined": dict(refined)}


def forecast_bytes(recipe, leaves):
    """The two files' bytes against the cap: code about as it is bundled, weights as if they were Gaussian; `unfitted` before
    the recipe's dials are moved. They are taken to meet the cap where the ends of their span lie on either side of it."""
    code, rules = forecast_program(recipe), assign_rules(leaves, recipe.quantize)
    unfitted = weights = forecast_weights(recipe, leaves, rules)
    if recipe.fit:
        coarse = fine = rules
        for dial in recipe.fit:
            coarse, fine = dial.span(coarse, leaves)[0], dial.span(fine, leaves)[1]
        goal = recipe.cap - code - (SPARE_LEAST + SPARE_MOST) // 2
        weights = min(max(goal, forecast_weights(recipe, leaves, coarse)), forecast_weights(recipe, leaves, fine))
    total = code + weights
    return {
        "forecast": total, "code": code, "weights": weights, "unfitted": unfitted, "cap": recipe.cap,
        "left": recipe.cap - total,
    }  # fmt: skip


def forecast_weights(recipe, leaves, rules):
    """Bytes of model.bin: Gaussian rows of every leaf by its rule, measured by the recipe's codec, scaled up."""
    totals, draw = Counter(), torch.Generator().manual_seed(0)
    for leaf in leaves:
        totals[leaf.role] += math.prod(leaf.shape)
    parts = [_sample_of(leaf, min(1.0, SAMPLE_WEIGHTS / totals[leaf.role])) for leaf in leaves]
    tensors = {part.name: torch.randn(part.shape, generator=draw) * 0.05 for part in parts}
    # With inputs that are independent, as these are taken to be, GPTQ rounds to nearest.
    rules = {name: _without_gptq(rule) for name, rule in rules.items()}
    plain = {part.name: torch.eye(part.shape[-1]) for part in parts if rules[part.name].calibrated}
    total, by_name = measure_container(quantise(tensors, parts, rules, plain), recipe.codec, digest(recipe))
    grown = sum(
        by_name[leaf.name] * (math.prod(leaf.shape) / math.prod(part.shape) - 1)
        for leaf, part in zip(leaves, parts, strict=True)
    )
    return round(total + grown)


def _without_gptq(rule):
    return replace(rule, rounding=Nearest()) if isinstance(getattr(rule, "rounding", None), GPTQ) else rule


def _sample_of(leaf, fraction):
    # At least one row of each, so that every name and shape stands in the header.
    if len(leaf.shape) < 2 or fraction == 1:
        return leaf
    rows_R = math.prod(leaf.shape[:-1])
    return replace(leaf, shape=(max(1, round(rows_R * fraction)), leaf.shape[-1]))


def steps_in_budget(budget, plan, step_seconds):
    """(steps, seconds on the clock) until the budget is spent, a step of each phase of `plan` taking its `step_seconds`.

    Walks the clock in a thousand slices, since the plan may change its phase at any fraction.
    """
    steps = seconds = 0.0
    for number in range(CLOCK_SLICES):
        pace = step_seconds[plan.phase((number + 0.5) / CLOCK_SLICES)]
        end, ahead = (number + 1) / CLOCK_SLICES, math.inf
        if budget.seconds:
            ahead = min(ahead, (end * budget.training_seconds - seconds) / pace)
        if budget.steps:
            ahead = min(ahead, end * budget.steps - steps)
        steps, seconds = steps + max(ahead, 0.0), seconds + max(ahead, 0.0) * pace
    return math.ceil(steps - 1e-6), seconds


def forecast_memory(recipe, model, ranks):
    """Bytes that one of `ranks` GPUs holds apart from activations: float32 masters, gradients, moments, averages."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    world, moments = World(0, ranks, torch.device("cpu")), 0
    for group, members in zip(recipe.optim, assign_groups(model, recipe.optim), strict=True):
        replicated = {id(parameter) for parameter in group.build(GroupContext(members, world, torch.float32)).replicated}
        for parameter in members.values():
            moments += group.moments * (parameter.numel() if id(parameter) in replicated else _shard(parameter, ranks))
    floats = {
        "parameters": parameters,
        "gradients": parameters * len(model.orders),  # of each phase's recorded passes
        "optimiser": moments,
        "averages": parameters * sum(average.copies for average in recipe.average),
        "qat": sum(node.build(model, recipe.quantize).floats for node in recipe.qat),
    }
    held = {name: FLOAT_BYTES * count for name, count in floats.items()}
    return held | {"total": sum(held.values())}


def _shard(parameter, ranks):
    # A bank is dealt out by slices, padded to a multiple of the ranks.
    return math.ceil(parameter.shape[0] / ranks) * parameter[0].numel()


def tokens_scored(recipe):
    """(targets, positions read, positions trained on) to score the contest's validation; (None, None, None) for another
    vocabulary. What goes by documents cannot be known without them."""
    if recipe.model.vocab not in CANONICAL_TOKENS:
        return None, None, None
    targets = recipe.evaluate.scored_targets(CANONICAL_TOKENS[recipe.model.vocab] + 1)
    if recipe.evaluate.windows.by_document:
        return targets, None, None
    for node in recipe.adapt:
        return targets, *(node.work(recipe.evaluate, targets) or (None, None))
    return targets, int(recipe.evaluate.windows.plan(targets).length.sum()), 0


def plan_notes(recipe, ranks, targets, read):
    """Lines on what the figures assume, or cannot say."""
    notes = []
    try:
        recipe.train.micro_steps(ranks, recipe.model.sequence)
    except Problem as problem:
        notes.append(f"does not train on {ranks} ranks as it is: {problem}")
    if targets is None:
        known = " and ".join(map(str, CANONICAL_TOKENS))
        notes.append(
            f"no forecast of scoring: the contest's validation is known at {known} pieces, not {recipe.model.vocab}"
        )
    elif read is None:
        names = " and ".join(type(node).__name__ for node in (recipe.evaluate.windows, *recipe.adapt))
        notes.append(f"no forecast of scoring: {names} go by the documents' lengths; `fairway score` measures it first")
    return notes


def print_plan(plan):
    """The forecast as tables, and what it rests on."""
    parameters, size, flops, held = plan["parameters"], plan["bytes"], plan["flops_per_token"], plan["memory"]
    rows = [(role, f"{count:,}") for role, count in parameters["refined"].items()]
    print_table(plan["recipe"], ("parameters", ""), [*rows, ("total", f"{parameters['total']:,}")])
    rows = [(name, f"{size[key]:,}") for name, key in (("train_gpt.py", "code"), ("model.bin, forecast", "weights"))]
    rows += [("total", f"{size['forecast']:,}"), (f"left of {size['cap']:,}", f"{size['left']:,}")]
    if size["weights"] != size["unfitted"]:
        rows.append(("model.bin before fit", f"{size['unfitted']:,}"))
    print_table("\nbytes, Gaussian weights", ("", ""), rows)
    rows = [
        ("matrix MFLOP a token", *(f"{flops[key] / 1e6:.1f}" for key in ("plain", "looped"))),
        ("attention MFLOP a token", *(f"{flops[key] / 1e6:.1f}" for key in ("attention_plain", "attention_looped"))),
        ("ms a step", *(f"{1000 * plan['step_seconds'][key]:.1f}" for key in ("plain", "looped"))),
    ]
    print_table("\ntraining", ("", "first phase", "last phase"), rows)
    rows = [(name, f"{count / 2**20:,.1f}") for name, count in held.items()]
    print_table(f"\nMiB on each of {plan['ranks']} GPUs, without activations", ("", ""), rows)
    print(
        f"\n{plan['steps']:,} steps of {plan['batch_tokens']:,} tokens in {plan['training_seconds']:.1f} s of training",
        end="",
    )
    print("" if plan["eval_seconds"] is None else f"; {plan['eval_seconds']:.1f} s to score the contest's validation")
    print(f"assumed: {plan['ranks']} GPUs at {plan['tflops']:g} TFLOP/s each, of matrices and attention (public logs imply")
    print("227 to 289 on an H100, so steps and seconds are within 15 %; our runs gave 281 to 319 on an H200)")
    if size["left"] < 0:
        print(f"over the cap by {-size['left']:,} bytes if weights are Gaussian")
    print(*plan["notes"], sep="\n", end="\n" if plan["notes"] else "")
