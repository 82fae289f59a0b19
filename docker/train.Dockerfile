# Preparing, training, exporting and quantising on a CPU, then everything that predict.Dockerfile does.
#
#   docker build -f docker/train.Dockerfile -t segship-train .
#   docker run --rm --shm-size 1g -v /data/kits19:/data -v "$PWD:/work" -e PYTORCH_TRAIN_DATASET=/data \
#       segship-train train unet3d_mlperf --devices 4 -o runs/unet3d
#
# For CUDA: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130, and `docker run --gpus all`.
FROM python:3.12-slim-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN python -m venv /opt/segship \
    && /opt/segship/bin/pip install --no-cache-dir -c constraints.txt --index-url "$TORCH_INDEX" torch==2.13.0
COPY src ./src
RUN /opt/segship/bin/pip install --no-cache-dir -c constraints.txt '.[all]'

FROM python:3.12-slim-bookworm
COPY --from=build /opt/segship /opt/segship
RUN useradd --create-home --uid 1000 segship && mkdir /work && chown segship /work
ENV PATH=/opt/segship/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 1000
WORKDIR /work
ENTRYPOINT ["segship"]
CMD ["--help"]
