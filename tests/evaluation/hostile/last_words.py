# Speaks when its objects are collected, when it is traced, in signal handlers and from other threads at once.
import gc
import json
import os
import signal
import struct
import sys
import threading

TEXT = json.dumps(["value", True]).encode()


def speak(*_):
    try:
        os.write(61, struct.pack("<Q", len(TEXT)) + TEXT)
    except OSError:
        pass
    return speak


class Last:
    __del__ = speak


for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGXCPU, signal.SIGPROF):
    signal.signal(number, speak)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
signal.setitimer(signal.ITIMER_PROF, 0.01, 0.01)
for _ in range(4):
    threading.Thread(target=lambda: [speak() for _ in range(200)], daemon=True).start()
sys.setprofile(speak)
gc.callbacks.append(speak)


def answer(n):
    held = [Last() for _ in range(100)]
    held.append(held)
    return len(held) < n
