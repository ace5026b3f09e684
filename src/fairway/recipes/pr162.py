"""PR #162: int6, 3x MLP, SmearGate, BigramHash, orthogonal init, Muon with decay, SWA (1.1458 bpb on FineWeb).

Mended against the public script: RoPE positions are exact; embedding and table have float32 masters; SWA sums in
float32; small int8 rows keep their own range; the sliding tail is scored once; codes are coded by rANS, not zstd, and the
bytes that this leaves under the cap become a seventh bit for the matrices that gain most by it.
`SmearGate(stop_at_bos=True)` is the later records' form; here the gate crosses documents as published.
"""

from ..codec.columns import ColumnRans
from ..data.loaders import SequentialShards
from ..model.head import FinalNorm, Softcap, TiedHead
from ..model.inputs import BigramHash, TokenEmbedding
from ..model.join import Sequential
from ..model.mlp import ReluSquared
from ..model.plan import AddSkip, UNet
from ..model.positions import QKGain, QKNorm, Rotary
from ..model.residual import LayerScale, ResidualMix
from ..model.spine import GPT
from ..model.stream import InputNorm, SmearGate
from ..optim.adamw import AdamW
from ..optim.average import SWA
from ..optim.muon import Muon
from ..optim.schedule import WarmDownSteps
from ..quantize.fit import MixedBits
from ..quantize.schemes import KeepFloat16, RowInt
from ..recipe import Recipe
from ..score.windows import Evaluation, Sliding
from ..train.settings import Training


def pr162():
    """The submission as it scored 1.1458: 22,368,841 parameters, 786,432 tokens a step, 600 s."""
    return Recipe(
        name="pr162",
        model=GPT(
            vocab=1024,
            width=512,
            layers=9,
            heads=8,
            kv_heads=4,
            sequence=2048,
            inputs=(TokenEmbedding(), BigramHash()),
            stream=(InputNorm(), SmearGate(stop_at_bos=False)),
            positions=(QKNorm(), Rotary(), QKGain()),
            values=(),
            taps=(),
            mlp=ReluSquared(expansion=3.0),
            join=Sequential(),
            residual=(ResidualMix(), LayerScale()),
            plan=UNet(skip=AddSkip()),
            head=(FinalNorm(), TiedHead(), Softcap(cap=30.0)),
        ),
        loader=SequentialShards(),
        train=Training(schedule=WarmDownSteps(3000)),
        optim=(
            AdamW(roles=("embedding", "table"), rate=0.03),
            Muon(roles=("matrix", "projection"), rate=0.02, weight_decay=0.04),
            AdamW(roles=("scalar",), rate=0.02),
        ),
        average=(SWA(below=0.5, every=50),),
        quantize=(
            KeepFloat16(largest=65_536),
            KeepFloat16(role="embedding"),
            KeepFloat16(role="matrix.key", layers=(-1,)),
            RowInt(role="matrix", bits=6),
            RowInt(role="table", bits=8, quantile=0.9999984),
        ),
        fit=(MixedBits(bits=(5, 6, 7)),),
        codec=ColumnRans(),
        evaluate=Evaluation(Sliding(length=2048, stride=64), multiple_of=2048),
    )
