"""Pretrained sources: folders, package data and hub models, and the errors about missing ones."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dreamkit.errors import SourceError
from dreamkit.storage.sources import fingerprint, locate

HUB_FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": b"safe",
    "pytorch_model.bin": b"pickle",
    "README.md": b"words",
    "other/model.safetensors": b"not needed",
}
SHA = "a" * 40
LONG = "a" * 300  # more characters than a file name may have

SCRIPT = """
import sys
from dreamkit.storage import sources
from dreamkit.errors import SourceError
sources.PROBE_SECONDS = float(sys.argv[3])
try:
    folder = sources.locate(sys.argv[1], ["config.json"], weights=sys.argv[2] == "weights")
except SourceError as error:
    print("error", error)
else:
    print(*sorted(path.name for path in folder.iterdir()))
"""


class Hub(BaseHTTPRequestHandler):
    """A hub with one model, `known/model`. It answers `broken/*` with a server error and `slow/*` never."""

    requests: list[str]
    closing: threading.Event

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path.startswith("/api/models/known/model/tree"):
            files = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in HUB_FILES.items()
            ]
            self.answer(200, json.dumps(files).encode())
        elif self.path.startswith("/api/models/known/model"):
            siblings = [{"rfilename": name} for name in HUB_FILES]
            self.answer(200, json.dumps({"id": "known/model", "sha": SHA, "siblings": siblings}).encode())
        elif self.path.startswith("/known/model/resolve/"):
            self.answer(200, HUB_FILES[self.path.partition(SHA + "/")[2]])
        elif "broken" in self.path:
            self.answer(500, b"")
        elif "slow" in self.path:
            self.closing.wait()
        else:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        digest = hashlib.sha1(body).hexdigest()
        fixed = {"Content-Length": str(len(body)), "ETag": f'"{digest}"', "X-Repo-Commit": SHA}
        for name, value in {**fixed, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """Yield the address of a hub on this machine, and the paths of its requests."""
    requests: list[str] = []
    closing = threading.Event()
    handler = type("CountingHub", (Hub,), {"requests": requests, "closing": closing})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    closing.set()
    server.shutdown()
    thread.join()
    server.server_close()


def locate_in_subprocess(
    name: str, home: Path, endpoint: str, weights: bool = True, patience: float = 30, **environment: str
) -> str:
    """Run `locate` in a new process, whose hub is at `endpoint`; return its output."""
    inherited = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    inherited.pop("HF_HUB_OFFLINE", None)
    inherited.pop("TRANSFORMERS_OFFLINE", None)
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, name, "weights" if weights else "", str(patience)],
        env={**inherited, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, **environment},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


def write_index(file: Path, *shards: str) -> None:
    weight_map = {f"weight {n}": shard for n, shard in enumerate(shards)}
    file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


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


def test_weights_are_needed_only_beside_a_config(tmp_path: Path) -> None:
    write(tmp_path, "unet/config.json", "scheduler/scheduler_config.json", "unet/readme.safetensors")
    files = ["unet/config.json", "scheduler/scheduler_config.json"]
    assert locate(str(tmp_path), files, weights=False) == tmp_path
    with pytest.raises(SourceError, match=r"weights .* in unet/"):
        locate(str(tmp_path), files)
    write(tmp_path, "unet/diffusion_pytorch_model.bin")
    assert locate(str(tmp_path), files) == tmp_path


def test_a_missing_shard_or_index_is_named(tmp_path: Path) -> None:
    write(tmp_path, "config.json", "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors")
    lacking = r"lacks 'model-00002-of-00003\.safetensors', 'model\.safetensors\.index\.json';"
    with pytest.raises(SourceError, match=lacking):
        locate(str(tmp_path), ["config.json"])
    write(tmp_path, "model-00002-of-00003.safetensors")
    with pytest.raises(SourceError, match=r"lacks 'model\.safetensors\.index\.json';"):
        locate(str(tmp_path), ["config.json"])
    write_index(tmp_path / "model.safetensors.index.json", *SHARDS)
    assert locate(str(tmp_path), ["config.json"]) == tmp_path


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


def test_a_compressed_pickle_is_refused(tmp_path: Path) -> None:
    """Libraries map its entries into memory as if they were weights."""
    write(tmp_path, "config.json")
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"")
    with pytest.raises(SourceError, match=r"pytorch_model\.bin: .* a zip file with compressed entries"):
        locate(str(tmp_path), ["config.json"])


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "expected a JSON object with a 'weight_map' of tensors to shards"),
        ("[]", "expected a JSON object with a 'weight_map' of tensors to shards"),
        ('{"weight_map": {}}', "expected a JSON object with a 'weight_map' of tensors to shards"),
        (
            '{"weight_map": {"a": "other.safetensors"}}',
            r"lists 'other\.safetensors', which is missing or not named",
        ),
        (
            '{"weight_map": {"a": "../model.safetensors"}}',
            r"lists '\.\./model\.safetensors', which is missing",
        ),
        *(
            (
                json.dumps({"weight_map": dict(zip("abc", SHARDS, strict=True)), **metadata}),
                "expected a JSON object with an object 'metadata'",
            )
            for metadata in ({}, {"metadata": None}, {"metadata": []})
        ),
    ],
)
def test_an_index_lists_the_shards_beside_it(tmp_path: Path, index: str, message: str) -> None:
    write(tmp_path, "config.json", "other.safetensors", *SHARDS)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(SourceError, match=rf"model\.safetensors\.index\.json:? {message}"):
        locate(str(tmp_path), ["config.json"])
    assert locate(str(tmp_path), ["config.json"], weights=False) == tmp_path


@pytest.mark.parametrize(
    ("config", "name", "message"),
    [
        (
            {"model_type": "llama"},
            "diffusion_pytorch_model.safetensors",
            "transformers.* reads model or pytorch_model",
        ),
        (
            {"_class_name": "AutoencoderKL"},
            "model.safetensors",
            "diffusers.* reads diffusion_pytorch_model and not",
        ),
        (
            {"_class_name": "AutoencoderKL"},
            "pytorch_model.bin",
            "diffusers.* reads diffusion_pytorch_model and not",
        ),
        (
            {"model_type": "llama", "transformers_weights": "a.safetensors"},
            "model.safetensors",
            "names 'a.safetensors'",
        ),
    ],
)
def test_weights_are_those_that_the_library_reads(
    tmp_path: Path, config: dict[str, str], name: str, message: str
) -> None:
    write(tmp_path, name)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match=message):
        locate(str(tmp_path), ["config.json"])
    (tmp_path / "config.json").write_text("{}")
    assert locate(str(tmp_path), ["config.json"]) == tmp_path


def test_only_diffusers_reads_an_index_beside_a_whole_file(tmp_path: Path) -> None:
    for config, stem in (
        ({"model_type": "llama"}, "model"),
        ({"_class_name": "A"}, "diffusion_pytorch_model"),
    ):
        folder = tmp_path / stem
        write(folder, f"{stem}.safetensors")
        (folder / "config.json").write_text(json.dumps(config))
        write_index(folder / f"{stem}.safetensors.index.json", f"{stem}-00001-of-00001.safetensors")
        if stem == "model":
            assert locate(str(folder), ["config.json"]) == folder
        else:
            with pytest.raises(
                SourceError, match=r"lists 'diffusion_.*00001\.safetensors', which is missing"
            ):
                locate(str(folder), ["config.json"])


def test_the_shards_of_an_index_are_missed(tmp_path: Path) -> None:
    write(tmp_path, "config.json", "pytorch_model.bin.index.json")
    with pytest.raises(SourceError, match=r"lacks the shards that 'pytorch_model\.bin\.index\.json' lists"):
        locate(str(tmp_path), ["config.json"])


def test_a_shard_of_a_huge_number_is_refused_at_once(tmp_path: Path) -> None:
    write(tmp_path, "config.json", f"model-1-of-{'9' * 30}.safetensors")
    with pytest.raises(SourceError, match=r" and \d+ more;"):
        locate(str(tmp_path), ["config.json"])


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("model.fp16.safetensors", r"variant 'fp16'.*; rename it to model\.safetensors"),
        ("pytorch_model.non_ema.bin", r"variant 'non_ema'.*; rename it to pytorch_model\.bin"),
        (
            "diffusion_pytorch_model.bf16.safetensors",
            r"variant 'bf16'.*; rename it to diffusion_pytorch_model\.safetensors",
        ),
        ("model.fp16-00001-of-00002.safetensors", "with variant='fp16' in its library, and save it without"),
        ("adapter_model.safetensors", "an adapter without the weights that it adapts"),
        ("pytorch_lora_weights.safetensors", "an adapter without the weights that it adapts"),
        ("consolidated.00.pth", r"rename it to model\.safetensors"),
        ("v1-5-pruned.ckpt", "from_single_file"),
        ("llama-q4.gguf", "weights before quantization"),
        ("tf_model.h5", "TensorFlow"),
        ("flax_model.msgpack", "JAX"),
    ],
)
@pytest.mark.parametrize("parent", ["", "unet/"])
def test_weights_of_another_name_are_listed_with_a_remedy(
    tmp_path: Path, name: str, remedy: str, parent: str
) -> None:
    write(tmp_path, f"{parent}config.json", f"{parent}{name}", f"{parent}training_args.bin")
    with pytest.raises(SourceError) as caught:
        locate(str(tmp_path), [f"{parent}config.json"])
    assert re.search(rf"lacks weights .* \(it has '{parent}{re.escape(name)}': .*{remedy}", str(caught.value))
    assert "training_args" not in str(caught.value).partition("; it holds")[0]
    (tmp_path / parent / "config.json").unlink()
    with pytest.raises(
        SourceError, match=rf"lacks '{parent}config\.json' \(it has '{parent}{re.escape(name)}"
    ):
        locate(str(tmp_path), [f"{parent}config.json"])


@pytest.mark.parametrize("name", ["model.safetensors", "v1-5.ckpt", "other.gguf"])
@pytest.mark.parametrize("prefix", ["./", ""])
def test_a_single_file_is_refused_with_its_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, prefix: str
) -> None:
    write(tmp_path, name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=rf"got '{prefix}{name}', a single file; convert it"):
        locate(f"{prefix}{name}", ["config.json"])
    if prefix:
        write(tmp_path, "config.json")
        with pytest.raises(SourceError, match=f"is a file; name the folder that holds it: '{tmp_path}'"):
            locate(f"{prefix}{name}", ["config.json"])


@pytest.mark.parametrize("place", ["", "unet/"])
@pytest.mark.parametrize("weights", [True, False])
def test_an_adapter_beside_weights_is_refused(tmp_path: Path, place: str, weights: bool) -> None:
    """transformers would apply it to the weights without a word."""
    write(tmp_path, "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer.json")
    files = ["unet/config.json"]
    assert locate(str(tmp_path), files, weights=weights) == tmp_path
    write(tmp_path, f"{place}adapter_config.json")
    with pytest.raises(SourceError, match=rf"got an adapter of peft .*\({place}adapter_config\.json\)"):
        locate(str(tmp_path), files, weights=weights)
    assert locate(str(tmp_path), ["tokenizer.json"], weights=False) == tmp_path
    assert fingerprint(str(tmp_path))


def test_an_adapter_in_the_hub_cache_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "models--owner--name" / "snapshots" / SHA
    write(snapshot, "config.json", "model.safetensors", "adapter_config.json")
    write(snapshot.parents[1], "refs/main")
    (snapshot.parents[1] / "refs/main").write_text(SHA)
    for name in ("owner/name", str(snapshot)):
        with pytest.raises(SourceError, match=f"'{name}': expected weights alone, got an adapter of peft"):
            locate(name, ["config.json"])


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


def test_an_unknown_hub_name_is_requested_once(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, requests = hub
    message = locate_in_subprocess("nobody/nothing", tmp_path, endpoint)
    assert requests == ["/api/models/nobody/nothing"]
    for words in ("nobody/nothing", str(tmp_path / "hub"), endpoint, "does not exist", "HF_HOME"):
        assert words in message


def test_an_error_of_the_hub_is_not_retried(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, requests = hub
    assert "answered with an error" in locate_in_subprocess("broken/model", tmp_path, endpoint)
    assert requests == ["/api/models/broken/model"]


def test_a_silent_hub_times_out(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, requests = hub
    message = locate_in_subprocess("slow/model", tmp_path, endpoint, patience=0.5)
    assert "could not be reached" in message and "no answer within 0.5 seconds" in message
    assert requests == ["/api/models/slow/model"]


def test_an_unreachable_hub_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    message = locate_in_subprocess("nobody/nothing", tmp_path, "http://127.0.0.1:9")
    for words in ("nobody/nothing", str(tmp_path / "hub"), "could not be reached", "local folder", "HF_HOME"):
        assert words in message


def test_offline_sends_no_request(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, requests = hub
    assert "HF_HUB_OFFLINE" in locate_in_subprocess("known/model", tmp_path, endpoint, HF_HUB_OFFLINE="1")
    assert requests == []


def test_only_needed_files_are_downloaded_and_then_cached(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, requests = hub
    assert (
        locate_in_subprocess("known/model", tmp_path, endpoint, weights=False) == "config.json tokenizer.json"
    )
    assert "/api/models/known/model" in requests
    del requests[:]
    assert (
        locate_in_subprocess("known/model", tmp_path, endpoint, weights=False) == "config.json tokenizer.json"
    )
    assert requests == []
    # of the weights, only the safetensors are downloaded
    assert (
        locate_in_subprocess("known/model", tmp_path, endpoint)
        == "config.json model.safetensors tokenizer.json"
    )
    assert not any("pytorch_model" in path or "other/" in path for path in requests)
    del requests[:]
    assert "model.safetensors" in locate_in_subprocess("known/model", tmp_path, endpoint, HF_HUB_OFFLINE="1")
    assert requests == []


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
