#!/bin/sh
# Generate the committed stubs from the .proto files; with --check only say whether they are what is committed.
set -eu
cd "$(dirname "$0")/../protos"
out=.
if [ "${1:-}" = --check ]; then
	out=$(mktemp -d)
	trap 'rm -rf "$out"' EXIT
fi
"${PROTO_PYTHON:-python3}" -m grpc_tools.protoc -I. --python_out="$out" --pyi_out="$out" koinon_core/wire/v1/*.proto
if [ "$out" != . ]; then
	for stub in koinon_core/wire/v1/*_pb2.py koinon_core/wire/v1/*_pb2.pyi; do
		if ! diff -q "$stub" "$out/$stub" >/dev/null; then
			echo "$stub is not what its .proto generates: run 'make proto' and commit the result" >&2
			exit 1
		fi
	done
	echo "the generated stubs are up to date"
fi
