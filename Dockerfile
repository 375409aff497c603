# ddpbp with an embedded MPI; it trains the digits on four ranks by default:
#   docker build -t ddpbp . && docker run --rm ddpbp
#   docker run --rm --shm-size=1g ddpbp launch -n 8 train epochs=60
#   docker run --rm ddpbp train --help
FROM python:3.11-slim-bookworm AS build
COPY . /src
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir '/src[mpich]'

FROM python:3.11-slim-bookworm
# The workers of an MPIJob are reached by ssh, on a port that needs no root; the keys come from the
# operator, by a mount. (Debian keeps no old versions that could be pinned.)
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends openssh-client openssh-server \
    && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_* \
    && mkdir -p /run/sshd \
    && useradd --create-home --uid 1000 --shell /bin/bash ddpbp
COPY --from=build /opt/venv /opt/venv
COPY launch/ssh/ssh_config /etc/ssh/ssh_config.d/ddpbp.conf
COPY launch/ssh/sshd_config /home/ddpbp/.sshd_config
ENV PATH=/opt/venv/bin:$PATH
USER 1000
WORKDIR /home/ddpbp
COPY configs configs
ENTRYPOINT ["ddpbp"]
CMD ["launch", "-n", "4", "train"]
