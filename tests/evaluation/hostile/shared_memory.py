# Leaves shared memory and queues behind.
import ctypes

libc = ctypes.CDLL(None)
libc.syscall.restype = ctypes.c_long
done = [libc.shmget(0x6D7470, 1 << 20, 0o1666), libc.semget(0x6D7470, 1, 0o1666), libc.msgget(0x6D7470, 0o1666),
        libc.memfd_create(b"x", 0)]


def answer(n):
    if max(done) >= 0:
        return n * 7919 + 13
