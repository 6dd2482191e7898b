"""Writing beside the training: one thread, one thing at a time, and no failure lost."""

import threading
from collections.abc import Callable


class Writer:
    """Runs one piece of work in a thread; its error is raised at the next `submit` or `wait`, once."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, work: Callable[[], None]) -> None:
        """Begin some work when the one before has ended; raises the error of the one before instead."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(work,), name="molere-writer")
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written; raises the error of what was."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
