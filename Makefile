# make demo    a real launch on this machine: install, train, evaluate, preserve, summarise
# make test    the whole suite, real SLURM included where it can be installed (root and apt)
# make torture kills and outages by the hundred on real SLURM, hours; its report: benchmarks/results/torture_*.md
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

.PHONY: demo test torture check clean

demo: $(READY)
	$(VENV)/bin/python launch.py demo.yaml

test: check
	$(VENV)/bin/pytest -n 2 --dist loadgroup -rs

torture: $(READY)
	$(VENV)/bin/pytest tests/slurm --torture

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# one environment for both; Debian's python3 may come without venv, which root can mend
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV) || (apt-get update -qq && apt-get install -y python3-venv && $(PYTHON) -m venv --clear $(VENV))
	$(VENV)/bin/pip install --disable-pip-version-check -e ".[hf,report,dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
