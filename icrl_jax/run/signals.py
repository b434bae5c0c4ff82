"""A clean stop: SIGINT and SIGTERM are noted when they come, and obeyed where nothing is lost."""

import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

noted: list[int] = []
"""The signals that asked this process to stop; there is one list because a process has one set of handlers."""

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; what it trained is saved. `signal_number` says by what."""

    def __init__(self, signal_number: int):
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


def check() -> None:
    """A point where the run may stop.

    Raises:
      Interrupted: a signal was noted.
    """
    if noted:
        raise Interrupted(noted[0])


@contextmanager
def note_signals(console: Console) -> Iterator[None]:
    """Notes the first SIGINT or SIGTERM for `check`; the second one ends the process at once.

    A handler must not raise: it may run inside a callback of XLA, which loses the exception or dies of it. And it does
    not run before a compiled program returns, so a thread hears the signal too, and answers meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():  # Python lets no other thread handle signals
        yield
        return
    heard, told = os.pipe()
    os.set_blocking(told, False)
    listener = threading.Thread(target=_listen, args=(heard, console), daemon=True)
    listener.start()
    told_before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda number, _: noted.append(number)) for number in _STOP_SIGNALS}
    try:
        yield
    finally:
        signal.set_wakeup_fd(told_before)
        os.close(told)  # ends the listener, which could undo what follows
        listener.join()
        os.close(heard)
        for number, previous in before.items():
            signal.signal(number, previous)
        noted.clear()


def _listen(heard: int, console: Console) -> None:
    while byte := os.read(heard, 1):
        if byte[0] in _STOP_SIGNALS:
            noted.append(byte[0])
            for number in _STOP_SIGNALS:
                ctypes.pythonapi.PyOS_setsig(number, None)  # SIG_DFL; `signal.signal` serves the main thread alone
            console.print("finishing this part, then stopping with all training saved; once more stops at once")
            return
