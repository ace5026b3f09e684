"""Jobs through submitit: for real on this machine; for Slurm with stand-ins for its commands."""

import operator
import pickle
import signal
import sys
import time

import psutil
import pytest
from submitit.helpers import DelayedSubmission

from fairway.files import read_json
from fairway.problem import Problem
from fairway.trials.cluster import RequeuedCall, job_parameters, make_executor, submit_calls, waiting_state
from train.tiny import SOURCES, begin, fairway, finish, rows, train_arguments

SBATCH = '#!/bin/sh\ncat "$1" > {0}/handed_over\necho Submitted batch job 17\n'
SACCT = "#!/bin/sh\nprintf 'JobID|State|NodeList\\n17_0|PENDING|\\n17_1|FAILED|n1\\n17_2|CANCELLED by 5|n1\\n'\n"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder first on the PATH with stand-ins for Slurm's commands."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in {"srun": "#!/bin/sh\n", "sbatch": SBATCH.format(tmp_path), "sacct": SACCT}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(commands), prepend=":")
    return commands


def test_parameters_are_read_as_python_writes_them_or_as_text():
    words = ("timeout_min=60", "mem_gb=1.5", "slurm_partition=gpu", "slurm_setup=['module load x']", "slurm_time=1:0=x")
    assert job_parameters(words) == {
        "timeout_min": 60, "mem_gb": 1.5, "slurm_partition": "gpu", "slurm_setup": ["module load x"], "slurm_time": "1:0=x",
    }  # fmt: skip
    for word in ("timeout_min", "=5"):
        with pytest.raises(Problem, match=r"is not parameter=value, as in slurm_partition=gpu"):
            job_parameters((word,))


def test_wrong_parameters_and_a_cluster_that_is_not_there_are_one_line(tmp_path):
    for words in ({"timeout_min": "long"}, {"colour": 1}, {"slurm_nonsense": 1}):
        with pytest.raises(Problem, match=next(iter(words))) as caught:
            make_executor("local", tmp_path, words)
        assert "\n" not in str(caught.value)
    with pytest.raises(Problem, match="--submit slurm: Could not detect"):
        make_executor("slurm", tmp_path, {})


def test_without_submitit_the_mend_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(Problem, match=r"needs submitit: pip install 'fairway\[cluster\]'"):
        make_executor("local", tmp_path, {})
    assert waiting_state("slurm", tmp_path, "17_0") is None


def test_a_job_on_this_machine_runs_and_is_seen_while_it_does(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(SOURCES))
    executor = make_executor("local", tmp_path / "jobs", {"timeout_min": 1})
    first, second = submit_calls(executor, [(operator.add, 2, 3), (time.sleep, 0)])
    assert waiting_state("local", tmp_path / "jobs", first) == "RUNNING"
    results, end = [tmp_path / "jobs" / f"{job}_0_result.pkl" for job in (first, second)], time.monotonic() + 60
    while not all(path.exists() for path in results):
        assert time.monotonic() < end, [path.read_text() for path in (tmp_path / "jobs").glob("*.err")]
        time.sleep(0.02)
    assert [pickle.loads(path.read_bytes()) for path in results] == [("success", 5), ("success", None)]
    while waiting_state("local", tmp_path / "jobs", first):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert waiting_state("local", tmp_path / "jobs", "1") is None  # a process, but none of submitit's


def test_a_job_that_is_warned_is_queued_again_as_it_was():
    call = RequeuedCall(operator.add, 2, 3)
    again = call.checkpoint()
    assert isinstance(again, DelayedSubmission) and again.function is call and again.result() == 5


def test_slurm_gets_one_array_of_all_jobs(slurm, tmp_path):
    executor = make_executor("slurm", tmp_path / "jobs", {"slurm_partition": "h100", "timeout_min": 45, "gpus_per_node": 8})
    assert submit_calls(executor, [(operator.add, 1, n) for n in range(3)]) == ["17_0", "17_1", "17_2"]
    script = (tmp_path / "handed_over").read_text()
    for line in ("--array=0-2", "--partition=h100", "--time=45", "--gpus-per-node=8"):
        assert f"#SBATCH {line}" in script
    states = [waiting_state("slurm", tmp_path / "jobs", f"17_{n}") for n in range(3)]
    assert states == ["PENDING", None, None]


def test_what_slurm_refuses_is_one_line(slurm, tmp_path):
    (slurm / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: h100' >&2\nexit 1\n")
    executor = make_executor("slurm", tmp_path / "jobs", {"slurm_partition": "h100"})
    with pytest.raises(Problem, match=r"the jobs were refused: .*invalid partition") as caught:
        submit_calls(executor, [(operator.add, 1, 2)])
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_seed_trains_as_a_job_on_this_machine_and_goes_on_after_a_warning(tiny_data, tmp_path):
    out = tmp_path / "out"
    words = [*train_arguments(tiny_data, out, steps=300), "--seeds", "1"]
    process = begin(*words, "--submit", "local", "--cluster", "timeout_min=10")
    end = time.monotonic() + 300
    while len(rows(out / "seed1")) < 10:
        assert time.monotonic() < end, finish(process)
        time.sleep(0.05)
    kind, _, job = read_json(out / "seeds.json")["seeds"][0]["job"].partition(" ")
    assert (kind, waiting_state("local", out / "jobs", job)) == ("local", "RUNNING")
    (task,) = [one for one in psutil.Process(int(job)).children() if "submitit.core._submit" in one.cmdline()]
    task.send_signal(signal.SIGUSR2)  # as a cluster does before it takes the machine away
    assert "seed 1 is local job" in finish(process, 300)[2]  # its standard error is the job's, too: both have ended
    (row,) = read_json(out / "seeds.json")["seeds"]
    assert (row["reached"], [one["outcome"] for one in row["attempts"]]) == ("train", ["interrupted", "done"])
    assert len(rows(out / "seed1")) == 300
    assert "--resume" in (out / "seed1.log").read_text()
    assert fairway(*words)[0] == 0
