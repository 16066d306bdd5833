"""Processes that meet before JAX starts: all go on, or all are told why not."""

import json
import socket
import threading
import time

import pytest

from mtp_jax.config import Config, DataConfig, dumps
from mtp_jax.parallel.rendezvous import Member, check_agreement, meet, split_address


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def meet_all(members, count=None, seconds=10.0, address=None, delays=()):
    """Lets each member meet in a thread; returns {process: the error or None} and the seconds it took."""
    address, found, start = address or free_address(), {}, time.monotonic()

    def one(place, member):
        time.sleep(delays[place] if delays else 0)
        try:
            meet(address, count or len(members), member, timeout_seconds=seconds)
            found[place] = None
        except Exception as error:
            found[place] = error

    threads = [threading.Thread(target=one, args=item) for item in enumerate(members)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return found, time.monotonic() - start


def member(number, **facts):
    return Member(number, f"host{number}", facts)


def test_all_go_on_and_the_port_is_free_again():
    address = free_address()
    for _ in range(2):  # the second start takes the port of the first
        found, seconds = meet_all([member(number, config=dumps(Config())) for number in range(5)], address=address,
                                  delays=[0.3, 0, 0.1, 0.5, 0])
        assert found == dict.fromkeys(range(5)) and seconds < 5


def test_those_who_do_not_come_are_named():
    found, seconds = meet_all([member(0), member(2)], count=4, seconds=1.0)
    assert {type(error) for error in found.values()} == {TimeoutError} and seconds < 3
    for error in found.values():
        assert "2 of 4 processes did not come" in str(error) and "process 1, 3." in str(error)
        assert "There were process 0 (host0), process 2 (host2)" in str(error)


def test_a_coordinator_that_is_not_there_is_named_in_time():
    address = free_address()
    found, seconds = meet_all([member(1)], count=2, seconds=1.0, address=address)
    assert isinstance(found[0], TimeoutError) and 0.5 < seconds < 3
    assert str(found[0]).startswith(
        f"process 1 (host1) of 2 did not find process 0 at {address} within 1 s (Connection refused)")
    found, _ = meet_all([member(1)], count=2, seconds=1.0, address="no-such-host.invalid:1234")
    assert isinstance(found[0], TimeoutError) and "no-such-host.invalid:1234" in str(found[0])


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"\x00\xff"])
def test_another_service_at_the_address_is_told(answer):
    with socket.create_server(("127.0.0.1", 0)) as server:
        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(100)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        found, _ = meet_all([member(1)], count=2, seconds=1.0, address=f"127.0.0.1:{server.getsockname()[1]}")
        server.shutdown(socket.SHUT_RDWR)
    assert isinstance(found[0], TimeoutError) and "no run answers there" in str(found[0])


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        port = server.getsockname()[1]
        found, _ = meet_all([member(0)], count=2, seconds=1.0, address=f"127.0.0.1:{port}")
    assert isinstance(found[0], OSError) and f"Process 0 cannot listen on port {port}" in str(found[0])


@pytest.mark.parametrize("others, parts", [
    ([member(1), member(1)], ["have the same number"]),
    ([member(3), member(1)], ["process 3 (host3) has a number that is not below the number of processes, 3"]),
])
def test_numbers_that_do_not_fit_are_told_to_all(others, parts):
    found, seconds = meet_all([member(0), *others], delays=[0, 0.1, 0.4], seconds=3.0)
    assert seconds < 8
    for place in (0, 1):
        assert isinstance(found[place], ValueError) and all(part in str(found[place]) for part in parts), found
    assert found[2] is not None


def test_another_count_is_told():
    address, found = free_address(), {}

    def other():
        with pytest.raises(ValueError) as caught:
            meet(address, 4, member(1), timeout_seconds=5)
        found[1] = str(caught.value)

    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(ValueError, match=r"process 1 \(host1\) was started as one of 4 processes, process 0 .* of 2"):
        meet(address, 2, member(0), timeout_seconds=5)
    thread.join()
    assert "as one of 4" in found[1]


def test_one_that_left_may_come_again():
    address = free_address()
    host, port = split_address(address)
    errors = []

    def first():
        try:
            meet(address, 3, member(0), timeout_seconds=10)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    while True:
        try:
            early = socket.create_connection((host, port))
            break
        except OSError:
            time.sleep(0.01)
    said = {"process": 1, "host": "host1", "facts": {}, "processes": 3}
    early.sendall(json.dumps(said).encode() + b"\n")
    assert early.recv(100) == b"mtp_jax\n"
    early.close()  # its host went down; it is started again
    found, _ = meet_all([member(1), member(2)], count=3, address=address)
    thread.join()
    assert found == {0: None, 1: None} and not errors


def test_differing_facts_are_told_to_all_with_their_values():
    changed = dumps(Config(data=DataConfig(batch_size=48)))
    members = [member(number, config=dumps(Config()), jax="0.10.2") for number in range(3)]
    members.append(member(3, config=changed, jax="0.11.0"))
    found, seconds = meet_all(members)
    assert seconds < 5
    for error in found.values():
        assert isinstance(error, ValueError)
        assert (f"config.data.batch_size: {Config().data.batch_size} on process 0 (host0), process 1 (host1), "
                "process 2 (host2); 48 on process 3 (host3)") in str(error)
        assert "jax: 0.10.2 on process 0 (host0)" in str(error) and "0.11.0 on process 3 (host3)" in str(error)
        assert "config.model" not in str(error) and "config.data.seq_len" not in str(error)


def test_a_fact_that_one_lacks_differs_and_many_are_counted():
    with pytest.raises(ValueError, match=r"code: a on process 1 \(host1\), .* and 12 more; nothing on process 0"):
        check_agreement([member(0), *(member(number, code="a") for number in range(1, 21))])
    check_agreement([member(0, code="a"), member(1, code="a")])


@pytest.mark.parametrize("address", ["localhost", "localhost:", ":123", "localhost:port", "localhost:70000", ""])
def test_addresses_of_another_form_are_refused(address):
    with pytest.raises(ValueError, match="must be HOST:PORT"):
        split_address(address)
    assert split_address("[::1]:123") == ("::1", 123)
