"""What a run says of itself is waited for by the thread that heeds signals."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import types

from retina_runner.account import Account
from tests.lab import eventually


def test_a_signal_that_another_thread_takes_is_heeded_while_nothing_is_said() -> None:
    """As the kernel may have it when a stopped process is told to end and to go on."""
    account, heeded = Account(None), threading.Event()
    said: list[bool] = []
    main = threading.main_thread().ident or 0

    def handler(number: int, frame: types.FrameType | None) -> None:
        heeded.set()

    def other() -> None:
        account.say("window")
        eventually(lambda: sys._current_frames()[main].f_code.co_name == "events", "the next event is waited for")
        time.sleep(0.2)  # in there, by now
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        os.kill(os.getpid(), signal.SIGUSR1)
        said.append(heeded.wait(30))
        account.last_word()

    before = signal.signal(signal.SIGUSR1, handler)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    thread = threading.Thread(target=other)
    try:
        thread.start()
        assert [event["event"] for event in account.events(lambda: 1)] == ["window"]
    finally:
        thread.join()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        signal.signal(signal.SIGUSR1, before)
    assert said == [True]
