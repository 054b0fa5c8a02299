"""Folders of images with captions: hidden and linked folders, and files that are no images."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image as PIL

from dreamkit.data.pairs import Pairs, PairsConfig
from dreamkit.errors import DocumentError


def write_pair(path: Path, caption: bytes = b"one") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.new("RGB", (4, 4)).save(path)
    path.with_suffix(".txt").write_bytes(caption)


def names(pairs: Pairs, folder: Path) -> list[str]:
    return [str(Path(pairs[index].name).relative_to(folder)) for index in range(len(pairs))]


def test_hidden_files_and_folders_are_skipped(tmp_path: Path) -> None:
    root = tmp_path / ".named by the recipe"
    for name in ("a.png", ".b.png", ".ipynb_checkpoints/a.png", "c/.git/d.png", "c/e.png"):
        write_pair(root / name)
    data = Pairs(PairsConfig(root))
    assert names(data, root) == ["a.png", "c/e.png"] and not data.notes


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=5))
def test_linked_folders_are_read_once_and_loops_are_errors(
    tmp_path_factory: pytest.TempPathFactory, links: list[tuple[int, int]]
) -> None:
    """Folder 0 is the data set; a link (a, b) lies in folder a and leads to folder b."""
    base = tmp_path_factory.mktemp("linked")
    for number in range(4):
        write_pair(base / str(number) / f"{number}.png")
    for count, (at, to) in enumerate(links):
        (base / str(at) / f"link{count}").symlink_to(base / str(to))
    reached, edges = {0}, {at: [to for a, to in links if a == at] for at in range(4)}
    while new := {to for at in reached for to in edges[at]} - reached:
        reached |= new

    def on_loop(node: int, above: tuple[int, ...]) -> bool:
        return node in above or any(on_loop(to, (*above, node)) for to in edges[node])

    if on_loop(0, ()):
        with pytest.raises(DocumentError, match=r"link\d: this link leads back to"):
            Pairs(PairsConfig(base / "0"))
    else:
        data = Pairs(PairsConfig(base / "0"))
        assert {int(Path(name).stem) for name in names(data, base)} == reached and len(data) == len(reached)
        assert len(data.notes) == sum(len(edges[at]) for at in reached) - (len(reached) - 1)


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_byte_order_mark_is_not_learned(tmp_path: Path, end: bytes) -> None:
    write_pair(tmp_path / "a.png", b"\xef\xbb\xbfone\r\ntwo" + end)
    assert Pairs(PairsConfig(tmp_path))[0].text == "one\ntwo"


@pytest.mark.parametrize(
    ("caption", "message"),
    [("one".encode("utf-16"), "expected UTF-8, got UTF-16"), (b"caf\xe9", "expected UTF-8, got byte 0xe9")],
)
def test_the_encoding_of_a_caption_is_named(tmp_path: Path, caption: bytes, message: str) -> None:
    write_pair(tmp_path / "a.png", caption)
    with pytest.raises(DocumentError, match=rf"a\.txt: {message}"):
        Pairs(PairsConfig(tmp_path))[0]


def test_an_image_of_another_format_is_named(tmp_path: Path) -> None:
    write_pair(tmp_path / "a.png")
    (tmp_path / "b.heic").write_bytes(b"heic")
    (note,) = Pairs(PairsConfig(tmp_path)).notes
    assert note == f"{tmp_path}: not read: files that are no known images or captions: .heic (1)"
    (tmp_path / "b.txt").write_text("two")
    with pytest.raises(DocumentError, match=r"b\.heic: expected an image of a format .*; convert it to PNG"):
        Pairs(PairsConfig(tmp_path))


@pytest.mark.parametrize("name", ["b.png", "a.txt"])
def test_a_pipe_or_a_broken_link_in_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    write_pair(tmp_path / "a.png")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(DocumentError, match=rf"{name}: expected a regular file, got a named pipe"):
        Pairs(PairsConfig(tmp_path))
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("none")
    with pytest.raises(DocumentError, match=rf"{name}: a link to nothing"):
        Pairs(PairsConfig(tmp_path))


def test_images_beside_a_folder_of_pairs_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path / "a.png")
    with pytest.raises(DocumentError, match="'images' is set, but this folder itself has the images"):
        Pairs(PairsConfig(tmp_path, images=tmp_path))


def test_a_link_to_no_folder_is_an_error(tmp_path: Path) -> None:
    write_pair(tmp_path / "a.png")
    (tmp_path / "far").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DocumentError, match=r"far: a link to nothing; correct or remove the link"):
        Pairs(PairsConfig(tmp_path))
