#!/usr/bin/env bash
# The one command on a machine with a GPU: tests, microbenchmarks and peers, end to end, JSON out, in at most ten minutes.
# Runs in a git checkout (builds what is missing) and in an archive made by pack.mjs (everything is in it; needs neither Node nor network).
#   bench/gpu/check.sh [--emulated] [--json FILE] [--minutes 10] [--only STEP,STEP] [--rebuild]
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
node="$(command -v node || true)"
if [ -f "$root/bin/node.xz" ]; then
  if [ ! -x "$root/bin/node" ]; then
    if command -v xz >/dev/null; then
      xz -dc "$root/bin/node.xz" >"$root/bin/node.part"
    else
      python3 -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), open(sys.argv[2], "wb"))' "$root/bin/node.xz" "$root/bin/node.part"
    fi
    chmod +x "$root/bin/node.part"
    mv "$root/bin/node.part" "$root/bin/node"
  fi
  node="$root/bin/node"
fi
if [ -z "$node" ]; then
  echo "check.sh: Node 20 or newer is needed in a checkout; an archive of bench/gpu/pack.mjs brings its own" >&2
  exit 1
fi
exec "$node" "$root/bench/gpu/check.mjs" "$@"
