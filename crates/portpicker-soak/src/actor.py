"""An actor of the soak that picks by the Python package: see actor.rs."""

import os
import random
import select
import socket
import sys
import time

import portpicker

ID, SEED = os.environ["SOAK"], int(sys.argv[1])
random.seed(SEED)


def say(text):
    os.write(1, f"{ID} {text}\n".encode())


def now():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


def keep():
    """Wait for a while; return whether the soak is over."""
    return bool(select.select([0], [], [], random.random() * 1.5)[0])


def bind(port):
    sockets = []
    try:
        for family in (socket.AF_INET, socket.AF_INET6):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                sock = socket.socket(family, kind)
                sockets.append(sock)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(("", port))
                if kind == socket.SOCK_STREAM:
                    sock.listen()
        say(f"bound {port}")
    except OSError as error:
        say(f"unbindable {port} {error}")
    return sockets


def use(ports):
    sockets = [sock for port in ports for sock in bind(port)]
    is_over = keep()
    for sock in sockets:
        sock.close()
    return is_over


def leased(ports):
    server = os.environ.get("SOAK_EITHER")
    source = f"either:{server}" if server else "lock"
    say(f"leased {source} {now()} {' '.join(map(str, ports))}")


def with_function():
    port = portpicker.pick_unused_port()
    leased([port])
    is_over = use([port])
    if random.random() < 0.7:
        say(f"returned {port}")
        portpicker.return_port(port)
    return is_over


def with_leases():
    leases = portpicker.leases(3)
    ports = [lease.port for lease in leases]
    leased(ports)
    is_over = use(ports)
    say(f"returned {' '.join(map(str, ports))}")
    for lease in leases:
        lease.release()
    return is_over


def with_hold():
    with portpicker.hold() as hold:
        leased([hold.port])
        listener = hold.listen()
        is_over = keep()
        listener.close()
        say(f"returned {hold.port}")
    return is_over


for _ in range(random.randint(1, 4)):
    say(f"picking {now()}")
    try:
        if random.choice([with_function, with_leases, with_hold])():
            break
    except portpicker.NoFreePortFoundError:
        say("none exhausted")
