"""The parts of the bundler on small programs: what is reached, what stays the same, what comes back."""

import ast
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from fairway.artifact.bundle import FUTURE, code_owners, literal
from fairway.artifact.minify import minify
from fairway.artifact.shake import shake
from fairway.artifact.squeeze import squeezed, unsqueezed
from fairway.artifact.wrap import escaped, wrap
from fairway.kernels import launch
from fairway.node import amend, node_kinds
from fairway.optim.schedule import WarmDownFraction
from fairway.problem import Problem
from fairway.recipes.catalogue import RECIPES

BASE = '''"""Legend: x a number."""
import json
import math
from threading import Thread

# How far.
FAR = 3


class Part:
    def used(self):
        return math.pi

    # Nobody asks.
    def unused(self):
        return forgotten()


def forgotten():
    return json.dumps(FAR)
'''
USER = """from .base import FAR, Part, Thread


class Runner(Thread):
    def run(self):
        self.found = Part().used() + FAR

    def other(self):
        return json


def start():
    used = 1  # a local of a method's name
    runner = Runner()
    runner.start()
    runner.join()
    return runner.found + used
"""
PACKAGE = {"p/base.py": BASE.encode(), "p/user.py": USER.replace(", Thread", "\nfrom threading import Thread").encode()}


def short(text):
    return "\n".join(part for _, part in minify(text))


def result(text, name="answer"):
    """What a program leaves in a list called `answer`, which it is given."""
    space = {name: [], "__name__": "program"}
    exec(compile(text, "program", "exec"), space)
    return space[name]


def same(text):
    """The answer of the shortened program, which is that of the program."""
    wanted, got = result(text), result(short(text))
    assert got == wanted and wanted, (got, wanted, short(text))
    return got


def test_only_what_is_reached_is_in_the_readable_bundle_and_it_runs():
    text, owners = shake(PACKAGE, {"start"})
    assert owners == {"FAR": "p/base.py", "Part": "p/base.py", "Runner": "p/user.py", "start": "p/user.py"}
    assert "unused" not in text and "Nobody asks" not in text and "forgotten" not in text and "json" not in text
    assert "# How far." in text and "Legend" in text and "def run" in text and "def other" not in text
    assert result(text + "\nanswer.append(start())\n") == [pytest.approx(7.14159, abs=1e-4)]
    assert result(short(text + "\nanswer.append(start())\n")) == [pytest.approx(7.14159, abs=1e-4)]


def test_two_things_of_one_name_are_refused():
    twins = PACKAGE | {"p/twin.py": b"FAR = 4\n"}
    with pytest.raises(ValueError, match=r"FAR is defined in p/base\.py and in p/twin\.py"):
        shake(twins, {"start"})


def test_names_that_python_or_a_string_may_mean_stay_and_others_become_letters():
    text = """
from dataclasses import dataclass, replace
from functools import partial
LONGEST = 7

@dataclass(frozen=True)
class Pair:
    first: int = LONGEST
    second: int = 2
    def total(self, scale=LONGEST, *, offset=0):
        total = self.first * scale + self.second
        return total + offset
    @property
    def named(self):
        return getattr(self, "first") + self.second
    @named.setter
    def named(self, value):
        raise NotImplementedError("never")

@dataclass(frozen=True)
class Longer(Pair):
    third: int = 3

def longest(values, key=None):
    return max(values, key=key)

def closure(begin):
    count = begin
    def more(step):
        nonlocal count
        count += step
        return [count * LONGEST for LONGEST in range(step)]
    return more(2), more(step=3), count

def caught(value):
    try:
        if value > 1:
            raise ValueError(f"{value} is too much")
        return value
    except ValueError as error:
        return error.args

def options(**settings):
    return sorted(settings)

answer.append(Pair().total(offset=1, scale=2))
answer.append(replace(Longer(first=4), second=9).named)
answer.append(partial(Pair(1).total, scale=5)())
answer.append(longest(["a", "bbb"], key=len))
answer.append(closure(1))
answer.append(options(alpha=1, offset=2))
answer.append(caught(1))
answer.append(repr(type(Pair()))[:6])
"""
    same(text)
    small = short(text)
    for gone in ("LONGEST", "Longer", "closure", "caught", "second", "begin", "third", "total"):
        assert gone not in small, gone
    for stays in ("first", "alpha", "replace", "nonlocal"):
        assert stays in small, stays


def test_a_text_of_an_exception_is_its_line_and_what_only_it_used_is_gone():
    text = """class Trouble(Exception):
    pass
def word(thing):
    return f"<{thing}>"
def check(value):
    about = ", ".join([str(value)])
    if bad := [one for one in value if one < 0]:
        raise Trouble(f"{word(bad[0])} of {about}") from None
    return zip(value, value, strict=True)
try:
    check([-1])
except Trouble as fault:
    answer.append(fault.args)
answer.append(list(check([1])))
"""
    small = short(text)
    assert result(small) == [(8,), [(1, 1)]]
    assert "join" not in small and "<" not in small.replace("<0", "") and ":=" not in small and "strict" not in small


def test_what_does_not_hold_is_told_in_words():
    text = """class DoesNotHold(Exception):
    pass
def refuse(owners):
    heavy = ", ".join(f"{name} {size:,}" for name, size in owners)
    raise DoesNotHold(f"over the cap; give up some of: {heavy}")
try:
    refuse([("embedding", 4000)])
except DoesNotHold as fault:
    answer.append(str(fault))
"""
    assert same(text) == ["over the cap; give up some of: embedding 4,000"]


def test_checks_of_a_recipe_and_sites_without_anything_go():
    text = """
from dataclasses import dataclass
@dataclass(frozen=True)
class Base:
    def build(self):
        raise NotImplementedError("nothing")
class Site(Base):
    '''Where.'''
@dataclass(frozen=True)
class Technique(Site):
    size: int = 1
    def __post_init__(self):
        if self.size < 0:
            raise ValueError("no")
    def build(self):
        return self.size
answer.append(Technique(3).build())
"""
    small = short(text)
    assert result(small) == [3] and small.count("\nclass ") == 1 and "post_init" not in small, small


def test_a_post_init_that_stores_something_stays():
    text = """
class Thing:
    def __post_init__(self):
        self.kept = 5
    def __init__(self):
        self.__post_init__()
answer.append(Thing().kept)
"""
    assert same(text) == [5]


def test_a_class_does_not_hide_the_globals_that_its_body_loads():
    fields = "\n".join(f"    field_{i}: int = {i}" for i in range(40))
    reads = " + ".join(f"self.field_{i}" for i in range(40))
    text = f"""
from dataclasses import dataclass
def made():
    return 1000
@dataclass
class Many:
{fields}
    last: int = made()
    def summed(self, more=made()):
        return {reads} + self.last + more + made()
answer.append(Many().summed())
"""
    assert same(text) == [sum(range(40)) + 3000]


def test_annotations_stay_where_a_decorator_may_read_them():
    text = """
def decorated(function):
    answer.append(sorted(function.__annotations__.values(), key=str))
    return function
@decorated
def one(x: 1, y: 2):
    pass
def two(x: 1):
    return x
two(1)
one(1, 2)
"""
    assert same(text) == [[1, 2]]
    assert "1" not in short(text).partition("def B")[2].partition("(")[0]


@pytest.mark.parametrize("function", RECIPES)
def test_the_literal_of_a_recipe_is_equal_to_it(function):
    recipe = amend(function(), WarmDownFraction, fraction=0.25) if "WarmDownFraction" in repr(function()) else function()
    again = eval(literal(recipe), dict(node_kinds()))
    assert again == recipe and repr(again) == repr(recipe) and len(literal(recipe)) < len(repr(recipe))


def test_what_is_squeezed_comes_back():
    chance = random.Random(1)
    samples = [b"", b"\0", b"\xff" * 300, bytes(range(256)), chance.randbytes(700), ("def f(x): return x\n" * 40).encode()]
    for data in samples:
        packed = squeezed(data)
        assert bytes(unsqueezed(packed, len(data))) == data
    assert len(packed) < len(samples[-1]) // 10


def test_an_escaped_literal_gives_every_byte_back(tmp_path):
    data = bytes(range(256)) + b'\0007\0\0\\\r\n""""""\r\\' + bytes(reversed(range(256)))
    (tmp_path / "raw.py").write_bytes(f'#coding:l1\nprint("""{escaped(data)}""".encode("l1").hex())\n'.encode("latin-1"))
    done = subprocess.run([sys.executable, "-I", tmp_path / "raw.py"], capture_output=True, text=True, check=True)
    assert bytes.fromhex(done.stdout) == data


@pytest.mark.parametrize("form", ["base85", "latin-1"])
def test_a_wrapped_program_runs_in_its_own_module_and_its_source_is_found(form, tmp_path):
    text = """import inspect, pickle, sys
def kernel(x):
    return x + 1
class Kept: pass
print(inspect.getsource(kernel) == "def kernel(x):\\n    return x + 1\\n", kernel.__module__, __name__)
print(sys.modules["__main__"].kernel is kernel, type(pickle.loads(pickle.dumps(Kept()))) is Kept, "\u2581é")
"""
    program = wrap(text, form)
    assert program == wrap(text, form) and (form == "latin-1" or program.isascii())
    (tmp_path / "train_gpt.py").write_bytes(program)
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-I", "train_gpt.py"], cwd=tmp_path, capture_output=True, check=True
    )
    assert done.stdout.decode().split() == ["True", "__main__", "__main__", "True", "True", "\u2581é"]
    ast.parse(program)


def test_an_unknown_form_is_a_problem():
    with pytest.raises(Problem, match="no form 'zip'"):
        wrap("", "zip")


def test_owners_sum_to_the_program_whatever_the_parts():
    parts = [(None, "import a"), ("f", "def f():\n\treturn 1"), ("g", "def g():\n\treturn 2"), (None, "f()")]
    rows = code_owners(parts, {"f": "p/one.py", "g": "p/two.py"}, 1001)
    assert sum(row["bytes"] for row in rows) == 1001
    assert {row["owner"] for row in rows} >= {"p/one.py", "p/two.py"} and {row["kind"] for row in rows} == {"code"}


KERNELS = {
    "fairway/kernels/launch.py": (Path(launch.__file__)).read_bytes(),
    "fairway/kernels/double_triton.py": b'''
from __future__ import annotations


def double_kernel(source_N, target_N, count, BLOCK: tl.constexpr):
    """Twice."""
    place_B = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value_B = tl.load(source_N + place_B, mask=place_B < count)
    tl.store(target_N + place_B, (value_B * 2).to(tl.float32), mask=place_B < count)
''',
    "fairway/kernels/double.py": b"""
import torch

from .double_triton import double_kernel
from .launch import triton_kernel


class Shelf:
    def store(self):
        return 1

    def load(self, mask):
        return mask + self.store()


@torch.library.custom_op("fairway_test::double", mutates_args=(), schema="(Tensor x) -> Tensor")
def double(x_N):
    out_N = torch.empty_like(x_N)
    triton_kernel(double_kernel)[((x_N.numel() + 31) // 32,)](x_N, out_N, x_N.numel(), 32, num_warps=1)
    return out_N


@double.register_fake
def double_shape(x_N):
    return torch.empty_like(x_N)


@torch.library.custom_op("fairway_test::never", mutates_args=(), schema="(Tensor x) -> Tensor")
def never(x_N):
    return x_N.clone()


@never.register_fake
def never_shape(x_N):
    return torch.empty_like(x_N)


def start():
    x_N = torch.arange(50.0)
    doubled = torch.compile(lambda x: double(x), fullgraph=True, backend="aot_eager")(x_N)
    print(torch.equal(doubled, 2 * x_N), Shelf().load(mask=2))
""",
}


def test_kernels_keep_what_triton_reads_and_their_operations_what_is_registered_with_them(tmp_path):
    pytest.importorskip("triton")
    text, _ = shake(KERNELS, {"start"})
    assert "double_shape" in text and "never" not in text
    text = FUTURE + text + "\nif __name__ == '__main__':\n    start()\n"
    minified = short(text)
    assert "tl.store(" in minified and "tl.constexpr" in minified and "source_N" not in minified and "Shelf" not in minified
    for form in (text, minified):
        program = tmp_path / "program.py"
        program.write_text(form)
        environment = os.environ | {"TRITON_INTERPRET": "1"}
        done = subprocess.run([sys.executable, "-I", program], capture_output=True, text=True, env=environment)
        assert done.stdout.split() == ["True", "3"], done.stderr
