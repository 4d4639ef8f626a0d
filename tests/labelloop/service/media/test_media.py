"""Every form of address, and the rules: whose token goes where, which hosts are read, how much and how long."""

import base64
import gzip
import io
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import stamina
from PIL import Image

from labelloop.service.media import (
    Media,
    MediaError,
    MediaHostRefused,
    MediaMissing,
    MediaTooLarge,
    MediaUnreachable,
    NotAnImage,
)
from labelloop.service.media.ssrf_guard import is_public
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio

TOKEN = "0123456789abcdef0123456789abcdef01234567"


def png(width=6, height=4):
    out = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 7, np.uint8)).save(out, "PNG")
    return out.getvalue()


class Host(ThreadingHTTPServer):
    """An HTTP server of the test's own: `answers[path] = (status, headers, body)`; it remembers what it was asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.asked, self.connections = {}, [], 0
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def process_request(self, *connection):
        self.connections += 1
        super().process_request(*connection)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        answer = self.server.answers.get(self.path.partition("?")[0], (404, {}, b""))
        status, headers, body = answer() if callable(answer) else answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)) if isinstance(body, bytes) else "1000000")
        self.end_headers()
        try:
            for chunk in [body] if isinstance(body, bytes) else body:
                self.wfile.write(chunk)
        except OSError:
            pass
        if not isinstance(body, bytes) or len(body) != int(headers.get("Content-Length", len(body))):
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def hosts():
    started = []

    def start():
        started.append(Host())
        return started[-1]

    yield start
    for host in started:
        host.shutdown()
        host.server_close()


@pytest.fixture
def label_studio(hosts):
    return hosts()


@pytest.fixture(autouse=True)
def _quick_retries():
    with stamina.set_testing(True, attempts=3, cap=True):
        yield


@pytest.fixture
def media(label_studio, tmp_path):
    """Media of a Label Studio at a private address: it alone may be read there."""
    opened = []

    def make(**changes):
        settings = Settings(home=tmp_path / "home", media_timeout_s=5, **changes)
        opened.extend([studio := Studio(label_studio.url, TOKEN), media := Media(settings, studio)])
        return media

    yield make
    for part in opened:
        part.close()


def test_an_upload_is_read_with_our_token_once_and_then_from_the_cache(media, label_studio):
    label_studio.answers["/data/upload/1/a b.png"] = (200, {}, png())
    label_studio.answers["/data/upload/1/a%20b.png"] = (200, {}, png())
    media = media()
    for _ in range(2):
        photo = media.photo("/data/upload/1/a b.png")
        assert (photo.width, photo.height, photo.pixels[0, 0].tolist()) == (6, 4, [7, 7, 7])
    assert media.size("/data/upload/1/a b.png") == (6, 4)
    assert media.path("/data/upload/1/a b.png").read_bytes() == png()
    assert label_studio.asked == [("/data/upload/1/a%20b.png", f"Token {TOKEN}")]


def test_an_absolute_address_of_label_studio_is_the_same_upload(media, label_studio):
    label_studio.answers["/data/upload/1/a.png"] = (200, {}, png())
    media = media()
    media.photo(f"{label_studio.url}/data/upload/1/a.png")
    media.photo("/data/upload/1/a.png")
    assert len(label_studio.asked) == 1


def test_images_of_label_studio_do_not_wait_for_a_delayed_ack_on_a_kept_connection(media, hosts, label_studio):
    other, media = hosts(), media(media_allow_private_hosts=True)
    for number in range(3):
        for host in (label_studio, other):
            host.answers[f"/data/upload/1/{number}.png"] = (200, {}, png())
            media.photo(f"{host.url}/data/upload/1/{number}.png")
    assert (label_studio.connections, other.connections) == (3, 1)


def test_a_path_prefix_of_label_studio_is_kept(label_studio, tmp_path):
    label_studio.answers["/annotate/data/upload/1/a.png"] = (200, {}, png())
    media = Media(Settings(home=tmp_path), Studio(f"{label_studio.url}/annotate/", TOKEN))
    assert media.size("/data/upload/1/a.png") == media.size("/annotate/data/upload/1/a.png") == (6, 4)
    assert [path for path, _ in label_studio.asked] == ["/annotate/data/upload/1/a.png"]
    media.close()


def test_a_bucket_is_read_through_label_studio_and_the_redirect_gets_no_token(media, label_studio, hosts):
    bucket = hosts()
    bucket.answers["/bucket/a.png"] = (200, {}, png())
    label_studio.answers["/tasks/7/resolve/"] = (303, {"Location": f"{bucket.url}/bucket/a.png?X-Amz-Signature=s"}, b"")
    media = media(media_hosts=("127.0.0.1",))
    assert media.size("s3://bucket/dir/ä b.png", task_id=7) == (6, 4)
    [(path, token)] = label_studio.asked
    coded = path.partition("fileuri=")[2].replace("%3D", "=")
    assert base64.urlsafe_b64decode(coded).decode() == "s3://bucket/dir/ä b.png"
    assert token == f"Token {TOKEN}"
    assert bucket.asked == [("/bucket/a.png?X-Amz-Signature=s", None)]
    with pytest.raises(MediaMissing, match="task id"):
        media.size("gs://bucket/x.png")


def test_a_redirect_back_to_label_studio_gets_the_token_again_and_another_port_does_not(media, label_studio, hosts):
    other = hosts()
    label_studio.answers["/data/upload/1/a.png"] = (302, {"Location": f"{other.url}/data/upload/1/a.png"}, b"")
    other.answers["/data/upload/1/a.png"] = (302, {"Location": f"{label_studio.url}/data/upload/1/b.png"}, b"")
    label_studio.answers["/data/upload/1/b.png"] = (200, {}, png())
    media(media_hosts=("127.0.0.1",)).photo("/data/upload/1/a.png")
    assert other.asked == [("/data/upload/1/a.png", None)]
    assert [token for _, token in label_studio.asked] == [f"Token {TOKEN}"] * 2


def test_the_token_goes_to_label_studios_media_alone(media, label_studio):
    label_studio.answers["/api/users/"] = (200, {}, png())
    with pytest.raises(MediaError):
        media().photo("/data/upload/../../api/users/")
    media().photo("/api/users/")
    assert label_studio.asked == [("/api/users/", None)]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/a.png",
        "http://localhost:9/a.png",
        "http://2130706433:9/a.png",
        "http://0x7f.1:9/a.png",
        "http://[::1]:9/a.png",
        "http://[::ffff:127.0.0.1]:9/a.png",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/a.png",
        "http://0.0.0.0:9/a.png",
    ],
)
def test_private_addresses_are_refused_in_every_spelling(media, url):
    with pytest.raises(MediaHostRefused, match="LABELLOOP_MEDIA_HOSTS"):
        media().photo(url)


def test_a_public_name_that_leads_to_a_private_address_is_refused_when_it_is_connected(media, hosts, monkeypatch):
    """DNS rebinding: whatever a first look-up said, the address that is connected to is the one that is judged."""
    inside = hosts()
    inside.answers["/a.png"] = (200, {}, png())
    monkeypatch.setattr("socket.getaddrinfo", lambda host, port, *_, **__: [(2, 1, 6, "", ("127.0.0.1", port))])
    with pytest.raises(MediaHostRefused, match=r"photos\.example\.com"):
        media().photo(f"http://photos.example.com:{inside.server_port}/a.png")
    assert inside.asked == []


def test_a_redirect_to_a_private_address_is_refused(media, label_studio, hosts):
    inside = hosts()
    label_studio.answers["/data/upload/1/a.png"] = (302, {"Location": f"{inside.url}/secret.png"}, b"")
    with pytest.raises(MediaHostRefused):
        media().photo("/data/upload/1/a.png")
    label_studio.answers["/data/upload/1/b.png"] = (302, {"Location": "file:///etc/passwd"}, b"")
    with pytest.raises(MediaHostRefused):
        media().photo("/data/upload/1/b.png")
    assert inside.asked == []


def test_private_hosts_may_be_allowed_one_by_one_or_all(media, hosts):
    inside = hosts()
    inside.answers["/a.png"] = (200, {}, png())
    inside.answers["/b.png"] = (200, {}, png())
    assert media(media_hosts=(f"127.0.0.1:{inside.server_port}",)).size(f"{inside.url}/a.png") == (6, 4)
    assert media(media_allow_private_hosts=True).size(f"{inside.url}/b.png") == (6, 4)
    assert [token for _, token in inside.asked] == [None, None]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700:4700::1111", True),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("255.255.255.255", False),
    ],
)
def test_is_public(address, public):
    assert is_public(address) is public


def test_too_many_bytes_are_refused_while_they_come(media, label_studio):
    label_studio.answers["/data/upload/1/told.png"] = (200, {"Content-Length": "5000"}, b"x" * 5000)
    label_studio.answers["/data/upload/1/packed.png"] = (
        200,
        {"Content-Encoding": "gzip"},
        gzip.compress(b"\x00" * 50_000_000),
    )
    media = media(media_max_bytes=2000)
    for name in ("told", "packed"):
        with pytest.raises(MediaTooLarge, match="LABELLOOP_MEDIA_MAX_BYTES"):
            media.photo(f"/data/upload/1/{name}.png")


def test_a_host_that_drips_is_left_at_the_deadline(label_studio, tmp_path):
    def drip():
        for _ in range(600):
            time.sleep(0.1)
            yield b"x"

    label_studio.answers["/data/upload/1/a.png"] = lambda: (200, {}, drip())
    media = Media(Settings(home=tmp_path, media_timeout_s=0.6), Studio(label_studio.url, TOKEN))
    started = time.monotonic()
    with pytest.raises(MediaUnreachable, match="timed out"):
        media.photo("/data/upload/1/a.png")
    assert time.monotonic() - started < 30
    media.close()


def test_a_body_cut_short_is_an_error_and_is_asked_for_again(media, label_studio):
    answers = iter([(200, {"Content-Length": str(len(png()))}, png()[:40]), (200, {}, png())])
    label_studio.answers["/data/upload/1/a.png"] = lambda: next(answers)
    assert media().size("/data/upload/1/a.png") == (6, 4)
    assert len(label_studio.asked) == 2


def test_failures_are_not_kept(media, label_studio):
    media = media()
    label_studio.answers["/data/upload/1/a.png"] = (200, {"Content-Type": "text/html"}, b"<html>Log in</html>")
    with pytest.raises(NotAnImage, match="a web page"):
        media.photo("/data/upload/1/a.png")
    label_studio.answers["/data/upload/1/a.png"] = (503, {}, b"")
    with pytest.raises(MediaUnreachable, match="503"):
        media.photo("/data/upload/1/a.png")
    label_studio.answers["/data/upload/1/a.png"] = (200, {}, png())
    assert media.size("/data/upload/1/a.png") == (6, 4)


def test_label_studios_own_refusals_are_explained(media, label_studio):
    label_studio.answers["/data/upload/1/gone.png"] = (500, {}, b"'NoneType' object has no attribute 'has_permission'")
    label_studio.answers["/data/local-files/"] = (403, {}, b"... it's disabled by default. You can enable it ...")
    media = media()
    with pytest.raises(MediaMissing, match="no such upload"):
        media.photo("/data/upload/1/gone.png")
    with pytest.raises(MediaMissing, match="LOCAL_FILES_SERVING_ENABLED"):
        media.photo("/data/local-files/?d=a.png")
    with pytest.raises(MediaMissing, match="Cloud Storage"):
        media.photo("s3://bucket/a.png", task_id=1)


def test_a_file_that_another_token_fetched_is_not_served(label_studio, tmp_path):
    label_studio.answers["/data/upload/1/a.png"] = (200, {}, png())
    media = Media(Settings(home=tmp_path), Studio(label_studio.url, TOKEN))
    media.photo("/data/upload/1/a.png")
    label_studio.answers["/data/upload/1/a.png"] = (403, {}, b"")
    other = Media(Settings(home=tmp_path), Studio(label_studio.url, "f" * 40))
    with pytest.raises(MediaMissing):
        other.photo("/data/upload/1/a.png")
    media.photo("/data/upload/1/a.png")
    media.close()
    other.close()


def test_an_address_with_another_signature_is_asked_for_again(media, hosts):
    bucket = hosts()
    bucket.answers["/a.png"] = (200, {}, png())
    media = media(media_allow_private_hosts=True)
    media.photo(f"{bucket.url}/a.png?X-Amz-Signature=good")
    bucket.answers["/a.png"] = (403, {}, b"")
    with pytest.raises(MediaMissing) as caught:
        media.photo(f"{bucket.url}/a.png?X-Amz-Signature=void")
    assert "void" not in str(caught.value)


def test_data_uris_are_read_in_both_spellings(media):
    coded = base64.b64encode(png()).decode()
    assert media().size(f"data:image/png;base64,{coded}") == (6, 4)
    escaped = "".join(f"%{byte:02x}" for byte in png())
    assert media().size(f"data:image/png,{escaped}") == (6, 4)
    with pytest.raises(NotAnImage, match="base64"):
        media().size("data:image/png;base64,!!!!")
    with pytest.raises(MediaTooLarge):
        media(media_max_bytes=50).size(f"data:image/png;base64,{base64.b64encode(png(9, 9)).decode()}")


def test_local_files_are_read_from_the_disk_inside_their_root_only(media, tmp_path, label_studio):
    root = tmp_path / "root"
    (root / "photos").mkdir(parents=True)
    (root / "photos" / "a b.png").write_bytes(png())
    (tmp_path / "secret.png").write_bytes(png())
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    media = media(local_files_root=root)
    assert media.path("/data/local-files/?d=photos/a%20b.png") == root / "photos" / "a b.png"
    assert media.size("/data/local-files/?d=/photos/a b.png") == (6, 4)
    for way in ("../secret.png", "photos/../../secret.png", "link.png", "%2e%2e/secret.png", ""):
        with pytest.raises(MediaHostRefused):
            media.photo(f"/data/local-files/?d={way}")
    with pytest.raises(MediaMissing):
        media.photo("/data/local-files/?d=photos/none.png")
    assert label_studio.asked == []


@pytest.mark.parametrize(
    "url", ["ftp://host/a.png", "file:///etc/passwd", "photo.jpg", "", "javascript:1", "http://", "http:///a"]
)
def test_what_is_no_address_is_refused(media, url):
    with pytest.raises(MediaError):
        media().photo(url)


def test_without_label_studio_its_addresses_are_explained(tmp_path):
    media = Media(Settings(home=tmp_path), None)
    for url in ("/data/upload/1/a.png", "gs://bucket/a.png"):
        with pytest.raises(MediaMissing, match="LABELLOOP_LABEL_STUDIO_URL"):
            media.photo(url, task_id=1)
    media.close()


def test_a_damaged_cache_file_is_fetched_anew_next_time(media, label_studio):
    label_studio.answers["/data/upload/1/a.png"] = (200, {}, png())
    media = media()
    media.path("/data/upload/1/a.png").write_bytes(png()[:50])
    with pytest.raises(NotAnImage):
        media.photo("/data/upload/1/a.png")
    assert media.photo("/data/upload/1/a.png").width == 6


def test_bucket_without_label_studio_is_read_with_the_machines_own_credentials_and_none_is_said(tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    media = Media(Settings(home=tmp_path, label_studio_api_key=""), None)
    with closing(media), pytest.raises(MediaMissing, match="no credentials") as error:
        media.path("s3://photos/a.jpg", task_id=1)
    assert "LABELLOOP_S3_ACCESS_KEY_ID" in error.value.fix
    assert "LABELLOOP_LABEL_STUDIO_API_KEY" in error.value.fix
