import signal
import sys

__version__ = "0.1.0"

# While `python -m piny.…` still loads its libraries, Ctrl-C ends it without a traceback.
if sys.argv[:1] == ['-m'] and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
