"""Pretrained sources: folders and package data, and the errors about missing files."""

import hashlib
import os
import shutil
import sys
from pathlib import Path

import pytest

from dreamkit.errors import SourceError
from dreamkit.storage.sources import fingerprint, locate
from named_files import write

LONG = "a" * 300  # more characters than a file name may have


def test_a_path_prefix_names_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "part", "config.json", "model.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (str(tmp_path / "part"), "./part", f"../{tmp_path.name}/part", "~/part"):
        assert locate(name, ["config.json"]) == tmp_path / "part"
    monkeypatch.chdir("part")
    assert locate(".", ["config.json"]) == tmp_path / "part"


@pytest.mark.parametrize("name", ["part", "nobody/model", "deep/er/model"])
def test_a_folder_in_the_working_directory_does_not_replace_a_hub_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write(tmp_path / name, "config.json", "model.safetensors")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=r"\./"):
        locate(name, ["config.json"])
    assert locate(f"./{name}", ["config.json"]) == tmp_path / name


def test_package_data_is_located() -> None:
    assert (locate("pkg:pluggy/", ["__init__.py"], weights=False) / "__init__.py").is_file()
    assert locate("pkg:torch/nn", ["__init__.py"], weights=False).name == "nn"
    assert locate("pkg:torch.nn/modules", ["__init__.py"], weights=False).name == "modules"


def test_package_data_is_located_without_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "evilpk", "sub/__init__.py", "sub/data/config.json")
    (tmp_path / "evilpk/__init__.py").write_text("raise SystemExit('code was run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("pkg:evilpk/sub/data", "pkg:evilpk.sub/data"):
        assert locate(name, ["config.json"], weights=False) == tmp_path / "evilpk/sub/data"
    with pytest.raises(SourceError, match="no installed package"):
        locate("pkg:evilpk.nowhere/data", [])
    assert "evilpk" not in sys.modules


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pkg:no_such_package/x", ["no_such_package", "install"]),
        ("pkg:", ["pkg:package/folder"]),
        ("pkg:pluggy/nowhere", ["pluggy", "nowhere", "no folder"]),
        ("pkg:pluggy/../torch", ["'../torch' leads out of package 'pluggy'"]),
        ("pkg:pluggy//etc", ["'/etc' leads out of package 'pluggy'"]),
        ("pkg:pluggy._hooks/x", ["no installed package"]),
        ("pkg:__main__/x", ["no installed package"]),
        (f"pkg:{LONG}/x", ["no installed package"]),
        (f"pkg:pluggy.{LONG}/x", ["no installed package"]),
        (f"pkg:pluggy/{LONG}", ["no folder"]),
        (f"./{LONG}", ["no folder"]),
        (LONG, ["cannot be a hub name"]),
        ("./a\0b", ["no folder"]),
        ("pkg:pluggy/a\0b", ["no folder"]),
        ("pkg:a\0b/x", ["no installed package"]),
        ("~nosuchuser/x", ["no folder", "~nosuchuser/x"]),
        ("/nowhere/at/all", ["/nowhere/at/all", "no folder"]),
        ("../nowhere", ["no folder"]),
        ("", ["name"]),
        ("two words/model", ["two words", "cannot be a hub name"]),
        (__file__, ["is a file"]),
    ],
)
def test_an_impossible_name_is_refused(name: str, words: list[str]) -> None:
    with pytest.raises(SourceError) as caught:
        locate(name, ["config.json"])
    assert all(word in str(caught.value) for word in words)


def test_missing_files_are_named_beside_the_present_ones(tmp_path: Path) -> None:
    write(tmp_path, "unet/config.json", "unet/diffusion_pytorch_model.bin", "notes.txt")
    with pytest.raises(SourceError) as caught:
        locate(str(tmp_path), ["unet/config.json", "vae/config.json", "tokenizer*"])
    message = str(caught.value)
    assert (
        f"the folder {tmp_path} lacks 'vae/config.json' and 'tokenizer*'; it holds notes.txt, unet/."
        in message
    )


IRREGULAR = {
    "a named pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
    "a broken link (No such file or directory)": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("folder", ["", "unet/"])
@pytest.mark.parametrize("kind", IRREGULAR)
def test_a_missing_file_of_another_kind_is_named_with_its_kind(
    tmp_path: Path, folder: str, kind: str
) -> None:
    for missing in ("config.json", "model.safetensors", "model.safetensors.index.json"):
        source = tmp_path / missing
        write(source / folder, "config.json")
        if missing.endswith("index.json"):
            write(source / folder, "model-00001-of-00001.safetensors")
        (source / folder / missing).unlink(missing_ok=True)
        IRREGULAR[kind](source / folder / missing)
        with pytest.raises(SourceError) as caught:
            locate(str(source), [f"{folder}config.json"])
        assert f"; '{folder}{missing}' is {kind}. Add the missing files" in str(caught.value)


@pytest.mark.parametrize("folder", ["", "unet/"])
@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "preprocessor_config.json", "model.safetensors.index.json", "chat_template.jinja"),
        *("tokenizer.json", "special_tokens_map.json", "vocab.txt", "merges.txt", "spiece.model"),
    ],
)
def test_a_file_that_is_read_whole_has_a_bounded_size(tmp_path: Path, folder: str, name: str) -> None:
    write(tmp_path, "config.json", "model.safetensors", f"{folder}{name}")
    os.truncate(tmp_path / folder / name, 10**12)
    message = rf"{folder}{name}: expected at most 100,000,000 bytes, got 1,000,000,000,000; download it again"
    for weights in (True, False):
        with pytest.raises(SourceError, match=message):
            locate(str(tmp_path), ["config.json"], weights=weights)
    os.truncate(tmp_path / folder / name, 2)
    (tmp_path / "trainer_state.json").touch()
    os.truncate(tmp_path / "trainer_state.json", 10**12)
    assert locate(str(tmp_path), ["config.json"], weights=False) == tmp_path


def test_a_link_to_itself_is_a_broken_link(tmp_path: Path) -> None:
    write(tmp_path, "config.json")
    (tmp_path / "model.safetensors").symlink_to("model.safetensors")
    with pytest.raises(SourceError, match=r"'model\.safetensors' is a broken link \(Too many levels"):
        locate(str(tmp_path), ["config.json"])


def test_a_folder_that_is_removed_meanwhile_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    write(source, "config.json")
    monkeypatch.setattr("dreamkit.storage.sources._missing", lambda *_: [str(shutil.rmtree(source))])
    with pytest.raises(SourceError, match=rf"{source}: it is missing; it was removed or replaced"):
        locate(str(source), ["config.json"])


def test_a_link_that_cannot_be_followed_is_named(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("a" * 300)  # no name may be so long: an error, not a missing file
    with pytest.raises(SourceError, match="link: cannot be read: File name too long"):
        locate(str(tmp_path), ["config.json"])


def test_fingerprint_changes_with_weights_and_config_alone(tmp_path: Path) -> None:
    write(tmp_path, "config.json", "model.safetensors", "pytorch_model.bin", "README.md", "sub/config.json")
    before = fingerprint(str(tmp_path))
    assert list(before) == ["config.json", "model.safetensors", "sub/config.json"]
    assert before["config.json"] == hashlib.sha256(b"config.json").hexdigest()
    (tmp_path / "README.md").write_text("other words")
    assert fingerprint(str(tmp_path)) == before
    (tmp_path / "model.safetensors").write_text("other weights")
    after = fingerprint(str(tmp_path))
    assert [name for name in before if before[name] != after[name]] == ["model.safetensors"]


def test_known_configs_replace_the_hub_if_no_weights_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = tmp_path / "known"
    (known / "owner" / "model").mkdir(parents=True)
    (known / "owner" / "model" / "config.json").write_text("{}")
    monkeypatch.setattr("dreamkit.storage.sources.constants.HF_HUB_OFFLINE", True)

    def find(name: str, files: list[str], **options: bool) -> Path:
        return locate(name, files, known=str(known), **options)

    assert find("owner/model", ["config.json"], weights=False) == known / "owner" / "model"
    for name, files, weights in (
        ("owner/model", ["config.json"], True),
        ("owner/model", ["tokenizer.json"], False),
        ("owner/other", ["config.json"], False),
    ):
        with pytest.raises(SourceError, match="HF_HUB_OFFLINE forbids"):
            find(name, files, weights=weights)
    with pytest.raises(SourceError, match=r"known without the hub: owner/model$"):
        find("owner/modal", ["config.json"], weights=False)
