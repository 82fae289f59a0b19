# Prediction, scoring and serving on a CPU; no training framework inside.
#
#   docker build -f docker/predict.Dockerfile -t segship .
#   docker run --rm -v "$PWD:/work" segship predict net.segship images/ -o masks
#   docker run --rm -v "$PWD:/work" -p 127.0.0.1:8000:8000 segship serve net.segship --host 0.0.0.0
FROM python:3.12-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
RUN python -m venv /opt/segship \
    && /opt/segship/bin/pip install --no-cache-dir -c constraints.txt '.[onnxruntime,report,tiff,itk,matting,metrics,serve]'

FROM python:3.12-slim-bookworm
COPY --from=build /opt/segship /opt/segship
RUN useradd --create-home --uid 1000 segship && mkdir /work && chown segship /work
ENV PATH=/opt/segship/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 1000
WORKDIR /work
ENTRYPOINT ["segship"]
CMD ["--help"]
