"""A dictionary in place of the host's cache on disk."""

caches: dict = {}


def cache(subsection):
    return caches.setdefault(subsection, {})
