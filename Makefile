PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

PUBLIC := torchvision==0.29.1 timm==1.0.31 segmentation-models-pytorch==0.6.0 facenet-pytorch==2.6.0 \
	pretrainedmodels==0.7.4
PUBLIC_NEEDS := six munch tqdm requests urllib3 charset-normalizer idna certifi huggingface-hub httpx2 httpcore2 truststore

OTHERS := geo-inference==3.2.4 xarray==2026.9.0 rioxarray==0.19.0 ttach==0.0.3 hydra-core==1.3.8 omegaconf==2.4.0 \
	antlr4-python3-runtime==4.9.3 rtree==1.4.1 requests==2.34.2 colorlog==6.7.0 tqdm==4.70.1

.PHONY: setup demo lint test suite test-slow test-nasty test-gpu parity models quality bench bench-gpu clean

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

test: setup  ## everything that CI runs: the tests wait now and then, and lint takes these times
	$(MAKE) --no-print-directory -j 2 lint suite

suite: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-slow: setup  ## every network with every decoder and output stride, exported; approvals and failures of retrainings
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m slow

test-nasty: setup  ## every file of the nasty archive, in processes of their own; writes docs/nasty.md
	$(BIN)/python -m tests.nasty

test-gpu: setup  ## what needs an NVIDIA GPU
	$(BIN)/python -m pytest -m gpu

parity: setup  ## our Inception networks beside the public packages with the same weights, to the last digits
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target build/parity $(PUBLIC) $(PUBLIC_NEEDS)
	PYTHONPATH=build/parity $(BIN)/python -m pytest -rA -m "parity or not slow" tests/test_public_packages.py tests/test_smp_import.py

models: setup  ## the tables of docs/models.md: trainings, speed, memory; about two hours, kept in runs/zoo
	$(BIN)/python -m tests.zoo

quality: setup  ## the tables of docs/quality.md: trainings beside another library's; two hours, kept in runs/quality
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target build/parity $(PUBLIC) $(PUBLIC_NEEDS)
	PYTHONPATH=build/parity $(BIN)/python -m tests.quality

bench: setup  ## every figure of docs/performance.md: Markdown, and JSON in runs/bench.json
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,rtx,bench]"
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target build/others $(OTHERS)
	PYTHONPATH=build/others $(BIN)/python -m tests.bench

bench-gpu: setup  ## everything about a GPU; without one, the same steps on the processor with small sizes
	$(BIN)/python -m tests.bench gpu

clean:
	rm -rf .venv demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
