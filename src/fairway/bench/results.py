"""What `fairway bench` found: rows of a CSV file that several processes may add to, and the table on the screen."""

import csv
import fcntl
import io
import os
from pathlib import Path

from ..files import refuse_unwritable
from ..problem import Problem
from ..record.runfiles import refuse_other_file
from ..terminal import print_table

BENCH_COLUMNS = (
    "date", "recipe", "recipe_hash", "changes", "phase", "ranks", "device", "torch", "triton", "cuda", "fairway",
    "source_hash", "data", "tokens", "n", "steps", "step_ms", "step_min", "step_max", "forward_ms", "backward_ms",
    "optimiser_ms", "communication_ms", "host_ms", "tokens_per_s", "mfu", "floor_ms", "memory_gib", "compile_s",
)  # fmt: skip
BENCH_FOLDER, BENCH_FILE = Path("benchmarks"), "results.csv"
HOST_SHARE = 0.95  # of a step: where the host needs more, it is what the step waits for


def bench_lines(rows, header):
    """CSV of the rows, with the line of column names before them if `header`. What is None stays empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([BENCH_COLUMNS] * header)
    writer.writerows([row[column] for column in BENCH_COLUMNS] for row in rows)
    return text.getvalue().encode()


def bench_place(out):
    """The file to add rows to: `out`, or results.csv in the folder benchmarks/ where there is one, or None.

    Problem, before anything is measured, where it cannot be written or is no such table.
    """
    if out is None and not BENCH_FOLDER.is_dir():
        return None
    path = Path(out) if out is not None else BENCH_FOLDER / BENCH_FILE
    if path.is_dir():
        raise Problem(f"--out {path} is a folder; name a file, as in {path / BENCH_FILE}")
    try:
        if path.exists() and not path.is_file():
            raise Problem(f"--out {path} is no plain file; name one")
        refuse_other_file(path, bench_lines((), True), "table of fairway bench with these columns")
        if path.exists():
            open(path, "ab").close()
        else:
            refuse_unwritable(path.parent)
    except OSError as error:
        raise Problem(f"cannot write {path}: {error.strerror}; choose another file by --out") from error
    return path


def append_bench(path, rows):
    """Adds rows at the end of the file, all or none, one process after the other; the first writes the column names."""
    size = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = os.fstat(file.fileno()).st_size
            # A last line without an end, as some editors leave it, gets one.
            ended = size == 0 or path.read_bytes().endswith(b"\n")
            lines = b"\n" * (not ended) + bench_lines(rows, size == 0)
            try:
                if file.write(lines) < len(lines):
                    raise OSError(0, "the disk is full")
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(size)
                raise
    except OSError as error:
        raise Problem(f"cannot write {path}: {error.strerror}; free space or choose another file") from error


def print_bench(result):
    """One column a phase: milliseconds a step and by part, tokens, utilisation, the floor, memory; then what these mean."""
    rows, first = result["rows"], result["rows"][0]
    ranks = f"{first['ranks']} ranks" if first["ranks"] > 1 else "1 rank"
    title = f"{first['recipe']} on {first['device']}, {ranks}: {first['tokens']:,} tokens a rank and step"
    if first["changes"]:
        title += f"\nwith {first['changes']}"
    names = [f"phase {row['phase']}, {count} blocks" for row, count in zip(rows, result["visits"], strict=True)]
    print_table(title, ("", *names), bench_cells(result))
    print(f"\nmedian of {first['n']} times {first['steps']} steps queued back to back (smallest to largest); parts, memory")
    text = "random tokens" if first["data"] == "synthetic" else first["data"]
    print(f"apart, of steps launched kernel by kernel, on the first rank; text: {text}")
    print(f"floor: products and attention at {result['product_tflops']:.3g} TFLOP/s, which one product of", end=" ")
    print(f"{result['product_size']} x {result['product_size']} matrices reaches here; no bytes, no optimiser")
    for row, name in zip(rows, names, strict=True):
        if row["host_ms"] is not None and row["host_ms"] > HOST_SHARE * row["step_ms"]:
            print(f"{name}: the host holds the device up, or waits for it inside the step")
    print(f"added to {result['out']}" if result["out"] else "written nowhere: no folder benchmarks/ here, and no --out FILE")


def bench_cells(result):
    """The table's lines, as text."""
    rows, peak = result["rows"], result["peak_tflops"]

    def line(name, cell):
        return (name, *(cell(row) for row in rows))

    def ms(column):
        return lambda row: "-" if row[column] is None else f"{row[column]:,.2f}"

    cells = [
        line("ms a step", lambda row: f"{row['step_ms']:,.2f} ({row['step_min']:,.2f} to {row['step_max']:,.2f})"),
        line("  forward", ms("forward_ms")),
        line("  backward", ms("backward_ms")),
        line("  optimiser and averages", ms("optimiser_ms")),
        line("communication, were it alone", ms("communication_ms")),
        line("host, to queue a step", ms("host_ms")),
        line("floor, ms a step", ms("floor_ms")),
        line("tokens/s a rank", lambda row: f"{row['tokens_per_s']:,}"),
        line("tokens/s in all", lambda row: f"{row['tokens_per_s'] * row['ranks']:,}"),
        ("MFLOP a token", *(f"{flops / 1e6:,.1f}" for flops in result["flops_per_token"])),
    ]
    if peak is None:
        cells.append(line("utilisation (peak unknown here)", lambda row: "-"))
    else:
        cells.append(line(f"utilisation of {peak:,.0f} TFLOP/s", lambda row: f"{100 * row['mfu']:.1f} %"))
    memory = line("GiB at most", lambda row: "-" if row["memory_gib"] is None else f"{row['memory_gib']:.2f}")
    return [*cells, memory, line("s to compile and warm up", lambda row: f"{row['compile_s']:.1f}")]
