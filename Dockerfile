# syntax=docker/dockerfile:1
# Three images, by the same steps that `make up` and `make test` run on a bare machine, so that what is tested is what runs:
#   labelloop     ours: ML backend, QC, worker and the command line            (Makefile: venv, pip, pip install .)
#   label-studio  stock Label Studio from PyPI, the release we are tested with (labelloop/stack/label_studio.py)
#   store         OpenStack Swift with its S3 API from PyPI, the S3 server we are tested with (tests/system/setup.sh)
# All wheels: no compiler and no Debian package is needed.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:528257d48c1da0dcecc2e725d1ae34498d60c965f1241e39cd6a85a8859bdf84

FROM ${PYTHON_IMAGE} AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN groupadd --gid 10001 labelloop \
    && useradd --uid 10001 --gid labelloop --create-home labelloop \
    && install --directory --owner labelloop --group labelloop --mode 0750 /data

FROM base AS build
WORKDIR /opt/labelloop
COPY pyproject.toml hatch_build.py README.md LICENSE NOTICE ./
COPY requirements requirements
COPY labelloop labelloop
COPY ml_backend ml_backend
COPY exporters exporters
COPY qc_webhooks qc_webhooks
RUN python3 -m venv .venv \
    && .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/image.lock \
    && .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation .

FROM base AS labelloop
COPY --from=build /opt/labelloop/.venv /opt/labelloop/.venv
ENV PATH=/opt/labelloop/.venv/bin:$PATH LABELLOOP_HOME=/data
USER 10001:10001
WORKDIR /data
VOLUME /data
ENTRYPOINT ["labelloop"]
CMD ["--help"]

FROM base AS label-studio
ARG LABEL_STUDIO_VERSION=1.23.2
RUN python3 -m venv /opt/label-studio/venv \
    && /opt/label-studio/venv/bin/python -m pip install --no-input --disable-pip-version-check --progress-bar off --retries 2 \
        label-studio==${LABEL_STUDIO_VERSION}
ENV PATH=/opt/label-studio/venv/bin:$PATH HOME=/data LABEL_STUDIO_BASE_DATA_DIR=/data
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
ENTRYPOINT ["python", "-m", "label_studio.server"]
CMD ["start", "--data-dir", "/data", "--internal-host", "0.0.0.0", "-p", "8080", "--no-browser"]

FROM base AS store
ARG SWIFT_VERSION=2.38.3
RUN python3 -m venv /opt/swift/venv \
    && /opt/swift/venv/bin/python -m pip install --no-input --disable-pip-version-check --progress-bar off --retries 2 \
        swift==${SWIFT_VERSION}
COPY deploy/swift/serve.sh /opt/swift/serve.sh
ENV PATH=/opt/swift/venv/bin:$PATH
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8333
ENTRYPOINT ["bash", "/opt/swift/serve.sh"]
CMD ["/data", "0.0.0.0", "8333"]
