"""Segments made in a process of their own: it takes no interpreter lock from the event loop, and gives its memory back.

    daemon: a task as a pickle  ->  stdin   of `python -m collectord.maker_process DIRECTORY PARENT`
            Made, or an error   <-  stdout

It is begun when there is work, ends when there was none for a while, and never outlives the daemon: the kernel kills it
(PR_SET_PDEATHSIG), where it can, and it holds the data directory's lock, so that no other daemon begins before it has ended.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path

from storage.files import Files
from storage.making import Made, Maker, MakerLostError, Task

NICENESS = 5  # whoever sends samples is served first, as long as the WAL has room
OOM_SCORE = 500  # of 1000: where memory ends, this goes first, and its work is done again
PR_SET_PDEATHSIG = 1
GC_THRESHOLDS = 200_000, 50, 50  # names of a file are many objects at once, and none of them is a cycle


class MakerProcess:
    """As `Maker`, elsewhere. `make` is for one thread at a time, which must live as long as the daemon; the rest for any."""

    def __init__(self, directory: Path, lock: int) -> None:
        """directory: of the segments; lock: the descriptor that holds the data directory's lock."""
        self._directory = directory
        self._lock = lock
        self._process: subprocess.Popen[bytes] | None = None
        self._over = False
        self._starting = threading.Lock()

    def make(self, task: Task) -> Made:
        """Raises what `Maker.make` raises, and MakerLostError when the process ended meanwhile."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump(task, process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            process.stdin.flush()
            answer = pickle.load(process.stdout)
        except Exception as error:  # pipes that break or are closed meanwhile, and whatever half an answer leads to
            status = self.end()
            raise MakerLostError(
                f"the process that makes segments ended with status {status} ({error!r}); its work is done again. If this "
                "happens again and again: is there enough memory, and is the disk in order?"
            ) from error
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, Made)
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        with self._starting:
            if self._over:
                raise MakerLostError("the daemon is about to end")
            if self._process is None:
                # -P: what lies in the working directory is no module of ours, unless it is one for the daemon too.
                command = [sys.executable, "-P", "-m", __name__, str(self._directory), str(os.getpid())]
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    pass_fds=(self._lock,),
                    process_group=0,  # a terminal's Ctrl-C is the daemon's to handle
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
                with suppress(OSError):
                    os.setpriority(os.PRIO_PROCESS, self._process.pid, NICENESS)
            return self._process

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        process = self._process
        return process.pid if process is not None else None

    def end(self) -> int | None:
        """End the process if there is one, whatever it does; returns its status. The next task begins another."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        return process.wait()

    def stop(self) -> None:
        """As `end`, and no task begins another."""
        with self._starting:
            self._over = True
        self.end()


def main() -> None:
    """The process itself."""
    directory, parent = Path(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # systemd tells all processes: the daemon's to handle
    # Not every system has it; the pipe's end is seen everywhere, after the task.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    tasks, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library may print is no answer
    gc.set_threshold(*GC_THRESHOLDS)
    maker = Maker(Files(), directory)
    while True:
        try:
            task = pickle.load(tasks)
        except EOFError:
            return
        answers.write(_answer(maker, task))
        answers.flush()


def _answer(maker: Maker, task: Task) -> bytes:
    answer: Made | Exception
    try:
        answer = maker.make(task)
    except Exception as error:  # noqa: BLE001  the daemon's to tell, as if it had happened there
        error.add_note("in the process that makes segments:\n" + traceback.format_exc())
        answer = error.with_traceback(None)
    return pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL)


if __name__ == "__main__":
    main()
