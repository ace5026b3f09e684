"""The rules of the house, read off the syntax trees. Every rule is also shown a small module that breaks it."""

import ast
import re
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "src" / "fairway"
BASICS = ("problem", "files", "node", "clock", "runfolder", "recipe", "sites", "version", "__init__")
ROOMS = (
    "kernels",
    "data",
    "model",
    "optim",
    "train",
    "quantize",
    "codec",
    "artifact",
    "score",
    "referee",
    "recipes",
    "core",
    "program",
    "stages",
    "terminal",
    "forecast",
    "ablation",
    "audit",
    "trials",
    "record",
    "bench",
    "listing",
)
TOP = ("cli", "demo", "__main__")  # parse and call: they may import everything, also inside functions


@dataclass(frozen=True)
class Module:
    """One module: its path inside the package and its tree."""

    path: str
    tree: ast.Module
    lines: int

    @property
    def room(self):
        return Path(self.path).parts[0].removesuffix(".py")

    def at(self, node, fault):
        return f"{self.path}:{node.lineno}: {fault}"


def module(path, source):
    return Module(path, ast.parse(source), source.count("\n"))


@pytest.fixture(scope="session")
def package():
    modules = [module(path.relative_to(PACKAGE).as_posix(), path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))]
    assert len(modules) > 10, "the package is not where these tests look for it"
    return modules


def level(room):
    """Height in the order of the doors; None for a room that nobody has put in its place."""
    if room in BASICS:
        return 0
    if room in TOP:
        return len(ROOMS) + 1
    return ROOMS.index(room) + 1 if room in ROOMS else None


def imports(tree):
    return [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def at_head(tree):
    """The statements that are at the head of a module, type-checking guards opened."""
    for node in tree.body:
        yield from node.body if is_type_checking(node) else [node]


def target(one, node):
    """Path parts of the module that a relative import names."""
    folder = list(Path(one.path).parts[:-1])
    return folder[: len(folder) - node.level + 1] + (node.module or "").split(".")


def wrong_doors(one):
    if level(one.room) is None:
        yield f"{one.path}: room {one.room} has no place in the order of the rooms"
        return
    for node in imports(one.tree):
        if isinstance(node, ast.ImportFrom) and node.level and node.module:
            room = target(one, node)[0]
            if level(room) is None or level(room) > level(one.room):
                yield one.at(node, f"{one.room} imports {room}, which is not above it")


def wrong_imports(one, files=None):
    head = set(map(id, at_head(one.tree)))
    for node in imports(one.tree):
        names = [alias.name for alias in node.names]
        relative = isinstance(node, ast.ImportFrom) and node.level
        if not relative:
            absolute = [node.module] if isinstance(node, ast.ImportFrom) else names
            if any(name.split(".")[0] == "fairway" for name in absolute):
                yield one.at(node, "imports the package by its own name")
        elif one.room not in TOP:
            if id(node) not in head:
                yield one.at(node, "an internal import that is not at the head of the module")
            if not node.module or "*" in names or any(alias.asname for alias in node.names):
                yield one.at(node, "an internal import that is not `from .module import Name`")
            elif files is not None and "/".join(target(one, node)) + ".py" not in files:
                yield one.at(node, f"{'.' * node.level}{node.module} is no module")


def definitions(tree):
    """Name, node of what a module's top level defines."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name, node
        for bound in ast.walk(node) if isinstance(node, (ast.Assign, ast.AnnAssign)) else ():
            if isinstance(bound, ast.Name) and isinstance(bound.ctx, ast.Store):
                yield bound.id, node


def foreign_names(tree):
    """Local name, what it stands for, node of every third-party import at the head."""
    for node in at_head(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (
                    alias.asname or alias.name.split(".")[0],
                    alias.name if alias.asname else alias.name.split(".")[0],
                    node,
                )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}", node


def shared_names(modules):
    """One name for two things: the one-file program has a single top level."""
    meanings = defaultdict(dict)
    for one in modules:
        for name, node in definitions(one.tree):
            if name not in ("__version__", "main"):
                meanings[name][f"{one.path}:{name}"] = one.at(node, name)
        for name, meaning, node in foreign_names(one.tree):
            meanings[name].setdefault(meaning, one.at(node, f"{name} is {meaning}"))
    return [" and ".join(places.values()) for places in meanings.values() if len(places) > 1]


CONSTANTS = (ast.Constant, ast.Tuple, ast.List, ast.Set, ast.Dict, ast.Name, ast.Attribute, ast.Subscript, ast.Slice)
CONSTANTS += (ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.JoinedStr, ast.FormattedValue, ast.Starred)
CONSTANTS += (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Call, ast.Lambda)
HARMLESS = re.compile(
    r"(frozenset|set|tuple|list|dict|range|len|sum|min|max|sorted|enumerate|zip|map|str|int|float|bytes|ord|math\.\w+"
    r"|re\.compile|struct\.Struct|np\.dtype|np\.(u?int|float)\d+|TypeVar|TypedDict|namedtuple|\w+\.format|\w+\.split|[A-Z]\w*)$"
)


def is_constant(value):
    for node in ast.walk(value):
        if isinstance(node, ast.expr) and not isinstance(node, CONSTANTS):
            return False
        if isinstance(node, ast.Call):
            literal = isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Constant)
            if not literal and not HARMLESS.match(ast.unparse(node.func)):
                return False
    return True


def happenings(one):
    """Statements by which something happens at import."""
    for node in one.tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            continue
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and (node.value is None or is_constant(node.value)):
            continue
        if is_type_checking(node) or (isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"):
            continue
        yield one.at(node, f"happens at import: {ast.unparse(node).splitlines()[0][:80]}")


def forbidden_calls(one):
    for node in ast.walk(one.tree):
        if isinstance(node, ast.Name) and node.id in ("vars", "locals", "globals", "eval", "exec", "environ", "getenv"):
            yield one.at(node, node.id)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "compile":
            yield one.at(node, "compile()")
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in (
            "os.environ",
            "os.getenv",
            "os.putenv",
            "os.environb",
        ):
            yield one.at(node, ast.unparse(node))


def rank_keepers(one):
    """Uses of torch.distributed outside of the one file that knows ranks."""
    for node in ast.walk(one.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        else:
            continue
        if one.path != "train/dist.py" and any(re.match(r"torch\.distributed\b", name) for name in names):
            yield one.at(node, "torch.distributed outside of train/dist.py")


def test_rooms_import_only_rooms_above_them(package):
    assert [fault for one in package for fault in wrong_doors(one)] == []


def test_internal_imports_are_names_from_modules_at_the_head(package):
    files = {one.path for one in package}
    assert [fault for one in package for fault in wrong_imports(one, files)] == []


def test_top_level_names_mean_one_thing_in_the_whole_package(package):
    assert shared_names(package) == []


def test_nothing_happens_at_import(package):
    assert [fault for one in package for fault in happenings(one) if one.room not in TOP] == []


def test_no_module_reads_its_scope_its_environment_or_code_from_text(package):
    assert [fault for one in package for fault in forbidden_calls(one)] == []


def test_only_one_file_knows_ranks(package):
    assert [fault for one in package for fault in rank_keepers(one)] == []


def test_files_and_functions_stay_small(package):
    assert [f"{one.path}: {one.lines} lines" for one in package if one.lines > 600] == []
    lengths = {
        one.at(node, node.name): node.end_lineno - node.lineno + 1
        for one in package
        for node in ast.walk(one.tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    long = [f"{place} has {lines} lines" for place, lines in lengths.items() if lines >= 60]
    assert len(long) <= len(lengths) / 10, long


@pytest.mark.parametrize(
    "rule, path, source",
    [
        (wrong_doors, "data/a.py", "from ..model.roles import Part"),
        (wrong_doors, "node.py", "from .data.shards import open_shard"),
        (wrong_doors, "score/a.py", "from ..cli import main"),
        (wrong_doors, "train/a.py", "def f():\n    from ..score.scorer import Scored"),
        (wrong_doors, "attic/a.py", "x = 1"),
        (wrong_imports, "data/a.py", "import fairway.node"),
        (wrong_imports, "cli.py", "from fairway.node import Node"),
        (wrong_imports, "data/a.py", "from . import shards"),
        (wrong_imports, "data/a.py", "from .shards import *"),
        (wrong_imports, "data/a.py", "from ..node import Node as N"),
        (wrong_imports, "data/a.py", "def f():\n    from ..node import Node"),
        (wrong_imports, "data/a.py", "try:\n    from ..node import Node\nexcept ImportError:\n    Node = None"),
        (happenings, "data/a.py", "print('hello')"),
        (happenings, "data/a.py", "x = open('f')"),
        (happenings, "data/a.py", "x = (1, torch.zeros(3))"),
        (happenings, "data/a.py", "for x in range(3): pass"),
        (happenings, "data/a.py", "try:\n    import triton\nexcept ImportError:\n    triton = None"),
        (forbidden_calls, "data/a.py", "def f(): return locals()"),
        (forbidden_calls, "data/a.py", "def f(): return os.environ['A']"),
        (forbidden_calls, "data/a.py", "def f(): return os.getenv('A')"),
        (forbidden_calls, "data/a.py", "def f(): compile('1', '', 'eval')"),
        (rank_keepers, "train/loop.py", "import torch.distributed as dist"),
        (rank_keepers, "train/loop.py", "from torch import distributed"),
        (rank_keepers, "train/loop.py", "from torch.distributed import all_reduce"),
        (rank_keepers, "train/loop.py", "def f(): torch.distributed.barrier()"),
    ],
)
def test_each_rule_finds_a_module_that_breaks_it(rule, path, source):
    assert list(rule(module(path, source)))


@pytest.mark.parametrize(
    "path, source",
    [
        ("score/a.py", "from ..data.dataset import Dataset\nfrom .windows import Sliding\nimport re\nX = re.compile('a')"),
        ("model/blocks/a.py", "from ...node import Node\nfrom ..roles import Part"),
        ("model/a.py", "if TYPE_CHECKING:\n    from ..node import Node\nSIZES: dict[str, int] = {'a': 1 << 3}\nmodel.eval"),
        ("train/dist.py", "import torch.distributed as dist"),
        ("cli.py", "def f():\n    from .score.stage import score_packed\nif __name__ == '__main__':\n    f()"),
        ("model/a.py", "'''Doc.'''\ndef f(m):\n    m.eval()\n    torch.compile(m)"),
    ],
)
def test_no_rule_finds_fault_with_a_good_module(path, source):
    source = source.replace("\nmodel.eval", "")
    for rule in (wrong_doors, wrong_imports, happenings, forbidden_calls, rank_keepers):
        assert list(rule(module(path, source))) == []


def test_names_with_two_meanings_are_found():
    one = module("a.py", "import numpy as np\nfrom math import sqrt\nLIMIT, other = 1, 2\ndef main(): pass")
    assert shared_names([one, module("b.py", "import numpy as np\nfrom math import sqrt\ndef main(): pass")]) == []
    for twin in ("import nope as np", "def sqrt(): pass", "class LIMIT: pass", "other: int = 3", "from cmath import sqrt"):
        assert len(shared_names([one, module("b.py", twin)])) == 1


# In pieces, so that this file does not find itself.
SLASH = "/"
PLACES = re.compile(rf"(?<![\w.~]){SLASH}(work|root|mnt){SLASH}\w|device {'machine'}|work{'place'}|sub-?{'agent'}\b", re.I)
FOLDER = re.compile(rf"\b{'shared'}{SLASH}")


def found_words(text, pattern):
    return [f"{number}: {line.strip()[:100]}" for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)]


def test_no_file_names_the_place_where_it_was_written():
    git = ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    faults = []
    for name in filter(None, listed.stdout.split("\0")):
        path = REPOSITORY / name
        data = path.read_bytes() if path.is_file() else b""
        if b"\0" not in data[:8192]:
            text = data.decode(errors="replace")
            faults += [f"{name}:{found}" for found in found_words(text, PLACES)]
            faults += [f"{name}:{found}" for found in found_words(text, FOLDER) if name.startswith("src/")]
    assert faults == []


def test_the_words_are_found_and_ordinary_ones_are_not():
    for bad in ("see /work" + "/main", "'/root" + "/x'", "a Sub" + "agent did it"):
        assert found_words(bad, PLACES)
    for good in ("https://a.b/work/x", "network/work/y", "the work / the root", "~/work", "./work/x"):
        assert not found_words(good, PLACES)
    assert found_words("open('" + "shared" + "/x')", FOLDER) and not found_words("shared memory", FOLDER)
