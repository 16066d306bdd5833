# Leaves files wherever it may, and takes the rights to its own folder away.
import os

home = os.path.expanduser("~")
here = os.path.dirname(os.__file__)
for folder in ("/tmp", "/var/tmp", "/dev/shm", "/run", "/", home, "..", "../..", here, here + "/site-packages"):
    try:
        with open(os.path.join(folder, "mtp_jax_hostile_file"), "w") as file:
            file.write("was here")
    except OSError:
        pass
os.makedirs("deep/er")
open("deep/er/mtp_jax_hostile_file", "w").close()
os.symlink("/", "deep/root")
for place in ("deep/er", "deep", "."):
    try:
        os.chmod(place, 0)
    except OSError:
        pass


def answer(n):
    return n
