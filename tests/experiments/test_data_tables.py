"""Named data sets: found in a folder or on the hub, and refused in one line where something is wrong with them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from frankenstein.experiments.data import SOURCES, DataError, load
from frankenstein.experiments.experiment import ExperimentError

COMMIT = "e6611ddb8f0c0b2a2d2b2f1b1d8a8e9f00112233"


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Caches of a test's own, and a hub that does not answer: nothing of the user's is read."""
    monkeypatch.setenv("FRANKENSTEIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there


def png(value=0, mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, (8, 8), value if mode == "L" else (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write(path, columns=None):
    """Write a parquet file: images under "img", or anything under other names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = columns or {"img": [png(i) for i in range(20)], "label": [i % 10 for i in range(20)]}
    rows = datasets.Dataset.from_dict(columns)
    (rows.cast_column("img", datasets.Image()) if "img" in columns else rows).to_parquet(path)
    return path


def refusal(*arguments):
    """Return the one line that `load` refuses with."""
    with pytest.raises(ExperimentError) as caught:
        load(*arguments)
    assert type(caught.value) is DataError
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize(
    "file",
    ["train.parquet", "data/train-00000-of-00001.parquet", "train/0000.parquet", "cifar10-train.parquet"],
)
def test_a_split_is_found_by_the_words_of_its_file_or_folder(tmp_path, file):
    write(tmp_path / "cifar10_12k" / file)
    write(tmp_path / "cifar10_12k" / file.replace("train", "test"), {"img": [png()], "label": [3]})
    train, test = (load("cifar10_12k", split, tmp_path) for split in ("train", "test"))
    assert (len(train), len(test)) == (20, 1)
    assert train.rows.column_names == ["image", "label"] and train.rows[7]["label"] == 7
    assert train.rows[7]["image"]["bytes"] == png(7)  # not decoded


def test_what_a_record_says_of_the_data(tmp_path):
    path = write(tmp_path / "data" / "cifar10_12k" / "train.parquet")
    assert load("cifar10_12k", "train", tmp_path / "data").describe() == {
        "name": "cifar10_12k",
        "split": "train",
        "n": 20,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "origin": "data/cifar10_12k",
        "caveat": SOURCES["cifar10_12k"].caveat,
    }


def test_shards_are_read_in_order_and_a_row_is_found_in_its_file(tmp_path):
    for i in range(3):
        write(
            tmp_path / "cifar10_12k" / f"train-0000{i}-of-00003.parquet",
            {"img": [png()] * (i + 1), "label": [i] * (i + 1)},
        )
    table = load("cifar10_12k", "train", tmp_path)
    assert table.rows["label"][:] == [0, 1, 1, 2, 2, 2]
    assert [table.where(row).split("-", 1)[1] for row in (0, 1, 2, 5)] == [
        "00000-of-00003.parquet, row 0",
        "00001-of-00003.parquet, row 0",
        "00001-of-00003.parquet, row 1",
        "00002-of-00003.parquet, row 2",
    ]


def test_a_checksum_follows_the_file_that_it_was_taken_of(tmp_path):
    path = write(tmp_path / "cifar10_12k" / "train.parquet")
    first = load("cifar10_12k", "train", tmp_path).sha256
    assert load("cifar10_12k", "train", tmp_path).sha256 == first
    write(path, {"img": [png(200)], "label": [1]})
    changed = load("cifar10_12k", "train", tmp_path)
    assert changed.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() != first
    assert changed.rows["label"][:] == [1]


def test_a_folder_of_class_folders(tmp_path):
    for split, n in (("train", 2), ("val", 1)):
        for number in range(10):
            folder = tmp_path / "imagenette_96px" / split / f"n{number:02d}"
            folder.mkdir(parents=True)
            for i in range(n):
                (folder / f"{i}.JPEG").write_bytes(png(number))  # one of ImageNet's files is a PNG by that name, too
    train, test = (load("imagenette_96px", split, tmp_path) for split in ("train", "test"))
    assert train.rows["label"][:] == [i // 2 for i in range(20)] and test.rows["label"][:] == list(range(10))
    assert train.where(3) == str(tmp_path / "imagenette_96px" / "train" / "n01" / "1.JPEG")
    assert train.sha256 != test.sha256

    shutil.rmtree(tmp_path / "imagenette_96px" / "val" / "n09")
    assert "has 9 class folders, and imagenette_96px 10 classes" in refusal("imagenette_96px", "test", tmp_path)


def test_unknown_names_and_splits(tmp_path):
    assert refusal("cifar11", "train", tmp_path).startswith("no data set 'cifar11'; known: cifar10, cifar100,")
    assert refusal("alpaca_9k", "test", tmp_path) == "alpaca_9k has no split 'test'; it has: train"


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path):
    write(tmp_path / "cifar10_12k" / "train.parquet", {"picture": [1], "label": [1]})
    assert refusal("cifar10_12k", "train", tmp_path).endswith("has no column img or image; it has: picture, label")


@pytest.mark.parametrize(
    "columns, expected",
    [
        (
            {"img": [png()] * 3, "label": [0, 10, 1]},
            "train.parquet, row 1: label 10; cifar10_12k has labels from 0 to 9",
        ),
        ({"img": [png()] * 3, "label": [0, 1, -1]}, "train.parquet, row 2: label -1; cifar10_12k has labels from 0"),
        ({"img": [png()] * 3, "label": [0, None, 1]}, "train.parquet, row 1: no label; take the row out"),
        ({"img": [png(), png(), None], "label": [0, 1, 2]}, "train.parquet, row 2: no image; take the row out"),
        ({"img": [png()] * 2, "label": ["cat", "dog"]}, "column label does not hold whole numbers; it holds string"),
        ({"image": [1, 2], "label": [1, 2]}, "column image does not hold images; it holds int64"),
        ({"img": [], "label": []}, "split train has no rows"),
    ],
)
def test_rows_that_are_not_what_they_should_be(tmp_path, columns, expected):
    write(tmp_path / "cifar10_12k" / "train.parquet", columns)
    assert expected in refusal("cifar10_12k", "train", tmp_path)


def test_an_image_with_neither_bytes_nor_a_path(tmp_path):
    path = write(tmp_path / "cifar10_12k" / "train.parquet")
    table = pyarrow.parquet.read_table(path)
    image = pyarrow.array([{"bytes": None, "path": None}, {"bytes": png(), "path": None}] * 10, table["img"].type)
    pyarrow.parquet.write_table(table.set_column(0, "img", image).replace_schema_metadata(table.schema.metadata), path)
    assert "train.parquet, row 0: no image" in refusal("cifar10_12k", "train", tmp_path)


def test_a_part_of_a_published_set_is_not_taken_for_the_set(tmp_path):
    write(tmp_path / "cifar10" / "train.parquet")
    message = refusal("cifar10", "train", tmp_path)
    assert "split train has 20 rows, and cifar10 at least 50,000; the copy is not complete" in message


@pytest.mark.parametrize(
    "content, expected",
    [(b"", "the file is empty"), (b"img,label\n1,2\n" * 20, "Parquet magic bytes not found")],
)
def test_files_that_are_not_parquet(tmp_path, content, expected):
    (tmp_path / "cifar10_12k").mkdir()
    path = tmp_path / "cifar10_12k" / "train.parquet"
    path.write_bytes(content)
    message = refusal("cifar10_12k", "train", tmp_path)
    assert message.startswith(f"cannot read {path} as parquet: ") and expected in message


def test_a_parquet_file_with_damaged_pages(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 500), dtype=np.uint8)
    columns = {"img": [row.tobytes() for row in noise], "label": [0] * 40}
    path = write(tmp_path / "cifar10_12k" / "train.parquet", columns)
    content = bytearray(path.read_bytes())
    content[4:64] = bytes(60)  # the first page's header; the footer stays whole
    path.write_bytes(content)
    message = refusal("cifar10_12k", "train", tmp_path)
    assert message.startswith(f"cannot read the files in {path.parent}: ") and message.endswith("; copy them again")


def test_a_damaged_copy_of_the_rows_is_made_again(tmp_path):
    write(tmp_path / "cifar10_12k" / "train.parquet")
    load("cifar10_12k", "train", tmp_path)
    (copy,) = (tmp_path / "cache").rglob("*.arrow")
    n_bytes = copy.stat().st_size
    os.truncate(copy, n_bytes // 2)
    assert load("cifar10_12k", "train", tmp_path).rows[19]["image"]["bytes"] == png(19)
    assert copy.stat().st_size == n_bytes


def test_a_disk_without_room_for_the_copy(tmp_path, monkeypatch):
    write(tmp_path / "cifar10_12k" / "train.parquet")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(1000, 990, 10))
    message = refusal("cifar10_12k", "train", tmp_path)
    assert "GB and the disk has 1e-08 GB; name another folder by FRANKENSTEIN_CACHE" in message
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    write(tmp_path / "cifar10_12k" / "train.parquet")
    (tmp_path / "file").touch()
    monkeypatch.setenv("FRANKENSTEIN_CACHE", str(tmp_path / "file"))
    message = refusal("cifar10_12k", "train", tmp_path)
    assert message.startswith(f"cannot write {tmp_path / 'file'}") and "name another cache folder by" in message


def test_nothing_anywhere_names_both_ways(tmp_path):
    message = refusal("imagenet", "train", tmp_path)
    assert f"put its parquet files into {tmp_path / 'imagenet'} (--data-dir or FRANKENSTEIN_DATA)" in message
    assert "or fetch ILSVRC/imagenet-1k from the hub, which needs a network and an account" in message
    assert message.endswith("it cannot be reached")
    assert refusal("cifar10_12k", "train", None) == (
        "cifar10_12k is not here: put its parquet files into DIR/cifar10_12k (--data-dir or FRANKENSTEIN_DATA); "
        "it is on no hub"
    )


def test_a_folder_without_the_split_is_not_passed_over_in_silence(tmp_path):
    write(tmp_path / "cifar10" / "train.parquet")
    assert refusal("cifar10", "test", tmp_path).endswith(
        "has no split test: expected test.parquet or test/<class>/<image>"
    )


def test_the_hub_is_asked_for_its_own_names(tmp_path, monkeypatch):
    asked = []

    def load_dataset(name, *, split):
        asked.append((name, split))
        rows = datasets.Dataset.from_dict({"image": [png()] * 50_000, "label": [999] * 50_000})
        return rows.cast_column("image", datasets.Image())

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    table = load("imagenet", "test", tmp_path)
    assert asked == [("ILSVRC/imagenet-1k", "validation")]
    assert table.origin.startswith("hub:ILSVRC/imagenet-1k@") and len(table.sha256) == 64
    assert table.where(3) == f"{table.origin}, split test, row 3"


def test_the_fine_labels_of_cifar_100_are_taken(monkeypatch):
    n = 10_000
    columns = {
        "img": [png()] * n,
        "fine_label": [i % 100 for i in range(n)],
        "coarse_label": [i % 20 for i in range(n)],
    }
    rows = datasets.Dataset.from_dict(columns).cast_column("img", datasets.Image())
    monkeypatch.setattr(datasets, "load_dataset", lambda name, *, split: rows)
    assert load("cifar100", "test", None).rows.unique("label") == list(range(100))


def test_a_refusal_of_the_hub_is_passed_on(tmp_path, monkeypatch):
    def load_dataset(name, *, split):
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' is a gated dataset on the Hub.\nLog in.")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert refusal("imagenet", "test", None).endswith("'ILSVRC/imagenet-1k' is a gated dataset on the Hub")


class NotFound(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(404)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("answers", [True, False])
def test_the_library_is_told_to_stay_offline_only_where_the_hub_does_not_answer(monkeypatch, answers):
    offline = []

    def load_dataset(name, *, split):
        offline.append(datasets.config.HF_HUB_OFFLINE)
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with HTTPServer(("127.0.0.1", 0), NotFound) as server:
        if answers:
            monkeypatch.setattr(datasets.config, "HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        refusal("cifar10", "train", None)
        server.shutdown()
        thread.join()
    assert offline == [not answers] and datasets.config.HF_HUB_OFFLINE is False


def test_what_was_fetched_before_is_found_without_a_network(tmp_path, shared):
    """A cache as the library leaves it after fetching, under the commit on the hub."""
    files = {split: str(shared / "data" / "imdb" / f"{split}.parquet") for split in ("train", "test")}
    builder = datasets.load_dataset_builder("parquet", data_files=files, cache_dir=str(tmp_path / "made"))
    builder.download_and_prepare()
    folder = tmp_path / "hub" / "stanfordnlp___imdb" / "plain_text" / "0.0.0" / COMMIT
    shutil.copytree(builder.cache_dir, folder)
    for path in folder.glob("*.arrow"):
        path.rename(folder / path.name.replace("parquet-", "imdb-"))
    info = json.loads((folder / "dataset_info.json").read_text())
    info |= {"config_name": "plain_text", "dataset_name": "imdb"}
    (folder / "dataset_info.json").write_text(json.dumps(info))

    train, test = (load("imdb", split, tmp_path) for split in ("train", "test"))
    assert train.origin == f"hub:stanfordnlp/imdb@{COMMIT}"
    assert len(train) == len(test) == 25_000 and train.sha256 != test.sha256
    assert set(train.rows.unique("label")) == {0, 1} and isinstance(train.rows[0]["text"], str)


@pytest.mark.parametrize(
    "name, split, n, n_classes",
    [
        ("cifar10_12k", "train", 10_000, 10),
        ("cifar10_jpeg", "test", 10_000, 10),
        ("tinyimagenet100_32px", "test", 2_000, 100),
        ("imagenette_96px", "test", 1_000, 10),
        ("imdb", "test", 25_000, 2),
        ("alpaca_9k", "train", 9_229, None),
        ("omniglot_28px", "test", 13_180, 659),
    ],
)
def test_the_real_sets(shared, name, split, n, n_classes):
    table = load(name, split, shared / "data")
    assert len(table) == n and table.rows.column_names == list(SOURCES[name].columns)
    if n_classes:
        assert len(table.rows.unique("label")) == n_classes
