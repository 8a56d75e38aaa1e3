# A device that is a server with NVIDIA GPUs: runs an owner's training script with PyTorch. From the repository's root:
#   docker build -f deploy/docker/client.Dockerfile -t koinon-client .
#   docker run --gpus all --read-only --tmpfs /tmp --tmpfs /run/koinon:uid=10001,mode=0700 --cap-drop ALL --shm-size 2g \
#       -v koinon-device:/var/lib/koinon -v /srv/task:/srv/task:ro koinon-client train.py --run cifar
# (deploy/README.md tells how the device is enrolled first.)
#
# The wheels of PyTorch bring CUDA's libraries with them, so the base needs none: the `runtime` variant of the same tag
# would add them a second time. Scripts that load CUDA's libraries from the system take it by --build-arg.
ARG BASE=nvidia/cuda:12.8.1-base-ubuntu24.04

FROM ${BASE} AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY LICENSE README.md pyproject.toml ./
COPY protos/koinon_core protos/koinon_core
COPY client/koinon client/koinon
COPY coordinator/koinon_coordinator coordinator/koinon_coordinator
COPY edge/koinon_edge edge/koinon_edge
# pip reads it: where another build of PyTorch is, for example https://download.pytorch.org/whl/cu128 for older drivers.
ARG PIP_EXTRA_INDEX_URL=
RUN python3 -m venv /opt/koinon \
    && /opt/koinon/bin/pip install --no-cache-dir '.[torch]'

FROM ${BASE}
LABEL org.opencontainers.image.title="koinon-client" \
      org.opencontainers.image.description="Trains on data that stays here, in a federation's rounds" \
      org.opencontainers.image.licenses="Apache-2.0"
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 tini \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 koinon \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/koinon --no-create-home --shell /usr/sbin/nologin koinon \
    && install -d -o 10001 -g 10001 -m 0700 /var/lib/koinon /run/koinon \
    && install -d /srv/task
COPY --from=build /opt/koinon /opt/koinon
# Credentials and updates that are on their way are in KOINON_STATE, which must be a volume; secrets of secure rounds in
# RUNTIME_DIRECTORY, which should be memory.
ENV PATH=/opt/koinon/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    KOINON_STATE=/var/lib/koinon \
    RUNTIME_DIRECTORY=/run/koinon \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
VOLUME /var/lib/koinon
WORKDIR /srv/task
# tini: process 1 gets no signal that it did not ask for, and a training script asks for none; and it buries what data
# loaders leave behind.
ENTRYPOINT ["tini", "--", "koinon", "client"]
CMD ["train.py"]
