"""The rules as data: what a submission is held to, and the named policies that differ in a few switches."""

import tomllib
from dataclasses import dataclass
from importlib.resources import files as package_files

from ..problem import Problem

OVERSHOOT = 0.2  # s over a time limit: a step that has begun is finished; merged logs reach 600.14 s


@dataclass(frozen=True)
class Rule:
    """One rule. `default`: the figure that it is held to, or None; `switch`: what a policy replaces it by, or None;
    `desk`: the one command that looks at it ("audit" or "review"), or None."""

    id: str
    condition: str
    severity: str
    source: str
    untested: str
    default: object = None
    switch: str | None = None
    desk: str | None = None


@dataclass(frozen=True, eq=False)
class Policy:
    """A name, its rules by id, and the values of its switches."""

    name: str
    about: str
    rules: dict
    switches: dict

    def limit(self, rule):
        """What the rule of that id is held to under this policy: its switch's value, or its default."""
        one = self.rules[rule]
        return self.switches[one.switch] if one.switch else one.default


def read_policy(name="as-practised"):
    """The Policy of that name; Problem names the known ones."""
    data = tomllib.loads(package_files("fairway.referee").joinpath("rules.toml").read_text())
    if name not in data["policy"]:
        raise Problem(f"no policy {name!r}: there are {', '.join(data['policy'])}")
    switches = dict(data["policy"][name])
    about = switches.pop("about")
    return Policy(name, about, {row["id"]: Rule(**row) for row in data["rule"]}, switches)
