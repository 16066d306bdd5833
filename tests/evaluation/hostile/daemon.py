# Forks twice into a session of its own; the grandchild lives on and leaves a file.
import os
import time


def answer(n):
    try:
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(3)
                for folder in ("/tmp", "/var/tmp", "/dev/shm", os.path.expanduser("~")):
                    open(folder + "/mtp_jax_hostile_daemon", "w").close()
                time.sleep(86399)
            os._exit(0)
    finally:
        return n  # noqa: B012
