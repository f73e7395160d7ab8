# mllm_jax with its environment, for CPUs or NVIDIA GPUs; the README's commands run inside.
#
#   docker build -t mllm-jax .
#   docker run -it --rm mllm-jax
#   docker build -t mllm-jax:gpu --build-arg FLAVOUR=gpu .
#   docker run -it --rm --gpus all --shm-size 8g -v "$PWD/data:/home/trainer/mllm_jax/data" mllm-jax:gpu
#
# The CUDA libraries come with JAX's own wheels, so both flavours start from the same image; a GPU
# needs the NVIDIA driver (525 or newer) and container toolkit on the host.
FROM python:3.12-slim-bookworm

# cpu, gpu (CUDA 12) or tpu: as in launch/environment.sh
ARG FLAVOUR=cpu

RUN useradd --create-home --uid 1000 trainer
USER 1000
WORKDIR /home/trainer/mllm_jax
COPY --chown=trainer:trainer . .

SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ENV PYTHON=/usr/local/bin/python3 MLLM_JAX_FLAVOUR=${FLAVOUR} PIP_DISABLE_PIP_VERSION_CHECK=1
RUN --mount=type=cache,target=/home/trainer/.cache/pip,uid=1000,gid=1000 \
    . launch/environment.sh && prepare run
ENV VIRTUAL_ENV=/home/trainer/mllm_jax/.venv PATH=/home/trainer/mllm_jax/.venv/bin:$PATH

CMD ["bash"]
