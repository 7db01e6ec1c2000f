"""The two ends of a hello, for tests: what each brings along, and what a caller says where no proof is asked for."""

from trio_dask.protocol.hello import Hello, Opening, Proved, encode_envelope
from trio_dask.security.cluster_key import ClusterKey
from trio_dask.security.proof import Prover

NO_PROOF = Prover(None, bytes(32))


def prover(key: ClusterKey | None, number: int, binding: bytes = b"") -> Prover:
    """What one end brings along; the number makes its nonce."""
    return Prover(key, number.to_bytes(32, "big"), binding)


def opening_of(hello: Hello) -> bytes:
    """The first envelope of a caller without a key."""
    return encode_envelope(
        Opening(hello.role, hello.incarnation, bytes(32), "none", hello.protocol, hello.package, hello.python)
    )


def greeting_of(hello: Hello) -> bytes:
    """All that such a caller says, without waiting for a challenge that asks for nothing."""
    return opening_of(hello) + encode_envelope(Proved(hello.name, hello.details, hello.memory))
