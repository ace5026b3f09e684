"""PR #1205: Turbo-Muon, EngramLite, value embeddings on layers 8 to 10, gated skips, int5 (1.1431 bpb on FineWeb).

Mended against the public script: gradients are clipped after they are averaged; rate, QAT and SWA follow one rank's
clock; the output matrices' "mimetic" start is the transpose that was meant; momentum warms up for small matrices too;
late QAT rounds straight through on the grid of the packing rules (there a sigmoid, to another range; what is packed in
the end is the mean of snapshots); rows keep their own scale (there never under 1/15); the EMA that was computed and
thrown away is left out; tables' masters, momentum, gradients on their way and the capped logits are float32 (there
bfloat16); the tail is scored once; bits go where they lower the error in the outputs most per byte as really coded (there
an estimate left every matrix at 5); pruning, if any is needed, weighs by the Hessian and is made up for in GPTQ's sweep.
"""

from ..codec.columns import ColumnRans
from ..data.loaders import SequentialShards
from ..model.head import FinalNorm, Softcap, TiedHead
from ..model.inputs import EngramLite, TokenEmbedding
from ..model.join import Sequential
from ..model.mlp import LeakyReluSquared
from ..model.plan import LerpSkip, UNet
from ..model.positions import QKGain, QKNorm, Rotary
from ..model.residual import LayerScale, LNScale, ResidualMix
from ..model.spine import GPT
from ..model.start import MimeticOutput
from ..model.stream import InputNorm, SmearGate
from ..model.taps import ExclusiveSelfAttention
from ..model.values import ValueEmbedding
from ..optim.adamw import AdamW
from ..optim.average import SWA
from ..optim.muon import Muon
from ..optim.orthogonal import Turbo
from ..optim.schedule import Budget, Ramp, WarmDownSteps
from ..quantize.fit import MixedBits, Pruning
from ..quantize.gptq import GPTQ
from ..quantize.hessian import Calibration
from ..quantize.qat import LateQAT
from ..quantize.schemes import KeepFloat16, RowInt
from ..recipe import Recipe
from ..score.windows import Evaluation, Sliding
from ..train.settings import Training
from .pr864 import CLIPS, NTK_BASE

SLOPES = (-0.014, 0.131, 0.225, 0.265, 0.310, 0.354, 0.421, 0.429, 0.417, 0.358, 0.468)


def pr1205() -> Recipe:
    """The submission up to its averaged weights: 31,617,116 parameters, 786,432 tokens a step, 591 of 600 s."""
    return Recipe(
        name="pr1205",
        model=GPT(
            vocab=1024,
            width=512,
            layers=11,
            heads=8,
            kv_heads=4,
            sequence=2048,
            inputs=(TokenEmbedding(), EngramLite(buckets=10_240, dim=48)),
            stream=(InputNorm(), SmearGate(stop_at_bos=False)),
            positions=(QKNorm(), Rotary(base=NTK_BASE, dims=16), QKGain()),
            values=(ValueEmbedding(layers=(8, 9, 10)),),
            taps=(ExclusiveSelfAttention(),),
            mlp=LeakyReluSquared(expansion=3.5, slopes=SLOPES),
            join=Sequential(),
            residual=(ResidualMix(), LNScale(), LayerScale()),
            plan=UNet(skip=LerpSkip()),
            head=(FinalNorm(), TiedHead(), Softcap(cap=30.0)),
            start=(MimeticOutput(strength=0.05),),
        ),
        loader=SequentialShards(),
        train=Training(schedule=WarmDownSteps(4500, floor=0.05), budget=Budget(reserve=9.0)),
        optim=(
            AdamW(roles=("embedding", "table"), rate=0.035, betas=(0.7, 0.95), weight_decay=0.04),
            Muon(
                roles=("matrix", "projection"),
                rate=0.03,
                momentum=Ramp(0.92, 0.99, 1000),
                weight_decay=0.04,
                orthogonaliser=Turbo(),
                decay_last=True,
            ),
            AdamW(roles=("scalar",), rate=0.03, weight_decay=0.04),
        ),
        average=(SWA(below=0.2, every=50),),
        qat=(LateQAT(after=1.0, below=0.15),),
        quantize=(
            KeepFloat16(largest=65_536),
            KeepFloat16(role="embedding"),
            RowInt(role="matrix", bits=5, search=CLIPS, rounding=GPTQ()),
            RowInt(role="projection", bits=6, search=CLIPS, rounding=GPTQ()),
            RowInt(role="table", bits=8, quantile=0.9999984),
        ),
        calibrate=(Calibration(),),
        fit=(MixedBits(bits=(4, 5, 6, 7)), Pruning()),
        codec=ColumnRans(),
        evaluate=Evaluation(Sliding(length=2048, stride=64), multiple_of=2048),
    )
