# ddpbp with an embedded MPI; trains the digits on four ranks by default:
#   docker build -t ddpbp . && docker run --rm ddpbp
#   docker run --rm --shm-size=1g ddpbp mpirun -n 8 python -m ddpbp train epochs=60
FROM python:3.11-slim-bookworm
RUN python3 -m venv /opt/venv && useradd --create-home ddpbp
ENV PATH=/opt/venv/bin:$PATH
COPY . /opt/ddpbp
RUN pip install --no-cache-dir '/opt/ddpbp[mpich]'
USER ddpbp
WORKDIR /home/ddpbp
CMD ["mpirun", "-n", "4", "python", "-m", "ddpbp", "train"]
