"""What to do about an error whose place of origin says nothing more specific, by the error's code.

`engine.errors` takes the hint from here when a raised error has none of its own; the runner takes it for a code that an
allocation reports, so that the advice is ours and not the allocation's.
"""

from __future__ import annotations

from typing import Final

_AGAIN: Final = "Start the run again; if it happens twice, use another allocation."
_HOSTILE: Final = "Treat the allocation as hostile: terminate it and use another one."
_BUG: Final = "Start the run again; if it happens twice, report it as a bug, with the run's logs."
_DISK: Final = "Check the disk and the permissions there, then start the run again."
_MEMORY: Final = "Use a smaller --batch or --max-length, or a machine with more memory."
_SHELL: Final = "Check the login on the allocation and its disk, then start the run again."
_FILE: Final = "Use the file exactly as it was written, or make it again."

HINTS: Final[dict[str, str]] = {
    # allocations and providers
    "acquire_failed": "Try again later, or choose another provider.",
    "allocation_gone": "Start a new run.",
    "allocation_not_ready": "Wait until it is ready, or release it with `glasshouse cleanup`.",
    "allocation_unknown": "List the allocations with `glasshouse allocations`.",
    "leaked": "Run `glasshouse cleanup`; if that fails, terminate it by hand at the provider.",
    "provider_failed": "Try again; `glasshouse allocations` shows what is rented meanwhile.",
    "release_failed": "Run `glasshouse cleanup`; if that fails, end it by hand.",
    # links and other machines
    "channel_refused": "Configure the SSH server to allow commands and SFTP.",
    "link_lost": "Check the network, then continue the run with `glasshouse resume`.",
    "local_unreadable": "Check that the file exists and that you may read it.",
    "remote_changed": _AGAIN,
    "remote_denied": "Check the owner and the permissions of the root folder on the allocation.",
    "remote_failed": _SHELL,
    "remote_missing": "Start the run again, and let nothing else remove files on the allocation.",
    "remote_not_a_file": _HOSTILE,
    "remote_not_a_folder": "Move what is there out of the way, or set another `root` for the host in config.toml.",
    "remote_output_too_long": "Check what the login on the allocation prints by itself, for example in .bashrc.",
    "remote_path_refused": "Set `root` of the host in config.toml to a folder that only the runs use.",
    "remote_timeout": "Check the load and the disk of the allocation, then start the run again.",
    "remote_too_large": _HOSTILE,
    # what the allocation sends
    "event_invalid": _HOSTILE,
    "json_duplicate_key": _FILE,
    "json_invalid": _FILE,
    "json_too_deep": _FILE,
    "json_too_large": _FILE,
    "json_not_canonical": _BUG,
    "json_not_finite": _FILE,
    "log_chain_broken": _HOSTILE,
    "log_hash_wrong": _HOSTILE,
    "log_line_invalid": _HOSTILE,
    "log_line_too_long": _HOSTILE,
    "log_not_a_file": _HOSTILE,
    "log_other_run": _HOSTILE,
    "log_shrunk": _HOSTILE,
    "log_too_long": _HOSTILE,
    "progress_invalid": _HOSTILE,
    "wire_invalid": _HOSTILE,
    "event_repeated": _HOSTILE,
    "evidence_repeated": _HOSTILE,
    "launch_repeated": _HOSTILE,
    "release_other_result": _HOSTILE,
    "job_mismatch": _HOSTILE,
    "supervisor_left": "Terminate the allocation with `glasshouse cleanup`; on your own host, end the process by hand.",
    # the worker
    "architecture_unsupported": "Use a model of another type, such as Llama, Mistral, Qwen3 or Gemma 3.",
    "cancelled_by_request": "Start the run again.",
    "channel_closed": _BUG,
    "channel_invalid": _BUG,
    "channel_oversize": _BUG,
    "channel_timeout": _AGAIN,
    "disk_full": "Free some space on the allocation, or ask for a larger disk.",
    "environment_unreadable": "Install the worker's environment again, readable by the user that runs it.",
    "gpu_failed": "Start the run again; if it happens twice, choose another GPU or a machine with another driver.",
    "gpu_out_of_memory": "Use a smaller --batch or --max-length, or a GPU with more memory.",
    "hub_unreachable": "Check that the allocation can reach the hub and that the revision exists.",
    "inbox_invalid": _BUG,
    "internal_error": _BUG,
    "job_invalid": "Use the same version of glasshouse on both sides, then start the run again.",
    "keyproc_failed": _BUG,
    "keyproc_killed": _MEMORY,
    "keyproc_out_of_memory": _MEMORY,
    "keyproc_worker_died": _BUG,
    "lease_expired": "Raise --max-cost or the limits in config.toml, or train for fewer seconds or steps.",
    "module_missing": "Release the allocation, so that its environment is installed again; then start the run again.",
    "not_started": "See why the segment before it failed.",
    "os_error": "Check the free disk space and the permissions on the machine that reports it.",
    "out_of_memory": _MEMORY,
    "pattern_invalid": _BUG,
    "pattern_overflow": _BUG,
    "pattern_weak": _BUG,
    "payload_changed": _AGAIN,
    "release_denied": "See the reason codes with `glasshouse show`, and what each asks for in the refusal matrix.",
    "release_info_invalid": _BUG,
    "release_wrong_size": _HOSTILE,
    "runner_silent": "Resume the run with `glasshouse resume`.",
    "scan_failed": "Start the run again on a machine that lets a process read its own children's memory.",
    "scan_target_unknown": _BUG,
    "scanner_killed": _MEMORY,
    "scanner_out_of_memory": _MEMORY,
    "scanner_worker_died": _BUG,
    "segment_failed": "See the last lines of `glasshouse logs` for this run.",
    "series_invalid": "Restore the database from a copy; the row of this run cannot be computed any more.",
    "target_size": _BUG,
    "trainer_failed": "See the last lines of `glasshouse logs` for this run; a raw segment's log quotes the error.",
    "trainer_killed": _MEMORY,
    "trainer_out_of_memory": _MEMORY,
    "trainer_worker_died": "Check the GPU's driver and the libraries of the allocation, then start the run again.",
    "weights_changed": "Delete the copy on this allocation and run again.",
    "worker_protocol": _BUG,
    "worker_stopped": _BUG,
    "worker_stuck": "Check the load of the allocation, then start the run again.",
    # keys and packages on this machine
    "passphrase_invalid": "Type the passphrase in UTF-8.",
    "payload_unreadable": "Give a regular file that you may read.",
    "recipient_invalid": "Restore the operator's keys from a backup.",
    "sealing_failed": _DISK,
    # the store and the runner
    "run_failed": "See `glasshouse logs` for this run, then start it again.",
    "store_unusable": "Run `glasshouse doctor`.",
}
"""A sentence or two for each code. The codes of the refusal matrix have theirs in `engine.attestation.reasons`."""
