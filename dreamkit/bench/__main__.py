"""The whole benchmark."""

import sys

from dreamkit.bench import __doc__ as about, drawing, training_step
from dreamkit.kernels.bench.benchmarks import KERNELS, main
from dreamkit.kernels.bench.runner import Section

SECTIONS = (
    *KERNELS,
    Section("step", 8, training_step.section, training_step.targets),
    Section("drawing", 3, drawing.section, drawing.targets),
)

if __name__ == "__main__":
    sys.exit(main("dreamkit.bench", str(about), SECTIONS))
