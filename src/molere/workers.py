"""Worker processes that run the jobs of a comparison side by side.

Each worker has a pipe of its own and is given one job at a time, so a worker that is killed can neither hold
a lock nor take more than its job with it. Workers are spawned, never forked, and end when their parent does.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from typing import Any

from molere import signals
from molere.errors import ConfigError, ResourceError
from molere.jobs import Bench, Emit, Failure, Job, Outcome, Plan, Progress

READY = "ready"
PATIENCE = 9.0  # seconds that the workers are given, all together, to save and end
AT_ONCE = 1.0  # of these, where they are asked a second time by Ctrl-C, to end without saving


def run_side_by_side(jobs: Sequence[Job], plan: Plan, emit: Emit, *, workers: int, threads: int) -> None:
    """Run jobs in worker processes of `threads` threads each; `emit` is called here, in this process.

    A job whose worker is killed fails and the others go on. Raises what no job can do without, such as
    missing data, and ResourceError when workers cannot start.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ConfigError(_UNGUARDED)  # a worker of ours is importing the script that called us
    waiting = deque(jobs)
    crew, number = list[Worker](), int(signal.SIGTERM)
    try:
        while len(crew) < min(workers, len(jobs)):
            crew.append(Worker(plan, threads))
        while any(not worker.ended for worker in crew):
            connection.wait([worker.channel for worker in crew if not worker.ended], timeout=0.5)
            for worker in [w for w in crew if not w.ended]:
                worker.attend(waiting, emit)
                if worker.ended and waiting:
                    crew.append(Worker(plan, threads))
    except KeyboardInterrupt as error:
        number = getattr(error, "exit_code", 128 + signal.SIGINT) - 128
        raise
    finally:
        try:
            _dismiss(crew, number, PATIENCE)
        except KeyboardInterrupt:  # asked again while they save
            _dismiss(crew, signal.SIGINT, AT_ONCE)
            raise


def _dismiss(crew: "Sequence[Worker]", number: int, patience: float) -> None:
    """Ask all workers to end, for the signal that this process was sent, and end those that have not in time."""
    for worker in crew:
        worker.ask(number)
    until = time.monotonic() + patience
    for worker in crew:
        worker.stop(until)


class Worker:
    """The parent's side of one worker process: its pipe, and the job it is at."""

    def __init__(self, plan: Plan, threads: int) -> None:
        context: SpawnContext = multiprocessing.get_context("spawn")
        self.channel, theirs = context.Pipe()
        why, self._why = context.Pipe(duplex=False)
        self.process = context.Process(target=serve, args=(theirs, why, plan, threads))
        self.process.start()
        theirs.close()
        why.close()
        self.job: Job | None = None
        self.ready = self.ended = False

    def attend(self, waiting: deque[Job], emit: Emit) -> None:
        """Take in what the worker has to say, give it its next job, notice its death."""
        alive = self.process.is_alive()  # asked first: what a dead worker has said is still in the pipe
        try:
            while self.channel.poll():
                self._hear(self.channel.recv(), waiting, emit)
        except (EOFError, OSError):
            alive = False
        if not alive:
            self._bury(emit)

    def _hear(self, message: Any, waiting: deque[Job], emit: Emit) -> None:  # what `serve` sends
        if isinstance(message, Outcome):
            if message.failure is not None and message.failure.fatal:
                message.failure.throw()
            self.job = None
        self.ready = True
        if message != READY:
            emit(message)
        if self.job is None:
            self._give(waiting, emit)

    def _give(self, waiting: deque[Job], emit: Emit) -> None:
        """The next job, or None: there are no more."""
        job = waiting.popleft() if waiting else None
        try:
            self.channel.send(job)
        except OSError:
            if job is not None:
                waiting.appendleft(job)
            raise
        self.job = job
        if job is not None:
            emit(Progress(job, "running", 0.0))

    def _bury(self, emit: Emit) -> None:
        self.process.join(PATIENCE)
        self.ended, code = True, self.process.exitcode
        if not self.ready:
            raise ResourceError(f"a worker process ended ({_cause(code)}) before its first job; {_UNGUARDED}")
        if self.job is not None:
            message = f"its worker process was lost ({_cause(code)}); {_LOST}"
            emit(Outcome(self.job, failure=Failure(message, "ResourceError", ResourceError.exit_code)))
            self.job = None

    def ask(self, number: int) -> None:
        """Ask the process to save its run and end, for this signal."""
        if self.process.is_alive():
            with suppress(OSError):  # it has ended just now
                self._why.send(number)
            self.process.terminate()

    def stop(self, until: float) -> None:
        """Wait for the process to end until then, and end it; its run can be continued from the last checkpoint."""
        self.process.join(max(0.0, until - time.monotonic()))
        if self.process.is_alive():
            self.process.kill()
            self.process.join(PATIENCE)
        self.channel.close()
        self._why.close()
        self.ended = True


def serve(channel: Connection, why: Connection, plan: Plan, threads: int) -> None:
    """What a worker does: say that it is ready, then run the jobs it is given until there is none.

    why: gives the number of the signal for which the parent asks it to end, before it asks.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    bench = Bench(plan)
    if torch := sys.modules.get("torch"):  # the bench has imported it; the parent, which imports us, has not
        torch.set_num_threads(threads)
    with (
        suppress(EOFError, OSError, signals.Stopped),
        signals.heeded(partial(_meant, why)),
    ):  # the parent is gone, or wants us gone
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent decides
        channel.send(READY)
        while (job := channel.recv()) is not None:
            channel.send(bench.run(job, channel.send))


def _meant(why: Connection, number: int) -> int:
    """The signal that the parent was sent, if this one is the parent's."""
    with suppress(EOFError, OSError):
        return why.recv() if number == signal.SIGTERM and why.poll() else number
    return number


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _cause(code: int | None) -> str:
    if code is None:
        return "it does not answer"
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


_UNGUARDED = "in a script, call compare(..., jobs=2) below `if __name__ == '__main__':`, or use jobs=1"
_LOST = "often memory ran out, so try fewer jobs; run the same command again to continue"
