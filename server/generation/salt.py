"""Says who shares cached prefixes with whom."""

from hashlib import sha256


def prefix_salt(caller: str, cache_salt: str) -> str:
    """Returns the salt under which the engine caches a request's prefixes.

    Two requests have the same salt if the caller and the client's own cache_salt are the same. Each part is hashed with
    its length before it. So no client can choose a cache_salt that makes its prefixes meet those of another caller.
    """
    digest = sha256()
    for part in (caller, cache_salt):
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()
