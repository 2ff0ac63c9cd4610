"""Processes on one core, what they take of time and memory, and the machine they run on."""

import http.client
import multiprocessing
import os
import random
import resource
import socket
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
HOST = "127.0.0.1"
FORK = multiprocessing.get_context("fork")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Unusable(Exception):
    """The comparison cannot be made; the message says why and what to do."""


def files():
    """How many files each process may have open, raised as far as may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in [1 << 17, hard]:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
            return wanted
        except (ValueError, OSError):
            continue
    return soft


def cores():
    """A core for load generator and upstream, another for the proxies."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise Unusable("needs two cores: one for the proxies, one for load generator and upstream")
    return {usable[1]}, {usable[0]}


def cpu_model():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"


class Running:
    """A process on some cores (none: on all), with its output in a file, that ends with its `with` block."""

    name = ""

    def __init__(self, folder, cores):
        self.folder = folder / self.name
        self.folder.mkdir()
        self.cores = cores
        self.process = None

    def start(self, *command):
        self.log = self.folder / "output.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                preexec_fn=lambda: self.cores is None or os.sched_setaffinity(0, self.cores))

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def wait_until(self, what, holds, seconds=15, every=0.05):
        """Asks until it holds; OSError and HTTPException mean not yet."""
        deadline = time.monotonic() + seconds
        while True:
            if self.process.poll() is not None:
                raise Unusable(f"{self.name} ended with {self.process.returncode}:\n{self.last_words()}")
            try:
                if holds():
                    return
                problem = "not yet"
            except (OSError, http.client.HTTPException) as error:
                problem = error
            if time.monotonic() > deadline:
                raise Unusable(f"{self.name}: no {what} after {seconds} s ({problem}):\n{self.last_words()}")
            time.sleep(every)

    def last_words(self):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def tree(self):
        """The fields of /proc/PID/stat, from the third on, of the process and all its descendants, by pid."""
        children, stats = {}, {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended
            pid = int(stat.parent.name)
            children.setdefault(int(fields[1]), []).append(pid)
            stats[pid] = fields
        found, left = {}, [self.process.pid]
        while left:
            pid = left.pop()
            found[pid] = stats.get(pid)
            left += children.get(pid, [])
        return {pid: fields for pid, fields in found.items() if fields}

    def cpu_seconds(self):
        """User and system time of the whole tree."""
        return sum(int(fields[11]) + int(fields[12]) for fields in self.tree().values()) / TICKS_PER_SECOND

    def memory_bytes(self):
        """Memory of the whole tree, pages that processes share counted once (PSS)."""
        return sum(proportional_kib(pid) for pid in self.tree()) * 1024


def proportional_kib(pid):
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise Unusable(f"no Pss in /proc/{pid}/smaps_rollup")


# Below those that the system gives to clients, each at most once.
PORTS = iter(random.sample(range(10_000, 32_000), 22_000))


def free_port():
    """One that nothing listens on."""
    for port in PORTS:
        try:
            with socket.socket() as probe:
                probe.bind((HOST, port))
            return port
        except OSError:
            continue
    raise Unusable("no free port")


def get(port, path, host=HOST, headers={}):
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


NGINX_BASE = """
worker_processes {workers}; worker_rlimit_nofile {files}; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
{user}
events {{ worker_connections 40000; }}
http {{
    access_log off; keepalive_requests 1000000000; keepalive_timeout 300s; sendfile on; tcp_nopush on;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {http}
}}
"""


class Nginx(Running):
    """What the upstream and the peer have in common."""

    def start_nginx(self, http_block, workers=1):
        config = self.folder / "nginx.conf"
        # Started by root, workers would run as a user who may not read the files.
        user = "user root;" if os.geteuid() == 0 else ""
        config.write_text(NGINX_BASE.format(
            folder=self.folder, user=user, http=http_block, files=files(), workers=workers))
        self.start("nginx", "-e", self.folder / "error.log", "-c", config)


