# Every target sets itself up: a fresh Debian with Python 3.11 and make needs nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint infra/constraints.txt

.PHONY: demo test check bench bench-rivals chaos clean

demo: $(VENV)/.service
	$(BIN)/thinkstream demo

test: check
	infra/install_test_servers
	$(BIN)/python -m pytest
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/kernels

check: $(VENV)/.dev
	infra/check

bench: $(VENV)/.service
	$(BIN)/python -m infra.bench

# Each rival in an environment of its own: they do not agree on a redis-py, nor with us.
bench-rivals: $(VENV)/.service
	for rival in arq taskiq celery; do \
	    test -x .venv-rivals/$$rival/bin/python || $(PYTHON) -m venv .venv-rivals/$$rival; \
	    .venv-rivals/$$rival/bin/python -m pip install --quiet --requirement infra/bench/requirements/$$rival.txt; \
	done
	$(BIN)/python -m infra.bench.rivals

# Half an hour; other runs by CHAOS="--seconds 600 --appendfsync always", see `python -m infra.chaos --help`.
chaos: $(VENV)/.service
	$(BIN)/python -m infra.chaos --jobs 2000 --second-node $(CHAOS)

$(VENV)/.service: pyproject.toml infra/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[service]'
	touch $@

$(VENV)/.dev: $(VENV)/.service
	$(INSTALL) --editable '.[service,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
