"""A script of strangers, read and not run: what is certain about its code, and hints for whoever reads it.

Only facts may fail it: source that does not parse or unpack, kernels that cannot find their source, a log of other code.
Patterns are hints; running it is what tells (review --dynamic).
"""

import ast
import posixpath
import re
import sys
from dataclasses import dataclass, field

from .facts import (
    CODE_NAMES,
    NATIVE_NAMES,
    Tree,
    called_name,
    imports_of,
    named_files,
    settings_of,
    source_of,
    used_files,
)
from .folder import is_python
from .hints import HINT, give_hints, judge_dependencies
from .jit import judge_kernels
from .unwrap import parsed, unwrap

MOST_SCRIPT, MOST_SIBLINGS, MOST_TEXT = 32 << 20, 60, 1 << 20
# Quotes inside quotes of f-strings, t-strings, `type` statements, type parameters, several exceptions without brackets.
NEW_SYNTAX = (
    r"""(?<![\w])[rbRB]?[fFtT][rR]?['"]|^\s*type\s+\w+.*=|^\s*(?:async\s+)?(?:def|class)\s+\w+\s*\[|^\s*except\s+\w+\s*,"""
)


@dataclass(frozen=True, eq=False)
class Script:
    """A script as it lies in the folder and after its wrappers are off.

    `size`: bytes on disk; `text`, `unpacked_size` (bytes): the source that runs; `tree`: its syntax tree or None; `layers`:
    what was undone; `sizes`: bytes of the source at every layer; `imports`: {module: has a fallback}; `settings`: {name:
    default}; `siblings`: {name: bytes} of the folder's files that it runs or loads, `native` those that are no Python;
    `words`: all names and words of its code and the code and configurations beside it, lower case; `fragments`: parts of
    names that it puts together; `missing`: files that it certainly runs and that are not there.
    """

    name: str
    size: int
    text: str
    unpacked_size: int
    layers: tuple
    sizes: tuple
    tree: object
    faults: tuple
    imports: dict
    settings: dict
    siblings: dict
    native: tuple
    words: frozenset
    fragments: tuple
    missing: tuple
    error: object = None  # why there is no tree
    bombs: tuple = ()
    broken: tuple = ()
    shells: tuple = ()
    executed: bool = False
    others: tuple = field(default=(), repr=False)  # Tree of every piece of code, siblings' too


def read_script(folder, name):
    """The Script of that name; whatever cannot be read is a fault. Runs nothing."""
    data = folder.data(name, MOST_SCRIPT)
    one = unwrap(data, posixpath.basename(name), lambda path: beside(folder, name, path))
    tree, error = parsed(one.text)
    names = {entry.name for entry in folder.files()}
    trees, used, faults = collect(folder, name, names, [tree, *one.shells])
    siblings = {other: folder.entry(other).size for other in sorted(used)}
    imports, settings = {}, {}
    for seen in trees:
        for module, guarded in imports_of(seen).items():
            imports[module] = imports.get(module, True) and guarded
        settings |= {key: value for key, value in settings_of(seen).items() if key not in settings}
    own = {posixpath.splitext(other)[0] for other in names if "/" not in other and other.endswith((".py", ".so", ".pyd"))}
    own |= {"", *(other.partition("/")[0] for other in names if "/" in other and other.endswith(".py"))}
    imports = {module: guarded for module, guarded in imports.items() if module.split(".")[0] not in own}
    entry = folder.entry(name)
    words, fragments = known_words(folder, name, one.text, trees)
    return Script(
        name, entry.size if entry else 0, one.text, len(one.text.encode("utf-8", "replace")), one.layers, one.sizes, tree,
        (*one.faults, *faults), imports, settings, siblings,
        tuple(other for other in siblings if other.lower().endswith(NATIVE_NAMES)), words, fragments,
        missing_files(folder, name, trees[: 1 + len(one.shells)]), error, one.bombs, one.broken, one.shells, one.executed,
        tuple(trees),
    )  # fmt: skip


def beside(folder, script, path):
    """Bytes of a file that the script opens, where the folder has it; None otherwise."""
    place = posixpath.normpath(posixpath.join(posixpath.dirname(script), path))
    for name in (place, posixpath.basename(path)):
        if folder.has(name) and folder.entry(name).size <= MOST_SCRIPT:
            return folder.data(name, MOST_SCRIPT)
    return None


def collect(folder, name, names, trees):
    """([Tree] of the script and of what it uses, names of the files used, faults): files are followed to what they use."""
    found, used, faults = [Tree(one) for one in trees if one is not None], [], []
    wanted = sorted(set().union(*(used_files(one, name, names) for one in found)))
    while wanted:
        other = wanted.pop()
        if other in used or other == name:
            continue
        if len(used) >= MOST_SIBLINGS:
            faults.append(f"uses more than {MOST_SIBLINGS} files of the folder; no more are followed")
            break
        used.append(other)
        if is_python(other):
            data = folder.data(other, MOST_SCRIPT)
            inner = unwrap(data, posixpath.basename(other), lambda path: beside(folder, name, path))
            below, error = parsed(inner.text)
            faults += [f"{other}: {fault}" for fault in (*inner.faults, *([f"cannot be parsed: {error}"] if error else []))]
            more = [Tree(one) for one in (below, *inner.shells) if one is not None]
            wanted += sorted(set().union(*(used_files(one, other, names) for one in more)))
            found += more
        elif other.lower().endswith(CODE_NAMES) and folder.entry(other).size <= MOST_TEXT:
            wanted += sorted(named_files(folder.text(other, MOST_TEXT), names))
    return found, used, faults


def known_words(folder, name, text, trees):
    """(words of the code and of code and configurations beside it, fragments of names that are put together)."""
    found = set(words_of(text))
    endings = (".py", ".json", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".sh", ".env")
    near = [one for one in folder.files() if one.name.lower().endswith(endings) and one.size <= MOST_TEXT]
    for one in [one for one in near if one.name not in (name, "submission.json")][:MOST_SIBLINGS]:
        found |= words_of(folder.text(one.name, MOST_TEXT))
    fragments = set()
    for tree in trees:
        for one in tree.nodes:
            if isinstance(one, ast.Constant) and isinstance(one.value, str):
                found |= words_of(one.value)
            elif isinstance(one, ast.JoinedStr):
                parts = [part.value for part in one.values if isinstance(part, ast.Constant)]
                fragments |= {word.lower() for part in parts for word in re.findall(r"\w{3,}_|_\w{3,}", part)}
    return frozenset(found), tuple(sorted(fragments))


def words_of(text):
    """The names and words of a text, lower case."""
    return {word.lower() for word in re.findall(r"[^\W\d]\w*", text)}


def missing_files(folder, name, trees):
    """Python files that a script or its wrapper certainly runs (at its top level, always) and that are not there."""
    found, here = [], {posixpath.basename(one.name) for one in folder.entries}
    for tree in trees:
        written = any(getattr(one, "attr", "").startswith("write") for one in tree.nodes)
        for node in tree.nodes:
            if not isinstance(node, ast.Call) or not node.args or not runs_always(tree, node):
                continue
            if called_name(node) not in ("exec", "runpy.run_path", "run_path"):
                continue
            files = {one for one in opened_texts(tree, node) if re.fullmatch(r"[\w.-]+\.py", one)}
            if len(files) == 1 and not files & here and not written:
                found.append(files.pop())
    return tuple(found)


def opened_texts(tree, node):
    """Texts that name what a call runs: its first argument's; of `exec` those that are opened: compile() only labels."""
    if called_name(node) != "exec":
        return tree.texts(node.args[0], 1)
    first = node.args[0]
    places = [first, *(tree.bound.get(first.id, ()) if isinstance(first, ast.Name) else ())]
    calls = [one for place in places for one in ast.walk(place) if isinstance(one, ast.Call) and one.args]
    opening = [one for one in calls if called_name(one).rpartition(".")[2] in ("open", "Path")]
    return set().union(*(tree.texts(one.args[0], 1) for one in opening), ())


def runs_always(tree, node):
    """Whether a node stands at the top level and nothing decides on it or catches what it raises."""
    below = node
    for one in tree.above(node):
        caught = isinstance(one, ast.Try) and below in one.body and one.handlers
        main = isinstance(one, ast.If) and source_of(one.test) == "__name__ == '__main__'" and below in one.body
        plain = isinstance(one, (ast.Module, ast.With, ast.Expr, ast.Assign, ast.Call, ast.Try, ast.Attribute))
        if caught or not (main or plain):
            return False
        below = one
    return True


def counted_code(folder, script):
    """{name: bytes on disk} of the script and of every file of the folder that it runs, loads or compiles."""
    return {script.name: script.size} | script.siblings


def judge_script(findings, folder, script):
    """G6, A2, A4, A7, G7: what is certain about the code; D1, D2, D3 and M7: hints."""
    judge_source(findings, script)
    judge_kernels(findings, script)
    judge_counted_files(findings, folder, script)
    judge_dependencies(findings, folder, script)
    give_hints(findings, script)
    for bomb in script.bombs:
        findings.say("G7", False, bomb, 0, evidence=f"{script.name}: what it unpacks")


def judge_source(findings, script):
    """G6: it is there, it unpacks, it parses, and what it starts is there."""
    shape = {"bytes": script.size, "unpacked": script.unpacked_size, "layers": list(script.layers)}
    if not script.text.strip():
        return findings.say("G6", False, shape, evidence=f"{script.name} is empty")
    for fault in script.broken:
        findings.say("G6", False, shape, evidence=f"{script.name}: {fault}")
    for other in script.missing:
        findings.say("G6", False, other, "a file of the folder", evidence=f"{script.name} runs it, and it is not there")
    if script.tree is None:
        certain, why = is_certainly_wrong(script)
        return findings.say("G6", False if certain else None, why, evidence=f"{script.name} does not parse")
    for fault in [one for one in script.faults if one not in script.broken][:10]:
        findings.say("G6", None, shape, evidence=f"{script.name}: {fault}")
    if not (script.faults or script.broken or script.missing):
        findings.say("G6", None, shape, evidence=f"{script.name} unpacks and parses; whether it starts, --dynamic tells")


def is_certainly_wrong(script):
    """(whether no Python can read the text, why this one cannot): newer versions know more syntax."""
    error = script.error
    if not isinstance(error, SyntaxError):
        return False, f"{type(error).__name__}: {error}"
    lines = script.text.split("\n")
    near = lines[max(0, (error.lineno or 1) - 2) : (error.end_lineno or error.lineno or 1)]
    version = ".".join(map(str, sys.version_info[:2]))
    why = f"line {error.lineno}: {error.msg} (Python {version})"
    return not any(re.search(NEW_SYNTAX, line) for line in near), why


def judge_counted_files(findings, folder, script):
    """A2 and A4: which files of the folder count as code, as far as their names stand in the script."""
    counted = counted_code(folder, script)
    others = [one.name for one in folder.files() if one.name.lower().endswith(CODE_NAMES) and one.name not in counted]
    evidence = f"beside it, not used: {', '.join(others[:8])}" if others else "no other code in the folder"
    alone = not script.siblings and not others and script.tree is not None and not script.faults
    findings.say("A2", True if alone else None, counted, evidence=evidence if alone else f"{evidence}; {HINT}")
    native = {name: counted[name] for name in script.native}
    bare = [name for name in others if name.lower().endswith(NATIVE_NAMES)]
    if native or bare:
        what = "counted with the code" if native else f"not used by name: {', '.join(bare[:8])}"
        findings.say("A4", None, native, evidence=f"{what}; {HINT}")
    elif script.tree is not None:
        findings.say("A4", True, 0, evidence="no native source or library in the folder; inside the script it is counted")


def judge_match(findings, script, logs):
    """G5: code sizes and settings that the logs print are those of this script."""
    sizes = known_sizes(script)
    for log in logs:
        printed = [size for size, _ in log.code_bytes]
        stated = log.compressed_code_bytes
        known = [size for size in (*printed, stated) if size in sizes]
        shown = {"printed": printed[-5:], **({"compressed": stated} if stated is not None else {})}
        expected = {"on disk": script.size, "unpacked": script.unpacked_size}
        where = ", ".join(f"{log.name}:{line}" for _, line in log.code_bytes[-3:]) or log.name
        if known:
            findings.say("G5", True, known[-1], sizes[known[-1]], 0, where)
        elif not printed:
            if stated is not None:
                findings.say("G5", None, shown, expected, 0, f"{where}: a compressed copy that is not in the folder")
        elif script.faults or script.tree is None:
            findings.say("G5", None, shown, expected, 0, f"{where}: the script could not be unpacked in full")
        else:
            findings.say("G5", False, shown, expected, 0, f"{where}: the log is of other code than {script.name}")
        judge_settings(findings, script, log)


def known_sizes(script):
    """{bytes: what of the script has that size}: on disk, at each layer, with files that it uses, with other line ends."""
    beside = sum(script.siblings.values())
    found = {}
    for size, what in (
        (script.size, "the script on disk"),
        (script.unpacked_size, "its unpacked text"),
        *((size, "the text of a layer") for size in script.sizes),
        (len(script.text), "the characters of its unpacked text"),
        (len(script.text.rstrip().encode("utf-8", "replace")), "its unpacked text without its last line end"),
        (script.size - script.text.count("\n"), "the script with its line ends made one character"),
    ):
        found.setdefault(size, what)
        found.setdefault(size + beside, f"{what}, with {', '.join(script.siblings)}")
    return found


def judge_settings(findings, script, log):
    """G5: names that the log prints among the script's own settings and that its code does not know (#1594)."""
    own = {name.lower() for name in script.settings}
    names = list(log.settings)
    unknown = [at for at, name in enumerate(names) if name.lower().replace("-", "_") not in script.words]
    if not unknown or script.faults or script.tree is None:
        return
    made = {at for at in unknown if any(part in names[at].lower() for part in script.fragments)}
    listed = [at for at in unknown if at not in made and is_in_listing(names, at, own, set(unknown))]
    prints_all = "os.environ.items" in script.text or "dict(os.environ" in script.text
    if listed and not prints_all:
        shown = [names[at] for at in listed][:10]
        said = f"{log.name}: among settings that it knows, and nowhere in {script.name}"
        findings.say("G5", False, shown, "names that the script knows", evidence=said)
    elif unknown:
        shown = [names[at] for at in unknown][:10]
        findings.say("G5", None, shown, evidence=f"{log.name}: words that do not stand in {script.name}")


def is_in_listing(names, at, own, unknown):
    """Whether the name at a place stands in a listing of settings: written like them, two of them before and two after."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)+", names[at]):
        return False
    before, after = at - 1, at + 1
    while before in unknown:
        before -= 1
    while after in unknown:
        after += 1
    sides = names[max(0, before - 1) : before + 1], names[after : after + 2]
    return all(len(side) == 2 and all(name.lower() in own for name in side) for side in sides)
