"""`python -m dreamkit`, the same as `dreamkit`."""

from dreamkit.cli import main

main()
