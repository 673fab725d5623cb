"""Files of answers: what is read, what is refused and with which words, and that nothing in them is ever run."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memberscope.answers import Answers, as_member, read_answers
from memberscope.errors import EvidenceError

N, C = 8, 3
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (N, C)).astype(np.float32)
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
LABELS = np.arange(N) % C
MEMBER = np.arange(N) < 5
GOOD: dict[str, Any] = {"logits": LOGITS, "labels": LABELS, "member": MEMBER}

repeated = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def csv_text(letter: str = "z", values: np.ndarray = LOGITS, newline: str = "\n") -> str:
    header = [f"{letter}{c}" for c in range(values.shape[1])] + ["label", "member"]
    rows = [
        [*(repr(float(v)) for v in row), str(label), str(int(m))]
        for row, label, m in zip(values, LABELS, MEMBER, strict=True)
    ]
    return newline.join(",".join(row) for row in [header, *rows]) + newline


def refusal_of(path: Path) -> EvidenceError:
    with pytest.raises(EvidenceError) as refusal:
        read_answers(path)
    assert refusal.value.hint
    assert str(path) in refusal.value.problem
    return refusal.value


def told(path: Path) -> str:
    return refusal_of(path).problem.replace(str(path), "FILE")


def check(answers: Answers, logits: np.ndarray = LOGITS) -> None:
    np.testing.assert_array_equal(answers.evidence.logits, logits[None] if logits.ndim == 2 else logits)
    np.testing.assert_array_equal(answers.evidence.labels, LABELS)
    np.testing.assert_array_equal(answers.member, MEMBER)
    assert answers.evidence.labels.dtype == np.int64
    assert answers.member.dtype == np.bool_


def test_an_npz_of_logits(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", **GOOD, note=np.array("not needed"), model=np.array([{"py": "object"}], object))
    answers = read_answers(path)
    check(answers)
    assert answers.source == str(path)
    assert answers.class_names == ("0", "1", "2")
    assert answers.evidence.queries == ("none",)
    assert answers.evidence.has_logits


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("label_type", [np.uint8, np.float32])
@pytest.mark.parametrize("member_type", [np.int8, np.float64])
def test_labels_and_membership_in_other_types(tmp_path: Path, save: Any, label_type: type, member_type: type) -> None:
    save(tmp_path / "A.NPZ.npz", logits=LOGITS, labels=LABELS.astype(label_type), member=MEMBER.astype(member_type))
    check(read_answers(tmp_path / "A.NPZ.npz"))


def test_an_npz_of_probabilities(tmp_path: Path) -> None:
    answers = read_answers(npz(tmp_path / "a.npz", probabilities=PROBABILITIES, labels=LABELS, member=MEMBER))
    assert not answers.evidence.has_logits
    np.testing.assert_allclose(np.exp(answers.evidence.logits[0]), PROBABILITIES, rtol=1e-6)


def test_several_queries_and_reference_models(tmp_path: Path) -> None:
    logits = RNG.normal(0, 3, (N, 2, C))
    references, inside = RNG.normal(0, 3, (4, N, 2, C)), RNG.random((4, N)) < 0.5
    more = {"reference_logits": references, "reference_membership": inside.astype(np.uint8)}
    evidence = read_answers(npz(tmp_path / "a.npz", **{**GOOD, "logits": logits}, **more)).evidence
    assert evidence.queries == ("query0", "query1")
    np.testing.assert_array_equal(evidence.logits[1], logits[:, 1])
    assert evidence.reference_logits is not None
    assert evidence.reference_membership is not None
    np.testing.assert_array_equal(evidence.reference_logits[3, 1], references[3, :, 1])
    np.testing.assert_array_equal(evidence.reference_membership, inside)
    one_query = {"reference_logits": references[:, :, 0], "reference_membership": inside}
    evidence = read_answers(npz(tmp_path / "b.npz", **GOOD, **one_query)).evidence
    assert evidence.reference_logits is not None
    assert evidence.reference_logits.shape == (4, 1, N, C)


@pytest.mark.parametrize("names", [np.array(["cat", "dog", "ε"]), np.array([b"cat", b"dog", "ε".encode()])])
def test_names_of_classes(tmp_path: Path, names: np.ndarray) -> None:
    assert read_answers(npz(tmp_path / "a.npz", **GOOD, classes=names)).class_names == ("cat", "dog", "ε")


REFUSED_ARRAYS: list[tuple[dict[str, Any], str]] = [
    ({"logits": None}, "FILE holds neither logits nor probabilities (found: labels, member)"),
    ({"logits": None, "logit": LOGITS}, "FILE holds neither logits nor probabilities (found: labels, logit, member)"),
    (
        {"probabilities": PROBABILITIES},
        "FILE holds both logits and probabilities (found: labels, logits, member, probabilities)",
    ),
    ({"labels": None}, "FILE holds no labels (found: logits, member)"),
    ({"member": None, "members": MEMBER}, "FILE holds no member (found: labels, logits, members)"),
    ({"logits": LOGITS[0]}, "FILE: logits have shape (3,), expected [N, C], or [N, A, C] with A queries a record"),
    ({"logits": np.array("x")}, "FILE: logits have shape (), expected [N, C], or [N, A, C] with A queries a record"),
    ({"logits": np.full((N, C), "x")}, "FILE: logits have dtype <U1, expected floating point"),
    ({"logits": LOGITS[:4]}, "FILE: labels have shape (8,), expected (4,) as logits do"),
    ({"labels": LABELS + 1}, "FILE: label 3 of record 2 is outside 0..2 (3 columns)"),
    ({"labels": LABELS + 0.25}, "FILE: labels hold 0.25 (record 0), expected whole numbers"),
    ({"member": MEMBER[:-1]}, "FILE: member has shape (7,), expected (8,)"),
    ({"member": MEMBER + 1}, "FILE: member holds values other than 0 and 1"),
    ({"member": np.where(MEMBER, np.nan, 0)}, "FILE: member holds values other than 0 and 1"),
    ({"member": np.where(MEMBER, "yes", "no")}, "FILE: member holds values other than 0 and 1"),
    ({"member": MEMBER | True}, "FILE: member names no non-members"),
    ({"member": MEMBER & False}, "FILE: member names no members"),
    ({"logits": None, "probabilities": LOGITS}, "FILE: these are not probabilities: the values of record 0 lie in"),
    ({"classes": np.array(["a", "b"])}, "FILE: classes have shape (2,), expected one name for each of 3 columns"),
    ({"classes": np.array("abc")}, "FILE: classes have shape (), expected one name for each of 3 columns"),
    ({"reference_logits": LOGITS[None]}, "FILE: reference_logits stands alone"),
    ({"reference_membership": MEMBER[None]}, "FILE: reference_membership stands alone"),
    (
        {"reference_logits": LOGITS, "reference_membership": MEMBER[None]},
        "FILE: reference_logits have shape (8, 3), expected [K, N, C] or [K, N, A, C]",
    ),
    (
        {"reference_logits": LOGITS[None], "reference_membership": MEMBER[None] * 2},
        "FILE: reference_membership holds values other than 0 and 1",
    ),
    (
        {"reference_logits": LOGITS[None], "reference_membership": np.full((1, N), "1")},
        "FILE: reference_membership holds values other than 0 and 1",
    ),
    (
        {"reference_logits": LOGITS[None, 1:], "reference_membership": MEMBER[None]},
        "FILE: reference logits have shape (1, 1, 7, 3), expected [K, A, N, C] = (1, 1, 8, 3)",
    ),
]


@pytest.mark.parametrize(("changes", "expected"), REFUSED_ARRAYS)
def test_arrays_that_cannot_be_used_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    arrays = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    assert told(npz(tmp_path / "a.npz", **arrays)).startswith(expected)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("key", ["logits", "labels", "member", "classes"])
def test_python_objects_are_refused_and_never_run(tmp_path: Path, key: str) -> None:
    arrays = {**GOOD, key: np.array([Bomb(tmp_path / "ran")], object)}
    path = npz(tmp_path / "a.npz", **arrays)
    assert told(path) == f"FILE: {key} holds Python objects, which are never loaded (they can run code)"
    assert not (tmp_path / "ran").exists()


def test_a_bare_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    import pickle

    path = tmp_path / "a.npz"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    assert told(path) == "FILE is not an .npz file, or its end is missing"
    assert not (tmp_path / "ran").exists()


def test_files_under_a_wrong_name(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", LOGITS)
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    assert told(tmp_path / "array.npz") == "FILE is not an .npz file, or its end is missing"
    assert told(tmp_path / "nothing.npz") == "no file FILE"
    assert told(tmp_path) == "the folder FILE holds no answers that can be read"
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert told(tmp_path / "a.parquet") == "FILE is neither .npz nor .csv nor .csv.gz"
    (tmp_path / "a.csv").write_bytes(npz(tmp_path / "b.npz", **GOOD).read_bytes())
    assert told(tmp_path / "a.csv").startswith("FILE cannot be read as text: 'utf-8' codec can't decode byte")
    (tmp_path / "a.csv.gz").write_text(csv_text())
    assert told(tmp_path / "a.csv.gz").startswith("FILE cannot be read as text: Not a gzipped file")


def test_a_zip_whose_members_are_no_arrays(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        for key in GOOD:
            file.writestr(key, b"1,2,3")
    assert told(tmp_path / "a.npz") == "FILE: logits is not a NumPy array"
    with zipfile.ZipFile(tmp_path / "empty.npz", "w"):
        pass
    assert told(tmp_path / "empty.npz") == "FILE holds neither logits nor probabilities (found: nothing)"


def test_a_header_that_claims_more_than_there_is(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**6)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("logits.npy", buffer.getvalue() + b"\0" * 800)
    assert told(tmp_path / "a.npz").startswith("FILE cannot be read: ")


BYTES = {
    "npz": lambda: _bytes(np.savez),
    "compressed npz": lambda: _bytes(np.savez_compressed),
    "csv": lambda: csv_text().encode(),
    "csv.gz": lambda: gzip.compress(csv_text().encode(), mtime=0),
}


def _bytes(save: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **GOOD)
    return buffer.getvalue()


def read_or_refuse(path: Path, content: bytes) -> None:
    """Any other exception fails the test; damage that no checksum covers may leave a file, which must be usable."""
    path.write_bytes(content)
    refused = None
    try:
        answers = read_answers(path)
    except EvidenceError as refusal:
        refused = refusal
    if refused is None:
        assert np.isfinite(answers.evidence.signals.phi).all()
        assert answers.member.any()
        assert not answers.member.all()
    else:
        assert str(path) in refused.problem
        assert refused.hint


@pytest.mark.parametrize("kind", BYTES)
@repeated
@given(data=st.data())
def test_a_truncated_file_is_refused(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    content = BYTES[kind]()
    kept = data.draw(st.integers(0, len(content) - 1))
    read_or_refuse(tmp_path / f"a.{kind.split()[-1]}", content[:kept])


@pytest.mark.parametrize("kind", BYTES)
@repeated
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_as_what_it_now_says(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    content = bytearray(BYTES[kind]())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    read_or_refuse(tmp_path / f"a.{kind.split()[-1]}", bytes(content))


@pytest.mark.parametrize("suffix", ["npz", "csv", "csv.gz"])
@repeated
@given(content=st.binary(max_size=400))
def test_garbage_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    for start in (
        b"",
        b"PK\x03\x04",
        b"PK\x05\x06",
        b"\x93NUMPY\x01\x00",
        b"\x80\x04",
        b"\x1f\x8b\x08\x00",
        b"z0,z1,label,member\n",
    ):
        read_or_refuse(tmp_path / f"a.{suffix}", start + content)


@repeated
@given(text=st.text(alphabet='0123456789.,-einfat_"\r\n \0ε', max_size=80))
def test_csv_lines_of_anything_are_refused_or_read(tmp_path: Path, text: str) -> None:
    read_or_refuse(tmp_path / "a.csv", ("z0,z1,label,member\n0,1,0,1\n" + text).encode())


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "A.CSV", "A.CSV.GZ"])
def test_a_csv_of_logits(tmp_path: Path, newline: str, start: bytes, name: str) -> None:
    content = start + csv_text(newline=newline).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.lower().endswith(".gz") else content)
    check(read_answers(tmp_path / name))


def test_a_csv_of_probabilities(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(csv_text("p", PROBABILITIES))
    answers = read_answers(tmp_path / "a.csv")
    assert not answers.evidence.has_logits
    np.testing.assert_allclose(np.exp(answers.evidence.logits[0]), PROBABILITIES, rtol=1e-12)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.tuples(*[st.floats(-1e30, 1e30)] * 3), min_size=2, max_size=12), flip=st.booleans())
def test_npz_and_csv_of_the_same_answers_are_the_same(
    tmp_path: Path, values: list[tuple[float, ...]], flip: bool
) -> None:
    logits, n = np.array(values), len(values)
    labels, member = np.arange(n) % 3, np.arange(n) % 2 == flip
    npz(tmp_path / "a.npz", logits=logits, labels=labels, member=member)
    header = "z0,z1,z2,label,member\n"
    body = "".join(f"{a!r},{b!r},{c!r},{y},{int(m)}\n" for (a, b, c), y, m in zip(values, labels, member, strict=True))
    (tmp_path / "a.csv").write_text(header + body)
    one, other = read_answers(tmp_path / "a.npz"), read_answers(tmp_path / "a.csv")
    np.testing.assert_array_equal(one.evidence.logits, other.evidence.logits)
    np.testing.assert_array_equal(one.evidence.labels, other.evidence.labels)
    np.testing.assert_array_equal(one.member, other.member)


def test_csv_columns_may_stand_in_any_order_among_others(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        'member, id ,z1,label,z10,z2,z3,z4,z5,z6,z7,z8,z9,z0\n\n1,"a, b",1.5,2.0,10,2,3,4,5,6,7,8,9,0\n\n'
        "0.0,x,11,10,20,12,13,14,15,16,17,18,19,10\n"
    )
    answers = read_answers(tmp_path / "a.csv")
    assert answers.evidence.logits[0].tolist() == [[0, 1.5, *range(2, 11)], list(range(10, 21))]
    assert answers.evidence.labels.tolist() == [2, 10]
    assert answers.member.tolist() == [True, False]


HEADER = "z0,z1,label,member\n"
REFUSED_TEXT = [
    ("", "FILE has no column label and no column member and no column z0 or p0 (found: nothing)"),
    (HEADER, "FILE holds no record"),
    ("z0,z1,member\n0,1,1\n", "FILE has no column label (found: z0, z1, member)"),
    ("z0,z1,label\n0,1,1\n", "FILE has no column member (found: z0, z1, label)"),
    ("a,b,label,member\n0,1,1,1\n", "FILE has no column z0 or p0 (found: a, b, label, member)"),
    (
        "z0;z1;label;member\n",
        "FILE has no column label and no column member and no column z0 or p0 (found: z0;z1;label",
    ),
    ("z0,p0,label,member\n", "FILE has logits and probabilities both (found: z0, p0, label, member)"),
    ("z0,z1,label,member,label\n", "FILE has two columns label (found: z0, z1, label, member, label)"),
    ("z0,z2,label,member\n", "FILE: columns z0..z2 are not numbered without gaps or doubles from z0"),
    ("p1,p2,label,member\n", "FILE: columns p1..p2 are not numbered without gaps or doubles from p0"),
    ("z0,z1,z1,label,member\n", "FILE: columns z0..z1 are not numbered without gaps or doubles from z0"),
    (HEADER + "0,1,0,1\n\n0,x,0,1\n", "FILE, line 4: could not convert string to float: 'x'"),
    (HEADER + "0,1,0,\n", "FILE, line 2: could not convert string to float: ''"),
    (HEADER + "0,5,1,5,0,1\n", "FILE, line 2: expected 4 fields, found 6: '0,5,1,5,0,1'"),
    (HEADER + "0,1\n", "FILE, line 2: expected 4 fields, found 2: '0,1'"),
    (HEADER + '"0\n",1,0\n', "FILE, line 3: expected 4 fields, found 3"),
    (HEADER + "0,nan,0,1\n0,1,0,0\n", "FILE: logits of 1 of 2 records are NaN or infinite (first: record 0)"),
    (HEADER + "0,1,0.5,1\n0,1,0,0\n", "FILE: labels hold 0.5 (record 0), expected whole numbers"),
    (HEADER + "0,1,2,1\n0,1,0,0\n", "FILE: label 2 of record 0 is outside 0..1 (2 columns)"),
    (HEADER + "0,1,1,2\n0,1,0,0\n", "FILE: member holds values other than 0 and 1"),
    (HEADER + "0,1,1,1\n", "FILE: member names no non-members"),
    ("z0,label,member\n1,0,1\n1,0,0\n", "FILE: logits have 1 column, expected at least two classes"),
    ("p0,p1,label,member\n0.5,0.6,0,1\n0,1,0,0\n", "FILE: these are not probabilities: the values of record 0 lie in"),
]


@pytest.mark.parametrize(("text", "expected"), REFUSED_TEXT)
def test_text_that_cannot_be_used_is_refused_by_name(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    assert told(tmp_path / "a.csv").startswith(expected)


def test_a_long_header_is_shown_in_part(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",".join(f"z{c}" for c in range(20)) + ",member\n")
    assert told(tmp_path / "a.csv").endswith("(found: " + ", ".join(f"z{c}" for c in range(12)) + ", ...)")


def test_membership_from_arrays() -> None:
    assert as_member(np.array([1, 0]), 2, "arrays").tolist() == [True, False]
    with pytest.raises(EvidenceError, match=r"arrays: member has shape \(2, 1\), expected \(2,\)"):
        as_member(np.array([[1], [0]]), 2, "arrays")
