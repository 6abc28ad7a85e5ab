# rewarm without a GPU. From the checkout, with the address of PyTorch's CPU builds, which PyTorch's
# installation page names:
#   docker build -f docker/cpu.Dockerfile --build-arg TORCH_INDEX=ADDRESS -t rewarm-cpu .
#   docker run -v "$PWD:/work" rewarm-cpu quickstart
FROM python:3.11.13-slim-bookworm

ARG TORCH=2.13.0
ARG TORCH_INDEX
# Without the address, pip would install CUDA's libraries, several GB.
RUN test -n "${TORCH_INDEX}" \
    && pip install --no-cache-dir --index-url "${TORCH_INDEX}" "torch==${TORCH}"

WORKDIR /opt/rewarm
COPY pyproject.toml README.md LICENSE ./
COPY recipes recipes
COPY rewarm rewarm
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[parquet,http]" \
    && useradd --create-home --uid 1000 rewarm
USER 1000:1000
WORKDIR /work
ENTRYPOINT ["rewarm"]
CMD ["--help"]
