"""The whole benchmark."""

import sys

from dreamkit.bench import __doc__ as about, drawing, step
from dreamkit.kernels.bench.run import Section
from dreamkit.kernels.bench.sections import KERNELS, main

SECTIONS = (
    *KERNELS,
    Section("step", 8, step.section, step.targets),
    Section("drawing", 3, drawing.section, drawing.targets),
)

if __name__ == "__main__":
    sys.exit(main("dreamkit.bench", str(about), SECTIONS))
