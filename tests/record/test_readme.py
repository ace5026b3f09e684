"""README.md of a record: first lines, tables, commands."""

import shutil

import pytest

from fairway.node import digest, override, parse_node
from fairway.recipes.demo import demo
from fairway.record.log import log_name
from fairway.record.measured import read_measured
from fairway.record.readme import audit_table, markdown_table, readme_text, seconds_table, toolkit_commands
from fairway.record.submission import submission_of
from fairway.referee.readme import read_readme
from record.made_runs import ABOUT, PROGRAM, SETTINGS, change, put, sha256, verdict, write_run, write_seeds


@pytest.fixture
def paths(tmp_path):
    return write_seeds(tmp_path)


def text_of(paths, record=(), exceptions=(), allow=(), **about):
    runs = [read_measured(path) for path in paths]
    told = submission_of(runs, ABOUT | about, record, {log_name(one): "" for one in runs}, exceptions)
    return readme_text(runs, told, exceptions, [], True, allow), told


def commands_of(paths):
    return toolkit_commands([read_measured(path) for path in paths])


def test_the_first_lines_are_those_of_the_field(paths):
    text, told = text_of(paths)
    first, second, *_ = text.splitlines()
    assert first == f"# Submission: Small steps - val_bpb {told['val_bpb']:.4f} (3-seed mean)"
    std = f"{told['val_bpb_std']:.4f}"
    assert second == f"**val_bpb = {told['val_bpb']:.4f}** (3-seed mean, std {std}) | **0.02 MB** | 8x NVIDIA H100 80GB HBM3"
    assert text_of(paths, track="non-record-16mb")[0].startswith("# Non-record: Small steps - ")
    assert text_of(paths, name="two\nlines")[0].startswith("# Submission: two lines - val_bpb ")


def test_the_referee_finds_the_headline_and_a_row_for_each_seed(paths):
    text, told = text_of(paths)
    found = read_readme("README.md", text)
    assert [figure for _, _, figure in found.heads] == 2 * [pytest.approx(told["val_bpb"], abs=5.1e-5)]
    assert found.seeds() == [42, 314, 1234] and len(found.tables) == 1
    at, header, rows = found.tables[0]
    mean = dict(zip(header, rows[3], strict=True))
    assert (at, mean["seed"], mean["Sliding bpb"]) == (0, "**mean**", f"{told['val_bpb']:.6f}")
    assert mean["bytes"] == f"{told['artifact_bytes_mean']:,}"
    assert rows[4][0] == "std" and rows[4][header.index("val_loss")] == f"{told['val_loss_std']:.6f}"
    assert [row[header.index("train time (s)")] for row in rows[:3]] == ["12.5"] * 3


def test_cells_cannot_break_out_of_their_table():
    assert markdown_table([("a|b", "c"), ("<script>\n| x", 3)]) == "| a\\|b | c |\n| --- | --- |\n| &lt;script> \\| x | 3 |"


def test_techniques_and_lineage_stand_with_their_sources(paths):
    text, _ = text_of(paths)
    assert "| SmearGate | model.stream |" in text and "- `pr162`: PR #162" in text
    assert "| train.budget.steps | 240 | 6 |" in text


def test_commands_make_the_same_recipe_by_its_name_and_settings(paths):
    lines, recipe = commands_of(paths)
    start = "torchrun --standalone --nproc_per_node=8 -m fairway"
    settings = "--set train.budget.steps=6 train.budget.seconds=0.0"
    assert lines[0] == f"{start} train demo --data DATA --out seed42 --seed 42 {settings}" and recipe == {}
    assert f"{start} score seed314" in lines and "python -m fairway audit seed314 --policy as-practised" in lines
    assert not any("--raw" in line for line in lines)


def test_a_recipe_that_settings_cannot_make_is_written_out(tmp_path):
    other = write_run(tmp_path / "a", 42, program=b"#coding:l1\n" + PROGRAM)
    change(other / "run.json", put("changes", {"model.values.X": ["None", "X()"]}))
    lines, files = commands_of([other])
    (recipe,) = files.values()
    assert " train recipe.py " in lines[0] and "--set" not in lines[0] and lines[1].endswith("pack seed42 --raw")
    assert digest(parse_node(recipe)) == read_measured(other).run["recipe_hash"] != digest(demo())
    text, _ = text_of([other])
    assert "`recipe.py` is:" in text and recipe in text


def test_a_seed_of_another_program_and_recipe_is_said_to_be_so(paths):
    shutil.rmtree(paths[1])
    write_run(paths[1], 314, program=PROGRAM + b"#", recipe=override(demo(), [*SETTINGS, "train.clip=0.5"]))
    change(paths[1] / "run.json", lambda one: one["changes"].update({"train.clip": ["0.3", "0.5"]}))
    lines, recipe = commands_of(paths)
    assert recipe == {} and [line for line in lines if " train " in line][1].endswith(" train.clip=0.5")
    assert f"\n# seed 314: by another train_gpt.py, {sha256(PROGRAM + b'#')}\n" in text_of(paths)[0]


def test_verdicts_of_seeds_that_differ_name_the_seeds(paths):
    change(paths[1] / "audit.json", verdict("C1", "FAIL"))
    change(paths[2] / "audit.json", lambda one: one["verdicts"][-1].update(verdict="NOT TESTED"))
    rows = {row[0]: row for row in audit_table([read_measured(path) for path in paths])}
    assert rows["C1"][2] == "PASS (42, 1234); FAIL (314)" and rows["C2"][2] == "PASS"
    assert rows["G3"][2] == "PASS (42, 314); PASS in part (1234)"
    assert "C1: a \\| b" in text_of(paths)[0]


def test_what_the_record_is_beaten_by_is_said_with_its_test(paths):
    text, told = text_of(paths, (0.95,))
    gain = 0.95 - told["val_bpb"]
    assert f"the mean here is {gain:.6f} bpb better." in text and "One-sided one-sample t-test" in text
    assert "bpb worse." in text_of(paths, (0.1, 0.11))[0] and "Welch's t-test" in text_of(paths, (0.1, 0.11))[0]
    assert "## Against the record" not in text_of(paths)[0]
    assert "(1 seed) | " in text_of(paths[:1])[0]
    assert "There is no spread between seeds to judge by." in text_of(paths[:1], (0.95,))[0]


def test_exceptions_stand_before_the_results(paths):
    text, _ = text_of(paths, exceptions=("seed42: no audit",), allow=("audit",))
    assert text.index("- seed42: no audit") < text.index("## Results") and "--allow audit" in text


def test_bytes_of_layers_stand_together(paths):
    text, _ = text_of(paths)
    assert f"| blocks.*.mlp.up (q) | {20_042 - 100:,} | {20_314 - 100:,} | {21_234 - 100:,} |" in text
    assert f"| model.bin | {20_042:,} | {20_314:,} | {21_234:,} |" in text


def test_seconds_of_the_artifact_are_training_and_calibration_together(tmp_path):
    runs = [read_measured(write_run(tmp_path / str(seed), seed, train=1.0 * seed, calibrate=1.5)) for seed in (42, 314)]
    rows = {row[0]: row[1:] for row in seconds_table(runs)}
    assert rows["train and calibrate"] == ("43.5", "315.5") and rows["train"] == ("42.0", "314.0")
