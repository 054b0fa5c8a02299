"""`python -m dreamkit`, the same as `dreamkit`."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # Python's, whose end is a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from dreamkit.cli import main

main()
