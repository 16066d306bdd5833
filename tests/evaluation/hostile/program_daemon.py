# Leaves a process that holds its output open.
import os
import time

try:
    if os.fork() == 0:
        os.setsid()
        time.sleep(86399)
except OSError:
    pass
print(0)
