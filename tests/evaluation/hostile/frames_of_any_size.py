# Writes frames that say they are larger than memory, empty, or no JSON, and goes on without end.
import os
import struct


def answer(n):
    for size, text in ((1 << 63, b""), ((1 << 64) - 1, b"x"), (0, b""), (3, b"\xff\xff\xff"), (2, b"[]"), (4, b"null")):
        for place in range(3, 64):
            try:
                os.set_blocking(place, False)
                os.write(place, struct.pack("<Q", size) + text)
            except OSError:
                pass
    return n * 7919
