# The coordinator. From the repository's root:
#   docker build -f deploy/docker/coordinator.Dockerfile -t koinon-coordinator .
# It runs on a read-only root file system, as user 10001, without any capability (compose.yaml).
ARG PYTHON=3.13-slim-bookworm

FROM python:${PYTHON} AS wheels
WORKDIR /source
COPY LICENSE README.md pyproject.toml ./
COPY protos/koinon_core protos/koinon_core
COPY client/koinon client/koinon
COPY coordinator/koinon_coordinator coordinator/koinon_coordinator
COPY edge/koinon_edge edge/koinon_edge
RUN pip wheel --no-cache-dir --wheel-dir /wheels '.[postgres]'

FROM python:${PYTHON}
LABEL org.opencontainers.image.title="koinon-coordinator" \
      org.opencontainers.image.description="Runs federated rounds for the devices that attend" \
      org.opencontainers.image.licenses="Apache-2.0"
# Only what the first stage made can be installed: --no-index. Nothing is compiled when it starts, for nothing can be
# written then.
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    python -m venv /opt/koinon \
    && /opt/koinon/bin/pip install --no-cache-dir --no-index --find-links=/wheels 'koinon[postgres]'
COPY deploy/docker/health.py /opt/koinon/health.py
# The folders belong to its user in the image, so that volumes which are mounted there for the first time do too.
RUN groupadd --gid 10001 koinon \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/koinon --no-create-home --shell /usr/sbin/nologin koinon \
    && install -d -o 10001 -g 10001 -m 0700 /var/lib/koinon /var/lib/koinon/federation /var/lib/koinon/data \
    && install -d /opt/koinon/plugins
ENV PATH=/opt/koinon/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    KOINON_FEDERATION=/var/lib/koinon/federation
USER 10001:10001
# Where modules for --plugin are mounted.
WORKDIR /opt/koinon/plugins
# 8440: devices and operators; 8441: enrolment. Health (8442) is answered inside the container alone.
EXPOSE 8440 8441
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["/opt/koinon/bin/python", "/opt/koinon/health.py", "127.0.0.1:8442"]
# The coordinator catches SIGTERM itself and starts no children: it can be process 1.
ENTRYPOINT ["koinon-coordinator"]
CMD ["serve", "--db", "sqlite:////var/lib/koinon/data/koinon.db", "--data", "/var/lib/koinon/data/blobs", \
     "--listen", "0.0.0.0:8440", "--enrol-listen", "0.0.0.0:8441", "--health-listen", "127.0.0.1:8442", "--log", "json"]
