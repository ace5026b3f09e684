"""Every window, adapter and mixer in one table; `test_evaluators_conform.py` puts each combination through the same checks.

A new node gets a row here, and one more for each field that changes what it does.
"""

from fairway.model.stream import HashEmbedding
from fairway.score.averaged_sgd import AveragedSGD
from fairway.score.backoff import BackoffCache, BackoffCacheAsPublished
from fairway.score.lora import DocumentLoRA
from fairway.score.sgd import ScoreFirstSGD
from fairway.score.tilt import TokenTilt
from fairway.score.windows import Documents, Evaluation, NonOverlapping, Sliding

LENGTH = 16
WINDOWS = (NonOverlapping(LENGTH), Sliding(LENGTH, 4), Documents(LENGTH, 4))
SGD = ScoreFirstSGD(rate=0.05, chunk=64, epochs=2)
ADAPTERS = (
    (),
    (SGD,),
    (AveragedSGD(rate=0.05, chunk=64, epochs=1, frozen=1, polyak=0.5),),
    (AveragedSGD(rate=0.05, chunk=64, epochs=2, entropy_band=(1.5, 2.2)),),
    (ScoreFirstSGD(rate=0.05, chunk=32, epochs=1, fresh=(HashEmbedding(buckets=64),)),),
    (DocumentLoRA(rank=2, alpha=4.0, rate=0.02, batch=3, context=LENGTH, chunks=((12, 2),), chunk=4, lanes=2),),
    # Whole documents are single chunks of batches of one, in two phases: groups of one window, out of the stream's order.
    (DocumentLoRA(rank=2, batch=1, context=LENGTH, chunks=(), chunk=LENGTH, lanes=2, phases=2, prefix=2, base_rate=0.05),),
)
TILT = TokenTilt(rules=((3, 0.4, 1), (2, 0.4, 2), (1, 0.3, 2)))
CACHE = BackoffCache(orders=(2, 3, 4), least=2, every=32)
MIXERS = ((), (TILT,), (CACHE,), (BackoffCache(orders=(2, 3), least=1, every=1), TILT), (TILT, CACHE))
UNNORMALISED = (BackoffCacheAsPublished(orders=(2, 3), buckets=16, every=32, sample=64),)
EVALUATIONS = tuple(Evaluation(windows) for windows in WINDOWS)
ROWS = (*WINDOWS, *(node for nodes in (*ADAPTERS, *MIXERS, UNNORMALISED) for node in nodes))
