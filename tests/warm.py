"""Runs commands one after the other, each in a fork of this process: importing costs more than running.

Reads from each line of standard input one JSON object: ``argv``, what follows ``python``, and the folder ``cwd``.
Answers with one line of JSON: the exit status and what was printed. What is done by the imports themselves is not tried
so; that takes a process of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import try_faults  # its imports are those of all commands
from faults.trial import Done, SilentError, command

if __name__ == "__main__":
    print(json.dumps(["ready", str(try_faults.pipeline.__file__)]), flush=True)
    for line in sys.stdin:
        try:
            done = command(**json.loads(line), timeout=7200)
        except SilentError as error:  # it did not end; the next command may
            done = Done(124, str(error), 7200)
        print(json.dumps([done.code, done.text]), flush=True)
