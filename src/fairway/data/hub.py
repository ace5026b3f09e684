"""FineWeb as the contest tokenised it, from the Hugging Face hub into a data folder that `open_dataset` reads."""

import glob
import hashlib
import re
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from ..files import file_sha256, refuse_unwritable, write_json
from ..problem import Problem
from .dataset import MANIFEST, MANIFEST_FORMAT, open_dataset
from .shards import open_shard

FINEWEB_REPOS = {1024: "willdepueoai/parameter-golf", 8192: "kevclark/parameter-golf"}
CASEOPS_REPO = "romeerp/parameter-golf-caseops-v1"  # PR #1729: text with its case moved into marks, 8,192 pieces
_SHARD_PATH = re.compile(
    r"(?:.*/)?(?P<folder>(?:[^/]*_)?sp(?P<vocab>\d+)[^/]*)/fineweb_(?P<kind>train|val|val_bytes)_\d+\.bin"
)


@dataclass(frozen=True)
class FinewebFiles:
    """What is taken from the repository, as the hub lists it: path, size and hash of every file."""

    train: tuple[RepoFile, ...]
    val: tuple[RepoFile, ...]
    byte_files: tuple[RepoFile, ...]  # of CaseOps: the original bytes of every validation token
    tokenizer: RepoFile
    notes: tuple[RepoFile, ...]  # the publisher's own manifests

    def all(self):
        return *self.train, *self.val, *self.byte_files, self.tokenizer, *self.notes


def download_fineweb(out, vocab=1024, train_shards=1, caseops=False, endpoint=None, progress=None):
    """Fetches all validation shards, the first `train_shards` training shards and the tokenizer; returns the manifest.

    Files that are there and whole are kept, so that more shards later only add files and an interrupted call goes on
    with the files it lacks; every file is compared with the hub's size and hash, a bad one is fetched once more.
    `endpoint` defaults to the hub library's own (HF_ENDPOINT). `progress` is called with lines of text; the library
    draws its bars on stderr. Raises Problem when the hub cannot be had or does not hold what was asked for.
    """
    out, say = Path(out), progress or (lambda line: None)
    if not caseops and vocab not in FINEWEB_REPOS:
        raise Problem(f"no published FineWeb of {vocab} pieces; take one of {', '.join(map(str, FINEWEB_REPOS))}")
    if train_shards < 0:
        raise Problem(f"{train_shards} training shards cannot be; take 0 or more")
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        raise Problem(f"endpoint {endpoint!r} is no address; write it as https://huggingface.co")
    repo = CASEOPS_REPO if caseops else FINEWEB_REPOS[vocab]
    train_shards = max(train_shards, _already_there(out, repo, vocab))
    refuse_unwritable(out)
    api = HfApi(endpoint=endpoint)
    with _asking(api, repo):
        commit = api.dataset_info(repo).sha
        listing = [one for one in api.list_repo_tree(repo, recursive=True, revision=commit, repo_type="dataset")]
    files = choose_files([one for one in listing if isinstance(one, RepoFile)], repo, vocab, train_shards, caseops)
    _fetch(api, repo, commit, out, files.all(), say)
    manifest = _describe_download(out, repo, commit, vocab, files)
    write_json(out / MANIFEST, manifest)
    return manifest


def _already_there(out, repo, vocab):
    """How many training shards of this dataset the folder holds; Problem if it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return 0
    if (out / MANIFEST).is_file():
        manifest = open_dataset(out).manifest
        if (manifest.get("source"), manifest.get("vocab")) == (repo, vocab):
            return sum(shard["split"] == "train" for shard in manifest["shards"])
        raise Problem(f"{out} holds {manifest.get('source')} with {manifest.get('vocab')} pieces; choose another folder")
    if (out / ".cache" / "huggingface").is_dir():  # an interrupted download
        return 0
    raise Problem(f"{out} is not empty and no download; choose another folder")


@contextmanager
def _asking(api, repo):
    """Turns whatever the hub library raises into one line."""
    try:
        yield
    except GatedRepoError as error:
        terms = f"{api.endpoint}/datasets/{repo}"
        raise Problem(f"{repo} is gated: accept its terms on {terms}, then `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise Problem(f"{api.endpoint} shows no dataset {repo}; check the endpoint, or `hf auth login`") from error
    except OfflineModeIsEnabled as error:
        raise Problem(f"{repo} cannot be fetched while HF_HUB_OFFLINE is set; unset it") from error
    except Exception as error:  # its HTTP client, its parser and hf_xet each raise their own
        reason = str(error.__cause__ or error).strip().partition("\n")[0] or type(error).__name__
        raise Problem(f"no {repo} from {api.endpoint}: {reason}; check network and endpoint, then run it again") from error


def choose_files(listing, repo, vocab, train_shards, caseops=False):
    """Picks files by name, wherever in the repository they lie. Raises Problem that says what is there instead."""
    listing = sorted(listing, key=lambda file: file.path)
    matches = [(found, file) for file in listing if (found := _SHARD_PATH.fullmatch(file.path))]
    folders = dict.fromkeys(found["folder"] for found, _ in matches)
    suitable = [
        found["folder"] for found, _ in matches if int(found["vocab"]) == vocab and _is_caseops(found["folder"], caseops)
    ]
    folder = _only(f"folder of shards with {vocab} pieces", repo, suitable, folders, f"fineweb10B_sp{vocab}")
    of_kind = {
        kind: tuple(file for found, file in matches if (found["folder"], found["kind"]) == (folder, kind))
        for kind in ("train", "val", "val_bytes")
    }
    there = len(of_kind["train"])
    if train_shards > there:
        raise Problem(f"{repo} has {there} training shards in {folder}, not {train_shards}; take {there} or fewer")
    if not of_kind["val"] or (caseops and not of_kind["val_bytes"]):
        missing = "fineweb_val_bytes_*.bin" if of_kind["val"] else "fineweb_val_*.bin"
        raise Problem(f"{repo} has no {missing} in {folder}, so nothing to score; choose another vocabulary")
    models = {PurePosixPath(file.path).name: file for file in listing if file.path.endswith(".model")}
    suitable = [name for name in models if re.search(rf"(?<!\d){vocab}(?!\d)", name) and _is_caseops(name, caseops)]
    model = models[_only(f"tokenizer of {vocab} pieces", repo, suitable, models, f"fineweb_{vocab}_bpe.model")]
    # One at the root would lie where our own goes.
    notes = tuple(file for file in listing if file.path.endswith(f"/{MANIFEST}"))
    return FinewebFiles(of_kind["train"][:train_shards], of_kind["val"], of_kind["val_bytes"], model, notes)


def _is_caseops(name, wanted):
    return ("caseops" in name.lower()) == wanted


def _only(what, repo, suitable, found, usual):
    """The usual name if it is there, or else the only suitable one."""
    suitable = list(dict.fromkeys(suitable))
    if usual in suitable:
        return usual
    if len(suitable) != 1:
        there = ", ".join(suitable or found) or "nothing of the kind"
        raise Problem(f"{repo} has {len(suitable)} candidates for the {what} (found: {there}); choose another vocabulary")
    return suitable[0]


def _fetch(api, repo, commit, out, files, say):
    """Makes every file in `files` be there as the hub describes it. One that is not is removed and fetched again, once."""
    missing = sum(file.size for file in files if not (out / file.path).is_file())
    out.mkdir(parents=True, exist_ok=True)
    if missing > (free := shutil.disk_usage(out).free):
        raise Problem(f"{out} has {free:,} bytes free but the download takes {missing:,}; free space or take fewer shards")
    say(f"{repo} at {commit[:12]}: {len(files)} files, {missing:,} bytes to fetch")
    for _ in range(2):
        patterns = [glob.escape(file.path) for file in files]
        with _asking(api, repo):
            snapshot_download(
                repo, repo_type="dataset", revision=commit, allow_patterns=patterns, local_dir=out, endpoint=api.endpoint
            )
        faults = [(file, fault) for file in files if (fault := _fault(out / file.path, file))]
        if not faults:
            return
        for file, fault in faults:
            say(f"{file.path} {fault}: removed")
            (out / file.path).unlink(missing_ok=True)
        files = [file for file, _ in faults]
    file, fault = faults[0]
    raise Problem(f"{file.path} of {repo} {fault}, twice; it was removed: run it again, or tell the publisher")


def _fault(path, file):
    """What is wrong with a file, or None: its size and hash against those that the hub lists."""
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != file.size:
        return f"has {path.stat().st_size:,} bytes instead of {file.size:,}"
    if file.lfs is not None:
        same = file_sha256(path) == file.lfs.sha256
    else:  # git's own name for a blob
        same = hashlib.sha1(b"blob %d\0" % file.size + path.read_bytes()).hexdigest() == file.blob_id
    return None if same else "does not have the hash that the hub lists"


def _describe_download(out, repo, commit, vocab, files):
    """Our manifest: see `open_dataset`. Problem if a shard's header does not fit its size."""
    train, val, byte_files = (
        [{"file": file.path, "tokens": _tokens(out / file.path, repo), "sha256": _sha256(out, file)} for file in part]
        for part in (files.train, files.val, files.byte_files)
    )
    totals = [sum(entry["tokens"] for entry in part) for part in (train, val, byte_files)]
    if byte_files and totals[2] != totals[1]:
        raise Problem(f"{repo} gives bytes for {totals[2]} of {totals[1]} validation tokens: tell the publisher")
    return {
        "format": MANIFEST_FORMAT,
        "source": repo,
        "revision": commit,
        "vocab": vocab,
        "tokenizer": {"file": files.tokenizer.path, "sha256": _sha256(out, files.tokenizer)},
        "tokens": {"train": totals[0], "val": totals[1]},
        "shards": [{"split": split, **entry} for split, part in (("train", train), ("val", val)) for entry in part],
        "byte_files": byte_files,
    }


def _tokens(path, repo):
    try:
        return len(open_shard(path))
    except Problem as problem:
        raise Problem(f"{repo} publishes a bad shard, tell them: {problem}") from problem


def _sha256(out, file):
    return file.lfs.sha256 if file.lfs is not None else file_sha256(out / file.path)
