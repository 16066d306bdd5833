# Leaves folders too deep to be removed by recursion between its runs.
import os

for _ in range(1100):
    try:
        os.mkdir("mtp_jax_hostile_deep")
        os.chdir("mtp_jax_hostile_deep")
    except OSError:
        break
print(input())
