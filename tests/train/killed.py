"""What the processes of ``test_killed.py`` run, with its arguments as globals: a command, watched, that may be killed.

``events`` is a file for how many operations on files below ``folder`` the command did, ``fatal`` the number of the one
before which it is killed (0: none).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from intermoe.cli import app

ARGUMENTS: dict[str, Any] = {name: globals()[name] for name in ("command", "folder", "events", "fatal")}
WATCHED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.chmod", "shutil.rmtree"}
done = 0


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    global done
    if event in WATCHED and str(arguments[0]).startswith(ARGUMENTS["folder"]):
        done += 1
        if done == ARGUMENTS["fatal"]:
            os.kill(os.getpid(), signal.SIGKILL)


torch.set_num_threads(1)
sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # a progress bar is for nobody
sys.addaudithook(watch)
app(ARGUMENTS["command"], standalone_mode=False)
Path(ARGUMENTS["events"]).write_text(str(done))
