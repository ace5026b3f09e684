"""`fairway review`: a reviewer's desk for folders of strangers.

What is read is read in a process of its own, with limits: a folder that brings its reader down is a finding, no crash.
"""

import math
import multiprocessing
import resource
from pathlib import Path

import psutil

from ..problem import Problem
from .claims import judge_claims, read_claims
from .dynamic import judge_dynamic
from .folder import judge_folder, read_folder
from .hashes import judge_hashes_told
from .logs import read_log
from .rules import read_policy
from .script import judge_match, judge_script, read_script
from .seeds import judge_seeds
from .sums import judge_logs, judge_sizes
from .verdict import Findings

READ_SECONDS, READ_MEMORY = 240.0, 8 << 30  # of the process that reads a folder


def review_folder(folder, dynamic=False, policy="as-practised", note=None, record=None, seconds=300.0):
    """Judges a submission folder; returns the report. `dynamic` runs its script in the sandbox, for `seconds` in all.

    `record`: bpb that it claims to beat. Problem for a folder that is not there, and for figures that are none.
    """
    refuse_no_bpb([record] if record is not None else [])
    if not 0 < seconds < math.inf:
        raise Problem(f"--seconds {seconds} is no time; give a number above 0")
    if not Path(folder).is_dir():
        raise Problem(f"{folder} is no folder; give the folder of a submission")
    say = note or (lambda line: None)
    findings = Findings(read_policy(policy))
    say("files, claims, logs")
    findings.rows += read_apart(folder, policy, record)
    if dynamic:
        found = read_folder(folder)
        script = main_script(found)
        if script is not None:
            judge_dynamic(findings, found, script, say, seconds)
    return findings.as_json("review") | {"folder": str(folder), "dynamic": dynamic}


def refuse_no_bpb(record):
    """Problem where one of a record's figures is no bits per byte."""
    for figure in record:
        if not 0 < figure < math.inf:
            raise Problem(f"--record {figure} is no bpb; give a number above 0")


def main_script(found):
    """The Script of the folder's train_gpt.py, or of what stands in for it; None where there is none."""
    names = found.scripts()
    return read_script(found, names[0]) if names else None


def static_rows(folder, policy, record):
    """The verdicts that reading gives: rows of Findings."""
    findings = Findings(read_policy(policy))
    found = read_folder(folder)
    judge_folder(findings, found)
    script, claims = main_script(found), read_claims(found)
    logs = [read_log(found, name) for name in found.logs()]
    if script is not None:
        judge_script(findings, found, script)
        judge_match(findings, script, logs)
    judge_logs(findings, logs, claims)
    judge_sizes(findings, found, logs, script)
    judge_seeds(findings, logs, claims, record)
    judge_claims(findings, found, logs, claims)
    judge_hashes_told(findings, found, script, logs, claims)
    return findings.rows


def read_apart(folder, policy, record):
    """`static_rows` by a process of its own. If that dies or takes too long, a row that says so."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    reader = context.Process(target=send_rows, args=(theirs, str(folder), policy, record), daemon=True)
    reader.start()
    theirs.close()
    try:
        if not ours.poll(READ_SECONDS):
            return fault_rows(policy, f"reading it took more than {READ_SECONDS:.0f} s")
        answer = ours.recv()
    except EOFError:
        reader.join(5)
        return fault_rows(policy, f"its reader died (exit code {reader.exitcode})")
    finally:
        reader.kill()
        reader.join()
        ours.close()
    return answer


def send_rows(pipe, folder, policy, record):
    """In the process that reads: sends rows."""
    most = psutil.Process().memory_info().vms + READ_MEMORY  # libraries for GPUs take address space without end
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        pipe.send(static_rows(folder, policy, record))
    except Problem as problem:
        pipe.send(fault_rows(policy, str(problem)))
    except (MemoryError, RecursionError) as error:
        pipe.send(fault_rows(policy, f"its reader ended with {type(error).__name__}"))


def fault_rows(policy, fault):
    """The row of a folder that could not be read."""
    findings = Findings(read_policy(policy))
    findings.say("G7", False, fault, "a folder that can be read", evidence="nothing else was tested")
    return findings.rows
