"""README.md of a record folder: a template filled with what was measured."""

import re
import shlex
from collections import Counter
from importlib.resources import files as package_files
from statistics import mean, stdev

from jinja2 import Environment, StrictUndefined

from ..artifact.ledger import owners_together
from ..node import digest, override, show
from ..problem import Problem
from ..recipes.catalogue import RECIPES
from ..referee.margins import RECORD_CHANCE
from ..referee.verdict import FAIL, NOT_TESTED, PASS, shown
from ..runfolder import PROGRAM
from .lineage import credits_of, lineage_of
from .submission import LEARNING, PROVEN_BY, own_words

LONGEST_CELL = 240  # characters of what an audit measured


def readme_text(runs, told, exceptions, attempts, with_model, allow):
    """The README as Markdown.

    `runs`: Measureds, the first being the one whose model.bin ships; `told`: submission.json's content; `exceptions`:
    texts; `attempts`: rows of `attempts_of`; `allow`: the kinds that were allowed.
    """
    first, lineage = runs[0], lineage_of(runs[0])
    commands, recipe_files = toolkit_commands(runs)
    facts = {
        "kind": headline_kind(told, exceptions),
        "name": one_line(told["name"]), "blurb": told["blurb"], "bpb": f"{told['val_bpb']:.4f}",
        "seeds_told": f"{len(runs)}-seed mean" if len(runs) > 1 else "1 seed",
        "std": f"{told['val_bpb_std']:.4f}" if "val_bpb_std" in told else None,
        "megabytes": f"{told['bytes_total'] / 1e6:.2f}", "hardware": told["hardware"], "exceptions": exceptions,
        "results": results_table(runs), "tokens": f"{first.score['tokens']:,}", "text_bytes": f"{first.score['bytes']:,}",
        "against": record_lines(told), "lineage": lineage, "recipe_hash": told["recipe_hash"],
        "parameters": f"{first.run['parameters']:,}" if "parameters" in first.run else None,
        "data_hash": told["data_hash"], "source_hash": told.get("source_hash"), "code_sha256": told["train_gpt_sha256"],
        "changes": [("field", "there", "here"), *((one["path"], one["from"], one["to"]) for one in lineage["changes"])],
        "techniques": [("technique", "where", "what it is", "credits"), *map(technique_row, credits_of(first.recipe()))],
        "model_seed": first.seed if with_model else None,
        "score_command": f"{launcher(first)}{PROGRAM} --stage score --data DATA --out .",
        "program_commands": program_commands(runs),
        "toolkit_commands": [*commands, record_command(runs, told, with_model, allow)], "recipe_files": recipe_files,
        "fairway": first.run.get("fairway", "of an older version"),
        "seeds": ", ".join(str(one.seed) for one in runs), "bytes": bytes_table(runs), "seconds": seconds_table(runs),
        "audit": audit_table(runs), "policies": policies_of(runs),
        "attempts": attempts and [("seed", "run", "began", "ended", "outcome"), *attempts],
        "learning": LEARNING, "proven": "; ".join(f"`{key}` from {' and '.join(rules)}" for key, rules in PROVEN_BY.items()),
    }  # fmt: skip
    words = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)
    words.globals["table"] = markdown_table
    template = package_files("fairway.record").joinpath("readme.md.jinja").read_text()
    return words.from_string(template).render(facts)


def headline_kind(told, exceptions):
    """What the first line calls the folder: a record where it shows to beat one by the contest's margin, in some reading."""
    if re.search(r"(?i)non|unlimited", told["track"]):
        return "Non-record"
    shown_by = [one["p_value"] for one in told.get("margin", {}).values()]
    return "Record" if shown_by and min(shown_by) < RECORD_CHANCE and not exceptions else "Submission"


def one_line(text):
    """A text without line ends."""
    return " ".join(str(text).split())


def markdown_table(rows):
    """Rows, the first being the header, as a Markdown table."""
    lines = [[one_line(cell).replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in rows]
    lines.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def results_table(runs):
    """A row a seed, then means and sample deviations: steps, pace, bpb by stage, nats, bytes, seconds."""
    stages = [stage["name"] for stage in runs[0].score["stages"]]
    header = ["seed", "steps", "ms/step", "weights bpb", *(f"{name} bpb" for name in stages), "val_loss", "bytes"]
    forms = [",.0f", ".2f", *([".6f"] * (len(stages) + 2)), ",.0f", ".1f", ".1f"]
    figures = [results_row(one, stages) for one in runs]
    rows = [[str(one.seed), *formatted(row, forms)] for one, row in zip(runs, figures, strict=True)]
    columns = list(zip(*figures, strict=True))
    rows.append(["**mean**", *formatted([None if None in column else mean(column) for column in columns], forms)])
    if len(runs) > 1:
        spreads = [
            None if None in column or "6" not in form else stdev(column) for column, form in zip(columns, forms, strict=True)
        ]
        rows.append(["std", *formatted(spreads, forms)])
    return [[*header, "train time (s)", "eval time (s)"], *rows]


def results_row(one, stages):
    """The figures of a run in the order of the table of results; None for what it lacks."""
    by_stage = {stage["name"]: stage["bpb"] for stage in one.score["stages"]}
    steps = one.run["steps"]
    return [
        steps, 1000 * one.train_seconds / steps, one.run["bpb"].get("weights"), *(by_stage.get(name) for name in stages),
        one.nats_per_token, one.total_bytes, one.train_seconds, one.score_seconds,
    ]  # fmt: skip


def formatted(figures, forms):
    """Figures as texts, "-" for None."""
    return ["-" if figure is None else format(figure, form) for figure, form in zip(figures, forms, strict=True)]


def record_lines(told):
    """What the seeds say of the margin to the record, as sentences; [] where none was given."""
    if "record_val_bpb" not in told:
        return []
    record = told["record_val_bpb"]
    known = mean(record) if isinstance(record, list) else record
    of_seeds = f" (mean of {len(record)} seeds)" if isinstance(record, list) else ""
    gain = known - told["val_bpb"]
    how = f"{abs(gain):.6f} bpb {'better' if gain >= 0 else 'worse'}"
    lines = [f"The record has {known:.6f} bpb{of_seeds}; the mean here is {how}."]
    if "p_value" not in told:
        return [*lines, "There is no spread between seeds to judge by."]
    statistic = f"t = {told['t_statistic']:.3f}, "
    test = "Welch's t-test" if isinstance(record, list) else "one-sample t-test"
    lines.append(f"One-sided {test} that the mean is below it: {statistic}p = {told['p_value']:.3g}.")
    for unit, one in told["margin"].items():
        reading = f"0.005 {unit.replace('_', ' ')}" if unit != "bpb" else "0.005 bpb"
        lines.append(f"Better by more than {reading} ({one['bpb']:.5f} bpb): p = {one['p_value']:.3g}.")
    return [*lines, "Deviations between seeds of one machine understate what another machine gives."]


def technique_row(one):
    """A technique's name, place, first sentence and sources."""
    return one["name"], one["site"], one["about"], ", ".join(one["credits"]) or "-"


def launcher(one, module=""):
    """What starts a program, or a module, on as many ranks as the run had, with a space after it."""
    ranks = one.run["world_size"]
    return f"torchrun --standalone --nproc_per_node={ranks} {module}" if ranks > 1 else f"python {module}"


def program_commands(runs):
    """The commands by which train_gpt.py makes each seed; another file's runs are said to be so."""
    lines = []
    for one in runs:
        line = f"{launcher(one)}{PROGRAM} --data DATA --out seed{one.seed} --seed {one.seed}"
        own = one.run["sha256"][PROGRAM]
        lines.append(line if own == runs[0].run["sha256"][PROGRAM] else f"# seed {one.seed}: by another {PROGRAM}, {own}")
    return lines


def toolkit_commands(runs):
    """(the commands of fairway that make these runs, {file: text} of the recipes that have to be given as files)."""
    lines, texts = [], {}
    for one in runs:
        lineage = lineage_of(one)
        settings = [f"{change['path']}={change['to']}" for change in lineage["changes"]]
        if is_same_recipe(lineage["parent"], settings, one.run["recipe_hash"]):
            recipe, changes = shlex.quote(lineage["parent"]), f" --set {shlex.join(settings)}" if settings else ""
        else:
            text, changes = show(one.recipe()).rstrip(), ""
            recipe = texts.setdefault(text, "recipe.py" if not texts else f"recipe-{len(texts) + 1}.py")
        start, folder = launcher(one, "-m fairway "), f"seed{one.seed}"
        raw = " --raw" if (one.folder / PROGRAM).read_bytes().startswith(b"#coding") else ""
        lines.append(f"{start}train {recipe} --data DATA --out {folder} --seed {one.seed}{changes}")
        lines += [f"{start}pack {folder}{raw}", f"{start}score {folder}"]
        if one.audit:
            full = " --full" if one.audit.get("full") else ""
            lines.append(f"python -m fairway audit {folder} --policy {one.audit.get('policy')}{full}")
    return lines, {name: text for text, name in texts.items()}


def record_command(runs, told, with_model, allow):
    """The command that makes this folder of these runs."""
    words = ["fairway", "record", *(f"seed{one.seed}" for one in runs), "--out", "record", "--name", told["name"]]
    words += ["--author", told["author"], "--github", told["github_id"], "--track", told["track"]]
    words += ["--blurb", told["blurb"]] if told["blurb"] != own_words(runs[0]) else []
    record = told.get("record_val_bpb", ())
    record = record if isinstance(record, (list, tuple)) else [record]
    words += ["--record", *map(repr, record)] if record else []
    words += ["--allow", *allow] if allow else []
    return f"python -m {shlex.join(words + ([] if with_model else ['--no-model']))}"


def is_same_recipe(parent, settings, recipe_hash):
    """Whether the recipe of that name with these settings is the one with that hash."""
    functions = {function.__name__: function for function in RECIPES}
    try:
        return parent in functions and digest(override(functions[parent](), settings)) == recipe_hash
    except Problem:  # what was added or left out cannot be set
        return False


def bytes_table(runs):
    """Bytes by owner and kind, a column a run; what is under a thousandth of all stands in one row."""
    sums = [
        Counter({f"{name} ({kind})": size for (name, kind), size in owners_together(one.ledger).items() if kind != "code"})
        for one in runs
    ]
    owners = sorted({owner for column in sums for owner in column}, key=lambda owner: -sums[0][owner])
    heavy = [owner for owner in owners if any(column[owner] * 1000 >= column.total() for column in sums)]
    rows = [(owner, *(f"{column[owner]:,}" for column in sums)) for owner in heavy]
    rows.append(("all others", *(f"{column.total() - sum(column[owner] for owner in heavy):,}" for column in sums)))
    rows += [(name, *(f"{one.ledger['files'][name]:,}" for one in runs)) for name in runs[0].ledger["files"]]
    return [("owner", *(one.seed for one in runs)), *rows, ("both files", *(f"{one.total_bytes:,}" for one in runs))]


def seconds_table(runs):
    """Seconds by phase, a column a run."""
    phases = dict.fromkeys(name for one in runs for name in one.run["phases"])
    rows = [(name, *(f"{one.run['phases'].get(name, 0.0):.1f}" for one in runs)) for name in phases]
    artifact = [("train and calibrate", *(f"{one.artifact_seconds:.1f}" for one in runs))]
    scored = [("the pass that is the score", *(f"{one.score_seconds:.1f}" for one in runs))]
    return [("phase", *(one.seed for one in runs)), *rows, *artifact, *scored]


def audit_table(runs):
    """A row a rule: its condition, the verdict of all audits, and what the worst one measured. None without an audit."""
    audits = [(one.seed, one.audit["verdicts"]) for one in runs if one.audit]
    rules = dict.fromkeys(row["rule"] for _, rows in audits for row in rows)
    table = []
    for rule in rules:
        found = [(seed, [row for row in rows if row["rule"] == rule]) for seed, rows in audits]
        by_verdict = {}
        for seed, rows in found:
            by_verdict.setdefault(verdict_in_parts(rows), []).append(str(seed))
        verdict = "; ".join(
            word if len(by_verdict) == 1 else f"{word} ({', '.join(seeds)})" for word, seeds in by_verdict.items()
        )
        rows = [row for _, some in found for row in some]
        worst = min(rows, key=lambda row: (FAIL, NOT_TESTED, PASS).index(row["verdict"]))
        told = shown(worst)
        told = told if len(told) <= LONGEST_CELL else f"{told[:LONGEST_CELL]}..."
        table.append((rule, worst["condition"], verdict, told))
    return [("rule", "condition", "verdict", "measured"), *table] if table else None


def policies_of(runs):
    """Under which policies the runs were audited."""
    return " and ".join(dict.fromkeys(str(one.audit.get("policy")) for one in runs if one.audit))


def verdict_in_parts(rows):
    """The verdict of one audit on a rule that it may have tested in several parts."""
    found = {row["verdict"] for row in rows}
    return FAIL if FAIL in found else "PASS in part" if found == {PASS, NOT_TESTED} else next(iter(found), NOT_TESTED)
