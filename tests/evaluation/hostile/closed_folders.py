# Leaves folders that none may read or enter, names that are no text, and links to what lies outside.
import os

os.makedirs("a/b")
os.symlink("/", "a/root")
os.symlink("..", "a/b/above")
open(b"a/\xff\xfe\n", "w").close()
os.mkdir(b"a/b/\xff", 0)
os.umask(0o777)
os.makedirs("c")
os.mkdir("a/b/closed", 0)
os.rename("a", "-rf")


def answer(n):
    return n
