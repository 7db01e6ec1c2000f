"""How both ends of a connection prove that they have the cluster's key, without sending it.

Each end draws a nonce. A proof is an HMAC under the key over both nonces and all else that tells this connection from
every other one, with a label for each end. So no proof is of use on another connection, to another role, or to the end
that made it. Under TLS a proof covers the listener's certificate as well, as each end sees it: whoever stands between
the two and decrypts has another certificate.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from trio_dask.security.cluster_key import ClusterKey

NONCE_BYTES: Final = 32


class Side(Enum):
    """Which end proves."""

    CALLER = b"trio_dask: the caller has the key"
    LISTENER = b"trio_dask: the listener has the key"


class Prover(NamedTuple):
    """What one end brings along. Without a key it proves nothing, and asks for no proof (`--no-auth`)."""

    key: ClusterKey | None
    nonce: bytes
    channel_binding: bytes = b""

    @property
    def auth(self) -> str:
        """How the hello names what this end asks for: "key" or "none"."""
        return "none" if self.key is None else "key"


class Transcript(NamedTuple):
    """What tells one connection from all others."""

    protocol: int
    role: str
    caller: str
    """Its incarnation."""
    listener: str
    """Its incarnation."""
    caller_nonce: bytes
    listener_nonce: bytes
    channel_binding: bytes

    def proof(self, key: ClusterKey, side: Side) -> bytes:
        """The proof of one side that it has this key."""
        fields = (
            side.value,
            str(self.protocol).encode(),
            self.role.encode(),
            self.caller.encode(),
            self.listener.encode(),
            self.caller_nonce,
            self.listener_nonce,
            self.channel_binding,
        )
        return key.sign(b"".join(len(field).to_bytes(4, "big") + field for field in fields))

    def proves(self, key: ClusterKey, side: Side, proof: bytes) -> bool:
        """Whether this is the proof of that side; the time that it takes tells nothing of the right one."""
        import hmac

        return hmac.compare_digest(self.proof(key, side), proof)


# ---------------------------------------------------------------------------------------------------- what to do about


class Reason(NamedTuple):
    """A sentence that refuses a peer, and its end, if that says what to do."""

    text: str
    remedy: str = ""


CALLER_WITHOUT_KEY: Final = Reason(
    "this cluster asks for its key, and --no-auth (auth=False) was given here: leave it out", "leave it out"
)
"""What a caller with `--no-auth` hears."""

WITHOUT_KEY: Final = "it has --no-auth (auth=False), and this cluster asks for its key"
OTHER_KEY: Final = "it has another key than this cluster"
ASKS_FOR_KEY: Final = "it asks for a key, and this cluster runs with --no-auth"
NO_PROOF: Final = "it gave no proof of this cluster's key"
"""What the log of a listener says of a caller."""

_NO_KEY_HERE_EITHER: Final = "if it was you, with --no-auth, then give --no-auth (auth=False) here as well"
LISTENER_ASKS_NOTHING: Final = Reason(
    "what listens there does not ask for the cluster's key, so anybody may have started it; " + _NO_KEY_HERE_EITHER,
    _NO_KEY_HERE_EITHER,
)


def unproved(reason: str) -> str:
    """A refusal of a listener that has not proved itself, as its words and not as ours."""
    return f"what listens there says, without a proof that it has the cluster's key: {reason}"


def key_is_missing(place: str, used: str = "") -> Reason:
    """What to do where the listener has another key.

    `place` is the one of its file, if it has a file; `used` is what the user has named here, if that is not the home.
    """
    where, _, path = place.partition(":")
    copy = f"copy {path} from {where} to this machine (mode 0600), or " if path else ""
    if used:
        copy = f"name the one in {path} of {where}, or " if path else "name another one, or "
    problem = f"this cluster has another key than {used}" if used else "this cluster asks for its key"
    remedy = (
        f"{copy}use --scheduler-file, or start the scheduler with --no-auth; "
        "first make sure that it is yours, since it has not proved that"
    )
    return Reason(f"{problem}: {remedy}", remedy)
