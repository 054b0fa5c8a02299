"""The benchmark of the kernels alone."""

import sys

from dreamkit.kernels.bench import __doc__ as about
from dreamkit.kernels.bench.benchmarks import KERNELS, main

if __name__ == "__main__":
    sys.exit(main("dreamkit.kernels.bench", str(about), KERNELS))
