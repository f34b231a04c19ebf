PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

PUBLIC := torchvision==0.29.1 timm==1.0.31 segmentation-models-pytorch==0.6.0 facenet-pytorch==2.6.0 \
	pretrainedmodels==0.7.4
PUBLIC_NEEDS := six munch tqdm requests urllib3 charset-normalizer idna certifi huggingface-hub httpx2 httpcore2 truststore

.PHONY: setup demo lint test test-slow test-nasty parity models quality bench clean

setup: .venv/.done  ## a virtual environment with pinned versions and this project in it

.venv/.done: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,rtx]"
	touch $@

demo: setup  ## segment a real scene with the shipped bundle, under a Prefect server of its own
	$(BIN)/python -m flows.demo

lint: setup  ## style, types, arrows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint  ## everything that CI runs
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-slow: setup  ## every network with every decoder and output stride, exported; approvals and failures of retrainings
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m slow

test-nasty: setup  ## every file of the nasty archive, in processes of their own; writes docs/nasty.md
	$(BIN)/python -m tests.nasty

parity: setup  ## our Inception networks beside the public packages with the same weights, to the last digits
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target build/parity $(PUBLIC) $(PUBLIC_NEEDS)
	PYTHONPATH=build/parity $(BIN)/python -m pytest -rA tests/test_public_packages.py

models: setup  ## the tables of docs/models.md: trainings, speed, memory; about two hours, kept in runs/zoo
	$(BIN)/python -m tests.zoo

quality: setup  ## the tables of docs/quality.md: trainings beside another library's; two hours, kept in runs/quality
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target build/parity $(PUBLIC) $(PUBLIC_NEEDS)
	PYTHONPATH=build/parity $(BIN)/python -m tests.quality

bench: setup  ## every figure of docs/performance.md: Markdown, and JSON in runs/bench.json
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,rtx,bench]"
	$(BIN)/python -m tests.bench

clean:
	rm -rf .venv demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
