"""Vectors about sealed content: manifests, payload streams, releases, adapters."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from engine.sealing.cobblestone import CHUNK_BYTES, HEADER_BYTES, TAG_BYTES
from engine.wire import canonical
from tests.vectors import honest
from tests.vectors.case import Case
from tests.vectors.honest import BASE, digest

TOKENS, WEIGHTS = "tokens.bin", "weights.bin"
SEALED = HEADER_BYTES + 2 * (CHUNK_BYTES + TAG_BYTES) + 100 + TAG_BYTES
Piece = tuple[str, int, int] | tuple[str, str]


def _keys(package: str = "package") -> str:
    return (BASE / package / "keys.hex").read_text().strip()


def _stream(name: str, *spans: tuple[int, int], package: str = "package") -> list[Piece]:
    return [(f"{package}/{name}.sealed", start, end) for start, end in spans]


def _whole(name: str, package: str = "package") -> list[Piece]:
    return _stream(name, (0, (BASE / package / f"{name}.sealed").stat().st_size), package=package)


def _case(name: str, what: str, stage: str, *codes: str, manifest: bytes | None = None, **changes: Any) -> Case:
    given: dict[str, Any] = {
        "keys": _keys(),
        "streams": {TOKENS: _whole(TOKENS), WEIGHTS: _whole(WEIGHTS)},
    }
    files = {"manifest.json": (BASE / "package" / "manifest.json").read_bytes() if manifest is None else manifest}
    return Case(name=name, kind="package", what=what, given=given | changes, files=files, stage=stage, codes=codes)


def _chunk(number: int) -> tuple[int, int]:
    start = HEADER_BYTES + number * (CHUNK_BYTES + TAG_BYTES)
    return start, min(start + CHUNK_BYTES + TAG_BYTES, SEALED)


def streams() -> Iterator[Case]:
    """20 to 22: payload streams that are truncated, rearranged or moved."""
    head = (0, HEADER_BYTES)
    for name, end in (
        ("nothing-left", 0),
        ("in-the-header", 20),
        ("after-the-header", HEADER_BYTES),
        ("after-the-first-chunk", _chunk(0)[1]),
        ("after-the-second-chunk", _chunk(1)[1]),
    ):
        yield _case(
            f"20-cut-{name}",
            "The payload is truncated at a boundary.",
            "opening",
            "payload_truncated",
            streams={TOKENS: _stream(TOKENS, (0, end)), WEIGHTS: _whole(WEIGHTS)},
        )
    for name, end in (("in-a-chunk", _chunk(0)[1] - 1), ("before-the-last-byte", SEALED - 1)):
        yield _case(
            f"20-cut-{name}",
            "The payload is truncated inside a chunk.",
            "opening",
            "payload_truncated",
            streams={TOKENS: _stream(TOKENS, (0, end)), WEIGHTS: _whole(WEIGHTS)},
        )
    first, second, last = _chunk(0), _chunk(1), _chunk(2)
    for name, spans in (
        ("reordered", (head, second, first, last)),
        ("doubled", (head, first, first, second, last)),
        ("doubled-in-place", (head, first, first, last)),
        ("dropped", (head, second, last)),
        ("last-doubled", (head, first, second, last, last)),
        ("last-first", (head, last, first, second)),
    ):
        yield _case(
            f"21-chunk-{name}",
            "Chunks of the payload are rearranged.",
            "opening",
            "payload_tampered",
            streams={TOKENS: _stream(TOKENS, *spans), WEIGHTS: _whole(WEIGHTS)},
        )
    yield _case(
        "21-byte-appended",
        "A byte is appended to the payload.",
        "opening",
        "payload_tampered",
        streams={TOKENS: [*_whole(TOKENS), ("hex", "00")], WEIGHTS: _whole(WEIGHTS)},
    )
    other = (BASE / "other" / "manifest.json").read_bytes()
    yield _case(
        "22-file-of-another-package",
        "A file comes from another package of the same run.",
        "opening",
        "payload_wrong_context",
        streams={TOKENS: _whole(TOKENS, "other"), WEIGHTS: _whole(WEIGHTS)},
    )
    yield _case(
        "22-file-with-its-key-of-another-package",
        "A file comes from another package with its key.",
        "opening",
        "payload_wrong_context",
        keys=_keys("other"),
        streams={TOKENS: _whole(TOKENS, "other"), WEIGHTS: _whole(WEIGHTS, "other")},
    )
    yield _case(
        "22-files-exchanged",
        "Two files of a package are swapped.",
        "opening",
        "payload_wrong_context",
        streams={TOKENS: _whole(WEIGHTS), WEIGHTS: _whole(TOKENS)},
    )
    yield _case(
        "22-whole-package-exchanged",
        "Another whole package is staged under the keys of the first.",
        "opening",
        "payload_wrong_context",
        manifest=other,
        streams={TOKENS: _whole(TOKENS, "other"), WEIGHTS: _whole(WEIGHTS, "other")},
    )
    shorter = _manifest(files=[_entry(TOKENS, size=CHUNK_BYTES), _entry(WEIGHTS)])
    yield _case(
        "20-manifest-shortened-with-the-file",
        "A file and its size in the manifest are shortened together.",
        "opening",
        "payload_wrong_context",
        manifest=shorter,
        streams={TOKENS: _stream(TOKENS, (0, _chunk(0)[1])), WEIGHTS: _whole(WEIGHTS)},
    )


def _entry(name: str, **changes: Any) -> dict[str, Any]:
    known = {entry.name: msgspec.to_builtins(entry) for entry in honest.manifest().files}
    return {**known.get(name, known[TOKENS]), "name": name, **changes}


def _manifest(**changes: Any) -> bytes:
    return canonical({**msgspec.to_builtins(honest.manifest()), **changes})


def manifests() -> Iterator[Case]:
    """23: names, links and sizes."""
    for label, name in (
        ("absolute-path", "/etc/passwd"),
        ("parent-folder", "../tokens.bin"),
        ("folder", "raw/tokens.bin"),
        ("nul", "tokens\x00.bin"),
        ("empty", ""),
        ("dot", "."),
        ("hidden", ".tokens"),
        ("dots-inside", "a..b"),
        ("backslash", "..\\tokens.bin"),
        ("line-end", "tokens.bin\n"),
        ("fullwidth-slash", "raw\uff0ftokens.bin"),
        ("fullwidth-dots", "\uff0e\uff0e"),
        ("right-to-left", "snekot\u202enib.bin"),
        ("too-long", "a" * 129),
        ("arabic-digits", "tokens\u0661.bin"),
    ):
        yield _case(
            f"23-name-{label}",
            "A name leads out of the folder, or resembles another one.",
            "staged",
            "manifest_name",
            manifest=_manifest(files=[_entry(name), _entry(WEIGHTS)]),
        )
    for label, names in (("twice", (TOKENS, TOKENS)), ("in-another-case", (TOKENS, "TOKENS.BIN"))):
        yield _case(
            f"23-name-{label}",
            "Two files have the same name, at least on some file systems.",
            "staged",
            "manifest_duplicate",
            manifest=_manifest(files=[_entry(name) for name in names]),
        )
    for label, size in (("beyond-the-limit", 64 * 1024**3 + 1), ("negative", -1), ("of-2-to-the-53", 2**53 - 1)):
        yield _case(
            f"23-size-{label}",
            "A size is outside the limits.",
            "staged",
            "manifest_size",
            manifest=_manifest(files=[_entry(TOKENS, size=size), _entry(WEIGHTS)]),
        )
    many = [_entry(f"f{n}", size=64 * 1024**3) for n in range(17)]
    yield _case(
        "23-size-in-total",
        "The total of the sizes exceeds the limit.",
        "staged",
        "manifest_size",
        manifest=_manifest(files=many),
    )
    plain = _manifest(files=[_entry(TOKENS), _entry(WEIGHTS)])
    for label, new, code in (
        ("of-2-to-the-63", b'"size":9223372036854775808', "manifest_invalid"),
        ("as-a-fraction", b'"size":1.5', "manifest_invalid"),
        ("as-text", b'"size":"1"', "manifest_invalid"),
        ("twice", b'"size":1,"size":2', "manifest_invalid"),
        ("in-another-spelling", b'"size":32868.0', "manifest_not_canonical"),
    ):
        yield _case(
            f"23-size-{label}",
            "A size is not a plain whole number.",
            "staged",
            code,
            manifest=plain.replace(b'"size":32868', new),
        )
    for label, files in (("no-files", []), ("too-many-files", [_entry(f"f{n}", size=1) for n in range(1025)])):
        yield _case(
            f"23-{label}",
            "The number of files is outside the limits.",
            "staged",
            "manifest_count",
            manifest=_manifest(files=files),
        )
    yield _case(
        "23-manifest-over-the-limit",
        "The manifest is longer than 1 MiB.",
        "staged",
        "manifest_too_large",
        pad=1024 * 1024 + 1,
    )
    yield _case(
        "23-field-unknown",
        "The manifest has an additional field.",
        "staged",
        "manifest_invalid",
        manifest=_manifest(mount="/"),
    )
    for label, links in (
        ("manifest", {"manifest.json": "elsewhere"}),
        ("payload", {f"{TOKENS}.sealed": "elsewhere"}),
        ("payload-to-a-device", {f"{TOKENS}.sealed": "/dev/zero"}),
    ):
        stage = "staged" if label == "manifest" else "opening"
        yield _case(
            f"23-link-in-place-of-the-{label}",
            "A link is in the place of a file.",
            stage,
            "payload_missing",
            links=links,
        )
    yield _case(
        "23-pipe-in-place-of-the-payload",
        "A pipe is in the place of a file.",
        "opening",
        "payload_missing",
        pipes=[f"{TOKENS}.sealed"],
    )


def releases() -> Iterator[Case]:
    """10, 22: a release opened with another key, or in another context."""
    given = {
        "ciphertext": (BASE / "release.bin").read_bytes().hex(),
        "cnf": honest.seed("receiving cnf").hex(),
        "evidence": honest.result().evidence_sha256,
        "policy": honest.result().policy_sha256,
        "manifest": honest.result().manifest_sha256,
        "run_id": honest.RUN,
        "keys": _keys(),
    }

    def one(name: str, what: str, *codes: str, **changes: str) -> Case:
        stage = "opening" if codes else ""
        return Case(name=name, kind="opening", what=what, given={**given, **changes}, stage=stage, codes=codes)

    wrong = "release_wrong_binding"
    yield one("00-honest-release", "The release opens with the attested key.")
    yield one(
        "10-release-opened-by-another-key",
        "Somebody else's key opens the release.",
        wrong,
        cnf=honest.seed("receiving stranger").hex(),
    )
    for part in ("evidence", "policy", "manifest"):
        yield one(
            f"10-release-under-another-{part}",
            f"The release is used under another {part}.",
            wrong,
            **{part: digest("another")},
        )
    yield one("10-release-of-another-run", "The release is used in another run.", wrong, run_id="run-2")
    flipped = bytearray((BASE / "release.bin").read_bytes())
    flipped[-1] ^= 1
    yield one("10-release-changed", "A bit of the release is flipped.", wrong, ciphertext=flipped.hex())


def adapters() -> Iterator[Case]:
    """26, 28, 32: sealed adapters of other runs, raw artifacts, false sizes."""
    sealed = (BASE / "adapter.sealed").read_bytes()
    line, stream = sealed.split(b"\n", 1)
    header = json.loads(line)

    def one(name: str, what: str, *codes: str, data: bytes = sealed, **changes: Any) -> Case:
        given = {"recipient": honest.seed("receiving recipient").hex(), "binding": honest.binding(), **changes}
        return Case(
            name=name,
            kind="adapter",
            what=what,
            given=msgspec.to_builtins(given),
            files={"adapter.sealed": data},
            stage="adapter" if codes else "",
            codes=codes,
        )

    def with_header(**changes: Any) -> bytes:
        return canonical({**header, **changes}) + b"\n" + stream

    yield one("00-honest-adapter", "The sealed adapter of the run.")
    yield one(
        "28-adapter-of-another-run",
        "The adapter was sealed in another run.",
        "adapter_wrong_binding",
        binding=honest.binding(run_id="run-2"),
    )
    yield one(
        "28-adapter-of-another-nonce",
        "The adapter was sealed under an earlier challenge.",
        "adapter_wrong_binding",
        binding=honest.binding(nonce_sha256=digest("another")),
    )
    yield one(
        "28-header-rewritten",
        "The header is rewritten to name this run.",
        "adapter_wrong_key",
        data=with_header(run_id="run-2"),
        binding=honest.binding(run_id="run-2"),
    )
    yield one(
        "28-raw-artifact-in-its-place",
        "The raw segment's file is in its place.",
        "adapter_malformed",
        data=_tensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, 4),
    )
    yield one("28-adapter-cut", "The adapter is truncated.", "adapter_truncated", data=sealed[:-1])
    yield one(
        "28-adapter-changed",
        "A byte of the adapter is changed.",
        "adapter_tampered",
        data=sealed[:-1] + bytes([sealed[-1] ^ 1]),
    )
    yield one("28-adapter-extended", "A byte is appended to the adapter.", "adapter_tampered", data=sealed + b"\0")
    yield one(
        "32-adapter-claims-16-gib",
        "A short file claims a size of 16 GiB.",
        "adapter_truncated",
        data=with_header(size=16 * 1024**3),
    )
    yield one("32-adapter-header-without-end", "The header has no end.", "adapter_malformed", data=b"{" * 10_000)


def _tensors(header: dict[str, Any], size: int) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


def tensors() -> Iterator[Case]:
    """32: files in place of an adapter's tensors."""
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    pickle = (
        b"\x80\x04\x95\x1c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85R."
    )
    for name, data, code in (
        ("honest", _tensors({"a": entry}, 16), ""),
        ("pickle", pickle, "tensors_invalid"),
        ("zip-of-pickles", Path(__file__).with_name("base").joinpath("pickles.pt").read_bytes(), "tensors_invalid"),
        ("header-of-2-to-the-63", struct.pack("<Q", 2**63) + b"{}", "tensors_invalid"),
        ("empty", b"", "tensors_invalid"),
        ("outside", _tensors({"a": {**entry, "data_offsets": [16, 32]}}, 16), "tensors_invalid"),
        ("negative-shape", _tensors({"a": {**entry, "shape": [-2, -2]}}, 16), "tensors_invalid"),
        ("python-type", _tensors({"a": {**entry, "dtype": "O"}}, 16), "tensors_invalid"),
        ("list", _tensors({"a": [1, 2]}, 16), "tensors_invalid"),
    ):
        yield Case(
            name=f"{'32-adapter-' if code else '00-honest-'}{'tensors' if not code else name}",
            kind="tensors",
            what="The collected file is not a tensor file." if code else "A tensor file.",
            given={},
            files={"adapter.safetensors": data},
            stage="collecting" if code else "",
            codes=(code,) if code else (),
        )


def cases() -> Iterator[Case]:
    """Every vector about sealed content."""
    yield _case("00-honest-package", "The package that was sent.", "")
    yield from streams()
    yield from manifests()
    yield from releases()
    yield from adapters()
    yield from tensors()
