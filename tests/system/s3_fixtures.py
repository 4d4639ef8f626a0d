"""Fixture `s3_server`: a real S3 server, OpenStack Swift with s3api, started once a session from its own venv."""

import os
import secrets
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import boto3
import httpx
import pytest
from botocore.config import Config

from labelloop.service.settings import SecretStr, Settings
from labelloop.stack.ports import free_port

VENV = Path(__file__).parents[2] / ".labelloop" / "test" / "swift"
KEY, SECRET, REGION = "test:tester", "testing", "us-east-1"

SWIFT_CONF = """
[swift-hash]
swift_hash_path_prefix = test
swift_hash_path_suffix = test
[storage-policy:0]
name = one
default = yes
"""
COMMON = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}/disk
mount_check = false
fallocate_reserve = 0
log_level = WARNING
"""
STORAGE = """
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""
PROXY = """
[pipeline:main]
pipeline = catch_errors listing_formats bulk s3api tempauth copy slo dlo versioned_writes symlink proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_object_versioning = true
[filter:symlink]
use = egg:swift#symlink
"""


@dataclass(frozen=True)
class S3Server:
    """Where a real S3 server is and how to log in."""

    endpoint: str
    key: str = KEY
    secret: str = SECRET

    def settings(self, home: Path, **changes: object) -> Settings:
        """Of labelloop, with this server and without a Label Studio."""
        return Settings(
            home=home,
            s3_endpoint_url=self.endpoint,
            s3_access_key_id=self.key,
            s3_secret_access_key=SecretStr(self.secret),
            label_studio_api_key=SecretStr(""),
        ).replace(**changes)

    def environment(self) -> dict[str, str]:
        """Of a program that uses boto3."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": REGION,
        }

    def client(self):
        """boto3's, as anybody makes one."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            config=Config(s3={"addressing_style": "path"}),
        )

    def make_bucket(self) -> str:
        """The name of a fresh bucket."""
        name = f"bucket-{secrets.token_hex(6)}"
        self.client().create_bucket(Bucket=name)
        return name


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    if not (VENV / "bin" / "swift-proxy-server").exists():
        pytest.skip("no S3 server: run `sh tests/system/setup.sh` to install OpenStack Swift")
    folder = tmp_path_factory.mktemp("swift")
    if not takes_xattrs(folder):
        folder = VENV.parent / f"swift-data-{secrets.token_hex(4)}"
        folder.mkdir()
        if not takes_xattrs(folder):
            pytest.skip(
                f"no S3 server: neither the temporary folder nor {VENV.parent} keeps user xattrs, Swift needs them"
            )
    processes = []
    try:
        yield S3Server(f"http://127.0.0.1:{start(folder, processes)}")
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def start(folder: Path, processes: list[subprocess.Popen[bytes]]) -> int:
    (folder / "disk" / "d1").mkdir(parents=True)
    (folder / "swift.conf").write_text(SWIFT_CONF)
    ports = {kind: free_port() for kind in ("account", "container", "object", "proxy")}
    builder = VENV / "bin" / "swift-ring-builder"
    for kind, port in ports.items():
        common = COMMON.format(port=port, user=_user(), folder=folder)
        if kind == "proxy":
            (folder / "proxy.conf").write_text(common + PROXY)
        else:
            (folder / f"{kind}.conf").write_text(common + STORAGE.format(kind=kind))
            ring = str(folder / f"{kind}.builder")
            for step in (["create", "6", "1", "0"], ["add", f"r1z1-127.0.0.1:{port}/d1", "1"], ["rebalance"]):
                subprocess.run([builder, ring, *step], check=True, capture_output=True)
    for kind in ports:
        log = (folder / f"{kind}.log").open("wb")
        command = [VENV / "bin" / f"swift-{kind}-server", folder / f"{kind}.conf"]
        with log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
    for kind, port in ports.items():
        _wait(kind, port, folder)
    return ports["proxy"]


def _wait(kind: str, port: int, folder: Path) -> None:
    end = time.monotonic() + 90
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/", timeout=10)
        except httpx.TransportError:
            if time.monotonic() > end:
                log = (folder / f"{kind}.log").read_text()[-2000:]
                pytest.fail(f"Swift's {kind} server did not start:\n{log}")
            time.sleep(0.2)
        else:
            return


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def takes_xattrs(folder: Path) -> bool:
    try:
        os.setxattr(folder, "user.test", b"1")
    except OSError:
        return False
    return True
