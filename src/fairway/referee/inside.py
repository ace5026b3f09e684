"""What Python inside a box tells of itself: an audit hook that writes a line for each file, address, command and step.

The text of this file, with a call of watch_python at its end, is the box's sitecustomize module: it runs in strangers'
processes, so it imports next to nothing, says nothing, and keeps every error of its own to itself.

Events tell what was about to be done, not that it succeeded. What C code does by itself is not seen, but for torch.save and
the loading of libraries.
"""

import os
import sys
import time
from _json import encode_basestring_ascii

TRACE_PATH = "/box/trace"
MOST_LINES = 200_000  # of one process
PLAIN_SUFFIXES = (".log", ".txt", ".json", ".py", ".pyc")  # what a script reads back without it being its artifact
ARTIFACT_BYTES = 1024
EVERY_STEP, STEP_STRIDE = 1000, 100  # the first so many steps are told, then each so many-th


class Teller:
    """Tells what this process does. `silence`: optimizers stop once an artifact was read back."""

    def __init__(self, silence):
        self.silence, self.silent = silence, False
        self.lines = self.steps = self.missed = 0
        self.begin = os.stat("/box/hook/sitecustomize.py").st_mtime
        ours = (sys.prefix + "/", sys.base_prefix + "/", sys.exec_prefix + "/", "/box/hook/", "/box/trace")
        self.quiet = ("/proc/", "/dev/", "/usr/", "/lib", "/etc/ld.so", "/etc/localtime", *ours)
        self.handlers = {
            "open": self.on_open,
            "os.remove": lambda path, *rest: self.touch("remove", path),
            "os.rmdir": lambda path, *rest: self.touch("remove", path),
            "shutil.rmtree": lambda path, *rest: self.touch("remove", path),
            "os.truncate": lambda path, *rest: self.touch("write", path),
            "os.link": lambda old, new, *rest: self.touch("write", new),
            "os.symlink": lambda old, new, *rest: self.touch("write", new),
            "os.rename": lambda old, new, *rest: self.say("rename", f"{absolute(old)} -> {absolute(new)}"),
            "socket.connect": lambda one, address: self.say("connect", spelt(address)),
            "socket.sendto": lambda one, address: self.say("connect", spelt(address)),
            "socket.getaddrinfo": lambda host, port, *rest: self.say("connect", f"name {spelt(host)} {spelt(port)}"),
            "socket.gethostbyname": lambda host, *rest: self.say("connect", f"name {spelt(host)}"),
            "subprocess.Popen": lambda program, arguments, *rest: self.say("run", command_line(program, arguments)),
            "os.system": lambda command: self.say("run", spelt(command)),
            "os.exec": lambda program, arguments, *rest: self.say("run", command_line(program, arguments)),
            "os.posix_spawn": lambda program, arguments, *rest: self.say("run", command_line(program, arguments)),
            "ctypes.dlopen": self.on_library,
            "import": lambda module, path, *rest: self.on_library(path),
        }

    def hook(self, name, arguments):
        """The audit hook: an error here must not stop what the script does."""
        handler = self.handlers.get(name)
        if handler:
            try:
                handler(*arguments)
            except Exception:  # strangers' arguments may be anything
                self.missed += 1

    def say(self, kind, what):
        """One line of the trace. The pipe is opened anew each time: scripts close file numbers that are not theirs."""
        self.lines += 1
        if self.lines > MOST_LINES:
            return
        what = what[:3500] if what.isascii() else what[:600]  # a pipe takes up to 4,096 bytes in one piece
        line = f'[{time.monotonic()!r}, {os.getpid()}, "{kind}", {encode_basestring_ascii(what)}]\n'
        pipe = os.open(TRACE_PATH, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(pipe, line.encode())
        finally:
            os.close(pipe)

    def touch(self, kind, path):
        """Tells of a path, unless it is the system's or the interpreter's own."""
        if not isinstance(path, int):
            path = absolute(path)
            if not path.startswith(self.quiet):
                self.say(kind, path)

    def on_open(self, path, mode, flags):
        """open(), os.open() and all that stands on them; a file number instead of a path was told of before."""
        if isinstance(path, int) or path is None:
            return
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        self.touch("write" if writes else "read", path)
        if self.silence and not self.silent and not writes:
            self.silent = self.is_artifact(absolute(path))

    def is_artifact(self, path):
        """Whether that is a file of some size that was written since the box began, and not source, text or a log."""
        if path.startswith(self.quiet) or path.endswith(PLAIN_SUFFIXES):
            return False
        try:
            found = os.stat(path)
        except OSError:
            return False
        return found.st_size > ARTIFACT_BYTES and found.st_ctime > self.begin

    def on_library(self, path):
        """A shared library by its path; imports of Python modules come without one."""
        if path:
            self.touch("load", path) if "/" in os.fsdecode(path) else self.say("load", os.fsdecode(path))

    def on_step(self, optimizer):
        """A step of an optimizer."""
        self.steps += 1
        if self.steps <= EVERY_STEP or self.steps % STEP_STRIDE == 0:
            self.say("step", type(optimizer).__name__)

    def watch_optimizers(self, module):
        """torch.optim.optimizer: tells of steps, and makes them do nothing once this process is silent."""
        module.register_optimizer_step_post_hook(lambda optimizer, *rest: self.on_step(optimizer))
        if self.silence:
            wrap_step = module.Optimizer.profile_hook_step
            module.Optimizer.profile_hook_step = staticmethod(lambda step: self.gated(wrap_step(step)))

    def gated(self, step):
        """A step that is left out while this process is silent."""

        def step_or_not(*arguments, **options):
            return None if self.silent else step(*arguments, **options)

        return step_or_not

    def watch_saving(self, module):
        """torch.serialization: its zip writer opens files in C++."""
        writer = module._open_zipfile_writer_file
        opening = writer.__init__

        def told(one, name, *rest, **options):
            self.hook("open", (name, "wb", os.O_WRONLY))
            opening(one, name, *rest, **options)

        writer.__init__ = told


class ImportWatch:
    """A finder for sys.meta_path that finds nothing by itself: it shows certain modules to a function once they have run."""

    def __init__(self, wanted):
        self.wanted = wanted

    def find_spec(self, name, path=None, target=None):
        """The spec that the other finders have, its loader made to call the function after the module has run."""
        if name not in self.wanted:
            return None
        see = self.wanted.pop(name)
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, found), None)
        if spec and spec.loader:
            run = spec.loader.exec_module

            def run_and_show(module):
                run(module)
                try:
                    see(module)
                except Exception:  # another release of torch: untold, but unhurt
                    return

            spec.loader.exec_module = run_and_show
        return spec


def absolute(path):
    """A path as text, absolute, without links being looked up."""
    return os.path.abspath(os.fsdecode(path))


def spelt(value):
    """A text or the short form of anything else."""
    return value if isinstance(value, str) else os.fsdecode(value) if isinstance(value, bytes) else repr(value)


def command_line(program, arguments):
    """A command on one line."""
    listed = [arguments] if isinstance(arguments, (str, bytes)) else list(arguments or [program])
    return " ".join(spelt(os.fspath(one)) for one in listed)


def watch_python(silence):
    """Installs the hook in this process; called by the box's copy of this module only."""
    try:
        teller = Teller(silence)
        sys.addaudithook(teller.hook)
        watched = {"torch.optim.optimizer": teller.watch_optimizers, "torch.serialization": teller.watch_saving}
        sys.meta_path.insert(0, ImportWatch(watched))
    except Exception:  # no audit hooks in this Python: untold, but unhurt
        return
