# The edge daemon, for devices on which everything is a container. From the repository's root, on the device or for it:
#   docker build -f deploy/docker/edge.Dockerfile -t koinon-edge .
#   docker build -f deploy/docker/edge.Dockerfile -t koinon-edge --build-arg BASE=nvcr.io/nvidia/l4t-jetpack:r36.4.0 .
# deploy/README.md tells what it has to be run with, and why the service in deploy/systemd is the better choice where
# there is one.
#
# Two Pythons are in it. The daemon's is uv's 3.12, the same on every base: JetPack 6 is Ubuntu 22.04 and has 3.10, which
# is too old for Koinon, and a PPA (deadsnakes) would be another source to trust, with builds for some releases of Ubuntu
# alone. The training's is the base's own, for which NVIDIA builds its PyTorch; edge.toml names it.
ARG BASE=ubuntu:24.04
ARG UV=0.13.9
FROM ghcr.io/astral-sh/uv:${UV} AS uv

FROM ${BASE} AS build
ARG PYTHON=3.12
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_PYTHON_INSTALL_DIR=/opt/python \
    UV_PYTHON_PREFERENCE=only-managed \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1
WORKDIR /source
COPY LICENSE README.md pyproject.toml ./
COPY protos/koinon_core protos/koinon_core
COPY client/koinon client/koinon
COPY coordinator/koinon_coordinator coordinator/koinon_coordinator
COPY edge/koinon_edge edge/koinon_edge
RUN uv venv --python "${PYTHON}" /opt/koinon \
    && uv pip install --python /opt/koinon/bin/python .

FROM ${BASE}
LABEL org.opencontainers.image.title="koinon-edge" \
      org.opencontainers.image.description="Takes part in federated training when the device can spare it" \
      org.opencontainers.image.licenses="Apache-2.0"
# python3: the training's.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 tini \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 koinon \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/koinon --no-create-home --shell /usr/sbin/nologin koinon \
    && install -d -o 10001 -g 10001 -m 0700 /var/lib/koinon /run/koinon \
    && install -d /etc/koinon /srv/task
COPY --from=build /opt/python /opt/python
COPY --from=build /opt/koinon /opt/koinon
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
# tini buries what the training leaves behind; the daemon itself catches SIGTERM.
ENTRYPOINT ["tini", "--", "koinon-edge"]
CMD ["run", "--config", "/etc/koinon/edge.toml"]
