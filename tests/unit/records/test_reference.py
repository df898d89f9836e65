"""Reference values: a release from its maker to its reader, each way in which a file is refused, and the home's own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine import __version__
from engine.attestation.measurement import Measurements
from engine.attestation.policy import default_policy, policy_digest
from engine.errors import UsageError
from engine.records.reference import (
    FOLDER,
    RELEASE_KEYS,
    RELEASE_VALUES,
    ReleaseValues,
    own_values,
    read_reference,
    release_keys,
    remember,
    shipped,
)
from engine.records.trust import anchors
from engine.remote.bundle import build_bundle, bundle_digest
from engine.remote.lockfile import shipped_lock
from engine.wire import digest_of
from tests.unit.records.releases import make, new_key, release_folder, values_in, write_release

MEASURED = Measurements(bundle="b" * 64, lock="1" * 64, environment="e" * 64)
PYTHONS = [f"CPython {python} linux-x86_64" for python in ("3.11", "3.12", "3.13")]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of a release with one measured platform, and its key."""
    base = tmp_path_factory.mktemp("release")
    folder, key = base / "reference", base / "release.pem"
    release_folder(folder, key, "--environment", f"{PYTHONS[1]}={'e' * 64}")
    return folder, key


def _code(call: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as caught:
        call()
    return caught.value.code


def test_a_release_lists_what_this_checkout_builds_and_says_what_it_does_not_know(released: tuple[Path, Path]) -> None:
    folder, _ = released
    values, lock = values_in(folder), shipped_lock()
    assert values.release == __version__
    assert [value.sha256 for value in values.bundles] == [bundle_digest(build_bundle(lock.versions))]
    assert [(one.name, one.sha256, one.file_sha256) for one in values.locks] == [
        (lock.name, digest_of(lock.versions), lock.digest)
    ]
    assert {one.platform: one.sha256 for one in values.environments} == dict.fromkeys(PYTHONS) | {PYTHONS[1]: "e" * 64}
    assert [one.sha256 for one in values.policies] == [policy_digest(default_policy())]


def test_a_verifier_has_the_shipped_release_and_reads_it_when_it_is_given(
    released: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, _ = released
    installed, release = shipped(folder)
    assert (installed.origin, installed.locks) == ("installed", frozenset({digest_of(shipped_lock().versions)}))
    assert (release.origin, release.title, release.environments, release.asked) == (
        "release", __version__, frozenset({"e" * 64}), False,
    )  # fmt: skip
    known = anchors(tmp_path / "none", shipped_folder=folder)
    real = Measurements(bundle="b" * 64, lock=digest_of(shipped_lock().versions), environment="e" * 64)
    assert [one and one.origin for one in known.covering(real, by_home=False)] == ["installed", "release"]
    assert known.demanded_environments() == frozenset()
    given = anchors(tmp_path / "none", references=[folder / RELEASE_VALUES], shipped_folder=folder)
    assert given.demanded_environments() == {"e" * 64}


def test_nothing_is_shipped_as_a_release_before_there_is_one() -> None:
    """When the first release is made, its key and its values come together."""
    names = [known.origin for known in shipped()]
    assert names == (["installed", "release"] if release_keys() else ["installed"])


def test_an_unsigned_development_reference_is_never_a_release(tmp_path: Path) -> None:
    file = tmp_path / "development.json"
    file.write_text(make("--environment", f"here={'e' * 64}").stdout)
    known = read_reference(file)
    assert (known.origin, known.title, known.environments) == ("given", "", frozenset({"e" * 64}))


def test_the_maker_refuses_a_key_that_is_not_published_and_a_digest_that_is_none(tmp_path: Path) -> None:
    folder, key = tmp_path / "reference", tmp_path / "release.pem"
    release_folder(folder, key)
    before = (folder / RELEASE_VALUES).read_bytes()
    new_key(tmp_path / "other.pem")
    for words in (("--key", str(tmp_path / "other.pem")), ("--key", str(key), "--environment", "x=evil")):
        done = make(*words, "--folder", str(folder))
        assert done.returncode == 1, done.stdout
    assert (folder / RELEASE_VALUES).read_bytes() == before


def test_a_release_by_another_key_is_refused(released: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = released
    other = tmp_path / "reference"
    release_folder(other, tmp_path / "release.pem")
    assert _code(lambda: read_reference(other / RELEASE_VALUES, folder=folder)) == "reference_signer_unknown"
    assert _code(lambda: read_reference(other / RELEASE_VALUES)) == "reference_signer_unknown"
    both = tmp_path / "both"
    both.mkdir()
    (both / RELEASE_KEYS).write_text((folder / RELEASE_KEYS).read_text() + (other / RELEASE_KEYS).read_text())
    assert read_reference(other / RELEASE_VALUES, folder=both).origin == "release"


def test_every_changed_part_of_a_signed_file_is_refused(released: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = released
    envelope = json.loads((folder / RELEASE_VALUES).read_text())
    payload, signature = envelope["payload"], envelope["signatures"][0]
    changed: list[dict[str, Any]] = [
        {"payload": payload[:40] + ("A" if payload[40] != "A" else "B") + payload[41:]},
        {"payloadType": "application/json"},
        {"signatures": []},
        {"signatures": [signature, signature]},
        {"signatures": [signature | {"sig": "00" + signature["sig"][2:]}]},
        {"more": 1},
    ]
    file = tmp_path / "values.json"
    for change in changed:
        file.write_text(json.dumps(envelope | change))
        assert _code(lambda: read_reference(file, folder=folder)) == "reference_invalid", change


CONTRADICTIONS: list[Callable[[ReleaseValues], dict[str, Any]]] = [
    lambda values: {"version": 2},
    lambda values: {"issued": "yesterday"},
    lambda values: {"issued": "2026-01-01T00:00:00"},
    lambda values: {"issued": values.expires, "expires": values.issued},
    lambda values: {"bundles": (msgspec.structs.replace(values.bundles[0], lock="other.txt"),)},
    lambda values: {"bundles": (msgspec.structs.replace(values.bundles[0], sha256="x"),)},
    lambda values: {"locks": (msgspec.structs.replace(values.locks[0], packages={"torch": "0.0.1.evil"}),)},
    lambda values: {"locks": (msgspec.structs.replace(values.locks[0], file_sha256="x"),)},
    lambda values: {"environments": (msgspec.structs.replace(values.environments[0], lock="other.txt"),)},
    lambda values: {"environments": (msgspec.structs.replace(values.environments[0], sha256=""),)},
]


@pytest.mark.parametrize("change", CONTRADICTIONS)
def test_a_signed_file_that_contradicts_itself_is_refused(
    released: tuple[Path, Path], tmp_path: Path, change: Callable[[ReleaseValues], dict[str, Any]]
) -> None:
    folder, key = released
    values = values_in(folder)
    copy = tmp_path / "reference"
    copy.mkdir()
    (copy / RELEASE_KEYS).write_text((folder / RELEASE_KEYS).read_text())
    write_release(copy, key, msgspec.structs.replace(values, **change(values)))
    assert _code(lambda: read_reference(copy / RELEASE_VALUES, folder=copy)) == "reference_invalid"
    assert _code(lambda: shipped(copy)) == "reference_invalid"


def test_another_statement_of_the_release_key_is_no_reference(released: tuple[Path, Path], tmp_path: Path) -> None:
    folder, key = released
    values = values_in(folder)
    (tmp_path / RELEASE_KEYS).write_text((folder / RELEASE_KEYS).read_text())
    write_release(tmp_path, key, values, kind="urn:glasshouse:predicate:run:1")
    assert _code(lambda: read_reference(tmp_path / RELEASE_VALUES, folder=tmp_path)) == "reference_invalid"
    write_release(tmp_path, key, values, subjects=values.subjects() | {"policy other": "0" * 64})
    assert _code(lambda: read_reference(tmp_path / RELEASE_VALUES, folder=tmp_path)) == "reference_invalid"


def test_an_expired_file_is_refused_when_given_and_unused_when_shipped(released: tuple[Path, Path]) -> None:
    folder, _ = released
    later = datetime.now(UTC) + timedelta(days=731)
    assert _code(lambda: read_reference(folder / RELEASE_VALUES, folder=folder, now=later)) == "reference_expired"
    assert [known.origin for known in shipped(folder, now=later)] == ["installed"]


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path, tmp_path / "absent"):
        assert _code(lambda path=path: read_reference(path)) == "reference_invalid"  # type: ignore[misc]


def test_a_home_knows_what_its_runners_measured_and_a_damaged_file_makes_it_unknown(tmp_path: Path) -> None:
    assert own_values(tmp_path) == ()
    remember(tmp_path, MEASURED, on_this_machine=True)
    remember(tmp_path, MEASURED, on_this_machine=True)
    remember(tmp_path, MEASURED, on_this_machine=False)
    assert sorted(known.origin for known in own_values(tmp_path)) == ["here", "there"]
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / FOLDER).iterdir()} == {0o600}
    known = anchors(tmp_path)
    assert [one and one.origin for one in known.covering(MEASURED, by_home=False)] == ["here", "here"]
    for path in (tmp_path / FOLDER).iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert own_values(tmp_path) == ()


def test_what_an_allocation_said_of_itself_covers_this_homes_rows_alone(tmp_path: Path) -> None:
    remember(tmp_path, MEASURED, on_this_machine=False)
    known = anchors(tmp_path)
    assert [one and one.origin for one in known.covering(MEASURED, by_home=True)] == ["there", "there"]
    assert known.covering(MEASURED, by_home=False) == (None, None)
