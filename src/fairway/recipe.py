"""The recipe: one frozen tree that says what is trained, how, and how it is packed and scored."""

from dataclasses import dataclass

from .node import Node
from .sites import (
    AdaptSite,
    AverageSite,
    CalibrationSite,
    CodecSite,
    EvaluationSite,
    FitSite,
    GroupSite,
    LoaderSite,
    MixSite,
    ModelSite,
    QATSite,
    SchemeSite,
    TrainingSite,
)


@dataclass(frozen=True)
class Recipe(Node):
    """Everything that decides a run, apart from its data, its seed and its budget of steps or seconds.

    Recipes are functions in `recipes/` that return one of these; a variant calls another and amends it.
    """

    name: str
    model: ModelSite
    loader: LoaderSite
    train: TrainingSite
    optim: tuple[GroupSite, ...]
    quantize: tuple[SchemeSite, ...]
    codec: CodecSite
    evaluate: EvaluationSite
    average: tuple[AverageSite, ...] = ()  # the first is packed, the others are scored beside it
    qat: tuple[QATSite, ...] = ()
    calibrate: tuple[CalibrationSite, ...] = ()  # what rules in `quantize` learn about the inputs of matrices; at most one
    fit: tuple[FitSite, ...] = ()  # dials that are moved, one after the other, until the bytes fit
    adapt: tuple[AdaptSite, ...] = ()  # what learns while scoring
    mix: tuple[MixSite, ...] = ()  # what then changes the distribution, one after the other
    cap: int = 16_000_000  # bytes of train_gpt.py and model.bin together
