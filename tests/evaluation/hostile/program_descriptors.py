# Takes every descriptor, passes copies of its output through a socket to itself, and ends.
import array
import os
import socket

left, right = socket.socketpair()
left.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [1, left.fileno()]))])
try:
    while True:
        os.dup(1)
except OSError:
    pass
os._exit(0)
