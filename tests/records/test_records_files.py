"""Official files: found where torchvision or we put them, held against their checksums, never silently replaced."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from memberscope.errors import DataError
from memberscope.records import files
from memberscope.records.files import Request, checksum, data_folder, locate, obtain, verify
from memberscope.records.sources import CIFAR100_CLASSES, OFFICIAL, FileSet, OfficialFile


def md5(content):
    return "md5:" + hashlib.md5(content).hexdigest()


A, B = OfficialFile("a", md5(b"AAAA")), OfficialFile("b", md5(b"BBBB"))
PACKED = OfficialFile("all.tar.gz", md5(b"PACKED"), 6, ("http://127.0.0.1:9/all.tar.gz",))
SETS = (FileSet("below", (A, B)), FileSet("", (A, B)), FileSet("", (PACKED,)))


def request(data_dir, download=False):
    return Request(None, data_dir, unverified=False, progress=False, download=download)


def put(folder, **contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name.replace("__", ".")).write_bytes(content)


def test_the_data_folder_is_the_option_then_the_variable_then_data(monkeypatch, tmp_path):
    monkeypatch.setenv("MEMBERSCOPE_DATA_DIR", str(tmp_path))
    assert data_folder("elsewhere") == Path("elsewhere")
    assert data_folder(None) == tmp_path
    monkeypatch.setenv("MEMBERSCOPE_DATA_DIR", "")
    assert data_folder(None) == Path("data")
    assert data_folder("~/x") == Path.home() / "x"
    put(tmp_path, file=b"")
    with pytest.raises(DataError, match=r"the data folder .*file is a file, expected a folder"):
        data_folder(tmp_path / "file")


def test_files_are_found_in_their_folder_in_the_data_folder_itself_or_packed(tmp_path):
    assert locate(SETS, tmp_path) is None
    put(tmp_path, all__tar__gz=b"PACKED")
    assert locate(SETS, tmp_path).paths == (tmp_path / "all.tar.gz",)
    put(tmp_path, a=b"AAAA", b=b"BBBB")
    assert locate(SETS, tmp_path).paths == (tmp_path / "a", tmp_path / "b")
    put(tmp_path / "below", a=b"AAAA")
    assert locate(SETS, tmp_path).folder == ""
    put(tmp_path / "below", b=b"BBBB")
    assert locate(SETS, tmp_path).folder == "below"


def test_folders_with_the_names_of_files_are_no_files(tmp_path):
    (tmp_path / "a").mkdir()
    put(tmp_path, b=b"BBBB")
    assert locate(SETS, tmp_path) is None


def test_missing_files_are_named_with_where_to_put_them(tmp_path):
    with pytest.raises(DataError) as caught:
        obtain("toy", SETS, request(tmp_path))
    assert caught.value.problem == (
        f"toy is not in {tmp_path}: expected below/a or a or all.tar.gz, found none of them"
    )  # fmt: skip
    assert f"put http://127.0.0.1:9/all.tar.gz into {tmp_path} ({PACKED.checksum})" in caught.value.hint
    put(tmp_path / "below", a=b"AAAA")
    with pytest.raises(DataError) as caught:
        obtain("toy", SETS, request(tmp_path))
    assert caught.value.problem == f"toy is incomplete in {tmp_path / 'below'}: b missing"


def test_only_missing_files_are_downloaded(tmp_path, monkeypatch):
    fetched = []

    def fetch(file, folder, *, progress):
        fetched.append(file.name)
        put(folder, **{file.name: b"BBBB"})

    monkeypatch.setattr("memberscope.records.download.fetch", fetch)
    sets = (FileSet("raw", (OfficialFile("a", A.checksum, 4, ("u",)), OfficialFile("b", B.checksum, 4, ("u",)))),)
    put(tmp_path / "raw", a=b"AAAA")
    located = obtain("toy", sets, request(tmp_path, download=True))
    assert fetched == ["b"]
    assert verify("toy", located, unverified=False) is None


def test_files_with_their_checksums_are_verified(tmp_path):
    put(tmp_path, a=b"AAAA", b=b"BBBB")
    assert verify("toy", locate(SETS, tmp_path), unverified=False) is None
    assert verify("toy", locate(SETS, tmp_path), unverified=True) is None


def test_another_checksum_is_refused_with_both_and_the_way_out(tmp_path):
    put(tmp_path, a=b"AAAA", b=b"BBBX")
    located = locate(SETS, tmp_path)
    with pytest.raises(DataError) as caught:
        verify("toy", located, unverified=False)
    assert caught.value.problem == (
        "1 of 2 files of toy differ from the official ones by their checksums:\n"
        f"  {tmp_path / 'b'}: expected {md5(b'BBBB')}, found {md5(b'BBBX')}"
    )
    assert "--unverified-data" in caught.value.hint
    assert verify("toy", located, unverified=True) == "1 of 2 checksums differ from the official ones"


@pytest.mark.parametrize(
    ("content", "note"),
    [(b"PAC", "3 bytes instead of 6, so it looks truncated"), (b"PACKED+", r"7 bytes instead of 6\)")],
)
def test_another_size_is_told(tmp_path, content, note):
    put(tmp_path, all__tar__gz=content)
    with pytest.raises(DataError, match=note):
        verify("toy", locate(SETS, tmp_path), unverified=False)


def test_official_files_under_a_wrong_name_are_refused_whoever_vouches(tmp_path, monkeypatch):
    monkeypatch.setitem(files._KNOWN, md5(b"BBBB"), "b of toy")
    put(tmp_path, a=b"BBBB", b=b"AAAA")
    with pytest.raises(DataError, match=rf"a is not a of toy: by its checksum \({md5(b'BBBB')}\) it is b of toy"):
        verify("toy", locate(SETS, tmp_path), unverified=True)


def test_the_stamp_changes_with_size_and_time(tmp_path):
    put(tmp_path / "below", a=b"AAAA", b=b"BBBB")
    located = locate(SETS, tmp_path)
    before = located.stamp
    assert [entry[:2] for entry in before] == [["below/a", 4], ["below/b", 4]]
    put(tmp_path / "below", a=b"AAAAA")
    assert located.stamp[0] != before[0]
    assert located.stamp[1] == before[1]


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=rf"cannot read {tmp_path}: Is a directory"):
        checksum(tmp_path, "sha256")


def test_the_table_of_official_files_is_sound():
    for name, sets in OFFICIAL.items():
        assert sum(all(file.urls for file in group.files) for group in sets) in (1, 2), name
        for group in sets:
            for file in group.files:
                algorithm, _, digest = file.checksum.partition(":")
                assert len(bytes.fromhex(digest)) == {"md5": 16, "sha256": 32}[algorithm]
                assert all(url.startswith("http") and url.endswith(file.name) for url in file.urls)
                assert not file.urls or (file.size > 0 and algorithm == "sha256"), "downloads: size and SHA-256 known"
    checksums = [file.checksum for sets in OFFICIAL.values() for group in sets[:1] for file in group.files]
    assert len(set(checksums)) == len(checksums)
    assert len(CIFAR100_CLASSES) == 100
    assert sorted(CIFAR100_CLASSES) == list(CIFAR100_CLASSES)
