"""Sealing and opening a large file against the library alone: `python -m tests.benchmarks.bench_sealing [--mib 2048]`.

The library's own rate is `Cobblestone256Encryptor.update_into` and `Cobblestone256Decryptor.update_into` over the same
bytes in one thread, with the best of four block sizes: sealing from a file to a new file, opening from a file to a
new file and into a fresh memory map. Ours is `seal_package` of that file, SHA-256 and
durability included, and `open_file` into the map of a fresh memfd, SHA-256 included. Both take turns in each round,
on the same files, which are in memory (/dev/shm, where a sync costs nothing) unless `--folder` names another place;
both sync. A ratio is that of two medians. Ours needs a second core for SHA-256: on one core, or under other load, the
ratio falls, so the share of the cores that other work took is printed too. The last lines give the rates of encryption
and hashing alone. Printed, never asserted.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor

from engine.sealing.cobblestone import CHUNK_BYTES, HEADER_BYTES, TAG_BYTES
from engine.sealing.memory import key_at
from engine.sealing.package import SealedPackage, open_file, seal_package
from engine.worker.isolation import memfd

MIB: Final = 1024 * 1024
SHARED: Final = Path("/dev/shm")  # noqa: S108  a folder of our own inside it
SMALL_MIB: Final = 64
SMALL_ROUNDS: Final = 15
BLOCK_CHUNKS: Final = (8, 16, 64, 256)
KEY: Final = bytes(range(32))
CONTEXT: Final = b"benchmark"

LIBRARY_WAYS: Final = ("seal", "open to file", "open to map")

Work = Callable[[], object]
Chunks = dict[str, int]


def library_seals(source: Path, target: Path, chunks: int) -> None:
    """Encrypt in a plain loop, from file to file."""
    block = memoryview(bytearray(chunks * CHUNK_BYTES))
    out = memoryview(bytearray(HEADER_BYTES + (chunks + 1) * (CHUNK_BYTES + TAG_BYTES)))
    encryptor = Cobblestone256Encryptor(KEY, CONTEXT)
    with source.open("rb", buffering=0) as file, target.open("wb", buffering=0) as sealed:
        while count := file.readinto(block):
            sealed.write(out[: encryptor.update_into(block[:count], out)])
        sealed.write(encryptor.finalize())
        os.fsync(sealed.fileno())


def _decrypted(source: Path, chunks: int, place: Callable[[int], memoryview], done: Callable[[int], object]) -> bytes:
    block = memoryview(bytearray(chunks * (CHUNK_BYTES + TAG_BYTES)))
    decryptor = Cobblestone256Decryptor(KEY, CONTEXT)
    with source.open("rb", buffering=0) as file:
        decryptor.update(file.read(HEADER_BYTES))
        while count := file.readinto(block):
            done(decryptor.update_into(block[:count], place(count)))
        return decryptor.finalize()


def library_opens_to_file(source: Path, target: Path, chunks: int) -> None:
    """Decrypt in a plain loop, from file to file."""
    out = memoryview(bytearray((chunks + 1) * (CHUNK_BYTES + TAG_BYTES)))
    with target.open("wb", buffering=0) as opened:
        opened.write(_decrypted(source, chunks, lambda _: out, lambda count: opened.write(out[:count])))


@contextlib.contextmanager
def fresh_map(size: int) -> Iterator[memoryview]:
    """The map of a new memfd."""
    fd = memfd.create("target", size)
    with memfd.opened(memfd.map_writable(fd)) as view:
        os.close(fd)
        yield view


def library_opens_to_map(source: Path, size: int, chunks: int) -> None:
    """Decrypt in a plain loop, from a file into a fresh map."""
    with fresh_map(size) as view:
        at = 0

        def advance(count: int) -> None:
            nonlocal at
            at += count

        tail = _decrypted(source, chunks, lambda _: view[at:], advance)
        view[at:] = tail


def we_seal(source: Path, folder: Path) -> SealedPackage:
    """Seal a package of the one file."""
    digest = "0" * 64
    return seal_package({source.name: source}, folder, run_id="run", plan_digest=digest, policy_digest=digest)


def we_open(package: SealedPackage) -> None:
    """Open the package's file into a fresh map."""
    entry = package.manifest.files[0]
    with (
        fresh_map(entry.size) as view,
        (package.folder / f"{entry.name}.sealed").open("rb", buffering=0) as file,
    ):
        open_file(key_at(package.keys, 0), package.manifest, entry, file, view)


def rate(size: int, work: Work) -> float:
    """MiB/s."""
    began = time.perf_counter()
    work()
    return size / MIB / (time.perf_counter() - began)


class Bench:
    """One size: its files, and the rates of each way in rounds."""

    sealed_package: SealedPackage

    def __init__(self, folder: Path, mib: int) -> None:
        self.size = mib * MIB
        self.source = folder / "plain"
        self.sealed = folder / "sealed"
        self.opened = folder / "opened"
        self.package = folder / "package"
        part = os.urandom(MIB)
        with self.source.open("wb") as file:
            for _ in range(mib):
                file.write(part)

    def _we_seal(self) -> None:
        self.sealed_package = we_seal(self.source, self.package)

    def rounds(self, chunks: Chunks, count: int) -> dict[str, float]:
        """The median rate of each way in MiB/s. The ways take turns, and each creates its target again."""
        ways: dict[str, Work] = {
            "seal": partial(library_seals, self.source, self.sealed, chunks["seal"]),
            "we seal": self._we_seal,
            "open to file": partial(library_opens_to_file, self.sealed, self.opened, chunks["open to file"]),
            "open to map": partial(library_opens_to_map, self.sealed, self.size, chunks["open to map"]),
            "we open": lambda: we_open(self.sealed_package),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(count):
            for name, work in ways.items():
                rates[name].append(rate(self.size, work))
                self.opened.unlink(missing_ok=True)
            self.sealed.unlink()
            shutil.rmtree(self.package)
        return {name: statistics.median(some) for name, some in rates.items()}

    def best_chunks(self) -> Chunks:
        """The number of chunks per step with which the library is fastest on this machine, for each way."""
        measured = [(chunks, self.rounds(dict.fromkeys(LIBRARY_WAYS, chunks), 3)) for chunks in BLOCK_CHUNKS]
        return {way: max((rates[way], chunks) for chunks, rates in measured)[1] for way in LIBRARY_WAYS}


def spent() -> tuple[float, float]:
    """Seconds of cores so far: in all, and by this process. The machine's count has steps of 10 ms."""
    fields = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    mine = os.times()
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK"), mine.user + mine.system


def show(what: str, library: float, ours: float) -> None:
    """One line of the table."""
    print(f"{what:<42}{library:>10.0f} MiB/s{ours:>10.0f} MiB/s{ours / library:>9.2f}", flush=True)


def compare(bench: Bench, chunks: Chunks, rounds: int, where: str) -> None:
    """Measure and print the library and ours, in interleaved rounds."""
    began, (all_before, mine_before) = time.perf_counter(), spent()
    rates = bench.rounds(chunks, rounds)
    all_after, mine_after = spent()
    others = (all_after - all_before - mine_after + mine_before) / (time.perf_counter() - began) / (os.cpu_count() or 1)
    what = f"{bench.size // MIB} MiB{where}"
    show(f"sealing {what}", rates["seal"], rates["we seal"])
    for way in ("to file", "to map"):
        show(f"opening {what}, {way}", rates[f"open {way}"], rates["we open"])
    print(f"    other work took {max(others, 0):.0%} of the cores")


def parts() -> None:
    """The rates of one thread in memory, over one buffer that stays in the cache."""
    plain, out = memoryview(os.urandom(CHUNK_BYTES * 16)), memoryview(bytearray(CHUNK_BYTES * 18))
    encryptor, digest = Cobblestone256Encryptor(KEY, CONTEXT), hashlib.sha256()
    works: dict[str, Work] = {
        "Cobblestone-256": lambda: encryptor.update_into(plain, out),
        "SHA-256": lambda: digest.update(plain),
    }
    for what, work in works.items():
        again = partial(_repeat, work, 256)
        median = statistics.median(rate(256 * len(plain), again) for _ in range(9))
        print(f"{what + ' in memory, one thread':<42}{median:>10.0f} MiB/s")


def _repeat(work: Work, count: int) -> None:
    for _ in range(count):
        work()


def choose(folder: Path | None, mib: int) -> Path:
    """Where to put the files: the given folder, else /dev/shm if three of them fit, else the temporary folder."""
    fits = SHARED.is_dir() and shutil.disk_usage(SHARED).free > (3 * mib + 64) * MIB
    return folder or (SHARED if fits else Path(tempfile.gettempdir()))


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    base = choose(options.folder, options.mib)
    cores = os.sched_getaffinity(0)
    print(f"files in {base}, {len(cores)} cores")
    print(f"{'medians':<42}{'library':>16}{'ours':>16}{'ratio':>9}")
    with tempfile.TemporaryDirectory(dir=base) as folder:
        small = Bench(Path(folder), SMALL_MIB)
        chunks = small.best_chunks()
        compare(small, chunks, SMALL_ROUNDS, "")
        os.sched_setaffinity(0, {min(cores)})
        compare(small, chunks, SMALL_ROUNDS, " on one core")
        os.sched_setaffinity(0, cores)
        compare(Bench(Path(folder), options.mib), chunks, options.rounds, "")
    print(f"blocks of the library: {', '.join(f'{each * CHUNK_BYTES // 1024} KiB' for each in chunks.values())}")
    parts()


if __name__ == "__main__":
    main()
