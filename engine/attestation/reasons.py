"""Why the protected path refuses: every reason code with a sentence for the user and an instruction. Codes are stable.

Stored attestation results hold these texts. `verify` compares them only in an accepted result, where no rule failed and
all are empty, so a new wording breaks no row that was exported before.
"""

from __future__ import annotations

from typing import Final

from engine.errors import RefusedError

_AGAIN: Final = "Start the run again; if it happens twice, use another allocation."
_TAMPERED: Final = "Treat the allocation as hostile: terminate it and use another one."
_TERMINATE: Final = "Terminate the allocation."
_UPDATE: Final = "Use the same version of glasshouse on both sides, then start the run again."
_CLOCKS: Final = "Check the clocks of both machines, then start the run again."
_AS_EXPORTED: Final = "Use the file exactly as it was exported."
_NOT_WIPED: Final = "Treat the secrets as not wiped."
_NO_ENVELOPE: Final = "Do not trust this envelope."
_NO_ROW: Final = "Do not trust this row."

REASONS: Final[dict[str, tuple[str, str]]] = {
    # evidence as a document
    "evidence_too_large": ("The evidence is larger than the limit, so it was not read.", _TAMPERED),
    "evidence_malformed": ("The evidence is not a well-formed signed token, so nothing in it can be checked.", _AGAIN),
    "evidence_alg": ("The evidence is not signed with Ed25519, the only algorithm that is accepted.", _TAMPERED),
    "evidence_claims": ("The evidence has missing, unknown or malformed claims, so it cannot be appraised.", _UPDATE),
    "attester_key_unknown": (
        "The evidence is signed by another key than the one that the worker announced at launch.",
        _TAMPERED,
    ),
    "signature_invalid": (
        "The signature of the evidence does not verify, so its content may have been changed.",
        _TAMPERED,
    ),
    "evidence_expired": ("The evidence is older than the policy allows.", _CLOCKS),
    "evidence_not_yet_valid": ("The evidence is dated further in the future than the policy allows.", _CLOCKS),
    # freshness
    "nonce_unknown": (
        "The evidence answers a nonce that was never issued, so it does not answer this run's challenge.",
        _TAMPERED,
    ),
    "nonce_expired": (
        "The evidence answers a nonce that has expired, two minutes after it was issued or by a reboot.",
        _AGAIN,
    ),
    "nonce_replayed": ("The evidence answers a nonce that was used before, so it may be a replay.", _TAMPERED),
    "nonce_other_run": ("The evidence answers a nonce that was issued to another run.", _TAMPERED),
    "nonce_state_damaged": (
        "The record of issued nonces is damaged, so freshness cannot be checked.",
        "Start the run again.",
    ),
    "nonce_state_unwritable": (
        "The record of issued nonces cannot be written, so no evidence can be accepted.",
        "Free some space or choose another --home.",
    ),
    # binding
    "run_mismatch": ("The evidence or the challenge belongs to another run.", _TAMPERED),
    "measurement_mismatch": (
        "The worker code that was measured is not the code that this installation builds.",
        _UPDATE,
    ),
    "lock_mismatch": ("The worker's list of third-party packages is not the expected one.", _UPDATE),
    "environment_mismatch": (
        "The files installed on the allocation are not those of the reference measurement.",
        "Install the worker's environment again, from its lock.",
    ),
    "plan_mismatch": ("The evidence is for another plan than this run's.", _TAMPERED),
    "policy_mismatch": ("The evidence was made under another policy than the operator's.", _TAMPERED),
    "manifest_mismatch": ("The package on the allocation is not the one that was sent.", _TAMPERED),
    "challenge_mismatch": ("The challenge that was answered is not the expected one.", _TAMPERED),
    "pod_mismatch": ("The evidence names another allocation than the one in use.", _TAMPERED),
    "host_key_mismatch": ("The SSH host key is not the pinned one, so another machine may be answering.", _TAMPERED),
    "gpu_mismatch": ("The evidence names another GPU than the worker reported at launch.", _TAMPERED),
    "head_mismatch": ("The evidence does not link to the runner's log at the time of the challenge.", _TAMPERED),
    "cnf_exchanged": (
        "The key that would receive the package's keys is not the attested one, so they could reach somebody else.",
        _TAMPERED,
    ),
    "nonce_object_mismatch": (
        "The nonce object does not match the claims, so a claim was changed after it was computed.",
        _TAMPERED,
    ),
    "cnf_invalid": ("The key that would receive the package's keys cannot be used for encryption.", _AGAIN),
    # policy
    "policy_invalid": ("The policy does not match its schema.", "Correct the policy file."),
    "policy_unknown_field": (
        "The policy has an unknown field.",
        "Remove the field from the policy file, or correct its spelling.",
    ),
    "policy_older": ("The policy is older than the built-in one.", "Update the policy file."),
    "policy_loosened": (
        "The policy requires less than the built-in one.",
        "Make the policy at least as strict as the built-in one in every field.",
    ),
    "tier_overclaimed": ("The evidence claims a hardware TEE that it does not prove.", _TAMPERED),
    "tier_unsupported": (
        "Evidence of this tier cannot be verified by this version.",
        "Run in the software tier, or update glasshouse.",
    ),
    "tier_not_allowed": (
        "The policy does not accept evidence of this tier.",
        "Use a machine of a tier that the policy accepts.",
    ),
    "debug_enabled": (
        "The worker runs in debug mode, in which its secrets could be read.",
        "Start the run without debug mode.",
    ),
    "enforcement_missing": (
        "A control that the policy requires is not enforced.",
        "Use a machine that has the control, or a policy that does not require it.",
    ),
    "profile_unknown": ("The evidence follows an unknown profile, so its claims cannot be interpreted.", _UPDATE),
    # the attestation result
    "result_malformed": (
        "The attestation result is not an EAR token of this profile, so nothing in it can be relied on.",
        _NO_ROW,
    ),
    "result_signature_invalid": ("The attestation result is not signed by the run's key.", _NO_ROW),
    "result_overclaimed": ("The attestation result claims more than its tier or its own vector allows.", _NO_ROW),
    # release
    "release_before_result": ("A release was requested without accepted evidence, so no key was released.", _AGAIN),
    "release_other_result": ("The release does not match the attestation result that it names.", _TAMPERED),
    "release_repeated": (
        "A release was already made for this attestation result.",
        "Deliver the first release again, unchanged; no second one is made.",
    ),
    # challenge, envelopes, receipts
    "challenge_invalid": ("The challenge is malformed, or this run's key did not sign it.", _TAMPERED),
    "envelope_malformed": ("This is not a valid DSSE envelope.", _AS_EXPORTED),
    "envelope_payload_type": ("The envelope holds another type of payload than expected.", _AS_EXPORTED),
    "envelope_keys_not_distinct": (
        "One key has signed under two names, so it does not count as two signers.",
        _NO_ENVELOPE,
    ),
    "envelope_signer_unknown": ("The envelope is not signed by exactly the expected keys.", _NO_ENVELOPE),
    "envelope_signature_invalid": (
        "A signature of the envelope does not verify, so its content may have been changed.",
        _NO_ENVELOPE,
    ),
    "statement_malformed": ("The envelope does not hold a valid in-toto statement.", _AS_EXPORTED),
    "predicate_type": ("The signed statement is of another type than expected.", _AS_EXPORTED),
    "predicate_malformed": ("The content of the signed statement does not match its type.", _AS_EXPORTED),
    "delegation_expired": (
        "The operator's delegation to the run's key was not valid at that time.",
        "Start the run again.",
    ),
    "delegation_other_run": (
        "The operator's delegation is for another run or plan.",
        "Do not trust this run's receipts.",
    ),
    "receipt_other_run": (
        "The receipt is for another run, package, challenge or row, so it may be a replay.",
        "Do not trust this receipt.",
    ),
    # signers
    "signer_unknown": (
        "The signing key is neither one that you trust nor one of this home.",
        "Get the operator's fingerprint from the operator, and give it with --trust.",
    ),
    "signer_revoked": ("The operator's key that signed this was revoked.", _NO_ROW),
    "rotation_invalid": (
        "This is not a valid rotation, a statement that both the old and the new key have signed.",
        "Use the file exactly as `glasshouse key rotate` wrote it.",
    ),
    "revocation_invalid": (
        "This is not a valid revocation, signed by the key itself or by one of its successors.",
        "Use the file exactly as `glasshouse key revoke` wrote it.",
    ),
    # zeroization
    "zeroization_no_control": (
        "The scan did not find the secrets before the wipe, so finding none afterwards proves nothing.",
        _NOT_WIPED,
    ),
    "zeroization_hits": (
        "The scan still found secrets after the wipe.",
        "Terminate the allocation, and treat the secrets as disclosed.",
    ),
    "zeroization_unread": (
        "Memory that should have been scanned was not read, so secrets may remain in it.",
        _NOT_WIPED,
    ),
    "zeroization_process_alive": ("A process that held secrets is still running.", _TERMINATE),
    "zeroization_scratch": ("The scratch folder is not empty after the wipe, so it may hold secrets.", _TERMINATE),
    "zeroization_deleted_files": ("A deleted file is still held open, so its content may still exist.", _TERMINATE),
    "zeroization_device": ("The accelerator's memory is not back at its baseline, so it may hold secrets.", _TERMINATE),
    "zeroization_incomplete": ("The zeroization receipt does not cover everything that it must cover.", _NOT_WIPED),
    # training
    "phase_impossible": ("The allocation reports phases of a segment that the plan cannot produce.", _TAMPERED),
    "training_out_of_order": ("The allocation's events of the training are not in a possible order.", _TAMPERED),
    "steps_over_plan": ("The allocation reports more steps than the plan has.", _TAMPERED),
    "step_impossible": ("The allocation reports a step that cannot have happened.", _TAMPERED),
    "evaluation_impossible": ("The allocation reports a held-out loss where the plan has none.", _TAMPERED),
    "checkpoint_impossible": ("The allocation reports a checkpoint where the plan has none.", _TAMPERED),
    "time_impossible": ("The allocation reports times that are impossible.", _TAMPERED),
    "finish_mismatch": ("The end of the training does not match the steps that were reported.", _TAMPERED),
    "zeroization_other_log": (
        "The zeroization receipt names another adapter or another place in the log than this run's.",
        _NOT_WIPED,
    ),
    "zeroization_constants": (
        "The methods or the sanitization that the zeroization receipt states are not those of this worker.",
        _TAMPERED,
    ),
    "zeroization_targets": ("The zeroization receipt has scans of targets that no run has.", _TAMPERED),
    "zeroization_roles": ("The zeroization receipt lists processes that no run has, or one of them twice.", _TAMPERED),
    "zeroization_times": (
        "The times in the zeroization receipt are out of order, or outside the time of this run.",
        _CLOCKS,
    ),
    "zeroization_counts": ("Counts in the zeroization receipt contradict each other.", _TAMPERED),
    "zeroization_device_missing": (
        "The zeroization receipt does not report the accelerator that the launch named.",
        _NOT_WIPED,
    ),
    "zeroization_short": ("A scan read less memory than such a process has, so it was not read whole.", _NOT_WIPED),
    "zeroization_unseen": (
        "The files held by more processes than the policy allows could not be listed.",
        "Use an allocation of its own, or a user that may list the processes there.",
    ),
    "zeroization_missing": ("The allocation left no zeroization receipt.", _NOT_WIPED),
    "zeroization_not_claimed": ("The allocation does not claim that the wipe was proven.", _NOT_WIPED),
    "zeroization_stack_hits": (
        "The scan still found secrets on the stack after the wipe, such as a saved register.",
        "Terminate the allocation, and treat the secrets as disclosed.",
    ),
    # the public artifact
    "artifact_malformed": ("This is not a valid public artifact.", "Export the row again, or ask for the file again."),
    "artifact_version": (
        "The artifact has another format of the row than the one that this version checks.",
        "Check it with the version of glasshouse that its row names.",
    ),
    "artifact_unsigned": (
        "No signature covers this row, a published or unproven figure.",
        "Ask for a row that was exported with its bundle.",
    ),
    "keys_not_distinct": ("One key is used in two roles, so its signatures cannot confirm each other.", _NO_ROW),
    "receipt_mismatch": ("A receipt does not match the rest of the artifact.", _NO_ROW),
    "result_mismatch": ("The attestation result does not match the rest of the artifact.", _NO_ROW),
    "log_broken": ("A log's chain is not intact from its first event to its signed end.", _NO_ROW),
    "log_contradicts": ("Logged events contradict each other.", _NO_ROW),
    "order_broken": ("The logs do not show the order of events that the protected path requires.", _NO_ROW),
    "series_mismatch": ("The step series is not the one that was signed.", _NO_ROW),
    "row_mismatch": ("The row is not the one that follows from its logs, receipts and series.", _NO_ROW),
    # measurement
    "measurement_unknown": (
        "The worker code that ran is neither what this installation builds nor a reference that you named.",
        "Install the version that made the row, or name its bundle with --reference.",
    ),
    "environment_unknown": (
        "No reference value covers what was installed where the worker ran, so what ran is unknown.",
        "Ask the operator how it was installed, measure the same installation, and give its values with --reference.",
    ),
    "environment_changed": (
        "Installed files changed while the worker started, so its measurement may not describe what runs.",
        "Start the run again once nothing is being installed; if it happens twice, use another allocation.",
    ),
    "environment_unreadable": (
        "An installed file cannot be measured.",
        "Install the worker's environment again, readable by the user that runs it.",
    ),
}

OF_OTHER_ROOMS: Final[dict[str, str]] = {
    "adapter_malformed": "The file is not a sealed adapter, or not one that can be opened.",
    "adapter_tampered": "The sealed adapter was changed.",
    "adapter_truncated": "The sealed adapter ends before its end.",
    "adapter_wrong_binding": "The adapter was sealed for another run, segment, package or nonce.",
    "adapter_wrong_key": "The adapter was sealed to another key, or its header was changed.",
    "bundle_digest_mismatch": "The staged bundle is not the one that was sent, so it is not started.",
    "cancel_unanswered": "The allocation did not react to the request to stop.",
    "event_repeated": "The allocation reported a second time what it reports once.",
    "evidence_repeated": "The allocation sent evidence a second time.",
    "job_mismatch": "The allocation started another job than the one that was sent.",
    "json_duplicate_key": "A JSON object has the same key twice.",
    "json_invalid": "What was received is not strict JSON.",
    "json_not_canonical": "A value has no canonical JSON.",
    "json_not_finite": "A JSON number is not finite.",
    "json_too_deep": "JSON is nested more deeply than the limit.",
    "json_too_large": "JSON is longer than the limit.",
    "launch_repeated": "The allocation announced a second launch.",
    "launched_other_bundle": "The supervisor that answers runs another bundle.",
    "leaked": "The allocation is still listed after its termination.",
    "log_chain_broken": "A line of the log is missing or out of order.",
    "log_flooded": "The log grows beyond what the plan can bring into it.",
    "log_hash_wrong": "A line of the log was changed after it was written.",
    "log_line_invalid": "A line of the log is not a valid event.",
    "log_line_too_long": "A line of the log is longer than the limit.",
    "log_not_a_file": "The log is no regular file.",
    "log_other_run": "A line of the log belongs to another run.",
    "log_shrunk": "The log is shorter than before.",
    "log_too_long": "The log is longer than the limit.",
    "manifest_count": "The manifest lists no file, or too many.",
    "manifest_duplicate": "The manifest lists a name twice.",
    "manifest_invalid": "The manifest does not match its schema.",
    "manifest_name": "The manifest has a name that is no plain file name.",
    "manifest_not_canonical": "The manifest is not in its one canonical form.",
    "manifest_size": "The manifest states an impossible size.",
    "manifest_too_large": "The manifest is longer than the limit.",
    "payload_digest_mismatch": "The opened file is not the one that the manifest describes.",
    "payload_missing": "A sealed file is missing, or is no regular file.",
    "payload_tampered": "A sealed file was changed.",
    "payload_truncated": "A sealed file ends before its end.",
    "payload_wrong_context": "A sealed file belongs to another package, place, key or header.",
    "release_wrong_binding": "The release does not open with this key and for this evidence, policy, package and run.",
    "remote_not_a_file": "The remote file is no regular file, so it is not fetched.",
    "remote_output_too_long": "A remote command wrote more than the limit.",
    "remote_too_large": "The remote file is larger than the limit, so it is not fetched.",
    "run_overdue": "The allocation has not ended, although the longest time that its plan can take is over.",
    "tensors_invalid": "The file is not plain safetensors.",
}
"""Sentences for the page of refusals, of codes that other rooms raise with a sentence about the case at hand."""


def refusal(code: str, detail: str = "") -> RefusedError:
    """The error of a reason code; `detail` says what was observed, without secrets."""
    sentence, hint = REASONS[code]
    return RefusedError(f"{sentence[:-1]}: {detail}." if detail else sentence, hint, code=code)
