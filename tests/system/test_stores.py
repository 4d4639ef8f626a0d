"""One suite for every kind of store: a folder, S3 (OpenStack Swift), Google (fake-gcs-server) and Azure (Azurite)."""

import hashlib
import json
import os
import threading
import time

import httpx
import pytest

from labelloop.service.settings import SecretStr, Settings
from labelloop.service.store import (
    AccessDenied,
    Leftovers,
    ObjectChanged,
    ObjectExists,
    ObjectNotFound,
    StoreError,
    StoreUnreachable,
    open_store,
)
from labelloop.service.store.s3_client import s3_client

pytestmark = pytest.mark.system


CLOUDS = {"gs": "gcs_server", "az": "azure_server"}


def cloud_bucket(scheme, request, monkeypatch):
    """The address of a fresh bucket of an emulator, whose environment is set."""
    server = request.getfixturevalue(CLOUDS[scheme])
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return f"{scheme}://{server.make_bucket()}"


@pytest.fixture(params=["file", "s3", *CLOUDS])
def store(request, tmp_path, monkeypatch):
    if request.param == "file":
        return open_store((tmp_path / "a store").as_uri(), Settings(home=tmp_path))
    if request.param == "s3":
        server = request.getfixturevalue("s3_server")
        return open_store(f"s3://{server.make_bucket()}/some prefix", server.settings(tmp_path))
    return open_store(f"{cloud_bucket(request.param, request, monkeypatch)}/some prefix", Settings(home=tmp_path))


@pytest.fixture(params=list(CLOUDS))
def cloud(request, monkeypatch):
    """The address of a bucket of Google or Azure."""
    return cloud_bucket(request.param, request, monkeypatch)


def test_what_is_put_is_read_back_and_replaced(store):
    first = store.put("models/a b ü.json", b'{"a": 1}', content_type="application/json")
    assert store.read("models/a b ü.json") == (b'{"a": 1}', first)
    second = store.put("models/a b ü.json", b"")
    assert second != first
    assert store.get("models/a b ü.json") == b""
    assert store.exists("models/a b ü.json")


def test_the_start_of_an_object_is_read(store):
    store.put("long", b"12345" * 100_000)
    store.put("empty", b"")
    assert [store.start("long", size) for size in (0, 3, 9)] == [b"", b"123", b"123451234"]
    assert [store.start(key, 1 << 20) for key in ("long", "empty")] == [b"12345" * 100_000, b""]
    with pytest.raises(ObjectNotFound, match="no/such"):
        store.start("no/such", 3)


def test_what_is_not_there_says_so(store):
    assert not store.exists("no/such")
    with pytest.raises(ObjectNotFound, match="no/such"):
        store.get("no/such")
    with pytest.raises(ObjectNotFound):
        store.read("no/such")
    store.delete("no/such")
    assert list(store.list()) == []


def test_create_refuses_a_taken_key_and_keeps_its_bytes(store):
    store.create("once", b"first")
    with pytest.raises(ObjectExists, match="once"):
        store.create("once", b"second")
    assert store.get("once") == b"first"
    store.delete("once")
    store.create("once", b"third")
    assert store.get("once") == b"third"


def test_of_many_creators_exactly_one_succeeds(store):
    for turn in range(3):  # Swift alone lets two through in about every second turn
        key = f"race/{turn}"
        won, lost = _all_at_once(8, lambda n, key=key: store.create(key, b"%d" % n), ObjectExists)
        assert (len(won), len(lost)) == (1, 7)
        assert store.get(key) == b"%d" % won[0]


def test_swap_takes_the_etag_that_was_read(store):
    with pytest.raises(ObjectChanged):
        store.swap("state", b"x", etag="never seen")
    old = store.swap("state", b"one", etag=None)
    with pytest.raises(ObjectChanged):
        store.swap("state", b"again", etag=None)
    data, etag = store.read("state")
    assert (data, etag) == (b"one", old)
    new = store.swap("state", b"two", etag=etag)
    with pytest.raises(ObjectChanged):
        store.swap("state", b"late", etag=old)
    assert store.read("state") == (b"two", new)
    store.delete("state")
    with pytest.raises(ObjectChanged):
        store.swap("state", b"gone", etag=new)


def test_concurrent_swaps_lose_no_increment(store):
    store.put("counter", b"0")

    def add_one(_):
        while True:
            data, etag = store.read("counter")
            try:
                return store.swap("counter", b"%d" % (int(data) + 1), etag=etag)
            except ObjectChanged:
                continue

    _all_at_once(5, add_one, ())
    assert store.get("counter") == b"5"


def test_list_gives_every_key_of_a_prefix_in_order_and_nothing_of_the_stores_own(store):
    keys = ["a-b/1", "a/1", "a/2/x", "ab", "b", "a.txt"]
    for key in keys:
        store.put(key, b".")
    store.swap("ab", b"..", etag=store.read("ab")[1])  # leaves locks where the server needs them
    assert list(store.list()) == sorted(keys)
    assert list(store.list("a/")) == ["a/1", "a/2/x"]
    assert list(store.list("a")) == ["a-b/1", "a.txt", "a/1", "a/2/x", "ab"]
    assert list(store.list("zz/")) == []


def test_put_many_writes_all_and_tells_its_progress(store):
    items = [(f"labels/{n:04}.txt", b"%d" % n) for n in range(120)]
    seen = []
    assert store.put_many(iter(items), progress=lambda done, size: seen.append((done, size))) == 120
    assert seen[-1] == (120, sum(len(data) for _, data in items))
    assert [done for done, _ in seen] == list(range(1, 121))
    assert list(store.list("labels/")) == [key for key, _ in items]
    assert store.get("labels/0119.txt") == b"119"


def test_put_many_stops_at_the_first_error_and_raises_it(store):
    def items():
        for n in range(1000):
            yield (f"ok/{n}" if n != 20 else "../out"), b"x"

    with pytest.raises(StoreError, match="the key is invalid"):
        store.put_many(items())
    assert len(list(store.list())) < 200


def test_a_large_file_goes_up_in_parts(store, tmp_path):
    file = tmp_path / "large.bin"
    with file.open("wb") as out:
        for _ in range(40):
            out.write(os.urandom(1 << 20))
    store.put("large.bin", file)
    with file.open("rb") as expected:
        digest = hashlib.file_digest(expected, "sha256").digest()
    assert hashlib.sha256(store.get("large.bin")).digest() == digest
    store.download("large.bin", tmp_path / "again")
    with (tmp_path / "again").open("rb") as again:
        assert hashlib.file_digest(again, "sha256").digest() == digest
    assert not (tmp_path / "again.part").exists()


def test_self_test_says_what_the_store_does_and_leaves_nothing(store):
    found = store.self_test()
    assert found.writable
    assert found.create_only
    if not store.url.startswith("s3:"):
        assert found.compare_and_swap
        assert found.detail == ""
        assert store.write_settle_s == 0
    else:  # Swift answers 501 to If-Match
        assert not found.compare_and_swap
        assert "If-Match" in found.detail
        assert "lock object" in found.detail
    assert list(store.list()) == []


def test_listing_tells_size_and_time_page_by_page(store):
    count = 121 if store.url.startswith("s3:") else 1001  # Swift takes half a minute for a second page
    store.put_many((f"many/{n:04}", b"x" * (n % 3)) for n in range(count))
    began = time.time()
    entries = list(store.entries("many/"))
    assert [entry.key for entry in entries] == [f"many/{n:04}" for n in range(count)]
    assert [entry.size for entry in entries] == [n % 3 for n in range(count)]
    assert all(abs(entry.modified - began) < 60 for entry in entries)
    assert len({entry.tag for entry in entries}) > 1


def test_copies_are_made_by_the_store_of_what_was_there(store):
    store.put("images/a b ü.jpg", b"one")
    store.copy("images/a b ü.jpg", "latest/a.jpg")
    store.put("images/a b ü.jpg", b"two")
    assert (store.get("latest/a.jpg"), store.get("images/a b ü.jpg")) == (b"one", b"two")
    with pytest.raises(StoreError):
        store.copy("images/none", "latest/none")
    if store.url.startswith("file:"):
        return
    seen = []
    copied = store.copy_from(f"{store.url}/images/a b ü.jpg", lambda source: seen.append(source) or "copies/b")
    assert (copied.key, copied.size, seen[0].size) == ("copies/b", 3, 3)
    assert store.get("copies/b") == b"two"
    assert store.copy_from(f"{store.url}/images/none", lambda source: "copies/c") is None
    assert store.copy_from(f"{store.url}/images/a b ü.jpg", lambda source: "") is None


def test_a_lock_has_one_holder_and_is_free_afterwards(store):
    with store.lock("latest", wait_s=20) as is_held:
        assert is_held()
        with pytest.raises(StoreError, match="lock"), store.lock("latest", wait_s=0.1):
            pass
        with store.lock("another", wait_s=20) as other_is_held:
            assert other_is_held()
    with store.lock("latest", wait_s=20) as is_held:
        assert is_held()
    assert list(store.list()) == []


def test_the_lock_of_a_killed_holder_is_taken_over_once(cloud, monkeypatch):
    from labelloop.service.store import etag_lock, open_bucket

    bucket = open_bucket(cloud)
    dead = etag_lock.EtagLock(bucket, "p/", cloud, "latest")
    assert dead.try_acquire()
    monkeypatch.setattr(etag_lock, "LEASE_S", 0.3)
    waiting = [etag_lock.EtagLock(bucket, "p/", cloud, "latest") for _ in range(4)]
    assert [lock.try_acquire() for lock in waiting] == [False] * 4
    time.sleep(0.4)
    taken = []
    _all_at_once(4, lambda n: taken.append(waiting[n].try_acquire()), ())
    assert sorted(taken) == [False, False, False, True]
    assert not dead.is_held()


def test_signed_links_are_read_without_a_key(store, tmp_path, monkeypatch):
    from labelloop.service.store.signing import signer

    if store.url.startswith("file:"):
        pytest.skip("a folder has no links")
    settings = store._settings if store.url.startswith("s3:") else Settings(home=tmp_path)
    if store.url.startswith("gs:"):
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(service_account(tmp_path)))
    store.put("images/a b ü#1.jpg", b"image")
    link = signer(settings, 1)(f"{store.url}/images/a b ü#1.jpg")
    answer = httpx.get(link)
    assert (answer.status_code, answer.content) == (200, b"image")
    if not store.url.startswith("gs:"):  # fake-gcs-server does not check signatures
        assert httpx.get(link.replace("%20b%20", "%20b")).status_code in {401, 403}


def service_account(folder):
    """The JSON file of a service account that nobody has."""
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = rsa.generate_private_key(65537, 2048)
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    file = folder / "service.json"
    account = {
        "type": "service_account",
        "client_email": "a@b.c",
        "token_uri": "http://127.0.0.1:9",
        "private_key": text,
    }
    file.write_text(json.dumps(account))
    return file


def test_missing_bucket_of_a_cloud_is_named(cloud, tmp_path):
    store = open_store(f"{cloud}-none", Settings(home=tmp_path))
    for call in (lambda: store.put("k", b"x"), lambda: store.create("k", b"x"), lambda: list(store.list())):
        with pytest.raises(StoreUnreachable, match="does not exist") as caught:
            call()
        assert "Create the" in caught.value.fix
        assert f"{cloud}-none" in str(caught.value)


@pytest.mark.parametrize(
    ("rights", "call", "right"),
    [
        ("wcdl", lambda store: store.get("k"), "blobs/read (SAS: r)"),
        ("rdl", lambda store: store.put("k", b"x"), "blobs/write (SAS: c and w)"),
        ("rdl", lambda store: store.create("n", b"x"), "blobs/write (SAS: c and w)"),
        ("rwcd", lambda store: list(store.list()), "blobs/read on the container (SAS: l)"),
    ],
    ids=["read", "write", "create", "list"],
)
def test_a_right_that_an_azure_signature_lacks_is_named(azure_server, tmp_path, monkeypatch, rights, call, right):
    bucket = azure_server.make_bucket()
    for environment, act in (
        (azure_server.environment(), lambda store: store.put("k", b"x")),
        (azure_server.with_sas(rights), call),
    ):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        store = open_store(f"az://{bucket}", Settings(home=tmp_path))
        if act is not call:
            act(store)
    with pytest.raises(AccessDenied) as caught:
        call(store)
    assert right in str(caught.value)
    assert "sig=" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says", "fix"),
    [
        (
            {"s3_secret_access_key": SecretStr("not-the-secret")},
            "the secret does not match the access key",
            "S3_SECRET_ACCESS_KEY",
        ),
        ({"s3_access_key_id": "nobody:here"}, "access key", "LABELLOOP_S3_ACCESS_KEY_ID"),
        ({"s3_endpoint_url": "http://127.0.0.1:9"}, "does not answer", "LABELLOOP_S3_ENDPOINT_URL"),
    ],
    ids=["wrong secret", "wrong key", "no server"],
)
def test_s3_errors_name_the_place_and_the_fix_and_no_secret(s3_server, tmp_path, changes, says, fix):
    bucket = s3_server.make_bucket()
    store = open_store(f"s3://{bucket}/p", s3_server.settings(tmp_path, **changes))
    for call in (
        lambda: store.put("k", b"x"),
        lambda: store.get("k"),
        lambda: store.create("k", b"x"),
        lambda: list(store.list()),
        store.self_test,
    ):
        with pytest.raises(StoreUnreachable) as caught:
            call()
        assert f"s3://{bucket}/p" in str(caught.value)
        assert says in str(caught.value)
        assert fix in caught.value.fix
        assert "not-the-secret" not in str(caught.value)


def test_a_missing_bucket_is_named(s3_server, tmp_path):
    store = open_store("s3://no-such-bucket-here", s3_server.settings(tmp_path))
    with pytest.raises(StoreUnreachable, match="bucket does not exist") as caught:
        store.put("k", b"x")
    assert "Create the bucket" in caught.value.fix


def test_boto3_reads_what_the_store_wrote_with_its_type(s3_server, tmp_path):
    bucket = s3_server.make_bucket()
    store = open_store(f"s3://{bucket}/exports/v1", s3_server.settings(tmp_path))
    etag = store.put("coco.json", b"{}")
    client = s3_server.client()
    answer = client.get_object(Bucket=bucket, Key="exports/v1/coco.json")
    assert answer["Body"].read() == b"{}"
    assert answer["ContentType"] == "application/json"
    assert answer["ETag"] == etag


def test_a_lock_left_by_a_killed_writer_is_taken_over(s3_server, tmp_path, monkeypatch):
    from labelloop.service.store import s3_lease

    store = open_store(f"s3://{s3_server.make_bucket()}", s3_server.settings(tmp_path))
    etag = store.put("state", b"one")
    dead = store.lease("state")
    assert dead.try_acquire()
    monkeypatch.setattr(s3_lease, "WAIT_S", 1.0)
    with pytest.raises(StoreError, match="other writers have held its lock"):
        store.swap("state", b"two", etag=etag)
    monkeypatch.setattr(s3_lease, "LEASE_S", 1.0)
    monkeypatch.setattr(s3_lease, "WAIT_S", 20.0)
    store.swap("state", b"two", etag=etag)
    assert store.get("state") == b"two"
    assert not dead.is_held()


def _all_at_once(count, call, expected):
    """Runs call(n) in threads that start together: ([n of those that returned], [n of those that raised expected])."""
    barrier, won, lost, broken = threading.Barrier(count), [], [], []

    def run(n):
        barrier.wait()
        try:
            call(n)
            won.append(n)
        except expected:
            lost.append(n)
        except Exception as error:  # noqa: BLE001 - shown by the assertion below
            broken.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not broken
    return won, lost


def test_unfinished_uploads_are_found_and_aborted(s3_server, tmp_path):
    settings, bucket = s3_server.settings(tmp_path), s3_server.make_bucket()
    store, client = open_store(f"s3://{bucket}/set", settings), s3_client(settings)
    for key in ("set/a", "set/b", "elsewhere/c"):
        upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"x" * 1000)
    assert store.leftovers(before=time.time() - 3600) == Leftovers(0, 0)
    soon = time.time() + 3600
    assert store.leftovers(before=soon) == Leftovers(2, 2000)
    assert store.leftovers(before=soon, remove=True) == Leftovers(2, 2000)
    assert store.leftovers(before=soon) == Leftovers(0, 0)
    assert len(client.list_multipart_uploads(Bucket=bucket)["Uploads"]) == 1
