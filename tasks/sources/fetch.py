"""Download a public data set to the path under the sources folder where params.yaml expects it.

scikit-learn downloads its own data sets and OpenML's; the others are plain files at a URL. An existing file is not
touched, and a file gets its name only when the download is complete.
"""

import gzip
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np

from tasks.errors import ParamsInvalid, ServiceUnreachable

Fetch = Callable[[Path], None]  # writes the whole file to a path


@dataclass(frozen=True)
class PublicFile:
    """One file of a data set: its path under the sources folder, a description of its origin, and how to get it."""

    path: str
    home: str
    fetch: Fetch


def from_url(path: str, url: str) -> PublicFile:
    """A file that is used as published, except that it may be gzipped here."""

    def fetch(target: Path) -> None:
        packed = path.endswith(".gz") and not url.endswith(".gz")
        with fsspec.open(url, "rb") as remote, (gzip.open if packed else open)(target, "wb") as file:
            shutil.copyfileobj(remote, file, 1 << 20)

    return PublicFile(path, url, fetch)


def fetch_kddcup99(target: Path) -> None:
    """The 10 percent file as published: 41 features and the label, no header line."""
    from sklearn.datasets import fetch_kddcup99 as fetch

    frame = fetch(percent10=True, as_frame=True, data_home=str(target.parent)).frame
    texts = frame.map(lambda value: value.decode() if isinstance(value, bytes) else value)
    texts.to_csv(target, header=False, index=False, compression="gzip")


def fetch_mnist(target: Path) -> None:
    """The 60,000 training digits of OpenML's mnist_784 as uint8 (60000, 28, 28), with their labels."""
    from sklearn.datasets import fetch_openml

    found = fetch_openml("mnist_784", version=1, as_frame=False, parser="liac-arff", data_home=str(target.parent))
    images = found.data[:60_000].astype(np.uint8).reshape(-1, 28, 28)
    with target.open("wb") as file:
        np.savez_compressed(file, images=images, labels=found.target[:60_000].astype(np.uint8))


DEEPLOG = "https://raw.githubusercontent.com/wuyifan18/DeepLog/master/data"
ADBENCH = "https://raw.githubusercontent.com/Minqi824/ADBench/main/adbench/datasets/Classical"
TABLES = ("2_annthyroid", "6_cardio", "11_donors", "24_mnist", "26_optdigits", "28_pendigits", "30_satellite",
          "31_satimage-2", "32_shuttle", "34_smtp", "38_thyroid")  # fmt: skip
PUBLIC: Mapping[str, tuple[PublicFile, ...]] = {
    "kddcup99": (PublicFile("kddcup99/kddcup.data_10_percent.gz", "scikit-learn's fetch_kddcup99", fetch_kddcup99),),
    "creditcard": (
        from_url(
            "creditcard/creditcard.csv", "https://storage.googleapis.com/download.tensorflow.org/data/creditcard.csv"
        ),
    ),
    "mnist": (PublicFile("mnist/mnist_train.npz", "OpenML's mnist_784", fetch_mnist),),
    "hdfs": (
        from_url("hdfs/hdfs_train.gz", f"{DEEPLOG}/hdfs_train"),
        from_url("hdfs/hdfs_abnormal.gz", f"{DEEPLOG}/hdfs_test_abnormal"),
    ),
    "adbench": tuple(from_url(f"adbench/{name}.npz", f"{ADBENCH}/{name}.npz") for name in TABLES),  # for bench/
}


def fetch_public(name: str, sources: Path, homes: Mapping[str, tuple[PublicFile, ...]] = PUBLIC) -> dict[str, bool]:
    """Download a data set's missing files; returns each path and whether it was downloaded now.

    Raises ParamsInvalid for a detector without public data, ServiceUnreachable if the download fails.
    """
    if name not in homes:
        raise ParamsInvalid(
            f"{name} has no public data to download.",
            expected=", ".join(homes),
            todo=f"put the files of {name} under {sources} yourself",
        )
    return {file.path: _fetch(file, sources) for file in homes[name]}


def _fetch(file: PublicFile, sources: Path) -> bool:
    target = sources / file.path
    folder = target.parent
    if target.exists():
        return False
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{target.name}.part"
    try:
        file.fetch(unfinished)
    except Exception as error:
        unfinished.unlink(missing_ok=True)
        raise ServiceUnreachable(
            f"{file.path} cannot be downloaded.",
            where=file.home,
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no answer'}",
            expected="an answer from its public location",
            todo=f"check the network connection, or put the file at {target} by hand",
        ) from error
    unfinished.replace(target)
    return True
