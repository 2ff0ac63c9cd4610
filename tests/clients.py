#!/usr/bin/env python3
"""gRPC and WebSocket as others speak them: servers of grpcio and websockets, and clients that go through Serin.

    clients.py serve        says `PORT PORT` (gRPC, WebSocket) and serves until its input ends
    clients.py lame N CODE  the same, but of a thousand calls of Unary so many end with CODE, evenly spread
    clients.py call PORT    says `0 0`, calls Unary steadily until its input ends, and says how often each code came: `OK 120`
    clients.py health [AT]  says `PORT PORT`: a gRPC server with the health service and one without; each line of its input,
                            such as `shop SERVING`, is what the first says of a service from its `done` on; it listens AT as well
    clients.py drive PORT   goes through everything at Serin's port, and fails at the first thing that does not hold
"""

import itertools
import queue
import sys
import threading
from collections import Counter
from concurrent import futures
from contextlib import ExitStack

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import serve as serve_websockets

SECONDS = 20
LARGE = 3 << 20
cancelled = threading.Event()


# --- servers


def unary(request, context):
    context.set_trailing_metadata((("x-trailer", "after"),))
    return request


def lame(per_thousand, code):
    calls = itertools.count(1)

    def unary(request, context):
        number = next(calls)
        if number * per_thousand // 1000 != (number - 1) * per_thousand // 1000:
            context.abort(code, "not now")
        return request

    return unary


def fail(request, context):
    context.abort(grpc.StatusCode.INTERNAL, "broken on purpose, 100 %")


def down(request, context):
    for number in range(int(request)):
        yield str(number).encode()


def up(requests, context):
    return str(sum(len(request) for request in requests)).encode()


def both(requests, context):
    yield from requests


def endless(request, context):
    cancelled.clear()
    context.add_callback(cancelled.set)
    while context.is_active():
        yield b"more"
        cancelled.wait(0.01)


def was_cancelled(request, context):
    return b"yes" if cancelled.wait(SECONDS) else b"no"


HANDLERS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Down": grpc.unary_stream_rpc_method_handler(down),
    "Up": grpc.stream_unary_rpc_method_handler(up),
    "Both": grpc.stream_stream_rpc_method_handler(both),
    "Endless": grpc.unary_stream_rpc_method_handler(endless),
    "WasCancelled": grpc.unary_unary_rpc_method_handler(was_cancelled),
}


def talk(websocket):
    try:
        for message in websocket:
            if message == "leave":
                websocket.close(4001, "as you wish")
                return
            websocket.send(message)
    except ConnectionClosed:
        pass


def serve():
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=16),
        options=[("grpc.max_receive_message_length", 2 * LARGE)],
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo.Echo", HANDLERS),))
    grpc_port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with serve_websockets(talk, "127.0.0.1", 0, subprotocols=["chat"], max_size=2 * LARGE) as websockets:
        threading.Thread(target=websockets.serve_forever, daemon=True).start()
        print(grpc_port, websockets.socket.getsockname()[1], flush=True)
        sys.stdin.read()
        websockets.shutdown()
    server.stop(None)


def serve_health(also=None):
    with_health, without = (grpc.server(futures.ThreadPoolExecutor(max_workers=4)) for _ in range(2))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, with_health)
    with_health.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo.Echo", HANDLERS),))
    ports = [server.add_insecure_port("127.0.0.1:0") for server in (with_health, without)]
    if also:
        with_health.add_insecure_port(also)
    with_health.start()
    without.start()
    print(*ports, flush=True)
    for line in sys.stdin:
        name, status = line.split()
        servicer.set(name, health_pb2.HealthCheckResponse.ServingStatus.Value(status))
        print("done", flush=True)
    with_health.stop(None)
    without.stop(None)


# --- clients


def holds(condition, what):
    if not condition:
        sys.exit(f"does not hold: {what}")


def code_of(call):
    try:
        call()
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def drive_grpc(port):
    options = [("grpc.max_receive_message_length", 2 * LARGE), ("grpc.enable_retries", 0)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        method = "/echo.Echo/{}".format
        for number in range(50):
            text = str(number).encode()
            answer, call = channel.unary_unary(method("Unary")).with_call(text, timeout=SECONDS)
            holds(answer == text, "a unary call is answered")
            holds(("x-trailer", "after") in call.trailing_metadata(), "trailing metadata arrive")
        large = bytes(LARGE)
        holds(channel.unary_unary(method("Unary"))(large, timeout=SECONDS) == large, "a large message passes")

        code, details = code_of(lambda: channel.unary_unary(method("Fail"))(b"", timeout=SECONDS))
        holds(code == grpc.StatusCode.INTERNAL and details == "broken on purpose, 100 %", "code and text of a failure")

        answers = list(channel.unary_stream(method("Down"))(b"1000", timeout=SECONDS))
        holds(answers == [str(n).encode() for n in range(1000)], "a stream down is whole and in order")
        total = channel.stream_unary(method("Up"))((b"x" * 100 for _ in range(1000)), timeout=SECONDS)
        holds(total == b"100000", "a stream up is whole")

        asks = queue.Queue()
        answers = channel.stream_stream(method("Both"))(iter(asks.get, None), timeout=SECONDS)
        for number in range(100):
            # The next one is asked only when this one has been answered: nothing waits for more.
            asks.put(str(number).encode())
            holds(next(answers) == str(number).encode(), "each message passes at once, both ways")
        asks.put(None)
        holds(next(answers, None) is None, "a stream both ways ends")

        stream = channel.unary_stream(method("Endless"))(b"", timeout=SECONDS)
        next(stream)
        stream.cancel()
        holds(channel.unary_unary(method("WasCancelled"))(b"", timeout=SECONDS) == b"yes", "a cancellation arrives")

        def at_once(number):
            return channel.unary_unary(method("Unary"))(str(number).encode(), timeout=SECONDS)

        with futures.ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(at_once, range(200)))
        holds(answers == [str(n).encode() for n in range(200)], "calls at the same time are not mixed up")

        # Serin's own answers.
        code, _ = code_of(lambda: channel.unary_unary("/dead.Dead/Call")(b"", timeout=SECONDS))
        holds(code == grpc.StatusCode.UNAVAILABLE, f"a version that is not there is UNAVAILABLE, not {code}")
        code, _ = code_of(lambda: channel.unary_unary("/nobody.Here/Call")(b"", timeout=SECONDS))
        holds(code == grpc.StatusCode.UNIMPLEMENTED, f"a service that is not there is UNIMPLEMENTED, not {code}")


def call_steadily(port):
    over, codes = threading.Event(), Counter()
    print(0, 0, flush=True)

    def calls(_):
        with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_retries", 0)]) as channel:
            unary = channel.unary_unary("/echo.Echo/Unary")
            while not over.wait(0.005):
                code, _ = code_of(lambda: unary(b"message", timeout=SECONDS))
                codes[code.name] += 1

    with futures.ThreadPoolExecutor(4) as pool:
        ended = pool.map(calls, range(4))
        sys.stdin.read()
        over.set()
        list(ended)
    for code, number in sorted(codes.items()):
        print(code, number)


def drive_websocket(port):
    def client(**more):
        address = f"ws://127.0.0.1:{port}/ws"
        return connect(address, subprotocols=["chat"], max_size=2 * LARGE, open_timeout=SECONDS, **more)

    with client() as websocket:
        holds(websocket.subprotocol == "chat", "a subprotocol is agreed on")
        for message in ["hello", "", "ä" * 1000, bytes(LARGE)]:
            websocket.send(message)
            holds(websocket.recv(SECONDS) == message, "a message comes back")
        holds(websocket.ping().wait(SECONDS), "a ping is answered")
    with ExitStack() as stack:
        several = [stack.enter_context(client(compression=None)) for _ in range(5)]
        for number, websocket in enumerate(several):
            websocket.send(str(number))
        for number, websocket in reversed(list(enumerate(several))):
            holds(websocket.recv(SECONDS) == str(number), "connections are not mixed up")
            websocket.send("leave")
            try:
                websocket.recv(SECONDS)
                holds(False, "the server leaves")
            except ConnectionClosed as closed:
                holds(closed.rcvd.code == 4001 and closed.rcvd.reason == "as you wish", f"why it leaves: {closed}")


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve()
    elif sys.argv[1] == "health":
        serve_health(*sys.argv[2:])
    elif sys.argv[1] == "lame":
        handler = lame(int(sys.argv[2]), grpc.StatusCode[sys.argv[3]])
        HANDLERS["Unary"] = grpc.unary_unary_rpc_method_handler(handler)
        serve()
    elif sys.argv[1] == "call":
        call_steadily(int(sys.argv[2]))
    else:
        drive_grpc(int(sys.argv[2]))
        drive_websocket(int(sys.argv[2]))
        print("all of it holds")
