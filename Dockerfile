# docker build -t anomalyd .                          CPU
# docker build -t anomalyd --build-arg TORCH=cuda .   GPU: torch from PyPI brings its CUDA libraries, 5.4 GB
#
# Runs as a numeric user on a read-only root, with nothing to write anywhere: machine code was compiled by the build.

# The Python that CI tests with. Pin the digest where images are released (python:3.11-slim-bookworm@sha256:…): a tag moves with every rebuild.
ARG PYTHON=3.11-slim-bookworm

# Cached machine code is keyed by processor. These are the oldest ones with fused multiply-add, which scores depend on; they cost no speed.
FROM python:${PYTHON} AS base-amd64
ENV NUMBA_CPU_NAME=x86-64-v3
FROM python:${PYTHON} AS base-arm64
ENV NUMBA_CPU_NAME=generic

# The tag is on the stages it chooses from.
# hadolint ignore=DL3006
FROM base-${TARGETARCH} AS base
ENV NUMBA_CACHE_DIR=/opt/anomalyd/numba-cache \
    PATH=/opt/anomalyd/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1


FROM base AS build
ARG TORCH=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
COPY requirements.lock ./
# The CPU build of torch has the locked version, but not the locked hashes: it comes from another index.
RUN python -m venv /opt/anomalyd; \
    install=(pip install --no-cache-dir --disable-pip-version-check); \
    if [ "$TORCH" = cpu ]; then \
        "${install[@]}" --no-deps --index-url "$TORCH_INDEX" "$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements.lock)"; \
        awk '/^[a-z]/ { cuda = /^(torch|triton|nvidia-|cuda-)/ } !cuda' requirements.lock > without-cuda.lock; \
        "${install[@]}" --no-deps --require-hashes -r without-cuda.lock; \
    else \
        "${install[@]}" --no-deps --require-hashes -r requirements.lock; \
    fi
COPY pyproject.toml README.md LICENSE ./
COPY anomalyd anomalyd
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps . \
    && python -P -m anomalyd.warmup \
    && pip uninstall --yes --quiet pip


FROM base AS final
LABEL org.opencontainers.image.title="anomalyd" \
      org.opencontainers.image.description="Streaming anomaly detection for metrics on Kafka" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/anomalyd /opt/anomalyd
USER 65532:65532
WORKDIR /
EXPOSE 9464
# Exec form: the daemon is process 1 and gets SIGTERM itself. It starts no processes, so there is nothing to reap.
ENTRYPOINT ["anomalyd"]
CMD ["run", "-c", "/etc/anomalyd/config.yaml"]
