import hashlib
import subprocess
import sys
import zipfile

import pytest

from fairway.artifact.program import _python_files, package_sources, program_bytes, program_owners, source_hash

RECIPE_TEXT = "Recipe(name='test')\n"


def run_python(*arguments, folder):
    # -I: neither the working folder nor PYTHONPATH may lend the package.
    done = subprocess.run([sys.executable, "-I", *arguments], cwd=folder, capture_output=True, text=True, timeout=60)
    assert not done.returncode, done.stderr
    return done.stdout.split()


def rewritten(source, target, changes):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name, data in ({name: old.read(name) for name in old.namelist()} | changes).items():
            new.writestr(name, data)
    return target


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "train_gpt.py"
    path.write_bytes(program_bytes(RECIPE_TEXT))
    return path


def test_two_builds_are_byte_identical(program):
    assert program.read_bytes() == program_bytes(RECIPE_TEXT)
    with zipfile.ZipFile(program) as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_the_recipe_and_every_module_that_ships_are_inside(program):
    with zipfile.ZipFile(program) as archive:
        assert archive.read("recipe.py").decode() == RECIPE_TEXT
        assert {name for name in archive.namelist() if name.startswith("fairway/")} == set(package_sources())
    assert {"fairway/__init__.py", "fairway/node.py", "fairway/artifact/program.py"} <= set(package_sources())


def test_the_packed_package_imports_and_builds_the_same_program_from_inside(program):
    script = (
        f"import sys; sys.path.insert(0, {str(program)!r})\n"
        "import hashlib, inspect\n"
        "from fairway.artifact.program import program_bytes, source_hash\n"
        "from fairway.node import Node\n"
        f"print(hashlib.sha256(program_bytes({RECIPE_TEXT!r})).hexdigest(), source_hash())\n"
        "print(inspect.getsourcefile(Node), 'class' in inspect.getsource(Node))\n"
    )
    out = run_python("-c", script, folder=program.parent)
    assert out[:2] == [hashlib.sha256(program.read_bytes()).hexdigest(), source_hash()]
    assert out[2:] == [str(program / "fairway" / "node.py"), "True"]


def test_python_runs_the_file_as_a_script_whatever_its_suffix(program, tmp_path):
    stub = "import sys\n\n\ndef main():\n    print('ran', __file__, *sys.argv[1:])\n"
    runnable = rewritten(program, tmp_path / "train_gpt.py", {"fairway/cli.py": stub})
    assert run_python(runnable, "--flag", folder=tmp_path) == ["ran", str(runnable / "fairway" / "cli.py"), "--flag"]


def test_the_source_hash_tells_a_changed_module(program, tmp_path):
    changed = rewritten(
        program, tmp_path / "changed.zip", {"fairway/clock.py": package_sources()["fairway/clock.py"][:-1] + b" "}
    )
    script = (
        f"import sys; sys.path.insert(0, {str(changed)!r})\n"
        "from fairway.artifact.program import source_hash\n"
        "print(source_hash())\n"
    )
    (found,) = run_python("-c", script, folder=tmp_path)
    assert len(found) == len(source_hash()) == 16
    assert found != source_hash()


def test_rooms_that_only_judge_are_left_out(tmp_path):
    for name in ("a.py", "room/b.py", "referee/c.py", "record/d.py", "room/e.txt", "room/__pycache__/b.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert sorted(name for name, _ in _python_files(tmp_path, "fairway")) == ["fairway/a.py", "fairway/room/b.py"]


def test_owners_sum_to_the_file_and_name_each_module(program):
    data = program.read_bytes()
    owners = {owner["owner"]: owner for owner in program_owners(data)}
    assert sum(owner["bytes"] for owner in owners.values()) == len(data)
    assert owners["fairway/node.py"]["kind"] == "code"
    assert owners["zip directory"]["kind"] == "overhead"
    assert set(owners) == {"__main__.py", "recipe.py", "zip directory", *package_sources()}
    with zipfile.ZipFile(program) as archive:
        compressed = archive.getinfo("fairway/node.py").compress_size
    assert owners["fairway/node.py"]["bytes"] == compressed + 30 + len("fairway/node.py")
