"""Fetching: from allowed hosts at public addresses alone, looked up once, within caps of bytes and time; every refusal alike."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from forebay.errors import InvalidRequest
from preprocess.media.fetch import UrlFetcher
from tests.preprocess.media.files import reason_of

PUBLIC = "93.184.215.14"
REFUSAL = "the file cannot be fetched from its URL"


class Internet:
    """Hosts with addresses, and what each answers to a connection: a list of pieces, or None for silence."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[list[str]]] = {"a.example.com": [[PUBLIC]]}  # one list for each time it is asked
        self.answers: dict[str, list[bytes] | None] = {}
        self.lookups: list[str] = []
        self.dialled: list[tuple[str, str]] = []
        self.requests: list[bytes] = []
        self._open: list[socket.socket] = []

    def resolve(self, host: str) -> list[str]:
        self.lookups.append(host)
        left = self.addresses.get(host)
        if not left:
            raise socket.gaierror("unknown")
        return left.pop(0) if len(left) > 1 else left[0]

    def connect(self, host: str, address: str, seconds: float) -> socket.socket:
        assert seconds > 0
        self.dialled.append((host, address))
        near, far = socket.socketpair()
        self._open.append(far)
        threading.Thread(target=self._serve, args=(far, self.answers[host]), daemon=True).start()
        return near

    def _serve(self, far: socket.socket, answer: list[bytes] | None) -> None:
        self.requests.append(far.recv(1 << 16))
        if answer is not None:
            try:
                for piece in answer:
                    far.sendall(piece)
            except OSError:
                pass  # who asked has had enough
            far.close()

    def close(self) -> None:
        for far in self._open:
            far.close()


@pytest.fixture
def internet() -> Iterator[Internet]:
    internet = Internet()
    yield internet
    internet.close()


def fetcher(internet: Internet, *domains: str, seconds: float = 10.0) -> UrlFetcher:
    return UrlFetcher(
        domains or ("a.example.com", "*.cdn.example.com"),
        timeout_seconds=seconds,
        resolve=internet.resolve,
        connect=internet.connect,
    )


def ok(body: bytes, *headers: str) -> list[bytes]:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers, "", ""]
    return ["\r\n".join(lines).encode() + body]


def moved(location: str) -> list[bytes]:
    return [f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()]


def refused(fetch: UrlFetcher, url: str, max_bytes: int = 1_000) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        fetch(url, max_bytes)
    return raised.value


def test_a_file_comes_from_an_allowed_host(internet: Internet) -> None:
    internet.answers["a.example.com"] = ok(b"picture")
    assert fetcher(internet)("https://a.example.com/x/y.png?size=1&v=%20", 1_000) == b"picture"
    assert internet.dialled == [("a.example.com", PUBLIC)]
    request = internet.requests[0]
    assert request.startswith(b"GET /x/y.png?size=1&v=%20 HTTP/1.1\r\nHost: a.example.com\r\n")
    assert b"Cookie" not in request and b"Authorization" not in request


@pytest.mark.parametrize("url", ["https://A.EXAMPLE.com", "https://a.example.com:443/", "https://a.example.com?x=1"])
def test_forms_of_a_url_that_are_taken(internet: Internet, url: str) -> None:
    internet.answers["a.example.com"] = ok(b"x")
    assert fetcher(internet)(url, 1_000) == b"x"


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example.com/x", "ftp://a.example.com/x", "file:///etc/passwd", "//a.example.com/x", "a.example.com/x",
        "https://a.example.com:8443/", "https://a.example.com:80/", "https://user@a.example.com/",
        "https://a.example.com@169.254.169.254/", "https://127.0.0.1/", "https://[::1]/", "https://[::ffff:127.0.0.1]/",
        "https://0x7f.1/", "https://2130706433/", "https://017700000001/", "https://localhost/", "https://a.example.com\\@b/",
        "https://a.example.com\\.evil.com/", "https://a.example.com%2f.evil.com/", "https://a.example.com#.evil.com/",
        "https://a.example.com /", "https://a.example.com/\r\nX: 1", "https://a.example.com/\n", "https://a.example.com./",
        "https://ａ.example.com/", "https://a.example.com/\u200b", "https://a..example.com/", "https://-a.example.com/",
        "https://", "", "https://a.example.com/" + "x" * 5_000,
    ],
)  # fmt: skip
def test_other_forms_are_refused_before_anything_is_looked_up(internet: Internet, url: str) -> None:
    error = refused(fetcher(internet), url)
    assert (reason_of(error), error.message) == ("MEDIA_FETCH", REFUSAL)
    assert internet.lookups == []


@pytest.mark.parametrize(
    "host",
    ["evil.com", "a.example.com.evil.com", "xa.example.com", "example.com", "cdn.example.com", "b.a.example.com"],
)
def test_a_host_that_is_not_allowed_is_not_looked_up(internet: Internet, host: str) -> None:
    assert refused(fetcher(internet), f"https://{host}/").message == REFUSAL
    assert internet.lookups == []


def test_a_star_allows_all_below_a_name(internet: Internet) -> None:
    internet.addresses["x.y.cdn.example.com"] = [[PUBLIC]]
    internet.answers["x.y.cdn.example.com"] = ok(b"x")
    assert fetcher(internet)("https://x.y.cdn.example.com/", 1_000) == b"x"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "255.255.255.255", "224.0.0.1", "240.0.0.1", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254",
        "ff02::1", "2001:db8::1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a00:1", "64:ff9b:1::1",
        "2002:a00:1::1", "2001:0:4136:e378:8000:63bf:f5ff:fffe",
    ],
)  # fmt: skip
def test_a_host_inside_is_refused_even_if_allowed(internet: Internet, address: str) -> None:
    for found in ([address], [PUBLIC, address], [address, PUBLIC]):
        internet.addresses["a.example.com"] = [found]
        assert refused(fetcher(internet), "https://a.example.com/").message == REFUSAL
    assert internet.dialled == []


@pytest.mark.parametrize("address", [PUBLIC, "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_public_addresses_are_dialled_as_they_were_found(internet: Internet, address: str) -> None:
    internet.addresses["a.example.com"] = [[address]]
    internet.answers["a.example.com"] = ok(b"x")
    assert fetcher(internet)("https://a.example.com/", 1_000) == b"x"
    assert internet.dialled == [("a.example.com", address)]


def test_a_name_that_changes_its_address_is_asked_once(internet: Internet) -> None:
    internet.addresses["a.example.com"] = [[PUBLIC], ["169.254.169.254"]]
    internet.answers["a.example.com"] = ok(b"x")
    assert fetcher(internet)("https://a.example.com/", 1_000) == b"x"
    assert internet.lookups == ["a.example.com"] and internet.dialled == [("a.example.com", PUBLIC)]


@pytest.mark.parametrize(
    "location",
    [
        "http://a.example.com/", "https://169.254.169.254/", "https://evil.com/", "//127.0.0.1/", "file:///etc/passwd",
        "https://a.example.com:22/", "https://a.example.com\\@evil.com/", "",
    ],
)  # fmt: skip
def test_a_redirect_is_checked_as_a_url(internet: Internet, location: str) -> None:
    internet.answers["a.example.com"] = moved(location)
    assert refused(fetcher(internet), "https://a.example.com/x").message == REFUSAL
    assert {host for host, _ in internet.dialled} == {"a.example.com"}


def test_a_redirect_to_a_host_inside_is_refused(internet: Internet) -> None:
    internet.addresses["b.cdn.example.com"] = [["10.0.0.1"]]
    internet.answers["a.example.com"] = moved("https://b.cdn.example.com/")
    assert refused(fetcher(internet), "https://a.example.com/x").message == REFUSAL
    assert internet.dialled == [("a.example.com", PUBLIC)]


def test_a_redirect_is_followed_to_an_allowed_host(internet: Internet) -> None:
    internet.addresses["b.cdn.example.com"] = [["8.8.8.8"]]
    internet.answers |= {"a.example.com": moved("https://b.cdn.example.com/y"), "b.cdn.example.com": ok(b"moved")}
    assert fetcher(internet)("https://a.example.com/x", 1_000) == b"moved"
    assert internet.dialled[1] == ("b.cdn.example.com", "8.8.8.8")


def test_redirects_end(internet: Internet) -> None:
    internet.answers["a.example.com"] = moved("/again")
    assert refused(fetcher(internet), "https://a.example.com/x").message == REFUSAL
    assert len(internet.dialled) == 4


def test_a_file_too_large_is_refused_by_its_header(internet: Internet) -> None:
    internet.answers["a.example.com"] = ok(b"x" * 1_001)
    error = refused(fetcher(internet), "https://a.example.com/")
    assert (
        reason_of(error) == "MEDIA_TOO_LARGE" and error.message == "the file has 1,001 bytes; at most 1,000 are taken"
    )


@pytest.mark.parametrize(
    "head",
    ["HTTP/1.0 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20000\r\n"],
    ids=["until-the-end", "chunked"],
)
def test_a_file_of_unknown_length_is_read_no_further_than_the_cap(internet: Internet, head: str) -> None:
    internet.answers["a.example.com"] = [head.encode(), *[b"x" * 1_000] * 100]
    error = refused(fetcher(internet), "https://a.example.com/")
    assert reason_of(error) == "MEDIA_TOO_LARGE"


@pytest.mark.parametrize(
    "answer",
    [
        [b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"],
        [b"HTTP/1.1 500 Oops\r\nContent-Length: 6\r\n\r\nsecret"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe"],
        [b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx"],
        [b"SSH-2.0-OpenSSH_9.6\r\n"],
        [b"HTTP/1.1 200 OK\r\n" + b"X-Header: 1\r\n" * 200 + b"\r\n"],
        [b"HTTP/1.1 200 " + b"x" * 70_000],
        [b""],
    ],
    ids=["404", "500", "half", "half-a-chunk", "gzip", "ssh", "many-headers", "long-line", "nothing"],
)  # fmt: skip
def test_answers_that_are_no_file_are_all_refused_alike(internet: Internet, answer: list[bytes]) -> None:
    internet.answers["a.example.com"] = answer
    error = refused(fetcher(internet), "https://a.example.com/")
    assert (reason_of(error), error.message) == ("MEDIA_FETCH", REFUSAL)


@pytest.mark.parametrize("begins", [b"", b"HTTP/1.1 200 OK\r\nX-Slow", b"HTTP/1.0 200 OK\r\n\r\nfirst bytes"])
def test_a_host_that_never_ends_is_cut_at_the_deadline(internet: Internet, begins: bytes) -> None:
    class Endless(list):
        def __iter__(self) -> Iterator[bytes]:
            yield begins
            hold.wait(30)

    hold = threading.Event()
    internet.answers["a.example.com"] = Endless([begins])
    error = refused(fetcher(internet, seconds=0.2), "https://a.example.com/")
    hold.set()
    assert (reason_of(error), error.message) == ("MEDIA_FETCH", REFUSAL)


def test_a_host_without_a_name_server_is_refused(internet: Internet) -> None:
    assert refused(fetcher(internet), "https://x.cdn.example.com/").message == REFUSAL


def test_the_log_says_why_and_names_no_url(internet: Internet, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    refused(fetcher(internet), "https://evil.com/secret")
    assert "a host that is not allowed" in caplog.text and "secret" not in caplog.text
