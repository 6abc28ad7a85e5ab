# rewarm for NVIDIA GPUs. From the checkout:
#   docker build -f docker/cuda.Dockerfile -t rewarm .
#   docker run --gpus all --shm-size 8g -v "$PWD:/work" rewarm train recipe.yaml --resume
# The host needs the NVIDIA driver and its container toolkit; CUDA's libraries come with PyTorch.
FROM python:3.11.13-slim-bookworm

# Triton compiles with gcc when kernels are first used. Debian removes old versions of packages.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

ARG TORCH=2.13.0
RUN pip install --no-cache-dir "torch==${TORCH}"

WORKDIR /opt/rewarm
COPY pyproject.toml README.md LICENSE ./
COPY recipes recipes
COPY rewarm rewarm
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[parquet,http]" \
    && useradd --create-home --uid 1000 rewarm
USER 1000:1000
WORKDIR /work
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENTRYPOINT ["rewarm"]
CMD ["--help"]
