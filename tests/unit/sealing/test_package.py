"""Sealing packages and opening their files: round trips, and every refusal."""

from __future__ import annotations

import dataclasses
import io
import os
import stat
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.cobblestone import Cobblestone256Decryptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import RefusedError, SealingError
from engine.sealing.cobblestone import BLOCK_BYTES, CHUNK_BYTES, HEADER_BYTES, TAG_BYTES, sealed_size
from engine.sealing.manifest import FileEntry, Manifest
from engine.sealing.memory import key_at, wipe
from engine.sealing.package import (
    SealedPackage,
    check_released,
    file_context,
    open_file,
    open_sealed,
    read_manifest,
    seal_package,
)
from engine.sealing.release import release_info

PLAN, POLICY = "11" * 32, "22" * 32
SEALED_CHUNK = CHUNK_BYTES + TAG_BYTES


def seal(files: dict[str, bytes | Path], out: Path) -> SealedPackage:
    return seal_package(files, out, run_id="run-1", plan_digest=PLAN, policy_digest=POLICY)


def opened(package: SealedPackage, index: int, stream: bytes | None = None) -> bytes:
    entry = package.manifest.files[index]
    target = bytearray(entry.size)
    with open_sealed(package.folder, entry) as source:
        given = source if stream is None else io.BytesIO(stream)
        open_file(key_at(package.keys, index), package.manifest, entry, given, memoryview(target))
    return bytes(target)


def stream_of(package: SealedPackage, index: int) -> bytes:
    return (package.folder / f"{package.manifest.files[index].name}.sealed").read_bytes()


def refused(package: SealedPackage, stream: bytes, *, index: int = 0, manifest: Manifest | None = None) -> str:
    """The code of the refusal; also checks that the target is zeroed."""
    entry = package.manifest.files[index]
    target = bytearray(b"\xaa" * entry.size)
    with pytest.raises(RefusedError) as caught:
        open_file(
            key_at(package.keys, index),
            manifest or package.manifest,
            entry,
            io.BytesIO(stream),
            memoryview(target),
        )
    assert target == bytes(entry.size)
    return caught.value.code


@pytest.fixture
def package(tmp_path: Path) -> SealedPackage:
    return seal({"a.bin": os.urandom(5 * CHUNK_BYTES + 77), "b.bin": os.urandom(100)}, tmp_path / "package")


MIB = 1024 * 1024
EDGES = [
    0,
    1,
    CHUNK_BYTES - 1,
    CHUNK_BYTES,
    CHUNK_BYTES + 1,
    BLOCK_BYTES - 1,
    BLOCK_BYTES,
    2 * BLOCK_BYTES + 5,
]


@pytest.mark.parametrize("size", EDGES)
def test_content_and_files_survive_the_round_trip_at_every_edge(size: int, tmp_path: Path) -> None:
    content = os.urandom(size)
    (tmp_path / "source").write_bytes(content)
    package = seal({"bytes.bin": content, "path.bin": tmp_path / "source"}, tmp_path / "package")
    assert [opened(package, 0), opened(package, 1)] == [content, content]
    assert len(stream_of(package, 0)) == sealed_size(size)


def test_a_large_file_is_hashed_on_a_second_thread(tmp_path: Path) -> None:
    content = os.urandom(9 * MIB + 3)
    (tmp_path / "source").write_bytes(content)
    package = seal({"big.bin": tmp_path / "source", "small.bin": b"x"}, tmp_path / "package")
    assert opened(package, 0) == content


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True), st.binary(max_size=40_000), min_size=1))
def test_any_files_survive_the_round_trip(tmp_path: Path, files: dict[str, bytes]) -> None:
    package = seal(dict(files), tmp_path / "package")
    contents = {entry.name: opened(package, index) for index, entry in enumerate(package.manifest.files)}
    assert contents == files


def test_a_stream_that_arrives_in_small_pieces_opens(package: SealedPackage) -> None:
    class Trickle:
        def __init__(self, data: bytes) -> None:
            self._file = io.BytesIO(data)

        def readinto(self, buffer: memoryview, /) -> int:
            return self._file.readinto(buffer[:1000])

    entry = package.manifest.files[0]
    target = bytearray(entry.size)
    source = Trickle(stream_of(package, 0))
    open_file(key_at(package.keys, 0), package.manifest, entry, source, memoryview(target))
    assert opened(package, 0) == target


def test_the_library_alone_opens_a_sealed_file(package: SealedPackage) -> None:
    entry = package.manifest.files[1]
    opener = Cobblestone256Decryptor(key_at(package.keys, 1), file_context(package.manifest, entry))
    assert opener.update(stream_of(package, 1)) + opener.finalize() == opened(package, 1)


def test_the_package_on_disk_is_private_and_its_manifest_reads_back(package: SealedPackage) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in package.folder.iterdir()}
    assert modes == {"manifest.json": 0o600, "a.bin.sealed": 0o600, "b.bin.sealed": 0o600}
    assert stat.S_IMODE(package.folder.stat().st_mode) == 0o700
    assert read_manifest(package.folder) == package.manifest


def test_every_file_has_its_own_key_and_the_keys_stay_out_of_the_representation(
    package: SealedPackage,
) -> None:
    assert len(package.keys) == 64
    assert key_at(package.keys, 0) != key_at(package.keys, 1)
    assert "keys" not in repr(package)


def test_sealing_and_opening_need_constant_memory(tmp_path: Path) -> None:
    size = 48 * MIB
    with (tmp_path / "source").open("wb") as file:
        file.truncate(size)
    target = bytearray(size)
    tracemalloc.start()
    package = seal({"big.bin": tmp_path / "source"}, tmp_path / "package")
    entry = package.manifest.files[0]
    with open_sealed(package.folder, entry) as source:
        open_file(key_at(package.keys, 0), package.manifest, entry, source, memoryview(target))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * MIB


@pytest.mark.parametrize(
    "kept",
    [0, 10, HEADER_BYTES, HEADER_BYTES + 5, HEADER_BYTES + SEALED_CHUNK, HEADER_BYTES + 5 * SEALED_CHUNK, -1],
)
def test_a_cut_stream_is_refused_also_at_a_chunk_boundary(package: SealedPackage, kept: int) -> None:
    assert refused(package, stream_of(package, 0)[:kept]) == "payload_truncated"


def chunks(stream: bytes) -> list[bytes]:
    body = stream[HEADER_BYTES:]
    return [body[start : start + SEALED_CHUNK] for start in range(0, len(body), SEALED_CHUNK)]


def test_reordered_doubled_and_dropped_chunks_are_refused(package: SealedPackage) -> None:
    stream = stream_of(package, 0)
    header, parts = stream[:HEADER_BYTES], chunks(stream)
    swapped = [parts[1], parts[0], *parts[2:]]
    doubled = [parts[0], *parts]
    dropped = parts[1:]
    assert refused(package, header + b"".join(swapped)) == "payload_tampered"
    assert refused(package, header + b"".join(doubled)) == "payload_tampered"
    assert refused(package, header + b"".join(dropped)) == "payload_tampered"
    assert refused(package, header + b"".join([*parts[1:5], parts[0], parts[5]])) == "payload_tampered"


@pytest.mark.parametrize("extra", [b"x", b"y" * 50_000])
def test_an_extended_stream_is_refused(package: SealedPackage, extra: bytes) -> None:
    assert refused(package, stream_of(package, 0) + extra) == "payload_tampered"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_flipped_bit_opens(package: SealedPackage, data: st.DataObject) -> None:
    stream = bytearray(stream_of(package, 0))
    position = data.draw(st.integers(0, len(stream) - 1))
    stream[position] ^= 1 << data.draw(st.integers(0, 7))
    expected = "payload_wrong_context" if position < HEADER_BYTES else "payload_tampered"
    assert refused(package, bytes(stream)) == expected


def test_a_file_moved_between_names_or_packages_is_refused(tmp_path: Path) -> None:
    files: dict[str, bytes | Path] = {"a": b"same size", "b": b"SAME SIZE"}
    one, two = seal(files, tmp_path / "one"), seal(files, tmp_path / "two")
    assert refused(one, stream_of(one, 1), index=0) == "payload_wrong_context"
    assert refused(one, stream_of(two, 0), index=0) == "payload_wrong_context"


def test_a_files_own_key_does_not_open_it_under_another_name(tmp_path: Path) -> None:
    package = seal({"a": b"same content", "b": b"same content"}, tmp_path / "package")
    target = memoryview(bytearray(12))
    with pytest.raises(RefusedError) as caught:
        open_file(
            key_at(package.keys, 0),
            package.manifest,
            package.manifest.files[1],
            io.BytesIO(stream_of(package, 0)),
            target,
        )
    assert caught.value.code == "payload_wrong_context"


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"package_id": "0" * 32},
        {"created": "2026-01-01T00:00:00.000Z"},
        {"run_id": "run-2"},
        {"plan_digest": "33" * 32},
        {"policy_digest": "33" * 32},
    ],
    ids=str,
)
def test_one_key_does_not_open_the_file_of_another_manifest(package: SealedPackage, change: dict[str, Any]) -> None:
    other = msgspec.structs.replace(package.manifest, **change)
    assert refused(package, stream_of(package, 0), manifest=other) == "payload_wrong_context"


@pytest.mark.parametrize("change", [{"size": 101}, {"name": "c.bin"}], ids=str)
def test_a_file_does_not_open_if_another_entry_of_its_manifest_differs(
    package: SealedPackage, change: dict[str, Any]
) -> None:
    one, two = package.manifest.files
    other = msgspec.structs.replace(package.manifest, files=(one, msgspec.structs.replace(two, **change)))
    fewer = msgspec.structs.replace(package.manifest, files=(one,))
    assert refused(package, stream_of(package, 0), manifest=other) == "payload_wrong_context"
    assert refused(package, stream_of(package, 0), manifest=fewer) == "payload_wrong_context"


@pytest.mark.parametrize("index", [0, 1])
def test_a_package_does_not_open_completely_under_another_digest(package: SealedPackage, index: int) -> None:
    files = list(package.manifest.files)
    files[index] = msgspec.structs.replace(files[index], sha256="33" * 32)
    other = dataclasses.replace(package, manifest=msgspec.structs.replace(package.manifest, files=tuple(files)))
    assert refused(other, stream_of(package, index), index=index) == "payload_digest_mismatch"


def test_keys_released_for_one_manifest_are_not_used_under_another(package: SealedPackage) -> None:
    digests = {"evidence_sha256": "44" * 32, "policy_sha256": POLICY, "run_id": "run-1"}
    info = release_info(manifest_sha256=package.digest, **digests)
    check_released(package.manifest, info)
    one, two = package.manifest.files
    changed = msgspec.structs.replace(package.manifest, files=(one, msgspec.structs.replace(two, sha256="33" * 32)))
    for manifest, claimed in (
        (changed, info),
        (package.manifest, b""),
        (package.manifest, b"[]"),
        (package.manifest, b"{}"),
    ):
        with pytest.raises(RefusedError) as caught:
            check_released(manifest, claimed)
        assert caught.value.code == "payload_wrong_context"


def test_an_entry_that_the_manifest_does_not_list_is_refused(package: SealedPackage) -> None:
    shorter = msgspec.structs.replace(package.manifest, files=package.manifest.files[1:])
    assert refused(package, stream_of(package, 0), manifest=shorter) == "payload_wrong_context"


def test_content_that_does_not_match_the_manifest_is_refused(tmp_path: Path) -> None:
    from engine.sealing.cobblestone import encrypt_stream

    honest = seal({"a": b"promised"}, tmp_path / "package")
    entry = honest.manifest.files[0]
    out = io.BytesIO()
    encrypt_stream(key_at(honest.keys, 0), file_context(honest.manifest, entry), [memoryview(b"provided")], out.write)
    assert refused(honest, out.getvalue()) == "payload_digest_mismatch"


@pytest.mark.parametrize("target", [memoryview(bytearray(99)), memoryview(bytes(100)), memoryview(bytearray(200))[::2]])
def test_an_unsuitable_buffer_is_a_value_error(package: SealedPackage, target: memoryview) -> None:
    entry = package.manifest.files[1]
    with pytest.raises(ValueError, match="exactly"):
        open_file(key_at(package.keys, 1), package.manifest, entry, io.BytesIO(), target)


def test_links_devices_and_missing_files_are_refused(package: SealedPackage) -> None:
    entry = package.manifest.files[0]
    path = package.folder / "a.bin.sealed"
    makers: list[Callable[[], object]] = [
        lambda: path.symlink_to("/etc/hostname"),
        lambda: os.mkfifo(path),
        path.mkdir,
        lambda: None,
    ]
    for make in makers:
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        make()
        with pytest.raises(SealingError) as caught:
            open_sealed(package.folder, entry)
        assert caught.value.code == "payload_missing"


def test_an_entry_with_a_path_in_its_name_opens_nothing(package: SealedPackage) -> None:
    with pytest.raises(SealingError) as caught:
        open_sealed(package.folder, FileEntry("../package/a.bin", 1, "00" * 32))
    assert caught.value.code == "manifest_name"


def test_a_payload_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SealingError) as caught:
        seal({"a": tmp_path / "absent"}, tmp_path / "package")
    assert caught.value.code == "payload_unreadable"
    assert str(tmp_path) not in caught.value.message
    assert not (tmp_path / "package").exists()


def test_a_payload_that_changes_while_it_is_sealed_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(100))

    def change(done: int, _: int) -> None:
        if done == 100:
            source.write_bytes(b"x" * 100)

    with pytest.raises(SealingError) as caught:
        seal_package(
            {"a": source},
            tmp_path / "package",
            run_id="run-1",
            plan_digest=PLAN,
            policy_digest=POLICY,
            progress=change,
        )
    assert caught.value.code == "payload_changed"
    assert list((tmp_path / "package").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "package").write_bytes(b"in the way")
    with pytest.raises(SealingError) as caught:
        seal({"a": b"content"}, tmp_path / "package")
    assert caught.value.code == "package_unwritable"


def test_a_full_disk_leaves_no_partial_files(tmp_path: Path) -> None:
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(SealingError) as caught:
            seal({"a": b"fits", "b": bytes(200_000)}, tmp_path / "package")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.code == "package_unwritable"
    assert list((tmp_path / "package").iterdir()) == []


def test_wiped_keys_open_nothing(package: SealedPackage) -> None:
    stream = stream_of(package, 0)
    wipe(package.keys)
    assert refused(package, stream) == "payload_wrong_context"
