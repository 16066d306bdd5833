# Starts threads without end.
import threading
import time


def answer(n):
    started = 0
    while started < 5000:
        threading.Thread(target=time.sleep, args=(86399,), daemon=True).start()
        started += 1
