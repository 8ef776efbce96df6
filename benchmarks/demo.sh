#!/usr/bin/env bash
# The whole pipeline on drawn scenes, from top to bottom: the ladder of VPL's Table 3 on unseen
# scenes, and a sheet of pictures. Run it by `make demo`; docs/tutorial.md explains each step.
#
#   demo.sh WORK      WORK is the workspace; a second run skips what is done
#
# The prototypes' options are those of photos20.sh. Where CAMs are cut, and the decoder's steps, were
# chosen on another world (`vpltool demo --seed 7`); this one is seed 0.
set -euo pipefail

export VPLTOOL_WORK=$1
SEEDS=${SEEDS:-0 1 2}
THRESHOLD=0.32
# (1 - max)^3, the CRF's background, meets the CAM at 0.32.
ALPHA=3
DECODER="--iters 400 --crop 15 --width 64 --optimizer adamw --lr 1e-3 --balanced"
# Seeds run side by side, with a thread each: most of the time is not spent in large products.
export OMP_NUM_THREADS=1
say() { printf '\n%s\n' "$*" >&2; }
run() { printf '  vpltool %s\n' "$*" >&2; vpltool "$@" -q >/dev/null; }
score() {  # WHAT NAME [OPTION…]: on the unseen scenes
    vpltool eval -q --what "$1" --split val "${@:3}" --out "$VPLTOOL_WORK/scores/$2.json" >/dev/null
}

say 'A small world, text prototypes, frozen features; I: text CAMs'
run demo
run text-prototypes
run extract --split val --keep patches,layers --layers 1,3,5 & val=$!
run extract --split train --keep patches,layers --layers 1,3,5
wait $val
run cam --method salient & salient=$!
run cam --method dense --split val
score cams/text-dense text --threshold $THRESHOLD
wait $salient

ladder() {  # SEED: the steps in which chance plays a part
    local v=vision-$1 split rsc
    run learn-prototypes --pixels seeds --cams text-salient --phi 0.9 --phi-background 0.5 \
        --background clusters --start seeds --iters 0 --seed "$1" \
        --out "$VPLTOOL_WORK/prototypes/$v.safetensors"
    for split in train val; do
        run cam --prototypes $v --method dense --split $split
        run crf --what $v-dense --preset weclip --alpha $ALPHA --split $split --workers 0
    done
    score cams/$v-dense "vision-$1" --threshold $THRESHOLD
    score masks/$v-dense-full "crf-$1"
    for rsc in 0 1; do
        # shellcheck disable=SC2086
        run train-decoder --masks $v-dense --prototypes $v --name decoder-$rsc-$1 --seed "$1" \
            --lambda-rsc $rsc $DECODER
        run predict --decoder decoder-$rsc-$1
        run crf --what predictions/decoder-$rsc-$1 --preset weclip --split val --workers 0
        score predictions/decoder-$rsc-$1 "decoder-$rsc-$1"
        score predictions/decoder-$rsc-$1-crf "decoder-$rsc-$1-crf"
    done
}
say 'II vision prototypes and their CAMs, III masks by the CRF, IV a decoder, V with the contrast'
jobs=()
for seed in $SEEDS; do ladder "$seed" & jobs+=($!); done
for job in "${jobs[@]}"; do wait "$job"; done

row() {  # TITLE PATTERN: a row of all seeds, @ stands for the seed
    files=
    for seed in $SEEDS; do files="$files,scores/${2//@/$seed}.json"; done
    printf '%s=%s\n' "$1" "${files#,}"
}
say 'The ladder, on unseen scenes. I to III are told which classes a photo shows, IV and V are not.'
vpltool scores --markdown \
    "I text CAM=scores/text.json" "$(row 'II vision CAM' vision-@)" "$(row 'III II + CRF' crf-@)" \
    "$(row 'IV decoder + CRF' decoder-0-@-crf)" "$(row 'V IV + RSC' decoder-1-@-crf)" \
    "$(row 'IV without the CRF' decoder-0-@)" "$(row 'V without the CRF' decoder-1-@)" \
    | tee "$VPLTOOL_WORK/ladder.md"
say 'What it looks like'
first=${SEEDS%% *}
vpltool show -q cams/text-dense "cams/vision-$first-dense" "masks/vision-$first-dense-full" \
    "predictions/decoder-1-$first-crf" --split val --limit 6 --out "$VPLTOOL_WORK/sheet.png"
