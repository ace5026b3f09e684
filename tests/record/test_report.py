"""`fairway report` without a browser: the page's figures against the files, and what it says where something is missing."""

import json
import math
import os
import re
from html.parser import HTMLParser
from itertools import pairwise
from statistics import mean, stdev

import numpy as np
import pytest
from scipy.stats import t as student

from fairway.data.dataset import open_dataset, validation_tokens
from fairway.problem import Problem
from fairway.record.compare import compare
from fairway.record.figures import bucket_rows, bucket_sums, doubling_bucket, loss_by_place, stage_label
from fairway.record.heading import limit_tiles
from fairway.record.measured import measured_runs
from fairway.record.report import write_report
from record.made_runs import write_run
from record.pages import VERDICTS, change, scored_run, trained_run

CONTEST = {"device": "NVIDIA H100 80GB HBM3", "world_size": 8}
EVIL = "<script>alert(1)</script>"
VOID = ("meta", "link", "br")


class Page(HTMLParser):
    """A page read once: its text, tables [[cell]], tags with attributes, and whether every tag is closed in its place."""

    def __init__(self, text):
        super().__init__()
        self.source, self.words, self.tables, self.tags, self.open = text, [], [], [], []
        self.feed(text)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def table(self, *columns):
        """Rows of the table whose head begins so."""
        found = [table for table in self.tables if table[0][: len(columns)] == list(columns)]
        assert len(found) == 1, [table[0] for table in self.tables]
        return found[0][1:]

    def ids(self, key="id"):
        return [attributes[key] for _, attributes in self.tags if key in attributes]


def page_of(folder, runs, against=()):
    result = write_report(runs, against, folder / "report.html")
    page = Page((folder / "report.html").read_text())
    assert result == {"path": str(folder / "report.html"), "bytes": len(page.source.encode()), "runs": result["runs"]}
    return page


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_data):
    """(folder of three whole runs, their page)."""
    folder = tmp_path_factory.mktemp("whole")
    for seed in (1234, 42, 314):
        scored_run(folder / "runs" / f"seed{seed}", seed, tiny_data)
    return folder / "runs", page_of(folder, [folder / "runs"])


def bpb_of(folder):
    return [json.loads((folder / f"seed{seed}" / "score.json").read_text())["bpb"] for seed in (42, 314, 1234)]


def test_the_head_has_mean_deviation_and_interval_of_the_seeds(whole):
    folder, page = whole
    scores = bpb_of(folder)
    half = student.ppf(0.975, 2) * stdev(scores) / math.sqrt(3)
    said = f"Mean of 3 runs (seeds 42, 314, 1234), standard deviation {stdev(scores):.4f}, 95 % of the mean"
    assert f"demo {mean(scores):.4f} bits per byte" in page.text
    assert f"{said} {mean(scores) - half:.4f} to {mean(scores) + half:.4f}." in page.text.replace("\xa0", " ")
    assert "cpu x1; 40 steps; 163,840 tokens; 2,095,513 parameters; torch 2.13.0" in page.text


def test_every_run_has_its_figures_in_a_line(whole):
    folder, page = whole
    rows = page.table("run", "seed", "bpb")
    assert [row[0] for row in rows] == ["seed42", "seed314", "seed1234"]
    assert [row[2] for row in rows] == [f"{bpb:.6f}" for bpb in bpb_of(folder)]
    assert rows[0][3:] == [f"{bpb_of(folder)[0] + 0.01:.6f}", "999", "51.8", "9.8", "40", "163,840", "2,095,513", "cpu x1"]


def test_the_stairs_go_from_the_weights_to_the_score_with_their_changes(whole):
    bpb = bpb_of(whole[0])[0]
    assert whole[1].table("run and stage")[:3] == [
        ["seed42, weights", f"{bpb + 0.01:.6f}", "", ""],
        ["seed42, packed file", f"{bpb + 0.02:.6f}", "+0.010000", ""],
        ["seed42, packed file, sliding windows", f"{bpb:.6f}", "-0.020000", "-0.030000 to -0.010000"],
    ]


def test_bytes_are_by_owner_with_layers_together_and_add_up(whole):
    rows = whole[1].table("owner", "kind", "bytes")
    # Of the largest run: seed 314 has 6 bytes more of each owner, seed 42 none, seed 1234 two.
    assert rows[0] == ["blocks.*.mlp.up", "q", "512", "50.05%"]
    assert ["train_gpt.py", "code", "105", "10.26%"] in rows
    assert sum(int(row[2]) for row in rows[:-1]) == int(rows[-1][2].replace(",", "")) == 1023


def test_seconds_say_what_is_counted_and_leave_the_scores_own_out_of_the_making(whole):
    assert [row for row in whole[1].table("run and phase") if row[0].startswith("seed42")] == [
        ["seed42, train", "41.25", "yes"], ["seed42, validate", "4.50", "no"], ["seed42, calibrate", "10.50", "yes"],
        ["seed42, quantise", "0.50", "no"], ["seed42, encode", "1.50", "no"],
    ]  # fmt: skip
    assert whole[1].table("run and pass")[:2] == [
        ["seed42, packed file", "6.50", "", "8,901", "no"],
        ["seed42, packed file, sliding windows", "9.75", "", "8,901", "yes"],
    ]


def test_verdicts_stand_by_rule_and_with_their_evidence_the_worst_first(whole):
    text = whole[1].text
    tables = [table for table in whole[1].tables if table[0][0] == "rule"]
    assert tables[0][1:] == [["T1 time holds", *["FAIL"] * 3], ["C1 causality holds", *["NOT TESTED"] * 3]]
    assert tables[1][1:] == [["A1 size holds", *["PASS"] * 3]]
    for at, (rule, _, _) in enumerate(VERDICTS):
        assert text.count(f"evidence {at} of {rule}") == 3
    order = [text.index(f"evidence {at} of") for at in (3, 2, 0, 1)]
    assert order == sorted(order)
    assert "3 FAIL 6 PASS, 3 NOT TESTED in 3 runs" in text
    assert "measured bytes 1,237 expected 16,000,000" in text


def test_loss_by_position_is_the_mean_over_runs_of_what_was_kept(whole, tiny_data):
    nats_N = np.mean([np.load(whole[0] / f"seed{seed}" / "nats.npy").astype(float) for seed in (42, 314, 1234)], axis=0)
    tokens, found, document, place = validation_tokens(open_dataset(tiny_data)), {}, -1, 0
    for token, nats in zip(tokens[:-1], nats_N, strict=True):
        document, place = (document + 1, 1) if token == 1 else (document, place + 1)
        found.setdefault(place.bit_length() - 1, {}).setdefault(document, []).append(nats)
    rows = whole[1].table("position in the document")
    assert len(rows) == len(found) > 4
    for bucket, row in enumerate(rows):
        values = [nats for one in found[bucket].values() for nats in one]
        assert (row[1], row[3], row[4]) == (f"{mean(values):.4f}", f"{len(values):,}", f"{len(found[bucket]):,}")


def test_buckets_of_length_hold_whole_documents(whole):
    found = loss_by_place(measured_runs([whole[0]]))
    assert found["runs"] == 3
    assert sum(row["count"] for row in found["length"]) == sum(row["count"] for row in found["position"])
    assert sum(row["documents"] for row in found["length"]) == found["position"][0]["documents"]


def test_a_band_needs_five_documents():
    length_D = np.array([3, 3, 3, 3, 3, 8])
    document_N = np.repeat(np.arange(6), length_D)
    position, length = bucket_sums(np.arange(23.0), document_N, np.cumsum(length_D) - length_D, length_D)
    rows = bucket_rows(*position)
    assert [(row["label"], row["count"], row["documents"], row["low"] is None) for row in rows] == [
        ("1", 6, 6, False), ("2–3", 12, 6, False), ("4–7", 4, 1, True), ("8–15", 1, 1, True),
    ]  # fmt: skip
    firsts = [0, 3, 6, 9, 12, 15]
    half = student.ppf(0.975, 5) * stdev(firsts) / math.sqrt(6)
    assert [rows[0][key] for key in ("value", "low", "high")] == pytest.approx([7.5, 7.5 - half, 7.5 + half])
    by_length = bucket_rows(*length)
    assert [(row["label"], row["value"], row["low"] is None) for row in by_length] == [
        ("2–3", 7.0, False),
        ("8–15", 18.5, True),
    ]
    assert by_length[0]["low"] < 7.0 < by_length[0]["high"]


def test_doubling_buckets_begin_at_powers_of_two():
    assert doubling_bucket([1, 2, 3, 4, 7, 8, 2**31 - 1, 2**31]).tolist() == [0, 1, 1, 2, 2, 3, 30, 31]


def test_the_page_is_sound(whole):
    page = whole[1]
    assert not page.open
    assert len(set(page.ids())) == len(page.ids()) > 20
    assert {link[1:] for link in page.ids("href") if link.startswith("#")} <= set(page.ids())
    assert {name for text in page.ids("aria-labelledby") for name in text.split()} <= set(page.ids())
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b <= a + 1 for a, b in pairwise(levels))
    counts = {name: sum(tag == name for tag, _ in page.tags) for name in ("figure", "figcaption", "main", "nav", "header")}
    assert counts == {"figure": 8, "figcaption": 8, "main": 1, "nav": 1, "header": 1}
    assert dict(page.tags)["html"] == {"lang": "en"}


def test_the_page_needs_no_script_and_no_network(whole):
    page = whole[1]
    assert not {"script", "iframe", "img", "object"} & {tag for tag, _ in page.tags}
    assert {link.partition(":")[0] for link in page.ids("href") if not link.startswith("#")} == {"data"}
    assert not re.search(r"@import|url\((?!#)|https?://(?!www\.w3\.org)|\bon\w+=", page.source)


def test_a_page_is_the_same_again(whole, tmp_path):
    assert page_of(tmp_path, [whole[0]]).source == whole[1].source


def test_hashes_and_commands_stand_once_where_runs_share_them(whole):
    rows = {row[0]: row[1:] for row in whole[1].table("of", "runs", "hash")}
    assert rows["model.bin"] == ["all", "b" * 64] and rows["code"] == ["all", "5" * 16]
    assert "fairway train seed314/recipe.py --data data --out again --seed 314" in whole[1].text


def test_a_run_that_was_only_trained_says_what_is_missing(tmp_path):
    page = page_of(tmp_path, [trained_run(tmp_path / "a", 1)])
    for text in (
        "demo no score", "no run has a score of its own yet", "Audit not audited", "Bytes not measured", "Training 41.2 s",
        "Not audited: a;", "No run is packed", "No spread to show", "no run has kept its nats",
    ):  # fmt: skip
        assert text in page.text
    assert page.table("run and stage") == [["a, weights", "2.500000", "", ""]]
    assert page.table("steps")[0] == ["1 to 2", f"{mean([7 - 3 / 40, 7 - 6 / 40]):.4f}"]


def test_a_run_that_has_just_begun_and_an_old_one_are_readable(tmp_path):
    new, old = trained_run(tmp_path / "new", 1), scored_run(tmp_path / "old", 2)
    (new / "metrics.jsonl").write_text('{"step": 1, "loss": 6.5, "seconds": 1.0}\n{"step": 2, "lo')
    change(new / "run.json", phases=None, bpb=None, steps=None, tokens=None, averages=None, qat=None, sha256=None)
    change(old / "run.json", parent=None, changes=None, versions=None, began=None, parameters=None, source_hash=None)
    page = page_of(tmp_path, [new, old])
    assert "metrics.jsonl, line 2 is no step" in page.text
    assert "One run, seed 2: one seed says nothing of its spread. 1 of 2 runs not scored." in page.text
    assert "As demo is, unchanged." in page.text
    assert page.table("run", "seed", "bpb")[0][:3] == ["new", "1", ""]


def test_a_score_with_a_changed_digit_is_no_headline(tmp_path):
    run = scored_run(tmp_path / "a", 1, bpb=2.0)
    change(run / "score.json", bpb=1.9)
    page = page_of(tmp_path, [run])
    assert "demo no score" in page.text and "score.json says 1.9 bpb, its nats and bytes" in page.text


def test_names_from_files_are_text(tmp_path):
    run = scored_run(tmp_path / "x<b>&y", 1, audit=[("A1", EVIL, "PASS"), (EVIL, "b", "FAIL")], began=EVIL, device=EVIL)
    change(run / "run.json", recipe=EVIL, averages=[EVIL], parent=EVIL, changes={EVIL: [EVIL, EVIL]})
    page = page_of(tmp_path, [run])
    assert "script" not in {tag for tag, _ in page.tags} and "<script" not in page.source
    assert page.text.count(EVIL) > 8 and "x<b>&y" in page.text


def test_runs_of_two_recipes_have_no_mean_together(tmp_path):
    scored_run(tmp_path / "a" / "one", 1, bpb=2.0)
    scored_run(tmp_path / "a" / "two", 2, bpb=2.2)
    changes = {"optim.Muon.rate": ["0.02", "0.03"]}
    scored_run(tmp_path / "b" / "one", 1, bpb=1.5, settings=["optim.Muon.rate=0.03"], changes=changes)
    page = page_of(tmp_path, [tmp_path / "a", tmp_path / "b"])
    groups = re.findall(r"demo (\w{6}) (\d\.\d{4}) bits per byte", page.text)
    assert [figure for _, figure in groups] == ["2.1000", "1.5000"]
    assert [row[0] for row in page.table("run", "seed", "bpb")] == ["a/one", "two", "b/one"]
    assert "demo with optim.Muon.rate 0.02 → 0.03." in page.text


def test_a_comparison_is_quoted_with_its_margins_and_what_differs(tmp_path):
    for seed, bpb in ((1, 2.00), (2, 2.01), (3, 2.03)):
        scored_run(tmp_path / "own" / f"seed{seed}", seed, bpb=bpb)
        changed = {"settings": ["optim.Muon.rate=0.03"], "changes": {"optim.Muon.rate": ["0.02", "0.03"]}}
        scored_run(tmp_path / "other" / f"seed{seed}", seed, bpb=bpb + 0.1 + seed / 1000, **changed)
    page = page_of(tmp_path, [tmp_path / "own"], [tmp_path / "other"])
    found = compare([tmp_path / "own"], [tmp_path / "other"], ())
    assert found["sentence"] in page.text and found["test"] == "paired t"
    assert f"Difference {found['delta']['bpb']:+.4f} bpb from other: 95 %" in page.text
    assert "paired t; better" in page.text
    # One recipe name on both sides: the sides are called as the sentence calls them.
    assert "own (demo) " in page.text and [row[0] for row in page.table("run", "bpb", "sd")][4:5] == ["other (demo), seed 1"]
    margins = page.table("the contest's margin")
    assert [row[0] for row in margins] == ["0.005 nats a token", "0.005 nats a byte", "0.005 bpb"]
    assert [row[1] for row in margins] == [f"{one['bpb']:.6f}" for one in found["margins"].values()]
    assert [row[3] for row in margins] == ["yes"] * 3
    assert page.table("field", "theirs", "here") == [["optim.Muon.rate", "0.03", "0.02"]]
    assert [row[0] for row in page.table("run", "seed", "bpb")] == ["seed1", "seed2", "seed3"]


def test_a_comparison_that_cannot_be_made_says_why(tmp_path):
    page = page_of(tmp_path, [scored_run(tmp_path / "a", 1)], [trained_run(tmp_path / "b", 1)])
    assert "No comparison: " in page.text and "b has no score of its packed file" in page.text


@pytest.mark.parametrize(
    "what, state",
    [("fine", "pass"), ("light", "untested"), ("elsewhere", "untested"), ("failed", "fail"), ("heavy", "fail")],
)
def test_a_limit_is_broken_where_it_holds_and_not_tested_elsewhere(tmp_path, what, state):
    run = scored_run(tmp_path / "a", 1, audit=[("T1", "time", "FAIL" if what == "failed" else "PASS")])
    if what != "light":
        change(run / "run.json", **CONTEST)
    if what in ("elsewhere", "failed"):
        change(run / "run.json", phases={"train": 590.0, "calibrate": 10.3})
    if what == "heavy":
        change(run / "ledger.json", total=16_000_001)
    name = "Bytes" if what == "heavy" else "Training"
    found = re.findall(r'<li class="tile (\w+)"><span class="name">(\w+)</span>', page_of(tmp_path, [run]).source)
    assert (state, name) in found


def test_a_score_that_is_no_probability_is_no_score(tmp_path):
    run = scored_run(tmp_path / "a", 1)
    change(run / "score.json", normalised=False)
    change(run / "run.json", bpb={"weights": 2.0})
    assert "a was scored by a rule that is no probability" in page_of(tmp_path, [run]).text


def test_data_that_are_gone_or_others_are_named(tmp_path, tiny_data):
    gone = scored_run(tmp_path / "a", 1)
    assert "is no data folder" in page_of(tmp_path, [gone]).text
    change(gone / "run.json", data=str(tiny_data))
    assert "is not the data any more that the runs were scored on" in page_of(tmp_path, [gone]).text


def test_eight_runs_of_twenty_thousand_steps_stay_under_two_megabytes(tmp_path):
    audit = [(f"R{at}", f"condition {at} " * 8, "PASS") for at in range(60)]
    for seed in range(8):
        scored_run(tmp_path / "runs" / f"seed{seed}", seed, steps=20_000 if seed < 2 else 200, audit=audit)
    lines = (tmp_path / "runs" / "seed0" / "metrics.jsonl").read_bytes()
    for seed in range(2, 8):
        (tmp_path / "runs" / f"seed{seed}" / "metrics.jsonl").write_bytes(lines)
    page = page_of(tmp_path, [tmp_path / "runs"])
    assert len(page.source.encode()) < 2_000_000
    assert page.table("steps")[-1][0] == "19,001 to 20,000"


def test_what_cannot_be_read_or_written_is_one_line(tmp_path):
    with pytest.raises(Problem, match="is no folder"):
        write_report([tmp_path / "none"], (), tmp_path / "r.html")
    with pytest.raises(Problem, match="cannot write"):
        write_report([trained_run(tmp_path / "a", 1)], (), tmp_path)


def test_the_command_says_where_the_page_is(tmp_path, fairway_here):
    code, out, _ = fairway_here("report", trained_run(tmp_path / "a", 1), "--out", tmp_path / "r.html")
    assert (code, out) == (0, f"{tmp_path / 'r.html'}: 1 run, {(tmp_path / 'r.html').stat().st_size:,} bytes\n")


def colours(style, block):
    """{name: colour} of a block of custom properties."""
    return dict(re.findall(r"--(\w+): (#\w+)", re.search(block, style, re.S).group()))


def contrast(one, other):
    """WCAG 2's ratio of the luminances of two colours."""

    def luminance(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted([luminance(one), luminance(other)], reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("block", [r"^:root \{.*?\}", r"prefers-color-scheme: dark\).*?\}", r"@media print.*?\}"])
def test_text_has_a_contrast_of_four_and_a_half_in_every_scheme(whole, block):
    style = re.search("<style>\n(.*?)</style>", whole[1].source, re.S).group(1)
    named = colours(style, block)
    assert contrast("#fff", "#000") == pytest.approx(21)
    for name in ("ink", "muted", "link", "pass", "fail", "untested", *(f"s{at}" for at in range(8))):
        assert contrast(named[name], named["paper"]) >= 4.5, name
    assert contrast(named["ink"], named["panel"]) >= 4.5


def test_scores_that_disagree_with_themselves_are_not_called_too_few(tmp_path):
    runs = [scored_run(tmp_path / f"seed{seed}", seed) for seed in (1, 2)]
    change(runs[0] / "score.json", bpb=1.0)
    page = page_of(tmp_path, runs)
    assert "No spread to show: " in page.text and "fewer than two runs are scored" not in page.text


def test_what_is_over_a_limit_says_so_in_words(tmp_path):
    run = scored_run(tmp_path / "a", 1)
    change(run / "ledger.json", total=16_000_001)
    change(run / "run.json", phases={"train": 600.0, "calibrate": 10.3})
    text = page_of(tmp_path, [run]).text
    assert "code and model (a); 1 over" in text and "with calibration (a); 10.3 s over" in text


def test_a_page_replaces_a_page_and_nothing_else(tmp_path):
    run = scored_run(tmp_path / "a", 1)
    before = (run / "score.json").read_bytes()
    with pytest.raises(Problem, match="is no HTML page; name another file"):
        write_report([run], (), run / "score.json")
    assert (run / "score.json").read_bytes() == before
    assert write_report([run], (), tmp_path / "page.html") == write_report([run], (), tmp_path / "page.html")


@pytest.mark.parametrize("step", ['"x"', "null", "[]"])
def test_a_line_of_metrics_without_a_step_is_told(tmp_path, step):
    run = trained_run(tmp_path / "a", 1)
    lines = ['{"step": 1, "loss": 6.5, "seconds": 1}', f'{{"step": {step}, "loss": 5, "seconds": 1}}']
    (run / "metrics.jsonl").write_text("\n".join(lines))
    assert "metrics.jsonl, line 2 is no step" in page_of(tmp_path, [run]).text


def test_a_limit_is_told_of_the_run_that_comes_nearest_to_it(tmp_path):
    for name, train, size, device in (("a", 300.0, 5, {}), ("b", 500.0, 9, CONTEST), ("c", 400.0, 7, CONTEST)):
        run = scored_run(tmp_path / name, size, audit=None, **device)
        change(run / "run.json", phases={"train": train})
    runs = measured_runs([tmp_path])
    weight, training, scoring = limit_tiles(runs, ["a", "b", "c"])
    assert (weight["value"], training["value"], training["state"]) == (
        f"{max(one.total_bytes for one in runs):,}",
        "500.0 s",
        "untested",
    )
    assert "most of 3 runs, b); the limit is for 8 H100" in training["about"] and scoring["state"] == "untested"
    assert [one["state"] for one in limit_tiles(runs[1:], ["b", "c"])] == ["pass", "pass", "pass"]


def test_a_run_that_does_not_agree_with_itself_is_said_and_in_no_tile(tmp_path):
    runs = [write_run(tmp_path / f"seed{seed}", seed, train=float(seed)) for seed in (42, 314)]
    with (runs[1] / "model.bin").open("ab") as file:
        file.write(b"x")
    page = page_of(tmp_path, [tmp_path])
    said = "seed314 does not agree with itself: model.bin is not the file that was packed. No tile above counts it."
    assert said in page.text and "seed42 does not" not in page.text
    assert (
        "Training 43.2 s" in page.text
        and "0 FAIL 13 PASS, 0 NOT TESTED in 1 run" in page.text
        and "demo no score" in page.text
    )
    scored = scored_run(tmp_path / "other", 1)
    change(scored / "score.json", bpb=1.0)
    page = page_of(tmp_path, runs[:1], [scored])
    assert "other does not agree with itself: score.json says 1.0" in page.text and "No comparison: " in page.text
    assert "Difference" not in page.text


def test_stages_are_called_by_words_and_machines_are_added(tmp_path):
    words = ["weights", "packed file", "packed file, sliding windows", "packed file, Other"]
    assert [stage_label(name) for name in ("weights", "NonOverlapping", "Sliding", "Other")] == words
    for seed in (1, 2):
        scored_run(tmp_path / f"seed{seed}", seed, device=f"cpu x{seed}")
    text = page_of(tmp_path, [tmp_path]).text
    assert "cpu x1 and cpu x2" in text and "sliding windows" in text and "Sliding" not in text.partition("Recipe")[0]


def test_a_folder_whose_name_is_no_utf_8_has_a_page(tmp_path):
    run = trained_run(tmp_path / os.fsdecode(b"a\xff\n"), 1)
    assert "a?" in page_of(tmp_path, [run]).text
