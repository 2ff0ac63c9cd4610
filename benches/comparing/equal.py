"""Equal work, checked before anything is measured."""

import http.client
import json
import re
import ssl
import subprocess
from contextlib import closing

from comparing.peers import CANARY_PERCENT, KEY_HEADER
from comparing.running import HOST, Unusable

NAME = "bench.test"
# What has to reach the upstream. Of a client on loopback, Envoy names this machine's own address instead: any will do.
FORWARDED = {"x-forwarded-for": r"\S+", "x-forwarded-host": re.escape(NAME)}
# At random, a UUID in either spelling; and the hop.
BESIDE = {"x-request-id": r"[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "via": r"1\.1 \w+"}
# What TLS has to come to with each proxy, in the words of `openssl s_client`.
AGREED = ["New, TLSv1.3, Cipher is TLS_AES_128_GCM_SHA256", "Server Temp Key: X25519", "Server public key is 256 bit",
          "ALPN protocol: h2"]
KEYS = 400


def check(proxy):
    """Raises Unusable when this proxy does less than the others, or something else."""
    plain = lambda: http.client.HTTPConnection(HOST, proxy.h1, timeout=10)
    forwards_and_keeps(proxy, plain, "http")
    asks_all_endpoints(proxy, plain)
    if proxy.setup.sticky:
        sticks(proxy, plain)
    context = ssl._create_unverified_context()
    forwards_and_keeps(proxy, lambda: http.client.HTTPSConnection(HOST, proxy.tls, context=context, timeout=10), "https")
    agrees(proxy)


def forwards_and_keeps(proxy, connect, scheme):
    """The fields that a proxy adds arrive, each request has an id of its own, and connections to the upstream are used again."""
    fewer = proxy.setup.forwarded_only and proxy.name != "serin"
    wanted = {**FORWARDED, "x-forwarded-proto": scheme, **(dict.fromkeys(BESIDE, "") if fewer else BESIDE)}
    uses, ids = 0, set()
    for _ in range(20 * proxy.setup.endpoints * proxy.setup.threads):
        with closing(connect()) as client:
            said = echo(proxy, client)
        wrong = {name: said[name] for name, value in wanted.items() if not re.fullmatch(value, said[name])}
        if wrong:
            raise unequal(proxy, f"the upstream was told {wrong}")
        uses = max(uses, said["uses"])
        if not fewer and said["x-request-id"] in ids:
            raise unequal(proxy, "two requests have the same X-Request-Id")
        ids.add(said["x-request-id"])
    if uses < 2:
        raise unequal(proxy, "it opens an upstream connection per request")


def asks_all_endpoints(proxy, connect):
    with closing(connect()) as client:
        # With keys, since a hash may send what has none to the canary.
        asked = {echo(proxy, client, f"user-{number}")["port"] for number in range(60 * proxy.setup.endpoints)}
    missed = set(proxy.upstream.of(0, proxy.setup.endpoints)) - asked
    if missed:
        raise unequal(proxy, f"of {proxy.setup.endpoints} endpoints {len(missed)} were never asked")


def sticks(proxy, connect):
    """A key stays where it is, and about as many keys as should are with the canary."""
    canary = set(proxy.upstream.of(1, proxy.setup.endpoints))
    with closing(connect()) as client:
        first, again = ([echo(proxy, client, f"user-{key}")["port"] in canary for key in range(KEYS)] for _ in range(2))
    if first != again:
        raise unequal(proxy, "keys do not stay with their version")
    share = 100 * sum(first) / KEYS
    if not CANARY_PERCENT / 4 < share < 2.5 * CANARY_PERCENT:
        raise unequal(proxy, f"{share} % of the keys are with the canary instead of about {CANARY_PERCENT} %")


def agrees(proxy):
    """Every proxy comes to the same version, cipher, kind of key and protocol."""
    said = subprocess.run(
        ["openssl", "s_client", "-connect", f"{HOST}:{proxy.tls}", "-servername", NAME, "-alpn", "h2,http/1.1",
         "-ciphersuites", "TLS_AES_128_GCM_SHA256", "-groups", "X25519"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=20).stdout
    missing = [line for line in AGREED if line not in said]
    if missing:
        raise unequal(proxy, f"TLS came to something else than {missing}:\n{said}")


def echo(proxy, client, key=None):
    client.request("GET", "/echo", headers={"Host": NAME, **({KEY_HEADER: key} if key else {})})
    answer = client.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise unequal(proxy, f"it answers {answer.status} to /echo")
    return json.loads(body)


def unequal(proxy, why):
    return Unusable(f"{proxy.name} does not do equal work: {why}")
