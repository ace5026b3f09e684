"""One recipe through the package and through its bundle: the same losses, weights, model and score, to the bit."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from fairway.artifact.bundle import bundle
from fairway.artifact.sources import package_sources
from fairway.node import digest
from fairway.optim.schedule import Budget
from fairway.program import run_program
from train.tiny import environment, tiny, torchrun

# As much as one recipe can hold: what adapts, what mixes, what averages, quantisation-aware training.
SETTINGS = (
    "loader=SequentialShards()",
    "adapt=(ScoreFirstSGD(rate=0.01, chunk=256, fresh=(HashEmbedding(buckets=64),)),)",
    "mix=(TokenTilt(rules=((2, 0.5, 2),)), BackoffCache(every=64))",
    "average=(EMA(decay=0.9), LastWeights())",
    "qat=(LateQAT(after=0.5),)",
)
BLOCKED = ("fairway", "tyro", "zstandard", "safetensors", "huggingface_hub", "rich", "python_minifier", "brotli")
ALONE = """
import runpy, sys
for name in {blocked!r}:
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def recipe():
    """Three steps of the tiny recipe; no dial turns, since a dial's end depends on the program's length."""
    whole = tiny(*SETTINGS)
    return replace(whole, train=replace(whole.train, budget=Budget(3, 0.0)), fit=())


@pytest.fixture(scope="module")
def made(recipe):
    return bundle(recipe)


@pytest.fixture(scope="module")
def by_package(recipe, made, tiny_data, tmp_path_factory):
    """Folder of a run by the package itself, with the bundle as its program."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "train_gpt.py").write_bytes(made.program)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(folder / "train_gpt.py"), "--data", str(tiny_data), "--out", str(folder / "run")])
        assert run_program(recipe) == 0
    return folder / "run"


def run_alone(folder, data, *arguments, code=0):
    """Runs train_gpt.py in its folder, in an interpreter that has only what the contest's machine has."""
    words = ["-I", "-c", ALONE.format(blocked=BLOCKED), "train_gpt.py", "--data", data, "--out", "run", *arguments]
    return run_python(folder, words, code)


def run_python(folder, words, code=0):
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=folder, capture_output=True, text=True, timeout=120,
        env=environment() | {"PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == code, done.stderr[-3000:]
    return done


def rows_of(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_same_run(run, other, model=True):
    assert len(rows_of(run)) == 3 and rows_of(run) == rows_of(other)
    one, two = (torch.load(folder / "weights.pt", weights_only=True) for folder in (run, other))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    if model:
        assert (run / "model.bin").read_bytes() == (other / "model.bin").read_bytes()
        assert json.loads((run / "score.json").read_text()) == json.loads((other / "score.json").read_text())


def test_the_wrapped_program_does_what_the_package_does(made, by_package, tiny_data, tmp_path):
    (tmp_path / "train_gpt.py").write_bytes(made.program)
    run_alone(tmp_path, tiny_data)
    assert_same_run(tmp_path / "run", by_package)
    # What is submitted is the program itself, and the stages run one by one.
    assert (tmp_path / "run" / "train_gpt.py").read_bytes() == made.program
    (tmp_path / "run" / "model.bin").write_bytes(b"FWay" + bytes(90))
    fault = run_alone(tmp_path, tiny_data, "--stage", "score", code=2).stderr.strip()
    assert "raise Problem" in made.readable.splitlines()[int(fault.split()[1]) - 1], fault


@pytest.mark.slow
@pytest.mark.parametrize("form", ["readable", "minified", "latin-1"])
def test_every_other_form_does_too(form, made, recipe, by_package, tiny_data, tmp_path):
    texts = {"readable": made.readable, "minified": made.minified}
    program = texts[form].encode() if form in texts else bundle(recipe, form).program
    assert form != "latin-1" or len(program) < 0.86 * len(made.program)
    (tmp_path / "train_gpt.py").write_bytes(program)
    run_alone(tmp_path, tiny_data)
    assert_same_run(tmp_path / "run", by_package)


@pytest.mark.slow
def test_two_ranks_under_torchrun_run_the_program(made, tiny_data, tmp_path):
    (tmp_path / "train_gpt.py").write_bytes(made.program)
    run_python(tmp_path, [*torchrun(2), "train_gpt.py", "--data", tiny_data, "--out", "run"])
    assert len(rows_of(tmp_path / "run")) == 3 and json.loads((tmp_path / "run" / "score.json").read_text())["bpb"] > 0


def test_only_the_recipes_techniques_are_in_it(made):
    for absent in ("DocumentLoRA", "PolarExpress", "Parallel", "AsymmetricSoftcap", "RECIPES", "parse_node"):
        assert f"class {absent}" not in made.readable and f"def {absent}" not in made.readable, absent
        assert absent not in made.minified
    assert "AdaptSite" in made.readable and "AdaptSite" not in made.minified  # nothing in it but what it means
    for present in ("BigramHash", "SmearGate", "Sliding", "Muon", "TokenTilt"):
        assert f"class {present}" in made.readable, present
    assert "# fairway/model/inputs.py" in made.readable and "exec(" not in made.minified


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_bytes_in_another_process(made, recipe):
    script = (
        "import hashlib\nfrom fairway.artifact.bundle import bundle\nfrom fairway.node import parse_node\n"
        "import fairway.recipes.catalogue\n"
        f"print(hashlib.sha256(bundle(parse_node({repr(recipe)!r})).program).hexdigest())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(made.program).hexdigest()


def test_owners_sum_to_the_program_and_name_modules(made):
    assert sum(row["bytes"] for row in made.owners) == len(made.program) and min(row["bytes"] for row in made.owners) >= 0
    owners = {row["owner"] for row in made.owners}
    assert len(owners) == len(made.owners) and owners - {"imports and recipe"} <= package_sources().keys()
    assert "fairway/model/spine.py" in owners and made.program.isascii()


def test_the_readable_bundle_knows_the_packages_digest(made, recipe):
    assert f"return {digest(recipe)!r}" in made.readable
