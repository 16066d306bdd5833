"""The processes of a run meet before JAX starts, so that what keeps them from starting is told in words.

JAX's own start aborts in C++ when its coordinator is not there or a process stays away, and does not say which. So
process 0 first listens on the coordinator's port itself: the others come, say who they are and what they run, and all
are told to go on, or why not. Then JAX's coordinator takes the port.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import time
from collections.abc import Iterator, Mapping, Sequence

from mtp_jax.config import differences

MARGIN_SECONDS = 30.0  # process 0 answers at its own time limit, which may end so much after that of one who came
_PATIENCE = 5.0  # seconds for one who has come to say who it is
_GREETING = b"mtp_jax\n"  # process 0's, at once
_LONGEST = 2**24  # bytes of what one process says
_NAMED = 8  # processes that an error names


@dataclasses.dataclass(frozen=True)
class Member:
    """One process of a run.

    Attributes:
      process: its number, from 0.
      host: name of its machine.
      facts: what it runs, as texts: every process must have the same.
    """

    process: int
    host: str
    facts: Mapping[str, str]

    def __str__(self) -> str:
        return f"process {self.process} ({self.host})"


def meet(address: str, num_processes: int, member: Member, *, timeout_seconds: float) -> None:
    """Waits until all processes of a run are there and run the same.

    Args:
      address: HOST:PORT of process 0; it listens on the port and leaves it free again.
      num_processes: how many there are.
      member: this process.
      timeout_seconds: how long to wait.

    Raises:
      ValueError: the address or the numbers do not fit, or the processes do not run the same; names them.
      TimeoutError: process 0 was not there in time, or others were not; names them.
      OSError: process 0 cannot listen on the port.
    """
    host, port = split_address(address)
    if member.process == 0:
        _receive(port, address, num_processes, member, timeout_seconds)
    else:
        _introduce(host, port, address, num_processes, member, timeout_seconds)


def split_address(address: str) -> tuple[str, int]:
    """Returns host and port of HOST:PORT; an IPv6 address stands in brackets.

    Raises:
      ValueError: it is of another form.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"The coordinator's address {address!r} must be HOST:PORT of process 0, such as "
                         "10.0.0.2:8476.")
    return host.strip("[]"), int(port)


def wait_for_port(host: str, port: int, deadline: float) -> socket.socket:
    """Returns a connection to a port, tried until the deadline (of time.monotonic).

    Raises:
      OSError: the last reason why there is none.
    """
    while True:
        left = deadline - time.monotonic()
        try:
            return socket.create_connection((host, port), timeout=max(0.1, min(left, 10.0)))
        except OSError:
            if left < 0.2:
                raise
            time.sleep(0.1)


def disagreements(members: Sequence[Member]) -> str:
    """Returns what the processes do not have in common, a line for each fact, or nothing.

    A fact named `config` is the text of a config.json, of which the fields are compared.
    """
    lines, tables = [], [_fields(member.facts) for member in members]
    for name in sorted({name for table in tables for name in table}):
        groups: dict[str, list[Member]] = {}
        for member, table in zip(members, tables, strict=True):
            groups.setdefault(table.get(name, "nothing"), []).append(member)
        if len(groups) > 1:
            parts = [f"{value} on {_some([str(member) for member in group])}" for value, group in
                     sorted(groups.items(), key=lambda item: -len(item[1]))]
            lines.append(f"\n  {name}: " + "; ".join(parts[:4] + ["and others"] * (len(parts) > 4)))
    return "".join(lines)


def check_agreement(members: Sequence[Member]) -> None:
    """Raises ValueError, naming the processes and what differs, unless all have the same facts."""
    found = disagreements(members)
    if found:
        raise ValueError(f"The {len(members)} processes of this run do not run the same:{found}\nStart all of them "
                         "with the same command, the same code and the same data.")


def _fields(facts: Mapping[str, str]) -> dict[str, str]:
    """Returns the facts with the fields of a config in its place."""
    table = {name: value for name, value in facts.items() if name != "config"}
    if "config" in facts:
        fields = differences({}, json.loads(facts["config"]))
        table.update({f"config.{name}": repr(value) for name, (_, value) in fields.items()})
    return table


def _some(names: Sequence[str]) -> str:
    """Returns a list in words, of at most some of its entries."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _introduce(host: str, port: int, address: str, num_processes: int, member: Member, seconds: float) -> None:
    """Tells process 0 who this is and waits for its answer."""
    deadline = time.monotonic() + seconds
    said = json.dumps({"processes": num_processes, **dataclasses.asdict(member)}) + "\n"
    while True:
        try:
            with wait_for_port(host, port, deadline) as connection, connection.makefile("rb") as lines:
                connection.sendall(said.encode())
                connection.settimeout(max(0.1, deadline - time.monotonic()))
                if lines.readline(_LONGEST) != _GREETING:
                    raise ValueError("another service")
                connection.settimeout(seconds + MARGIN_SECONDS)
                answer = json.loads(lines.readline(_LONGEST))
            break
        except (OSError, ValueError) as error:  # nobody is there yet, or not process 0 of a run
            if time.monotonic() + 0.3 < deadline:
                time.sleep(0.2)
                continue
            reason = (error.strerror or str(error)) if isinstance(error, OSError) else "no run answers there"
            raise TimeoutError(
                f"{member} of {num_processes} did not find process 0 at {address} within {seconds:g} s ({reason}). Is "
                "it running, and can this machine reach the address? parallel.start_timeout_seconds sets the time."
            ) from error
    if answer["problem"]:
        raise (TimeoutError if answer["late"] else ValueError)(answer["problem"])


def _receive(port: int, address: str, num_processes: int, member: Member, seconds: float) -> None:
    """Waits for the others, as process 0, and answers them."""
    deadline = time.monotonic() + seconds
    with _listening(port, num_processes) as server, contextlib.ExitStack() as stack:
        members: dict[int, Member] = {0: member}
        connections: dict[int, socket.socket] = {}
        error: Exception | None = None
        try:
            while len(members) < num_processes or _forget_those_who_left(members, connections):
                server.settimeout(max(0.01, deadline - time.monotonic()))
                connection = stack.enter_context(server.accept()[0])
                connection.settimeout(_PATIENCE)
                try:
                    with connection.makefile("rb") as lines:
                        said = json.loads(lines.readline(_LONGEST))
                    other = Member(int(said["process"]), str(said["host"]), dict(said["facts"]))
                    connection.sendall(_GREETING)
                except (OSError, ValueError, KeyError, TypeError):
                    continue  # another program, or one that left at once
                _forget_those_who_left(members, connections)  # it may be one of them that comes again
                refused = _refusal(other, said["processes"], num_processes, members)
                connections[-1 if refused else other.process] = connection
                if refused:
                    raise ValueError(refused)
                members[other.process] = other
            check_agreement([members[number] for number in sorted(members)])
        except TimeoutError:
            missing = [str(number) for number in range(num_processes) if number not in members]
            error = TimeoutError(
                f"{len(missing)} of {num_processes} processes did not come to {address} within {seconds:g} s: process "
                f"{_some(missing)}. There were {_some(list(map(str, members.values())))}. Are the others running, and "
                "can they reach the address? parallel.start_timeout_seconds sets the time.")
        except ValueError as found:
            error = found
        answer = {"problem": "" if error is None else str(error), "late": isinstance(error, TimeoutError)}
        for connection in connections.values():
            with contextlib.suppress(OSError):  # one that has left
                connection.sendall((json.dumps(answer) + "\n").encode())
        for connection in connections.values():  # they hang up first: then the port is free at once
            with contextlib.suppress(OSError):
                connection.recv(1)
    if error is not None:
        raise error


def _refusal(other: Member, theirs: int, ours: int, members: Mapping[int, Member]) -> str:
    """Returns why a process that came cannot be one of the run, or nothing."""
    if theirs != ours:
        return (f"{other} was started as one of {theirs} processes, {members[0]} as one of {ours}: give all the same "
                "number of processes.")
    if not 0 <= other.process < ours:
        return f"{other} has a number that is not below the number of processes, {ours}."
    if other.process in members:
        return (f"{members[other.process]} and {other} have the same number: give each its own, from 0 to {ours - 1}.")
    return ""


def _forget_those_who_left(members: dict[int, Member], connections: dict[int, socket.socket]) -> bool:
    """Takes processes that have hung up, as when their host went down, out of both; returns whether there were any."""
    left = [number for number, connection in connections.items() if _has_left(connection)]
    for number in left:
        del members[number], connections[number]
    return bool(left)


def _has_left(connection: socket.socket) -> bool:
    """Tells whether the other end, which has nothing more to say, has hung up."""
    connection.setblocking(False)
    try:
        return not connection.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(_PATIENCE)


@contextlib.contextmanager
def _listening(port: int, backlog: int) -> Iterator[socket.socket]:
    """Listens on a port of all of this machine's addresses."""
    both = socket.has_dualstack_ipv6()
    try:
        server = socket.create_server(("", port), family=socket.AF_INET6 if both else socket.AF_INET,
                                      backlog=backlog, dualstack_ipv6=both)
    except OSError as error:
        raise OSError(f"Process 0 cannot listen on port {port}: {error.strerror or error}. Free the port, or choose "
                      "another in --coordinator_address or JAX_COORDINATOR_PORT.") from error
    with server:
        yield server
