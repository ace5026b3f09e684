import json
import re
import resource
import subprocess
import sys

import pytest

from fairway.version import VERSION
from train.tiny import environment, fairway

# Scripts call these: a flag may be added here, none may go.
FLAGS = {
    "demo": {"--out", "--steps", "--full"},
    "recipes": {"--diff"},
    "plan": {"--ranks", "--tflops", "--set"},
    "bench": {"--data", "--steps", "--tokens", "--out", "--set"},
    "data build": {"--out", "--vocab", "--tokenizer", "--normalization", "--field", "--val-source", "--shards", "--caseops"},
    "data check": set(),
    "train": {
        "--data",
        "--out",
        "--resume",
        "--seed",
        "--steps",
        "--seconds",
        "--set",
        "--sink",
        "--seeds",
        "--until",
        "--ranks",
        "--submit",
        "--cluster",
    },
    "pack": {"--data", "--raw"},
    "score": {"--data", "--keep-nats", "--last", "--set"},
    "audit": {"--data", "--policy", "--full", "--markdown"},
    "review": {"--dynamic", "--policy", "--record", "--seconds", "--markdown"},
    "sweep": {"--data", "--out", "--over", "--trials", "--steps", "--tokens", "--factor", "--rungs", "--storage"}
    | {"--seed", "--set"},
    "runs": {"--sort", "--where", "--csv"},
    "compare": {"--against", "--record"},
    "report": {"--out", "--against"},
    "record": {"--out", "--name", "--author", "--github", "--blurb", "--track", "--record", "--no-model", "--allow"},
    "ablate": {"--data", "--out", "--seed", "--steps", "--seconds", "--only", "--set"},
}


def help_of(fairway_here, capsys, *command):
    with pytest.raises(SystemExit) as ending:
        fairway_here(*command, "--help")
    assert ending.value.code == 0
    return capsys.readouterr().out


def commands_in(text):
    return set(re.search(r"usage: [^{]*\{([\w,]+)\}", text).group(1).split(","))


@pytest.mark.parametrize("command", FLAGS)
def test_the_flags_of_every_command_are_those_of_the_table(fairway_here, capsys, command):
    found = set(re.findall(r"^[│ ]+(?:-h, )?(--[a-z][a-z-]*)", help_of(fairway_here, capsys, *command.split()), re.M))
    assert found == FLAGS[command] | {"--help", "--json"}


def test_the_table_holds_every_command(fairway_here, capsys):
    found = commands_in(help_of(fairway_here, capsys)) - {"data"}
    found |= {f"data {name}" for name in commands_in(help_of(fairway_here, capsys, "data"))}
    assert found == set(FLAGS)


def test_help_answers_in_a_third_of_a_second_of_computing():
    def seconds():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert fairway("--help")[0] == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert sorted(seconds() for _ in range(3))[1] < 0.3


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]])
def test_no_heavy_library_is_loaded_to_answer_a_question(arguments):
    script = (
        "import sys\nfrom fairway.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'sentencepiece', 'huggingface_hub'} & set(sys.modules)\n"
        "print('heavy:', *heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], env=environment(), capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "heavy:", done.stderr


def test_the_version_is_one_line(fairway_here):
    assert fairway_here("--version") == (0, f"{VERSION}\n", [])


def test_recipes_are_listed_shown_and_compared(fairway_here):
    listed = json.loads(fairway_here("recipes", "--json")[1])["recipes"]
    sizes = {one["name"]: one["parameters"] for one in listed}
    assert sizes["pr162"] == 22_368_841 and "demo" in sizes
    assert all(one["about"].endswith(".") for one in listed)
    assert "22,368,841" in fairway_here("recipes")[1]
    shown = json.loads(fairway_here("recipes", "demo", "--json")[1])
    assert shown["name"] == "demo" and shown["text"].startswith("Recipe(name='demo'")
    code, out, errors = fairway_here("recipes", "demo", "--diff", "pr162")
    assert (code, errors) == (0, [])
    assert out.startswith("--- pr162\n+++ demo\n") and "-       loader=SequentialShards()," in out


def test_notes_go_to_the_error_stream_and_only_results_to_the_output(fairway_here, tiny_data):
    code, out, errors = fairway_here("data", "check", tiny_data)
    assert (code, errors) == (0, []) and "canonical: no" in out


@pytest.mark.parametrize(
    "flags, vocab", [([], 1024), (["--caseops"], 8192), (["--vocab", 8192], 8192), (["--caseops", "--vocab", 1024], 1024)]
)
def test_fineweb_has_the_vocabulary_that_was_published_unless_another_is_given(fairway_here, monkeypatch, flags, vocab):
    asked = []

    def download(out, vocab, shards, caseops, progress):
        asked.append((vocab, shards, caseops))
        return {"source": "hub", "vocab": vocab, "shards": []}

    monkeypatch.setattr("fairway.listing.download_fineweb", download)
    assert fairway_here("data", "build", "fineweb", "--out", "nowhere", *flags)[0] == 0
    assert asked == [(vocab, 1, "--caseops" in flags)]
