"""Jobs on a cluster, or on this machine, through submitit: calls handed over, and what became of them."""

import ast

import psutil

from ..problem import Problem

WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "RUNNING", "SUSPENDED", "COMPLETING", "PREEMPTED")
TIMEOUT_MIN = 240  # submitit's own 5 minutes, or 2 on this machine, would end every run


class RequeuedCall:
    """A call that submitit may interrupt (preempted, out of its time) and queue again: what it calls goes on by itself."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __call__(self):
        return self.function(*self.arguments)

    def checkpoint(self):
        """What submitit queues in the place of an interrupted call."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def job_parameters(words):
    """{parameter: value} of `parameter=value` words; numbers, lists and so on as Python writes them, the rest is text."""
    found = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not name or not equals:
            raise Problem(f"--cluster {word!r} is not parameter=value, as in slurm_partition=gpu")
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text
    return found


def make_executor(kind, folder, given, **others):
    """submitit's AutoExecutor of a kind ("slurm" or "local") that keeps its files in `folder`, which is made. `given`: the
    user's parameters, which go before `others`. Problem when submitit is not installed, the cluster is not there, or a
    parameter is none of its own."""
    try:
        from submitit import AutoExecutor
    except ImportError as error:
        raise Problem(f"--submit {kind} needs submitit: pip install 'fairway[cluster]'") from error
    try:
        executor = AutoExecutor(folder=folder, cluster=kind)
    except RuntimeError as error:
        raise Problem(f"--submit {kind}: {first_line(error)}") from error
    try:
        executor.update_parameters(**others | given)
    except (AssertionError, NameError, TypeError, ValueError) as error:
        words, mend = (
            " ".join(f"{name}={value}" for name, value in given.items()),
            f"timeout_min=60, mem_gb=64 or {kind}_...",
        )
        raise Problem(f"--cluster {words}: {first_line(error)} Parameters are submitit's, as in {mend}") from error
    return executor


def submit_calls(executor, calls):
    """Hands `calls` over as jobs, as one job array where the cluster has these. Returns their ids, in order."""
    try:
        with executor.batch():
            jobs = [executor.submit(RequeuedCall(*call)) for call in calls]
    except OSError as error:
        raise Problem(f"the jobs could not be handed over: {error}; look at {executor.folder}") from error
    except Exception as error:  # what sbatch says, in an exception of submitit's own
        if type(error).__module__.partition(".")[0] != "submitit":
            raise
        raise Problem(f"the jobs were refused: {first_line(error)}; check the --cluster parameters") from error
    return [str(job.job_id) for job in jobs]


def waiting_state(kind, folder, job):
    """The state of a job that waits or runs, as in PENDING; None for one that has ended, or that nobody knows."""
    if kind == "local":
        return "RUNNING" if controls_job(int(job)) else None
    try:
        from submitit import SlurmJob
    except ImportError:
        return None
    state = SlurmJob(folder=folder, job_id=job).state
    return state if state in WAITING else None


def controls_job(pid):
    """Whether the process of that number is one of submitit's, not another that got its number since."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and any("submitit" in word for word in process.cmdline())
    except psutil.Error:
        return False


def first_line(error):
    """The first line of an exception's text."""
    return str(error).strip().partition("\n")[0]
