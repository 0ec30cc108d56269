"""What to do next about a receipt or log that does not verify: the command line's hints.

The verifier itself (verify.py) says what was wrong, where, what was expected and what was found.
"""

from __future__ import annotations

from .verify import VerificationError

_ADVICE = {
    "index outside the tree": "fetch the receipt again; this one is for another tree",
    "wrong number of hashes": (
        "the proof was cut or belongs to another index or tree; fetch it again"
    ),
    "the entry is not in the signed tree": (
        "entry, index or proof was changed, or belongs to another log"
    ),
    "not a verifier key": "use the line in the log's log.vkey, obtained on a way you trust",
    "the key id does not belong": "the verifier key was changed or mistyped; copy it again",
    "cannot read the verifier key": "give the line in the log's log.vkey, or that file's path",
    "not a signed note": "it may have been cut short; fetch it again",
    "wrong signature": "the note or its signature was changed, or another key made it",
    "not signed by the given key": (
        "use the key of the log that issued this, or the receipt of the right log"
    ),
    "checkpoint of another log": "use the verifier key of the log that signed the checkpoint",
    "not a tlog-proof": "it may have been cut short; fetch it again",
    "not JSON": "it may have been cut short; fetch it again",
    "not published yet": "fetch the receipt again with ?wait=1",
    "receipt of another log": "use the verifier key of the log that issued the receipt",
    "the log signed two different trees": (
        "keep this receipt: it proves that the log shows two histories"
    ),
    "no entry of this receipt commits": (
        "leave that body out, or fetch the receipt again after the call has ended"
    ),
    "the receipt carries no salt": "ask the operator for the salts; the caller's receipt has them",
    "a tlog-proof carries no salts": "fetch the JSON form of the receipt",
    "a tlog-proof does not carry": "give the entry's bytes too (--entry)",
    "not the request that was recorded": (
        "give the exact bytes that went over the wire, and an unchanged receipt"
    ),
    "not the response that was recorded": (
        "give the exact bytes that went over the wire, and an unchanged receipt"
    ),
}


def advise(error: VerificationError) -> VerificationError:
    """The same error with its advice, where it has none of its own."""
    found = (advice for what, advice in _ADVICE.items() if error.what.startswith(what))
    error.advice = error.advice or next(found, "")
    return error
