"""Why the protected path refuses: every reason code, its sentence, and what to do. Codes are stable."""

from __future__ import annotations

from typing import Final

from engine.errors import RefusedError

_AGAIN: Final = "Start the run again; if it happens twice, use another allocation."
_TAMPERED: Final = "Treat the allocation as hostile: end it and use another one."
_UPDATE: Final = "Use the same version of glasshouse on both sides, then start the run again."

REASONS: Final[dict[str, tuple[str, str]]] = {
    # evidence as a document
    "evidence_too_large": ("The evidence is larger than the limit.", _TAMPERED),
    "evidence_malformed": ("The evidence is not a signed token.", _AGAIN),
    "evidence_alg": ("The evidence is not signed with Ed25519.", _TAMPERED),
    "evidence_claims": ("The evidence lacks claims, or has some that are unknown or malformed.", _UPDATE),
    "attester_key_unknown": (
        "The evidence is signed by a key that was not announced at launch.",
        _TAMPERED,
    ),
    "signature_invalid": ("The signature of the evidence is not valid.", _TAMPERED),
    "evidence_expired": (
        "The evidence is too old.",
        "Check the clocks of both machines, then start the run again.",
    ),
    "evidence_not_yet_valid": (
        "The evidence comes from the future.",
        "Check the clocks of both machines, then start the run again.",
    ),
    # freshness
    "nonce_unknown": ("The evidence answers a nonce that was never issued.", _TAMPERED),
    "nonce_expired": ("The evidence answers a nonce that is more than two minutes old.", _AGAIN),
    "nonce_replayed": ("The evidence answers a nonce that was used before.", _TAMPERED),
    "nonce_other_run": ("The evidence answers a nonce of another run.", _TAMPERED),
    "nonce_state_damaged": ("The record of issued nonces is damaged.", "Start the run again."),
    "nonce_state_unwritable": (
        "The record of issued nonces cannot be written.",
        "Free some space or choose another --home.",
    ),
    # binding
    "run_mismatch": ("The evidence belongs to another run.", _TAMPERED),
    "measurement_mismatch": (
        "The worker that runs is not the one that this installation builds.",
        _UPDATE,
    ),
    "lock_mismatch": ("The worker's list of third-party packages is not the expected one.", _UPDATE),
    "environment_mismatch": (
        "The installed files on the allocation are not the expected ones.",
        "Install the worker's environment again, from its lock.",
    ),
    "plan_mismatch": ("The evidence is about another plan.", _TAMPERED),
    "policy_mismatch": ("The evidence names another policy than the operator's.", _TAMPERED),
    "manifest_mismatch": ("The evidence is about another package.", _TAMPERED),
    "challenge_mismatch": ("The evidence answers another challenge text.", _TAMPERED),
    "pod_mismatch": ("The evidence comes from another allocation.", _TAMPERED),
    "host_key_mismatch": ("The evidence names another SSH host key than the pinned one.", _TAMPERED),
    "gpu_mismatch": ("The evidence names another GPU than the one that was rented.", _TAMPERED),
    "head_mismatch": ("The evidence does not link to the runner's log.", _TAMPERED),
    "cnf_exchanged": (
        "The key that would receive the release is not the one in the nonce object.",
        _TAMPERED,
    ),
    "nonce_object_mismatch": ("The nonce object does not cover what the evidence says.", _TAMPERED),
    "cnf_invalid": ("The key that would receive the release cannot receive a secret.", _AGAIN),
    # policy
    "policy_invalid": ("The policy does not fit its schema.", "Correct the policy file."),
    "policy_unknown_field": (
        "The policy has a field that is not known here.",
        "Remove the field from the policy.",
    ),
    "policy_older": ("The policy is older than the built-in one.", "Update the policy file."),
    "policy_loosened": (
        "The policy is looser than the built-in one.",
        "A custom policy may narrow the built-in one, never widen it.",
    ),
    "tier_overclaimed": ("Software evidence claims to come from a hardware TEE.", _TAMPERED),
    "tier_unsupported": (
        "Evidence of this tier cannot be verified by this version.",
        "Run in the software tier, or update glasshouse.",
    ),
    "tier_not_allowed": (
        "The policy does not accept this tier.",
        "Use a machine of a tier that the policy accepts.",
    ),
    "debug_enabled": ("The worker runs in debug mode.", "Start the run without debug mode."),
    "enforcement_missing": (
        "A control that the policy requires is not enforced.",
        "Use a machine that has it, or a policy that does not require it.",
    ),
    "profile_unknown": ("The evidence follows another profile.", _UPDATE),
    # release
    "release_before_result": ("A release was asked for before the evidence was accepted.", _AGAIN),
    "release_other_result": ("The release does not fit the result that it names.", _TAMPERED),
    "release_repeated": (
        "A release was made on this result already.",
        "The first release is delivered again as it stands.",
    ),
    # challenge, envelopes, receipts
    "challenge_invalid": ("The challenge is not one that this run's key signed.", _TAMPERED),
    "envelope_malformed": ("This is not a DSSE envelope.", "Use the file as it was exported."),
    "envelope_payload_type": (
        "The envelope holds another kind of payload.",
        "Use the file as it was exported.",
    ),
    "envelope_keys_not_distinct": ("One key signs under two names.", "Do not trust this envelope."),
    "envelope_signer_unknown": ("The envelope is signed by another key.", "Do not trust this envelope."),
    "envelope_signature_invalid": (
        "A signature of the envelope is not valid.",
        "Do not trust this envelope.",
    ),
    "statement_malformed": (
        "The envelope does not hold an in-toto statement.",
        "Use the file as it was exported.",
    ),
    "predicate_type": ("The statement is of another kind.", "Use the file as it was exported."),
    "predicate_malformed": (
        "The statement's predicate does not fit its kind.",
        "Use the file as it was exported.",
    ),
    "delegation_expired": ("The delegation to the run's key has expired.", "Start the run again."),
    "delegation_other_run": (
        "The delegation belongs to another run or plan.",
        "Do not trust this run's receipts.",
    ),
    "receipt_other_run": ("The receipt belongs to another run.", "Do not trust this receipt."),
    # signers
    "signer_unknown": (
        "The signer is neither an operator whom you trust nor this home itself.",
        "Get the operator's fingerprint from the operator, and give it with --trust.",
    ),
    "signer_revoked": ("The operator's key that signed this was revoked.", "Do not trust this row."),
    "rotation_invalid": (
        "This is not a statement by which one key introduces the next.",
        "Use the file as `glasshouse key rotate` wrote it.",
    ),
    "revocation_invalid": (
        "This is not a revocation by the key itself or by one of its successors.",
        "Use the file as `glasshouse key revoke` wrote it.",
    ),
    # zeroization
    "zeroization_no_control": (
        "The scan did not find the secrets before the wipe, so that finding none afterwards proves nothing.",
        "Treat the secrets as not wiped.",
    ),
    "zeroization_hits": (
        "The scan found secrets after the wipe.",
        "End the allocation; treat the secrets as known.",
    ),
    "zeroization_unread": (
        "Memory that should have been scanned was not read.",
        "Treat the secrets as not wiped.",
    ),
    "zeroization_process_alive": ("A process that held secrets still lives.", "End the allocation."),
    "zeroization_scratch": ("The scratch folder is not empty.", "End the allocation."),
    "zeroization_deleted_files": ("A deleted file is still held open.", "End the allocation."),
    "zeroization_device": ("The accelerator's memory is not back at its baseline.", "End the allocation."),
    "zeroization_incomplete": (
        "The zeroization receipt leaves something out.",
        "Treat the secrets as not wiped.",
    ),
    # the public artifact
    "artifact_malformed": ("This is no public artifact.", "Export the row again, or ask for the file again."),
    "artifact_unsigned": (
        "Nothing of this row was signed: it is a published or an unproven figure.",
        "Ask for a row that was exported with its bundle.",
    ),
    "keys_not_distinct": ("One key stands in two roles.", "Do not trust this row."),
    "receipt_mismatch": ("A receipt does not fit the rest of the artifact.", "Do not trust this row."),
    "result_mismatch": ("The attestation result does not fit the rest of the artifact.", "Do not trust this row."),
    "log_broken": ("A log's chain does not hold from its first event to its signed end.", "Do not trust this row."),
    "log_contradicts": ("One logged event denies another.", "Do not trust this row."),
    "order_broken": ("The logs do not show the order that the protected path needs.", "Do not trust this row."),
    "series_mismatch": ("The step series is not the one that was signed.", "Do not trust this row."),
    "row_mismatch": ("The row does not follow from its logs, receipts and series.", "Do not trust this row."),
    # measurement
    "measurement_unknown": (
        "The worker that ran is none that this installation builds or that you named.",
        "Install the version that made the row, or name its bundle with --reference.",
    ),
    "environment_changed": (
        "Installed files were changed while the worker started.",
        "Start the run again once nothing is being installed; if it happens twice, use another allocation.",
    ),
    "environment_unreadable": (
        "An installed file cannot be measured.",
        "Install the worker's environment again, readable for the user that runs it.",
    ),
}


def refusal(code: str, detail: str = "") -> RefusedError:
    """The error of a reason code; `detail` adds what was seen, without secrets."""
    sentence, hint = REASONS[code]
    return RefusedError(f"{sentence[:-1]}: {detail}." if detail else sentence, hint, code=code)
