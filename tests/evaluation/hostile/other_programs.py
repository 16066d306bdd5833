# Starts other programs that live on.
import os
import subprocess

for start in (lambda: os.system("sleep 86399 &"), lambda: subprocess.Popen(["sleep", "86399"]),
              lambda: os.posix_spawn("/bin/sleep", ["sleep", "86399"], {}),
              lambda: os.execv("/bin/sh", ["sh", "-c", "sleep 86399 & exit 0"])):
    try:
        start()
    except OSError:
        pass


def answer(n):
    return os.system("true") == 0
