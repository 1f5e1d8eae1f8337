"""A signal sent during a call, and the time until the call ends."""

import os
import signal
import threading
import time

import pytest


def seconds_to_stop(call, after=0.1):
    """Send SIGINT during a call; return the time from the signal to the exception.

    That is the CPU time of the process if other processes take the CPUs, but at least a tenth of the time that passes.
    """
    sent = []

    def send():
        time.sleep(after)
        sent.extend([time.perf_counter(), time.process_time()])
        os.kill(os.getpid(), signal.SIGALRM)

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            call()
        passed, used = time.perf_counter() - sent[0], time.process_time() - sent[1]
        return min(passed, max(used, passed / 10))
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)  # of a call that has ended before
        sender.join()
        signal.signal(signal.SIGALRM, before)
