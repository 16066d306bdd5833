# Takes memory in one piece, in many small ones, by numbers and by maps that are shared.
import mmap


def answer(n):
    kept = []
    for take in (lambda: bytearray(1 << 40), lambda: 1 << (1 << 40), lambda: mmap.mmap(-1, 1 << 34),
                 lambda: "x" * (1 << 36), lambda: kept.extend([[index] for index in range(10**8)])):
        try:
            kept.append(take())
        except (MemoryError, OSError, OverflowError):
            pass
    return kept
