"""Short names for what a program calls its own.

Kinds of names: globals (g), attributes (a), locals of a top-level function or method with all that is nested in it (l).
Locals are a, b, ... in the order in which a function brings them up, so that functions look alike and compress; globals
that it does not load, and attributes, may share the letter. A parameter or field that is somewhere given by keyword (k)
has one short name everywhere, as local, attribute and keyword.

Left alone is all that Python, a library or a string may mean: attributes that any class of an imported module or any builtin
has, names in strings (getattr, registered parameters, options), keywords of foreign calls, dunders.
"""

import ast
import builtins
import importlib
import itertools
import keyword
import re
import string
from collections import Counter, defaultdict

from .shake import FUNCTIONS, KERNELS_SAY, Needs, bound_names, imported_names, says_kernel

PASSES_ON = {"partial", "replace"}  # calls of these give their keywords to what is ours
NAMES_FIELDS = {"asdict", "astuple", "fields", "vars"}
MORE_MODULES = {"torch": ("torch._C", "torch.return_types")}


def rename(tree):
    """Renames in place. The tree: a whole program, whose top-level names are unique."""
    names = Names(tree)
    short = chosen(names)
    Renamer(names, short, {id(node): local_names(node, names, short) for node, _ in units(tree)}).visit(tree)


def letters(capitals=False):
    """a, b, ... or, for globals, A, B, ...; then two characters. Without Python's words."""
    first = (string.ascii_uppercase + string.ascii_lowercase if capitals else string.ascii_letters) + "_"
    for word in itertools.chain(first, map("".join, itertools.product(first, first + string.digits))):
        if not keyword.iskeyword(word):
            yield word


def units(tree):
    """(node, names bound in it) of each top-level function, method and statement: within one, an identifier is one thing."""
    found = []
    for statement in tree.body:
        if isinstance(statement, FUNCTIONS):
            found.append((statement, inner_names(statement)))
        elif isinstance(statement, ast.ClassDef):
            header = [*statement.bases, *statement.keywords, *statement.decorator_list]
            found += [(node, inner_names(node)) for node in [*header, *statement.body]]
        else:
            found.append((statement, inner_names(statement)))
    return found


def inner_names(unit):
    """Identifiers that are bound inside a unit; of a statement, in its comprehensions and lambdas."""
    found = set()
    for node in ast.walk(unit):
        if isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.comprehension):
            found |= {one.id for one in ast.walk(node.target) if isinstance(one, ast.Name)}
        elif not isinstance(unit, FUNCTIONS):
            continue
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.ExceptHandler)) and node is not unit and node.name:
            found.add(node.name)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).split(".")[0])
    return found


class Names:
    """What a program's identifiers are: `count` {(kind, identifier): occurrences}, `clashes` [sets whose elements
    need different names] and `fixed` {kind: identifiers that stay}."""

    def __init__(self, tree):
        self.external = imported_names(tree)
        self.bound = {id(node): names for node, names in units(tree)}
        self.own = {name for statement in tree.body for name in bound_names(statement)}
        self.globals = self.own | {local for _, _, local in self.external.values()}
        self.classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        self.strings, self.chained = set(), set()
        self._read_strings(tree)
        self.fields = {one.target.id for node in self.classes for one in node.body if isinstance(one, ast.AnnAssign)}
        self.parameters = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        self.attributes = {name for node in self.classes for one in node.body for name in bound_names(one)}
        self.attributes |= {
            one.attr for one in ast.walk(tree) if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store)
        }
        self.foreign = foreign_attributes(tree, self.external)
        kernels = [one for one in tree.body if isinstance(one, FUNCTIONS) and says_kernel(one)]
        self.foreign |= {node.attr for one in kernels for node in ast.walk(one) if isinstance(node, ast.Attribute)}
        self._read_keywords(tree)
        self._fix(tree)
        self.count, self.clashes, self.used = Counter(), [], {}
        self._relate(tree)

    def _read_strings(self, tree):
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w.\-]+", node.value):
                self.strings |= set(node.value.lstrip("-").replace("-", "_").split("."))

    def _read_keywords(self, tree):
        """`given`: parameters and fields of ours that a call may give by keyword; `not_ours`: keywords that others take."""
        ours, others, unpacked = set(), set(), False
        # What a call of these is given may end as strings in a dictionary.
        catching = {node.name for node in ast.walk(tree) if isinstance(node, FUNCTIONS) and node.args.kwarg}
        catching |= {node.name for node in self.classes for one in node.body if one_of(one, "__init__") and one.args.kwarg}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                whose = self._whose(node.func)
                keywords = {one.arg for one in node.keywords}
                unpacked |= None in keywords and whose != "others"
                ours |= keywords if whose != "others" else set()
                name = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
                others |= keywords if whose != "ours" or name in catching else set()
                if isinstance(node.func, ast.Name) and node.func.id == "dict":
                    self.strings |= keywords - {None}
        self.given = ours & (self.parameters | self.fields)
        self.not_ours = others | (self.strings if unpacked else set())

    def _whose(self, called):
        if isinstance(called, ast.Name):
            foreign = called.id in self.external or (hasattr(builtins, called.id) and called.id not in self.globals)
            return "others" if foreign and called.id not in PASSES_ON else "ours"
        if not isinstance(called, ast.Attribute):
            return "ours"
        root = called
        while isinstance(root, ast.Attribute):
            root = root.value
        if isinstance(root, ast.Name) and (root.id in self.external or root.id == KERNELS_SAY):
            return "others"
        if called.attr not in self.attributes:
            return "others"
        return "either" if called.attr in self.foreign or called.attr.startswith("__") else "ours"

    def _fix(self, tree):
        dunder = {name for name in self.attributes if name.startswith("__")}
        attributes = self.strings | self.foreign | dunder
        if any(isinstance(node, ast.Name) and node.id in NAMES_FIELDS for node in ast.walk(tree)):
            attributes |= self.fields
        for node in self.classes:
            loads = {name for one in node.body if not isinstance(one, FUNCTIONS) for name in Needs(one).names}
            loads |= {name for one in node.body if isinstance(one, FUNCTIONS) for part in one.decorator_list
                      for name in Needs(part).names}  # fmt: skip
            attributes |= loads & {name for one in node.body for name in bound_names(one)}
        # What is both bound in a unit and loaded as a global there keeps its name as either.
        mixed = set()
        for statement in tree.body:
            pieces = statement.body if isinstance(statement, ast.ClassDef) else [statement]
            for piece in pieces:
                mixed |= self.bound[id(piece)] & Needs(piece).names if id(piece) in self.bound else set()
        dotted = {local for module, name, local in self.external.values() if not name and "." in module}
        dotted -= {local for module, name, local in self.external.values() if name or "." not in module}
        stays = self.given & (self.not_ours | mixed | (self.fields & attributes))
        self.given -= stays
        self.fixed = {"a": attributes | (stays & self.fields), "l": stays | mixed, "g": mixed | dotted}

    def key(self, kind, name):
        """The node that a name of a kind is, or None if it stays."""
        if kind in "al" and name in self.given and (kind == "l" or name in self.fields):
            return "k", name
        if name in self.fixed[kind]:
            return None
        if (kind == "g" and name not in self.globals) or (kind == "a" and name not in self.attributes):
            return None
        return kind, name

    def _relate(self, tree):
        everywhere, attributes = set(), set()
        for node, names in units(tree):
            used = {self.key("l", name) or name for name in names}
            for one in ast.walk(node):
                if isinstance(one, (ast.Name, ast.arg)):
                    name = one.id if isinstance(one, ast.Name) else one.arg
                    key = self.key("l" if name in names else "g", name)
                    self.count[key or name] += 1
                    used.add(key or name)
                elif isinstance(one, ast.Attribute):
                    key = self.key("a", one.attr)
                    self.count[key or one.attr] += 1
                    attributes.add(key or one.attr)
                elif isinstance(one, ast.keyword) and one.arg in self.given:
                    self.count["k", one.arg] += 1
            self.used[id(node)] = used
            self.clashes.append({key for key in used if key[0] != "l" or isinstance(key, str)})
            everywhere |= self.clashes[-1]
        # In a class's body its own names stand before globals, also for decorators and default values.
        for node in self.classes:
            outer = [part for one in node.body for part in (
                [*one.decorator_list, *one.args.defaults, *filter(None, one.args.kw_defaults)]
                if isinstance(one, FUNCTIONS) else [one])]  # fmt: skip
            loaded = {one.id for part in outer for one in ast.walk(part) if isinstance(one, ast.Name)}
            members = {name for one in node.body for name in bound_names(one)}
            self.clashes.append({self.key("g", name) or name for name in loaded - members}
                                | {self.key("a", name) or name for name in members})  # fmt: skip
        for name in self.attributes:
            attributes.add(self.key("a", name) or name)
            self.count[self.key("a", name) or name] += 1
        attributes |= {("k", name) for name in self.given} | self.strings
        everywhere |= {self.key("g", name) or name for name in self.globals}
        self.clashes += [everywhere, attributes]


def one_of(node, name):
    """Whether a class's member is its method of this name."""
    return isinstance(node, FUNCTIONS) and node.name == name


def foreign_attributes(tree, external):
    """Attribute names of everything that the program's imports and dotted names stand for, and of Python's own types."""
    found, things = set(), [getattr(builtins, name) for name in dir(builtins)]
    for module, _, _ in external.values():
        things.append(importlib.import_module(module))
        things += [importlib.import_module(more) for more in MORE_MODULES.get(module.split(".")[0], ())]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            words = ast.unparse(node).split(".")
            if words[0] in external:
                found |= set(words[1:])
                things += resolved(external[words[0]], words[1:])
    seen = set()
    for thing in things:
        if issubclass(type(thing), type(ast)):
            inside = [one for name, one in sorted(vars_of(thing).items()) if issubclass(type(one), type)]
            # Its submodules depend on what has been imported so far; those that the program uses stand in a dotted name.
            found |= {name for name, one in vars_of(thing).items() if not issubclass(type(one), type(ast))}
        else:
            inside = [thing]
        for one in inside:
            if id(one) not in seen:
                seen.add(id(one))
                found |= set(dir(one)) | stored_names(one)
    return found


def vars_of(module):
    """{name: thing} of a module, without asking for what it would only then import."""
    return {name: module.__dict__.get(name) for name in dir(module)}


def stored_names(thing):
    """What a class's `__init__` mentions: attributes that only its instances have."""
    code = getattr(getattr(thing, "__init__", None), "__code__", None)
    return (set(code.co_names) if code else set()) | set(getattr(thing, "__annotations__", ()) or ())


def resolved(imported, words):
    """The objects along a dotted name, as far as it leads."""
    module, name, _ = imported
    thing = importlib.import_module(module if name else module.split(".")[0])
    found = []
    for word in ([name] if name else []) + words:
        thing = getattr(thing, word, None)
        if thing is None:
            break
        found.append(thing)
    return found


def chosen(names):
    """{(kind, identifier): short name} of globals, attributes and what is given by keyword: the most frequent first, each
    the first that no clash forbids."""
    neighbours = defaultdict(set)
    for clash in names.clashes:
        for key in clash:
            if isinstance(key, tuple):
                neighbours[key] |= clash
    found = {}
    for key in sorted(
        (key for key in names.count if isinstance(key, tuple) and key[0] != "l"), key=lambda key: (-names.count[key], key)
    ):
        taken = {found.get(other) if isinstance(other, tuple) else other for other in neighbours[key]}
        taken |= {"g": set(dir(builtins)), "a": names.foreign, "k": names.foreign}[key[0]]
        found[key] = next(word for word in letters(capitals=key[0] == "g") if word not in taken)
    return found


def local_names(unit, names, short):
    """{identifier: short name} of a unit's own locals, a, b, ... as they come up, around what else is used there."""
    used = names.used[id(unit)]
    taken = {key if isinstance(key, str) else short.get(key) for key in used}
    places = {}
    for node in ast.walk(unit):
        name = (
            getattr(node, "id", None)
            or getattr(node, "arg", None)
            or getattr(node, "asname", None)
            or getattr(node, "name", "")
        )
        if isinstance(name, str) and ("l", name) in used and not isinstance(node, ast.keyword):
            places[name] = min(places.get(name, (node.lineno, node.col_offset)), (node.lineno, node.col_offset))
    free = (word for word in letters() if word not in taken)
    return {name: next(free) for name in sorted(places, key=places.get)}


class Renamer(ast.NodeTransformer):
    """Puts the short names in."""

    def __init__(self, names, short, of_units):
        self.names, self.short, self.of_units = names, short, of_units
        self.bound, self.local, self.level = set(), {}, "g"

    def _short(self, kind, name):
        key = self.names.key(kind, name)
        return self.local.get(name, name) if key == ("l", name) else self.short.get(key, name)

    def visit(self, node):
        if id(node) in self.names.bound:
            outer = self.bound, self.local
            self.bound, self.local = self.names.bound[id(node)], self.of_units[id(node)]
            node = super().visit(node)
            self.bound, self.local = outer
            return node
        return super().visit(node)

    def visit_ClassDef(self, node):
        node.name, self.level = self._short("g", node.name), "a"
        node.bases, node.decorator_list = (
            [self.visit(one) for one in node.bases],
            [self.visit(one) for one in node.decorator_list],
        )
        node.body, self.level = [self.visit(one) for one in node.body], "g"
        return node

    def _named(self, name):
        return self._short("l" if name in self.bound else self.level, name)

    def visit_FunctionDef(self, node):
        # The name of a whole unit is outside of it, whatever it calls its locals.
        outer = self.level if id(node) in self.names.bound else "l"
        node.name, level, self.level = self._short(outer, node.name), self.level, "g"
        self.generic_visit(node)
        self.level = level
        return node

    def visit_Name(self, node):
        stored = self.level if isinstance(node.ctx, ast.Store) else "g"
        node.id = self._short("l" if node.id in self.bound else stored, node.id)
        return node

    def visit_arg(self, node):
        node.arg = self._short("l", node.arg)
        return self.generic_visit(node)

    def visit_keyword(self, node):
        if node.arg in self.names.given:
            node.arg = self.short["k", node.arg]
        return self.generic_visit(node)

    def visit_Attribute(self, node):
        node.attr = self._short("a", node.attr)
        return self.generic_visit(node)

    def visit_ExceptHandler(self, node):
        node.name = node.name and self._short("l", node.name)
        return self.generic_visit(node)

    def visit_Nonlocal(self, node):
        node.names = [self._short("l", name) for name in node.names]
        return node

    def visit_alias(self, node):
        local = node.asname or node.name
        if "." not in local:
            short = self._named(local)
            node.asname = None if short == node.name else short
        return node
