"""Images in memory and from the disk: the right pixels, in the right order, and refused where they are damaged."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import threading

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from frankenstein.experiments.data import DataError, Images, batches, images, in_order, order, stream

N = 300  # more than two blocks of the decoding threads


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FRANKENSTEIN_CACHE", str(tmp_path / "cache"))
    images.cache_clear()
    yield tmp_path / "cache"
    images.cache_clear()


def encoded(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write(folder, files, labels=None):
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"img": files, "label": [i % 10 for i in range(len(files))] if labels is None else labels}
    (folder / "cifar10_12k").mkdir(exist_ok=True)
    datasets.Dataset.from_dict(rows, features).to_parquet(folder / "cifar10_12k" / "train.parquet")
    return folder


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 256, (N, 12, 10, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, noise):
    return write(tmp_path, [encoded(image) for image in noise])


def cached(cache):
    (path,) = (cache / "images").glob("*.npy")
    return path


def refusal(call):
    with pytest.raises(DataError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_pixels_and_labels_are_those_of_the_files(folder, noise):
    found = images("cifar10_12k", "train", folder)
    assert found.pixels.dtype == torch.uint8 and found.labels.dtype == torch.int64 and len(found) == N
    assert np.array_equal(found.pixels.numpy(), noise.transpose(0, 3, 1, 2))
    assert found.labels.tolist() == [i % 10 for i in range(N)]
    assert images("cifar10_12k", "train", folder) is found  # all runs of a process share it


def test_real_images_are_those_of_an_independent_decoder(shared):
    """The library's own decoding of the same file; labels beside them."""
    found = images("cifar10_12k", "test", shared / "data")
    path = shared / "data" / "cifar10_12k" / "test.parquet"
    rows = datasets.Dataset.from_parquet(str(path), cache_dir=os.environ["FRANKENSTEIN_CACHE"])
    for row in range(0, len(rows), 97):
        assert np.array_equal(found.pixels[row].permute(1, 2, 0).numpy(), np.asarray(rows[row]["img"].convert("RGB")))
        assert found.labels[row] == rows[row]["label"]


def test_grey_and_other_modes_become_rgb(tmp_path):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    alpha = np.dstack([grey, grey, grey, np.full_like(grey, 128)])
    found = images("cifar10_12k", "train", write(tmp_path, [encoded(grey), encoded(alpha)]))
    for pixels in found.pixels:
        assert all(np.array_equal(channel.numpy(), grey) for channel in pixels)


def test_the_short_side_is_resized_and_the_middle_kept(tmp_path):
    """The same as the other way round: the whole image resized, then the middle cut out."""
    rows, columns = np.mgrid[:60, :100]
    smooth = np.dstack([2 * columns, 4 * rows, columns + rows]).astype(np.uint8)
    for image in (smooth, smooth.transpose(1, 0, 2)):
        write(tmp_path, [encoded(np.ascontiguousarray(image))])
        images.cache_clear()
        (found,) = images("cifar10_12k", "train", tmp_path, size=30).pixels.permute(0, 2, 3, 1).numpy()
        whole = Image.fromarray(np.ascontiguousarray(image)).resize((image.shape[1] // 2, image.shape[0] // 2), 2)
        top, left = ((side - 30) // 2 for side in (whole.height, whole.width))
        middle = np.asarray(whole)[top : top + 30, left : left + 30]
        assert found.shape == (30, 30, 3) and np.abs(found.astype(int) - middle).max() <= 1  # rounded twice


def test_images_of_different_sizes_need_a_size(tmp_path, noise):
    write(tmp_path, [encoded(noise[0]), encoded(noise[1][:7])])
    message = refusal(lambda: images("cifar10_12k", "train", tmp_path))
    assert message.endswith("train.parquet, row 1: the image has 10 x 7 pixels and the first has 10 x 12")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_damaged_image_is_named_by_file_and_row(tmp_path, noise, cache, kind):
    files = [encoded(image, kind) for image in noise]
    files[217] = files[217][: len(files[217]) // 2]
    files[250] = b"no image"
    write(tmp_path, files)
    message = refusal(lambda: images("cifar10_12k", "train", tmp_path))
    assert (
        message.startswith("cifar10_12k/train.parquet, row 217: damaged image (") and "copy the file again" in message
    )
    assert [path.suffix for path in (cache / "images").iterdir()] == [".lock"]  # nothing half made
    read = stream("cifar10_12k", "train", tmp_path, size=8, n_threads=1)
    assert refusal(lambda: list(read.read([torch.arange(200, 230)]))) == message
    assert "row 250: damaged image (no image file)" in refusal(lambda: list(read.read([torch.tensor([250])])))


def test_a_set_without_images(shared):
    for of in (images, stream):
        message = refusal(lambda of=of: of("imdb", "test", shared / "data", size=8))
        assert message == "imdb has no images; it has: text, label"


def test_the_cache_is_used_and_one_that_is_damaged_is_made_again(folder, cache):
    pixels = images("cifar10_12k", "train", folder).pixels.clone()
    path = cached(cache)
    whole = path.read_bytes()

    def again():
        images.cache_clear()
        assert torch.equal(images("cifar10_12k", "train", folder).pixels, pixels)
        return path.stat().st_ino

    first = path.stat().st_ino
    assert again() == first
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[: len(whole) // 2], whole[:-1], whole[:20], b"", bytes(flipped)):
        path.write_bytes(damaged)
        before = path.stat().st_ino
        assert again() != before and path.read_bytes() == whole


def test_other_bytes_and_other_sizes_have_their_own_cache(folder, noise, cache):
    images("cifar10_12k", "train", folder, size=8)
    write(folder, [encoded(255 - image) for image in noise])
    images.cache_clear()
    found = images("cifar10_12k", "train", folder)
    assert np.array_equal(found.pixels.numpy(), 255 - noise.transpose(0, 3, 1, 2))
    assert len(list((cache / "images").glob("*.npy"))) == 2


def test_what_a_run_writes_into_its_pixels_reaches_no_other_run(folder, cache):
    pixels = images("cifar10_12k", "train", folder).pixels
    before = cached(cache).read_bytes()
    pixels.zero_()
    assert cached(cache).read_bytes() == before


def test_a_disk_without_room(folder, monkeypatch, cache):
    images("cifar10_12k", "train", folder, size=4)  # the rows have their copy
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**6, 10**6 - 999, 999))
    message = refusal(lambda: images("cifar10_12k", "train", folder))
    assert f"the cache in {cache / 'images'} needs 0.000108 GB and the disk has 9.99e-07 GB" in message


def test_processes_that_ask_at_once_decode_once_and_a_kill_leaves_nothing_half(folder, cache):
    program = (
        "import sys, time; from pathlib import Path; from frankenstein.experiments.data import images\n"
        "module = sys.modules['frankenstein.experiments.data.images']; whole = module._decode_all\n"
        "def slow(*arguments): print('decodes', flush=True); time.sleep(float(sys.argv[2])); whole(*arguments)\n"
        "module._decode_all = slow; print(images('cifar10_12k', 'train', Path(sys.argv[1])).pixels.sum().item())"
    )

    def start(seconds):
        command = [sys.executable, "-c", program, str(folder), str(seconds)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    with start(60) as killed:
        assert killed.stdout.readline() == "decodes\n"
        with start(0.5) as one, start(0.5) as other:  # both wait for the first, which never ends
            assert not list((cache / "images").glob("*.npy"))
            killed.kill()
            outputs = [process.communicate(timeout=60)[0].split() for process in (one, other)]
    assert sum("decodes" in words for words in outputs) == 1 and outputs[0][-1] == outputs[1][-1]
    assert {path.suffix for path in (cache / "images").iterdir()} == {".npy", ".lock"}


def test_an_epoch_is_a_permutation_from_seed_and_epoch_alone():
    torch.manual_seed(0)
    first = order(100, 3, 5)
    torch.manual_seed(1)
    assert torch.equal(order(100, 3, 5), first) and sorted(first.tolist()) == list(range(100))
    others = [order(100, 3, 6), order(100, 4, 5), order(100, 5, 3)]
    assert not any(torch.equal(first, other) for other in others)


def numbered(n):
    """Images whose only pixel is their number."""
    return Images(torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 1, 1), torch.arange(n), None)


def rows_of(found):
    return [labels.tolist() for _pixels, labels in found]


def test_batches_go_through_the_order_and_leave_the_short_last_one_out():
    pixels = torch.cat([pixels[:, 0, 0, 0] for pixels, _ in batches(numbered(50), 1, 2, 8)])
    assert pixels.tolist() == order(50, 1, 2)[:48].tolist()
    assert [row for rows in rows_of(batches(numbered(50), 1, 2, 8)) for row in rows] == pixels.tolist()


def test_a_run_that_goes_on_sees_the_batches_that_were_left():
    every = rows_of(batches(numbered(50), 1, 2, 8))
    for first in range(7):
        assert rows_of(batches(numbered(50), 1, 2, 8, first=first)) == every[first:]


def test_ranks_share_every_batch():
    every = rows_of(batches(numbered(50), 1, 2, 8))
    shares = [rows_of(batches(numbered(50), 1, 2, 8, rank=rank, n_ranks=4)) for rank in range(4)]
    assert [[row for part in parts for row in part] for parts in zip(*shares, strict=True)] == every


def test_ranks_score_every_image_once():
    shares = [rows_of(in_order(numbered(11), 4, rank, 3)) for rank in range(3)]
    assert sorted(row for share in shares for rows in share for row in rows) == list(range(11))
    assert rows_of(in_order(numbered(11), 4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


@pytest.mark.parametrize(
    "batch_size, n_ranks, expected",
    [(51, 1, "a batch has 51 images and the split 50"), (0, 1, "a batch has 0"), (8, 3, "3 processes cannot share")],
)
def test_batches_that_cannot_be(batch_size, n_ranks, expected):
    assert expected in refusal(lambda: batches(numbered(50), 0, 0, batch_size, n_ranks=n_ranks))


@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_stream_gives_what_memory_gives(folder, n_threads):
    """The same batches, bit by bit, and no number taken from the global generator."""
    memory = images("cifar10_12k", "train", folder, size=8)
    disk = stream("cifar10_12k", "train", folder, size=8, n_threads=n_threads)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    pairs = list(zip(batches(memory, 1, 0, 64, first=1), batches(disk, 1, 0, 64, first=1), strict=True))
    assert len(pairs) == 3 and torch.equal(torch.get_rng_state(), state)
    for (pixels, labels), (other_pixels, other_labels) in pairs:
        assert torch.equal(pixels, other_pixels) and torch.equal(labels, other_labels)


def test_a_stream_shares_the_processors_with_the_other_processes_of_a_training(folder, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert stream("cifar10_12k", "train", folder, size=8).n_threads == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert stream("cifar10_12k", "train", folder, size=8).n_threads == 4


def test_a_stream_that_is_left_early_asked_for_little_and_ends_its_threads(folder, monkeypatch):
    asked, before = [], set(threading.enumerate())
    module = sys.modules["frankenstein.experiments.data.stream"]

    class Counted(module.ThreadPoolExecutor):
        def submit(self, *arguments):
            asked.append(arguments)
            return super().submit(*arguments)

    monkeypatch.setattr(module, "ThreadPoolExecutor", Counted)
    found = batches(stream("cifar10_12k", "train", folder, size=8, n_threads=2), 1, 0, 4)
    next(found)
    assert len(asked) == 1 + module.AHEAD  # of 75 batches, each of one part
    found.close()
    assert set(threading.enumerate()) == before
