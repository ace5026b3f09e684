"""`fairway report`: one HTML page of runs that needs nothing beside it: no network, no scripts, no other file."""

from importlib.resources import files as package_files

from ..files import write_text
from ..node import differences
from ..problem import Problem
from ..referee.rules import read_policy
from ..version import VERSION
from .admission import chosen_runs
from .charts import band_chart, budget_bars, interval_chart, line_chart, staircase, treemap
from .compare import OTHER_MACHINES, compare
from .figures import (
    FEWEST_DOCUMENTS,
    bpb_stairs,
    bucket_table,
    byte_parts,
    loss_by_place,
    loss_curves,
    making_rows,
    page_table,
    run_groups,
    run_names,
    scoring_rows,
)
from .heading import (
    audit_tile,
    comparison_tiles,
    group_facts,
    hash_table,
    limit_tiles,
    origin_table,
    own_faults,
    run_facts,
    runs_table,
    with_holders,
)
from .lineage import lineage_of, recipe_tree
from .marks import CHART_STYLE
from .quote import chance_text, span_text
from .runfiles import refuse_other_file
from .verdicts import audit_facts

SECTIONS = (
    ("result", "Result"), ("seeds", "Seeds"), ("verdicts", "Verdicts"), ("stages", "Stages"), ("bytes", "Bytes"),
    ("seconds", "Seconds"), ("loss", "Loss"), ("recipe", "Recipe"), ("origin", "Origin"),
)  # fmt: skip
LARGEST_PAGE = 2_000_000
PAGE_START = b"<!DOCTYPE html>"


def write_report(runs, against, out):
    """Writes the page of the run folders among and below `runs` to the file `out`; {"path", "bytes", "runs"}.

    `against`: paths of runs to compare with, or (). Runs may be in any state: what is missing is said in its place.
    Problem for a path without runs, and for an `out` that cannot be written.
    """
    refuse_other_file(out, PAGE_START, "HTML page")
    ones, others = chosen_runs(runs), chosen_runs(against) if against else []
    text = render_page(report_page(ones, others)).encode(errors="replace").decode()  # of names that are no UTF-8
    if len(text.encode()) > LARGEST_PAGE:
        raise Problem(f"{len(ones) + len(others)} runs make a page of {len(text.encode()):,} bytes; give fewer of them")
    write_text(out, text)
    return {"path": str(out), "bytes": len(text.encode()), "runs": len(ones)}


def print_report_place(result):
    """Where the page is."""
    print(f"{result['path']}: {result['runs']} run{'s' * (result['runs'] != 1)}, {result['bytes']:,} bytes")


def render_page(page):
    """HTML of what `report_page` returns; every text is escaped, charts are markup already."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    here = package_files("fairway.record")
    environment = Environment(
        loader=FunctionLoader(lambda name: here.joinpath(name).read_text()),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("report.html.jinja").render(
        page, style=here.joinpath("report.css").read_text() + CHART_STYLE
    )


def report_page(ones, others):
    """What the template shows, of the Measured `ones`, and of `others` that they are compared with."""
    ones = [one for _, runs in run_groups(ones) for one in sorted(runs, key=lambda one: one.seed)]
    names = run_names(ones)
    faults = own_faults([*ones, *others])
    sound = [(one, name) for one, name in zip(ones, names, strict=True) if one.folder not in faults]
    sound_ones, sound_names = [one for one, _ in sound], [name for _, name in sound]
    groups = [group_facts(name, runs, faults) for name, runs in run_groups(ones)]
    beside = [group_facts(f"against {name}", runs, faults) for name, runs in run_groups(others)]
    runs = [run_facts(one, name) for one, name in zip(ones, names, strict=True)]
    audit, comparison = audit_facts(ones, names), comparison_facts(ones, others, faults)
    if comparison and not comparison["fault"]:
        # As the sentence of the comparison calls the two sides: their recipes may have one name.
        for side, (group, *more) in (("runs", groups), ("against", beside)):
            if not more and (name := comparison["found"][side]["name"]) != group["name"]:
                group["label"] = f"{name} ({group['name'].removeprefix('against ')})"
    return {
        "version": VERSION,
        "title": ", ".join(group["name"] for group in groups),
        "sections": SECTIONS,
        "groups": groups,
        "tiles": [
            *comparison_tiles(comparison),
            audit_tile(audit_facts(sound_ones, sound_names)),
            *limit_tiles(sound_ones, sound_names),
        ],
        "faults": [f"{folder.name} does not agree with itself: {text}" for folder, text in faults.items()],
        "runs": runs,
        "runs_table": runs_table(runs),
        "hash_table": hash_table(runs),
        "origin_table": origin_table(runs),
        "remarks": with_holders([(run["name"], text) for run in runs for text in run["remarks"]], len(runs)),
        "audit": audit,
        "seeds": seeds_figure(groups, beside),
        "comparison": comparison,
        "stairs": stairs_figure(ones, names),
        "bytes": bytes_figure(ones, names),
        "seconds": seconds_figures(ones, names),
        "losses": losses_figure(ones, names),
        "places": places_figures(sound_ones),
        "recipes": [recipe_facts(group["name"], group["runs"][0]) for group in groups],
    }


def chart_figure(ident, title, caption, chart, table):
    """A chart with what it says in a sentence, and its figures as a table."""
    return {"ident": ident, "title": title, "caption": caption, "chart": chart, "table": table}


def seeds_figure(groups, beside):
    """The scores of each group's runs with mean and interval, as a figure; None with fewer than two."""
    rows, cells = [], []
    for group in groups + beside:
        stats = group["stats"]
        if stats is None:
            continue
        low, high = stats["interval"] or (None, None)
        points = [row["bpb"] for row in stats["runs"]]
        mean = stats["mean"] if stats["n"] > 1 else None
        rows.append({"label": group["label"], "points": points, "mean": mean, "low": low, "high": high})
        for row in stats["runs"]:
            cells.append([f"{group['label']}, seed {row['seed']}", f"{row['bpb']:.6f}", "", ""])
        if stats["n"] > 1:
            cells.append([f"{group['label']}, mean of {stats['n']}", *stats_texts(stats)])
    if sum(len(row["points"]) for row in rows) < 2:
        return None
    caption = "A ring a run; the mean, and where it lies with 95 % confidence by Student's t over the runs."
    chart = interval_chart("seeds-chart", "bits per byte by seed", rows, [])
    return chart_figure(
        "seeds-figure", "Bits per byte by seed", caption, chart, page_table(("run", "bpb", "sd", "95 % of the mean"), cells)
    )


def stats_texts(stats):
    """Mean, sample deviation and interval as texts; "" for what one run cannot have."""
    spread = "" if stats["std"] is None else f"{stats['std']:.6f}"
    return [f"{stats['mean']:.6f}", spread, span_text(stats["interval"], 6) if stats["interval"] else ""]


def comparison_facts(ones, others, faults):
    """What `compare` says of the scored runs against the others, {"sentence", "table", "notes"}; {"fault"} where it cannot
    be said, as where a run has `faults`; None where nothing was given to compare with."""
    if not others:
        return None
    if faults:
        return {"fault": "; ".join(f"{folder}: {text}" for folder, text in faults.items())}
    try:
        found = compare([one.folder for one in ones], [one.folder for one in others], ())
    except Problem as problem:
        return {"fault": str(problem)}
    size = read_policy().limit("S1")
    rows = [
        [
            f"{size:g} {unit}", f"{margin['bpb']:.6f}",
            "" if margin["p_value"] is None else chance_text(margin["p_value"]).removeprefix("p = "),
            {True: "yes", False: "no", None: "not tested"}[margin["met"]],
        ]
        for unit, margin in found["margins"].items()
    ]  # fmt: skip
    table = page_table(("the contest's margin", "in bpb", "one-sided p of a greater gain", "met"), rows)
    notes = [found["because"], *filter(None, [found["noise"]]), *found["notes"], OTHER_MACHINES]
    return {"fault": None, "found": found, "notes": notes, "table": table, "recipes": apart_table(ones[0], others[0])}


def apart_table(one, other):
    """Where the recipes of two runs differ, as a table; no rows where they do not, or where one cannot be read."""
    try:
        found = differences(other.recipe(), one.recipe())
    except Problem:
        found = {}
    rows = [[path or "the recipe", repr(before), repr(after)] for path, (before, after) in found.items()]
    return page_table(("field", "theirs", "here"), rows)


def stairs_figure(ones, names):
    """bpb by stage, or None."""
    columns, table = bpb_stairs(ones, names)
    if not columns:
        return None
    caption = (
        "From the trained weights to the score: the packed file with the same windows, then the windows of the recipe, then"
        " what adapts while scoring and what is mixed in. A change below zero is better."
    )
    chart = staircase("stages-chart", "bits per byte by stage", columns)
    return chart_figure("stages-figure", "From weights to score", caption, chart, table)


def bytes_figure(ones, names):
    """Bytes by owner of the largest packed run, or None."""
    packed = [(one.total_bytes, name, one) for one, name in zip(ones, names, strict=True) if one.ledger]
    if not packed:
        return None
    total, name, one = max(packed, key=lambda row: row[0])
    parts, table = byte_parts(one)
    cap = one.ledger["cap"]
    caption = (
        f"{name}: {total:,} of {cap:,} bytes ({total / cap:.1%}). Areas are bytes in the files; layers are taken together."
        " Kinds: q, the quantised numbers; scale, theirs; value, what is kept as it is; code, of the program."
    )
    chart = treemap("bytes-chart", "bytes by owner", parts, total)
    return chart_figure("bytes-figure", "Bytes by owner", caption, chart, table)


def seconds_figures(ones, names):
    """Bars of making and of scoring against their limits: [figure], of those that have any seconds."""
    policy, figures = read_policy(), []
    rows, table = making_rows(ones, names)
    if rows:
        caption = (
            "All that reads data to set weights counts. Compilation, quantising and encoding stand outside of the clock:"
            " see the table."
        )
        chart = budget_bars("making-chart", "seconds of training and calibration", rows, policy.limit("T1"))
        figures.append(chart_figure("making-figure", "Training", caption, chart, table))
    rows, table = scoring_rows(ones, names)
    if rows:
        caption = "The pass that is the score. Passes that only show what the last one gains are in the table."
        chart = budget_bars("scoring-chart", "seconds of scoring", rows, policy.limit("T4"))
        figures.append(chart_figure("scoring-figure", "Scoring", caption, chart, table))
    return figures


def losses_figure(ones, names):
    """Training loss by step: {"figure" or None, "faults"}."""
    series, table, faults = loss_curves(ones, names)
    chart = line_chart("loss-chart", "training loss by step", series, "step", "nats a token")
    caption = "Of each batch, in nats a token, by step; the table has means."
    return {
        "figure": chart_figure("loss-figure", "In training", caption, chart, table) if series else None,
        "faults": faults,
    }


def places_figures(ones):
    """Loss by position and by length: {"figures", "fault"}."""
    try:
        found = loss_by_place(ones)
    except Problem as problem:
        return {"figures": [], "fault": str(problem)}
    mean = f", mean of {found['runs']} runs" if found["runs"] > 1 else ""
    wording = (
        ("position", "By position", "Tokens read so far in the document", "position in the document"),
        ("length", "By document length", "Documents by how many tokens they have", "tokens of the document"),
    )
    figures = []
    for key, title, about, what in wording:
        rows = found[key]
        caption = f"{about}{mean}. Bands: 95 %, over documents, where {FEWEST_DOCUMENTS} or more are."
        chart = band_chart(f"{key}-chart", f"loss {title.lower()}", rows, what, "nats a token")
        figures.append(chart_figure(f"{key}-figure", title, caption, chart, bucket_table(rows, what)))
    return {"figures": figures, "fault": None}


def recipe_facts(name, one):
    """A recipe: its ancestors and changes, and the tree of its nodes; "fault" where recipe.py cannot be read."""
    try:
        lineage, tree = lineage_of(one), recipe_tree(one.recipe())
    except Problem as problem:
        return {"name": name, "fault": str(problem)}
    changes = page_table(("field", "from", "to"), [[row["path"], row["from"], row["to"]] for row in lineage["changes"]])
    return {"name": name, "fault": None, "lineage": lineage, "changes": changes, "tree": tree}
