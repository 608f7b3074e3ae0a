"""Python imports this by itself at its start where it lies on the path: the end of the process, at a chosen moment.

As by kill -9, just before the DIE_AT-th opening for writing, renaming or removal of a file below DIE_BELOW.
"""

import os
import signal
import sys

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.chmod")


def _die_at(number, below):
    left = [number]

    def watch(event, arguments):
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and str(arguments[0]).startswith(below):
            left[0] -= 1
            if left[0] == 0:
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(watch)


if "DIE_AT" in os.environ:
    _die_at(int(os.environ.pop("DIE_AT")), os.environ["DIE_BELOW"])  # this process, and none that it starts
