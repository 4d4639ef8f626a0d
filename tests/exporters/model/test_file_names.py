"""File names and splits."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporters.errors import BadOption
from exporters.model.file_names import IMPORT_META, FileNames, public_url, safe_name, source_name
from exporters.model.splits import SplitPolicy


def names_of(urls):
    names = FileNames()
    return [names.assign(url, image_id=number).name for number, url in enumerate(urls, start=1)]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("s3://bucket/dir/a b.jpg", "a_b.jpg"),
        ("s3://bucket/what?.jpg", "what_.jpg"),
        ("https://host/x/photo.PNG?X-Amz-Signature=1#f", "photo.png"),
        ("https://host/x/caf%C3%A9.jpg", "café.jpg"),
        ("/data/upload/5/26bb72f8-img1.png", "img1.png"),
        ("https://studio/data/upload/5/26bb72f8-26bb72f8-1.png", "26bb72f8-1.png"),
        ("/data/upload/5/26bb72f8-", "26bb72f8-.jpg"),
        ("/data/upload/5/img-1.png", "img-1.png"),
        ("https://host/26bb72f8-img1.png", "26bb72f8-img1.png"),
        ("/data/local-files/?d=a/b/c.webp", "c.webp"),
        ("s3://bucket/dir/", "image.jpg"),
        ("data:image/png;base64,AAAA", "image.png"),
        ("s3://bucket/..", "image.jpg"),
        ("s3://bucket/.hidden.jpg", "hidden.jpg"),
        ("s3://bucket/con.jpg", "_con.jpg"),
        ("s3://bucket/noext", "noext.jpg"),
        ("s3://bucket/archive.tar", "archive.tar.jpg"),
        ("s3://bucket/a\\..\\b.jpg", "a_.._b.jpg"),
        ("https://[broken", "_broken.jpg"),
    ],
)
def test_name_stays_near_the_source_and_is_safe(url, name):
    # W33
    assert names_of([url]) == [name]


def test_same_name_in_two_folders_stays_two_files(run, build):
    # W10: labels of one image were overwritten in silence
    tasks = [
        build.task(1, build.annotation(build.box(10, 10, 10, 10)), image="s3://bucket/a/1.jpg"),
        build.task(2, build.annotation(build.box(50, 50, 10, 10)), image="s3://bucket/b/1.jpg"),
    ]
    out = run(tasks)
    first, second = (image["file_name"] for image in out.catalogue)
    assert first == "1.jpg"
    assert second != first
    assert out.yolo(second[:-4])[0][1] == pytest.approx(0.55)
    assert out.voc_boxes(second[:-4]) == [("car", 321, 181, 384, 216)]
    assert {image["file_name"]: (image["url"], image["task"]) for image in out.catalogue} == {
        first: ("s3://bucket/a/1.jpg", 1),
        second: ("s3://bucket/b/1.jpg", 2),
    }


def test_image_in_two_tasks_is_two_images_of_one_split(run, build):
    # W11: the last task won
    tasks = [build.task(n, build.annotation(build.box(n, 10, 10, 10)), image="s3://b/x.jpg") for n in (1, 2, 3)]
    out = run(tasks, split="train=.5,val=.5")
    assert len({image["file_name"] for image in out.catalogue}) == 3
    assert len({image["split"] for image in out.catalogue}) == 1
    assert out.report.accounts.notes["images that another task has too"] == 2


@pytest.mark.parametrize(
    "urls",
    [
        ("s3://b/Photo.jpg", "s3://b/photo.JPG"),  # one file on macOS and Windows
        ("s3://b/x/a.jpg", "s3://b/y/a.png"),  # one label file
        (f"s3://b/{unicodedata.normalize('NFC', 'é')}.jpg", f"s3://b/{unicodedata.normalize('NFD', 'é')}.jpg"),
        ("s3://b/straße.jpg", "s3://b/STRASSE.jpg"),
        ("s3://b/a b.jpg", "s3://b/a_b.jpg", "s3://b/a:b.jpg"),
    ],
)
def test_names_that_some_system_takes_for_one_are_kept_apart(urls):
    # W10
    stems = {unicodedata.normalize("NFKC", name.rpartition(".")[0].casefold()) for name in names_of(urls)}
    assert len(stems) == len(urls)


def test_long_name_fits_in_bytes(run, build):
    # W30: 84 Chinese characters ended the export with "File name too long"
    url = "s3://bucket/" + "漢" * 300
    (name,) = names_of([url + ".jpg"])
    assert len(name.encode()) < 140
    assert names_of([url + "1.jpg"]) != [name]
    out = run([build.task(1, build.annotation(build.box(1, 1, 5, 5)), image=url + ".jpg")])
    assert len(out.voc_boxes(name[:-4])) == 1


PLACES = ["s3://b", "gs://b/", "s3://", "S3://b/", "http://h", "https://h:1/", "http://h/data/upload/1/", "data:", "/"]
PLACES += ["/data/upload/1/", "/data/local-files/?d=", ""]


@given(
    st.sampled_from(PLACES),
    st.text(alphabet="abz09AZ_.~-/%?#@ +é\n:;=&", max_size=12),
    st.sampled_from(["", "/", "/data/upload/", "26bb72f8-"]),
    st.sampled_from(["a.jpg", "26bb72f8-a.png", "26bb72f8-.jpg", "CON.jpg", "con.x.jpg", "-.bmp", "..jpg", "a.JPG"]),
)
def test_usual_address_is_named_like_any_other(base, path, before, name):
    url = base + path + before + name
    assert names_of([url]) == ["".join(safe_name(source_name(url)))]
    assert FileNames().assign(url, image_id=1).public_url == public_url(url)


@given(st.lists(st.text(min_size=1, max_size=40), max_size=20))
def test_any_names_are_safe_unique_and_the_same_again(texts):
    urls = [f"s3://bucket/{text}" for text in texts]
    names = names_of(urls)
    assert names == names_of(urls)
    assert len({unicodedata.normalize("NFKC", name.casefold()) for name in names}) == len(names)
    for name in names:
        assert name.strip() == name
        assert not set(name) & set('/\\:*?"<>| \0\n')
        assert not name.startswith(".")
        assert len(name.encode()) < 200
        name.encode("utf-8")


def test_source_name_that_imitates_a_suffix_stays_unique():
    url = "s3://bucket/b/1.jpg"
    used = names_of(["s3://bucket/a/1.jpg", url])[1]
    assert len(set(names_of([f"s3://x/{used}", "s3://bucket/a/1.jpg", url, url]))) == 4


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("https://b.s3.amazonaws.com/k.jpg?X-Amz-Signature=s&X-Amz-Date=d", "https://b.s3.amazonaws.com/k.jpg"),
        ("https://acc.blob.core.windows.net/c/k.jpg?sv=1&sig=abc", "https://acc.blob.core.windows.net/c/k.jpg"),
        ("https://user:password@host/k.jpg?page=2", "https://host/k.jpg?page=2"),
        ("s3://bucket/a?b#c.jpg", "s3://bucket/a?b#c.jpg"),
    ],
)
def test_signatures_and_passwords_are_not_written_down(run, build, url, public):
    assert public_url(url) == public
    out = run([build.task(1, build.annotation(build.box(1, 1, 5, 5)), image=url)])
    assert out.instances()["images"][0]["coco_url"] == public
    everything = b"".join(out.files().values())
    assert b"Signature" not in everything
    assert b"password@" not in everything


def test_data_uri_is_named_by_its_bytes():
    assert public_url("data:image/png;base64,AAAA") != public_url("data:image/png;base64,AAAB")
    assert "AAAA" not in public_url("data:image/png;base64,AAAA")


def test_image_never_moves_between_splits_as_the_project_grows(run, build):
    few = run([build.task(n, build.annotation(build.box(1, 1, 5, 5))) for n in range(1, 20)], split="train=.6,val=.4")
    many = run(
        [build.task(n, build.annotation(build.box(1, 1, 5, 5))) for n in range(80, 0, -1)], split="train=.6,val=.4"
    )
    later = {image["task"]: image["split"] for image in many.catalogue}
    assert {image["task"]: image["split"] for image in few.catalogue}.items() <= later.items()


def test_shares_of_the_splits_are_kept():
    split = SplitPolicy.parse("train=.8,val=.1,test=.1")
    placed = [split.assign(f"s3://bucket/{number}.jpg") for number in range(20_000)]
    assert placed.count("train") / 20_000 == pytest.approx(0.8, abs=0.01)
    assert placed.count("val") / 20_000 == pytest.approx(0.1, abs=0.01)


def test_signing_an_address_anew_does_not_move_the_image():
    split = SplitPolicy.parse("train=.5,val=.5")
    for number in range(50):
        signed = [f"https://h/{number}.jpg?X-Amz-Signature={key}" for key in "abc"]
        assert len({split.assign(url) for url in signed}) == 1


@pytest.mark.parametrize("text", ["", "train", "train=x", "train=-1,val=2", "holdout=1", "train=0", "train=nan"])
def test_split_that_is_none_is_refused(text):
    with pytest.raises(BadOption, match="--split"):
        SplitPolicy.parse(text)


def test_extension_of_a_data_uri_and_a_query():
    assert source_name("data:image/jpeg;base64,AA") == "image.jpg"
    assert safe_name("A.JPEG") == ("A", ".jpeg")


@pytest.mark.parametrize("annotations", [1, 2])  # as usual, and not
def test_imported_photo_gets_back_the_name_that_label_studio_changed(run, build, annotations):
    """What stock Label Studio 1.23.2 makes of these names when they are uploaded."""
    uploads = {
        "IMG 1.JPG": "312d906a-IMG_1.JPG",
        "sub/a+b@c.jpg": "27d0c66d-abc.jpg",
        f"{'x' * 110}.jpg": f"b4c393df-{'x' * 70}_PHScY3O.jpg",
        "deadbeef-real.jpg": "5dac3343-deadbeef-real.jpg",
    }
    drawn = [build.annotation(build.box(1, 1, 5, 5), number=n) for n in range(1, annotations + 1)]
    tasks = [
        build.task(n, *drawn, image=f"/data/upload/6/{stored}") | {"meta": {IMPORT_META: {"id": "q", "name": name}}}
        for n, (name, stored) in enumerate(uploads.items(), start=1)
    ]
    names = ["IMG_1.jpg", "a_b_c.jpg", f"{'x' * 110}.jpg", "deadbeef-real.jpg"]
    assert [image["file_name"] for image in run(tasks).catalogue] == names
    assert [image["file_name"] for image in run(tasks[::-1]).catalogue] == names[::-1]


@pytest.mark.parametrize(
    "meta", [None, {}, [], "x", {IMPORT_META: 5}, {IMPORT_META: {"name": 7}}, {IMPORT_META: {"name": "sub/"}}]
)
def test_meta_that_tells_no_name_changes_none(run, build, meta):
    task = build.task(1, build.annotation(build.box(1, 1, 5, 5)), image="/data/upload/6/312d906a-a.jpg")
    assert [image["file_name"] for image in run([task | {"meta": meta}]).catalogue] == ["a.jpg"]


def test_name_of_an_import_counts_for_uploads_alone(run, build):
    task = build.task(1, build.annotation(build.box(1, 1, 5, 5)), image="s3://photos/a.jpg")
    out = run([task | {"meta": {IMPORT_META: {"name": "b.jpg"}}}])
    assert [image["file_name"] for image in out.catalogue] == ["a.jpg"]
