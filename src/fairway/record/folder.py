"""`fairway record`: the folder that the contest takes, made from audited runs and from nothing else."""

import os
import re
import shutil
import tempfile
import unicodedata
from contextlib import contextmanager
from pathlib import Path

from ..files import file_sha256, refuse_unwritable, write_json, write_text
from ..problem import DoesNotHold, Problem
from ..referee.review import refuse_no_bpb, static_rows
from ..referee.rules import read_policy
from ..referee.verdict import FAIL, Findings, shown, summary_line
from ..runfolder import PACKED, PROGRAM
from ..terminal import print_table
from .admission import attempts_of, breaches_of, chosen_runs, refuse_false, refuse_twice
from .log import log_name, log_text
from .readme import readme_text
from .submission import submission_of

# Rules of the review that fail because of what was allowed.
COVERED = {
    "recipes": ("S3", "G5"),
    "code": ("S3", "G5"),
    "data": ("S3", "M1", "D4"),
    "cap": ("A1", "A2", "A3"),
    "time": ("T1", "T2", "T4"),
    "seeds": (),
    "audit": (),
}
# What mends a breach, where leaving the run out does not.
MENDS = {
    "recipes": "give runs of one recipe",
    "code": "give runs that were packed as one program",
    "data": "give runs on one data folder",
    "cap": "make the model smaller",
    "time": "train, calibrate or score for less time",
    "seeds": "train the missing seeds, and give every seed that was begun",
    "audit": "run `fairway audit` on it and mend what fails",
}


def write_record(runs, out, about, allow, record, with_model, note):
    """Writes the folder `out` from run folders at and below the paths `runs`, one a seed; returns what it holds.

    `about`: name, author, github, blurb, track. `allow`: kinds of breaches that may stand, which the README then lists.
    `record`: bpb of a record, or of its seeds. `with_model`: keep the first run's model.bin in it. `note(line)` tells how it
    goes. Problem for an `out` that is there; DoesNotHold for runs that do not agree with themselves, for a breach that is
    not allowed, and where the static review of the folder fails a rule that no allowed breach explains.
    """
    out = Path(out)
    refuse_no_bpb(record)
    refuse_about(about)
    if not out.name:
        raise Problem(f"--out {out} is empty or names no folder of its own; give a new folder")
    if out.exists() or out.is_symlink():
        raise Problem(f"{out} is already there; choose another folder, or remove it")
    refuse_unwritable(out.parent)
    runs = chosen_runs(runs)
    for one in runs:
        refuse_false(one)
    refuse_twice(runs)
    breaches = breaches_of(runs)
    refuse_breaches(breaches, allow)
    exceptions = [text for _, text in breaches]
    note(f"{len(runs)} runs agree with themselves" + (f"; allowed: {'; '.join(exceptions)}" if exceptions else ""))
    with making(out) as part:
        told = fill_folder(part, runs, about, record, exceptions, with_model, allow)
        findings = Findings(read_policy())
        findings.rows += static_rows(part, findings.policy.name, list(record) or None)
        refuse_failed(findings, {rule for kind in allow for rule in COVERED[kind]})
        report = findings.as_json("review")
        note(f"review: {summary_line(report)}")
        files = {path.name: path.stat().st_size for path in sorted(part.iterdir())}
    return {
        "folder": str(out), "name": told["name"], "track": told["track"], "val_bpb": told["val_bpb"],
        "val_bpb_std": told.get("val_bpb_std"), "seeds": told["seeds"], "bytes_total": told["bytes_total"],
        "model_of_seed": runs[0].seed if with_model else None, "compliance": told["compliance"], "exceptions": exceptions,
        "files": files, "review": report["summary"],
    }  # fmt: skip


def refuse_about(about):
    """Problem for an option of a submission's own words that its files cannot hold as they are."""
    for key, text in about.items():
        signs = [sign for sign in text if unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp")]
        if signs:
            raise Problem(f"--{key} holds {signs[0]!a}: a line end, a control sign or what is no UTF-8; leave it out")
        if not text.strip() and key != "blurb":
            raise Problem(f"--{key} is empty; give it a text")
    if not re.fullmatch("[A-Za-z0-9_-]+", about["track"]):
        raise Problem(f"--track {about['track']!r} takes letters, digits, - and _; as in 10min_16mb")
    if about["blurb"].lstrip().startswith(("#", "|")):
        raise Problem(f"--blurb {about['blurb']!r:.40} would be a heading or a table in the README; begin with a word")


def fill_folder(part, runs, about, record, exceptions, with_model, allow):
    """Writes the files into the folder `part`; returns submission.json's content."""
    first, hashes = runs[0], {}
    copy_checked(first, PROGRAM, part)
    if with_model:
        copy_checked(first, PACKED, part)
    for one in runs:
        write_text(part / log_name(one), log_text(one))
        hashes[log_name(one)] = file_sha256(part / log_name(one))
    told = submission_of(runs, about, record, hashes, exceptions)
    write_text(part / "README.md", readme_text(runs, told, exceptions, attempts_of(runs), with_model, allow))
    told["readme_sha256"] = file_sha256(part / "README.md")
    write_json(part / "submission.json", told)
    write_text(part / "requirements.txt", pinned_versions(first.run))
    return told


def copy_checked(one, name, part):
    """Copies a packed file of a run and checks that the copy is what was packed."""
    shutil.copyfile(one.folder / name, part / name)
    if file_sha256(part / name) != one.run["sha256"][name]:
        raise DoesNotHold(f"{one.folder / name} is not the file that was packed; pack, score and audit the run again")


def pinned_versions(run):
    """What train_gpt.py imports, in the versions that the run had, as far as run.json tells them."""
    versions = run.get("versions", {}) | {
        "torch": run["torch"].partition("+")[0]
    }  # builds for a device are not on the index
    names = ("numpy", "sentencepiece", "torch")
    return "".join(f"{name}=={versions[name]}\n" if name in versions else f"{name}\n" for name in names)


def refuse_breaches(breaches, allow):
    """DoesNotHold for the first breach that is not allowed; it names the kinds of the others."""
    refused = [(kind, text) for kind, text in breaches if kind not in allow]
    if refused:
        kind, text = refused[0]
        more = [other for other in dict.fromkeys(other for other, _ in refused) if other != kind]
        also = f" (also refused: {', '.join(more)})" if more else ""
        raise DoesNotHold(f"{text}; {MENDS[kind]}, or say so in the README by --allow {kind}{also}")


def refuse_failed(findings, covered):
    """DoesNotHold where a rule failed that no allowed breach explains."""
    failed = [row for row in findings.rows if row["verdict"] == FAIL and row["rule"] not in covered]
    if failed:
        more = f" ({len(failed) - 1} more)" if len(failed) > 1 else ""
        what = failed[0]["condition"].partition(":")[0]
        raise DoesNotHold(
            f"the review of the folder fails {failed[0]['rule']}, {what}: {shown(failed[0])}{more}; nothing was written"
        )


@contextmanager
def making(out):
    """Yields a folder beside `out` that takes its name if the block ends well, and is removed otherwise."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
    except OSError as error:
        raise Problem(f"cannot write {out}: {error.strerror}; free space or choose another folder") from error
    try:
        yield part
        mask = os.umask(0)
        os.umask(mask)
        part.chmod(0o777 & ~mask)  # mkdtemp makes folders private
        part.rename(out)
    except OSError as error:
        raise Problem(f"cannot write {out}: {error.strerror or error}; free space or choose another folder") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def print_record(result):
    """What was written, and what the review says of it."""
    rows = [(name, f"{size:,}") for name, size in result["files"].items()]
    print_table(f"{result['folder']}: {result['name']} ({result['track']})", ("file", "bytes"), rows)
    seeds, spread = ", ".join(map(str, result["seeds"])), result["val_bpb_std"]
    print(f"\nval_bpb {result['val_bpb']:.6f}, seeds {seeds}" + (f", std {spread:.6f}" if spread is not None else ""))
    for text in result["exceptions"]:
        print(f"exception: {text}")
    counts = result["review"]
    print(f"review: {counts['fail']} FAIL, {counts['pass']} PASS, {counts['not_tested']} NOT TESTED")
