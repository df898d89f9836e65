"""Keys rotated during a run: its delegation is signed by, and its adapter sealed to, the old keys."""

from __future__ import annotations

from datetime import datetime

from engine.attestation.receipts import DELEGATION, Delegation, check_delegation, read_run_receipt
from engine.attestation.rotation import rotate_keys
from engine.attestation.signers import TrustedKeys, judge_signer
from engine.attestation.statements import read_predicate
from engine.sealing.adapter import open_adapter
from engine.sealing.operator_keys import OperatorKeys
from engine.store.reader import Reader
from tests.functional.runs.support import LONG, Operator, checks_of, segment_state, short_plan


def test_keys_rotated_during_a_run_leave_its_row_verifiable_and_its_adapter_readable(operator: Operator) -> None:
    run_id = operator.start(short_plan("protected", target=LONG))
    operator.wait(run_id, lambda view: segment_state(view, "protected") == "training")
    old = OperatorKeys.load(operator.home / "keys")
    rotate_keys(operator.home / "keys")
    operator.hurry(run_id)
    view = operator.finish(run_id)
    assert view.row is not None, operator.log_of(run_id)
    assert view.plan_digest is not None
    assert view.row["clean"] is True, checks_of(view)  # the runner had the retired key that the adapter is sealed to

    with Reader(operator.home) as reader:
        receipts = reader.receipts(run_id)
    delegation, _ = read_predicate(receipts["delegation"], old.signing_public, DELEGATION, Delegation)
    trusted = TrustedKeys.from_home(operator.home / "keys")
    signer = judge_signer(old.signing_public, datetime.fromisoformat(delegation.issued), trusted=trusted)
    assert signer.state == "retired"
    run_public = check_delegation(
        receipts["delegation"], signer.public or b"", run_id=run_id, plan_digest=view.plan_digest
    )
    read_run_receipt(receipts["run"], run_public, run_id=run_id, row=view.row)

    sealed = operator.home / "adapters" / run_id / "protected.sealed"
    keys = OperatorKeys.load(operator.home / "keys")
    assert keys.recipient_public != old.recipient_public
    assert keys.with_recipient(lambda recipient: open_adapter(sealed, recipient, None))
