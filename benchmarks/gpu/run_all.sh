#!/usr/bin/env bash
# Everything that needs a GPU: correctness tests, the timing table, the sweep of launch constants.
#
#   benchmarks/gpu/run_all.sh [FOLDER]
#
# Results go to FOLDER, else to $OUT, else to benchmarks/results. Needs python3 with torch, triton, transformers and
# pytest; the repository need not be installed. Ends with 3 and one line where there is no GPU, with 1 where a test fails or
# a kernel disagrees with the reference. SKIP_TUNE=1 leaves the sweep out.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 2
python=${PYTHON:-python3}
out=${1:-${OUT:-benchmarks/results}}
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

"$python" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else 3)' 2>/dev/null
found=$?
if [ $found -ne 0 ]; then
    [ $found -eq 3 ] && why="torch.cuda.is_available() is false" || why="$python cannot import torch"
    echo "no GPU was found ($why): nothing was run" >&2
    exit 3
fi
mkdir -p "$out"
failed=0
"$python" -m pytest tests/detr/kernels/test_gpu.py -q -m gpu -p no:cacheprovider 2>&1 | tee "$out/gpu-tests.log" || failed=1
"$python" benchmarks/gpu/kernels.py --out "$out" || failed=1
if [ -z "${SKIP_TUNE:-}" ]; then "$python" benchmarks/gpu/tune.py --out "$out" || failed=1; fi
exit $failed
