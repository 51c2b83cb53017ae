#!/usr/bin/env bash
# bash scripts/run_sample_ascend.sh CARDS --ckpt FILE --input FOLDER --output FOLDER [palette_ms.sample's options]
#
# Restores the pictures of a folder on the first CARDS cards of this machine, each card its share.

set -euo pipefail
. "$(dirname "$0")/ascend.sh"
[ $# -ge 2 ] || usage "how many cards, and what to restore?"
cards=$1
shift
check_machine "$cards"
start "$cards" 1 0 127.0.0.1 palette_ms.sample --device "$DEVICE" "$@"
