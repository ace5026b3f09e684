"""From the readable bundle to a short program that does the same: what only people read goes, names become letters.

The text of an exception becomes its line in the readable bundle, where it can be looked up; but what does not hold is told
with its numbers, which stand nowhere else.
"""

import ast
import builtins

from ..problem import Problem
from .rename import rename
from .shake import FUNCTIONS, Bare, Needs, Reach, bound_names, imported_names, says_kernel

TOLD = "DoesNotHold"  # the one exception whose texts stay
PURE_CALLS = {"type", "len", "str", "repr", "sorted", "getattr", "max", "min", "list", "tuple", "set", "sum"}
UNREAD = "from __future__ import annotations"  # those of kernels mention what nobody imports
IMPURE = (ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr, ast.Subscript)


def minify(readable):
    """[(name or None, source)] of the statements of the minified program, in order; `name` is what it was called before.

    What is needed is what its statements that bind no name need. Problem where python_minifier is not installed.
    """
    try:
        from python_minifier import RemoveAnnotationsOptions, unparse
        from python_minifier import minify as compact
    except ImportError as error:
        raise Problem("packing needs python-minifier to shorten the program: pip install python-minifier") from error
    tree, before = ast.parse(readable), ""
    while (text := ast.unparse(tree)) != before:  # what is gone may have been the last to need something else
        tree, before = shortened(tree if not before else ast.parse(text)), text
    keep = RemoveAnnotationsOptions(
        remove_variable_annotations=False,
        remove_return_annotations=False,
        remove_argument_annotations=False,
        remove_class_attribute_annotations=False,
    )
    text = compact(before, remove_annotations=keep, hoist_literals=False, rename_locals=False)
    tree = ast.parse(text)
    names = [next(iter(bound_names(statement)), None) for statement in tree.body]
    rename(tree)
    parts = [(name, unparse(ast.Module([statement], []))) for name, statement in zip(names, tree.body, strict=True)]
    return [(None, UNREAD), *parts] if says_kernel(tree) else parts


def shortened(tree):
    """The tree without docstrings, annotations, texts of exceptions, checks of a recipe, and what only those used."""
    exceptions = {name for name, thing in vars_of_builtins() if isinstance(thing, type) and issubclass(thing, BaseException)}
    exceptions |= {node.name for node in tree.body if isinstance(node, ast.ClassDef) and is_exception(node, exceptions)}
    tree = ast.fix_missing_locations(Strip(exceptions - {TOLD}).visit(tree))
    external = {local: (module, name, local) for module, name, local in imported_names(tree).values()}
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    acts = [node for node in tree.body if not bound_names(node) and node not in imports]
    needs = Needs(*acts)
    reach = Reach(tree.body, external, needs.names, needs.attributes)
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef):
            statement.body = [member for member in statement.body if id(member) in reach.live] or [ast.Pass()]
    tree.body = [*imports, *(node for node in tree.body if id(node) in reach.live), *acts]
    collapse(tree)
    drop_imports(tree)
    share_decorators(tree)
    return ast.fix_missing_locations(tree)


def vars_of_builtins():
    """(name, thing) of Python's builtins."""
    return [(name, getattr(builtins, name)) for name in dir(builtins)]


def is_exception(node, exceptions):
    """Whether a class derives from one that is known as an exception."""
    return any(isinstance(base, ast.Name) and base.id in exceptions for base in node.bases)


class Strip(Bare):
    """Takes out what a program does not need to run. `exceptions`: names of exception classes."""

    def __init__(self, exceptions):
        self.exceptions = exceptions

    def generic_visit(self, node):
        super().generic_visit(node)
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list):
                block = [one for one in block if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]
                setattr(node, field, block or ([ast.Pass()] if field == "body" and not isinstance(node, ast.Module) else []))
        return node

    def visit_ImportFrom(self, node):
        return None if node.module == "__future__" else node

    def visit_Raise(self, node):
        self.generic_visit(node)
        node.cause = None
        return node

    def visit_Call(self, node):
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id in self.exceptions and any(map(is_text, node.args)):
            node.args = [ast.Constant(node.lineno)]
        if isinstance(node.func, ast.Name) and node.func.id == "zip":
            node.keywords = [one for one in node.keywords if one.arg != "strict"]  # a check of what the package holds
        return node

    def visit_ClassDef(self, node):
        fields = any(is_dataclass(decorator) for decorator in node.decorator_list)
        node.body = [one for one in node.body if not (isinstance(one, FUNCTIONS) and is_idle(one))]
        body = []
        for one in node.body:
            if fields and isinstance(one, ast.AnnAssign):
                one.annotation = ast.Constant(0)
                body.append(one)
            else:
                stripped = self.visit(one)
                body += [] if stripped is None else [stripped]
        node.body = [one for one in body if not isinstance(one, ast.Expr)] or [ast.Pass()]
        return node

    def visit_FunctionDef(self, node):
        super().visit_FunctionDef(node)
        while True:
            loaded = {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and not isinstance(one.ctx, ast.Store)}
            kept = {name for one in ast.walk(node) if isinstance(one, ast.Nonlocal) for name in one.names}
            kept |= {
                one.target.id
                for one in ast.walk(node)
                if isinstance(one, ast.AugAssign) and isinstance(one.target, ast.Name)
            }
            before = ast.dump(node)
            Unused(loaded | kept).visit(node)
            if ast.dump(node) == before:
                return node


def is_dataclass(decorator):
    """Whether it is `dataclass`, `dataclass(...)`, or the name that `share_decorators` gave it."""
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(called, ast.Name) and called.id.startswith("dataclass")


def is_text(node):
    """Whether an expression is a text, or put together from one."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Attribute) and is_text(node.func.value)
    if isinstance(node, (ast.BinOp, ast.IfExp)):
        return is_text(node.left if isinstance(node, ast.BinOp) else node.body)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def is_idle(function):
    """Whether a method is abstract, or a `__post_init__` that only refuses values: those of a recipe are fixed by now."""
    body = [one for one in function.body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]
    if function.name == "__post_init__":
        written = [one for one in ast.walk(function) if isinstance(one, (ast.Attribute, ast.Subscript))]
        return not any(isinstance(one.ctx, ast.Store) or getattr(one, "attr", "") == "__setattr__" for one in written)
    return len(body) == 1 and isinstance(body[0], ast.Raise) and "NotImplementedError" in ast.unparse(body[0])


class Unused(ast.NodeTransformer):
    """Takes local names out of a function that nothing loads, where what is stored in them has no effect of its own."""

    def __init__(self, loaded):
        self.loaded = loaded

    def visit_ExceptHandler(self, node):
        self.generic_visit(node)
        node.name = node.name if node.name in self.loaded else None
        return node

    def visit_NamedExpr(self, node):
        self.generic_visit(node)
        return node if node.target.id in self.loaded else node.value

    def visit_Assign(self, node):
        self.generic_visit(node)
        target = node.targets[0]
        unused = len(node.targets) == 1 and isinstance(target, ast.Name) and target.id not in self.loaded
        return ast.copy_location(ast.Pass(), node) if unused and is_pure(node.value) else node


def is_pure(value):
    """Whether an expression has no effect: constants, names, attributes, texts, and harmless calls of those."""
    for node in ast.walk(value):
        if isinstance(node, IMPURE):
            return False
        if isinstance(node, ast.Call):
            joins = isinstance(node.func, ast.Attribute) and node.func.attr == "join"
            if not joins and not (isinstance(node.func, ast.Name) and node.func.id in PURE_CALLS):
                return False
    return True


def collapse(tree):
    """Takes out classes without anything in them that are only derived from: their children derive from their bases."""
    while True:
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        uses = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
        as_base = [base.id for node in classes for base in node.bases if isinstance(base, ast.Name)]
        for node in classes:
            empty = all(isinstance(member, ast.Pass) for member in node.body) and not node.keywords
            if empty and all(map(is_dataclass, node.decorator_list)) and uses.count(node.name) == as_base.count(node.name):
                break
        else:
            return
        tree.body.remove(node)
        for child in classes:
            pairs = [(base, isinstance(base, ast.Name) and base.id == node.name) for base in child.bases]
            child.bases = [one for base, gone in pairs for one in (node.bases if gone else [base])]


def drop_imports(tree):
    """Takes out imported names that nothing loads; `import a.b.c` for its effect stays."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for node in [one for one in tree.body if isinstance(one, (ast.Import, ast.ImportFrom))]:
        effect = {alias for alias in node.names if isinstance(node, ast.Import) and "." in alias.name and not alias.asname}
        node.names = [alias for alias in node.names if alias in effect or (alias.asname or alias.name) in used]
        if not node.names:
            tree.body.remove(node)


def share_decorators(tree):
    """Gives `@dataclass(...)` a name of its own where it stands more than once."""
    by_text = {}
    for node in tree.body:
        for place, decorator in enumerate(getattr(node, "decorator_list", ())):
            if isinstance(decorator, ast.Call) and is_dataclass(decorator):
                by_text.setdefault(ast.unparse(decorator), []).append((node, place))
    for number, (text, places) in enumerate(sorted(by_text.items())):
        if len(places) > 1:
            name = f"dataclass_{number}"
            at = min(tree.body.index(node) for node, _ in places)
            for node, place in places:
                node.decorator_list[place] = ast.Name(name, ast.Load())
            tree.body.insert(at, ast.parse(f"{name} = {text}").body[0])
