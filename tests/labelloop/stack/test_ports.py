"""A taken port is said plainly: which, by whom, and the option that chooses another."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from labelloop.stack.errors import StackError
from labelloop.stack.label_studio import LabelStudioInstallation
from labelloop.stack.layout import StackLayout
from labelloop.stack.ports import port_owner, require_free


def listening(family, host):
    server = socket.socket(family)
    if family == socket.AF_INET6:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    server.bind((host, 0))
    server.listen()
    return server


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_listener_on_either_loopback_counts(family, host):
    try:
        server = listening(family, host)
    except OSError:
        pytest.skip("no IPv6 here")
    with server:
        port = server.getsockname()[1]
        with pytest.raises(StackError, match=rf"Port {port}, which the ML backend needs, .*--ml-port \d+"):
            require_free(port, "the ML backend", option="--ml-port")
    require_free(port, "the ML backend", option="--ml-port")


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="only Linux tells who listens")
def test_the_program_that_listens_is_named(free_port):
    port = free_port()
    with subprocess.Popen([sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"],
                          stderr=subprocess.PIPE, stdout=subprocess.PIPE) as server:  # fmt: skip
        while not port_owner(port):
            assert server.poll() is None
        assert f"http.server {port}" in port_owner(port)
        assert f"process {server.pid}" in port_owner(port)
        server.terminate()


def test_two_parts_cannot_share_a_port(tmp_path, free_port):
    first, second = free_port(), free_port()
    plan = StackLayout(tmp_path, first, second, first, LabelStudioInstallation(tmp_path))
    with pytest.raises(StackError, match="Label Studio and quality control cannot share"):
        plan.require_ports()


def test_ports_are_those_of_the_last_run_unless_given(tmp_path):
    assert (StackLayout.for_home(tmp_path).port, StackLayout.for_home(tmp_path).qc_port) == (8080, 9091)
    (tmp_path / "settings.env").write_text("LABELLOOP_LABEL_STUDIO_URL=http://localhost:8123\n")
    assert (StackLayout.for_home(tmp_path).port, StackLayout.for_home(tmp_path).ml_port) == (8123, 9090)
    assert StackLayout.for_home(tmp_path, port=8124).port == 8124
