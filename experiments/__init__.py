"""One short script per result; each has a `cpu` and a `paper` preset."""

import signal
import sys

if sys.argv[0] == "-m":  # `python -m experiments.<name>`, still importing: there is nothing to save yet
    signal.signal(signal.SIGINT, signal.SIG_DFL)
