"""The benchmark: UNets of real shapes with random weights, stock lowvram's mechanism, and the mover, in one run.

Needs torch and nothing else: no webui, no checkpoint. Run it with ``python -m lib_async_mover bench``. Only the package
`webui` measures in a real one.
"""
