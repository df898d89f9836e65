"""One table from every stored state to its shape, word and tone, so that no state is told by colour alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Look:
    """How one state is shown: a one-cell shape, a word, and a tone of `theme.TONES`."""

    shape: str
    word: str
    tone: str

    @property
    def text(self) -> str:
        """Shape and word with a space between."""
        return f"{self.shape} {self.word}"


UNKNOWN: Final = Look("?", "unknown", "muted")
POINTER: Final = "\u276f"
ORPHANED: Final = Look("!", "nobody is running this run", "warn")

_WAIT, _BUSY, _GOOD, _BAD, _ODD, _NONE = "◌", "▸", "✓", "✗", "!", "\u2013"

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
        "warning": (_ODD, "warn"),
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
        "unverified": (_ODD, "bad"),
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
    ("check", "not_applicable"): "n/a",
    ("clean", "true"): "clean",
    ("clean", "false"): "not clean",
    ("clean", "none"): "no verdict",
}

LOOKS: Final[dict[str, dict[str, Look]]] = {
    subject: {
        state: Look(shape, _WORDS.get((subject, state), state.replace("_", " ")), tone)
        for state, (shape, tone) in states.items()
    }
    for subject, states in _TABLE.items()
}


def look(subject: str, state: str | None) -> Look:
    """The look of `state`; anything that the table does not know is `UNKNOWN`, never fine."""
    return LOOKS[subject].get(state or "", UNKNOWN)


def clean_look(clean: bool | None) -> Look:
    """The look of a row's verdict; None means that there is none yet."""
    return LOOKS["clean"]["none" if clean is None else str(clean).lower()]
