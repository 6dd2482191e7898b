"""Requests to end: a signal asks, the training saves at its next update, and the process ends with 128 + its number.

Only a command or a worker process takes signals over (`heeded`); a library call leaves them as they are.
"""

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

ASKING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)  # Windows has no SIGUSR1
PATIENCE = 8
"""Seconds that a training is given to reach its next update; after them the checkpoint before is what remains."""


class Stopped(KeyboardInterrupt):
    """The process was asked to end by a signal; what could be saved is saved. exit_code: 130, 143, 138."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class _Requests:
    """What was asked for, and how many trainings are at work that will look."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self.looking = 0
        self.meant: Callable[[int], int] = int

    def take(self, number: int, frame: FrameType | None) -> None:
        again, number = self.asked is not None, self.meant(number)
        if again and number != signal.SIGINT:
            return
        self.asked = number if self.asked is None else self.asked
        if again or not self.looking:
            raise Stopped(number)
        if hasattr(signal, "SIGALRM"):
            signal.alarm(PATIENCE)

    def give_up(self, number: int, frame: FrameType | None) -> None:
        raise Stopped(signal.SIGTERM if self.asked is None else self.asked)


_requests = _Requests()


@contextmanager
def heeded(meant: Callable[[int], int] = int) -> Generator[None]:
    """Within the block SIGINT, SIGTERM and SIGUSR1 raise Stopped: in a training once it has saved, elsewhere at once.

    A second SIGINT ends a training at once as well; its last checkpoint stays. Only the main thread may enter.
    meant: what a signal stands for, where another process passes on one that it was sent.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _requests.take) for number in ASKING}
    if hasattr(signal, "SIGALRM"):
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, _requests.give_up)
    _requests.asked, _requests.meant = None, meant
    try:
        yield
    finally:
        if hasattr(signal, "SIGALRM"):
            signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)
        _requests.asked, _requests.meant = None, int


@contextmanager
def looking() -> Generator[None]:
    """The block looks at `asked` often, so that a signal need not interrupt it."""
    _requests.looking += 1
    try:
        yield
    finally:
        _requests.looking -= 1


def asked() -> int | None:
    """The number of the signal that asked for an end, if one has."""
    return _requests.asked
