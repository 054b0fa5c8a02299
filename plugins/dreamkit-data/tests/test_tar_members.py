"""Members of tars, compared with those that tarfile reads, and hostile or damaged tars."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from dreamkit import DocumentError
from dreamkit_data.tar_members import BLOCK, Member, members

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
characters = st.characters(exclude_characters="/\0", exclude_categories=["Cs"])
parts = st.text(characters, min_size=1, max_size=60).filter(lambda text: text not in (".", ".."))
paths = st.lists(parts, min_size=1, max_size=4).map("/".join)
contents = st.binary(max_size=2 * BLOCK) | st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1]).map(bytes)


def write(infos: list[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form, encoding="utf-8") as tar:
        for info, content in infos:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def read(data: bytes) -> list[Member]:
    return list(members(lambda start, size: data[start : start + size], 0, len(data), "x.tar"))


def info(name: str, kind: bytes = tarfile.REGTYPE, **values: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    for key, value in values.items():
        setattr(made, key, value)
    return made


@settings(max_examples=200)
@given(
    st.lists(st.tuples(paths, contents, st.booleans()), max_size=6),
    st.sampled_from(FORMATS),
    st.sampled_from([0, 0.5, 2**40]),
)
def test_members_are_those_that_tarfile_reads(
    files: list[tuple[str, bytes, bool]], form: int, mtime: float
) -> None:
    infos = [
        (info(name, tarfile.DIRTYPE if is_folder else tarfile.REGTYPE), b"" if is_folder else content)
        for name, content, is_folder in files
    ]
    for each, _ in infos:
        each.mtime = mtime if form == tarfile.PAX_FORMAT else int(mtime) % 2**30
    try:
        data = write(infos, form)
    except ValueError:  # ustar holds no longer names
        return
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8") as tar:
        expected = [(m.name.removeprefix("./"), m.offset, m.offset_data, m.size) for m in tar if m.isreg()]
    assert [tuple(member) for member in read(data)] == expected


def test_a_size_above_8_gib_is_read(tmp_path: Path) -> None:
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        size = 9 * 2**30
        header = info("big", size=size).tobuf(form, "utf-8", "strict")
        asked = []

        def read_sparse(start: int, size: int, header: bytes = header, asked: list[int] = asked) -> bytes:
            asked.append(size)
            return (header[start : start + size]).ljust(size, b"\0")

        (member,) = members(read_sparse, 0, len(header) + size + 1024, "x.tar")
        assert (member.name, member.size) == ("big", size)
        assert max(asked) <= 2**16  # headers alone


HOSTILE = {
    "/etc/passwd": (info("/etc/passwd"), "leads out"),
    "a dotted path": (info("a/../../b.jpg"), "leads out"),
    "a symbolic link": (info("a.jpg", tarfile.SYMTYPE, linkname="/etc/passwd"), "got a link"),
    "a hard link": (info("a.jpg", tarfile.LNKTYPE, linkname="b.jpg"), "got a link"),
    "a device": (info("a.jpg", tarfile.CHRTYPE), "got a device"),
    "a pipe": (info("a.jpg", tarfile.FIFOTYPE), "got a named pipe"),
    "a sparse file": (info("a.jpg", tarfile.GNUTYPE_SPARSE), "got a sparse file"),
    "a pax sparse file": (info("a.jpg", pax_headers={"GNU.sparse.major": "1"}), "got a sparse file"),
    "an unknown type": (info("a.jpg", b"Z"), "member of type 'Z'"),
    "a long path that leads out": (info("../" + "a" * 200), "leads out"),
}


@pytest.mark.parametrize("form", FORMATS[1:], ids=["gnu", "pax"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_members_are_refused_by_name(name: str, form: int) -> None:
    hostile, message = HOSTILE[name]
    data = write([(info("good.jpg"), b"x"), (hostile, b"")], form)
    if hostile.pax_headers and form != tarfile.PAX_FORMAT:
        return
    with pytest.raises(DocumentError, match=rf"x\.tar!.*{message}.*write the archive without it"):
        read(data)


def cut(data: bytes) -> bytes:
    return data[: BLOCK + 100]


DAMAGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut content": (cut, r"is cut: it ends at byte 612, within a member"),
    "cut header": (lambda data: data[:300], "is cut"),
    "no end": (lambda data: data[: 3 * BLOCK], "without the mark of its end.*head -c 1024"),
    "empty": (lambda data: b"", "without the mark of its end"),
    "flipped bit": (lambda data: bytes([data[0] ^ 1]) + data[1:], "expected the header of a tar's member"),
    "zip": (lambda data: b"PK\x03\x04".ljust(1024, b"x"), "expected octal digits in a tar's header"),
    "joined": (lambda data: data + data, "nothing after the archive's end"),
    "negative size": (
        lambda data: signed(data[:124] + b"\xff" * 12 + data[136:]),
        "expected octal digits",
    ),
}


def signed(data: bytes) -> bytes:
    """Return the data with the right checksum in its first header."""
    blank = data[:148] + b" " * 8 + data[156:]
    return data[:148] + b"%06o\0 " % sum(blank[:BLOCK]) + data[156:]


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_tars_are_refused_with_the_place(name: str) -> None:
    damage, message = DAMAGED[name]
    with pytest.raises(DocumentError, match=rf"x\.tar: .*{message}"):
        read(damage(write([(info("a.jpg"), b"x" * 600)], tarfile.USTAR_FORMAT)))


def test_a_long_name_of_a_gigabyte_takes_no_memory() -> None:
    header = info("x", tarfile.GNUTYPE_LONGNAME, size=2**30).tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(DocumentError, match=r"expected at most 1,048,576 bytes of names, got 1,073,741,824"):
        list(members(lambda start, size: (header * 200)[start : start + size], 0, 2**31, "x.tar"))


@pytest.mark.parametrize("pax", [b"garbage", b"99 path=x\n", b"0 path=x\n", b"11 path=abc", b"8 pathx\n"])
def test_damaged_pax_records_are_refused(pax: bytes) -> None:
    data = write([(info("x", b"x"), pax), (info("a.jpg"), b"")], tarfile.USTAR_FORMAT)
    with pytest.raises(DocumentError, match="damaged pax header"):
        read(data)


@settings(max_examples=300)
@given(st.data())
def test_any_damage_is_a_document_error(data: st.DataObject) -> None:
    whole = write([(info(f"{n}.jpg", mtime=n + 0.5), b"x" * n * 300) for n in range(4)])
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    kept = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        for member in read(kept):
            assert 0 <= member.head < member.start <= member.start + member.size <= len(kept)
    except DocumentError:
        pass
