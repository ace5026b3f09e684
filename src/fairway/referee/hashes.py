"""Hashes that a folder states of its own files: those of the script, of each seed's log and model, of recipe and data.

A key tells what it is the hash of: a file's name before "sha256", or the log or model of the seed that it stands beside.
Where that is not certain, nothing is said.
"""

import hashlib
import posixpath
import re

from .script import MOST_SCRIPT

SHA256 = r"(?i)[0-9a-f]{64}"
ANY_HASH = r"(?i)[0-9a-f]{8,64}"
HASH_KEY = r"(?i)[_. -]*sha-?256(?:sums?)?[: ]*$"
# What all seeds share: a hash of settings may well be of the seed too.
SHARED = r"(?i)(?:code|script|source|recipe|data|dataset|tokenizer|train_gpt)_(?:sha256|hash)"
CODE_WORDS = ("code", "script", "train_gpt", "train_gpt.py")
LARGEST_HASHED = 64 << 20  # bytes of a file
MOST_VALUES = 5000


def judge_hashes_told(findings, folder, script, logs, claims):
    """G5, G3, S3 and G4: what is stated of the script, of the other files, of all seeds, and whose model.bin is."""
    told = [(claims.name, *one) for one in hashes_in(claims.values)]
    told += [(log.name, log.seed, key, value) for log in logs for key, value in log.settings.items() if is_hash(key)]
    if claims.readme:
        told += [(claims.readme.name, None, f"{name} sha256", value) for name, value in claims.readme.hashes]
    judge_code_told(findings, script, folder, [one for one in told if stem_of(one[2]) in CODE_WORDS])
    judge_files_told(findings, folder, logs, claims, [one for one in told if stem_of(one[2]) not in CODE_WORDS])
    judge_shared(findings, logs, claims)


def hashes_in(values):
    """[(seed or None, key, value)] of the hashes of files in submission.json, however deep. The seed is the row's."""
    found, left, looked = [], [(None, "", values)], 0
    while left and looked < MOST_VALUES:
        seed, above, value = left.pop()
        looked += 1
        if isinstance(value, list):
            left += [(seed, above, one) for one in value]
        if not isinstance(value, dict):
            continue
        seed = seed_in(value.get("seed"), seed)
        for key, one in value.items():
            name = f"{key}_sha256" if isinstance(one, str) and re.fullmatch(HASH_KEY, above) else key
            if isinstance(one, str) and is_hash(name):
                found.append((seed, name, one))
            elif isinstance(one, (dict, list)):
                left.append((seed_in(key, seed), key, one))
    return found


def seed_in(value, seed):
    """The seed that a key or a value names, or the one known before."""
    found = re.fullmatch(r"(?i)(?:seed[_ -]?)?(\d{1,9})(?:\.0)?", str(value)) if value is not None else None
    return int(found[1]) if found else seed


def is_hash(key):
    """Whether a key is that of a file's hash."""
    return stem_of(key) not in ("", key.lower())


def stem_of(key):
    """What stands before "sha256" in a key, lower case."""
    return re.sub(HASH_KEY, "", key).lower()


def forms_of(data):
    """{hash: how} of bytes as they are and, for a text, with either line end: a checkout may change them."""
    plain = data.replace(b"\r\n", b"\n")
    forms = {hashlib.sha256(plain.replace(b"\n", b"\r\n")).hexdigest(): "with its line ends as on Windows"}
    forms[hashlib.sha256(plain).hexdigest()] = "with its line ends made one character"
    return forms | {hashlib.sha256(data).hexdigest(): "as it lies there"}


def judge_code_told(findings, script, folder, told):
    """G5: hashes of the code in logs and submission.json are those of the script, as shipped or unpacked."""
    if script is None:
        return
    forms = {hashlib.sha256(script.text.encode("utf-8", "replace")).hexdigest(): "unpacked"}
    forms |= forms_of(folder.data(script.name, MOST_SCRIPT))
    own = next(value for value, how in forms.items() if how == "as it lies there")
    good = []
    for where, _, key, value in told:
        how = forms.get(value.lower())
        if not re.fullmatch(SHA256, value):
            findings.untested("G5", f"{where} {key}: {value[:80]} is no SHA-256")
        elif how is not None:
            good.append(f"{where} {key}: {script.name} {how}")
        elif not stem_of(key).startswith("train_gpt") and (script.siblings or script.faults or len(script.sizes) > 2):
            findings.untested("G5", f"{where} {key}: it may be of {script.name} with other files, or half unpacked")
        else:
            findings.say("G5", False, value, own, "", f"{where} {key}: {script.name} is other code")
    if good:
        findings.say("G5", True, own, "", "", "; ".join(good))


def judge_files_told(findings, folder, logs, claims, told):
    """G3: hashes of logs, models and other files that are there; hashes of one seed's model agree wherever they stand."""
    good, models = [], {}
    for where, seed, key, value in told:
        name = file_of(folder, logs, key, seed)
        if not re.fullmatch(SHA256, value):
            findings.untested("G3", f"{where} {key}: {value[:80]} is no SHA-256")
            continue
        if seed is not None and stem_of(key) != "log":
            models.setdefault((stem_of(key), seed), {})[f"{where} {key}"] = value.lower()
        if name is None or folder.entry(name).size > LARGEST_HASHED:
            continue
        forms = forms_of(folder.data(name, LARGEST_HASHED))
        if value.lower() in forms:
            good.append(f"{name} ({forms[value.lower()]})")
        elif seed is None or stem_of(key) == "log":
            own = next(one for one, how in forms.items() if how == "as it lies there")
            findings.say("G3", False, own, value, "", f"{name} is another file than {where} states under {key}")
    for (stem, seed), rows in models.items():
        if len(set(rows.values())) > 1:
            findings.say("G3", False, rows, "one hash", "", f"{stem} of seed {seed}")
    judge_seeds_files(findings, folder, models, claims, good)
    if good:
        findings.say("G3", True, f"{len(good)} hashes", "", "", ", ".join(dict.fromkeys(good)))


def judge_seeds_files(findings, folder, models, claims, good):
    """G3: a file of which every seed has its own is one seed's. G4: the one that the README says. Adds it to `good`."""
    for stem in sorted({stem for stem, _ in models}):
        name = file_of(folder, (), stem, None)
        if name is None or folder.entry(name).size > LARGEST_HASHED:
            continue
        own = forms_of(folder.data(name, LARGEST_HASHED))
        stated = {seed: next(iter(rows.values())) for (of, seed), rows in models.items() if of == stem}
        seeds = sorted(seed for seed, value in stated.items() if value in own)
        if not seeds:
            holds = False if set(claims.seeds) <= set(stated) else None  # it may be of a seed that states none
            findings.say("G3", holds, list(own)[-1], stated, "", f"{name} is of none of the seeds")
        good += [f"{name} (of seed {seed})" for seed in seeds]
        said = [seed for file, seed in (claims.readme.owners if claims.readme else ()) if file == name]
        if seeds and said:
            findings.say("G4", set(said) <= set(seeds), said, seeds, "", f"{claims.readme.name}: the seed that {name} is of")


def file_of(folder, logs, key, seed):
    """The name of the file that a key names: a file or one without its ending, or the seed's log; None for anything else."""
    stem = stem_of(key)
    if stem == "log":
        named = [log.name for log in logs if re.search(rf"(?<!\d){seed}(?!\d)", posixpath.basename(log.name))]
        named = named or [log.name for log in logs if log.seed == seed]
    else:
        top = [one.name for one in folder.files() if "/" not in one.name]
        named = [name for name in top if name.lower() == stem]
        # model.py is not what a model's hash is of.
        others = [name for name in top if not name.lower().endswith((".py", ".json", ".sh"))]
        named = named or [name for name in others if posixpath.splitext(name.lower())[0] == stem]
    return named[0] if len(named) == 1 else None


def judge_shared(findings, logs, claims):
    """S3: hashes of code, recipe and data are the same in all logs. G3: and those that submission.json states."""
    same, stated = [], []
    for key in sorted({key for log in logs for key, value in log.settings.items() if is_shared(key, value)}):
        rows = {log.name: log.settings[key].lower() for log in logs if is_shared(key, log.settings.get(key, ""))}
        claimed = claims.values.get(key)
        if len(set(rows.values())) > 1:
            findings.say("S3", False, rows, "the same for all seeds", "", f"{key} differs: a seed of something else")
        elif len(rows) > 1:
            same.append(key)
        if not isinstance(claimed, str) or not re.fullmatch(ANY_HASH, claimed) or stem_of(key) in CODE_WORDS:
            continue
        if claimed.lower() in rows.values():
            stated.append(key)
        else:
            findings.say("G3", False, claimed, rows, "", f"{claims.name} {key}, and the logs'")
    if same:
        findings.say("S3", True, ", ".join(same), "", "", f"the same in {len(logs)} logs")
    if stated:
        findings.say("G3", True, ", ".join(stated), "", "", f"{claims.name}, and the logs'")


def is_shared(key, value):
    """Whether a line of a log states a hash that is one for all seeds."""
    return bool(re.fullmatch(SHARED, key) and re.fullmatch(ANY_HASH, value))
