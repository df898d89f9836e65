"""Progress, hashing and memory beside the encryption."""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.errors import RefusedError
from engine.sealing.cobblestone import BLOCK_BYTES
from engine.sealing.hashing import HASH_BYTES, WAITING, Hasher, hashing_thread
from engine.sealing.memory import key_at
from engine.sealing.package import Progress, SealedPackage, _blocks, open_file, open_sealed, seal_package
from engine.sealing.prefault import prefaulting
from engine.worker.isolation import memfd

MIB = 1024 * 1024
LARGE = 9 * MIB + 3  # hashed on a thread of its own


def seal(files: dict[str, bytes | Path], out: Path, progress: Progress | None = None) -> SealedPackage:
    return seal_package(files, out, run_id="run-1", plan_digest="11" * 32, policy_digest="22" * 32, progress=progress)


def open_first(package: SealedPackage, stream: bytes | None = None, progress: Progress | None = None) -> bytes:
    entry = package.manifest.files[0]
    target = bytearray(entry.size)
    with open_sealed(package.folder, entry) as file:
        source = file if stream is None else io.BytesIO(stream)
        open_file(key_at(package.keys, 0), package.manifest, entry, source, memoryview(target), progress)
    return bytes(target)


def is_progress(seen: list[tuple[int, int]], total: int) -> bool:
    done = [each for each, _ in seen]
    return {each for _, each in seen} == {total} and done[0] == 0 and done[-1] == total and done == sorted(done)


@pytest.mark.parametrize("sizes", [(0,), (1, 0), (3 * BLOCK_BYTES, 10), (LARGE, 100), (0, 2 * HASH_BYTES)], ids=str)
def test_sealing_tells_how_far_it_is_from_nothing_to_the_total(sizes: tuple[int, ...], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    files: dict[str, bytes | Path] = {f"file-{number}": bytes(size) for number, size in enumerate(sizes)}
    seal(files, tmp_path / "package", lambda done, total: seen.append((done, total)))
    assert is_progress(seen, sum(sizes))
    assert len(seen) > sum(sizes) // BLOCK_BYTES


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES, 3 * BLOCK_BYTES + 1, LARGE])
def test_opening_tells_how_far_it_is_from_nothing_to_the_total(size: int, tmp_path: Path) -> None:
    package = seal({"file": bytes(size)}, tmp_path / "package")
    seen: list[tuple[int, int]] = []
    open_first(package, progress=lambda done, total: seen.append((done, total)))
    assert is_progress(seen, size)
    assert len(seen) > size // BLOCK_BYTES


@pytest.mark.parametrize("size", [BLOCK_BYTES, 3 * BLOCK_BYTES + 1])
def test_what_is_refused_is_never_told_as_whole(size: int, tmp_path: Path) -> None:
    package = seal({"file": bytes(size)}, tmp_path / "package")
    stream = (package.folder / "file.sealed").read_bytes()
    seen: list[int] = []
    for bad in (stream[:-1], stream + b"x"):
        with pytest.raises(RefusedError):
            open_first(package, bad, lambda done, _: seen.append(done))
    assert max(seen) < size


def test_sealing_that_its_progress_ends_leaves_nothing(tmp_path: Path) -> None:
    def give_up(done: int, _: int) -> None:
        if done > MIB:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        seal({"file": bytes(LARGE)}, tmp_path / "package", give_up)
    assert list((tmp_path / "package").iterdir()) == []


@pytest.mark.parametrize("of_file", [True, False])
def test_digests_are_those_of_the_content(of_file: bool, tmp_path: Path) -> None:
    contents = {f"file-{size}": os.urandom(size) for size in (0, 5, HASH_BYTES, LARGE)}
    files: dict[str, bytes | Path] = dict(contents)
    if of_file:
        for name, content in contents.items():
            files[name] = tmp_path / name
            (tmp_path / name).write_bytes(content)
    package = seal(files, tmp_path / "package")
    assert {entry.name: (entry.size, entry.sha256) for entry in package.manifest.files} == {
        name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in contents.items()
    }


def test_no_buffer_is_wiped_or_filled_again_before_it_is_hashed(tmp_path: Path) -> None:
    content = os.urandom((WAITING + 3) * HASH_BYTES - 5)
    (tmp_path / "source").write_bytes(content)
    with ThreadPoolExecutor(1) as pool:
        held = threading.Event()
        pool.submit(held.wait)
        threading.Timer(0.2, held.set).start()
        hasher = Hasher(pool)
        blocks = b"".join(map(bytes, _blocks("source", tmp_path / "source", len(content), hasher)))
        assert held.is_set()
        assert (blocks, hasher.hexdigest()) == (content, hashlib.sha256(content).hexdigest())


def test_only_what_is_large_gets_a_thread() -> None:
    with hashing_thread(MIB) as none, hashing_thread(LARGE) as thread:
        assert none is None
        assert thread is not None
        assert thread.submit(threading.current_thread).result() is not threading.current_thread()


def test_a_large_target_gets_its_memory_and_no_other_content() -> None:
    fd = memfd.create("target", LARGE)
    mapping = memfd.map_writable(fd)
    before = threading.active_count()
    with memoryview(mapping) as view:
        view[MIB : MIB + 6] = b"stays!"
        with prefaulting(view):
            until = time.monotonic() + 60
            while os.fstat(fd).st_blocks * 512 < LARGE - 2 * mmap.PAGESIZE and time.monotonic() < until:
                time.sleep(0.01)
        assert os.fstat(fd).st_blocks * 512 >= LARGE - 2 * mmap.PAGESIZE
        assert threading.active_count() == before
        assert bytes(view) == bytes(MIB) + b"stays!" + bytes(LARGE - MIB - 6)
    mapping.close()
    os.close(fd)


def test_no_thread_touches_a_target_after_the_block() -> None:
    with memoryview(bytearray(LARGE)) as view:
        before = threading.active_count()
        for _ in range(20):
            with prefaulting(view):
                pass
            assert threading.active_count() == before
