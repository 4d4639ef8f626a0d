"""WebDataset shards, read by the webdataset library: each photo with its labels, the same bytes every time."""

import io
import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image

from exporters.dataset.pull import pull
from exporters.dataset.versions import read_version
from exporters.formats import webdataset as module
from labelloop.service.media import Media
from labelloop.service.store import open_store


@pytest.fixture
def pulled(run, build, photos, config, settings, tmp_path):
    """Five images, one of them empty, pulled with their photos; ``pulled(**options)`` is the folder."""

    def pulled(name="out", *, images=True):
        tasks = [
            build.task(n, build.annotation(*([build.box(10, 20, 30, n, "car")] * (n < 5))), image=photos(f"{n}.v2.jpg"))
            for n in range(1, 6)
        ]
        out = run(tasks, label_config=config("car", "dog"), formats=("webdataset",), to=f"set-{name}", fetch=True)
        store = open_store(f"file://{out.root}", settings)
        media = Media(settings, None)
        result = pull(store, read_version(store), to=tmp_path / name, media=media if images else None)
        media.close()
        assert not result.missing
        return tmp_path / name

    return pulled


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the library's own: it leaves its shards open
def test_the_library_reads_photos_with_their_labels(pulled, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAMPLES", 2)
    folder = pulled()
    shards = sorted(folder.glob("*.tar"))
    assert [path.name for path in shards] == [f"train-{n:06d}.tar" for n in range(3)]
    data = webdataset.WebDataset([str(path) for path in shards], shardshuffle=False).decode("rgb8")
    samples = list(data.to_tuple("__key__", "jpg", "json"))
    assert [key for key, *_ in samples] == [f"{n:012d}" for n in range(1, 6)]
    for number, (_, photo, label) in enumerate(samples, start=1):
        with Image.open(tmp_path / f"photos/{number}.v2.jpg") as original:
            np.testing.assert_array_equal(photo, np.asarray(original))
        assert label["file_name"] == f"{number}.v2.jpg"
        assert (label["height"], label["width"]) == photo.shape[:2]
        boxes = [annotation["bbox"] for annotation in label["annotations"]]
        assert boxes == ([[64, 72, 192, pytest.approx(3.6 * number)]] if number < 5 else [])
    assert (folder / "classes.txt").read_text() == "car\ndog\n"
    assert {path.name for path in folder.iterdir() if path.suffix == ".txt"} == {"classes.txt"}


def test_the_same_data_set_gives_the_same_bytes(pulled):
    first, second = ((pulled(name) / "train-000000.tar").read_bytes() for name in "ab")
    assert first == second
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        members = tar.getmembers()
    assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in members} == {
        (0, 0, 0, "", 0o644)
    }
    assert [member.name.partition(".")[2] for member in members] == ["jpg", "json"] * 5


def test_without_photos_the_shards_hold_the_labels(pulled):
    with tarfile.open(pulled(images=False) / "train-000000.tar") as tar:
        assert tar.getnames() == [f"{n:012d}.json" for n in range(1, 6)]
