"""`train_gpt.py`: a recipe and all code that it needs as one executable file, out of the package's own modules."""

import ast
import bz2
import dataclasses
from dataclasses import dataclass
from itertools import groupby

from ..node import Node, digest
from .minify import minify
from .shake import shake
from .sources import package_sources
from .wrap import wrap

ENTRY = "run_program"  # program.py: run_program(recipe) -> exit code
NODES = "fairway/node.py"
DIGEST = 'def digest(node):\n    """The digest of the recipe that this program was made for."""\n    return {digest!r}\n'
HEAD = '"""{name}: what train_gpt.py was made of. A number in place of a message is the line of its `raise` here."""\n'
FUTURE = "from __future__ import annotations\n\n"  # sites in annotations need not be there
MAIN = '\n\nif __name__ == "__main__":\n    raise SystemExit({entry}({recipe}))\n'


@dataclass(frozen=True)
class Bundle:
    """`program`: the file. `readable`: what it was made of, itself a program that does the same. `minified`: what it
    unpacks. `owners`: [{owner, kind, bytes}] of the file's bytes, by module of the package."""

    program: bytes
    readable: str
    minified: str
    owners: list


def bundle(recipe, form="base85"):
    """The Bundle of a Recipe. `form`: "base85" (ASCII) or "latin-1" (a fifth shorter)."""
    readable, parts, module_of = bundled(recipe)
    minified = "\n".join(text for _, text in parts)
    program = wrap(minified, form)
    return Bundle(program, readable, minified, code_owners(parts, module_of, len(program)))


def bundled(recipe):
    """(readable, [(name, minified text)], module of each name): a program's parts before they are compressed."""
    sources = with_digest(package_sources(), digest(recipe))
    kinds = {type(node).__name__ for node in nodes_in(recipe)}
    code, module_of = shake(sources, {ENTRY, *kinds})
    main = MAIN.format(entry=ENTRY, recipe=literal(recipe))
    readable = HEAD.format(name=recipe.name) + FUTURE + code + main
    return readable, minify(readable), module_of


def forecast_program(recipe):
    """Bytes of the program in base85, within 1 %, without the ten seconds that compressing it takes: 1.135 times those of
    bzip2 (1.132 to 1.141 for the five systems of the catalogue)."""
    return round(1.135 * len(bz2.compress("\n".join(text for _, text in bundled(recipe)[1]).encode())))


def with_digest(sources, value):
    """The sources with a constant for `digest(recipe)`, which elsewhere depends on names that the program shortens."""
    lines = sources[NODES].decode().splitlines(keepends=True)
    node = next(node for node in ast.parse(sources[NODES]).body if getattr(node, "name", "") == "digest")
    lines[node.lineno - 1 : node.end_lineno] = [DIGEST.format(digest=value)]
    return sources | {NODES: "".join(lines).encode()}


def nodes_in(value):
    """Every node of a tree."""
    if isinstance(value, tuple):
        for item in value:
            yield from nodes_in(item)
    elif isinstance(value, Node):
        yield value
        for field in dataclasses.fields(value):
            yield from nodes_in(getattr(value, field.name))


def literal(value):
    """The shortest expression that gives a tree of nodes: defaults are left out, fields before them go by position."""
    if isinstance(value, tuple):
        return f"({', '.join(map(literal, value))}{',' * (len(value) == 1)})"
    if not isinstance(value, Node):
        return repr(value)
    arguments, skipped = [], False
    for field in dataclasses.fields(value):
        text = literal(getattr(value, field.name))
        if field.default is not dataclasses.MISSING and text == literal(field.default):
            skipped = True
        else:
            arguments.append(f"{field.name}={text}" if skipped else text)
    return f"{type(value).__name__}({', '.join(arguments)})"


def code_owners(parts, module_of, total):
    """[{owner, kind, bytes}] that sum to `total`: what each module adds when the text grows by it, in proportion."""
    spent, text, before = {}, "", 0
    for owner, group in groupby(parts, lambda part: module_of.get(part[0], "imports and recipe")):
        text += "".join(part + "\n" for _, part in group)
        after = max(before, len(bz2.compress(text.encode())))  # now and then a longer text takes a byte less
        spent[owner] = spent.get(owner, 0) + after - before
        before = after
    shares = {owner: total * size // before for owner, size in sorted(spent.items(), key=lambda pair: -pair[1])}
    shares[next(iter(shares))] += total - sum(shares.values())
    return [{"owner": owner, "kind": "code", "bytes": size} for owner, size in shares.items()]
