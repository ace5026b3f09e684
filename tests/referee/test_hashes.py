"""A folder that states hashes of its files is held to them: a changed byte, a swapped log, a borrowed seed have a name."""

import json
from dataclasses import replace

import pytest

from fairway.referee.claims import read_claims
from fairway.referee.folder import read_folder
from fairway.referee.hashes import hashes_in, judge_hashes_told
from fairway.referee.logs import read_log
from fairway.referee.review import main_script, static_rows
from fairway.referee.rules import read_policy
from fairway.referee.verdict import Findings
from referee.gallery.base import HONEST_SCRIPT, RUNS, change_claims, edit, write_submission
from referee.stated_folder import digest, log_again, write_stated

OTHERS = tuple(replace(run, seed=run.seed + 1, loss=run.loss + 0.01, model=run.model + 5) for run in RUNS)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """The Script of the folders, read once."""
    return main_script(read_folder(write_stated(tmp_path_factory.mktemp("script"))))


@pytest.fixture
def stated(tmp_path):
    """A folder that states everything, and all of it true."""
    return write_stated(tmp_path / "record")


def judged(path, script):
    folder = read_folder(path)
    findings = Findings(read_policy())
    judge_hashes_told(findings, folder, script, [read_log(folder, name) for name in folder.logs()], read_claims(folder))
    return findings.rows


def failed(rows):
    return {row["rule"] for row in rows if row["verdict"] == "FAIL"}


def said(rows, verdict):
    return "\n".join(f"{row['rule']} {row['measured']} {row['evidence']}" for row in rows if row["verdict"] == verdict)


def test_a_folder_whose_hashes_are_true_passes_by_name(stated, script):
    assert not failed(static_rows(stated, "as-practised", None))
    passed = said(judged(stated, script), "PASS")
    assert "train_gpt.py as it lies there" in passed and "train_seed42.log (as it lies there)" in passed
    assert "model.bin (of seed 42)" in passed and "recipe_hash, source_hash the same in 3 logs" in passed


def test_line_ends_that_a_checkout_changed_are_forgiven(stated, script):
    for path in [stated / "train_gpt.py", *stated.glob("*.log")]:
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    rows = judged(stated, script)
    assert not failed(rows) and "train_seed7.log (with its line ends made one character)" in said(rows, "PASS")
    assert "train_gpt.py with its line ends made one character" in said(rows, "PASS")


def swap_logs(folder):
    one, other = folder / "train_seed42.log", folder / "train_seed7.log"
    one.rename(folder / "aside")
    other.rename(one)
    (folder / "aside").rename(other)


def borrow_a_seed(folder):
    """A log of another recipe takes a seed's place, its hash stated."""
    log_again(folder, 7, (folder / "train_seed7.log").read_text().replace("39f585d603e80f0b", "49f585d603e80f0b"))


def borrow_another_data(folder):
    log_again(folder, 7, (folder / "train_seed7.log").read_text().replace("dac87836b11346cd", "fac87836b11346cd"))


def copy_a_log(folder):
    """The log of seed 42 with another seed typed in, its hash stated."""
    log_again(folder, 1337, (folder / "train_seed42.log").read_text().replace("seed:42\n", "seed:1337\n"))


def log_of_other_code(folder):
    text = (folder / "train_seed42.log").read_text()
    log_again(folder, 42, text.replace(digest(HONEST_SCRIPT.encode()), digest(b"other code")))


def change_a_byte_of_the_script(folder):
    edit(folder / "train_gpt.py", "model_dim = int(os", "model_din = int(os")


def other_readme(folder):
    other = write_stated(folder.parent / "other", OTHERS)
    (folder / "README.md").write_text((other / "README.md").read_text())


def model_of_another_seed(folder):
    (folder / "model.bin").write_bytes(b"model of seed 7")


def model_of_another_run(folder):
    (folder / "model.bin").write_bytes(b"model of seed 99")


def other_model_in_a_log(folder):
    text = (folder / "train_seed1337.log").read_text()
    log_again(folder, 1337, text.replace(digest(b"model of seed 1337"), digest(b"model of seed 99")))


def other_hash_in_the_readme(folder):
    edit(folder / "README.md", "`model.bin` is", f"`train_gpt.py` `{digest(b'other')}`; `model.bin` is")


@pytest.mark.parametrize(
    ("forge", "rules", "words"),
    [
        (change_a_byte_of_the_script, {"G5"}, "train_gpt.py is other code"),
        (swap_logs, {"G3", "S3"}, "train_seed42.log is another file than submission.json states"),
        (borrow_a_seed, {"S3"}, "recipe_hash differs: a seed of something else"),
        (borrow_another_data, {"S3"}, "data_hash differs"),
        (copy_a_log, {"S3"}, "one run under two names"),
        (lambda folder: (folder / "train_seed7.log").unlink(), {"G1"}, "seed 7, of which there is no log"),
        (log_of_other_code, {"G5", "S3"}, "train_seed42.log code_sha256: train_gpt.py is other code"),
        (other_readme, {"G4"}, "README.md"),
        (model_of_another_seed, {"G4"}, "README.md: the seed that model.bin is of"),
        (model_of_another_run, {"G3"}, "model.bin is of none of the seeds"),
        (other_model_in_a_log, {"G3"}, "model of seed 1337"),
        (other_hash_in_the_readme, {"G5"}, "README.md train_gpt.py sha256"),
        (lambda folder: edit(folder / "train_seed7.log", "train_loss:2.3", "train_loss:2.4"), {"G3"}, "train_seed7.log is"),
        (lambda folder: edit(folder / "train_seed7.log", "seed:7", "seed:99"), {"G1", "G3", "S3"}, "of another seed"),
        (lambda folder: change_claims(folder, train_gpt_sha256="0" * 64), {"G5"}, "submission.json train_gpt_sha256"),
        (lambda folder: change_claims(folder, recipe_hash="0" * 16), {"G3"}, "submission.json recipe_hash"),
        (lambda folder: change_claims(folder, source_hash="0" * 16), {"G3"}, "submission.json source_hash"),
    ],
)  # fmt: skip
def test_a_forged_folder_fails_by_name(stated, forge, rules, words):
    forge(stated)
    rows = static_rows(stated, "as-practised", None)
    assert rules <= failed(rows) and words in said(rows, "FAIL")


def test_what_a_hash_is_of_must_be_certain(tmp_path, script):
    folder = write_submission(tmp_path / "strange")
    for at, path in enumerate(sorted(folder.glob("*.log"))):
        head = [f"config_hash: {at}" + "a" * 15, f"run_sha256: {digest(bytes([at]))}", f"weights_sha256: {digest(b'w')}"]
        path.write_text("\n".join(head) + "\n" + path.read_text())
    more = {"artifact_sha256": digest(b"a"), "sha256": {"final_model.ptz": digest(b"b")}, "notes_hash": "x"}
    change_claims(folder, **more, code_sha256="abc", log_sha256=digest(b"which"), deep=[{"seed": 5, "log_sha256": "0" * 64}])
    rows = judged(folder, script)
    assert not failed(rows) and "code_sha256: abc is no SHA-256" in said(rows, "NOT TESTED")


def test_code_that_runs_other_files_may_be_hashed_with_them(tmp_path):
    folder = write_submission(tmp_path / "two", script="import helper\n")
    (folder / "helper.py").write_text("x = 1\n")
    change_claims(folder, code_sha256="0" * 64)
    rows = judged(folder, main_script(read_folder(folder)))
    assert not failed(rows) and any("it may be of train_gpt.py with" in row["evidence"] for row in rows)


def test_a_file_is_found_by_its_name_or_its_stem(tmp_path, script):
    folder = write_submission(tmp_path / "named")
    (folder / "model.bin").write_bytes(b"m")
    (folder / "requirements.txt").write_text("numpy\n")
    change_claims(folder, model_sha256=digest(b"m"), sha256={"requirements.txt": digest(b"torch\n")})
    rows = judged(folder, script)
    assert failed(rows) == {"G3"} and "requirements.txt is another file" in said(rows, "FAIL")
    assert "model.bin (as it lies there)" in said(rows, "PASS")


def test_a_model_may_be_of_a_seed_that_states_none(stated, script):
    model_of_another_run(stated)
    claims = json.loads((stated / "submission.json").read_text())
    del claims["seed_results"]["7"]["model_sha256"]
    (stated / "submission.json").write_text(json.dumps(claims))
    path = stated / "train_seed7.log"
    log_again(stated, 7, path.read_text().replace("model_sha256", "model"))
    rows = judged(stated, script)
    assert not failed(rows) and "model.bin is of none of the seeds" in said(rows, "NOT TESTED")


def test_hashes_are_found_however_deep_and_strange_values_do_no_harm():
    values = {"seeds": [{"seed": 3, "log_sha256": "a"}], "runs": {"seed_4": {"log_sha256": "b"}}, "sha256": {"x.py": "c"}}
    assert sorted(hashes_in(values), key=str) == [(3, "log_sha256", "a"), (4, "log_sha256", "b"), (None, "x.py_sha256", "c")]
    deep = {}
    for _ in range(20_000):
        deep = {"a": [deep, None, 1.5]}
    assert hashes_in(deep) == [] and hashes_in({"seed": None, "sha256": 5, "x_sha256": None}) == []


def test_code_beside_the_script_is_not_what_a_model_s_hash_is_of(stated, script):
    """The model itself is seldom in a folder; model.py and tokenizer.py often are."""
    (stated / "model.bin").unlink()
    (stated / "model.py").write_text("x = 1\n")
    rows = judged(stated, script)
    assert not failed(rows) and "model.py" not in said(rows, "NOT TESTED")


def test_a_log_may_be_counted_by_its_name(tmp_path):
    folder = write_submission(tmp_path / "counted")
    for at, run in enumerate(RUNS, 1):
        (folder / f"train_seed{run.seed}.log").rename(folder / f"seed_{at}00.log")
    assert "S3" not in failed(static_rows(folder, "as-practised", None))


def test_claims_keep_their_own_digits(stated):
    """A forger who changes a figure in all places but the log's is still told."""
    claims = json.loads((stated / "submission.json").read_text())
    text = f"{claims['seed_results']['42']['val_bpb']:.8f}"
    for name in ("submission.json", "README.md"):
        edit(stated / name, text, "1.10000000")
    assert {"G3", "G4"} <= failed(static_rows(stated, "as-practised", None))
