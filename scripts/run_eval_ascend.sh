#!/usr/bin/env bash
# bash scripts/run_eval_ascend.sh CARDS --reference FOLDER --restored FOLDER [palette_ms.evaluate's options]
# bash scripts/run_eval_ascend.sh CARDS --ckpt MODEL --task TASK --input FOLDER --output FILE.json [its options]
#
# Compares restored pictures with the originals, or has a model make them, in as many processes as CARDS of this
# machine, each its share.

set -euo pipefail
. "$(dirname "$0")/ascend.sh"
[ $# -ge 2 ] || usage "how many cards, and which folders?"
cards=$1
shift
check_machine "$cards"
start "$cards" 1 0 127.0.0.1 palette_ms.evaluate --device "$DEVICE" "$@"
