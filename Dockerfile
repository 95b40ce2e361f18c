# docker build -t lisa-preflight .          for a machine with an NVIDIA card (compose.yaml runs it)
# docker build -t lisa-preflight --build-arg INDEX=https://download.pytorch.org/whl/cpu .
FROM python:3.11-slim-bookworm

# Triton compiles its launchers with a C compiler when layers are compiled.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*

# The large part first: it stays cached while the code changes. torch's own index lacks some of the
# versions that its dependencies are held to, and PyPI has them.
ARG INDEX=https://pypi.org/simple
COPY constraints.txt /src/
RUN pip install --no-cache-dir -c /src/constraints.txt --index-url "$INDEX" \
 --extra-index-url https://pypi.org/simple torch

COPY . /src
RUN pip install --no-cache-dir -c /src/constraints.txt "/src[studio]"

# Weights, features, compiled code and measured rows are kept in a volume. Whoever builds may be
# root, whose number is taken, or have the large number of a directory service, for which useradd
# would write as large a log.
ARG UID=1000
RUN useradd --create-home --non-unique --no-log-init --uid "$UID" lisa \
 && mkdir /cache /work \
 && chown lisa /cache /work
ENV HF_HOME=/cache/huggingface XDG_CACHE_HOME=/cache XDG_DATA_HOME=/cache/data
VOLUME /cache
WORKDIR /work
USER $UID
CMD ["lisa-advise", "doctor"]
