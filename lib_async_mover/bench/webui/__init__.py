"""The benchmark inside a real webui: `python -m lib_async_mover.bench.webui --webui DIR`, told by `--help`.

It starts the webui with each configuration in turn, makes images through its API, and keeps one row of plain values for
each (`rows.py`). Nothing of it is imported by the webui but `probe.py`, which is copied there as an extension.
"""
