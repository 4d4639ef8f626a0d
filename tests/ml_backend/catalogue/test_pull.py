"""`labelloop models pull`: checked downloads, resume, and instructions without a network."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np
import pytest

from labelloop.service.errors import LabelloopError
from ml_backend.catalogue import download as downloads
from ml_backend.catalogue import pull as pulling
from ml_backend.catalogue.download import DownloadFailed, download
from ml_backend.catalogue.entries import CATALOGUE, CatalogueEntry, Release
from ml_backend.cli.models import models_pull

DATA = np.random.default_rng(0).bytes(300_000)


class Server:
    """Gives DATA, a part of it a connection; counts and remembers what was asked for."""

    def __init__(self):
        self.asked, self.breaks, self.ranges, self.data, self.status = [], 0, True, DATA, 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                wanted = self.headers.get("Range")
                outer.asked.append(wanted)
                if outer.status != 200:
                    self.send_error(outer.status)
                    return
                start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and outer.ranges else 0
                if start and start >= len(outer.data):
                    self.send_error(416)
                    return
                body = outer.data[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if outer.breaks:
                    outer.breaks -= 1
                    body = body[:100_000]
                self.wfile.write(body)  # fewer bytes than said: then the connection ends

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server():
    first = Server()
    yield first
    first.stop()


@pytest.fixture
def release(server):
    return Release(f"{server.url}/model.onnx", hashlib.sha256(DATA).hexdigest(), len(DATA))


@pytest.fixture
def client(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSE_S", 0.01)
    with httpx.Client(trust_env=False, follow_redirects=True) as first:
        yield first


def test_a_broken_download_resumes_and_existing_files_are_kept(server, release, client, tmp_path):
    server.breaks = 2
    logged = []
    file = tmp_path / "models" / "model.onnx"
    assert download(release, file, client=client, progress=lambda done, whole: logged.append((done, whole)))
    assert file.read_bytes() == DATA
    assert server.asked == [None, "bytes=100000-", "bytes=200000-"]
    assert logged[-1] == (len(DATA), len(DATA))
    assert [done for done, _ in logged] == sorted(done for done, _ in logged)
    assert not download(release, file, client=client)
    assert len(server.asked) == 3
    assert [first.name for first in file.parent.iterdir()] == ["model.onnx"]


def test_the_next_run_goes_on_where_the_last_one_ended(server, release, client, tmp_path):
    file = tmp_path / "model.onnx"
    (tmp_path / "model.onnx.part").write_bytes(DATA[:250_000])
    download(release, file, client=client)
    assert (file.read_bytes(), server.asked) == (DATA, ["bytes=250000-"])


@pytest.mark.parametrize("content", [DATA, DATA[:1000]])
def test_servers_without_ranges_or_without_further_bytes(server, release, client, tmp_path, content):
    server.ranges = content is DATA
    (tmp_path / "model.onnx.part").write_bytes(content)
    download(release, tmp_path / "model.onnx", client=client)
    assert (tmp_path / "model.onnx").read_bytes() == DATA


def test_a_part_of_another_file_costs_a_second_download(server, release, client, tmp_path):
    (tmp_path / "model.onnx.part").write_bytes(b"x" * 1000)
    download(release, tmp_path / "model.onnx", client=client)
    assert (tmp_path / "model.onnx").read_bytes() == DATA
    assert server.asked == ["bytes=1000-", None]


def test_other_bytes_than_the_catalogue_s_are_never_kept(server, release, client, tmp_path):
    server.data = DATA[:-1] + b"!"
    with pytest.raises(LabelloopError, match="checksum") as error:
        download(release, tmp_path / "model.onnx", client=client)
    assert error.value.fix
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [404, 503])
def test_a_refused_download_explains_the_manual_way(server, release, client, tmp_path, status):
    server.status = status
    with pytest.raises(DownloadFailed, match=str(status)) as error:
        download(release, tmp_path / "model.onnx", client=client)
    assert str(tmp_path / "model.onnx") in error.value.fix
    assert release.sha256 in error.value.fix
    assert len(server.asked) == (1 if status == 404 else downloads.ATTEMPTS)


@pytest.fixture
def catalogue(monkeypatch, release):
    entry = CatalogueEntry("a toy", "detector", "MIT", "http://example.org/licence", (release,), ("cat", "dog"))
    pair = CatalogueEntry("two toys", "segmenter", "MIT", "http://example.org/licence", (release, release))
    entries = {"toy": entry, "pair": pair}
    monkeypatch.setattr(pulling, "CATALOGUE", entries)


@pytest.mark.usefixtures("catalogue", "client")
def test_pull_prints_licence_usage_and_the_offline_way(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path))
    models_pull()
    assert capsys.readouterr().out.splitlines()[0].startswith("toy ")
    models_pull("toy")
    message = capsys.readouterr().out
    file = tmp_path / "models" / "toy" / "model.onnx"
    assert "Licence: MIT, http://example.org/licence" in message
    assert f"labelloop models add {file} --activate" in message
    assert file.with_name("model.onnx.names").read_text() == "cat\ndog\n"
    models_pull("pair", source=f"{server.url}/mirror/")
    assert "LABELLOOP_SMART_DECODER=" in capsys.readouterr().out
    file.unlink()
    server.stop()
    with pytest.raises(DownloadFailed) as error:
        models_pull("toy")
    assert str(file) in error.value.fix
    file.write_bytes(DATA)  # as the message says
    models_pull("toy")
    with pytest.raises(LabelloopError, match="nothing"):
        models_pull("nothing")


def test_every_entry_of_the_catalogue_is_whole():
    for name, entry in CATALOGUE.items():
        assert entry.licence, name
        assert entry.terms.startswith("https://"), name
        assert len(entry.files) == {"detector": 1, "segmenter": 2}[entry.kind], name
        assert len({release.name for release in entry.files}) == len(entry.files), name
        for release in entry.files:
            assert release.url.startswith("https://"), name
            assert len(bytes.fromhex(release.sha256)) == 32, name


def test_the_yolox_nano_checksum_matches_the_local_file(shared):
    file = shared / "models" / "yolox_nano.onnx"
    if not file.is_file():
        pytest.skip("yolox_nano.onnx is not on this machine")
    assert downloads.sha256_of(file) == CATALOGUE["yolox-nano"].files[0].sha256
