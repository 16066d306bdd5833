# Writes without end.
import os

while True:
    os.write(1, b'38\n' * 10000)
