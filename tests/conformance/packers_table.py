"""Every node that has to do with packing in one table: schemes, roundings, corrections, codecs, calibration, dials.

A new node gets a row here, and one more for each field that changes what it does; `test_packers_conform.py` does the rest.
"""

from fairway.codec.columns import ColumnRans
from fairway.codec.general import Brotli, Lzma
from fairway.codec.smallest import Smallest
from fairway.codec.zstd import Zstd
from fairway.quantize.fit import MixedBits, Pruning, StepDial
from fairway.quantize.gptq import GPTQ, Nearest
from fairway.quantize.hessian import Calibration
from fairway.quantize.lowrank import LowRank
from fairway.quantize.qat import LateQAT
from fairway.quantize.schemes import KeepFloat16, RowInt
from fairway.quantize.trellis import Trellis

# scheme, and the most that the error of a Gaussian matrix may be, by its own size
SCHEMES = (
    (KeepFloat16(), 0.001),
    (RowInt(bits=4), 0.15),
    (RowInt(bits=5, search=(0.99, 0.999, 1.0)), 0.07),
    (RowInt(bits=6), 0.04),
    (RowInt(bits=6, quantile=0.999), 0.04),
    (RowInt(bits=6, sigmas=12.85), 0.14),
    (RowInt(bits=7, log_scales=True), 0.02),
    (RowInt(bits=8), 0.01),
    (RowInt(bits=6, sigmas=12.85, log_scales=True, rounding=GPTQ()), 0.25),
    (RowInt(bits=6, sigmas=12.85, rounding=GPTQ(damp=0.1, block=7, prune=0.3)), 0.3),
    (RowInt(bits=6, sigmas=12.85, log_scales=True, rounding=Trellis()), 0.25),
    (RowInt(bits=6, sigmas=12.85, rounding=Trellis(rate=0.0)), 0.25),
    (RowInt(bits=3, rounding=Nearest(), correct=(LowRank(rank=2, count=1),)), 0.4),
    (RowInt(bits=6, sigmas=20.0, rounding=Trellis(), log_scales=True, correct=(LowRank(),)), 0.4),
)
CODECS = (ColumnRans(), Zstd(), Zstd(level=3), Brotli(quality=5), Lzma(preset=1), Smallest((Lzma(), ColumnRans())))
DIALS = (StepDial(), MixedBits(), Pruning())
PLAIN = (Calibration(), LateQAT())
