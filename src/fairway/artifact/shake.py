"""Which definitions a program needs, and their sources put into one file.

What is followed: global names that reached code loads; methods and class attributes of reached classes only where reached
code reads an attribute of that name, where Python calls them (dunders), or where they override what a class from outside
has (`forward` of a torch module, `run` of a thread). This is safe because of the house's habits: top-level names are
unique in the package, internal imports are `from .module import Name`, nothing happens at import.
"""

import ast
import importlib
import symtable
from collections import defaultdict
from pathlib import PurePosixPath

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
KERNELS_SAY = "tl"  # triton.language, which kernels/launch.py puts into scope: what is read off it belongs to Triton
READ_BY_NAME = {"getattr", "hasattr", "setattr", "delattr", "attrgetter", "methodcaller"}


class Bare(ast.NodeTransformer):
    """Without annotations, which nothing runs; those of decorated functions stay, since decorators may read them, and
    those by which a kernel's parameters are constants."""

    def visit_AnnAssign(self, node):
        self.generic_visit(node)
        return ast.copy_location(ast.Assign([node.target], node.value), node) if node.value else None

    def visit_FunctionDef(self, node):
        self.generic_visit(node)
        if not node.decorator_list:
            node.returns = None
            for argument in ast.walk(node.args):
                if isinstance(argument, ast.arg) and not (argument.annotation and says_kernel(argument.annotation)):
                    argument.annotation = None
        return node


def says_kernel(tree):
    """Whether a piece of code is a kernel or part of one: it mentions triton.language by the name that it has there."""
    return any(isinstance(node, ast.Name) and node.id == KERNELS_SAY for node in ast.walk(tree))


class Needs:
    """What a piece of code loads: `names`, global or at a class's level, and `attributes` that it reads.

    Attributes may be read by a string; strings count where the piece calls getattr or its like.
    """

    def __init__(self, *nodes):
        self.names, self.attributes = set(), set()
        copies = [Bare().visit(ast.parse(ast.unparse(node))) for node in nodes]
        for copy in copies:
            self._loads(symtable.symtable(ast.unparse(copy), "piece", "exec"))
        strings = set()
        for node in (node for copy in copies for node in ast.walk(copy)):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                self.attributes.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.add(node.value)
        if self.names & READ_BY_NAME or self.attributes & READ_BY_NAME:
            self.attributes |= strings

    def _loads(self, table):
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (symbol.is_global() or table.get_type() != "function"):
                self.names.add(symbol.get_name())
        for inner in table.get_children():
            self._loads(inner)


def bound_names(statement):
    """Names that a top-level or class-level statement binds."""
    if isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
        return [statement.name]
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        return [node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return []


def registers_with(statement):
    """Names of the things with which a function registers itself by a decorator that is one of their methods: it is needed
    where they are, though nobody calls it."""
    decorators = statement.decorator_list if isinstance(statement, FUNCTIONS) else []
    return [one.value.id for one in decorators if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name)]


def imported_names(tree):
    """Local name -> (module, name or None, local name) of the external imports at a module's head."""
    found = {}
    for node in tree.body:
        for alias in node.names if isinstance(node, ast.Import) else ():
            local = alias.asname or alias.name.split(".")[0]
            found[alias.asname or alias.name] = (alias.name, None, local)
        for alias in node.names if isinstance(node, ast.ImportFrom) and not node.level else ():
            found[alias.asname or alias.name] = (node.module, alias.name, alias.asname or alias.name)
    return found


class Reach:
    """What can be reached among top-level statements from `roots` (global names) and reads of `attributes`.

    `live`: statements and class members, by id; `names` and `attributes`: what they load; `external`: {local name: (module,
    name, local name)}.
    """

    def __init__(self, statements, external, roots, attributes=()):
        self.of_name = {name: statement for statement in statements for name in bound_names(statement)}
        self.registered = [(owner, one) for one in statements for owner in registers_with(one)]
        self.external, self.names, self.attributes, self.live = external, set(roots), set(attributes), set()
        self.foreign = {}
        waiting = True
        while waiting:
            waiting = self._next()
            for piece, needs in waiting:
                self.live.add(id(piece))
                self.names |= needs.names
                self.attributes |= needs.attributes

    def _next(self):
        found = []
        for name in sorted(self.names & self.of_name.keys()):
            statement = self.of_name[name]
            if isinstance(statement, ast.ClassDef):
                found += [(member, Needs(member)) for member in statement.body if self._newly_needed(statement, member)]
                if id(statement) not in self.live:
                    found.append((statement, header_needs(statement)))
            elif id(statement) not in self.live:
                found.append((statement, Needs(statement)))
        for owner, statement in self.registered:
            if owner in self.names & self.of_name.keys() and id(statement) not in self.live:
                found.append((statement, Needs(statement)))
        return found

    def _newly_needed(self, owner, member):
        if id(member) in self.live:
            return False
        if isinstance(member, FUNCTIONS) or (isinstance(member, ast.Assign) and bound_names(member)):
            names = set(bound_names(member))
            dunder = any(name.startswith("__") and name.endswith("__") for name in names)
            return dunder or bool(names & self.attributes) or any(self.overrides(owner, name) for name in names)
        return True

    def overrides(self, owner, name):
        """Whether a base from outside the program has an attribute of this name."""
        for base in owner.bases:
            own = self.of_name.get(base.id) if isinstance(base, ast.Name) else None
            if self.overrides(own, name) if own else hasattr(self._resolved(base), name):
                return True
        return False

    def _resolved(self, base):
        words = ast.unparse(base).split(".")
        if words[0] not in self.external:
            return object
        if words[0] not in self.foreign:
            module, name, _ = self.external[words[0]]
            thing = importlib.import_module(module if name else words[0])
            self.foreign[words[0]] = getattr(thing, name) if name else thing
        thing = self.foreign[words[0]]
        for word in words[1:]:
            thing = getattr(thing, word)
        return thing


def header_needs(statement):
    """What a class statement itself loads: bases, keywords and decorators."""
    keywords = [keyword.value for keyword in statement.keywords]
    return Needs(*statement.bases, *keywords, *statement.decorator_list)


def in_order(trees):
    """Module paths so that each comes after all that it imports, as Python would run them."""
    found = []

    def visit(path):
        if path in found or path not in trees:
            return
        for node in trees[path].body:
            if isinstance(node, ast.ImportFrom) and node.level:
                folder = PurePosixPath(path).parents[node.level - 1]
                visit(f"{folder}/{node.module.replace('.', '/')}.py" if node.module else f"{folder}/__init__.py")
        found.append(path)

    for path in sorted(trees):
        visit(path)
    return found


def import_lines(external):
    """Import statements of (module, name, local name) triples, one line a module."""
    plain, by_module = set(), defaultdict(set)
    for module, name, local in external:
        if name:
            by_module[module].add(name if local == name else f"{name} as {local}")
        else:
            plain.add(f"import {module}" + ("" if local == module.split(".")[0] else f" as {local}"))
    return [
        *sorted(plain),
        *(f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(by_module.items())),
    ]


def shake(sources, roots):
    """(source, owners): what can be reached from `roots` as one source file, one section a module, comments and docstrings
    kept, and {top-level name: module path}. sources: {path in the package: source bytes}."""
    trees = {path: ast.parse(source) for path, source in sources.items()}
    imports = {path: imported_names(tree) for path, tree in trees.items()}
    external = {local: (module, name, local) for table in imports.values() for module, name, local in table.values()}
    reach = Reach([statement for tree in trees.values() for statement in tree.body], external, roots)
    refuse_twins(trees, reach)
    sections, owners, needed = [], {}, set()
    for path in in_order(trees):
        live = [statement for statement in trees[path].body if id(statement) in reach.live]
        if not live:
            continue
        lines = sources[path].decode().splitlines()
        owners |= {name: path for statement in live for name in bound_names(statement)}
        # `import a.b.c` also stands for what it does to `a`: it goes with any code of its module.
        needed |= {one for one in imports[path].values() if one[2] in reach.names or (not one[1] and "." in one[0])}
        head = ast.get_docstring(trees[path], clean=False)
        legend = [] if head is None else [segment(lines, trees[path].body[0])]
        sections.append(
            "\n\n\n".join([f"# {path}", *legend, *(cut_down(lines, statement, reach.live) for statement in live)])
        )
    return "\n\n\n".join(["\n".join(import_lines(needed)), *sections]) + "\n", owners


def refuse_twins(trees, reach):
    """ValueError where a name that is needed stands for two things: in one file the later one would win."""
    places = defaultdict(list)
    for path, tree in trees.items():
        for name in [name for statement in tree.body for name in bound_names(statement)]:
            places[name].append(path)
    for name in sorted(reach.names & places.keys()):
        if len(places[name]) > 1:
            raise ValueError(f"{name} is defined in {' and in '.join(places[name])}; give one of them another name")


def span(lines, node):
    """First and last line (from 0, last excluded) of a statement with its decorators and the comments right above it."""
    first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))]) - 1
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return first, node.end_lineno


def segment(lines, node):
    """The lines of a statement."""
    first, end = span(lines, node)
    return "\n".join(lines[first:end])


def cut_down(lines, statement, live):
    """The source of a statement; of a class without the members that are not live."""
    if not isinstance(statement, ast.ClassDef):
        return segment(lines, statement)
    dead = [member for member in statement.body if id(member) not in live]
    gone = {line for member in dead for line in range(*span(lines, member))}
    first, end = span(lines, statement)
    text = "\n".join(lines[line] for line in range(first, end) if line not in gone).rstrip()
    if len(dead) == len(statement.body):
        text += "\n    pass"
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text
