import gzip
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tasks.errors import ParamsInvalid, ServiceUnreachable
from tasks.sources.fetch import PUBLIC, fetch_public, from_url


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_a_plain_url_is_fetched_once(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "rows").write_bytes(b"5 5 22\n" * 1000)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "home"))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        homes = {"logs": (from_url("logs/rows.gz", f"http://127.0.0.1:{server.server_port}/rows"),)}
        assert fetch_public("logs", tmp_path / "sources", homes) == {"logs/rows.gz": True}
        assert gzip.decompress((tmp_path / "sources/logs/rows.gz").read_bytes()) == b"5 5 22\n" * 1000
        assert fetch_public("logs", tmp_path / "sources", homes) == {"logs/rows.gz": False}
        server.shutdown()


def test_offline_says_where_to_put_the_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    homes = {"logs": (from_url("logs/rows", "http://127.0.0.1:9/rows"),)}
    with pytest.raises(ServiceUnreachable, match="by hand") as caught:
        fetch_public("logs", tmp_path, homes)
    assert "127.0.0.1:9" in str(caught.value)
    assert list((tmp_path / "logs").iterdir()) == []


def test_a_detector_without_public_data_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ParamsInvalid, match="kddcup99"):
        fetch_public("payments", tmp_path)


def test_kddcup99_takes_its_published_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame({"duration": [0, 1], "protocol": [b"tcp", b"udp"], "labels": [b"normal.", b"smurf."]})
    monkeypatch.setattr("sklearn.datasets.fetch_kddcup99", lambda **_: SimpleNamespace(frame=frame))
    fetch_public("kddcup99", tmp_path)
    with gzip.open(tmp_path / PUBLIC["kddcup99"][0].path, "rt") as file:
        assert file.read().split() == ["0,tcp,normal.", "1,udp,smurf."]


def test_mnist_becomes_an_archive_of_images_and_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = SimpleNamespace(data=np.arange(3 * 784) % 256, target=np.array(["5", "0", "4"]))
    digits.data = digits.data.reshape(3, 784).astype(float)
    monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda *_, **__: digits)
    fetch_public("mnist", tmp_path)
    archive = np.load(tmp_path / "mnist/mnist_train.npz")
    assert archive["images"].shape == (3, 28, 28)
    assert archive["images"].dtype == np.uint8
    assert archive["labels"].tolist() == [5, 0, 4]
