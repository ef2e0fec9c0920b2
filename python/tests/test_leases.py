"""Do leases and holds keep their promises, and do the options mean what they say?"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import portpicker
from support import (
    DEADLINE,
    FakeServer,
    Portserver,
    bind_with_every_option,
    environment,
    fresh as fresh,
    occupy,
    program,
    python,
    start_python,
    unused_ports,
)

pytestmark = pytest.mark.usefixtures("fresh")


def another_process_can_lease(port: int) -> bool:
    """Tell whether another Python process can lease the port now."""
    code = "import sys, portpicker; print(portpicker.lease(ports=int(sys.argv[1])).port)"
    return python(code, str(port)).stdout == f"{port}\n"


def a_shell_script_can_lease(port: int) -> bool:
    """Tell whether the command `portpicker` can lease the port now."""
    command = [program("portpicker"), "pick", "--ports", str(port)]
    picked = subprocess.run(
        command, capture_output=True, text=True, env=environment(), timeout=DEADLINE, check=False
    )
    return picked.stdout == f"{port}\n"


def listens(port: int, address: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((address, port), timeout=DEADLINE).close()
    except ConnectionRefusedError:
        return False
    return True


class TestLease:
    def test_it_lasts_for_a_block(self) -> None:
        with portpicker.lease() as lease:
            assert 10000 < lease.port < 65536
            assert not lease.released
            assert portpicker.is_port_free(lease) == lease.port
            bind_with_every_option(lease.port)
        assert lease.released
        assert portpicker.lease(ports=lease.port).port == lease.port

    def test_no_process_of_any_language_is_given_it_meanwhile(self) -> None:
        with portpicker.lease() as lease:
            assert not another_process_can_lease(lease.port)
            assert not a_shell_script_can_lease(lease.port)
        assert another_process_can_lease(lease.port)
        assert a_shell_script_can_lease(lease.port)

    def test_it_ends_with_an_exception(self) -> None:
        with pytest.raises(KeyError), portpicker.lease() as lease:
            raise KeyError
        assert lease.released

    def test_it_ends_when_nobody_has_it_any_more(self) -> None:
        lease = portpicker.lease()
        port = lease.port
        del lease
        gc.collect()
        assert portpicker.lease(ports=port).port == port

    def test_it_ends_when_its_process_is_killed(self) -> None:
        process = start_python(
            "import portpicker\nlease = portpicker.lease()\nprint(lease, flush=True)\ninput()"
        )
        with process:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            with pytest.raises(portpicker.NoFreePortFoundError):
                portpicker.lease(ports=port)
            process.kill()
        assert portpicker.lease(ports=port).port == port

    def test_it_is_a_number_where_one_is_needed(self) -> None:
        with portpicker.lease() as lease:
            assert int(lease) == lease.port
            assert str(lease) == f"{lease}" == str(lease.port)
            assert repr(lease) == f"<portpicker.Lease of port {lease.port}>"
            with socket.socket() as sock:
                sock.bind(("127.0.0.1", lease))
            assert portpicker.is_port_free(lease)
        assert repr(lease) == f"<portpicker.Lease of port {lease.port}, released>"

    def test_it_is_equal_to_nothing_but_itself(self) -> None:
        first, second = portpicker.leases(2)
        assert first == first and first != second
        assert first != first.port  # type: ignore[comparison-overlap]
        assert len({first, second, first}) == 2

    def test_it_may_be_released_twice_and_from_any_thread(self) -> None:
        lease = portpicker.lease()
        threads = [threading.Thread(target=lease.release) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lease.release()
        assert lease.released

    def test_a_picked_port_lasts_until_it_is_returned(self) -> None:
        port = portpicker.pick_unused_port()
        assert not another_process_can_lease(port)
        portpicker.return_port(port)
        assert another_process_can_lease(port)


class Array(list[int]):
    """What an array of numpy's is here: it has `__index__`, for those with a single number."""

    def __index__(self) -> int:
        raise TypeError("only integer scalar arrays can be converted to a scalar index")


class TestOptions:
    @pytest.mark.parametrize(
        "write",
        [
            lambda ports: ",".join(map(str, ports)),
            list,
            tuple,
            set,
            iter,
            lambda ports: (port for port in ports),
            Array,
        ],
        ids=["text", "list", "tuple", "set", "iterator", "generator", "array"],
    )
    def test_ports_may_be_written_in_many_ways(self, write: Callable[[list[int]], Any]) -> None:
        ports = unused_ports(5)
        assert portpicker.lease(ports=write(ports)).port in ports

    def test_ports_may_be_a_range_or_one_port_or_a_lease(self) -> None:
        (first,) = unused_ports(1)
        assert portpicker.lease(ports=range(first, first + 1)).port == first
        assert portpicker.lease(ports=first).port == first
        with portpicker.lease() as lease:
            pass
        assert portpicker.lease(ports=lease).port == lease.port
        assert portpicker.lease(ports=[lease]).port == lease.port

    def test_excluded_ports_are_not_picked(self) -> None:
        ports = unused_ports(5)
        for exclude in (ports[:4], ",".join(map(str, ports[:4])), set(ports[:4])):
            assert portpicker.lease(ports=ports, exclude=exclude).port == ports[4]
        assert portpicker.lease(ports=ports, exclude=[]).port in ports

    def test_preferred_ports_are_tried_in_their_order(self) -> None:
        first, second, third = unused_ports(3)
        with portpicker.lease(prefer=first) as lease:
            assert lease.port == first
            with portpicker.lease(prefer=[first, second, third]) as other:
                assert other.port == second

    def test_one_transport_may_be_enough(self) -> None:
        (port,) = unused_ports(1)
        with occupy(port, socket.SOCK_DGRAM):
            with pytest.raises(portpicker.NoFreePortFoundError):
                portpicker.lease(ports=port)
            with pytest.raises(portpicker.NoFreePortFoundError):
                portpicker.lease(ports=port, transport="udp")
            assert portpicker.lease(ports=port, transport="tcp").port == port

    @pytest.mark.parametrize(
        "address",
        ["127.0.0.2", ipaddress.ip_address("127.0.0.2"), ipaddress.ip_address("::1"), "::1"],
        ids=repr,
    )
    def test_one_local_address_may_be_enough(self, address: Any) -> None:
        (port,) = unused_ports(1)
        with occupy(port):
            with pytest.raises(portpicker.NoFreePortFoundError):
                portpicker.lease(ports=port, address="127.0.0.1")
            assert portpicker.lease(ports=port, address=address).port == port

    def test_a_wait_ends_with_the_port(self) -> None:
        lease = portpicker.lease()
        tried = threading.Event()

        def release() -> None:
            tried.wait()
            lease.release()

        thread = threading.Thread(target=release)
        thread.start()
        with pytest.raises(portpicker.NoFreePortFoundError):
            portpicker.lease(ports=lease.port, wait=0)
        tried.set()
        assert portpicker.lease(ports=lease.port, wait=DEADLINE).port == lease.port
        thread.join()

    def test_other_threads_run_during_a_wait(self) -> None:
        with portpicker.lease() as lease:
            counted = 0
            waits = True

            def count() -> None:
                nonlocal counted
                while waits:
                    counted += 1

            thread = threading.Thread(target=count)
            thread.start()
            with pytest.raises(portpicker.NoFreePortFoundError):
                portpicker.lease(ports=lease.port, wait=0.2)
            waits = False
            thread.join()
            assert counted > 1000

    def test_a_wait_is_over_in_time(self) -> None:
        with portpicker.lease() as lease:
            begin = time.monotonic()
            with pytest.raises(portpicker.NoFreePortFoundError):
                portpicker.lease(ports=lease.port, wait=0.1)
            assert 0.1 <= time.monotonic() - begin < DEADLINE

    def test_none_leaves_every_option_at_its_default(self) -> None:
        with portpicker.lease(
            pid=None,
            portserver_address=None,
            ports=None,
            exclude=None,
            prefer=None,
            transport=None,
            address=None,
            wait=None,
            server_timeout=None,
            tag=None,
        ) as lease:
            assert lease.port > 10000

    def test_the_candidates_are_those_of_the_environment(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        port, other = unused_ports(2)
        monkeypatch.setenv("PORTPICKER_PORTS", str(port))
        assert portpicker.lease().port == port
        monkeypatch.setenv("PORTPICKER_PORTS", str(other))
        assert portpicker.lease().port == other, "it is read each time"

    def test_pick_unused_port_takes_them_too(self) -> None:
        (port,) = unused_ports(1)
        assert portpicker.pick_unused_port(ports=port) == port
        assert port in portpicker._random_ports
        portpicker.return_port(port)
        assert portpicker.pick_unused_ports(1, prefer=port) == [port]


class TestSeveral:
    def test_they_differ(self) -> None:
        leases = portpicker.leases(50)
        assert len({lease.port for lease in leases}) == 50
        assert portpicker.leases(0) == []

    def test_neighbours_are_in_ascending_order(self) -> None:
        ports = [lease.port for lease in portpicker.leases(5, contiguous=True)]
        assert ports == list(range(ports[0], ports[0] + 5))
        picked = portpicker.pick_unused_ports(3, contiguous=True)
        assert picked == list(range(picked[0], picked[0] + 3))

    def test_all_or_none_are_leased(self) -> None:
        ports = unused_ports(3)
        with portpicker.lease(ports=ports[0]):
            with pytest.raises(portpicker.NoFreePortFoundError):
                portpicker.leases(3, ports=ports)
            assert {lease.port for lease in portpicker.leases(2, ports=ports)} == set(ports[1:])

    def test_picked_ones_are_returned_one_by_one(self) -> None:
        ports = portpicker.pick_unused_ports(3)
        assert portpicker._random_ports == set(ports)
        portpicker.return_port(ports[1])
        assert another_process_can_lease(ports[1])
        assert not another_process_can_lease(ports[0])


class TestHold:
    def test_nobody_can_bind_its_port(self) -> None:
        with portpicker.hold() as hold:
            assert not portpicker.is_port_free(hold.port)
            for family, address in (
                (socket.AF_INET, "127.0.0.1"),
                (socket.AF_INET6, "::1"),
                (socket.AF_INET, "0.0.0.0"),
            ):
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    with socket.socket(family, kind) as sock:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                        with pytest.raises(OSError, match="Address already in use"):
                            sock.bind((address, hold.port))
            assert not listens(hold.port)
            assert not another_process_can_lease(hold.port)
        bind_with_every_option(hold.port)
        assert another_process_can_lease(hold.port)

    def test_its_sockets_are_pythons_own(self) -> None:
        with portpicker.hold() as hold:
            with hold.listen() as tcp, hold.take_udp() as udp:
                assert type(tcp) is type(udp) is socket.socket
                assert tcp.family == udp.family == socket.AF_INET6
                assert (tcp.type, udp.type) == (socket.SOCK_STREAM, socket.SOCK_DGRAM)
                assert tcp.getsockname()[1] == udp.getsockname()[1] == hold.port
                assert not tcp.get_inheritable()
                assert listens(hold.port) and listens(hold.port, "::1")
                connection, _ = tcp.accept()
                connection.close()
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                    client.sendto(b"early", ("127.0.0.1", hold.port))
                assert udp.recv(10) == b"early"

    def test_a_socket_outlives_the_hold(self) -> None:
        with portpicker.hold() as hold:
            tcp = hold.listen(backlog=1)
        with tcp:
            assert listens(hold.port)

    def test_a_taken_tcp_socket_listens_when_it_is_told_to(self) -> None:
        with portpicker.hold() as hold, hold.take_tcp() as tcp:
            assert not listens(hold.port)
            tcp.listen()
            assert listens(hold.port)

    def test_asyncio_serves_on_its_sockets(self) -> None:
        class Echo(asyncio.DatagramProtocol):
            def connection_made(self, transport: Any) -> None:
                self.transport = transport

            def datagram_received(self, data: bytes, address: Any) -> None:
                self.transport.sendto(data, address)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            writer.close()

        async def main(hold: portpicker.Hold) -> None:
            loop = asyncio.get_running_loop()
            server = await asyncio.start_server(answer, sock=hold.listen())
            datagrams, _ = await loop.create_datagram_endpoint(Echo, sock=hold.take_udp())
            reader, writer = await asyncio.open_connection("127.0.0.1", hold.port)
            writer.write(b"tcp\n")
            assert await reader.readline() == b"tcp\n"
            writer.close()

            def ask() -> bytes:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                    client.settimeout(DEADLINE)
                    client.sendto(b"udp", ("127.0.0.1", hold.port))
                    return client.recv(10)

            assert await loop.run_in_executor(None, ask) == b"udp"
            datagrams.close()
            server.close()
            await server.wait_closed()

        with portpicker.hold() as hold:
            asyncio.run(asyncio.wait_for(main(hold), DEADLINE))

    def test_a_server_comes_in_by_the_door(self) -> None:
        with portpicker.hold() as hold:
            hold.open_door()
            with socket.create_server(("127.0.0.1", hold.port)):  # sets SO_REUSEADDR
                hold.shut_door()
                assert listens(hold.port)
                with pytest.raises(OSError, match="in use"):
                    socket.create_server(("127.0.0.2", hold.port))

    def test_as_a_lease_it_is_bound_no_longer(self) -> None:
        hold = portpicker.hold()
        lease = hold.into_lease()
        assert hold.released and not lease.released
        bind_with_every_option(lease.port)
        assert not another_process_can_lease(lease.port)
        lease.release()

    def test_for_one_transport_it_has_one_socket(self) -> None:
        with portpicker.hold(transport="tcp", address="127.0.0.1") as hold:
            bind = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with bind:
                bind.bind(("127.0.0.1", hold.port))
            with hold.listen() as tcp:
                assert tcp.getsockname() == ("127.0.0.1", hold.port)
            with pytest.raises(ValueError, match="no UDP socket"):
                hold.take_udp()

    def test_several_are_held_all_or_none(self) -> None:
        holds = portpicker.holds(4, contiguous=True)
        ports = [hold.port for hold in holds]
        assert ports == list(range(ports[0], ports[0] + 4))
        holds[3].release()
        with occupy(ports[3]), pytest.raises(portpicker.NoFreePortFoundError):
            portpicker.holds(2, ports=ports)

    def test_its_sockets_are_gone_once_they_are_taken(self) -> None:
        with portpicker.hold() as hold:
            hold.take_tcp().close()
            for take in (hold.take_tcp, hold.listen):
                with pytest.raises(ValueError, match=r"has no TCP socket \(any more\)"):
                    take()
            hold.take_udp().close()
            with pytest.raises(ValueError, match=r"has no UDP socket \(any more\)"):
                hold.take_udp()

    def test_a_released_one_can_do_nothing(self) -> None:
        hold = portpicker.hold()
        hold.release()
        hold.release()
        for call in (
            hold.listen,
            hold.take_tcp,
            hold.take_udp,
            hold.open_door,
            hold.shut_door,
            hold.into_lease,
            hold.__enter__,
        ):
            with pytest.raises(ValueError, match=f"the hold of port {hold.port} has been released"):
                call()
        assert repr(hold) == f"<portpicker.Hold of port {hold.port}, released>"


class TestServer:
    """With this project's port server, and with one that speaks the original protocol only."""

    def test_it_leases_several_with_options(self) -> None:
        with Portserver() as server:
            for address in (server.address, Path(server.address)):
                leases = portpicker.leases(
                    3,
                    portserver_address=address,
                    exclude=server.ports[0],
                    transport="tcp",
                    wait=DEADLINE,
                )
                ports = {lease.port for lease in leases}
                assert len(ports) == 3 and ports < set(server.ports[1:])
                assert {lease.server for lease in leases} == {server.address}
                assert all(portpicker.is_port_free(port) for port in ports)

    def test_its_leases_end_when_they_are_released(self) -> None:
        with Portserver(1) as server:
            for _ in range(3):
                with portpicker.lease(portserver_address=server.address) as lease:
                    assert lease.port == server.ports[0]
                    assert not another_process_can_lease(lease.port)
            assert another_process_can_lease(lease.port)

    def test_it_shows_the_tag_to_people(self) -> None:
        with Portserver() as server:
            with portpicker.lease(portserver_address=server.address, tag="database") as lease:
                status = subprocess.run(
                    [program("portpicker"), "status", "--server", server.address, "--json"],
                    capture_output=True,
                    timeout=DEADLINE,
                    check=True,
                )
                (shown,) = json.loads(status.stdout)["leases"]
                assert (shown["port"], shown["tag"]) == (lease.port, "database")

    def test_it_leases_to_another_process(self) -> None:
        with Portserver(1) as server:
            owner = start_python("input()")
            with owner:
                with portpicker.lease(portserver_address=server.address, pid=owner.pid):
                    pass
                with pytest.raises(portpicker.NoFreePortFoundError):
                    portpicker.lease(portserver_address=server.address)
                owner.communicate("\n")
            lease = portpicker.lease(portserver_address=server.address, wait=DEADLINE)
            assert lease.port == server.ports[0]

    def test_picks_with_options_are_returned_to_this_process(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Portserver() as server:
            monkeypatch.setenv("PORTSERVER_ADDRESS", server.address)
            ports = portpicker.pick_unused_ports(3)
            assert set(ports) < set(server.ports) and portpicker._owned_ports == set(ports)
            portpicker.return_port(ports[0])
            assert portpicker.pick_unused_port() == ports[0]

    def test_the_environments_server_is_only_one_way(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("PORTSERVER_ADDRESS", "@portpicker-test-nobody")
        assert portpicker.lease().server is None
        assert portpicker.lease(portserver_address="").server is None
        assert capfd.readouterr() == ("", "")

    def test_false_means_no_server_at_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with FakeServer([b"4321\n"]) as server:
            monkeypatch.setenv("PORTSERVER_ADDRESS", server.address)
            assert portpicker.lease(portserver_address=False).server is None
            portpicker.pick_unused_port(portserver_address=False)
            portpicker.find_unused_port()
            assert server.requests == []

    def test_a_released_port_that_it_cannot_take_back_is_picked_next(self) -> None:
        (port,) = unused_ports(1)
        with FakeServer([b"%d\n" % port]) as server:
            with portpicker.lease(portserver_address=server.address) as lease:
                assert (lease.port, lease.server) == (port, server.address)
            assert portpicker.pick_unused_port() == port
            assert port in portpicker._owned_ports
            portpicker.return_port(port)
            assert portpicker.pick_unused_port() == port


class TestCPythonsHelpers:
    @pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
    @pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
    def test_a_found_port_can_be_bound(self, family: int, kind: int) -> None:
        port = portpicker.find_unused_port(family, kind)
        with socket.socket(family, kind) as sock:
            sock.bind(("", port))
        assert not another_process_can_lease(port)
        portpicker.return_port(port)
        assert another_process_can_lease(port)

    def test_the_default_is_tcp_on_ipv4(self, monkeypatch: pytest.MonkeyPatch) -> None:
        (port,) = unused_ports(1)
        monkeypatch.setenv("PORTPICKER_PORTS", str(port))
        with occupy(port, socket.SOCK_DGRAM):
            assert portpicker.find_unused_port() == port

    @pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
    @pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
    def test_a_socket_is_bound(self, family: int, kind: int) -> None:
        with socket.socket(family, kind) as sock:
            host = "localhost" if family == socket.AF_INET else "::1"
            port = portpicker.bind_port(sock, host)
            assert sock.getsockname()[:2] == ("127.0.0.1" if family == socket.AF_INET else host, port)

    def test_a_socket_whose_port_others_may_share_is_refused(self) -> None:
        for option in ("SO_REUSEADDR", "SO_REUSEPORT"):
            for family in (socket.AF_INET, socket.AF_INET6):
                with socket.socket(family) as sock:
                    sock.setsockopt(socket.SOL_SOCKET, getattr(socket, option), 1)
                    with pytest.raises(ValueError, match=f"the TCP socket has {option} set"):
                        portpicker.bind_port(sock)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            assert portpicker.bind_port(sock) > 0
