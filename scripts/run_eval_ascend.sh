#!/usr/bin/env bash
# bash scripts/run_eval_ascend.sh CARDS --reference FOLDER --restored FOLDER [palette_ms.evaluate's options]
#
# Compares restored pictures with the originals, in as many processes as CARDS of this machine, each its share.

set -euo pipefail
. "$(dirname "$0")/ascend.sh"
[ $# -ge 2 ] || usage "how many cards, and which folders?"
cards=$1
shift
check_machine "$cards"
start "$cards" 1 0 127.0.0.1 palette_ms.evaluate --device "$DEVICE" "$@"
