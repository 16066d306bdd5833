"""What the sandbox asks of Linux: namespaces, mounts, Landlock, a system call filter, capabilities; by ctypes alone.

It is loaded by child.py by its path, without mtp_jax: nothing but the standard library may be imported here.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterable, Sequence

EPERM, ENOSYS = 1, 38
_libc = ctypes.CDLL(None, use_errno=True)

# unshare(2)
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
CLONE_THREAD = 0x10000
# mount(2)
_RDONLY, _NOSUID, _NODEV, _BIND, _REC, _PRIVATE, _DETACH = 1, 2, 4, 0x1000, 0x4000, 0x40000, 2
# prctl(2)
_PDEATHSIG, _DUMPABLE, _SECCOMP, _CAPBSET_DROP, _SUBREAPER, _NO_NEW_PRIVS = 1, 4, 22, 24, 36, 38

# The number of a call on (x86_64, aarch64); None where that machine has no such call. Above 423 they are the same.
_CALLS: dict[str, tuple[int | None, int | None]] = {
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "clone": (56, 220), "clone3": (435, 435),
    "prctl": (157, 167), "prlimit64": (302, 261), "pivot_root": (155, 41), "seccomp": (317, 277),
    "mount_setattr": (442, 442), "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446), "capset": (126, 91),
    "socketpair": (53, 199), "fcntl": (72, 25), "ioctl": (16, 29)}
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # the network
    "socket": (41, 198), "connect": (42, 203), "accept": (43, 202), "accept4": (288, 242), "bind": (49, 200),
    "listen": (50, 201), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    # other programs and processes
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "setsid": (112, 157), "setpgid": (109, 154), "kcmp": (312, 272),
    "setpriority": (141, 140), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274), "sched_setaffinity": (203, 122), "ioprio_set": (251, 30),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "inotify_init": (253, None), "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
    # namespaces, mounts, the kernel
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    # memory and objects that outlive the process or count against no limit
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193),
    "semctl": (66, 191), "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188),
    "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "mknod": (133, None), "mknodat": (259, 33)}
# Landlock does not cover these: without mounts of its own a program could change what belongs to its user.
_ATTRIBUTES: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "truncate": (76, 45), "utime": (132, None),
    "utimes": (235, None), "utimensat": (280, 88), "futimesat": (261, None), "setxattr": (188, 5),
    "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16)}
# Options of a call that are refused: signals of a descriptor's events, to any process of the user, and leases on files.
_OPTIONS = {"fcntl": (8, 10, 15, 1024, 1026),  # F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY
            "ioctl": (0x8901, 0x8902)}  # FIOSETOWN, SIOCSPGRP
_UNIX, _STREAM = 1, 1  # of socketpair(2)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


def _machine() -> tuple[int, int]:
    """Returns this machine's column in the tables and what the filter calls it."""
    if platform.machine() not in _ARCHITECTURES:
        raise OSError(ENOSYS, f"no table of system calls for {platform.machine()}")
    return _ARCHITECTURES[platform.machine()]


def _check(result: int, what: str) -> int:
    """Returns what a call returned, or raises as os does."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _syscall(name: str, *arguments: object) -> int:
    """Makes a system call that libc has no function for."""
    number = _CALLS[name][_machine()[0]]
    wide = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return _check(_libc.syscall(ctypes.c_long(number or -1), *wide), name)


def _prctl(option: int, value: int, pointer: object = 0) -> None:
    third = ctypes.c_ulong(pointer) if isinstance(pointer, int) else pointer
    _check(_libc.prctl(option, ctypes.c_ulong(value), third, ctypes.c_ulong(0), ctypes.c_ulong(0)), f"prctl {option}")


def unshare(flags: int) -> None:
    """Puts this process (for NEWPID: its children) into new namespaces."""
    _check(_libc.unshare(flags), "unshare")


def die_with_parent() -> None:
    """Has the kernel kill this process when the one that made it ends."""
    _prctl(_PDEATHSIG, 9)


def adopt_orphans() -> None:
    """Makes this process the parent of its descendants' orphans."""
    _prctl(_SUBREAPER, 1)


def be_unreadable() -> None:
    """Closes this process' memory and descriptors to others of the same user."""
    _prctl(_DUMPABLE, 0)


def drop_privileges() -> None:
    """Gives up every capability, and that a program run later could bring any."""
    _prctl(_NO_NEW_PRIVS, 1)
    for capability in range(64):
        try:
            _prctl(_CAPBSET_DROP, capability)
        except OSError:
            break  # past the last one this kernel knows, or there is nothing to give up
    header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0))
    _syscall("capset", header, ctypes.create_string_buffer(24))


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    _check(_libc.mount(*texts, ctypes.c_ulong(flags), os.fsencode(data)), f"mount {target}")


def private_root(folder: str, *, readable: Sequence[str], hidden: Sequence[str], size: int, owner: int | None) -> None:
    """Makes a small file system in memory this process' root: it holds an empty /box and, read-only, some folders.

    Args:
      folder: an empty folder; nothing is written into it that others see.
      readable: folders and files to show at their own place.
      hidden: folders among them that appear empty.
      size: bytes and, at 4 KiB each, files that may be written.
      owner: the user whom /box belongs to; None for this process' own.
    """
    _mount("none", "/", None, _REC | _PRIVATE)
    _mount("tmpfs", folder, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    for name in ("box", "dev", ".old"):
        os.mkdir(f"{folder}/{name}")
    _mount("tmpfs", f"{folder}/box", "tmpfs", _NOSUID | _NODEV,
           f"size={size},nr_inodes={max(256, size // 4096)},mode=700")
    if owner is not None:
        os.chown(f"{folder}/box", owner, owner)
    for path in (*readable, "/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"):
        place = folder + path
        if os.path.islink(path) and not os.path.exists(place):
            os.symlink(os.readlink(path), place)
            continue
        os.makedirs(os.path.dirname(place), exist_ok=True)
        if os.path.isdir(path):
            os.makedirs(place, exist_ok=True)
        else:
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY))
        _mount(path, place, None, _BIND | _REC)
        if not path.startswith("/dev/"):
            _read_only(place, 0x8000)  # AT_RECURSIVE
    for path in hidden:
        if os.path.isdir(folder + path):
            _mount("tmpfs", folder + path, "tmpfs", _RDONLY | _NOSUID | _NODEV, "size=4096")
    _syscall("pivot_root", os.fsencode(folder), os.fsencode(f"{folder}/.old"))
    os.chdir("/box")
    _check(_libc.umount2(b"/.old", _DETACH), "umount")
    os.rmdir("/.old")
    _read_only("/", 0)


def _read_only(place: str, depth: int) -> None:
    """Makes a mount read-only."""
    attributes = ctypes.create_string_buffer(struct.pack("QQQQ", _RDONLY | _NOSUID, 0, 0, 0))
    _syscall("mount_setattr", -100, os.fsencode(place), depth, attributes, 32)  # AT_FDCWD


def landlock_version() -> int:
    """Returns the kernel's version of Landlock.

    Raises:
      OSError: it has none, or it is switched off.
    """
    return _syscall("landlock_create_ruleset", 0, 0, 1)


def landlock(*, readable: Iterable[str], listed: Iterable[str], writable: str) -> None:
    """Takes every right to files from this process but reading some places and writing one folder; for good.

    Args:
      readable: files, and folders with all in them.
      listed: folders of which the names in them may be read.
      writable: the folder to write.

    Raises:
      OSError: as landlock_version.
    """
    version = landlock_version()
    every = (1 << (13 if version < 2 else 14 if version < 3 else 15)) - 1
    attributes = ctypes.create_string_buffer(struct.pack("Q", every))
    rules = _syscall("landlock_create_ruleset", attributes, 8, 0)
    whole_read, file_read = 1 << 2 | 1 << 3, 1 << 2
    files = file_read | 1 << 1 | (every & 1 << 14)  # what a rule on a file may grant: read, write, truncate
    for path, rights in [(writable, every & ~1), *((path, whole_read) for path in readable),
                         *((path, 1 << 3) for path in listed),
                         *((f"/dev/{name}", files) for name in ("null", "zero", "urandom", "random"))]:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        granted = rights if os.path.isdir(path) else rights & files
        rule = ctypes.create_string_buffer(struct.pack("=Qi", granted, place))
        _syscall("landlock_add_rule", rules, 1, rule, 0)
        os.close(place)
    _prctl(_NO_NEW_PRIVS, 1)
    _syscall("landlock_restrict_self", rules, 0)
    os.close(rules)


def filter_calls(processes: Sequence[int], *, attributes: bool) -> None:
    """Refuses the system calls of the tables, new processes, and signals to others; for good.

    Args:
      processes: those that may be sent signals.
      attributes: also refuse to change the attributes of files.

    Raises:
      OSError: the kernel has no filters.
    """
    column, architecture = _machine()
    load, equal, above, bits, give, mask = 0x20, 0x15, 0x35, 0x45, 0x06, 0x54
    allow, refuse, unknown, kill = 0x7FFF0000, 0x00050000 | EPERM, 0x00050000 | ENOSYS, 0x80000000
    number, argument, second = 0, 16, 24  # offsets in the data of a call; the lower halves of its arguments
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, kill), (load, 0, 0, number),
               (above, 0, 1, 0x40000000), (give, 0, 0, unknown)]  # x32 calls on x86_64

    def when(name: str, steps: list[tuple[int, int, int, int]]) -> None:
        program.extend([(equal, 0, len(steps), _CALLS[name][column] or 0), *steps])

    among = [step for process in processes for step in ((equal, 0, 1, process), (give, 0, 0, allow))]
    for name in ("kill", "tgkill"):
        when(name, [(load, 0, 0, argument), *among, (give, 0, 0, refuse)])
    when("tkill", [(give, 0, 0, refuse)])
    when("prlimit64", [(load, 0, 0, argument), (equal, 0, 1, 0), (give, 0, 0, allow), *among, (give, 0, 0, refuse)])
    when("clone", [(load, 0, 0, argument), (bits, 0, 1, CLONE_THREAD), (give, 0, 0, allow), (give, 0, 0, refuse)])
    when("clone3", [(give, 0, 0, unknown)])  # its flags lie in memory, out of the filter's sight; libc takes clone then
    when("prctl", [(load, 0, 0, argument), *(step for option in (_PDEATHSIG, _DUMPABLE, _SUBREAPER)
                                             for step in ((equal, 0, 1, option), (give, 0, 0, refuse))),
                   (give, 0, 0, allow)])
    for name, options in _OPTIONS.items():
        when(name, [(load, 0, 0, second), *(step for option in options
                                            for step in ((equal, 0, 1, option), (give, 0, 0, refuse))),
                    (give, 0, 0, allow)])
    # A socket of datagrams or of another family sends to any address without connect: streams of this machine alone.
    when("socketpair", [(load, 0, 0, argument), (equal, 1, 0, _UNIX), (give, 0, 0, refuse),
                        (load, 0, 0, second), (mask, 0, 0, 0xF), (equal, 1, 0, _STREAM), (give, 0, 0, refuse),
                        (give, 0, 0, allow)])
    for table in (_DENIED, _ATTRIBUTES) if attributes else (_DENIED,):
        for numbers in table.values():
            if numbers[column] is not None:
                program += [(equal, 0, 1, numbers[column] or 0), (give, 0, 0, refuse)]
    program.append((give, 0, 0, allow))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    filters = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    _prctl(_NO_NEW_PRIVS, 1)
    _prctl(_SECCOMP, 2, filters)
