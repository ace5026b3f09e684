"""The command line: parses and calls, nothing else. Heavy imports wait until a command needs them."""

import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .problem import DoesNotHold, Interrupted, Problem
from .version import VERSION


@dataclass(frozen=True, kw_only=True)
class CommandBase:
    """What every command has: `run(terminal)` gives a JSON-able result and the function that shows it."""

    json: bool = False
    """print the result as JSON on standard output"""

    def code(self, result):
        """The exit code of a result that was shown."""
        return 0


@dataclass(frozen=True, kw_only=True)
class DemoCommand(CommandBase):
    """Builds the embedded corpus, trains a small model on the CPU, packs it, scores the packed file."""

    out: Path = Path("runs")
    """folder for the data and the run"""
    steps: int | None = None
    """fewer steps than the recipe's, for a quick look"""
    full: bool = False
    """three short seeds, audited; a record folder, its review, a comparison and a report"""

    def run(self, terminal):
        from .demo import print_demo, print_full_demo, run_demo, run_full_demo

        if self.full:
            return run_full_demo(self.out, self.steps, terminal), print_full_demo
        return run_demo(self.out, self.steps, terminal), print_demo


@dataclass(frozen=True, kw_only=True)
class RecipesCommand(CommandBase):
    """Lists the recipes; shows one as a tree; shows how two differ."""

    name: tyro.conf.Positional[str | None] = None
    """the recipe to show"""
    diff: str | None = None
    """another recipe, to compare with"""

    def run(self, terminal):
        from .listing import list_recipes, show_recipe

        if self.name is None and self.diff is not None:
            raise Problem(f"--diff {self.diff} compares with a recipe: name it, as in: fairway recipes demo --diff pr162")
        found = list_recipes() if self.name is None else show_recipe(self.name, self.diff)
        return found, lambda found: print(found["text"])


@dataclass(frozen=True, kw_only=True)
class PlanCommand(CommandBase):
    """Forecasts what a recipe costs before any training: bytes, FLOPs, steps in its budget, memory, scoring."""

    name: tyro.conf.Positional[str]
    """a recipe's name, or a recipe.py"""
    ranks: int = 8
    """GPUs to train and score on"""
    tflops: float = 250.0
    """assumed 10^12 FLOPs a second and GPU, of matrices and attention; public logs imply 227 to 289 on an H100"""
    set: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """path=value ...: fields of the recipe, as in train.clip=1.0"""

    def run(self, terminal):
        from .forecast import plan_run, print_plan

        return plan_run(self.name, sum(self.set, ()), self.ranks, self.tflops), print_plan


@dataclass(frozen=True, kw_only=True)
class BenchCommand(CommandBase):
    """Measures a recipe's training step: ms by phase and part, tokens/s, utilisation, memory; several GPUs under torchrun.

    A step is one micro-batch on each GPU and one update, at full rate and at the budget's start. The floor beside it counts
    products and attention at the rate of one large product here; no traffic of bytes, and not the optimiser."""

    name: tyro.conf.Positional[str]
    """a recipe's name, or a recipe.py"""
    data: Path | None = None
    """data folder; random tokens, if not given"""
    steps: int | None = None
    """of each of five blocks (20; 2 on a CPU); warming up and the parts come on top"""
    tokens: int | None = None
    """of the micro-batch of a GPU (the recipe's)"""
    out: Path | None = None
    """CSV file to add a row a phase to (benchmarks/results.csv, where there is a folder benchmarks)"""
    set: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """path=value ...: fields of the recipe, as in model.plan.Loop.passes=2"""

    def run(self, terminal):
        from .bench.measure import bench_recipe
        from .bench.results import print_bench

        settings = option_values("set", self.set)
        return bench_recipe(self.name, self.data, settings, self.steps, self.tokens, self.out, terminal), print_bench


@dataclass(frozen=True, kw_only=True)
class DataBuildCommand(CommandBase):
    """Turns documents into tokenizer, shards and manifest; or downloads the contest's FineWeb shards."""

    source: tyro.conf.Positional[str]
    """python-docs, fineweb, or a .txt, .jsonl or .jsonl.zst file or a folder of them"""
    out: Path
    """the data folder to write"""
    vocab: int | None = None
    """pieces of the tokenizer (1024; 8192 with --caseops; with --tokenizer what that has)"""
    tokenizer: Path | None = None
    """a SentencePiece model to take instead of training one"""
    normalization: Literal["nmt_nfkc", "identity"] | None = None
    """of a trained tokenizer: the contest's nmt_nfkc (if not given), or lossless"""
    field: str = "text"
    """of .jsonl lines: the key that holds the text"""
    val_source: str | None = None
    """documents for validation, instead of a part of SOURCE"""
    shards: int = 1
    """fineweb: how many training shards"""
    caseops: bool = False
    """fineweb: the CaseOps variant"""

    def run(self, terminal):
        from .listing import build_data, print_manifest

        return build_data(self, terminal), print_manifest


@dataclass(frozen=True, kw_only=True)
class DataCheckCommand(CommandBase):
    """Checks headers, counts, hashes, disjointness, byte counts; says whether the set is the contest's."""

    folder: tyro.conf.Positional[Path]
    """a data folder"""

    def run(self, terminal):
        from .data.check import check_dataset
        from .listing import print_check

        return check_dataset(self.folder), print_check

    def code(self, result):
        return 1 if result["failures"] else 0


@dataclass(frozen=True, kw_only=True)
class TrainCommand(CommandBase):
    """Trains a recipe into a run folder, on one CPU or GPU; on several under torchrun -m fairway train ..."""

    name: tyro.conf.Positional[str | None] = None
    """a recipe's name, or a recipe.py"""
    data: Path | None = None
    """data folder"""
    out: Path | None = None
    """run folder to make"""
    resume: Path | None = None
    """go on with this interrupted run; nothing else is needed"""
    seed: int | None = None
    """of the initial weights (42)"""
    steps: int | None = None
    """stop after so many steps"""
    seconds: float | None = None
    """stop after so many seconds of training, with none reserved"""
    set: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """path=value ...: fields of the recipe, as in train.clip=1.0"""
    sink: tyro.conf.UseAppendAction[tuple[tuple[Literal["tensorboard", "wandb"], ...], ...]] = ()
    """also send the metrics there; each needs its own package"""
    seeds: str | None = None
    """as in 42,314,1234: a run for each, in OUT/seed42 and so on; given again, it goes on with what is missing"""
    until: Literal["train", "pack", "score", "audit"] = "train"
    """with --seeds: take each run up to this stage"""
    ranks: int = 1
    """with --seeds: processes a run, one a GPU, started by torchrun"""
    submit: Literal["slurm", "local"] | None = None
    """with --seeds: hand each seed to a cluster as a job, through submitit"""
    cluster: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """with --submit: parameter=value ... for submitit, as in slurm_partition=gpu timeout_min=60"""

    def run(self, terminal):
        from .listing import print_run
        from .stages import resume_training, train
        from .trials.sinks import open_sinks

        several = self.until != "train" or self.ranks != 1 or self.submit is not None or self.cluster
        if self.resume is not None:
            others = (self.name, self.data, self.out, self.seed, self.steps, self.seconds, self.seeds, self.set or None)
            if any(other is not None for other in others) or several:
                raise Problem("--resume RUN takes recipe, data, seed and budget from the run; give nothing else")
            with open_sinks(sum(self.sink, ()), self.resume) as watch:
                return resume_training(self.resume, terminal, watch), print_run
        if not (self.name and self.data and self.out):
            raise Problem(
                "give a recipe, --data FOLDER and --out RUN, or --resume RUN; as in: fairway train demo --data D --out R"
            )
        if self.seeds is not None:
            return self.run_seeds(terminal)
        if several:
            raise Problem("--until, --ranks, --submit and --cluster belong to --seeds; as in: --seeds 42,314,1234")
        seed = 42 if self.seed is None else self.seed
        refuse_seed(seed)
        settings = sum(self.set, ())
        with open_sinks(sum(self.sink, ()), self.out) as watch:
            return train(
                self.name, self.data, self.out, seed, self.steps, self.seconds, settings, terminal, watch
            ), print_run

    def run_seeds(self, terminal):
        from .trials.seeds import print_seeds, train_seeds

        if self.seed is not None:
            raise Problem("give --seed or --seeds, not both")
        seeds = [int(word) if word.strip().isdecimal() else -1 for word in self.seeds.split(",")]
        if len(set(seeds)) < len(seeds) or -1 in seeds:
            raise Problem(
                f"--seeds {self.seeds} takes different whole numbers with commas between; as in --seeds 42,314,1234"
            )
        for seed in seeds:
            refuse_seed(seed)
        budget = self.steps, self.seconds, sum(self.set, ())
        how = {
            "until": self.until, "ranks": self.ranks, "sinks": sum(self.sink, ()), "submit": self.submit,
            "cluster": sum(self.cluster, ()),
        }  # fmt: skip
        return train_seeds(self.name, self.data, self.out, seeds, budget, how, terminal), print_seeds

    def code(self, result):
        from .trials.rows import at_least

        behind = [row["seed"] for row in result.get("seeds", ()) if not at_least(row["reached"], self.until)]
        return 1 if behind and self.submit is None else 0


@dataclass(frozen=True, kw_only=True)
class PackCommand(CommandBase):
    """Quantises, encodes and writes train_gpt.py, model.bin and the byte ledger; exit 1 over the cap."""

    folder: tyro.conf.Positional[Path]
    """a run folder"""
    data: Path | None = None
    """the folder of its training data, if that has moved; what calibrates reads it"""
    raw: bool = False
    """raw bytes in train_gpt.py, not base85: a fifth smaller"""

    def run(self, terminal):
        from .listing import print_ledger
        from .stages import pack

        return pack(self.folder, self.data, "latin-1" if self.raw else "base85", terminal), print_ledger


@dataclass(frozen=True, kw_only=True)
class ScoreCommand(CommandBase):
    """Scores the packed file in a fresh model: bits per byte, what each method gains, the bytes that they imply."""

    folder: tyro.conf.Positional[Path]
    """a run folder"""
    data: Path | None = None
    """data folder, if not the one it was trained on"""
    keep_nats: bool = False
    """also write nats.npy, the nats of every target"""
    last: bool = False
    """the recipe's own evaluation alone, without the passes that show what it gains"""
    set: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """path=value ...: how it is scored, as in evaluate.seconds=300 or mix=(TokenTilt(),)"""

    def run(self, terminal):
        from .listing import print_score
        from .stages import score

        return score(self.folder, self.data, self.keep_nats, sum(self.set, ()), self.last, terminal), print_score


@dataclass(frozen=True, kw_only=True)
class AblateCommand(CommandBase):
    """Trains a recipe whole, then without each technique that stands in a list of its model, or in qat.

    What stands alone at its place (mlp, join, plan) can be exchanged by --set, not left out. Given again, it goes on."""

    name: tyro.conf.Positional[str]
    """a recipe's name, or a recipe.py"""
    data: Path
    """data folder"""
    out: Path
    """folder for the runs and ablation.json"""
    seed: int = 42
    """of the initial weights, the same in all runs"""
    steps: int | None = None
    """stop each run after so many steps"""
    seconds: float | None = None
    """stop each run after so many seconds of training"""
    only: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Technique ...: leave out these alone, as in SmearGate"""
    set: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """path=value ...: fields of the recipe, as in train.clip=1.0"""

    def run(self, terminal):
        from .ablation import ablate, print_ablation

        settings, only = sum(self.set, ()), sum(self.only, ())
        refuse_seed(self.seed)
        table = ablate(self.name, self.data, self.out, self.seed, self.steps, self.seconds, settings, only, terminal)
        return table, print_ablation


@dataclass(frozen=True, kw_only=True)
class AuditCommand(CommandBase):
    """Referees a packed run: runs its files in boxes, probes its scorer, writes audit.json; exit 1 if a rule failed."""

    folder: tyro.conf.Positional[Path]
    """a run folder"""
    data: Path | None = None
    """data folder, if the run's own has moved"""
    policy: str = "as-practised"
    """as-practised or strict: which side of the disputed rules is taken"""
    full: bool = False
    """the whole text and all training shards, without hurry: for a GPU"""
    markdown: bool = False
    """print the report as Markdown to paste"""

    def run(self, terminal):
        from .audit import audit
        from .referee.verdict import show_with

        return audit(self.folder, self.data, self.policy, self.full, terminal), show_with(self.markdown, self.folder)

    def code(self, result):
        return 1 if result["summary"]["fail"] else 0


@dataclass(frozen=True, kw_only=True)
class ReviewCommand(CommandBase):
    """Somebody else's submission folder: files, claims, logs, sizes, seconds, seeds. Runs nothing without --dynamic."""

    folder: tyro.conf.Positional[Path]
    """a submission folder"""
    dynamic: bool = False
    """also run its script in a sandbox, on synthetic text"""
    policy: str = "as-practised"
    """as-practised or strict: which side of the disputed rules is taken"""
    record: float | None = None
    """bpb of the record that it says it beats"""
    seconds: float = 300.0
    """for the runs of --dynamic, together"""
    markdown: bool = False
    """print the report as Markdown to paste"""

    def run(self, terminal):
        from .referee.review import review_folder
        from .referee.verdict import show_with

        report = review_folder(self.folder, self.dynamic, self.policy, terminal.note, self.record, self.seconds)
        return report, show_with(self.markdown, self.folder)

    def code(self, result):
        return 1 if result["summary"]["fail"] else 0


@dataclass(frozen=True, kw_only=True)
class SweepCommand(CommandBase):
    """Searches fields of a recipe: trials trained with successive halving. Given again, or elsewhere too, it goes on."""

    name: tyro.conf.Positional[str]
    """a recipe's name, or a recipe.py"""
    data: Path
    """data folder"""
    out: Path
    """folder for the trials' runs and sweep.json"""
    over: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]]
    """path=space ...: low..high, low..high:log, or choices a|b|c; as in optim.Muon.rate=0.01..0.1:log"""
    trials: int = 20
    """how many, over all workers"""
    steps: int | None = None
    """a whole trial's steps"""
    tokens: int | None = None
    """a whole trial's tokens, in the place of --steps"""
    factor: int = 3
    """of halving: one of so many goes on at each rung, for so many times the steps"""
    rungs: int = 3
    """how often a trial is judged by its loss before its end; 0: every trial runs to its end"""
    storage: str | None = None
    """URL of a database that workers share (SQLite in OUT)"""
    seed: int = 42
    """of the initial weights, the same in all trials"""
    set: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """path=value ...: fields of the recipe that all trials share"""

    def run(self, terminal):
        from .trials.sweep import print_sweep, sweep

        refuse_seed(self.seed)
        return sweep(self, sum(self.over, ()), sum(self.set, ()), terminal), print_sweep


@dataclass(frozen=True, kw_only=True)
class RunsCommand(CommandBase):
    """Lists run folders, one line each: recipe, changes, data, device, bpb by stage, bytes, seconds."""

    folders: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs"),)
    """run folders, or folders of them"""
    sort: str = "began"
    """a column to sort by; --sort=-column from the largest down"""
    where: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """column=text, "column<value" or "column>value" ...: only these"""
    csv: Path | None = None
    """also write the table there, as CSV"""

    def run(self, terminal):
        from .record.table import list_runs, print_runs

        return list_runs(self.folders, self.sort, option_values("where", self.where), self.csv), print_runs


@dataclass(frozen=True, kw_only=True)
class CompareCommand(CommandBase):
    """Whether one set of runs is better than another, or than a record: means, intervals, p, margins in three units."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """scored run folders, or folders of them"""
    against: tyro.conf.UseAppendAction[tuple[tuple[Path, ...], ...]] = ()
    """the run folders to compare with"""
    record: tyro.conf.UseAppendAction[tuple[tuple[float, ...], ...]] = ()
    """bpb of a record, or of each of its seeds, to compare with"""

    def run(self, terminal):
        from .record.compare import compare, print_comparison

        return compare(
            self.runs, option_values("against", self.against), option_values("record", self.record)
        ), print_comparison


@dataclass(frozen=True, kw_only=True)
class ReportCommand(CommandBase):
    """One HTML page of runs: losses, bpb by stage, bytes, seconds, verdicts, seeds, the recipe. Needs no network."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders, or folders of them"""
    out: Path
    """the page to write, as in report.html"""
    against: tyro.conf.UseAppendAction[tuple[tuple[Path, ...], ...]] = ()
    """run folders to compare with"""

    def run(self, terminal):
        from .record.report import print_report_place, write_report

        return write_report(self.runs, option_values("against", self.against), self.out), print_report_place


Allowed = Literal["recipes", "code", "data", "cap", "time", "seeds", "audit"]


@dataclass(frozen=True, kw_only=True)
class RecordCommand(CommandBase):
    """Writes the folder that the contest takes from audited runs of several seeds; refuses what the rules would."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """scored and audited run folders, one a seed, or a folder of them"""
    out: Path
    """the folder to write"""
    name: str
    """the submission's name"""
    author: str
    """who submits it"""
    github: str
    """the author's account on GitHub"""
    blurb: str = ""
    """a sentence or two; the recipe's own, if not given"""
    track: str = "10min_16mb"
    """of the contest, as in 10min_16mb or non-record-16mb"""
    record: tyro.conf.UseAppendAction[tuple[tuple[float, ...], ...]] = ()
    """bpb of the record that it beats, or of each of its seeds"""
    no_model: bool = False
    """leave model.bin out of the folder"""
    allow: tyro.conf.UseAppendAction[tuple[tuple[Allowed, ...], ...]] = ()
    """what may be wrong all the same, and then stands in the README"""

    def run(self, terminal):
        from .record.folder import print_record, write_record

        about = {key: getattr(self, key) for key in ("name", "author", "github", "blurb", "track")}
        allow, record = option_values("allow", self.allow), option_values("record", self.record)
        return write_record(self.runs, self.out, about, allow, record, not self.no_model, terminal.note), print_record


DataCommand = (
    Annotated[DataBuildCommand, tyro.conf.subcommand("build")] | Annotated[DataCheckCommand, tyro.conf.subcommand("check")]
)
Command = (
    Annotated[DemoCommand, tyro.conf.subcommand("demo")]
    | Annotated[RecipesCommand, tyro.conf.subcommand("recipes")]
    | Annotated[PlanCommand, tyro.conf.subcommand("plan")]
    | Annotated[BenchCommand, tyro.conf.subcommand("bench")]
    | Annotated[DataCommand, tyro.conf.subcommand("data", description="Builds and checks data folders.")]
    | Annotated[TrainCommand, tyro.conf.subcommand("train")]
    | Annotated[PackCommand, tyro.conf.subcommand("pack")]
    | Annotated[ScoreCommand, tyro.conf.subcommand("score")]
    | Annotated[AblateCommand, tyro.conf.subcommand("ablate")]
    | Annotated[AuditCommand, tyro.conf.subcommand("audit")]
    | Annotated[ReviewCommand, tyro.conf.subcommand("review")]
    | Annotated[SweepCommand, tyro.conf.subcommand("sweep")]
    | Annotated[RunsCommand, tyro.conf.subcommand("runs")]
    | Annotated[CompareCommand, tyro.conf.subcommand("compare")]
    | Annotated[ReportCommand, tyro.conf.subcommand("report")]
    | Annotated[RecordCommand, tyro.conf.subcommand("record")]
)


def option_values(option, groups):
    """What an option was given, each time that it was. Problem where that is nothing."""
    if () in groups:
        raise Problem(f"--{option} is empty; give it a value, or leave it out")
    return sum(groups, ())


def refuse_seed(seed):
    """Problem for a seed that torch's generators do not take."""
    if not 0 <= seed < 2**64:
        raise Problem(f"--seed {seed} is outside of 0 to {2**64 - 1}; give one within")


def stop(number, frame):
    """SIGTERM unwinds like Ctrl-C, so that temporary files are removed."""
    raise KeyboardInterrupt


def main(arguments=None):
    """Runs one command. Returns the exit code: 0 done, 1 does not hold, 2 wrong input, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        print(VERSION)
        return 0
    command = tyro.cli(
        Command, args=arguments, prog="fairway", config=(tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff),
        description="Trains, quantises, packs, scores and referees language models under a byte and a time budget.",
    )  # fmt: skip
    signal.signal(signal.SIGTERM, stop)
    from .terminal import Terminal

    terminal = Terminal()
    try:
        result, show_result = command.run(terminal)
        if not terminal.quiet:
            print(json.dumps(result)) if command.json else show_result(result)
        return command.code(result)
    except (Problem, DoesNotHold) as fault:
        terminal.complain(fault)
        return 2 if isinstance(fault, Problem) else 1
    except Interrupted as ending:  # of all ranks at once: the first speaks for them
        terminal.note(f"fairway: {ending}")
        return 130
    except KeyboardInterrupt:
        terminal.complain("interrupted")
        return 130
    except OSError as fault:
        if fault.filename is None:
            raise
        terminal.complain(f"cannot use {fault.filename}: {fault.strerror}; check the path and its permissions")
        return 2
