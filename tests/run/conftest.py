"""What a GPU would refuse fails here too."""

from __future__ import annotations

from tests.host_reads import host_reads_raise  # noqa: F401
