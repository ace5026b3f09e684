"""Frozen configuration nodes: a recipe is a tree of them, its `repr` is its serial form.

A technique is a node in a tuple at a named site; the node is the public face, `build` makes the private module.
"""

import ast
import dataclasses
import difflib
import hashlib
import pprint
import sys
import types
import typing
from dataclasses import dataclass

from .problem import Problem


@dataclass(frozen=True)
class Node:
    """Base of every configuration node. Subclasses are frozen dataclasses whose fields are plain values,
    nodes, or tuples of either."""

    def build(self, context):
        """Makes the object that this node describes."""
        raise NotImplementedError(f"{type(self).__name__} has nothing to build")


def children(node):
    """Yields (path step, child node, field name, index or None) of a node's direct children.

    An element of a tuple is called by its class name, or by class name and position if two share it.
    """
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if isinstance(value, Node):
            yield field.name, value, field.name, None
        elif isinstance(value, tuple):
            names = [type(item).__name__ for item in value]
            for index, item in enumerate(value):
                if isinstance(item, Node):
                    step = names[index] if names.count(names[index]) == 1 else f"{names[index]}:{index}"
                    yield f"{field.name}.{step}", item, field.name, index


def walk(node, path=""):
    """Yields (path, node) for the node and everything below it, parents first, in field order."""
    yield path, node
    for step, child, _, _ in children(node):
        yield from walk(child, f"{path}.{step}" if path else step)


def transform(node, change):
    """Rebuilds a tree bottom-up: `change(child)` returns the child's successor, or None to leave it out of its tuple."""
    fields = {}
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if isinstance(value, Node):
            successor = change(transform(value, change))
            if successor is None:
                raise Problem(
                    f"{type(value).__name__} stands alone at {type(node).__name__}.{field.name}: replace it, do not drop it"
                )
            fields[field.name] = successor
        elif isinstance(value, tuple):
            items = [change(transform(item, change)) if isinstance(item, Node) else item for item in value]
            # A tuple of plain values may hold None; only nodes can be left out.
            fields[field.name] = tuple(
                item for item, old in zip(items, value, strict=True) if not (item is None and isinstance(old, Node))
            )
    return dataclasses.replace(node, **fields) if fields else node


def _each(tree, kind, change):
    count = 0

    def visit(node):
        nonlocal count
        if not isinstance(node, kind):
            return node
        count += 1
        return change(node)

    result = transform(tree, visit)
    if not count:
        raise Problem(f"no {kind.__name__} in this {type(tree).__name__}; `fairway recipes NAME` shows what it holds")
    return result


def amend(tree, kind, **fields):
    """Every node of type `kind` with some fields changed."""
    return _each(tree, kind, lambda node: dataclasses.replace(node, **fields))


def swap(tree, kind, node):
    """Every node of type `kind` replaced by `node`."""
    return _each(tree, kind, lambda _: node)


def drop(tree, kind):
    """The tree without any node of type `kind` (the nodes must stand in tuples)."""
    return _each(tree, kind, lambda _: None)


def show(node):
    """The serial form, one field a line where it is long: evaluates back to an equal tree."""
    return pprint.pformat(node, indent=1, width=110, compact=False, sort_dicts=False) + "\n"


def differences(old, new):
    """{path: (what stands there in `old`, in `new`)}, where two trees differ: fields by value, nodes of other types whole,
    and None for a node that only one of them has in a tuple."""
    if type(old) is not type(new):
        return {"": (old, new)}
    found = {}
    for field in dataclasses.fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before == after:
            continue
        left, right = ({step: child for step, child, name, _ in children(tree) if name == field.name} for tree in (old, new))
        if not left and not right:
            found[field.name] = before, after
        for step in {**left, **right}:
            inner = differences(left.get(step), right.get(step)) if left.get(step) != right.get(step) else {}
            found |= {f"{step}.{path}" if path else step: pair for path, pair in inner.items()}
        if left.keys() == right.keys() and left == right:
            found[field.name] = before, after  # the order of a tuple, or plain values beside nodes
    return found


def digest(node):
    """The first 16 hex digits of the SHA-256 of the node's repr."""
    return hashlib.sha256(repr(node).encode()).hexdigest()[:16]


def node_kinds(kind=Node):
    """Name -> class of every node type that has been imported."""
    # A site (sites.py) is a class without fields of its own, no dataclass: nothing to write into a recipe.
    kinds = {kind.__name__: kind} if "__dataclass_params__" in kind.__dict__ else {}
    for child in kind.__subclasses__():
        # dataclasses with slots would leave twins here; ours have none.
        kinds |= node_kinds(child)
    return kinds


def parse_node(text, kinds=None):
    """The tree that `repr` or `show` wrote. Reads calls of node types and literals only: nothing is executed.

    Raises Problem for anything else, an unknown type or field, or a value of the wrong type.
    """
    kinds = node_kinds() if kinds is None else kinds
    try:
        # Python 3.11 gives up on deep nesting when it parses, 3.12 when the tree is walked.
        return _read(ast.parse(text.strip(), mode="eval").body, kinds)
    except SyntaxError as error:
        raise Problem(f"not a recipe: line {error.lineno}: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise Problem(f"not a recipe: {error}") from error


def _read(tree, kinds):
    if isinstance(tree, ast.Tuple):
        return tuple(_read(item, kinds) for item in tree.elts)
    if not isinstance(tree, ast.Call):
        try:
            return ast.literal_eval(tree)
        except (ValueError, TypeError) as error:
            raise Problem(f"not a node or a plain value: {ast.unparse(tree)[:80]}") from error
    name = tree.func.id if isinstance(tree.func, ast.Name) else ast.unparse(tree.func)
    if name not in kinds:
        raise Problem(f"unknown node {name}{_nearest(name, kinds)}")
    kind = kinds[name]
    types_by_field = typing.get_type_hints(kind)
    if tree.args:
        raise Problem(f"{name} takes fields by name, as in {name}({next(iter(types_by_field), 'field')}=...)")
    values = {}
    for keyword in tree.keywords:
        if keyword.arg not in types_by_field:
            raise Problem(f"{name} has no field {keyword.arg}{_nearest(keyword.arg, types_by_field)}")
        if keyword.arg in values:
            raise Problem(f"{name} names {keyword.arg} twice; leave one out")
        values[keyword.arg] = _read(keyword.value, kinds)
        # As it was written, also an int in a float's place: the digest of what is read is that of what was shown.
        checked(values[keyword.arg], types_by_field[keyword.arg], f"{name}.{keyword.arg}")
    try:
        return kind(**values)
    except TypeError as error:
        raise Problem(f"{name}: {error}") from error


def checked(value, kind, where):
    """`value` if it fits the annotation `kind` (an int becomes a float where a float is asked for), else Problem."""
    if _fits(value, kind):
        return float(value) if kind is float else value
    wanted = getattr(kind, "__name__", str(kind)) if not typing.get_args(kind) else str(kind).replace("typing.", "")
    hint = "; write it as (X(...),)" if typing.get_origin(kind) is tuple and isinstance(value, Node) else ""
    raise Problem(f"{where} takes {wanted}, not {value!r}{hint}")


def _fits(value, kind):
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            return all(_fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    return isinstance(value, kind)


def _nearest(name, names):
    close = difflib.get_close_matches(str(name), [str(one) for one in names], n=1, cutoff=0.0)
    return f"; nearest is {close[0]}" if close else ""


def paths(tree):
    """Path -> (node path, field name) of every field that can be set."""
    return {
        f"{path}.{field.name}" if path else field.name: (path, field.name)
        for path, node in walk(tree)
        for field in dataclasses.fields(node)
    }


def override(tree, settings):
    """The tree with `path=value` settings applied, in order, types checked.

    A path is field names joined by dots; an element of a tuple is called by its class name:
    `model.stream.SmearGate.stop_at_bos=true`. A value that is a node or a tuple is written as in a recipe.
    Raises Problem for an unknown path (naming the nearest) or a value of the wrong type.
    """
    for setting in settings:
        path, equals, text = setting.partition("=")
        known = paths(tree)
        if not equals:
            raise Problem(f"{setting!r} is not path=value, as in train.clip=1.0")
        if path not in known:
            raise Problem(f"unknown path {path!r}{_nearest(path, known)}")
        parent, name = known[path]
        node = dict(walk(tree))[parent]
        kind = typing.get_type_hints(type(node))[name]
        tree = _put(tree, parent, dataclasses.replace(node, **{name: _value(text, kind, path)}))
    return tree


def _value(text, kind, path):
    if kind is str:
        return text
    words = {"true": True, "false": False, "none": None}
    if text.strip().lower() in words:
        return checked(words[text.strip().lower()], kind, path)
    try:
        value = parse_node(text)
    except Problem as problem:
        if _fits(text, kind):
            return text
        if "(" in text:
            raise Problem(f"{path}={text!r}: {problem}") from problem
        value = text
    return checked(value, kind, path)


def _put(node, path, successor):
    if not path:
        return successor
    for step, child, field, index in children(node):
        if path == step or path.startswith(f"{step}."):
            child = _put(child, path[len(step) + 1 :], successor)
            if index is not None:
                items = list(getattr(node, field))
                items[index] = child
                child = tuple(items)
            return dataclasses.replace(node, **{field: child})
    raise KeyError(path)
