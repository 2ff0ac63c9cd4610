"""Load: wrk, h2load and serin-pace, and what they saw."""

import json
import os
import re
import subprocess
import sys
import tempfile

from comparing.running import HOST, ROOT, TARGET, Unusable

CONNECTIONS = {"h1": 64, "h2": 8}
STREAMS_PER_CONNECTION = 8


def wrk(proxy, seconds, cores, path="/1k", threads=1, script=None):
    """HTTP/1.1 without TLS, as fast as answers come."""
    options = ["-s", script] if script else []
    said = on_cores(cores, "wrk", f"-t{threads}", f"-c{CONNECTIONS['h1']}", f"-d{seconds}s", "--timeout", "10s",
                    "--latency", *options, f"http://{HOST}:{proxy.h1}{path}")
    seen = wrk_said(said)
    answered(proxy, seen["requests"])
    return seen


POST = 'wrk.method, wrk.body = "POST", string.rep("x", 4096)\n'


def wrk_post(proxy, seconds, cores):
    """The same with a body in each request."""
    with tempfile.NamedTemporaryFile(mode="w", suffix=".lua") as script:
        script.write(POST)
        script.flush()
        return wrk(proxy, seconds, cores, path="/echo", script=script.name)


def wrk_said(text):
    found = re.search(r"(\d+) requests in (\S+),", text)
    if not found:
        raise Unusable(f"wrk said nothing of use:\n{text}")
    socket_errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    failures = sum(map(int, socket_errors.groups())) if socket_errors else 0
    failures += int(refused.group(1)) if refused else 0
    quantile = lambda percent: in_seconds(re.search(rf"^\s+{percent}%\s+(\S+) *$", text, re.M).group(1))
    most = re.search(r"^\s+Latency\s+\S+\s+\S+\s+(\S+)", text, re.M).group(1)
    return {"requests": int(found.group(1)), "seconds": in_seconds(found.group(2)), "failures": failures,
            "p50": quantile(50), "p99": quantile(99), "max": in_seconds(most)}


# Requests are made before anything is measured.
SCRIPT = """
local hosts, keys = %d, %d
local requests, at = {}, 0
local id = 0
function setup(thread) thread:set("offset", id * 7919); id = id + 1 end
function init()
    for key = 0, keys - 1 do
        local host = string.format("svc-%%04d.test", key %% hosts)
        requests[key] = wrk.format("GET", "/1k", {["Host"] = host, ["x-user-id"] = "user-" .. key})
    end
    at = offset
end
function request() at = (at + 1) %% keys; return requests[at] end
"""


def rotating(hosts, keys, pause_ms=None):
    """A script for wrk: so many sticky keys in turn, over hosts `svc-0000.test` and so on, and a pause between two requests
    of a connection."""
    pause = "" if pause_ms is None else f"function delay() return {pause_ms} end\n"
    return SCRIPT % (hosts, keys) + pause


def h2load(proxy, seconds, cores, tls=False, protocol="h2"):
    """HTTP/2, or HTTP/1.1 under TLS, as fast as answers come; under TLS with the cipher and the group that were checked."""
    streams = STREAMS_PER_CONNECTION if protocol == "h2" else 1
    port, scheme = (proxy.tls, "https") if tls else (proxy.h2, "http")
    options = ["--h1"] if protocol == "h1" else []
    options += ["--tls13-ciphers=TLS_AES_128_GCM_SHA256", "--groups=X25519"] if tls else []
    with tempfile.NamedTemporaryFile(mode="r", suffix=".tsv") as log:
        said = on_cores(cores, "h2load", "-t1", f"-c{CONNECTIONS[protocol]}", f"-m{streams}", f"-D{seconds}", *options,
                        f"--log-file={log.name}", f"{scheme}://{HOST}:{port}/1k")
        latencies = sorted(int(line.split("\t")[2]) for line in log)
    succeeded, failed, errored, late = re.search(
        r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", said).groups()
    answered(proxy, int(succeeded))
    return {"requests": int(succeeded), "seconds": seconds,
            "failures": int(failed) + int(errored) + int(late),
            "p50": latencies[len(latencies) // 2] / 1e6, "p99": latencies[len(latencies) * 99 // 100] / 1e6}


def built_pace():
    """The load generator beside this package."""
    command = ["cargo", "build", "--locked", "--release", "--quiet", "-p", "serin-pace"]
    print(" ".join(command), file=sys.stderr)
    subprocess.run(command, check=True, cwd=ROOT)
    return TARGET / "release" / "serin-pace"


def pace(binary, port, rate, seconds, cores):
    """HTTP/1.1 at a fixed rate, times counted from when each request was due."""
    return json.loads(on_cores(cores, binary, f"{HOST}:{port}", "/1k", str(rate), str(seconds), str(CONNECTIONS["h1"])))


def answered(proxy, count):
    if count == 0:
        raise Unusable(f"{proxy.name} answered nothing:\n{proxy.last_words()}")


def on_cores(cores, *command):
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, cores))
    if done.returncode != 0:
        raise Unusable(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def in_seconds(text):
    number, unit = re.fullmatch(r"([\d.]+)([a-z]+)", text).groups()
    return float(number) * {"us": 1e-6, "ms": 1e-3, "s": 1, "m": 60}[unit]
