# make demo: a picture of digits from nothing. make test: the test suite. make lint: style and types.
# Both set up .venv on first use. make demo SEED=1 for another seed.
PYTHON ?= python3
SEED ?= 0
# make test CONSTRAINTS=tests/lowest.txt: with the oldest versions that are allowed.
CONSTRAINTS ?= constraints.txt
SCM = OMP_NUM_THREADS=1 .venv/bin/scm
# Behind --config, since later options win.
SEEDED = --seed_everything $(SEED)
# A finished run is left as it is; a stopped one continues; a seed trains anew.
FRESH = $(if $(filter command line,$(origin SEED)),--fresh)
INSTALL = .venv/bin/pip install -q --disable-pip-version-check -c $(CONSTRAINTS)

.PHONY: demo test test-slow lint

# One thread: two that wait for each other on a loaded machine can be many times slower.
demo: .venv/installed
	$(SCM) fit     --config configs/digits_teacher.yaml $(SEEDED) $(FRESH)
	$(SCM) fit     --config configs/digits_scd.yaml $(SEEDED) $(FRESH)
	$(SCM) test    --config configs/digits_scd.yaml $(SEEDED)
	$(SCM) predict --config configs/digits_scd.yaml $(SEEDED)

# Two processes, a file of tests in one of them; in their order, or the longest files come last.
test: .venv/installed-dev
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/installed-dev
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m slow -s

lint: .venv/installed-dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

.venv/bin/pip:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/pip pyproject.toml $(CONSTRAINTS)
	$(INSTALL) -e .
	touch $@

.venv/installed-dev: .venv/bin/pip pyproject.toml $(CONSTRAINTS)
	$(INSTALL) -e ".[dev,fid]"
	touch $@ .venv/installed
