import json

import pytest
import zstandard

from fairway.data.sources import documents, python_documents
from fairway.problem import Problem


def _lines(*texts, field="text"):
    return "".join(json.dumps({"n": 1, field: text}) + "\n" for text in texts).encode()


def _refused(source, says, **options):
    with pytest.raises(Problem, match=says) as caught:
        list(documents(source, **options))
    assert "\n" not in str(caught.value)


def test_the_standard_library_is_modules_and_help_topics_without_tests():
    texts = list(documents("python-docs"))
    assert 2_000_000 < sum(map(len, texts)) < 40_000_000
    assert any("class JSONDecodeError" in text for text in texts)  # a module of a package
    assert any(text.startswith('The "assert" statement') for text in texts)  # a help topic
    assert not any("class TestCaseDiscoverySuite" in text or "decoding_table = (" in text for text in texts)


def test_modules_come_sorted_and_tests_tables_and_installed_packages_stay_out(tmp_path, monkeypatch):
    kept = ["a.py", "a/b.py", "a/testing.py", "b.py", "unittest/case.py", "z/__init__.py"]
    left = ["test/a.py", "a/tests/b.py", "idlelib/idle_test/c.py", "site-packages/d.py", "encodings/cp037.py"]
    left += ["config-3.11-x86_64/e.py", "_sysconfigdata_x.py", "html/entities.py", "pydoc_data/topics.py", "ensurepip/f.py"]
    for name in sorted([*kept, *left], reverse=True):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "b.py").write_bytes(b"# coding: latin-1\n# \xe9")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    found = list(python_documents())
    expected = [name if name != "b.py" else "# coding: latin-1\n# é" for name in kept]
    assert found[: len(kept)] == expected and "a/tests/b.py" not in found and len(found) > len(kept) + 50
    (tmp_path / "a.py").write_bytes(b"# coding: nonsense\n")
    with pytest.raises(Problem, match=r"cannot read .*a\.py"):
        list(python_documents())


def test_a_text_file_is_one_document_to_the_byte(tmp_path):
    text = "Zeile 1\r\n\n  zwei: ä\t漢\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert list(documents(tmp_path / "a.txt")) == [text]


def test_lines_of_json_are_documents_packed_or_not(tmp_path):
    texts = ["one\ntwo", "", "drei ä \U0001f600"] * 50
    (tmp_path / "a.jsonl").write_bytes(_lines(*texts) + b"\n" + _lines("the last, without a newline")[:-1])
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress((tmp_path / "a.jsonl").read_bytes()))
    expected = [*texts, "the last, without a newline"]
    assert list(documents(tmp_path / "a.jsonl")) == expected
    assert list(documents(tmp_path / "b.jsonl.zst")) == expected


def test_a_line_may_span_chunks_and_zstd_frames(tmp_path):
    texts = ["x" * 3_000_000, "y"]
    data = _lines(*texts)
    frames = [zstandard.ZstdCompressor().compress(data[at : at + 700_001]) for at in range(0, len(data), 700_001)]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    assert list(documents(tmp_path / "a.jsonl.zst")) == texts


def test_a_folder_is_read_in_sorted_order_and_other_files_are_left_alone(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/b.txt", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "c.jsonl").write_bytes(_lines("json", field="body"))
    assert list(documents(tmp_path, field="body")) == ["a/b.txt", "a/z.txt", "b.txt", "json"]


def test_what_cannot_be_read_is_one_line_with_file_and_line_number(tmp_path):
    good = _lines("good")
    for name, data, says in [
        ("a.jsonl", good + b"{oops\n", r"a\.jsonl line 2 is not JSON"),
        ("b.jsonl", good + b"\n[1]\n", r"b\.jsonl line 3 has no text under 'text' \(it has: list\)"),
        ("c.jsonl", good + _lines("x", field="body"), r"line 2 .* n, body"),
        ("d.jsonl", b'{"text": 5}\n', "line 1 has no text"),
        ("e.jsonl", good + b'{"text": "\xff"}\n', "line 2 is not UTF-8"),
        ("f.jsonl", good + b'{"text": "a\\ud800b"}\n', "line 2 holds a lone surrogate"),
        ("g.txt", b"one\ntwo \xff", r"g\.txt line 2 is not UTF-8"),
        ("h.jsonl", b"\n\n", "no document"),
        ("i.txt", b" \n", "no document"),
        ("j.jsonl.zst", good, "not a zstd file"),
        ("k.jsonl.zst", zstandard.compress(good * 1000)[:-9], "cut off"),
        ("l.md", b"text", "no .txt"),
    ]:
        (tmp_path / name).write_bytes(data)
        _refused(tmp_path / name, says)
    _refused(tmp_path / "none", "not there")
    (tmp_path / "folder").mkdir()
    _refused(tmp_path / "folder", "holds none")
