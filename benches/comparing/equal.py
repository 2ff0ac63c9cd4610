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
# The id is made at random, a UUID in either spelling; some say by which version of HTTP the request came.
ID_AND_HOP = {"x-request-id": r"[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "via": r"(1\.1|2(\.0)?) \w+"}
# What TLS has to come to with each proxy, in the words of `openssl s_client`.
AGREED = ["New, TLSv1.3, Cipher is TLS_AES_128_GCM_SHA256", "Server Temp Key: X25519", "Server public key is 256 bit",
          "ALPN protocol: h2"]
KEYS = 400


def check(proxy):
    """Raises Unusable when this proxy does less than the others, or something else."""
    plain = lambda: http.client.HTTPConnection(HOST, proxy.h1, timeout=10)
    for url in (f"http://{HOST}:{proxy.h2}/echo", f"https://{HOST}:{proxy.tls}/echo"):
        adds_fields(proxy, echo_h2(proxy, url), url.partition(":")[0])
    forwards_and_keeps(proxy, plain, "http")
    asks_all_endpoints(proxy, plain)
    if proxy.setup.sticky:
        sticks(proxy, plain)
    context = ssl._create_unverified_context()
    forwards_and_keeps(proxy, lambda: http.client.HTTPSConnection(HOST, proxy.tls, context=context, timeout=10), "https")
    agrees(proxy)


def forwards_and_keeps(proxy, connect, scheme):
    """The fields that a proxy adds arrive, each request has an id of its own, and connections to the upstream are used again."""
    each = []
    for _ in range(20 * proxy.setup.endpoints * proxy.setup.threads):
        with closing(connect()) as client:
            each += [echo(proxy, client), echo(proxy, client)]
    for said in each:
        adds_fields(proxy, said, scheme)
    if len({said["x-request-id"] for said in each} - {""}) not in (0, len(each)):
        raise unequal(proxy, "two requests have the same X-Request-Id")
    if max(said["uses"] for said in each) < 3:
        raise unequal(proxy, "connections to the upstream are not used again by other clients")


def adds_fields(proxy, said, scheme, host=NAME):
    """Those that it has to add have arrived, and no others. Of a client on loopback, Envoy names this machine's own address
    instead: any will do."""
    without = proxy.setup.forwarded_only and proxy.name != "serin"
    wanted = {"x-forwarded-for": r"\S+", "x-forwarded-proto": scheme, "x-forwarded-host": re.escape(host),
              **(dict.fromkeys(ID_AND_HOP, "") if without else ID_AND_HOP)}
    wrong = {name: said[name] for name, value in wanted.items() if not re.fullmatch(value, said[name])}
    if wrong:
        raise unequal(proxy, f"the upstream was told {wrong}")


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


def echo_h2(proxy, url):
    said = subprocess.run(["nghttp", "--no-verify-peer", "-H", f":authority: {NAME}", url], capture_output=True, text=True,
                          errors="replace", timeout=20).stdout
    try:
        return json.loads(said)
    except ValueError:
        raise unequal(proxy, f"it answers {said!r} to {url} over HTTP/2") from None


def unequal(proxy, why):
    return Unusable(f"{proxy.name} does not do equal work: {why}")
