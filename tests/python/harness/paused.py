"""Pauses a process.

Problem: SIGSTOP takes effect only when every thread has received it. On a busy machine, a thread may still send a response.
Choice: the kernel reports the stop of the whole process to its parent, so this module waits for that report.
"""

from __future__ import annotations

import os
import signal
import subprocess


def pause(process: subprocess.Popen[bytes]) -> None:
    """Sends SIGSTOP to a child. None of its threads runs when this function returns."""
    process.send_signal(signal.SIGSTOP)
    # Does not reap a child that has ended, which Popen does.
    became = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert became is not None, "there is no such child"
    assert became.si_code == os.CLD_STOPPED, f"it did not stop: {became}"
