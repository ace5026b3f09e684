"""The training node of a recipe: batch, budget, schedule, clipping, warm-up."""

from dataclasses import dataclass

from ..optim.schedule import Budget
from ..problem import Problem
from ..sites import ScheduleSite, TrainingSite


@dataclass(frozen=True)
class Training(TrainingSite):
    """`batch_tokens` a step, in micro-batches of `micro_tokens` a rank; gradients of micro-batches are averaged.

    `warmup_steps` real steps a plan phase run before the clock starts, to compile; then all state is restored.
    On a GPU the passes are recorded then; with 0 they compile as they come and are launched. On a CPU nothing is compiled
    and there is no warm-up.
    """

    schedule: ScheduleSite
    batch_tokens: int = 786_432
    micro_tokens: int = 98_304
    budget: Budget = Budget()
    clip: float = 0.3
    warmup_steps: int = 20

    def __post_init__(self):
        for name in ("clip", "warmup_steps"):
            if getattr(self, name) < 0:
                raise Problem(f"train.{name} is {getattr(self, name)}; take 0 (off) or more")

    def micro_steps(self, world_size, sequence):
        """Micro-batches a rank works through in each step. Problem when the sizes do not divide."""
        if self.micro_tokens < 1 or self.micro_tokens % sequence:
            raise Problem(f"train.micro_tokens={self.micro_tokens} is not a multiple of model.sequence={sequence}; take one")
        if self.batch_tokens % (self.micro_tokens * world_size) or self.batch_tokens < 1:
            raise Problem(
                f"train.batch_tokens={self.batch_tokens} is not a multiple of train.micro_tokens={self.micro_tokens}"
                f" x {world_size} ranks; take a multiple of {self.micro_tokens * world_size}, or other train.micro_tokens"
            )
        return self.batch_tokens // (self.micro_tokens * world_size)
