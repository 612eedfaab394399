# Everything a newcomer runs. `make demo` and `make test` set up what they need by themselves.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PROTOS := $(shell cd protos && find . -name '*.proto' | sed 's|^\./||')
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint protos tools train-demo bench clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# A virtual environment with the pinned versions; made again when what it depends on has changed.
$(VENV)/.all: pyproject.toml constraints.txt setup.py
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --progress-bar on -c constraints.txt --editable '.[all]'
	@touch $@

$(VENV)/.test: $(VENV)/.all
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[test]'
	@touch $@

demo: $(VENV)/.all ## Start executor and frontend with the embedded model and stream a completion
	@$(BIN)/python demo/run.py

test: $(VENV)/.test ## Run the test suite
	@$(BIN)/python -m pytest -n $(WORKERS) -m 'not slow and not gpu'

test-slow: $(VENV)/.test ## Run the tests that take minutes
	@$(BIN)/python -m pytest -m slow

lint: $(VENV)/.test ## Check style
	@$(BIN)/ruff check .

protos: $(VENV)/.test ## Generate the Python stubs from protos/
	@$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=. --grpc_python_out=. --pyi_out=. $(PROTOS)

tools: ## Install buf from npm into .tools/, for the proto lint test
	@npm install --silent --no-fund --no-audit --prefix .tools @bufbuild/buf@1.75.0

train-demo: $(VENV)/.test ## Train the embedded demo model again
	@$(BIN)/python demo/train.py

bench: $(VENV)/.test ## Measure the engine on the embedded model
	@$(BIN)/python benchmarks/offline.py --model demo/model

clean: ## Remove what was built
	@rm -rf $(VENV) .tools build *.egg-info
