#!/usr/bin/env bash
# bash scripts/run_distributed_train_ascend.sh CONFIG HOSTS INDEX [CARDS] [key=value …] [--resume auto|PATH]
#
# Trains on several hosts: run it on each of them, with the same HOSTS and with INDEX 0, 1, 2, … in their order.
# HOSTS: their addresses with commas between, or a rank table (JSON), whose cards a host are then taken.
# CARDS: of each host (default: 8). training.output must be a folder that all hosts share, so that all find the same
# training states. The rest goes to palette_ms.train.

set -euo pipefail
. "$(dirname "$0")/ascend.sh"
[ $# -ge 3 ] || usage "which config, hosts and index?"
config=$1 hosts=$2 index=$3 cards=8
shift 3
if [ $# -ge 1 ] && [[ $1 != *=* && $1 != -* ]]; then
    cards=$1
    shift
fi
if [ -f "$hosts" ]; then
    table=$(python -c '
import json, sys
servers = json.load(open(sys.argv[1]))["server_list"]
print(",".join(server["server_id"] for server in servers), len(servers[0]["device"]))' "$hosts" 2>/dev/null) ||
        usage "$hosts is not a rank table"
    read -r hosts cards <<<"$table"
fi
IFS=, read -r -a addresses <<<"$hosts"
[[ $index =~ ^[0-9]+$ ]] && [ "$index" -lt ${#addresses[@]} ] ||
    usage "INDEX must be from 0 to $((${#addresses[@]} - 1)) for ${#addresses[@]} hosts, not '$index'"
check_machine "$cards" --config "$config" "$@"
start "$cards" ${#addresses[@]} "$index" "${addresses[0]}" palette_ms.train --config "$config" --device "$DEVICE" "$@"
