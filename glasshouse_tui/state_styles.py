"""The shape, word and tone of every stored state. No two states differ by colour alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class StateStyle:
    """How a state is displayed: a one-cell shape, a word, and a tone of `theme.TONES`."""

    shape: str
    word: str
    tone: str

    @property
    def text(self) -> str:
        """Shape and word, separated by a space."""
        return f"{self.shape} {self.word}"


UNKNOWN: Final = StateStyle("?", "unknown", "muted")
POINTER: Final = "\u276f"
NO_RUNNER: Final = StateStyle("!", "This run has no runner", "warn")

_WAIT, _BUSY, _GOOD, _BAD, _WARN, _NONE = "◌", "▸", "✓", "✗", "!", "\u2013"

_TABLE: Final[dict[str, dict[str, tuple[str, str]]]] = {
    "run": {
        "queued": (_WAIT, "muted"),
        "allocating": (_BUSY, "busy"),
        "connecting": (_BUSY, "busy"),
        "staging": (_BUSY, "busy"),
        "running": (_BUSY, "busy"),
        "collecting": (_BUSY, "busy"),
        "cleaning": (_BUSY, "busy"),
        "finished": (_GOOD, "good"),
        "failed": (_BAD, "bad"),
        "cancelled": ("■", "warn"),
    },
    "segment": {
        "pending": (_WAIT, "muted"),
        "launching": (_BUSY, "busy"),
        "attesting": (_BUSY, "busy"),
        "releasing": (_BUSY, "busy"),
        "loading": (_BUSY, "busy"),
        "warming": (_BUSY, "busy"),
        "training": (_BUSY, "busy"),
        "sealing": (_BUSY, "busy"),
        "zeroizing": (_BUSY, "busy"),
        "done": (_GOOD, "good"),
        "failed": (_BAD, "bad"),
    },
    "attestation": {
        "not_requested": (_NONE, "muted"),
        "awaiting_evidence": ("…", "busy"),
        "verified": (_GOOD, "good"),
        "rejected": (_BAD, "bad"),
    },
    "ear": {
        "none": (_NONE, "muted"),
        "affirming": (_GOOD, "good"),
        "warning": (_WARN, "warn"),
        "contraindicated": (_BAD, "bad"),
    },
    "key": {
        "withheld": ("○", "plain"),
        "released": ("●", "busy"),
        "destroyed": (_GOOD, "good"),
    },
    "runtime": {
        "pending": (_WAIT, "muted"),
        "running": (_BUSY, "busy"),
        "zeroizing": (_BUSY, "busy"),
        "zeroized": (_GOOD, "good"),
        "unverified": (_WARN, "bad"),
    },
    "cleanup": {
        "active": ("●", "busy"),
        "kept": ("◆", "warn"),
        "terminating": (_BUSY, "busy"),
        "gone": (_GOOD, "good"),
        "leaked": (_BAD, "bad"),
        "not_ours": (_NONE, "muted"),
    },
    "check": {
        "passed": (_GOOD, "good"),
        "failed": (_BAD, "bad"),
        "pending": ("…", "busy"),
        "not_applicable": (_NONE, "muted"),
    },
    "stage": {
        "waiting": ("·", "muted"),
        "current": (_BUSY, "busy"),
        "passed": (_GOOD, "good"),
        "failed": (_BAD, "bad"),
        "skipped": (_NONE, "muted"),
    },
    "clean": {
        "true": (_GOOD, "good"),
        "false": (_BAD, "bad"),
        "none": (_NONE, "muted"),
    },
}

_WORDS: Final = {
    ("attestation", "not_requested"): "none",
    ("attestation", "awaiting_evidence"): "waiting",
    ("check", "not_applicable"): "n/a",
    ("clean", "true"): "clean",
    ("clean", "false"): "not clean",
    ("clean", "none"): "no verdict",
}

STATE_STYLES: Final[dict[str, dict[str, StateStyle]]] = {
    subject: {
        state: StateStyle(shape, _WORDS.get((subject, state), state.replace("_", " ")), tone)
        for state, (shape, tone) in states.items()
    }
    for subject, states in _TABLE.items()
}


def state_style(subject: str, state: str | None) -> StateStyle:
    """The style of `state`; a state that is not in the table is `UNKNOWN`, never good."""
    return STATE_STYLES[subject].get(state or "", UNKNOWN)


def verdict_style(clean: bool | None) -> StateStyle:
    """The style of a row's verdict; None means that there is no verdict yet."""
    return STATE_STYLES["clean"]["none" if clean is None else str(clean).lower()]
