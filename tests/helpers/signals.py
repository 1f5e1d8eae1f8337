"""A signal sent during a call, and the time until the call ends."""

import os
import signal
import threading
import time

import pytest


def seconds_to_stop(call, after=0.1):
    """Send a signal during a call; return the time from the signal to the KeyboardInterrupt that its handler raises.

    That is the CPU time of the process if other processes take the CPUs, but at least a tenth of the time that passes.
    A call that ends before the signal is repeated with an earlier one.
    """
    for earlier in range(4):
        seconds = _interrupt(call, after / 4**earlier)
        if seconds is not None:
            return seconds
    return pytest.fail("the call ended before each of four signals, or went on after one")


def _interrupt(call, after):
    """The time from the signal to the end of the call, or None if the call has ended before."""
    sent, is_running, begun = [], True, threading.Event()

    def send():
        begun.wait()
        time.sleep(after)
        sent.extend([time.perf_counter(), time.process_time()])
        os.kill(os.getpid(), signal.SIGALRM)

    def interrupt(*_):
        if is_running:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    try:
        begun.set()  # not before: on a busy machine a thread may take longer to start than `after`
        call()
        is_running = False
    except KeyboardInterrupt:
        passed, used = time.perf_counter() - sent[0], time.process_time() - sent[1]
        return min(passed, max(used, passed / 10))
    finally:
        is_running = False
        sender.join()
        signal.signal(signal.SIGALRM, before)
    return None
