"""The causal token tilt of #1514 and #2135: a hint from what followed the last few tokens before, made likelier.

Only the token expert of #1514 is here. Its experts for words were switched off there and its bonus for agreeing hints with
them; a context is compared token by token, where #1514 trusted 64 bits of a hash. N targets.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch

from ..problem import Problem
from .history import spans_of
from .mixing import MixerBase, Mixing, Tilted

LONGEST_CONTEXT = 255  # tokens


@dataclass(frozen=True)
class TokenTilt(Mixing):
    """p'(v) = p(v) e^(b [v = h]) / Z for a hint h: the token that has followed the last tokens most often so far.

    `rules` are (context length in tokens, least share of the best continuation, least count of the context), longest first:
    the first that holds gives the hint. b is `strength`, times the share if `by_share`. Defaults: #1514. #2135, whose order
    16 are contexts of 15 tokens: rules=((15, 0.8, 1),), strength=2.625, by_share=False.
    """

    rules: tuple[tuple[int, float, int], ...] = ((16, 0.5, 2), (14, 0.5, 2), (12, 0.6, 2), (10, 0.7, 3), (8, 0.7, 3))
    strength: float = 2.0
    by_share: bool = True

    def __post_init__(self):
        lengths = [length for length, _, _ in self.rules]
        if not lengths:
            raise Problem("TokenTilt.rules is empty: give at least one (context length, least share, least count)")
        for one, other in pairwise(lengths):
            if other >= one:
                raise Problem(f"TokenTilt.rules has length {other} after {one}: give each length once, the longest first")
        for length, share, count in self.rules:
            if not 1 <= length <= LONGEST_CONTEXT:
                raise Problem(f"TokenTilt.rules has a context of {length} tokens; give 1 to {LONGEST_CONTEXT}")
            if not 0 < share <= 1:
                raise Problem(
                    f"TokenTilt.rules asks for a share of {share:g} at length {length}; give more than 0, at most 1"
                )
            if count < 1:
                raise Problem(f"TokenTilt.rules asks for a count of {count} at length {length}; give 1 or more")
        if not 0 <= self.strength <= 50:
            raise Problem(f"TokenTilt.strength takes 0 to 50, not {self.strength:g}")

    def build(self, history):
        """The mixer for the targets of a History."""
        return TokenTiltMixer(self, history)


class TokenTiltMixer(MixerBase):
    """Hints and strengths of all targets: hint_N int32 (-1: none), strength_N float32 (0 there)."""

    def __init__(self, node, history):
        self.node = node
        self.hint_N = torch.full((history.targets,), -1, dtype=torch.int32, device=history.device)
        self.strength_N = torch.zeros(history.targets, dtype=torch.float32, device=history.device)
        length_N = torch.zeros(history.targets, dtype=torch.uint8, device=history.device)
        rules = {length: (share, count) for length, share, count in node.rules}
        # Lengths come in whatever order is cheapest to count: a longer rule's hint replaces a shorter one's.
        for length, found in history.continuations(tuple(rules)):
            for span in spans_of(history.targets):
                self._take(length, found, span, *rules[length], length_N)

    @property
    def queries(self):
        """The hints; 0 where there is none."""
        return (self.hint_N.clamp(min=0),)

    def _take(self, length, found, span, least_share, least_count, length_N):
        count_N = found.count_N[span]
        share_N = found.best_count_N[span].double() / count_N.clamp(min=1)
        strength_N = self.node.strength * (share_N if self.node.by_share else torch.ones_like(share_N))
        taken_N = (count_N >= least_count) & (share_N >= least_share) & (length_N[span] < length)
        self.hint_N[span] = torch.where(taken_N, found.best_N[span], self.hint_N[span])
        self.strength_N[span] = torch.where(taken_N, strength_N.float(), self.strength_N[span])
        length_N[span] = torch.where(taken_N, length, length_N[span])

    def mix(self, base, span=None):
        span = slice(None) if span is None else span
        return Tilted(base, self.hint_N[span], self.strength_N[span])

    def summary(self, tally):
        """How often there was a hint, how often it came true (share of the hints), and the mean strength of those given."""
        hinted = int((self.hint_N >= 0).sum())
        return {
            "hinted_targets": hinted,
            "hinted_share": hinted / max(1, len(self.hint_N)),
            "hits": tally.get("hits", 0) / max(1, hinted),
            "mean_strength": float(self.strength_N.sum(dtype=torch.float64)) / max(1, hinted),
        }
