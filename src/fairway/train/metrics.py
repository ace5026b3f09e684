"""`metrics.jsonl`: one line a step, read from the device in batches so that no step waits for its own loss."""

import json
import math
from pathlib import Path

import torch

from ..files import write_text
from ..problem import DoesNotHold, Problem


class Metrics:
    """Collects (step, tokens, seconds, rate, loss, norm); losses and norms stay on the device until the next flush."""

    def __init__(self, path, world, every=10):
        self.path, self.world, self.every, self.rows = Path(path), world, every, []

    def rewind(self, steps):
        """Keeps only the lines of the first `steps` steps, as a resumed run begins after them."""
        if self.world.rank == 0:
            lines = self.path.read_text().splitlines() if self.path.exists() and steps else []
            write_text(self.path, "".join(f"{line}\n" for line in lines[:steps]))

    def add(self, facts, loss, norm):
        """Takes one step; returns the newest written row after a flush, else None."""
        self.rows.append((facts, loss, norm))
        return self.flush() if len(self.rows) >= self.every or facts["step"] == 1 else None

    def flush(self):
        """Writes what is held, losses averaged over the ranks (a collective call). DoesNotHold if a loss is not finite."""
        if not self.rows:
            return None
        losses = torch.stack([loss for _, loss, _ in self.rows]) / self.world.size
        self.world.all_reduce_sum(losses)
        norms = torch.stack([norm for _, _, norm in self.rows])
        pairs = zip(self.rows, losses.tolist(), norms.tolist(), strict=True)
        rows, self.rows = [{**facts, "loss": loss, "norm": norm} for (facts, _, _), loss, norm in pairs], []
        for row in rows:
            if not math.isfinite(row["loss"]) or not math.isfinite(row["norm"]):
                raise DoesNotHold(
                    f"loss {row['loss']} and gradient norm {row['norm']} at step {row['step']}: lower the rates"
                )
        if self.world.rank == 0:
            try:
                with open(self.path, "a") as out:
                    out.writelines(json.dumps(row) + "\n" for row in rows)
            except OSError as error:
                raise Problem(f"cannot write {self.path}: {error.strerror}; free space or choose another folder") from error
        return rows[-1]
