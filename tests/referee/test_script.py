"""What is certain about a script, and what is only a hint."""

import base64
import lzma
import random

import pytest

from fairway.artifact.wrap import wrap
from fairway.referee.folder import read_folder
from fairway.referee.logs import Log
from fairway.referee.rules import read_policy
from fairway.referee.script import counted_code, judge_match, judge_script, read_script
from fairway.referee.verdict import Findings

KERNEL = "import triton\nimport triton.language as tl\n\n\n@triton.jit\ndef scale(x):\n    return x\n"
NATIVE = {"csrc/k.cu", "csrc/k.cuh"}
PLAIN = "import os\n\nlayers = int(os.environ.get('NUM_LAYERS', '9'))\nprint(layers)\n"


@pytest.fixture
def script_of(tmp_path):
    """Writes files, reads the script among them."""

    def written(source, **files):
        (tmp_path / "train_gpt.py").write_bytes(source if isinstance(source, bytes) else source.encode())
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_text(text)
        folder = read_folder(tmp_path)
        return folder, read_script(folder, "train_gpt.py")

    return written


def packed(source, run="exec(s)"):
    data = base64.b85encode(lzma.compress(source.encode())).decode()
    return f"import lzma,base64\ns=lzma.decompress(base64.b85decode({data!r})).decode()\n{run}\n"


def judged(folder, script, *logs):
    findings = Findings(read_policy())
    judge_script(findings, folder, script)
    judge_match(findings, script, logs)
    return findings


def rows(findings, rule):
    return [row for row in findings.rows if row["rule"] == rule]


def failed(findings):
    return {row["rule"] for row in findings.rows if row["verdict"] == "FAIL"}


# What runs


def test_a_plain_script_is_read_and_nothing_fails(script_of):
    folder, script = script_of(PLAIN)
    assert (script.size, script.unpacked_size, script.layers, script.text) == (len(PLAIN), len(PLAIN), (), PLAIN)
    assert script.settings == {"NUM_LAYERS": 9} and counted_code(folder, script) == {"train_gpt.py": len(PLAIN)}
    assert failed(judged(folder, script)) == set()


@pytest.mark.parametrize("source", ["", "  \n\n", "def f(:\n  pass", "print 'x'", "x = (1,\n", packed("for i of x: pass")])
def test_what_is_empty_or_does_not_parse_fails(script_of, source):
    assert failed(judged(*script_of(source))) == {"G6"}


@pytest.mark.parametrize("source", ['x = {"a": 1}\nprint(f"{x[")}', "x = a\nprint(t'{x}', )(\n", "type X[T] = = list[T]"])
def test_what_a_newer_python_may_read_is_not_failed(script_of, source):
    findings = judged(*script_of(source))
    assert failed(findings) == set() and "does not parse" in rows(findings, "G6")[0]["evidence"]


def test_a_payload_that_is_cut_fails_and_a_packer_of_its_own_is_not_tested(script_of):
    data = base64.b85encode(lzma.compress(PLAIN.encode())[:-20]).decode()
    findings = judged(*script_of(f"import lzma,base64\nexec(lzma.decompress(base64.b85decode({data!r})))\n"))
    assert failed(findings) == {"G6"} and "cannot be unpacked" in rows(findings, "G6")[0]["evidence"]
    own = "def d(s):\n    o = []\n    for c in s: o.append(chr(ord(c) - 1))\n    return ''.join(o)\nexec(d('jnqpsu!pt'))\n"
    findings = judged(*script_of(own))
    assert failed(findings) == set() and "code of its own" in rows(findings, "G6")[0]["evidence"]


def test_a_program_of_our_own_packer_is_fine(script_of):
    folder, script = script_of(wrap(KERNEL + PLAIN))
    assert script.text == KERNEL + PLAIN and script.settings == {"NUM_LAYERS": 9}
    assert failed(judged(folder, script)) == set()


@pytest.mark.parametrize(
    "kernel",
    [
        KERNEL,
        KERNEL.replace("@triton.jit", "@triton.autotune(configs=[], key=[])\n@triton.jit"),
        KERNEL.replace("import triton\n", "from triton import jit as fast\n", 1).replace("@triton.jit", "@fast"),
        "import torch\n\n\n\n@torch.jit.script\ndef f(x):\n    return x\n",
        "import inspect\n\n\ndef f(x):\n    return x\n\n\nSOURCE = inspect.getsource(f)\n",
        "try:\n    import triton\nexcept ImportError:\n    raise\n\n\n" + KERNEL,
    ],
)
def test_kernels_that_exec_defines_have_no_source(script_of, kernel):
    findings = judged(*script_of(packed(kernel + PLAIN)))
    assert failed(findings) == {"G6"} and "exec() leaves none" in rows(findings, "G6")[-1]["evidence"]


@pytest.mark.parametrize(
    "run",
    [
        "import linecache\nlinecache.cache['<t>'] = 0, None, s.splitlines(1), '<t>'\nexec(compile(s, '<t>', 'exec'))",
        "import tempfile, runpy\nf = tempfile.mkstemp('.py')[1]\nopen(f, 'w').write(s)\nrunpy.run_path(f)",
        "open('/tmp/t.py', 'w').write(s)\nexec(compile(s, '/tmp/t.py', 'exec'))",
    ],
)
def test_kernels_with_a_file_or_linecache_have_one(script_of, run):
    assert failed(judged(*script_of(packed(KERNEL + PLAIN, run)))) == set()


@pytest.mark.parametrize(
    "kernel",
    [
        "def dead():\n    import triton\n\n    @triton.jit\n    def k(x):\n        return x\n",
        "import triton\n\n\nif layers:\n    @triton.jit\n    def k(x):\n        return x\n",
        "try:\n    import triton\n\n    @triton.jit\n    def k(x):\n        return x\nexcept Exception:\n    k = None\n",
        "import numba\n\n\n@numba.jit\ndef k(x):\n    return x\n",
    ],
)
def test_kernels_that_may_not_be_reached_are_not_failed(script_of, kernel):
    assert failed(judged(*script_of(packed(PLAIN + kernel)))) == set()


def test_a_stub_that_runs_a_file_that_is_not_there_fails(script_of):
    assert failed(judged(*script_of('exec(open("real_train.py").read())\n'))) == {"G6"}
    assert failed(judged(*script_of('exec(open("real_train.py").read())\n', real_train_dot_py=PLAIN))) == set()
    made = 'open("made.py", "w").write("x = 1")\nexec(open("made.py").read())\n'
    assert failed(judged(*script_of(made))) == set()
    joined = 'import os\nexec(open(os.path.join(os.path.dirname(__file__), "there.py")).read())\n'
    assert failed(judged(*script_of(joined))) == {"G6"}


@pytest.mark.parametrize(
    "run", ["exec(compile(s, 'impl.py', 'exec'), {})", "code = compile(s, 'impl.py', 'exec')\nexec(code)"]
)
def test_the_name_that_a_text_is_compiled_under_is_no_file_that_it_runs(script_of, run):
    assert failed(judged(*script_of(packed(PLAIN, run)))) == set()


def test_what_writes_the_artifact_gives_the_kernels_before_it_no_source(script_of):
    pack = "from pathlib import Path\n\n\ndef pack(blob):\n    Path('model.bin').write_bytes(blob)\n"
    assert failed(judged(*script_of(packed(KERNEL + pack)))) == {"G6"}
    giver = "import linecache\n\nlinecache.cache['<string>'] = 0, None, [], '<string>'\n"
    findings = judged(*script_of(packed(giver + KERNEL + PLAIN)))
    assert failed(findings) == set() and "whether this runs" in rows(findings, "G6")[-1]["evidence"]


def test_a_wrapper_that_is_longer_than_the_kernel_is_deep_is_left_to_the_run(script_of):
    findings = judged(*script_of("# a note\n" * 50 + packed(KERNEL + PLAIN, "exec(compile(s, __file__, 'exec'))")))
    assert failed(findings) == set() and "whether this runs" in rows(findings, "G6")[-1]["evidence"]


# What counts


@pytest.mark.parametrize(
    "source, names",
    [
        ("import helper\n", {"helper.py"}),
        ("from lib.deep import thing\n", {"lib/deep.py"}),
        ("import sys\nsys.path.insert(0, 'lib')\nimport deep\n", {"lib/deep.py"}),
        ('exec(open("helper.py").read())\n', {"helper.py"}),
        ("from pathlib import Path\nP = Path(__file__).parent / 'helper.py'\nexec(P.read_text())\n", {"helper.py"}),
        ("import runpy\nrunpy.run_path('helper.py')\n", {"helper.py"}),
        ("import subprocess, sys\nsubprocess.run([sys.executable, 'helper.py'])\n", {"helper.py"}),
        ("import os\nos.system('python helper.py --fast')\n", {"helper.py"}),
        ("import importlib\nm = importlib.import_module('helper')\n", {"helper.py"}),
        ("import ctypes\nlib = ctypes.CDLL('./fast.so')\n", {"fast.so"}),
        ("from torch.utils.cpp_extension import load\nload('k', sources=['csrc/k.cu'])\n", NATIVE),
        ("from torch.utils.cpp_extension import load as build\nbuild('k', ['csrc/k.cu'])\n", NATIVE),
        ("from torch import load\nload('csrc/k.cu')\n", set()),
        ("import subprocess\nsubprocess.run(['bash', 'build.sh'])\n", {"build.sh", *NATIVE}),
        ("import glob\nfrom torch.utils import cpp_extension as c\nc.CUDAExtension('k', glob.glob('csrc/*.cu'))\n", NATIVE),
        (packed("import helper\n"), {"helper.py"}),
        ("import middle\n", {"middle.py", "helper.py"}),
        ('exec(open("code.txt").read())\n', {"code.txt"}),
        ('"""See helper.py and prepare.py."""\nprint("run prepare.py first")\n', set()),
        ("def unused():\n    import helper\n", set()),
        ("if False:\n    import helper\n", set()),
        ("import torch\nmodel = torch.compile(model, 'helper.py')\nw = torch.load('helper.py')\n", set()),
        ("import json, re, numpy.random\n", set()),
    ],
)  # fmt: skip
def test_files_that_run_are_counted_and_others_are_not(script_of, source, names):
    beside = {
        "helper_dot_py": "X = 1\n", "prepare_dot_py": "print('fineweb_val_')\n", "lib__deep_dot_py": "thing = 2\n",
        "middle_dot_py": "import helper\n", "csrc__k_dot_cu": '#include "k.cuh"\n', "csrc__k_dot_cuh": "int x;\n",
        "build_dot_sh": "nvcc -o k.so csrc/k.cu\n", "fast_dot_so": "\x7fELF", "code_dot_txt": "x = 1\n",
        "json_dot_md": "x", "readable_dot_py": PLAIN,
    }  # fmt: skip
    folder, script = script_of(source, **beside)
    assert set(script.siblings) == names
    assert counted_code(folder, script) == {name: folder.entry(name).size for name in ("train_gpt.py", *names)}
    assert set(script.native) == {name for name in names if name.endswith((".cu", ".cuh", ".so"))}
    assert failed(judged(folder, script)) == set()


# Imports and settings


def test_imports_know_their_fallbacks(script_of):
    source = (
        "import torch, brotli\n"
        "try:\n    from flash_attn_interface import f\nexcept ImportError:\n    f = None\n"
        "try:\n    import zstandard\nexcept ModuleNotFoundError:\n    raise SystemExit('no')\nexcept ValueError:\n    pass\n"
        "try:\n    import ujson as json\nexcept ImportError:\n    import orjson as json\n"
        "from contextlib import suppress\nwith suppress(ImportError):\n    import lrzip\n"
    )
    folder, script = script_of(source, requirements_dot_txt="brotli==1.1.0\ngit+https://example.com/x\n")
    assert {name: script.imports[name] for name in ("ujson", "orjson", "brotli", "flash_attn_interface", "lrzip")} == {
        "ujson": True, "orjson": False, "brotli": False, "flash_attn_interface": True, "lrzip": True,
    }  # fmt: skip
    row = rows(judged(folder, script), "A7")[0]
    assert row["verdict"] == "NOT TESTED" and row["measured"]["brotli"] == "==1.1.0"
    assert "brotli" in row["evidence"] and "flash_attn" not in row["evidence"] and "git+https" in row["evidence"]
    assert (
        rows(judged(*script_of("import torch, math\nimport numpy as np\n")), "A7")[0]["verdict"] == "NOT TESTED"
    )  # still git+
    (folder.path / "requirements.txt").unlink()
    assert rows(judged(*script_of("import torch, math\nimport numpy as np\n")), "A7")[0]["verdict"] == "PASS"


def test_settings_are_found_with_their_defaults(script_of):
    source = (
        "import os, argparse\nfrom dataclasses import dataclass\n"
        "a = int(os.environ.get('A', '3')); b = bool(int(os.getenv('B', 1))); c = os.environ['C']; e = os.getenv('E')\n"
        "def env(name, default): return os.environ.get(name, default)\nd = float(env('D', '0.5'))\n"
        "p = argparse.ArgumentParser()\np.add_argument('-l', '--learning-rate', type=float, default=0.1)\n"
        "@dataclass\nclass H:\n    width: int = 512\n"
        "class Hyperparameters:\n    rope_base = 1e4\n    f = int(os.environ.get('F', 7))\n"
        "class Net:\n    inner = 5\n"
    )
    _, script = script_of(source)
    assert script.settings == {
        "A": 3, "B": True, "C": None, "E": None, "D": 0.5, "learning_rate": 0.1, "width": 512, "rope_base": 1e4, "F": 7,
    }  # fmt: skip


# Hints


def test_hints_never_fail_and_never_pass(script_of):
    source = (
        "import urllib.request, subprocess\nfiles = 'fineweb_val_*.bin', 'fineweb_train_*.bin'\n"
        "subprocess.run(['curl', '-O', 'x'])\nBYTES = 3.5\nval_bpb = loss / 0.6931 / BYTES\nbpb = nats / tokens * 4.2\n"
    )
    findings = judged(*script_of(source))
    assert {row["verdict"] for rule in ("D1", "D2", "D3", "M7") for row in rows(findings, rule)} == {"NOT TESTED"}
    assert rows(findings, "D3")[0]["measured"] == ["urllib.request", "curl"]
    assert [row["measured"] for row in rows(findings, "M7")] == [3.5, 4.2]
    honest = judged(*script_of("val_bpb = loss / math.log(2.0) * tokens / count\nbpb = bits * 8 / n\nx = y * 3.5\n"))
    assert rows(honest, "M7") == rows(honest, "D3") == []


# The log is of this script


def log_of(*sizes, compressed=None, **settings):
    return Log("a.log", code_bytes=[(size, 7) for size in sizes], compressed_code_bytes=compressed, settings=settings)


def test_code_sizes_of_all_honest_kinds_agree(script_of):
    folder, script = script_of(packed(PLAIN))
    for log in (
        log_of(script.size),
        log_of(len(PLAIN)),
        log_of(99_999, compressed=script.size),
        log_of(len(PLAIN), compressed=31_999),
        log_of(5, script.size),
    ):
        assert [row["verdict"] for row in rows(judged(folder, script, log), "G5")] == ["PASS"]
    folder, script = script_of("import helper\n", helper_dot_py="X = 1\n")
    assert failed(judged(folder, script, log_of(20))) == set()


def test_code_sizes_of_other_code_fail_with_both_numbers(script_of):
    folder, script = script_of(packed(PLAIN))
    findings = judged(folder, script, log_of(script.size + 1))
    row = rows(findings, "G5")[0]
    assert failed(findings) == {"G5"} and row["measured"] == {"printed": [script.size + 1]}
    assert row["expected"] == {"on disk": script.size, "unpacked": len(PLAIN)} and "a.log:7" in row["evidence"]


def test_what_could_not_be_unpacked_or_is_only_stated_compressed_is_not_failed(script_of):
    own = "import os\nexec(''.join(map(chr, os.environb)))\n"
    assert failed(judged(*script_of(own), log_of(77))) == set()
    assert failed(judged(*script_of(PLAIN), log_of(compressed=31_999))) == set()
    assert rows(judged(*script_of(PLAIN), log_of()), "G5") == []


LISTING = "import os\nclass Args:\n" + "".join(
    f"    {name} = float(os.environ.get('{name.upper()}', 1))\n"
    for name in ("num_layers", "model_dim", "matrix_lr", "rope_base")
)


@pytest.mark.parametrize(
    "names, verdict",
    [
        (["num_layers", "model_dim", "recur_homeostasis", "matrix_lr", "rope_base"], "FAIL"),
        (["num_layers", "model_dim", "matrix_lr", "rope_base", "recur_homeostasis"], "NOT TESTED"),
        (["seed", "world_size", "model_params", "matrix_lr", "rope_base"], "NOT TESTED"),
        (["num_layers", "model_dim", "NCCL", "matrix_lr", "rope_base"], "NOT TESTED"),
        (["num_layers", "model_dim", "matrix_lr", "rope_base"], None),
    ],
)
def test_settings_that_the_script_does_not_know_fail_only_inside_its_own_listing(script_of, names, verdict):
    found = rows(judged(*script_of(LISTING), log_of(len(LISTING), **dict.fromkeys(names, "1"))), "G5")
    assert [row["verdict"] for row in found] == ["PASS"] + ([verdict] if verdict else [])
    if verdict == "FAIL":
        assert found[1]["measured"] == ["recur_homeostasis"]


def test_names_that_a_script_or_a_configuration_beside_it_makes_are_not_failed(script_of):
    names = dict.fromkeys(["num_layers", "model_dim", "adam_groups", "matrix_lr", "rope_base"], "1")
    made = LISTING + "for kind in ('adam',):\n    print(f'{kind}_groups:1')\n"
    assert failed(judged(*script_of(made), log_of(len(made), **names))) == set()
    assert failed(judged(*script_of(LISTING, config_dot_json='{"adam_groups": 1}'), log_of(len(LISTING), **names))) == set()


@pytest.mark.parametrize(
    "source",
    [
        b"\xff\xfe\x00x", b"#coding:nonsense\nx=1", b"x=1\0", b"\x7fELF", b"PK\3\4", b"x = " + b"-" * 9000 + b"1",
        b"x = a" + b".b(1)" * 600, b"import " + b"a." * 2000 + b"b", b"x=[" * 90 + b"]" * 90,
        bytes(random.Random(1).randrange(256) for _ in range(4000)), b"def f(): return '" + b"{" * 5000 + b"'",
    ],
)  # fmt: skip
def test_a_broken_or_hostile_script_ends_in_a_verdict(script_of, source):
    findings = judged(*script_of(source), log_of(5))
    assert all(str(row["evidence"]).isprintable() for row in findings.rows)
