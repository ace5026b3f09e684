"""What the commands show: recipes as trees, manifests, checks, runs, ledgers and scores as plain tables."""

import difflib
from collections import Counter

from .artifact.ledger import owners_together
from .data.build import build_dataset
from .data.hub import download_fineweb
from .model.roles import leaf_views
from .node import show
from .problem import Problem
from .recipes.catalogue import RECIPES
from .score.stage import plain_stage
from .stages import find_recipe
from .terminal import print_table


def list_recipes():
    """Every recipe with its parameters and the first line of its docstring."""
    found = [
        {"name": f.__name__, "parameters": count_parameters(f().model), "about": f.__doc__.splitlines()[0]} for f in RECIPES
    ]
    lines = [f"{one['name']:<10} {one['parameters']:>12,}  {one['about']}" for one in found]
    return {"recipes": found, "text": "\n".join(lines)}


def count_parameters(model):
    """Parameters of a model node, by building it with zeros."""
    return sum(view.numel() for _, view in leaf_views(model.build()))


def show_recipe(name, other=None):
    """A recipe as the text that evaluates back to it, or its difference from another as a unified diff."""
    text = show(find_recipe(name))
    if other is not None:
        lines = difflib.unified_diff(
            show(find_recipe(other)).splitlines(), text.splitlines(), fromfile=other, tofile=name, lineterm="", n=1
        )
        text = "\n".join(lines)
    return {"name": name, "text": text.rstrip("\n")}


def build_data(command, terminal):
    """Runs `fairway data build`; returns the manifest."""
    if command.source != "fineweb":
        if command.caseops or command.shards != 1:
            raise Problem(f"--shards and --caseops belong to fineweb, not to {command.source}")
        if command.tokenizer and command.normalization:
            raise Problem(f"{command.tokenizer} normalises as it was trained to; leave --normalization out")
        return build_dataset(
            command.source, command.out, command.vocab, command.tokenizer, command.normalization or "nmt_nfkc",
            command.val_source, field=command.field, progress=terminal.note,
        )  # fmt: skip
    if command.tokenizer or command.val_source:
        raise Problem("fineweb brings its own tokenizer and validation documents; leave --tokenizer and --val-source out")
    vocab = command.vocab if command.vocab is not None else 8192 if command.caseops else 1024
    return download_fineweb(command.out, vocab, command.shards, command.caseops, progress=terminal.note)


def print_manifest(manifest):
    """Tokens, documents and bytes of a data folder."""
    rows = [(shard["file"], shard["split"], f"{shard['tokens']:,}") for shard in manifest["shards"]]
    print_table(f"{manifest['source']}: {manifest['vocab']} pieces", ("shard", "split", "tokens"), rows)
    if counted := manifest.get("bytes"):
        original = manifest["original_bytes"]
        rows = [(split, f"{original[split]:,}", f"{counted[split]:,}") for split in counted]
        print_table("\nbytes", ("split", "of the documents", "as the tokenizer gives them back"), rows)


def print_check(report):
    """One row a check, then whether the set is the contest's."""
    rows = [(one["check"], one["verdict"], str(one["measured"])) for one in report["checks"]]
    print_table(str(report["folder"]), ("check", "verdict", "measured"), rows)
    print(f"\ncanonical: {'yes' if report['canonical'] else 'no'} ({report['canonical_because']})")


def print_run(run):
    """How training ended."""
    rows = [("steps", f"{run['steps']:,}"), ("tokens", f"{run['tokens']:,}")]
    rows += [(f"seconds of {phase}", f"{seconds:.1f}") for phase, seconds in run["phases"].items()]
    rows += [(f"bpb, {stage}", f"{value:.4f}") for stage, value in run.get("bpb", {}).items()]
    print_table(f"{run['recipe']} seed {run['seed']} on {run['device']} x {run['world_size']}", ("", ""), rows)
    print(*run["averages"], *run["qat"], sep="\n")


def print_ledger(ledger):
    """Bytes by file, then of model.bin by owner, layers together; what is under a thousandth of it stands in one line."""
    rows = [(name, "", f"{size:,}") for name, size in ledger["files"].items()]
    sums = Counter({key: size for key, size in owners_together(ledger).items() if key[1] != "code"})
    heavy = [(owner, kind, size) for (owner, kind), size in sums.most_common() if size * 1000 >= sums.total()]
    rows += [(owner, kind, f"{size:,}") for owner, kind, size in heavy]
    rows.append(("all others", "", f"{sums.total() - sum(size for *_, size in heavy):,}"))
    rows += [("total", "", f"{ledger['total']:,}"), ("left under the cap", "", f"{ledger['cap'] - ledger['total']:,}")]
    print_table("bytes", ("owner", "kind", "bytes"), rows)


def print_score(scored):
    """bpb by stage, what each gained over the one above, and the bytes that nats and bpb imply."""
    rows = []
    for one in scored["stages"]:
        gain = one.get("gain")
        by = f"{gain['delta_bpb']:+.6f}" if gain else ""
        if gain and gain["interval"]:
            by += f" ({gain['interval'][0]:+.6f} to {gain['interval'][1]:+.6f})"
        rate = f"{one['tokens_per_second']:,}"
        rows.append((plain_stage(one["name"]), f"{one['bpb']:.6f}", by, f"{one['nats']:.3f}", f"{one['seconds']:.1f}", rate))
    print_table("score", ("stage", "bpb", "against the one above (95 %)", "nats", "seconds", "tokens/s"), rows)
    for one in scored["stages"]:
        if one.get("says"):
            print(f"\n{one['name']}: {one['says']} (mean_z {one['mean_z']:,.1f} over {one['sampled_targets']:,} targets)")
        if one.get("plainly_scored"):
            left, budget = one["plainly_scored"], one["seconds_budget"]
            print(f"{one['name']}: {left:,} targets were scored plainly, for the budget of {budget:g} s")
    what = "bpb" if scored["normalised"] else "by a rule that is no probability: no score. That"
    print(f"\n{scored['bpb']:.8f} {what} over {scored['tokens']:,} tokens and {scored['bytes']:,} bytes", end="")
    print(f" (implied bytes {scored['implied_bytes']:,.1f}; {scored['dropped_targets']} targets dropped)")
