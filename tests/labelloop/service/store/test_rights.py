"""Missing rights are named by the store and by its self-test, in the words of each provider."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from labelloop.service.settings import Settings
from labelloop.service.store import AccessDenied, StoreUnreachable, open_store
from labelloop.service.store.azure_account import AzureAccount


@pytest.fixture
def answering(monkeypatch):
    """Start a server that gives each method one answer, (status, body); the store's address is in the environment."""
    servers = []

    def start(**answers):
        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                self.rfile.read(int(self.headers["Content-Length"] or 0))
                status, body = answers[self.command.lower()]
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_DELETE = answer  # noqa: N815

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def google_error(status, message):
    return status, json.dumps(
        {"error": {"code": status, "message": message, "errors": [{"message": message}]}}
    ).encode()


def refused_by_google(right):
    return google_error(
        403,
        f"me@project.iam.gserviceaccount.com does not have {right} access to the Google Cloud Storage object."
        f" Permission '{right}' denied on resource (or it may not exist).",
    )


@pytest.mark.parametrize(
    ("method", "call", "right"),
    [
        ("post", lambda store: store.put("k", b"x"), "storage.objects.create"),
        ("post", lambda store: store.put("k", b"x"), "storage.objects.delete"),  # an overwrite needs it too
        ("get", lambda store: store.get("k"), "storage.objects.get"),
        ("get", lambda store: list(store.list()), "storage.objects.list"),
        ("delete", lambda store: store.delete("k"), "storage.objects.delete"),
    ],
    ids=["create", "overwrite", "read", "list", "delete"],
)
def test_google_names_the_missing_right(answering, monkeypatch, tmp_path, method, call, right):
    pytest.importorskip("google.cloud.storage", reason="run `pip install 'labelloop[gcs]'`")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", answering(**{method: refused_by_google(right)}))
    with pytest.raises(AccessDenied) as caught:
        call(open_store("gs://bucket/p", Settings(home=tmp_path)))
    assert caught.value.right == right
    assert "gs://bucket/p" in str(caught.value)
    assert "roles/storage.objectUser" in caught.value.fix


def test_google_credentials_are_asked_for_by_name(monkeypatch, tmp_path):
    pytest.importorskip("google.cloud.storage", reason="run `pip install 'labelloop[gcs]'`")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(StoreUnreachable, match="no credentials") as caught:
        open_store("gs://bucket", Settings(home=tmp_path)).get("k")
    assert "GOOGLE_APPLICATION_CREDENTIALS" in caught.value.fix


def test_azure_delete_right_is_named(tmp_path):
    pytest.importorskip("obstore", reason="run `pip install 'labelloop[azure]'`")
    from obstore.exceptions import GenericError

    from labelloop.service.store.azure import _store_error

    text = (  # of one object in a batch: obstore deletes in batches, which Azurite takes from an account key only
        "Generic MicrosoftAzure error: Bulk delete request failed for key k: This request is not authorized to perform"
        " this operation using this permission. (code: 403)\n\nDebug source: sig=secret"
    )
    error = _store_error("az://box", "k", "delete", GenericError(text))
    assert isinstance(error, AccessDenied)
    assert error.right == "blobs/delete (SAS: d)"
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    ("operation", "message", "right"),
    [
        ("PutObject", "Access Denied", "s3:PutObject"),
        ("HeadObject", "Forbidden", "s3:GetObject"),
        ("ListObjectsV2", "Access Denied", "s3:ListBucket"),
        (
            "DeleteObject",
            "User: arn:aws:iam::1:user/x is not authorized to perform: s3:DeleteObject on",
            "s3:DeleteObject",
        ),
    ],
)
def test_s3_right_is_that_of_the_operation(operation, message, right):
    from botocore.exceptions import ClientError

    from labelloop.service.store.s3_errors import to_store_error

    error = ClientError({"Error": {"Code": "AccessDenied", "Message": message}}, operation)
    assert to_store_error("s3://bucket", "k", error).right == right


def test_self_test_names_every_missing_right(tmp_path, monkeypatch):
    from labelloop.service.store import FolderStore, StoreError

    def refuse(right):
        def call(self, key="", **_):
            raise AccessDenied(self.url, key, right, fix="Grant it.")

        return call

    store = open_store(str(tmp_path), Settings(home=tmp_path))
    monkeypatch.setattr(FolderStore, "list", refuse("the right to list"))
    monkeypatch.setattr(FolderStore, "delete", refuse("the right to delete"))
    with pytest.raises(StoreError, match="the right to list and the right to delete") as caught:
        store.self_test()
    assert caught.value.fix == "Grant it."


ACCOUNT = {"AZURE_STORAGE_ACCOUNT_NAME": "acc"}
KEY = "c2VjcmV0"


@pytest.mark.parametrize(
    ("environment", "endpoint", "options"),
    [
        (ACCOUNT, "https://acc.blob.core.windows.net", {}),
        (
            {"AZURE_STORAGE_ACCOUNT": "acc", "AZURE_STORAGE_KEY": KEY},
            "https://acc.blob.core.windows.net",
            {"account_key": KEY},
        ),
        (
            {"AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:1/acc", "AZURE_STORAGE_SAS_TOKEN": "?sv=1&sig=x"},
            "http://127.0.0.1:1/acc",
            {"sas_key": "sv=1&sig=x"},
        ),
        (
            {
                **ACCOUNT,
                "AZURE_STORAGE_CONNECTION_STRING": f"AccountName=other;AccountKey={KEY};EndpointSuffix=core.example.cn",
            },
            "https://other.blob.core.example.cn",
            {"account_key": KEY},
        ),
        (
            {
                "AZURE_STORAGE_CONNECTION_STRING": "BlobEndpoint=https://acc.blob.core.windows.net/;SharedAccessSignature=sv=1&sig=a=="
            },
            "https://acc.blob.core.windows.net",
            {"sas_key": "sv=1&sig=a=="},
        ),
        (
            {"AZURE_STORAGE_CONNECTION_STRING": "UseDevelopmentStorage=true"},
            "http://127.0.0.1:10000/devstoreaccount1",
            None,
        ),
    ],
    ids=["name", "key", "endpoint and SAS", "connection string", "its SAS", "emulator"],
)
def test_azure_account_is_read_from_the_environment(environment, endpoint, options):
    account = AzureAccount.of(environment, "az://box")
    assert account.endpoint == endpoint
    found = account.client_options()
    assert options is None or {name: found[name] for name in ("account_key", "sas_key") if name in found} == options
    assert KEY not in repr(account)
    assert "sig" not in repr(account)


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, "no Azure storage account"),
        ({**ACCOUNT, "AZURE_STORAGE_KEY": "no base64!"}, "not base64"),
        ({**ACCOUNT, "AZURE_STORAGE_KEY": "no base64!\u00e9"}, "not base64"),
        ({**ACCOUNT, "AZURE_STORAGE_CONNECTION_STRING": "no base64!"}, "named in AZURE_STORAGE_CONNECTION_STRING"),
        ({"AZURE_STORAGE_ACCOUNT_NAME": "a/b@example.org"}, "no name of an Azure storage account"),
    ],
    ids=["nothing", "malformed key", "key beyond ASCII", "malformed connection string", "foreign host"],
)
def test_azure_account_that_cannot_be_used_is_explained(environment, says):
    with pytest.raises(StoreUnreachable, match=says) as caught:
        AzureAccount.of(environment, "az://box")
    assert "AZURE_STORAGE_CONNECTION_STRING" in caught.value.fix
    assert "no base64!" not in str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "module", "extra"), [("gs", "google.cloud.storage", "gcs"), ("az", "obstore", "azure")]
)
def test_missing_client_library_names_the_command(scheme, module, extra, monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(StoreUnreachable, match="not installed") as caught:
        open_store(f"{scheme}://bucket", Settings(home=tmp_path))
    assert f"pip install 'labelloop[{extra}]'" in caught.value.fix
