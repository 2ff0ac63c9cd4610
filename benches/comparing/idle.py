"""Memory that connections take which ask for nothing."""

import http.client
import socket
import struct
import sys
import time
from contextlib import ExitStack

from comparing.peers import PROXIES
from comparing.running import HOST, Unusable

IDLE_ROUNDS = 3


def idle(name, peers, options, folder, core, upstream, order):
    """KiB that each of many idle connections takes, at once and after the pause, by proxy."""
    grown = {peer: [] for peer in peers}
    about, ask_once = IDLE[name]
    for number in range(IDLE_ROUNDS):
        print(f"\ridle connections, {about}: round {number + 1} of {IDLE_ROUNDS} ", end="", file=sys.stderr, flush=True)
        place = folder / f"{name}-{number}"
        place.mkdir()
        place.chmod(0o755)
        for peer in order.sample(peers, len(peers)):
            with PROXIES[peer](place, core, upstream) as proxy:
                grown[peer].append(grown_by_idle(proxy, ask_once, options))
    print(file=sys.stderr)
    return grown


def grown_by_idle(proxy, ask_once, options):
    for _ in range(50):  # what grows with the first requests
        with ask_once(proxy):
            pass
    before = proxy.memory_bytes()
    with ExitStack() as ending:
        for _ in range(options.connections):
            ending.enter_context(ask_once(proxy))
        each = lambda: (proxy.memory_bytes() - before) / options.connections / 1024
        at_once = each()
        time.sleep(options.pause)
        return at_once, each()


def ask_once_h1(proxy):
    """A connection over which one request has been answered."""
    client = socket.create_connection((HOST, proxy.h1), timeout=10)
    client.sendall(b"GET /1k HTTP/1.1\r\nHost: bench.test\r\n\r\n")
    answer = http.client.HTTPResponse(client)
    answer.begin()
    if answer.status != 200 or len(answer.read()) != 1024 or answer.will_close:
        raise Unusable(f"{proxy.name} answers {answer.status} or does not keep connections open")
    return client


# What a client of HTTP/2 has to send (RFC 9113, RFC 7541): its preface with no settings of its own, and GET /1k on stream 1 in
# a header block of static names; the last flags are END_HEADERS and END_STREAM.
HEADERS = b"\x82\x86\x04\x03/1k\x01\x0abench.test"
H2_FRAME = struct.Struct(">BHBBI")  # length in two parts, type, flags, stream
H2_DATA, H2_HEADERS, H2_SETTINGS = 0, 1, 4
H2_ASK = (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + H2_FRAME.pack(0, 0, H2_SETTINGS, 0, 0)
          + H2_FRAME.pack(0, len(HEADERS), H2_HEADERS, 0x5, 1) + HEADERS)


def ask_once_h2(proxy):
    """The same over HTTP/2."""
    client = socket.create_connection((HOST, proxy.h2), timeout=10)
    client.sendall(H2_ASK)
    status, body, flags = b"", 0, 0
    with client.makefile("rb") as frames:
        while not (flags & 0x1 and kind in (H2_DATA, H2_HEADERS)):
            head = frames.read(H2_FRAME.size)
            if len(head) < H2_FRAME.size:
                raise Unusable(f"{proxy.name} closes an HTTP/2 connection before it has answered")
            high, low, kind, flags, stream = H2_FRAME.unpack(head)
            piece = frames.read(high << 16 | low)
            if kind == H2_SETTINGS and not flags & 0x1:
                client.sendall(H2_FRAME.pack(0, 0, H2_SETTINGS, 0x1, 0))
                flags = 0
            elif kind == H2_HEADERS:
                status = piece.lstrip(bytes(range(0x20, 0x40)))[:1]  # past sizes of the dynamic table
            elif kind == H2_DATA:
                body += len(piece)
    if status != b"\x88" or body != 1024:  # :status 200
        raise Unusable(f"{proxy.name} does not answer 200 over HTTP/2")
    return client


# Name: what clients speak, and how one asks once.
IDLE = {"idle": ("HTTP/1.1", ask_once_h1), "idle-h2": ("HTTP/2 without TLS", ask_once_h2)}


