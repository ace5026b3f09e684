"""What is heard from a box: its output, of which head and tail are kept, and the trace of what its Python did."""

import json
import re
import socket
from dataclasses import dataclass

EVENT_KINDS = ("read", "write", "remove", "rename", "connect", "run", "load", "step")
MOST_EVENTS = 200_000
LONGEST_EVENT = 65_536  # bytes of one line
ADDRESS = r"\b(?:https?|ftp|s3|gs|ssh|git)://(?!localhost|127\.)|\bgit@"


@dataclass(frozen=True)
class Event:
    """Something that Python inside was about to do: `seconds` after the start, in the process of that number in the box.

    `kind` is one of EVENT_KINDS; `what` an absolute path ("old -> new" for rename), an address, a command, or an optimizer's
    class. It is a stranger's text: printable() before it is shown.
    """

    seconds: float
    process: int
    kind: str
    what: str


def judge_network(findings, events, where):
    """D3 of what boxes did: no connection or lookup was meant for another machine, and no command names one."""
    outside = [one for one in events if one.kind == "connect" and is_elsewhere(one.what)]
    outside += [one for one in events if one.kind == "run" and re.search(ADDRESS, one.what)]
    if outside:
        tried = f"{where}: tried {outside[0].what} {outside[0].seconds:.1f} s after its start"
        findings.say("D3", False, f"{len(outside)} attempts", "none", evidence=tried)
    elif events:
        findings.say("D3", True, "0 attempts", "none", evidence=where)
    else:
        findings.untested("D3", f"{where}: no trace was left")


def is_elsewhere(address):
    """Whether an address or a lookup, as inside.py spells them, is of another machine; sockets with a path or without a
    host are of this one."""
    found = re.match(r"\(['\"]([^'\"]*)|name (\S*)", address)
    host = (found[1] or found[2] or "") if found else ""
    own = r"127(\.\d+){3}|(::ffff:)?(127|0)\.0\.0\.\d|::1?|localhost(\.localdomain)?|None|"
    return not re.fullmatch(own, host) and host.partition(".")[0] != socket.gethostname().partition(".")[0]


class KeptOutput:
    """Takes bytes without end and keeps the first and the last `most` / 2 of them."""

    def __init__(self, most):
        self.half, self.head, self.tail, self.size = max(most // 2, 1), bytearray(), bytearray(), 0

    def add(self, data):
        """Takes some more."""
        self.size += len(data)
        room = self.half - len(self.head)
        self.head += data[:room]
        self.tail += data[room:]
        if len(self.tail) > 2 * self.half + (1 << 20):
            del self.tail[: -self.half]

    def text(self):
        """What was kept, with a line that says how many bytes are left out between head and tail."""
        tail = bytes(self.tail[-self.half :])
        missing = self.size - len(self.head) - len(tail)
        between = f"\n[{missing:,} bytes left out here]\n".encode() if missing else b""
        return (bytes(self.head) + between + tail).decode("utf-8", "replace")


class KeptEvents:
    """Takes the lines that inside.py writes, [clock, process, kind, what], and keeps the first MOST_EVENTS of them. Lines
    that are not of that form, or too long, are dropped: anything inside can write to the trace."""

    def __init__(self):
        self.rest, self.rows = b"", []

    def add(self, data):
        """Takes some more bytes."""
        if len(self.rows) >= MOST_EVENTS:
            return
        *lines, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > LONGEST_EVENT:
            self.rest = b""
        self.rows += [row for row in map(event_row, lines) if row]
        del self.rows[MOST_EVENTS:]

    def since(self, begin):
        """The events, with seconds since `begin` on the monotonic clock, in the order in which they were heard."""
        return tuple(Event(max(0.0, clock - begin), *rest) for clock, *rest in self.rows)


def event_row(line):
    """(clock, process, kind, what) of a line of the trace, or None."""
    try:
        clock, process, kind, what = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return None
    right = isinstance(clock, float) and type(process) is int and kind in EVENT_KINDS and isinstance(what, str)
    return (clock, process, kind, what) if right and abs(clock) < 1e15 else None
