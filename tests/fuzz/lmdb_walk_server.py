"""Runs `lmdb_walk.py SCRIPT` for each path that comes in a line, in a fork that has lmdb imported already: a thirtieth
of the time of a new process. Answers with the exit code; output and error lie beside the path, as .out and .err.

Started by `fuzz_archives.py`.
"""

import os
import runpy
import signal
import sys

import lmdb  # noqa: F401 - what every fork needs

LONGEST_WALK_S = 20  # of processor time


def walk(script: str, path: str) -> int:
    """The child: the script, as `python SCRIPT PATH` runs it; its exit code."""
    signal.setitimer(signal.ITIMER_PROF, LONGEST_WALK_S)  # SIGPROF ends the process
    for number, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(path + suffix, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv, sys.path = [script, path], ["", *sys.path]
    try:
        runpy.run_path(script)
    except SystemExit as end:
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as cause:
        print(f"{type(cause).__name__}: {cause}", file=sys.stderr)
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os._exit(walk(sys.argv[1], line.rstrip("\n")))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
