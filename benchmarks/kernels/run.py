"""Times the fast and the reference form of each kernel that stands in this folder, in turns, on one GPU (or a CPU).

A file here has `case(device, tokens)`, which gives one or more of

    {"name": str, "reference": callable, "fast": callable, "bytes": int, "flops": int}

where a call is one forward and backward pass on inputs made before; bytes and flops are the least that it must move and do.
"""

import argparse
import gc
import importlib.util
import json
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch

WARM_CALLS, BLOCKS, CALLS = 3, 5, 10
ROW = 2048  # positions of a row of a batch
FORMS = ("reference", "fast")
COLUMNS = ("name", "reference ms", "fast ms", "ratio", "fast GB/s", "fast TFLOP/s")


def main(arguments=None):
    """Runs the cases that are asked for. Returns the exit code: 0, or 1 if one failed, or 2 if there is none of a name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="files of this folder, without .py; all, if none is given")
    parser.add_argument("--out", type=Path, help="file to add a line of JSON a case to")
    parser.add_argument("--tokens", type=int, default=98_304, help="of a micro-batch")
    wanted = parser.parse_args(arguments)
    folder = Path(__file__).parent
    known = {path.stem: path for path in sorted(folder.glob("*.py")) if path.name != Path(__file__).name}
    if missing := set(wanted.names) - set(known):
        print(f"no {', '.join(sorted(missing))} in {folder}: there are {', '.join(known)}", file=sys.stderr)
        return 2
    if wanted.tokens < 1 or (wanted.tokens > ROW and wanted.tokens % ROW):
        print(f"--tokens {wanted.tokens}: give 1 to {ROW}, or a multiple of {ROW}, the length of a row", file=sys.stderr)
        return 2
    if wanted.out:
        try:
            wanted.out.parent.mkdir(parents=True, exist_ok=True)
            open(wanted.out, "a").close()
        except OSError as error:
            print(f"cannot write {wanted.out}: {error.strerror}; give another file", file=sys.stderr)
            return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{device_label(device)}, torch {torch.__version__}, {wanted.tokens:,} tokens;", end=" ")
    print(f"ms forward and backward, median (smallest to largest) of {BLOCKS} blocks of {CALLS}")
    print_line(COLUMNS)
    failed = 0
    for name in wanted.names or known:
        for row in run_file(known[name], device, wanted.tokens):
            failed += "error" in row
            print_row(row)
            if wanted.out:
                add_line(wanted.out, describe(device, wanted.tokens) | row)
        release(device)
    return int(failed > 0)


def run_file(path, device, tokens):
    """Yields a row for each case of a file; of one that fails {"name", "error"}."""
    try:
        spec = importlib.util.spec_from_file_location(f"kernel_case_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = module.case(device, tokens)
        cases = list(found) if isinstance(found, (list, tuple)) else [found]
        if not cases or not all(isinstance(case, dict) for case in cases):
            raise ValueError(f"{path.name} gave {found!r}, which is no case")
    except (Exception, SystemExit) as error:  # whatever it is, the others go on
        traceback.print_exc()
        yield {"name": path.stem, "error": f"{type(error).__name__}: {error}"}
        return
    for case in cases:
        try:
            yield time_case(case, device)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            yield {"name": case.get("name", path.stem), "error": f"{type(error).__name__}: {error}"}


def time_case(case, device):
    """The row of a case: blocks of both forms in turns, each turn in the other order."""
    spent = {form: [] for form in FORMS}
    for form in FORMS:
        for _ in range(WARM_CALLS):
            case[form]()
        wait(device)
    for number in range(BLOCKS):
        for form in FORMS if number % 2 == 0 else FORMS[::-1]:
            spent[form].append(block_ms(case[form], device))
    row = {"name": case["name"], "bytes": case["bytes"], "flops": case["flops"]}
    for form, blocks in spent.items():
        row[form] = {"ms": median(blocks), "smallest": min(blocks), "largest": max(blocks)}
    seconds = row["fast"]["ms"] / 1000
    rates = {"gb_per_s": case["bytes"] / seconds / 1e9, "tflop_per_s": case["flops"] / seconds / 1e12}
    return row | {"ratio": row["reference"]["ms"] / row["fast"]["ms"], **rates}


def block_ms(call, device):
    """Milliseconds a call, of CALLS that are queued one after the other on an idle device."""
    wait(device)
    if device.type != "cuda":
        begin = time.perf_counter()
        for _ in range(CALLS):
            call()
        return 1000 * (time.perf_counter() - begin) / CALLS
    # A call before the first mark: the host is then ahead of the device, whose time is what counts.
    call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(CALLS):
        call()
    end.record()
    wait(device)
    return begin.elapsed_time(end) / CALLS


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device):
    """Gives back the memory of the cases before, and forgets what was compiled for them."""
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def device_label(device):
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu x{torch.get_num_threads()}"


def describe(device, tokens):
    """Where and when a line was measured."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"date": date, "device": device_label(device), "torch": torch.__version__, "tokens": tokens}


def add_line(path, row):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as out:
        out.write(json.dumps(row) + "\n")


def print_line(cells):
    print(f"{cells[0]:<28}{cells[1]:>30}{cells[2]:>30}{cells[3]:>8}{cells[4]:>12}{cells[5]:>14}", flush=True)


def print_row(row):
    if "error" in row:
        print(f"{row['name']:<28}failed: {row['error'][:2000]}", flush=True)
        return
    times = [f"{one['ms']:.3f} ({one['smallest']:.3f} to {one['largest']:.3f})" for one in (row["reference"], row["fast"])]
    print_line((row["name"], *times, f"{row['ratio']:.2f}", f"{row['gb_per_s']:,.0f}", f"{row['tflop_per_s']:,.1f}"))


if __name__ == "__main__":
    sys.exit(main())
