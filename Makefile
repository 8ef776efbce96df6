# make demo       set everything up, run the recipe `demo`: the whole pipeline on drawn scenes
# make test       set everything up, run the tests; make test-slow: those that take minutes
# make photos20   set everything up, run the recipe `photos20`: the same on small real photos
# make pgseg      set everything up, run the recipe `pgseg`: groups from photos and captions, on drawn scenes
# make figure1    text CAMs beside vision CAMs; WORKSPACE=dir, by default that of the demo
# make figure4    regions as two decoders see them, and the modality gap; WORKSPACE=dir
# make table1 … table7   a table of the paper over WORKSPACE, the paper's numbers beside it;
#                 OPTIONS=--quick takes fewer iterations
# make compare    every method over WORKSPACE, in one table; OPTIONS='--seeds 0 --masks none' is faster
# make encoders   own-photos with each of ENCODERS on PHOTOS, beside its own ceiling; by default on small real photos
# make ceiling    a segmenter of WORKSPACE beside the same one trained with true masks
# make voc12      VOC=dir: the whole of VOC 2012, and table 3; make coco14 COCO=dir: COCO 2014, and table 2
# make bench      speed of every stage against a plain way of doing it; make bench-gpu: on a GPU
# make growth     how the cost of each stage grows with photos, pixels, tags, classes and prototypes
# make peers      CLIP_ES=dir: extract, cam and refine against CLIP-ES's own code in a checkout of it
# make check      lint, types, tests
# make measure-house  size and shape of the code in numbers: lines, imports, cycles
# make docs       build/site: the documentation as pages that work from disk; needs no network
# make chaos      200 kills, all faults, and a kill at every change of a file: commands are disturbed and run again; KILLS=n
# make fuzz       a million hostile files to all readers and stages; EXECUTIONS=n
# make package    dist/: sdist and wheel; the wheel is installed into a fresh environment and tried there
# make readers    exports read back by Ultralytics, Label Studio's SDK, Datumaro and `datasets`
#
# A machine with a GPU keeps its own torch (the environment sees the system's packages);
# one without gets torch without CUDA packages.

PYTHON ?= python3
VENV ?= .venv
REALDATA ?= ../shared/realdata
WORK ?= work/photos20
DEMO ?= work/demo
WORKSPACE ?= $(DEMO)
READERS ?= .venv-readers
VOC12 ?= work/voc12
COCO14 ?= work/coco14
PGSEG ?= work/pgseg
BIN := $(VENV)/bin

HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo yes)
ifeq ($(HAS_GPU),yes)
  VENV_FLAGS := --system-site-packages
else ifeq ($(shell uname -s),Linux)
  TORCH := -r constraints-cpu.txt --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu
endif

TABLES := table1 table2 table3 table4 table5 table6 table7

.PHONY: setup demo docs test test-slow check measure-house chaos fuzz package readers lint types bench bench-gpu growth peers photos20 pgseg figure1 figure4 $(TABLES) compare encoders ceiling voc12 coco14 clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	$(if $(TORCH),$(BIN)/python -m pip install -q $(TORCH))
	@# By its path, not by a finder: from the folder above, Python would take the clone for the package.
	$(BIN)/python -m pip install -q -e '.[dev]' --config-settings editable_mode=compat
	@# pydensecrf2 is built from source; only tests and `crf --backend pydensecrf` need it.
	$(BIN)/python -m pip install -q -e '.[crf]' --config-settings editable_mode=compat \
		|| echo 'pydensecrf2 could not be built: tests that compare with it are skipped'
	touch $@

# A process for each core, up to eight: each makes the fixtures that a session shares once more.
# The tests of a file stay together, for the fixtures of the file. Bytecode is kept, whatever the
# user's shell says: else each process that a test starts compiles the package anew.
test: setup
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test-slow: setup
	$(BIN)/python -m pytest -m slow

# Pages that are printed from the product's own tables come first.
docs: setup
	$(BIN)/python -m vpltool.reference docs/reference
	$(BIN)/jupytext -q --to ipynb docs/notebook.md
	$(BIN)/python -m mkdocs build --strict

lint: setup
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy vpltool benchmarks

check: lint types test

measure-house: setup
	$(BIN)/python benchmarks/house.py

# Campaigns; their figures stand in docs/reliability.md. The short forms are tests/test_campaigns.py.
KILLS ?= 200
EXECUTIONS ?= 1000000
CAMPAIGN := PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m campaigns

chaos: setup
	$(CAMPAIGN).chaos --kills $(KILLS) --out benchmarks/results-chaos.md $(OPTIONS)

fuzz: setup
	@# atheris has no wheel for some Pythons; hypothesis then does all of it.
	$(BIN)/python -m pip install -q -e '.[fuzz]' || echo 'no atheris here: hypothesis alone'
	$(CAMPAIGN).fuzz --executions $(EXECUTIONS) --out benchmarks/results-fuzz.md $(OPTIONS)

# FRESH is made anew each time; it downloads torch.
FRESH ?= build/fresh
package: setup
	rm -rf dist $(FRESH)
	$(BIN)/python -m pip install -q build
	$(BIN)/python -m build
	$(PYTHON) -m venv $(VENV_FLAGS) $(FRESH)
	$(if $(TORCH),$(FRESH)/bin/python -m pip install -q $(TORCH))
	$(FRESH)/bin/python -m pip install -q dist/*.whl mypy
	cd $(FRESH) && bin/vpltool -C work demo --images 12 --overwrite && bin/vpltool -C work text-prototypes
	cd $(FRESH) && bin/python -m mypy --strict $(CURDIR)/tests/typed_user.py

# Each in an environment of its own: they pin versions that go neither with ours nor together.
# `datasets` reads pictures with Pillow, which it does not ask for.
READ_BY := ultralytics datumaro label-studio-sdk datasets

$(READERS)/%/ready:
	$(PYTHON) -m venv $(@D)
	$(if $(filter ultralytics,$*),$(if $(TORCH),$(@D)/bin/python -m pip install -q $(TORCH) torchvision))
	$(@D)/bin/python -m pip install -q $* pillow
	touch $@

readers: setup $(READ_BY:%=$(READERS)/%/ready)
	VPLTOOL_READERS=$(abspath $(READERS)) $(BIN)/python -m pytest tests/stages/test_labelling_readers.py

demo: setup
	$(BIN)/vpltool -C $(DEMO) run demo

photos20: setup
	$(BIN)/vpltool -C $(WORK) run photos20 data=$(REALDATA)

pgseg: setup
	$(BIN)/vpltool -C $(PGSEG) run pgseg

# OPTIONS are those of `python -m vpltool.papers.figures`, such as OPTIONS='--split train'.
figure1 figure4: setup
	$(BIN)/python -m vpltool.papers.figures $@ $(WORKSPACE) $(OPTIONS)

# OPTIONS are those of benchmarks/bench.py, such as OPTIONS=--quick or OPTIONS='--only crf,eval';
# OPTIONS=--whole also measures own-photos on REALDATA, `make demo` and `make test`.
bench: setup
	REALDATA=$(abspath $(REALDATA)) $(BIN)/python benchmarks/bench.py --out benchmarks/results-cpu.md $(OPTIONS)

# OPTIONS are those of benchmarks/growth.py, such as OPTIONS='--only photos'.
growth: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/growth.py $(OPTIONS)

# OPTIONS are those of benchmarks/peers.py, such as OPTIONS='--photos 8 --python .venv-clip-es/bin/python'.
peers: setup
	$(if $(CLIP_ES),,$(error CLIP_ES=dir: a checkout of github.com/linyq2117/CLIP-ES))
	$(BIN)/python benchmarks/peers.py $(CLIP_ES) $(OPTIONS)

bench-gpu: setup
	$(BIN)/python benchmarks/gpu.py --out benchmarks/results-gpu.md $(OPTIONS)

# OPTIONS are those of `python -m vpltool.papers.tables`, such as OPTIONS='--quick --seeds 0,1,2'.
$(TABLES): setup
	$(BIN)/python -m vpltool.papers.tables $(@:table%=%) $(WORKSPACE) $(OPTIONS)

# OPTIONS are those of `python -m vpltool.papers.comparison`, such as OPTIONS='--second dino.pth'.
compare: setup
	$(BIN)/python -m vpltool.papers.comparison $(WORKSPACE) $(OPTIONS)

PHOTOS ?= $(REALDATA)/animals
ENCODERS ?= $(REALDATA)/vlm-s14 timm:vit_tiny_patch16_224,$(REALDATA)/vit-ti16/model.safetensors \
	timm:vit_small_patch14_dinov2,$(REALDATA)/dav2-s14/model.safetensors

# PHOTOS is a folder with photos/, tags.csv, masks/ and classes.txt.
encoders: setup
	$(BIN)/python -m vpltool.papers.encoders work/encoders $(ENCODERS) --photos $(PHOTOS)/photos \
		--tags $(PHOTOS)/tags.csv --masks $(PHOTOS)/masks --classes $(PHOTOS)/classes.txt $(OPTIONS)

# OPTIONS are those of `python -m vpltool.papers.ceiling`, such as OPTIONS='--decoder segmenter'.
ceiling: setup
	$(BIN)/python -m vpltool.papers.ceiling $(WORKSPACE) $(OPTIONS)

# PREPARE are options of `vpltool prepare`, such as PREPARE='--pretrained ViT-B-16.pt'.
voc12: setup
	$(if $(VOC),,$(error VOC=dir: the folder that holds JPEGImages, as in make voc12 VOC=/data/VOC2012))
	$(BIN)/vpltool -C $(VOC12) --preset vpl-voc prepare voc $(VOC) $(PREPARE)
	$(BIN)/python -m vpltool.papers.tables 3 $(VOC12) --learn train_aug,trainaug $(OPTIONS)

coco14: setup
	$(if $(COCO),,$(error COCO=dir: the folder that holds train2014, val2014 and annotations))
	$(BIN)/vpltool -C $(COCO14) --preset vpl-coco prepare coco $(COCO) $(PREPARE)
	$(BIN)/python -m vpltool.papers.tables 2 $(COCO14) $(OPTIONS)

clean:
	rm -rf $(VENV) $(READERS) work build dist *.egg-info
