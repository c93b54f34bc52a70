# syntax=docker/dockerfile:1
# Images for helm/nightjar. Never built by this project's tests, which read this file and run its pip commands: see docs/kubernetes.md.
#
#   DIGESTS="--build-arg PYTHON_DIGEST=sha256:... --build-arg VLLM_DIGEST=sha256:... --build-arg RAY_LLM_DIGEST=sha256:..."
#   docker build $DIGESTS --target cpu  --tag nightjar-serve-cpu:0.1.0 .    serves on CPU, with the small models inside
#   docker build $DIGESTS --target gpu  --tag nightjar-serve-gpu:0.1.0 .    serves on NVIDIA GPUs, on vLLM's own image: nodes with driver 580 or newer;
#                                                                          with --build-arg VLLM_VERSION=0.33.0 on that one (and its digest)
#   docker build $DIGESTS --target ray-llm --tag nightjar-ray-llm:0.1.0 .   for applications of ray.serve.llm, on Ray's own image with Ray's vLLM
#   docker build $DIGESTS --target load --tag nightjar-serve-load:0.1.0 .   Locust and its load, without Ray and vLLM

ARG PYTHON=python:3.11.14-slim-bookworm
# Python 3.12 and CUDA 13 both. Theirs are FlashInfer's compiled kernels, which `pip install vllm` does not bring.
# Any version of the extra `vllm` that `make contract` reads: what is added to it is the same for all.
ARG VLLM_VERSION=0.32.0
ARG VLLM=vllm/vllm-openai:v${VLLM_VERSION}
ARG RAY_LLM=rayproject/ray-llm:2.60.0-py312-cu130
# A tag moves, a digest does not. Which ones you trust is yours to say: PYTHON's in each build, VLLM's and RAY_LLM's for their targets.
# These zeros are of no image, so a build without yours ends with "not found".
ARG PYTHON_DIGEST=sha256:0000000000000000000000000000000000000000000000000000000000000000
ARG VLLM_DIGEST=sha256:0000000000000000000000000000000000000000000000000000000000000000
ARG RAY_LLM_DIGEST=sha256:0000000000000000000000000000000000000000000000000000000000000000

FROM ${PYTHON}@${PYTHON_DIGEST} AS wheel
WORKDIR /source
COPY helm/locks/build.txt /build.txt
RUN pip install --no-cache-dir --require-hashes --requirement /build.txt
COPY pyproject.toml README.md LICENSE ./
COPY nightjar nightjar
COPY policy policy
COPY cluster cluster
COPY deployments deployments
COPY loadtests loadtests
# Beside the wheel, what asks pip for it with each extra: where packages need hashes, the wheel needs its own.
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
 && for extra in cpu load serve; do \
      echo "nightjar-serve[$extra] @ file://$(echo /wheels/*.whl) --hash=sha256:$(sha256sum /wheels/*.whl | cut -c -64)" > /wheels/$extra.txt; \
    done

FROM ${PYTHON}@${PYTHON_DIGEST} AS packages
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
COPY --from=wheel /wheels /wheels
# A lock is installed as it stands: pip 26.0 and older take no versions from a constraints file where they need hashes. Then pip's
# resolver looks, without an index, whether all is there that the wheel and its extra need; `pip check` knows no extras.

FROM packages AS packages-cpu
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
COPY helm/locks/cpu.txt /lock.txt
# torch is of an index of its own, without a hash here. torchaudio and torchcodec come as CUDA builds and break `import vllm`; vLLM
# serves text without them.
RUN pip install --no-deps --index-url "${TORCH_CPU_INDEX}" torch==2.13.0+cpu torchvision==0.28.0+cpu \
 && pip install --require-hashes --no-deps --requirement /lock.txt --requirement /wheels/cpu.txt \
 && pip install --no-index --dry-run "nightjar-serve[cpu]" \
 && pip uninstall --yes torchaudio torchcodec
RUN NIGHTJAR_MODELS=/opt/nightjar/models nightjar models build

FROM packages AS packages-load
COPY helm/locks/load.txt /lock.txt
RUN pip install --require-hashes --no-deps --requirement /lock.txt --requirement /wheels/load.txt \
 && pip install --no-index --dry-run "nightjar-serve[load]" \
 && mkdir -p /opt/nightjar \
 && cp "$(python -c 'import nightjar.loadtests as room; print(*room.__path__)')/locustfile.py" /opt/nightjar/locustfile.py

# A numeric user, so that Kubernetes can see that it is not root.
FROM ${PYTHON}@${PYTHON_DIGEST} AS runtime
RUN groupadd --gid 1000 nightjar && useradd --uid 1000 --gid 1000 --create-home nightjar
ENV PATH=/opt/venv/bin:$PATH HOME=/home/nightjar PYTHONUNBUFFERED=1
WORKDIR /home/nightjar

# KubeRay's probes call wget and its start command bash; Triton and Inductor compile kernels while serving.
FROM runtime AS serving
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates g++ gcc libc6-dev libgomp1 libnuma1 wget \
 && rm -rf /var/lib/apt/lists/*

FROM serving AS cpu
COPY --from=packages-cpu /opt/venv /opt/venv
COPY --from=packages-cpu /opt/nightjar /opt/nightjar
ENV NIGHTJAR_MODELS=/opt/nightjar/models
USER 1000:1000

FROM ${VLLM}@${VLLM_DIGEST} AS gpu
USER root
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,source=helm/locks/others.txt,target=/lock.txt \
    --mount=type=bind,source=helm/add_nightjar.sh,target=/add_nightjar.sh \
    sh /add_nightjar.sh /lock.txt /wheels/serve.txt
ENV HOME=/home/nightjar PYTHONUNBUFFERED=1
WORKDIR /home/nightjar
# vLLM's is `vllm serve`; KubeRay brings its own command.
ENTRYPOINT []
USER 1000:1000

FROM ${RAY_LLM}@${RAY_LLM_DIGEST} AS ray-llm
USER root
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,source=helm/locks/others.txt,target=/lock.txt \
    --mount=type=bind,source=helm/add_nightjar.sh,target=/add_nightjar.sh \
    sh /add_nightjar.sh /lock.txt /wheels/serve.txt
ENV HOME=/home/nightjar PYTHONUNBUFFERED=1
WORKDIR /home/nightjar
ENTRYPOINT []
USER 1000:1000

FROM runtime AS load
COPY --from=packages-load /opt/venv /opt/venv
COPY --from=packages-load /opt/nightjar /opt/nightjar
USER 1000:1000
CMD ["locust", "--locustfile", "/opt/nightjar/locustfile.py"]
