"""Load: wrk and h2load on one core, and what they saw."""

import os
import re
import subprocess
import tempfile

from comparing.running import HOST, Unusable

CONNECTIONS = {"h1": 64, "h2": 8}
STREAMS_PER_CONNECTION = 8


def wrk(proxy, path, seconds, core):
    said = on_core(core, "wrk", "-t1", f"-c{CONNECTIONS['h1']}", f"-d{seconds}s", "--timeout", "10s", "--latency",
                   f"http://{HOST}:{proxy.h1}{path}")
    requests, length = re.search(r"(\d+) requests in (\S+),", said).groups()
    socket_errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    failures = sum(map(int, socket_errors.groups())) if socket_errors else 0
    failures += int(refused.group(1)) if refused else 0
    quantile = lambda percent: in_seconds(re.search(rf"^\s+{percent}%\s+(\S+) *$", said, re.M).group(1))
    return {"requests": answered(proxy, requests), "seconds": in_seconds(length), "failures": failures,
            "p50": quantile(50), "p99": quantile(99)}


def h2load(proxy, path, seconds, core):
    with tempfile.NamedTemporaryFile(mode="r", suffix=".tsv") as log:
        said = on_core(core, "h2load", "-t1", f"-c{CONNECTIONS['h2']}", f"-m{STREAMS_PER_CONNECTION}", f"-D{seconds}",
                       f"--log-file={log.name}", f"http://{HOST}:{proxy.h2}{path}")
        latencies = sorted(int(line.split("\t")[2]) for line in log)
    succeeded, failed, errored, late = re.search(
        r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", said).groups()
    return {"requests": answered(proxy, succeeded), "seconds": seconds,
            "failures": int(failed) + int(errored) + int(late),
            "p50": latencies[len(latencies) // 2] / 1e6, "p99": latencies[len(latencies) * 99 // 100] / 1e6}


def answered(proxy, count):
    if int(count) == 0:
        raise Unusable(f"{proxy.name} answered nothing:\n{proxy.last_words()}")
    return int(count)


def on_core(core, *command):
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, {core}))
    if done.returncode != 0:
        raise Unusable(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def in_seconds(text):
    number, unit = re.fullmatch(r"([\d.]+)([a-z]+)", text).groups()
    return float(number) * {"us": 1e-6, "ms": 1e-3, "s": 1, "m": 60}[unit]


