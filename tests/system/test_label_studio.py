"""Stock Label Studio as we install and start it: people, tokens, and the addresses it may call."""

import httpx
import pytest

from labelloop.stack.accounts import Account, log_in, personal_access_token, sign_up
from labelloop.stack.errors import StackError
from labelloop.stack.label_studio_server import label_studio_service
from labelloop.stack.ports import require_free

pytestmark = pytest.mark.system


def bearer(url, personal_token):
    answer = httpx.post(f"{url}/api/token/refresh/", json={"refresh": personal_token})
    return {"Authorization": f"Bearer {answer.raise_for_status().json()['access']}"}


def test_people_share_one_organization_and_each_have_a_personal_token(label_studio):
    one, other = label_studio.user("one@example.com"), label_studio.user("other@example.com")
    assert one[1] != other[1]
    people = httpx.get(f"{label_studio.url}/api/users/", headers=bearer(label_studio.url, one[0])).json()
    assert {"admin@example.com", "one@example.com", "other@example.com"} <= {person["email"] for person in people}


def test_admin_and_legacy_tokens_open_the_api(label_studio):
    legacy = {"Authorization": f"Token {label_studio.legacy_token}"}
    for headers in (legacy, bearer(label_studio.url, label_studio.admin_token)):
        answer = httpx.get(f"{label_studio.url}/api/current-user/whoami", headers=headers)
        assert answer.json()["email"] == label_studio.admin.email


def test_a_second_personal_token_is_refused_with_the_way_out(label_studio):
    with (
        log_in(label_studio.url, label_studio.admin) as session,
        pytest.raises(StackError, match=r"already have a valid token.*Revoke"),
    ):
        personal_access_token(session)


@pytest.mark.parametrize(
    ("enter", "account", "said"),
    [
        (sign_up, Account("admin@example.com", "long enough"), "already exists"),
        (sign_up, Account("new@example.com", "short"), "8.128 characters"),
        (log_in, Account("admin@example.com", "not the password"), "don't match"),
    ],
    ids=["taken", "short password", "wrong password"],
)
def test_refusals_repeat_what_the_form_said(label_studio, enter, account, said):
    with pytest.raises(StackError, match=said), enter(label_studio.url, account):
        pass


def test_loopback_is_open_for_our_services_and_the_metadata_address_is_closed(label_studio):
    headers = bearer(label_studio.url, label_studio.admin_token)
    with httpx.Client(base_url=label_studio.url, headers=headers) as client:
        project = client.post("/api/projects/", json={"title": "addresses"}).json()["id"]
        for host, status in (("http://localhost:1/hook", 201), ("http://169.254.169.254/latest", 403)):
            assert client.post("/api/webhooks/", json={"url": host, "project": project}).status_code == status
        client.delete(f"/api/projects/{project}/")


def test_a_taken_port_is_refused_instead_of_moving_to_the_next(label_studio, label_studio_installation, tmp_path):
    port = int(label_studio.url.rpartition(":")[2])
    with pytest.raises(StackError, match=f"Port {port}.*label_studio.*--port"):
        require_free(port, "Label Studio", option="--port")
    with pytest.raises(StackError):
        label_studio_service(
            label_studio_installation, data=tmp_path / "data", port=port, log=tmp_path / "log", admin=label_studio.admin
        )
    assert not (tmp_path / "data").exists()
