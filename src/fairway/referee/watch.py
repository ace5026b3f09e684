"""What a box takes while it runs: memory, processes and disk, looked at from outside."""

import os
import shutil
import time

import psutil

MOST_BOXED_FILES = 200_000  # in a work folder
SECONDS_BETWEEN = 0.05  # looks at a box, or ten times what one takes
SPARE = 16  # one part in so many of the machine's memory and of the file system stays free


class Watch:
    """Looks at the processes below `outer`, the process that started a box, and at the box's `work` folder."""

    def __init__(self, outer, limits, work):
        self.outer, self.limits, self.work = outer, limits, work
        memory = psutil.virtual_memory()
        self.memory_floor = min(memory.total // SPARE, memory.available // 2)
        self.disk_floor = min(shutil.disk_usage(work).free // 2, 1 << 30)
        self.due = self.disk_due = 0.0

    def broken(self):
        """The limit that is broken now (memory, disk, processes), or None; None as well where it is too early to look."""
        begin = time.monotonic()
        if begin < self.due:
            return None
        try:
            family = psutil.Process(self.outer).children(recursive=True)
        except psutil.Error:
            return None  # it has ended
        if len(family) - 1 > self.limits.processes:  # the first process of the box is ours
            return "processes"
        if self.memory_taken(family) or psutil.virtual_memory().available < self.memory_floor:
            return "memory"
        self.due = time.monotonic() + max(SECONDS_BETWEEN, 10 * (time.monotonic() - begin))
        begin = time.monotonic()
        if begin >= self.disk_due:
            if self.disk_taken(family):
                return "disk"
            self.disk_due = time.monotonic() + max(0.3, 10 * (time.monotonic() - begin))
        return None

    def memory_taken(self, family):
        """Whether the processes hold more than the limit; pages that they share are counted once where that decides."""
        return all(sum(figure_of(one, read) for one in family) > self.limits.memory for read in (resident_bytes, own_bytes))

    def disk_taken(self, family):
        """Whether the work folder holds more than the limit, or what was written (also to files that have lost their name,
        and in folders that nobody may read) is many times that."""
        if shutil.disk_usage(self.work).free < self.disk_floor:
            return True
        written = sum(figure_of(one, written_bytes) for one in family)
        return written > 8 * self.limits.disk or folder_bytes(self.work, MOST_BOXED_FILES) > self.limits.disk


def figure_of(process, read):
    """What `read` says of a process, 0 of one that has ended or that we may not look at."""
    try:
        return read(process)
    except (psutil.Error, OSError):
        return 0


def resident_bytes(process):
    """Bytes of memory with what others share."""
    return process.memory_info().rss


def own_bytes(process):
    """Bytes of memory, shared pages divided among those who share them."""
    try:
        return process.memory_full_info().pss
    except psutil.AccessDenied:
        return resident_bytes(process)


def written_bytes(process):
    """Bytes that the process and its ended children sent to a disk."""
    return process.io_counters().write_bytes


def folder_bytes(folder, most_files):
    """Bytes that a tree takes on the disk; endless where it has more files than `most_files`. Follows no link."""
    waiting, seen, total = [folder], 0, 0
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    seen += 1
                    if seen > most_files:
                        return float("inf")
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
        except OSError:
            continue
    return total
