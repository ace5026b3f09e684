"""The walls of the box: the shell lines by which a new process space becomes a machine with nothing of ours in it.

They are run by the first process of fresh namespaces, with the right to mount there and nowhere else. What it then starts
for the strangers' command has no rights left and no way back to the old root.
"""

import os
import shlex
import sys
from pathlib import Path

SYSTEM_FOLDERS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")  # links into /usr, or folders on old systems
ETC_FILES = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime")
DEVICES = ("null", "zero", "full", "random", "urandom")
NOBODY = 65534  # what a superuser's box runs as: an unprivileged user has only its own number, and no rights over it


def walls(root, shared, limits, command, environment, devices):
    """Shell text that builds the box on the folder `root` and runs `command` in it; its status is the command's.

    `shared`: {name below /box: (host path, writable)}; `limits`: see sandbox.Limits. Says "up" on its standard input, which
    is a pipe to us, once the walls stand: whatever fails before that is our fault, whatever comes after is the command's.
    """
    room = f"size={max(limits.memory // 4, 1 << 20)},nr_inodes=200000,nosuid,nodev"
    plain = [f"/etc/{name}" for name in ETC_FILES if os.path.exists(f"/etc/{name}")]
    nodes = [f"/dev/{name}" for name in DEVICES] + (accelerators() if devices else [])
    mounts = [(path, path, "ro,nosuid,nodev") for path in (*own_folders(), *plain)]
    mounts += [
        (host, f"/box/{name}", "nosuid,nodev" if free else "ro,nosuid,nodev") for name, (host, free) in shared.items()
    ]
    mounts += [(path, path, "nosuid") for path in nodes]
    mounts += [("/sys", "/sys", "ro,nosuid,nodev")] if devices else []
    links = [path for path in SYSTEM_FOLDERS if os.path.islink(path)]
    folders = [at if os.path.isdir(host) else os.path.dirname(at) for host, at, _ in mounts]
    tmpfs = ["mount", "-t", "tmpfs", "-o"]
    lines = [
        [*tmpfs, "size=16m,mode=755,nosuid", "box", root],
        ["mkdir", "-p", *(f"{root}/{name}" for name in ("old", "proc", "tmp", "dev/shm"))],
        *([*tmpfs, f"{room},mode=1777", "box", f"{root}/{name}"] for name in ("tmp", "dev/shm")),
        ["mkdir", "-p", *sorted({f"{root}{at}" for at in folders})],
        ["touch", *(f"{root}{at}" for host, at, _ in mounts if not os.path.isdir(host))],
        *(["ln", "-s", os.readlink(path), f"{root}{path}"] for path in links),
        *(["mount", "--rbind", "-o", kept(host, how), host, f"{root}{at}"] for host, at, how in mounts),
    ]
    lines = ["set -e", *map(shlex.join, lines)]
    return "\n".join([*lines, *finish(root), *launch(command, environment, limits, devices)])


def finish(root):
    """Lines that fill in the rest, make `root` the only root that there is, and put the network's own loop up."""
    here = shlex.quote(root)
    links = [
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ]
    return [
        *(f"ln -s {to} {here}/dev/{name}" for to, name in links),
        f"printf 'box:x:{inner_user()}:{inner_user()}::/box/work:/bin/sh\\n' > {here}/etc/passwd",
        f"printf 'box:x:{inner_user()}:\\n' > {here}/etc/group",
        f"printf '127.0.0.1 localhost %s\\n' \"$(uname -n)\" > {here}/etc/hosts",
        f"printf 'passwd: files\\ngroup: files\\nhosts: files\\n' > {here}/etc/nsswitch.conf",
        f"mount -t proc -o nosuid,nodev,noexec box {here}/proc",
        "ip link set lo up 2>/dev/null || :",
        f"cd {here}",
        "pivot_root . old",
        "cd /",
        "umount -l /old",
        "rmdir /old",
        "mount -o remount,bind,ro,nosuid /",
        "cd /box/work",
    ]


def launch(command, environment, limits, devices):
    """Lines that give up every right and run the command in a session of its own, in the foreground of process 1."""
    drop = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    if os.geteuid() == 0:
        drop += [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    caps = {
        "core": 0,
        "fsize": limits.disk,
        # Threads count too, and before Linux 5.14 all that this user runs: only a backstop for what Watch counts.
        "nproc": 16 * limits.processes + 1024,
        "nofile": 4096,
        **({} if devices else {"as": 4 * limits.memory + (64 << 30)}),  # CUDA takes address space without end
        "cpu": int(limits.seconds + 2) * (os.cpu_count() or 1),
    }
    words = ["setsid", "setpriv", *drop, "prlimit", *(f"--{name}={most}" for name, most in caps.items())]
    words += ["env", "-i", *(f"{name}={value}" for name, value in environment.items()), *command]
    return [
        "echo 1000 > /proc/self/oom_score_adj",
        "echo up >&0",
        "exec 0</dev/null 3>&2 2>/dev/null",
        "set +e",
        f"{shlex.join(words)} 2>&3 3>&-",
        "exit $?",
    ]


def own_folders():
    """The system's programs and this interpreter with its packages, each where it is outside; none below another."""
    wanted = ["/usr", *(path for path in SYSTEM_FOLDERS if os.path.isdir(path) and not os.path.islink(path))]
    wanted += [sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.exec_prefix]
    wanted += [path for path in sys.path if path.endswith(("site-packages", "dist-packages")) and os.path.isdir(path)]
    kept_folders = []
    for path in sorted({os.path.abspath(path) for path in wanted}):
        if path != "/" and not any(Path(path).is_relative_to(one) for one in kept_folders):
            kept_folders.append(path)
    return kept_folders


def accelerators():
    """The device files that CUDA opens."""
    return sorted(str(path) for path in Path("/dev").glob("nvidia*"))


def kept(host, options):
    """Mount options for a bind of `host`: what its own mount forbids cannot be taken back in a user's namespace."""
    flags = os.statvfs(host).f_flag
    return ",".join([options, *(["noexec"] if flags & os.ST_NOEXEC else []), *(["ro"] if flags & os.ST_RDONLY else [])])


def inner_user():
    """The user number that the command sees."""
    return NOBODY if os.geteuid() == 0 else 0
