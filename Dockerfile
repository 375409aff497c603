# ddpbp with an embedded MPI; trains the digits on four ranks by default:
#   docker build -t ddpbp . && docker run --rm ddpbp
#   docker run --rm --shm-size=1g ddpbp mpirun -n 8 python -m ddpbp train epochs=60 output=/tmp/run
FROM python:3.12-slim
WORKDIR /opt/ddpbp
COPY . .
RUN pip install --no-cache-dir '.[mpich]' && useradd --create-home ddpbp
USER ddpbp
WORKDIR /home/ddpbp
CMD ["mpirun", "-n", "4", "python", "-m", "ddpbp", "train"]
