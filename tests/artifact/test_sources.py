from fairway.artifact import sources
from fairway.artifact.sources import _python_files, package_sources, source_hash


def test_every_module_that_ships_is_there_with_its_text():
    found = package_sources()
    assert {"fairway/__init__.py", "fairway/node.py", "fairway/artifact/sources.py"} <= set(found)
    assert list(found) == sorted(found)
    assert b"def package_sources" in found["fairway/artifact/sources.py"]


def test_the_source_hash_tells_a_changed_module(monkeypatch):
    whole, before = package_sources(), source_hash()
    changed = whole | {"fairway/clock.py": whole["fairway/clock.py"][:-1] + b" "}
    monkeypatch.setattr(sources, "package_sources", lambda: changed)
    assert len(source_hash()) == len(before) == 16
    assert source_hash() != before


def test_rooms_that_only_judge_are_left_out(tmp_path):
    for name in ("a.py", "room/b.py", "referee/c.py", "record/d.py", "room/e.txt", "room/__pycache__/b.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert sorted(name for name, _ in _python_files(tmp_path, "fairway")) == ["fairway/a.py", "fairway/room/b.py"]
