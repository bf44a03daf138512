"""Downloads of public models from a server on loopback: once, atomically, by digest, and with a fix when they fail."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import published
import pytest
from file_server import Server, serving
from published import WORDS

from ulmfit_dist.errors import UserError
from ulmfit_dist.pretrained.download import cached_model, download_model, file_name
from ulmfit_dist.pretrained.reader import describe_model
from ulmfit_dist.pretrained.registry import PublicModel, find_public_model, public_models


@pytest.fixture
def server() -> Iterator[Server]:
    with serving({}) as started:
        yield started


@pytest.fixture
def model(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PublicModel:
    """A model of both directions in one archive, in place of a real one; the cache is empty."""
    monkeypatch.setenv("ULMFIT_DIST_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "made"
    for part, seed in (("fwd", 0), ("bwd", 1)):
        published.write_torch(folder / part / "model.pth", published.lstm_tensors(len(WORDS), 2, seed))
        published.write_pickle(folder / part / "vocab.pkl", WORDS)
    content = published.make_tgz(folder, tmp_path / "model.tgz").read_bytes()
    server.files = {"/moved": "/model.tgz", "/model.tgz": content, "/cut.tgz": content[:-10]}
    server.files |= {"/page": b"<html>Do you want to download it?</html>", "/bad.tgz": b"\x1f\x8b" + bytes(500)}
    server.pages, server.cut = {"/page"}, {"/cut.tgz"}
    return of_addresses(f"{server.address}/moved")


def of_addresses(*addresses: str) -> PublicModel:
    real = find_public_model("de")
    assert real is not None
    return dataclasses.replace(real, name="xx", forwards=addresses, backwards=addresses)


def test_a_model_is_downloaded_once_for_both_directions(
    server: Server, model: PublicModel, caplog: pytest.LogCaptureFixture
):
    assert cached_model(model, backwards=False) is None
    folder = download_model(model, backwards=False)
    assert describe_model(folder, backwards=True).files.backwards is True
    assert download_model(model, backwards=True) == folder == cached_model(model, backwards=False)
    assert server.asked == ["/moved", "/model.tgz"]
    (folder / ".complete").unlink()
    (folder / "made/fwd/vocab.pkl").unlink()
    assert (download_model(model, backwards=False) / "made/fwd/vocab.pkl").is_file()
    assert sorted(path.name for path in folder.parent.iterdir() if path.is_dir()) == ["digests", "xx"]


def test_many_threads_and_processes_wait_for_one_download(server: Server, model: PublicModel):
    threads = [threading.Thread(target=download_model, args=(model, False)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked == ["/moved", "/model.tgz"]


def test_files_without_an_archive_lie_side_by_side(server: Server, model: PublicModel, tmp_path: Path):
    for name in ("model.pth", "vocab.pkl"):
        server.files[f"/{name}"] = (tmp_path / "made/fwd" / name).read_bytes()
    apart = dataclasses.replace(of_addresses(*(f"{server.address}/{name}?dl=1" for name in ("model.pth", "vocab.pkl"))))
    server.files |= {f"{path}?dl=1": content for path, content in server.files.items()}
    assert describe_model(download_model(apart, backwards=False)).shape.vocab_size == len(WORDS)


def test_the_digest_of_the_first_download_is_kept(server: Server, model: PublicModel, tmp_path: Path):
    folder = download_model(model, backwards=False)
    (folder / ".complete").unlink()
    server.files["/model.tgz"] = server.files["/model.tgz"] + b"\0"
    with pytest.raises(
        UserError, match=r"its SHA-256 is [0-9a-f]{64}, expected [0-9a-f]{64}: .* if so, remove (\S+)"
    ) as raised:
        download_model(model, backwards=False)
    Path(str(raised.value).rpartition("remove ")[2]).unlink()
    assert download_model(model, backwards=False) == folder


def test_a_known_digest_is_held_to(server: Server, model: PublicModel):
    known = dataclasses.replace(model, sha256={model.forwards[0]: "0" * 64})
    with pytest.raises(UserError, match=r"expected 0{64}: the download is damaged, or its publisher has replaced the file$"):
        download_model(known, backwards=False)
    assert cached_model(known, backwards=False) is None


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/none.tgz", "404 Client Error"),
        ("/cut.tgz", "cannot be downloaded"),
        ("/page", "the server shows a page in place of the file"),
    ],
)
def test_a_failed_download_says_where_to_put_the_file(server: Server, model: PublicModel, path: str, reason: str):
    broken = of_addresses(f"{server.address}{path}")
    with pytest.raises(UserError, match=f"{reason}.* put it at (\\S+), or set model.pretrained to a folder") as raised:
        download_model(broken, backwards=False)
    assert "\n" not in str(raised.value)
    manual_path = Path(str(raised.value).rpartition("put it at ")[2].partition(", or")[0])
    manual_path.parent.mkdir(parents=True)
    manual_path.write_bytes(server.files["/model.tgz"])
    server.shutdown()
    assert describe_model(download_model(broken, backwards=False)).shape.n_layers == 2
    assert manual_path.is_file()


def test_without_a_network_there_is_one_line(model: PublicModel):
    unreachable = of_addresses("http://127.0.0.1:9/model.tgz")
    with pytest.raises(UserError, match=r"model\.pretrained=xx: \S+ cannot be downloaded \(ConnectionError\)"):
        download_model(unreachable, backwards=False)


def test_a_damaged_archive_is_refused_and_leaves_nothing(server: Server, model: PublicModel, tmp_path: Path):
    with pytest.raises(UserError, match="refused: it is damaged"):
        download_model(of_addresses(f"{server.address}/bad.tgz"), backwards=False)
    assert [path.name for path in (tmp_path / "cache/pretrained").iterdir() if path.name != "digests"] in (["xx.lock"], [])


def test_a_cache_that_cannot_be_written_is_named(model: PublicModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ULMFIT_DIST_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be used .* set ULMFIT_DIST_CACHE to a folder"):
        download_model(model, backwards=False)


def test_names_of_files_in_addresses():
    assert file_name("https://example.org/a/b%20c.tgz") == "b_c.tgz"
    assert file_name("https://example.org/uc?id=1AbC-d") == "1AbC-d"
    assert file_name("https://example.org/s/x/export.pkl?raw=1") == "export.pkl"
    assert file_name("https://example.org/") == "model"


def test_every_public_model_is_complete():
    for name, model in public_models().items():
        assert model.forwards or model.backwards, name
        assert model.license and model.source and model.tokenizer, name  # noqa: PT018
        assert model.page.startswith("https://"), name
        assert all(address.startswith(("http://", "https://")) for address in (*model.forwards, *model.backwards)), name
        assert model.config["tokenizer.type"] in ("word", "sentencepiece"), name
        assert set(model.sha256) <= {*model.forwards, *model.backwards}, name
    assert {"de", "nl", "ru", "pt", "vi", "ja", "it", "es", "ko", "th", "he", "ar", "uk", "multifit_zh", "hi"} <= set(
        public_models()
    )
    with pytest.raises(UserError, match=r"has only a model that reads forwards: set model\.backwards=false"):
        public_models()["multifit_de"].addresses(backwards=True)
