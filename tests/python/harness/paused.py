"""A process that is paused.

Problem: SIGSTOP is sent at once and holds when every thread has taken it; on a busy machine one of them still answers.
Choice: the kernel reports the stop of the whole process to its parent, and that is waited for.
"""

from __future__ import annotations

import os
import signal
import subprocess


def pause(process: subprocess.Popen[bytes]) -> None:
    """SIGSTOP to a child: none of its threads runs when this returns."""
    process.send_signal(signal.SIGSTOP)
    # Only looked at: a child that has ended is still Popen's to reap.
    became = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert became is not None, "there is no such child"
    assert became.si_code == os.CLD_STOPPED, f"it did not stop: {became}"
