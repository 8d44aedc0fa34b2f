#!/usr/bin/env bash
# Generates the wire code from the contract. `proto/generate.sh` writes it, `proto/generate.sh --check` fails when the
# committed code is not what the contract gives. Made by protobuf 4.25, whose output every later runtime loads.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/codegen/bin/python
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
"$python" -m grpc_tools.protoc -Iproto --python_out="$out" --pyi_out="$out" \
  collectord/v1/stream.proto collectord/twin/v1/twin.proto

place() {  # place GENERATED COMMITTED
  if [ "${mode:-}" = --check ]; then
    cmp -s "$out/$1" "$2" || { echo "stale: $2 is not what proto/ gives; run 'make proto' and commit" >&2; exit 1; }
  else
    cp "$out/$1" "$2"
  fi
}
mode=${1:-}
for kind in py pyi; do
  place "collectord/v1/stream_pb2.$kind" "agent_stub/wire/stream_pb2.$kind"
  place "collectord/twin/v1/twin_pb2.$kind" "collectord/wire/twin_pb2.$kind"
done
