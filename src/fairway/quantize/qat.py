"""Site `qat`: training that computes with the weights as they will be packed. N slices of a bank, R rows, C columns."""

from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..model.roles import ROLES, Part, leaf_views, role_matches
from ..problem import Problem
from ..sites import QATSite
from .policy import assign_rules


@dataclass(frozen=True)
class LateQAT(QATSite):
    """Quantisation-aware training near the end, straight through, on the exact grid of the recipe's rules (what a dial of
    `fit` changes afterwards it cannot know).

    It is on from the fraction `after` of the budget (PR #864: 0.85), or while the rate's factor is under `below`
    (PR #1205: 0.15, with after=1.0). For each step the masters give way to what their rule in `quantize` would decode
    to, forward and backward run on that, and the masters come back to receive the gradient (Bengio et al. 2013).

    So it acts on banks and plain matrices alike, needs no graph of its own, and cannot be folded away by the compiler.
    #864's never reached the banks; #1205's rounded with a sigmoid to a grid of another range than it shipped.
    """

    after: float = 0.85
    below: float = 0.0
    roles: tuple[str, ...] = ("matrix", "projection")

    def __post_init__(self):
        if not 0 <= self.after <= 1 or not 0 <= self.below <= 1:
            raise Problem(f"LateQAT after {self.after} or below {self.below}: both are fractions, take 0 to 1")
        if self.after == 1 and not self.below:
            raise Problem("LateQAT after 1.0 and below 0.0 never begins: lower `after`, raise `below`, or leave it out")
        if strange := [role for role in self.roles if role.split(".")[0] not in ROLES]:
            raise Problem(f"LateQAT.roles names {strange[0]!r}, no role: one of {', '.join(ROLES)}")

    def build(self, model, policy):
        return LateQATState(self, model, policy)


class LateQATState:
    """The parameters that are bent, and which of their slices each rule rounds."""

    def __init__(self, node, model, policy):
        self.node = node
        rules = assign_rules([leaf for leaf, _ in leaf_views(model)], policy)
        self.bends = []  # (parameter, [(first leaf, one past the last, rule)]), a parameter that is one leaf as [1, ...]
        for module in model.modules():
            for attribute, (role, leaves) in module.owned.items() if isinstance(module, Part) else ():
                parameter = getattr(module, attribute)
                if not any(role_matches(role, one) for one in node.roles):
                    continue
                if isinstance(leaves, str):
                    parameter, spans = parameter.detach()[None], [(0, 1, rules[leaves])]
                else:
                    spans = _spans([rules[name] for name, _, _ in leaves])
                probe = torch.zeros(1, 1)
                if spans := [span for span in spans if span[2].grid(probe) is not None]:
                    self.bends.append((parameter, spans))
        if not self.bends:
            raise Problem(
                f"LateQAT finds no parameter of roles {node.roles} that `quantize` rounds to integers; leave LateQAT out,"
                " or give `quantize` a rule that does, as RowInt"
            )
        # Now, since a card that has no room for them should say so before the run, not late in it.
        self.masters = [torch.empty_like(parameter) for parameter, _ in self.bends]
        self.began = None

    @property
    def floats(self):
        """Numbers kept beside the model."""
        return sum(master.numel() for master in self.masters)

    def summary(self):
        """A line that says since when the weights were rounded."""
        return "late QAT never began" if self.began is None else f"late QAT from step {self.began} on"

    def state(self):
        """The step it began with."""
        return {"began": self.began}

    def restore(self, state):
        """Takes what `state` gave."""
        self.began = state["began"]

    def on(self, moment):
        """Whether the step of `moment` is taken on the grid."""
        return moment.progress >= self.node.after or moment.multiplier < self.node.below

    @contextmanager
    def bent(self, moment):
        """A context in which the parameters hold their rounded values; masters are back afterwards, also after a fault."""
        if not self.on(moment):
            yield
            return
        if self.began is None:
            self.began = moment.step + 1
        with torch.no_grad():
            for master, (parameter, spans) in zip(self.masters, self.bends, strict=True):
                master.copy_(parameter)
                for first, end, rule in spans:
                    parameter[first:end] = rule.grid(master[first:end])
        try:
            yield
        finally:
            with torch.no_grad():
                for master, (parameter, _) in zip(self.masters, self.bends, strict=True):
                    parameter.copy_(master)


def _spans(rules):
    """[(first, one past the last, rule)] of neighbours that share a rule."""
    spans = []
    for index, rule in enumerate(rules):
        if spans and spans[-1][2] == rule:
            spans[-1] = (spans[-1][0], index + 1, rule)
        else:
            spans.append((index, index + 1, rule))
    return spans
