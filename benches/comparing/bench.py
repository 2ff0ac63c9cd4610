"""What all scenarios share: the machine's cores, a certificate, an upstream, and proxies that are started for a setup."""

import random
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from comparing import equal
from comparing.peers import PROXIES, Setup
from comparing.running import cores
from comparing.upstream import Upstream


@dataclass
class Certificate:
    """Made for this run, with a key of P-256."""

    certificate: Path
    key: Path
    both: Path

    @classmethod
    def made_in(cls, folder):
        made = cls(folder / "certificate.pem", folder / "key.pem", folder / "both.pem")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
             "-subj", f"/CN={equal.NAME}", "-addext", f"subjectAltName=DNS:{equal.NAME}",
             "-keyout", made.key, "-out", made.certificate], check=True, capture_output=True)
        made.both.write_text(made.certificate.read_text() + made.key.read_text())
        return made


class Bench:
    """Ends what it started with its `with` block."""

    def __init__(self, options):
        self.options = options
        self.names = ["serin", *options.peers]
        self.load_cores, self.proxy_cores = cores()
        self.order = random.Random(options.seed)
        self.ending = ExitStack()
        self.started = 0
        self.plain = None

    def __enter__(self):
        try:
            self.begin()
        except BaseException:
            self.ending.close()
            raise
        return self

    def begin(self):
        self.folder = Path(self.ending.enter_context(tempfile.TemporaryDirectory(prefix="serin-compare-")))
        self.folder.chmod(0o755)  # nginx's worker may be another user
        self.certificate = Certificate.made_in(self.folder)
        self.upstream = self.ending.enter_context(Upstream(self.folder, self.load_cores))
        # Most scenarios measure these; while others are measured they have nothing to do.
        self.plain = self.ending.enter_context(self.running(Setup()))

    def __exit__(self, *_):
        self.ending.close()

    @contextmanager
    def running(self, setup, upstream=None, cores=None, checked=True):
        """All proxies, set up like this; those that run anyway, when they are."""
        setup = self.asked(setup)
        if self.plain and setup == self.plain[0].setup and upstream is None:
            yield self.plain
            return
        place = self.place()
        with ExitStack() as ending:
            proxies = [ending.enter_context(PROXIES[name](
                place, cores or self.proxy_cores, upstream or self.upstream, self.certificate, setup))
                for name in self.names]
            for proxy in proxies if checked else []:
                equal.check(proxy)
            yield proxies

    def asked(self, setup):
        """The same with the fields that peers are to add."""
        return replace(setup, forwarded_only=self.options.forwarded_only)

    def place(self):
        """A new folder."""
        self.started += 1
        place = self.folder / f"{self.started}"
        place.mkdir()
        place.chmod(0o755)
        return place

    def shuffled(self, things):
        return self.order.sample(things, len(things))


def say(about, number=None, of=None):
    """What is going on, on one line that is written over."""
    rounds = f": round {number + 1} of {of} " if of else ""
    print(f"\r{about}{rounds}", end="" if of and number + 1 < of else "\n", file=sys.stderr, flush=True)
