"""Archives are read by the standard library and by Info-ZIP, depend on their content alone, and may be large."""

import shutil
import subprocess
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters.dataset.zip_file import ZipWriter, read_files

NAMES = st.text("abé/文_-. ", min_size=1, max_size=30).filter(lambda name: not name.startswith("/"))


def write(path, files):
    archive = ZipWriter(path)
    for name, data in files.items():
        archive.add(name, data)
    archive.close()
    return path


@settings(max_examples=60, deadline=None)
@given(files=st.dictionaries(NAMES, st.binary(max_size=40).map(lambda data: data * 100) | st.binary(max_size=50)))
def test_zipfile_reads_what_was_written(files, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("zip") / "a.zip", files)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == files
    assert dict(read_files(path, len(files))) == files
    assert path.read_bytes() == write(path.with_name("b.zip"), files).read_bytes()


def test_unzip_reads_more_files_than_16_bits_count(tmp_path):
    path = write(tmp_path / "a.zip", {f"labels/{number}.txt": b"%d" % number for number in range(70_000)})
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) == 70_000
        assert archive.read("labels/69999.txt") == b"69999"
    if shutil.which("unzip") is None:
        pytest.skip("no unzip on this machine")
    done = subprocess.run(["unzip", "-tq", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_files_beyond_four_gigabytes_are_found(tmp_path):
    archive = ZipWriter(tmp_path / "a.zip")
    archive.add("first", b"1" * 2000)
    hole = (5 << 30) - archive._offset
    archive._file.seek(hole, 1)
    archive._offset += hole
    archive.add("last", b"2" * 3000)
    archive.close()
    with zipfile.ZipFile(tmp_path / "a.zip") as opened:
        assert opened.read("first") == b"1" * 2000
        assert opened.read("last") == b"2" * 3000


def test_archive_grows_on_the_disk_not_in_memory(tmp_path):
    import tracemalloc

    archive = ZipWriter(tmp_path / "a.zip")
    tracemalloc.start()
    for number in range(30_000):
        archive.add(f"labels/train/{number:08d}.txt", b"0 .5 .5 .1 .1\n")
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    archive.close()
    assert used < 200_000


def test_large_file_goes_by_way_of_the_disk(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"a line\n" * 400_000)
    archive = ZipWriter(tmp_path / "a.zip")
    archive.add_file("list.txt", tmp_path / "list.txt")
    archive.close()
    with zipfile.ZipFile(tmp_path / "a.zip") as opened:
        assert opened.read("list.txt") == b"a line\n" * 400_000
