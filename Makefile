# Two commands do all their own set-up and re-run fast:
#   make demo   the benchmark on what this machine has (real UNet shapes on a GPU, a tiny one without)
#   make test   lint, types and every test this machine can run
# While working: make check (lint, types and the engine's tests, within a minute).
# .venv sees the system's packages, so the torch of a webui or of a GPU image is used where there is one.

PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
DEMO_ARGS ?=

.PHONY: demo test check lint clean

.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed" if sys.version_info < (3, 10) else 0)'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ test "$$(id -u)" = 0 && apt-get update -q && apt-get install -y -q python3-venv; } || \
		{ echo "this Python has no venv: run 'apt-get install python3-venv' as root, then again"; exit 1; }
	$(PYTHON) -m venv --system-site-packages .venv
	@touch $@

.venv/torch: .venv/made
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install -q --disable-pip-version-check $(TORCH)
	@$(BIN)/python -c 'import torch; print("torch", torch.__version__)'
	@touch $@

.venv/demo: .venv/torch lib_async_mover/bench/requirements.txt
	@$(BIN)/python -c 'import tqdm' 2>/dev/null || \
		$(BIN)/pip install -q --disable-pip-version-check -r lib_async_mover/bench/requirements.txt || \
		echo "tqdm cannot be had here: the demo runs without its progress bar"
	@touch $@

.venv/tests: .venv/torch tests/requirements.txt
	$(BIN)/pip install -q --disable-pip-version-check -r tests/requirements.txt
	@touch $@

# For the tests of the page. Where they cannot be had, those tests are skipped and say so.
.venv/browser: .venv/made
	@need=""; \
	{ command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null || need="$$need chromium"; \
	command -v node >/dev/null || need="$$need nodejs"; \
	test -z "$$need" || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
		apt-get update -q && apt-get install -y -q --no-install-recommends $$need; } || \
		echo "not installed:$$need; the tests that need them are skipped"
	@touch $@

demo: .venv/demo
	$(BIN)/python -m lib_async_mover demo $(DEMO_ARGS)

lint: .venv/tests
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m lib_async_mover report --check

check: lint
	$(BIN)/python -m pytest -n auto tests/memory tests/device tests/plan tests/run

test: lint .venv/browser
	$(BIN)/python -m pytest -n auto

clean:
	rm -rf .venv
