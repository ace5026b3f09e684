"""Claims are held to what logs print, to the digit; broken JSON is named and never an error."""

import json
import re

import pytest
from scipy.stats import ttest_1samp

from fairway.referee.agree import agrees, matches
from fairway.referee.claims import judge_claims, read_claims
from fairway.referee.folder import read_folder
from fairway.referee.logs import Printed, read_log
from fairway.referee.rules import read_policy
from fairway.referee.seeds import judge_seeds
from fairway.referee.verdict import Findings
from referee.stated_folder import write_stated

FIGURES = {1: ("2.80010000", "1.08012345"), 2: ("2.80110000", "1.08050000"), 3: ("2.80220000", "1.08111111")}
CORE = {"name": "n", "author": "a", "github_id": "g", "date": "d"}


def judged(path, claims=None, readme=None, logs=True):
    for seed, (nats, bpb) in FIGURES.items() if logs else ():
        lines = [
            f"seed:{seed}", f"step:{900 + seed}/1000 val_loss:2.9 val_bpb:1.1200 train_time:590000ms step_avg:590.00ms",
            f"pre-quantization val_loss:2.7 val_bpb:1.0{seed}00", "Code size: 1000 bytes",
            f"Serialized model int6+zstd: {15_000_000 + seed} bytes",
            f"Total submission size int6+zstd: {15_001_000 + seed} bytes",
            f"sliding_exact val_loss:2.85 val_bpb:1.09{seed}00000 eval_time:90000ms",
            f"ttt_exact val_loss:{nats} val_bpb:{bpb} eval_time:{300 + seed}000ms",
        ]  # fmt: skip
        (path / f"train_seed{seed}.log").write_text("\n".join(lines) + "\n")
    if claims is not None:
        (path / "submission.json").write_text(claims if isinstance(claims, str) else json.dumps(claims))
    if readme is not None:
        (path / "README.md").write_text(readme)
    folder = read_folder(path)
    findings = Findings(read_policy())
    judge_claims(findings, folder, [read_log(folder, name) for name in folder.logs()], read_claims(folder))
    return findings


def verdicts(findings, rule):
    return [row["verdict"] for row in findings.rows if row["rule"] == rule]


def failed(findings):
    return {row["rule"] for row in findings.rows if row["verdict"] == "FAIL"}


@pytest.mark.parametrize("bpb", ["1.08057819", "1.0806", "1.0805", "1.08", "1.08012345", "1.0811"])
def test_the_mean_or_a_seed_agrees_however_it_is_rounded(tmp_path, bpb):
    findings = judged(tmp_path, json.dumps(CORE)[:-1] + f', "val_bpb": {bpb}}}')
    assert not failed(findings) and verdicts(findings, "S8") == ["PASS"]


@pytest.mark.parametrize("bpb", [1.0813, 1.0789, 1.05, 1.0815, 0.9])
def test_a_headline_that_no_log_shows_fails(tmp_path, bpb):
    assert failed(judged(tmp_path, CORE | {"val_bpb": bpb})) == {"G3", "S8"}


def test_claims_under_another_name_are_held_to_the_logs(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(CORE | {"val_bpb": 0.9}))
    assert failed(judged(tmp_path)) == {"G3", "S8"}


def test_a_headline_of_the_unquantised_model_fails(tmp_path):
    findings = judged(tmp_path, CORE | {"val_bpb": 1.02})
    assert failed(findings) == {"G3", "S8"}
    assert any("pre-quantization, which is no score" in row["evidence"] for row in findings.rows)


def test_a_headline_of_another_stage_is_named(tmp_path):
    findings = judged(tmp_path, CORE | {"val_bpb": 1.092})
    assert not failed(findings)
    assert any("of the stage sliding_exact" in row["evidence"] for row in findings.rows if row["rule"] == "S8")


def test_the_mean_of_some_seeds_is_for_people(tmp_path):
    findings = judged(tmp_path, CORE | {"val_bpb": 1.08031173})
    assert not failed(findings) and verdicts(findings, "S8") == ["NOT TESTED"]


def test_a_mean_over_a_seed_without_a_log_is_not_proved_wrong(tmp_path):
    more = {"val_bpb": 1.07, "val_bpb_std": 0.1, "val_loss": 2.0, "bytes_total": 5, "seeds": [1, 2, 3, 4]}
    readme = "# val_bpb 1.0700\n\n| Seed | bpb |\n|---|---|\n| 1 | 1.0801 |\n| 4 | 1.0200 |\n| mean | 1.0501 |\n"
    assert not failed(judged(tmp_path, CORE | more, readme))
    assert failed(judged(tmp_path, CORE | more | {"seeds": [1, 2, 3]}, "# nothing")) == {"G3", "S8"}


def test_a_figure_rounded_in_one_line_is_held_to_the_line_with_its_digits(tmp_path):
    (tmp_path / "train_seed9.log").write_text(
        "final val_loss:2.8001 val_bpb:1.0702\nfinal_exact val_loss:2.80010000 val_bpb:1.07018000\n"
    )
    findings = judged(tmp_path, CORE | {"val_bpb": 1.070212}, logs=False)
    assert failed(findings) == {"G3", "S8"}


def test_seeds_that_are_named_are_those_that_count(tmp_path):
    findings = judged(tmp_path, CORE | {"val_bpb": 1.08031173, "seeds": [1, 2]})
    assert not failed(findings) and verdicts(findings, "S8") == ["PASS"]


@pytest.mark.parametrize(
    ("more", "fails"),
    [
        ({"val_loss": 2.80113333}, False), ({"val_loss": 2.85}, False), ({"val_loss": 2.79}, True),
        ({"val_bpb_std": 0.0005}, False), ({"val_bpb_std": 0.00041}, False), ({"val_bpb_std": 0.0002}, True),
        ({"bytes_total": 15_001_002}, False), ({"bytes_total": 15_001_003}, False), ({"bytes_total": 15_000_900}, True),
        ({"bytes_code": 1000}, False), ({"bytes_code": 1001}, True),
        ({"steps": 902}, False), ({"steps": 950}, True),
        ({"seed_results": {"2": {"val_bpb": 1.0805, "artifact_bytes": 15_001_002, "steps": 902}}}, False),
        ({"seed_results": {"2": {"val_bpb": 1.0801}}}, True),
        ({"seeds": {"seed_3": {"val_loss": 2.8022}, "1": {}, "2": {}}}, False),
        ({"seeds": [{"seed": 3, "val_loss": 2.8}, {"seed": 1, "val_loss": 2.8}, {"seed": 2, "val_bpb": 1.0801}]}, True),
        ({"artifact_bytes_mean": 15_001_002, "artifact_bytes_max": 15_001_003}, False),
        ({"artifact_bytes_max": 15_001_002}, True), ({"artifact_bytes_mean": 15_001_001}, True),
        ({"sliding_val_bpb": 1.092}, False), ({"sliding_val_bpb": 1.0931}, True), ({"pre_quant_val_bpb": 1.01}, False),
        ({"pre_quant_val_bpb": 1.017}, True), ({"distilled_val_bpb": 1.5, "sliding_gain_bpb": 0.5}, False),
        ({"wallclock_seconds": 590.0, "eval_time_seconds": 303.0}, False), ({"wallclock_seconds": 583.0}, False),
        ({"three_seeds": True, "compliance": {"train_under_600s": True, "artifact_under_16mb": True}}, False),
        ({"hardware": None, "compliance": "yes", "seeds": None, "track": 5}, False),
    ],
)  # fmt: skip
def test_what_else_submission_json_says_is_held_to_the_logs(tmp_path, more, fails):
    assert failed(judged(tmp_path, CORE | {"val_bpb": 1.0806} | more)) == ({"G3"} if fails else set())


def test_declarations_are_held_to_measures(tmp_path):
    claims = CORE | {"val_bpb": 1.0803, "seeds": [1, 2], "compliance": {"three_seeds": True}}
    findings = judged(tmp_path, claims)
    assert failed(findings) == {"G3"}


@pytest.mark.parametrize(
    "text",
    [
        "", "[1]", "{", '{"val_bpb": NaN, "name": "n", "github_id": "g"}',
        '{"val_bpb": true, "name": "n", "github_id": "g"}',
        '{"val_bpb": "1.08", "name": "n", "github_id": "g"}',
        '{"val_bpb": 1' + "0" * 5000 + ', "name": "n", "github_id": "g"}',
        '{"val_bpb": 1.08, "val_bpb": 1.07, "name": "n", "github_id": "g"}', "[" * 100_000, '{"a": ' * 50_000,
        '{"val_bpb": 1.0806, "name": "n"}', '{"val_bpb": 1.0806, "github_id": "g", "name": ["x"]}', "\x00\ufffd",
        '{"val_bpb": 1e999, "name": "n", "github_id": "g"}', '{"val_bpb": -1, "name": "n", "github_id": "g"}',
    ],
)  # fmt: skip
def test_broken_json_fails_and_is_named(tmp_path, text):
    assert "G2" in failed(judged(tmp_path, text, logs=False))


def test_core_keys_are_enough_and_other_spellings_are_known(tmp_path):
    findings = judged(tmp_path, {"name": "n", "github": "g", "val_bpb": 1.0806}, logs=False)
    assert verdicts(findings, "G2") == ["PASS", "NOT TESTED"]


TABLE = """# Record: a thing - val_bpb {mean} (3-seed mean)

| Seed | Steps | Sliding BPB | **TTT BPB** | vs SOTA | Artifact | Eval |
|:--|---|---|---|---|--:|---|
| 1 | 901 | 1.0910 | **1.0801** | -0.0009 | 15,001,001 | 391s |
| 2 | 902 | {sliding} | **{ttt}** | -0.0005 | {size} | 392s |
| 3 | 903 | — | **1.0811** | +0.0001 | ~15.0 MB | 393s |
| **Mean** | 902 | | **{average}** | | | |
"""
RIGHT = {"mean": "1.0806", "sliding": "1.0920", "ttt": "1.0805", "average": "1.0806", "size": "15,001,002"}


def test_a_readme_that_agrees_passes(tmp_path):
    findings = judged(tmp_path, readme=TABLE.format(**RIGHT))
    assert set(verdicts(findings, "G4")) == {"PASS"} and len(verdicts(findings, "G4")) >= 5


@pytest.mark.parametrize(
    "wrong", [{"mean": "1.0790"}, {"sliding": "1.0899"}, {"ttt": "1.0802"}, {"average": "1.0799"}, {"size": "15,001,777"}]
)
def test_a_readme_figure_that_no_log_shows_fails(tmp_path, wrong):
    assert failed(judged(tmp_path, readme=TABLE.format(**RIGHT | wrong))) == {"G4"}


def test_seeds_may_be_columns(tmp_path):
    text = "| metric | Seed 1 | Seed 2 | Seed 3 |\n|---|---|---|---|\n"
    text += "| TTT bpb | 1.0801 | {} | 1.0811 |\n| Notes | a | b | c |\n"
    assert verdicts(judged(tmp_path, readme=text.format("1.0805")), "G4") == ["PASS"]
    assert verdicts(judged(tmp_path, readme=text.format("1.0795")), "G4") == ["FAIL"]


def test_figures_of_other_runs_are_not_held_against_these_logs(tmp_path):
    text = "# Mine\n\nBeats the record (val_bpb 1.0900)\n\n| Seed | Baseline bpb | Reheated bpb |\n|---|---|---|\n"
    text += "| 1 | 1.2001 | 1.3001 |\n| 2 | 1.2002 | 1.3002 |\n\n| Step | x |\n|---|---|\n| 1 | 2 |\n"
    findings = judged(tmp_path, readme=text)
    assert not failed(findings) and verdicts(findings, "G4") == ["NOT TESTED"]


def test_strange_tables_do_no_harm(tmp_path):
    text = "|\n||\n| Seed |\n|---|\n| 1 |\n\n| Seed | a |\n" + "| 1 " * 5000 + "\n" + "|" * 10_000 + "\n| Seed | bpb\n| 2\n"
    assert not failed(judged(tmp_path, readme=text))


def test_agreement_is_less_than_a_unit_of_the_last_digit():
    assert agrees(Printed("1.0811"), 1.08105) and agrees(Printed("1.0810"), 1.08105)
    assert not agrees(Printed("1.0812"), 1.08105) and not agrees(Printed("1.0811"), Printed("1.0810"))
    assert agrees(Printed("1.08101234"), Printed("1.081"))
    assert matches(Printed("2.5"), [2, 3]) == "mean" and matches(Printed("3"), [1, 3]) == "a seed"


def seconds_of_seeds(**changed):
    """seed_results with seconds that are the logs', but for those of one seed."""
    rows = {str(seed): {"train_seconds": 590.0, "eval_seconds": 300 + seed} for seed in FIGURES}
    rows["2"] |= changed
    return rows


@pytest.mark.parametrize(
    ("head", "changed", "fails"),
    [
        ({}, {}, False), ({}, {"train_seconds": 580.0}, True), ({}, {"eval_seconds": 303}, True),
        ({"wallclock_seconds": 590.0, "eval_time_seconds": 302.0}, {}, False),
        ({"wallclock_seconds": 580.0}, {}, True), ({"eval_time_seconds": 304}, {}, True),
    ],
)  # fmt: skip
def test_seconds_are_held_to_logs_whose_clock_the_seeds_have(tmp_path, head, changed, fails):
    findings = judged(tmp_path, CORE | {"val_bpb": 1.0806, "seed_results": seconds_of_seeds(**changed)} | head)
    assert failed(findings) == ({"G3"} if fails else set())


def test_seconds_by_another_clock_are_not_held_to_the_logs(tmp_path):
    rows = {str(seed): {"train_seconds": 612.5 + seed, "eval_seconds": 300 + seed} for seed in FIGURES}
    assert not failed(judged(tmp_path, CORE | {"val_bpb": 1.0806, "seed_results": rows, "wallclock_seconds": 612}))


def test_chance_is_recomputed_from_the_logs(tmp_path):
    test = ttest_1samp([float(bpb) for _, bpb in FIGURES.values()], 1.0850, alternative="less")
    beyond = ttest_1samp([float(bpb) + 0.005 for _, bpb in FIGURES.values()], 1.0850, alternative="less")
    right = {"val_bpb": 1.0806, "record_val_bpb": 1.085, "t_statistic": float(test.statistic), "p_value": test.pvalue}
    right |= {"margin": {"bpb": {"bpb": 0.005, "p_value": float(beyond.pvalue)}, "strange": 5}}
    findings = judged(tmp_path, CORE | right)
    assert not failed(findings) and sum("against [1.085]" in row["evidence"] for row in findings.rows) == 4
    wrong = ({"t_statistic": 8.1}, {"p_value": test.pvalue + 1e-5}, {"record_val_bpb": 1.0851})
    wrong += ({"margin": {"bpb": {"bpb": 0.006}}}, {"margin": {"bpb": {"bpb": 0.005, "p_value": 0.05}}})
    for change in wrong:
        assert failed(judged(tmp_path, CORE | right | change)) == {"G3"}, change


SECOND = "# Record: a thing\n\n**val_bpb = {bpb}** ({count}-seed mean, std {std}) | **{size} MB** | 8xH100\n"
SECOND_RIGHT = {"bpb": "1.0806", "count": 3, "std": "0.0005", "size": "15.00"}


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ({}, False), ({"std": "0.0004"}, False), ({"size": "~17.00"}, False), ({"size": "≤15.9"}, False),
        ({"bpb": "1.0816"}, True), ({"count": 4}, True), ({"std": "0.0015"}, True), ({"size": "15.10"}, True),
    ],
)  # fmt: skip
def test_the_line_below_the_title_is_held_to_the_logs(tmp_path, change, fails):
    claims = CORE | {"val_bpb": 1.0806, "seeds": [1, 2, 3]}
    assert failed(judged(tmp_path, claims, SECOND.format(**SECOND_RIGHT | change))) == ({"G4"} if fails else set())


def test_the_second_of_two_headlines_is_held_to_the_logs_too(tmp_path):
    text = "# Record: a thing - val_bpb 1.0806 (3-seed mean)\n\n" + SECOND.format(**SECOND_RIGHT).partition("\n\n")[2]
    assert not failed(judged(tmp_path, readme=text))
    assert failed(judged(tmp_path, readme=text.replace("= 1.0806", "= 1.0706"))) == {"G4"}


@pytest.mark.parametrize(
    ("old", "new"),
    [("| 590 |", "| 590 |"), ("302s", "312s"), ("| 590 |", "| 591 |"), ("0.0005 |", "0.0025 |"), ("| 2 |", "| 4 |")],
)
def test_seconds_deviations_and_seeds_of_a_table_are_held_to_the_logs(tmp_path, old, new):
    text = "| Seed | TTT bpb | Train (s) | Eval time |\n|---|---|---|---|\n| 1 | 1.0801 | 590 | 301s |\n"
    text += (
        "| 2 | 1.0805 | 590 | 302s |\n| 3 | 1.0811 | 590 | 303s |\n| mean | 1.0806 | 590 | 302s |\n| std | 0.0005 | | |\n"
    )
    findings = judged(tmp_path, CORE | {"val_bpb": 1.0806, "seeds": [1, 2, 3]}, text.replace(old, new, 1))
    assert failed(findings) == (set() if old == new else {"G4"})


def test_a_table_with_seeds_of_other_runs_is_nobodys_fault(tmp_path):
    text = "| Seed | TTT bpb | Train time (s) |\n|---|---|---|\n| 1 | 1.0801 | 700 |\n| 2 | 1.0805 | 701 |\n"
    text += "| 8 | 1.2 | 1 |\n| 9 | 1.2 | 1 |\n"
    assert not failed(judged(tmp_path, CORE | {"val_bpb": 1.0806, "seeds": [1, 2, 3]}, text))


@pytest.mark.parametrize("name", ["submission.json", "README.md"])
def test_no_digit_of_a_figure_can_be_changed_unnoticed(tmp_path, name):
    """The first and the last digit of every number of a folder that states everything."""
    path = write_stated(tmp_path) / name
    text, logs, unseen = (
        path.read_text(),
        [read_log(read_folder(tmp_path), f"train_seed{seed}.log") for seed in (42, 1337, 7)],
        [],
    )
    for found in re.finditer(r"(?<![\w.-])\d[\d,]*(?:\.\d+)?(?![\w]*\")", text):
        digits = [at for at, digit in enumerate(found[0], found.start()) if digit.isdigit()]
        for at in {digits[0], digits[-1]}:
            path.write_text(text[:at] + str((int(text[at]) + 4) % 10) + text[at + 1 :])
            folder, findings = read_folder(tmp_path), Findings(read_policy())
            claims = read_claims(folder)
            judge_seeds(findings, logs, claims)
            judge_claims(findings, folder, logs, claims)
            if not failed(findings):
                unseen.append(text[text.rfind("\n", 0, at) + 1 : at + 20])
    told = ("8xH100", '"date"', '"track"', "`model.bin`")  # the last is told by hashes
    assert [line for line in unseen if not any(word in line for word in told)] == []
