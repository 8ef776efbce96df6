# vpltool in a container.
#
#   docker build -t vpltool .                             on a CPU
#   docker build -t vpltool --build-arg TORCH=cuda .      on an NVIDIA GPU
#
#   docker run --rm -v "$PWD:/work" vpltool predict photos --segmenter animals.safetensors
#   docker run --rm --gpus all --shm-size 1g -v "$PWD:/work" vpltool run own-photos photos=photos tags=tags.csv
#
# torch's wheels for CUDA hold CUDA's libraries, so both builds stand on the same base; a GPU needs
# only the driver and NVIDIA's container toolkit on the host. Other packages are those of
# constraints.txt, with which the tests ran.

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG TORCH=cpu
RUN python -m venv /opt/vpltool
ENV PATH=/opt/vpltool/bin:$PATH PIP_NO_CACHE_DIR=1
WORKDIR /source
COPY constraints.txt constraints-cpu.txt ./
# First, and in a layer of its own: it is most of the image, and seldom changes.
RUN if [ "$TORCH" = cpu ]; then \
      pip install -r constraints-cpu.txt --extra-index-url https://download.pytorch.org/whl/cpu; \
    else \
      sed 's/+cpu//' constraints-cpu.txt > constraints-cuda.txt && pip install -r constraints-cuda.txt; \
    fi
COPY pyproject.toml README.md LICENSE ./
COPY vpltool ./vpltool
RUN pip install -c constraints.txt '.[coco,superpixels,onnx]'

FROM python:${PYTHON}-slim
COPY --from=build /opt/vpltool /opt/vpltool
ENV PATH=/opt/vpltool/bin:$PATH VPLTOOL_WORK=/work
WORKDIR /work
ENTRYPOINT ["vpltool"]
CMD ["--help"]
