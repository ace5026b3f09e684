"""The database that a sweep's workers share: whose trial is whose, and which worker has died."""

import fcntl
import os
import socket
import threading
import time
from contextlib import contextmanager, suppress

import optuna
from optuna.exceptions import OptunaError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from ..problem import Problem

STUDY_NAME = "fairway"
IDENTITY, BEAT = "sweep", "beat"
BEAT_SECONDS = 10.0
GRACE_SECONDS = 60.0  # a worker that has not been heard for so long is dead
# Drivers whose module is not called as its package.
DRIVERS = {"MySQLdb": "mysqlclient", "psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary"}


class Board:
    """A study and its storage; trials are called by their numbers."""

    def __init__(self, url):
        self.url = url
        local = url.startswith("sqlite")
        # Workers wait for each other's writes, and connections that idled through a trial are made again.
        extra = {"connect_args": {"timeout": 120}} if local else {"pool_pre_ping": True}
        # Optuna fills a template in; a password may hold braces.
        self.storage = RDBStorage(url.replace("{", "{{").replace("}", "}}"), engine_kwargs=extra)
        self.study = optuna.create_study(storage=self.storage, study_name=STUDY_NAME, load_if_exists=True)
        self.id = self.storage.get_study_id_from_name(STUDY_NAME)

    def trials(self):
        """Optuna's FrozenTrials, by number."""
        return self.study.get_trials(deepcopy=False)

    def trial_id(self, number):
        """What the storage calls a trial."""
        return self.storage.get_trial_id_from_study_id_trial_number(self.id, number)

    def note(self, number, **facts):
        """Facts of a trial that has not ended."""
        for name, value in facts.items():
            self.storage.set_trial_user_attr(self.trial_id(number), name, value)

    def release(self, number):
        """Gives a begun trial back: the next worker that asks goes on with it."""
        with suppress(UpdateFinishedTrialError):  # somebody else has ended it
            self.storage.set_trial_state_values(self.trial_id(number), TrialState.WAITING)

    def settle(self, identity, space):
        """Writes down what is swept, or compares: Problem for another command on the same database, for one that somebody
        else filled, and for one that has lost values."""
        known, ends = self.study.user_attrs.get(IDENTITY), self.study.directions
        if ends != [StudyDirection.MINIMIZE] or (not isinstance(known, dict) and (known is not None or self.trials())):
            raise Problem(f"{shown_url(self.url)} holds a study {STUDY_NAME!r} that is no sweep's; give another --storage")
        if known is None:
            return self.study.set_user_attr(IDENTITY, identity)
        for what, wanted in identity.items():
            if known.get(what) != wanted:
                raise Problem(
                    f"{shown_url(self.url)} holds a sweep with {what} {known.get(what)}, this one has {wanted};"
                    " give the same command, or another --out or --storage"
                )
        for trial in self.trials():
            if trial.state.is_finished() and lost_values(trial, space):
                raise Problem(f"{shown_url(self.url)} has lost values of trial {trial.number}; restore it, or remove it")

    @contextmanager
    def beating(self, number):
        """Lets the others hear, every ten seconds, that this trial's worker lives."""
        trial, stop, name = self.trial_id(number), threading.Event(), f"{socket.gethostname()} {os.getpid()}"

        def beat():
            count = 0
            while not stop.wait(BEAT_SECONDS if count else 0.0):
                count += 1
                try:
                    self.storage.set_trial_user_attr(trial, BEAT, f"{name} {count}")
                except (SQLAlchemyError, OptunaError):
                    continue  # a busy database: the next beat will do
            self.storage.remove_session()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def lost_values(trial, space):
    """Whether a trial that has ended lacks what it was told: its point of the space, its score, or where it was pruned."""
    wanted = {TrialState.COMPLETE: ("loss", "steps"), TrialState.PRUNED: ("loss", "steps", "whole")}.get(trial.state, ())
    unvalued = trial.state == TrialState.COMPLETE and trial.values is None
    return unvalued or trial.params.keys() != space.keys() or any(name not in trial.user_attrs for name in wanted)


class Lookout:
    """Which running trials have lost their worker: by beats that do not change while this process looks, so that no two
    clocks are compared."""

    def __init__(self):
        self.heard = {}  # number -> (beat, when it was first seen, whether it ever changed)

    def look(self, trials):
        """Numbers of the running trials that were not heard for the time of grace."""
        now, before, self.heard = time.monotonic(), self.heard, {}
        for trial in trials:
            if trial.state == TrialState.RUNNING:
                beat = trial.user_attrs.get(BEAT)
                last = before.get(trial.number, (beat, now, False))
                self.heard[trial.number] = last if last[0] == beat else (beat, now, True)
        return [number for number, (_, since, _) in self.heard.items() if now - since > GRACE_SECONDS]

    @property
    def unsure(self):
        """Numbers of the running trials of which it is not known yet whether anybody trains them."""
        return [number for number, (_, _, alive) in self.heard.items() if not alive]


@contextmanager
def alone_in(folder):
    """One worker at a time: waits for its turn. The turn ends with the process, however that ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def storage_url(storage, path):
    """The URL of a sweep's database: `storage`, or an SQLite file at `path`. Problem for one in memory, which other workers
    do not see, and for a path that a URL does not hold."""
    if storage is None:
        url = f"sqlite:///{path.absolute()}"
        if make_url(url).database != str(path.absolute()):
            raise Problem(f"{path}: a database's URL cannot hold this name; choose an --out without ? and %, or --storage")
        return url
    with suppress(ArgumentError):  # Board says why
        url = make_url(storage)
        memory = not url.database or ":memory:" in url.database or url.query.get("mode") == "memory"
        if url.get_backend_name() == "sqlite" and memory:
            raise Problem(f"--storage {storage}: workers cannot share a database in memory; as in sqlite:////PATH/sweep.db")
    return storage


def shown_url(url):
    """A storage's URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url


@contextmanager
def database_problems(url):
    """What a database refuses, as a Problem on one line."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    except ImportError as error:
        module = getattr(error.__cause__ or error, "name", None)
        if module is None:
            raise
        raise Problem(f"--storage {shown_url(url)} needs {module}; pip install {DRIVERS.get(module, module)}") from error
    except (SQLAlchemyError, StorageInternalError) as error:
        fault = getattr(error, "orig", None) or getattr(error.__cause__, "orig", None) or error
        line = " ".join(str(fault).split())[:200]
        raise Problem(f"the database {shown_url(url)} cannot be used: {line}; check --storage") from error
