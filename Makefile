PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install quickstart test test-all style quality clean

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml setup.py mmhf-torchvision.pth
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	cp mmhf-torchvision.pth "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"  # see setup.py
	touch $@

# Starts afresh each time: what an earlier quickstart left would be refused, because a release is never overwritten.
quickstart: install
	rm -rf outputs/quickstart releases/quickstart
	$(BIN)/accelerate launch --config_file accelerate_configs/cpu.yaml scripts/train.py recipes/quickstart/fusion.yaml
	$(BIN)/python scripts/evaluate.py releases/quickstart@v0.1
	$(BIN)/python examples/classify_pair.py releases/quickstart/v0.1

test: install
	$(BIN)/python -m pytest -m "not slow" -n 2

test-all: install
	$(BIN)/python -m pytest -n 2

style: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist *.egg-info
