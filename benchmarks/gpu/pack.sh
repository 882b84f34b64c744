#!/usr/bin/env bash
# Packs for a GPU machine without network what it lacks beside torch, transformers, accelerate, pyarrow and matplotlib.
#
#   benchmarks/gpu/pack.sh          writes .gpu/site.tar.xz, about 27 MB; .gpu/ is not in git
#   benchmarks/gpu/pack.sh NAMES    packs more, such as schnetpack and what it needs, a peer of the benchmark
#
# For Python 3.12 on x86-64; PYTHON_VERSION=3.13 for another. Versions come from constraints.txt.
set -euo pipefail
cd "$(dirname "$0")/../.."
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
platforms=(--platform manylinux2014_x86_64)
for glibc in 17 27 28 31 34 35 39; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
python3 -m pip install -q --no-deps --no-compile --only-binary=:all: --implementation cp \
    --python-version "${PYTHON_VERSION:-3.12}" "${platforms[@]}" --target "$site" -c constraints.txt \
    rdkit datasets diffusers dill multiprocess jsonargparse docstring-parser typeshed-client importlib-resources ase "$@"
rm -rf "$site"/bin "$site"/rdkit/Contrib "$site"/*/tests "$site"/ase/test
mkdir -p .gpu
tar cJf .gpu/site.tar.xz -C "$site" .
ls -l .gpu/site.tar.xz
