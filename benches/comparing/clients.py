"""Many clients of one proxy that keep their connections open, in a process of their own."""

import http.client
import os
import select
import signal
import socket
import ssl
import struct
from contextlib import ExitStack

from comparing.running import FORK, HOST, Unusable


PATIENCE = 600
"""Seconds that opening all connections may take on a busy machine."""


class Clients:
    """Opens so many connections, and takes each further step when it is told to.

    A process of their own has as many files as the proxy, and their memory is not measured.
    """

    def __init__(self, proxy, count, cores, open_one, *steps):
        self.pipe, self.theirs = FORK.Pipe()
        self.process = FORK.Process(
            target=self.serve, args=(self.theirs, proxy, count, cores, open_one, steps), daemon=True)

    def __enter__(self):
        self.process.start()
        self.theirs.close()
        try:
            self.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.join()

    def step(self):
        """Tells them to take the next step, and waits until all have."""
        self.pipe.send("next")
        self.wait()

    def wait(self):
        if not self.pipe.poll(PATIENCE):
            raise Unusable(f"the clients are not done after {PATIENCE} s")
        try:
            problem = self.pipe.recv()
        except EOFError:
            raise Unusable("the clients are gone") from None
        if problem:
            raise Unusable(problem)

    @staticmethod
    def serve(pipe, proxy, count, cores, open_one, steps):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.sched_setaffinity(0, cores)
        with ExitStack() as ending:
            try:
                opened = [ending.enter_context(open_one(proxy)) for _ in range(count)]
                pipe.send(None)
                for step in steps:
                    pipe.recv()
                    for client in opened:
                        step(proxy, client)
                    pipe.send(None)
                signal.pause()  # until killed
            except (Unusable, OSError, http.client.HTTPException) as problem:
                pipe.send(f"{proxy.name}: {problem}")


def connected(port):
    # Else a request behind the end of a handshake waits until that is acknowledged, 40 ms for those who put it off.
    client = socket.create_connection((HOST, port), timeout=30)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def ask_once_h1(proxy):
    """A connection over which one request has been answered."""
    return asked(proxy, connected(proxy.h1))


def ask_once_tls(proxy):
    """The same under TLS."""
    return asked(proxy, TLS.wrap_socket(connected(proxy.tls)))


TLS = ssl._create_unverified_context()
TLS.set_alpn_protocols(["http/1.1"])


def asked(proxy, client):
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
    """The same over HTTP/2 without TLS."""
    client = connected(proxy.h2)
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


def still_open(proxy, client):
    """A proxy that had closed some would have had less to keep."""
    ended = select.poll()
    ended.register(client, select.POLLRDHUP)
    if ended.poll(0):
        raise Unusable(f"{proxy.name} has closed a connection that only waited")


def ask_and_wait(proxy):
    """A connection with a request in flight."""
    client = connected(proxy.h1)
    client.sendall(b"GET /held HTTP/1.1\r\nHost: bench.test\r\n\r\n")
    return client


def receive_half(proxy, client):
    """The head of the answer and the half of its body that the upstream has sent."""
    came = b""
    while (end := came.find(b"\r\n\r\n")) < 0 or len(came) < end + 4 + 512:
        piece = client.recv(1 << 16)
        if not piece:
            raise Unusable(f"{proxy.name} gave up a request:\n{came!r}")
        came += piece
    if not came.startswith(b"HTTP/1.1 200 "):
        raise Unusable(f"{proxy.name} did not pass an answer on:\n{came!r}")
