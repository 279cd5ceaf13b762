PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DECLARED := setup.cfg pyproject.toml
FAMILY ?=
RIVALS := $(patsubst benchmarks/rivals/requirements/%.txt,%,$(wildcard benchmarks/rivals/requirements/*.txt))
RIVAL_ENVS ?= benchmarks/rivals/.envs
# Bytecode is kept: the tests start hundreds of programs, each of which would compile the package anew.
export PYTHONDONTWRITEBYTECODE :=
# All families, or the tests of one: `make test FAMILY=captioner`.
PYTEST := $(BIN)/python -m pytest -n 2 $(if $(FAMILY),--family $(FAMILY))

.PHONY: install install-test install-dev quickstart test test-all test-other-cpu bench rivals campaigns wheel-test style quality docs clean

# What a user needs; the next two add what tests and development need.
install: $(VENV)/.installed
install-test: $(VENV)/.installed-test
install-dev: $(VENV)/.installed-dev

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

# Nothing is compiled beforehand: of the 27,000 files of all packages most are never imported.
# In an environment whose torchvision does not fit its torch, `accelerate launch` fails before it reads a script: there,
# and only there, each start of Python imports mmhf, which mends it (mmhf/_torchvision.py).
define install_package
	$(BIN)/python -m pip install --quiet --no-compile --editable '.$(1)'
	$(BIN)/python -c 'import torchvision' 2> /dev/null || echo 'import mmhf' > \
		"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/mmhf-torchvision.pth"
	touch $@
endef

$(VENV)/.installed: $(VENV)/.made $(DECLARED)
	$(call install_package,)

$(VENV)/.installed-offline: $(VENV)/.installed
	$(call install_package,[offline])

$(VENV)/.installed-test: $(VENV)/.installed
	$(call install_package,[test])

$(VENV)/.installed-dev: $(VENV)/.installed-test
	$(call install_package,[dev])

# Starts afresh each time: what an earlier quickstart left would be refused, because a release is never overwritten.
quickstart: $(VENV)/.installed-offline
	rm -rf outputs/quickstart releases/quickstart
	$(BIN)/accelerate launch --config_file accelerate_configs/cpu.yaml scripts/train.py recipes/quickstart/fusion.yaml
	$(BIN)/python scripts/evaluate.py releases/quickstart@v0.1
	$(BIN)/python examples/classify_pair.py releases/quickstart/v0.1

# One thread a process: two processes of two threads on two cores take nearly three times as long.
test test-all: export OMP_NUM_THREADS ?= 1

test: install-test
	$(PYTEST) -m "not slow"

test-all: install-test
	$(PYTEST)

# Stands in for other machines: kernels of older processors, and another number of threads, round otherwise.
test-other-cpu: install-test
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=2 $(PYTEST) -m "not slow"

# Every benchmark in its short form, each ratio beside its floor; takes some minutes on an idle machine.
bench: install-test
	$(BIN)/python benchmarks/run_all.py

# Environments of benchmarks/rivals/run.py. Where one cannot be built the others are, and the table says why. A torchvision
# that does not fit its torch is mended as above, without mmhf.
rivals: $(VENV)/.installed-offline $(RIVALS:%=$(RIVAL_ENVS)/%/.installed)

$(RIVAL_ENVS)/%/.installed: benchmarks/rivals/requirements/%.txt
	$(PYTHON) -m venv --clear $(@D)
	if $(@D)/bin/python -m pip install --no-compile --requirement $< > $(@D)/install.log 2>&1; then \
		$(@D)/bin/python -c 'import torchvision' 2> /dev/null || { \
			cd "$$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
			&& { cat $(CURDIR)/mmhf/_torchvision.py; echo 'install()'; } > mend_torchvision.py \
			&& echo 'import mend_torchvision' > mend_torchvision.pth; } \
		&& touch $(abspath $@); \
	else echo "$*: $$(tail -n 1 $(@D)/install.log)"; fi

# Hundreds of kills and damages, thousands of broken inputs, many rows and steps: docs/reliability.md.
campaigns: install-test
	OMP_NUM_THREADS=1 $(BIN)/python tests/campaigns/run.py

# The package as others get it: built, installed beside its dependencies, used outside this folder.
wheel-test: install-test
	$(BIN)/python tests/check_wheel.py

style: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# build/site; a warning is an error.
docs: install-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) build dist *.egg-info
