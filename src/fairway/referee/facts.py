"""Facts that stand in a syntax tree for certain: imports and their fallbacks, settings and their defaults, files that are
used as code. What is in functions that nothing mentions counts for nothing."""

import ast
import fnmatch
import posixpath
import sys

NATIVE_NAMES = (
    ".c", ".cc", ".cpp", ".cxx", ".cu", ".cuh", ".h", ".hpp", ".so", ".a", ".o", ".dll", ".dylib", ".rs", ".ptx", ".cubin",
    ".pyx", ".pyd", ".wasm",
)  # fmt: skip
CODE_NAMES = (*NATIVE_NAMES, ".py", ".pyw", ".pyc", ".go", ".sh", ".zip", ".pyz", ".whl", ".jl", ".lua")
NO_CODE = ("README.md", "submission.json")
# Last words of calls that run or load what they are given: any file, or one that is called code.
LOADERS = (
    "exec", "execfile", "compile", "run_path", "CDLL", "PyDLL", "LoadLibrary", "load_library", "dlopen",
    "spec_from_file_location", "SourceFileLoader", "ExtensionFileLoader", "load_source", "addsitedir",
)  # fmt: skip
RUNNERS = (
    "run", "Popen", "call", "check_call", "check_output", "system", "popen", "execv", "execve", "execvp", "execl", "execlp",
    "spawnv", "spawnl", "posix_spawn", "load", "load_inline", "CUDAExtension", "CppExtension", "Extension", "RawModule",
    "RawKernel", "SourceModule", "import_module", "__import__", "run_module", "create_subprocess_exec",
    "create_subprocess_shell", "getoutput", "start_processes",
)  # fmt: skip
CATCHERS = ("ImportError", "ModuleNotFoundError", "Exception", "BaseException")
CONFIG_WORDS = ("arg", "param", "config", "setting", "option", "hyper", "cfg")
MOST_NAMES = 4000


def source_of(node):
    """An expression as source; nothing for what is nested too deep."""
    try:
        return ast.unparse(node)
    except RecursionError:
        return ""


class Tree:
    """One syntax tree with what is asked of it. `parents` of every node; `dead`: functions that nothing mentions."""

    def __init__(self, tree):
        self.tree, self.nodes, self.parents = tree, list(ast.walk(tree)), {}
        for node in self.nodes:
            for child in ast.iter_child_nodes(node):
                self.parents[id(child)] = node
        mentioned = {one.id for one in self.nodes if isinstance(one, ast.Name)}
        mentioned |= {one.attr for one in self.nodes if isinstance(one, ast.Attribute)}
        mentioned |= {one.value for one in self.nodes if isinstance(one, ast.Constant) and isinstance(one.value, str)}
        self.dead = {
            id(one)
            for one in self.nodes
            if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef))
            and one.name not in mentioned and not one.decorator_list and not one.name.startswith("__")
        }  # fmt: skip
        self.bound, self.origins = self.bindings(), self.imported_names()

    def above(self, node):
        """The nodes that a node stands in, the nearest first."""
        while (node := self.parents.get(id(node))) is not None:
            yield node

    def is_dead(self, node):
        """Whether nothing leads to a node: it is in a function that nothing mentions, or under a constant that is false."""
        below = node
        for one in self.above(node):
            if id(one) in self.dead:
                return True
            constant = isinstance(one, ast.If) and isinstance(one.test, ast.Constant) and below is not one.test
            if constant and (below in one.body) != bool(one.test.value):
                return True
            below = one
        return False

    def bindings(self):
        """{name: expressions that it is bound to anywhere}."""
        found = {}
        for one in self.nodes:
            if isinstance(one, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.NamedExpr, ast.For)):
                value = one.iter if isinstance(one, ast.For) else one.value
                targets = one.targets if isinstance(one, ast.Assign) else [one.target]
            elif isinstance(one, ast.withitem) and one.optional_vars:
                value, targets = one.context_expr, [one.optional_vars]
            else:
                continue
            for target in targets if value else ():
                for name in ast.walk(target):
                    if isinstance(name, (ast.Name, ast.Attribute)):
                        found.setdefault(name.id if isinstance(name, ast.Name) else name.attr, []).append(value)
        return found

    def imported_names(self):
        """{local name: dotted name of what was imported under it}."""
        found = {}
        for node in self.nodes:
            for one in node.names if isinstance(node, (ast.Import, ast.ImportFrom)) else ():
                if isinstance(node, ast.ImportFrom):
                    found[one.asname or one.name] = f"{node.module}.{one.name}"
                elif one.asname:
                    found[one.asname] = one.name
        return found

    def full_name(self, dotted):
        """A dotted name with what its first part was imported as."""
        first, *rest = dotted.split(".")
        return ".".join([self.origins.get(first, first), *rest])

    def texts(self, node, depth=4):
        """All texts that may go into an expression: constants in it, and in what its names are bound to."""
        found, todo, seen = set(), [(node, 0)], set()
        while todo and len(found) < MOST_NAMES:
            one, level = todo.pop()
            for part in ast.walk(one):
                if isinstance(part, ast.Constant) and isinstance(part.value, str) and len(part.value) < 4096:
                    found.add(part.value)
                name = part.id if isinstance(part, ast.Name) else part.attr if isinstance(part, ast.Attribute) else None
                if name and name not in seen and level < depth:
                    seen.add(name)
                    todo += [(value, level + 1) for value in self.bound.get(name, ())]
        return found


def called_name(node):
    """The dotted name of what a call calls; what is no name in it is a question mark."""
    names, one = [], node.func
    while isinstance(one, ast.Attribute):
        names.append(one.attr)
        one = one.value
    names.append(one.id if isinstance(one, ast.Name) else "?")
    return ".".join(reversed(names))


def imports_of(tree):
    """{module: whether every import of it has a fallback}; relative imports begin with dots."""
    found = {}
    for node in tree.nodes:
        if isinstance(node, ast.Import):
            modules = [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = ["." * node.level + (node.module or "")]
        else:
            continue
        if not tree.is_dead(node):
            for module in modules:
                found[module] = found.get(module, True) and has_fallback(tree, node)
    return found


def has_fallback(tree, node):
    """Whether a failing import is caught by something that goes on, or asked for before."""
    below = node
    for one in tree.above(node):
        if isinstance(one, ast.Try) and below in one.body and any(map(goes_on, one.handlers)):
            return True
        if isinstance(one, ast.With) and "suppress" in "".join(source_of(item.context_expr) for item in one.items):
            return True
        if isinstance(one, ast.If) and below is not one.test and "find_spec" in source_of(one.test):
            return True
        below = one
    return False


def goes_on(handler):
    """Whether a handler catches a failing import and does not end the program."""
    caught = "" if handler.type is None else source_of(handler.type)
    last = handler.body[-1]
    ends = isinstance(last, ast.Raise) or (isinstance(last, ast.Expr) and "exit(" in source_of(last))
    return (handler.type is None or any(name in caught for name in CATCHERS)) and not ends


def settings_of(tree):
    """{name: default or None} of environment variables, arguments of the command line, and constants of configurations."""
    readers = environment_readers(tree)
    found = {}
    for node in tree.nodes:
        if isinstance(node, ast.Call):
            called = called_name(node)
            texts = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            if called.endswith(("environ.get", "environ.setdefault", "getenv")) or called in readers:
                if texts:
                    found[texts[0]] = wrapped_default(tree, node, literal_of(node.args[1:2]))
            elif called.endswith(".add_argument"):
                names = [one for one in texts if one.startswith("--")] or texts
                default = [one.value for one in node.keywords if one.arg == "default"]
                if names:
                    found[names[0].lstrip("-").replace("-", "_")] = literal_of(default)
        elif isinstance(node, ast.Subscript) and source_of(node.value).endswith("environ"):
            if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
                found.setdefault(node.slice.value, None)
        elif isinstance(node, ast.ClassDef) and is_configuration(node):
            for one in node.body:
                for target in assigned(one):
                    if isinstance(target, ast.Name) and isinstance(one.value, (ast.Constant, ast.UnaryOp)):
                        found.setdefault(target.id, literal_of([one.value]))
    return found


def assigned(statement):
    """The targets of an assignment; none of another statement."""
    if isinstance(statement, ast.Assign):
        return statement.targets
    return [statement.target] if isinstance(statement, (ast.AnnAssign, ast.AugAssign)) else []


def environment_readers(tree):
    """Names of the file's own functions that look their first argument up in the environment."""
    found = set()
    for node in tree.nodes:
        if isinstance(node, (ast.FunctionDef, ast.Lambda)) and node.args.args:
            first = node.args.args[0].arg
            text = source_of(node)
            if f"environ.get({first}" in text or f"getenv({first}" in text or f"environ[{first}]" in text:
                named = isinstance(node, ast.FunctionDef)
                found.update([node.name] if named else map(source_of, assigned(tree.parents.get(id(node)))))
    return found


def is_configuration(node):
    """Whether a class is a dataclass, or is called a configuration."""
    decorated = any("dataclass" in source_of(one) for one in node.decorator_list)
    return decorated or any(word in node.name.lower() for word in CONFIG_WORDS)


def literal_of(nodes):
    """The value of a literal, or None."""
    try:
        return ast.literal_eval(nodes[0]) if nodes else None
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def wrapped_default(tree, node, default):
    """A default as int(), float() and bool() around its lookup make it."""
    kinds = {"int": int, "float": float, "bool": bool, "str": str}
    while isinstance(node := tree.parents.get(id(node)), ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id not in kinds or default is None:
            break
        try:
            default = kinds[node.func.id](default)
        except (ValueError, TypeError, OverflowError):
            break
    return default


def used_files(tree, own, names):
    """Names of files of the folder (`names`) that the script called `own` imports, runs, compiles or loads."""
    found = set()
    home = posixpath.dirname(own)
    touched = any(isinstance(one, ast.Attribute) and source_of(one) == "sys.path" for one in tree.nodes)
    homes = {home} | ({posixpath.dirname(one) for one in names} | {""} if touched else set())
    for node in tree.nodes:
        if isinstance(node, ast.Import) and not tree.is_dead(node):
            for one in node.names:
                found |= module_files(one.name, names, homes)
        elif isinstance(node, ast.ImportFrom) and not tree.is_dead(node):
            base = home
            for _ in range(node.level - 1):
                base = posixpath.dirname(base)
            for module in (node.module, *(f"{node.module or ''}.{one.name}".strip(".") for one in node.names)):
                found |= module_files(module, names, {base} if node.level else homes) if module else set()
        elif isinstance(node, ast.Call) and not tree.is_dead(node):
            found |= called_files(tree, node, names, homes)
    return found - {own}


def called_files(tree, node, names, homes):
    """Files that a call runs or loads."""
    full = tree.full_name(called_name(node))
    last = full.rpartition(".")[2]
    if last == "compile" and full not in ("compile", "builtins.compile"):
        return set()  # torch.compile, re.compile
    if last not in LOADERS and last not in RUNNERS:
        return set()
    if last in ("load", "run", "call") and not is_code_call(tree, node):
        return set()
    texts = set().union(*(tree.texts(one) for one in (*node.args, *(word.value for word in node.keywords))), ())
    words = texts | {word.strip("'\"") for text in texts for word in text.split()}
    any_file = last in LOADERS
    found = {
        name
        for name in names
        if (name.lower().endswith(CODE_NAMES) or (any_file and name not in NO_CODE)) and is_meant(name, words)
    }
    if last in ("import_module", "__import__", "run_module") or "-m" in words:
        for word in texts:
            found |= module_files(word, names, homes) if word.replace(".", "").isidentifier() else set()
    return found


def is_code_call(tree, node):
    """Whether a call is one of those that build or start code, whatever it is called here."""
    owner = tree.full_name(called_name(node))
    return any(word in owner for word in ("subprocess", "cpp_extension", "asyncio", "os.system", "os.popen"))


def is_meant(name, words):
    """Whether one of the words is a file's name, its path, or a pattern that it fits."""
    base = posixpath.basename(name)
    for word in words:
        end = posixpath.basename(word)
        if end == base or ("*" in end and end.strip("*.") and fnmatch.fnmatch(base, end)):
            return True
    return False


def module_files(module, names, homes):
    """The files of the folder that importing a module reads, its packages' own among them."""
    parts, found = module.split("."), set()
    if parts[0] in sys.builtin_module_names:
        return found
    for home in homes:
        for depth in range(1, len(parts) + 1):
            stem = posixpath.join(home, *parts[:depth])
            here = {one for one in (f"{stem}.py", f"{stem}/__init__.py") if one in names}
            built = {one for one in names if one.startswith(f"{stem}.") and one.endswith((".so", ".pyd"))}
            found |= here or built
    return found


def named_files(text, names):
    """Files called code that a text of a shell script, a makefile or a C source mentions."""
    words = set("".join(c if c.isalnum() or c in "._-/" else " " for c in text).split())
    return {name for name in names if name.lower().endswith(CODE_NAMES) and is_meant(name, words)}
